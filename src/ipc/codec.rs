//! `Reader` and `Writer`: bounded and exact; trailing bytes are an error.
//!
//! Little-endian numbers; a list or a text is its `u32` length and then its elements; an enum is
//! one byte and then its fields. Nothing is allocated before its length was held against its limit
//! and against the bytes that remain. The tables of the messages are in `wire.rs`.

use zeroize::Zeroizing;

use super::Error;

/// Limits of one field, in elements and bytes; both 0 for a field of fixed size, so that a text
/// whose limit was forgotten holds nothing.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Most elements of a list.
    count_max: usize,
    /// Longest text or byte string (of each element in a list), in bytes.
    len_max_bytes: usize,
}

impl Limit {
    /// For fields of fixed size.
    pub const FIXED: Self = Self { count_max: 0, len_max_bytes: 0 };

    /// For a text or a byte string.
    #[must_use]
    pub const fn bytes(len_max_bytes: usize) -> Self {
        Self { count_max: 0, len_max_bytes }
    }

    /// For a list of elements of fixed size.
    #[must_use]
    pub const fn count(count_max: usize) -> Self {
        Self { count_max, len_max_bytes: 0 }
    }

    /// For a list of texts or byte strings.
    #[must_use]
    pub const fn count_bytes(count_max: usize, len_max_bytes: usize) -> Self {
        Self { count_max, len_max_bytes }
    }
}

/// Takes fields off received bytes.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes the next `len` bytes.
    ///
    /// # Errors
    ///
    /// `Truncated` when fewer remain.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Error::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Takes the next `N` bytes.
    ///
    /// # Errors
    ///
    /// `Truncated` when fewer remain.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Error::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Takes the length of a list or text and holds it against `max` and the bytes that remain
    /// (each element takes at least one).
    ///
    /// # Errors
    ///
    /// `TooLong`, `Truncated`.
    pub fn len(&mut self, what: &'static str, max: usize) -> Result<usize, Error> {
        let len = u32::from_le_bytes(self.array()?) as usize;
        if len > max {
            return Err(Error::TooLong { what, len, max });
        }
        if len > self.rest.len() {
            return Err(Error::Truncated);
        }
        Ok(len)
    }

    /// Ends the message.
    ///
    /// # Errors
    ///
    /// `Trailing` when bytes remain.
    pub fn end(self) -> Result<(), Error> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(Error::Trailing { count }),
        }
    }
}

/// Collects the fields of one message; its memory is erased on drop.
#[derive(Default)]
pub struct Writer {
    bytes: Zeroizing<Vec<u8>>,
}

impl Writer {
    /// Starts an empty message with room for `capacity` bytes, so that text is not moved about.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Zeroizing::new(Vec::with_capacity(capacity)) }
    }

    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let needed = self.bytes.len() + bytes.len();
        if needed > self.bytes.capacity() {
            // Growing in place would leave an unerased copy behind.
            let mut wider = Zeroizing::new(Vec::with_capacity(needed.next_power_of_two()));
            wider.extend_from_slice(&self.bytes);
            self.bytes = wider;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends the length of a list or text.
    ///
    /// # Errors
    ///
    /// `TooLong` when it is over `max`.
    pub fn len(&mut self, what: &'static str, len: usize, max: usize) -> Result<(), Error> {
        let fits = u32::try_from(len).ok().filter(|_| len <= max);
        let len = fits.ok_or(Error::TooLong { what, len, max })?;
        self.bytes(&len.to_le_bytes());
        Ok(())
    }

    /// Returns the message.
    #[must_use]
    pub fn finish(self) -> Zeroizing<Vec<u8>> {
        self.bytes
    }
}

/// A value that can be appended to a message.
pub trait Encode {
    /// Appends the value; `what` names the field in errors.
    ///
    /// # Errors
    ///
    /// `TooLong` when the value is over `limit`.
    fn put(&self, writer: &mut Writer, what: &'static str, limit: Limit) -> Result<(), Error>;
}

/// A value that can be taken off a message.
pub trait Decode: Sized {
    /// Takes the value; `what` names the field in errors.
    ///
    /// # Errors
    ///
    /// Every way of being wrong but trailing bytes.
    fn take(reader: &mut Reader<'_>, what: &'static str, limit: Limit) -> Result<Self, Error>;
}

/// A whole message: what one packet or one frame holds.
pub trait Message: Encode + Decode {
    /// Its name, for errors.
    const NAME: &'static str;
    /// Longest encoding, in bytes.
    const LEN_MAX_BYTES: usize;

    /// How many descriptors travel with this message.
    fn descriptor_count(&self) -> usize {
        0
    }

    /// Encodes the message.
    ///
    /// # Errors
    ///
    /// `TooLong` when a field or the whole is over its limit.
    fn encode(&self) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.encode_after(&[])
    }

    /// Encodes the message behind `head`, which does not count towards its length.
    ///
    /// # Errors
    ///
    /// `TooLong` when a field or the whole is over its limit.
    fn encode_after(&self, head: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let mut writer = Writer::with_capacity(256);
        writer.bytes(head);
        self.put(&mut writer, Self::NAME, Limit::FIXED)?;
        let bytes = writer.finish();
        let (len, max) = (bytes.len() - head.len(), Self::LEN_MAX_BYTES);
        if len > max {
            return Err(Error::TooLong { what: Self::NAME, len, max });
        }
        Ok(bytes)
    }

    /// Decodes exactly one message.
    ///
    /// # Errors
    ///
    /// Every way of being wrong.
    fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (len, max) = (bytes.len(), Self::LEN_MAX_BYTES);
        if len > max {
            return Err(Error::TooLong { what: Self::NAME, len, max });
        }
        let mut reader = Reader::new(bytes);
        let message = Self::take(&mut reader, Self::NAME, Limit::FIXED)?;
        reader.end()?;
        Ok(message)
    }
}

/// Numbers, little-endian.
macro_rules! number {
    ($($number:ty)*) => {$(
        impl Encode for $number {
            fn put(&self, writer: &mut Writer, _: &'static str, _: Limit) -> Result<(), Error> {
                writer.bytes(&self.to_le_bytes());
                Ok(())
            }
        }
        impl Decode for $number {
            fn take(reader: &mut Reader<'_>, _: &'static str, _: Limit) -> Result<Self, Error> {
                Ok(Self::from_le_bytes(reader.array()?))
            }
        }
    )*};
}

// `u8` is left out on purpose: `Vec<u8>` is a byte string, not a list.
number!(u16 u32 u64 i32 f32);

impl Encode for bool {
    fn put(&self, writer: &mut Writer, _: &'static str, _: Limit) -> Result<(), Error> {
        writer.bytes(&[u8::from(*self)]);
        Ok(())
    }
}

impl Decode for bool {
    fn take(reader: &mut Reader<'_>, what: &'static str, _: Limit) -> Result<Self, Error> {
        match reader.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Error::NotBool { what }),
        }
    }
}

impl<const N: usize> Encode for [u8; N] {
    fn put(&self, writer: &mut Writer, _: &'static str, _: Limit) -> Result<(), Error> {
        writer.bytes(self);
        Ok(())
    }
}

impl<const N: usize> Decode for [u8; N] {
    fn take(reader: &mut Reader<'_>, _: &'static str, _: Limit) -> Result<Self, Error> {
        reader.array()
    }
}

impl<const N: usize> Encode for Zeroizing<[u8; N]> {
    fn put(&self, writer: &mut Writer, _: &'static str, _: Limit) -> Result<(), Error> {
        writer.bytes(&**self);
        Ok(())
    }
}

impl<const N: usize> Decode for Zeroizing<[u8; N]> {
    fn take(reader: &mut Reader<'_>, _: &'static str, _: Limit) -> Result<Self, Error> {
        let mut taken = Self::new([0; N]);
        taken.copy_from_slice(reader.bytes(N)?);
        Ok(taken)
    }
}

impl Encode for String {
    fn put(&self, writer: &mut Writer, what: &'static str, limit: Limit) -> Result<(), Error> {
        writer.len(what, self.len(), limit.len_max_bytes)?;
        writer.bytes(self.as_bytes());
        Ok(())
    }
}

impl Decode for String {
    fn take(reader: &mut Reader<'_>, what: &'static str, limit: Limit) -> Result<Self, Error> {
        let len = reader.len(what, limit.len_max_bytes)?;
        let text = str::from_utf8(reader.bytes(len)?).map_err(|_| Error::NotUtf8 { what })?;
        Ok(text.to_owned())
    }
}

impl Encode for Vec<u8> {
    fn put(&self, writer: &mut Writer, what: &'static str, limit: Limit) -> Result<(), Error> {
        writer.len(what, self.len(), limit.len_max_bytes)?;
        writer.bytes(self);
        Ok(())
    }
}

impl Decode for Vec<u8> {
    fn take(reader: &mut Reader<'_>, what: &'static str, limit: Limit) -> Result<Self, Error> {
        let len = reader.len(what, limit.len_max_bytes)?;
        Ok(reader.bytes(len)?.to_vec())
    }
}

impl<T: Encode> Encode for Vec<T> {
    fn put(&self, writer: &mut Writer, what: &'static str, limit: Limit) -> Result<(), Error> {
        writer.len(what, self.len(), limit.count_max)?;
        self.iter().try_for_each(|element| element.put(writer, what, limit))
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn take(reader: &mut Reader<'_>, what: &'static str, limit: Limit) -> Result<Self, Error> {
        let len = reader.len(what, limit.count_max)?;
        (0..len).map(|_| T::take(reader, what, limit)).collect()
    }
}

impl<A: Encode, B: Encode> Encode for (A, B) {
    fn put(&self, writer: &mut Writer, what: &'static str, limit: Limit) -> Result<(), Error> {
        self.0.put(writer, what, limit)?;
        self.1.put(writer, what, limit)
    }
}

impl<A: Decode, B: Decode> Decode for (A, B) {
    fn take(reader: &mut Reader<'_>, what: &'static str, limit: Limit) -> Result<Self, Error> {
        Ok((A::take(reader, what, limit)?, B::take(reader, what, limit)?))
    }
}

impl<T: Encode> Encode for Option<T> {
    fn put(&self, writer: &mut Writer, what: &'static str, limit: Limit) -> Result<(), Error> {
        self.is_some().put(writer, what, limit)?;
        self.as_ref().map_or(Ok(()), |value| value.put(writer, what, limit))
    }
}

impl<T: Decode> Decode for Option<T> {
    fn take(reader: &mut Reader<'_>, what: &'static str, limit: Limit) -> Result<Self, Error> {
        match bool::take(reader, what, limit)? {
            true => T::take(reader, what, limit).map(Some),
            false => Ok(None),
        }
    }
}

impl<T: Encode> Encode for Box<T> {
    fn put(&self, writer: &mut Writer, what: &'static str, limit: Limit) -> Result<(), Error> {
        (**self).put(writer, what, limit)
    }
}

impl<T: Decode> Decode for Box<T> {
    fn take(reader: &mut Reader<'_>, what: &'static str, limit: Limit) -> Result<Self, Error> {
        T::take(reader, what, limit).map(Self::new)
    }
}

/// Writes the codec of an enum from its table: number, variant, fields in order with limits.
///
/// A variant or a field that the table forgets does not compile.
macro_rules! variants {
    ($type:ident { $( $number:literal $variant:ident
        $( { $( $field:ident $(: $limit:expr)? ),+ $(,)? } )?
        $( ( $inner:ident $(: $inner_limit:expr)? ) )? ),+ $(,)? }) => {
        impl $crate::ipc::codec::Encode for $type {
            fn put(
                &self,
                writer: &mut $crate::ipc::codec::Writer,
                _: &'static str,
                _: $crate::ipc::codec::Limit,
            ) -> Result<(), $crate::ipc::Error> {
                match self {
                    $( Self::$variant $( { $( $field ),+ } )? $( ( $inner ) )? => {
                        writer.bytes(&[$number]);
                        $( $( $field.put(
                            writer,
                            concat!(stringify!($type), ".", stringify!($field)),
                            $crate::ipc::codec::limit!($( $limit )?),
                        )?; )+ )?
                        $( $inner.put(
                            writer,
                            concat!(stringify!($type), ".", stringify!($inner)),
                            $crate::ipc::codec::limit!($( $inner_limit )?),
                        )?; )?
                    } )+
                }
                Ok(())
            }
        }
        impl $crate::ipc::codec::Decode for $type {
            fn take(
                reader: &mut $crate::ipc::codec::Reader<'_>,
                _: &'static str,
                _: $crate::ipc::codec::Limit,
            ) -> Result<Self, $crate::ipc::Error> {
                let [number] = reader.array()?;
                match number {
                    $( $number => Ok(Self::$variant
                        $( { $( $field: $crate::ipc::codec::Decode::take(
                            reader,
                            concat!(stringify!($type), ".", stringify!($field)),
                            $crate::ipc::codec::limit!($( $limit )?),
                        )? ),+ } )?
                        $( ( {
                            let what = concat!(stringify!($type), ".", stringify!($inner));
                            let limit = $crate::ipc::codec::limit!($( $inner_limit )?);
                            $crate::ipc::codec::Decode::take(reader, what, limit)?
                        } ) )?
                    ), )+
                    value => Err($crate::ipc::Error::UnknownVariant {
                        what: stringify!($type),
                        value,
                    }),
                }
            }
        }
    };
}

/// Writes the codec of a struct from its table: fields in order with limits.
macro_rules! fields {
    ($type:ident { $( $field:ident $(: $limit:expr)? ),+ $(,)? }) => {
        impl $crate::ipc::codec::Encode for $type {
            fn put(
                &self,
                writer: &mut $crate::ipc::codec::Writer,
                _: &'static str,
                _: $crate::ipc::codec::Limit,
            ) -> Result<(), $crate::ipc::Error> {
                let Self { $( $field ),+ } = self;
                $( $field.put(
                    writer,
                    concat!(stringify!($type), ".", stringify!($field)),
                    $crate::ipc::codec::limit!($( $limit )?),
                )?; )+
                Ok(())
            }
        }
        impl $crate::ipc::codec::Decode for $type {
            fn take(
                reader: &mut $crate::ipc::codec::Reader<'_>,
                _: &'static str,
                _: $crate::ipc::codec::Limit,
            ) -> Result<Self, $crate::ipc::Error> {
                Ok(Self { $( $field: $crate::ipc::codec::Decode::take(
                    reader,
                    concat!(stringify!($type), ".", stringify!($field)),
                    $crate::ipc::codec::limit!($( $limit )?),
                )? ),+ })
            }
        }
    };
}

/// The limit of a field in a table; none means a fixed size.
macro_rules! limit {
    () => {
        $crate::ipc::codec::Limit::FIXED
    };
    ($limit:expr) => {
        $limit
    };
}

pub(crate) use {fields, limit, variants};
