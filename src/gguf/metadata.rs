//! The metadata entries of a file, and typed access to them.
//!
//! Strings are checked to be UTF-8 once and kept in one buffer; an array of strings is a list of
//! ends in that buffer, so that a vocabulary costs no allocation a token. Integers are given where
//! the value fits the type asked for; elements of arrays must have exactly the type asked for.

use std::ops::Range;

use super::reader::Reader;
use super::{ARRAY_LEN_MAX, Error, Field, KEY_LEN_MAX, Name, STRING_LEN_MAX};

/// The types of metadata values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Returns the name of the type.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// Returns the size of a number in bytes; of strings, the size of an empty one.
    fn size_min(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String | Self::Array => 8,
        }
    }
}

/// A metadata value.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum ValueRef<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(&'a str),
    U64(u64),
    I64(i64),
    F64(f64),
    /// An array of strings.
    Strings(Strings<'a>),
    /// An array of numbers or bools: the type of the elements and their little-endian bytes.
    Numbers(ValueType, &'a [u8]),
}

impl<'a> ValueRef<'a> {
    /// Returns the type that the file gives the value.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
            Self::Strings(_) | Self::Numbers(..) => ValueType::Array,
        }
    }

    /// Returns the name of the value's type, with the elements' type for an array.
    fn type_name(&self) -> &'static str {
        match self {
            Self::Strings(_) => "array of string",
            Self::Numbers(element, _) => match element {
                ValueType::U8 => "array of u8",
                ValueType::I8 => "array of i8",
                ValueType::U16 => "array of u16",
                ValueType::I16 => "array of i16",
                ValueType::U32 => "array of u32",
                ValueType::I32 => "array of i32",
                ValueType::F32 => "array of f32",
                ValueType::Bool => "array of bool",
                ValueType::U64 => "array of u64",
                ValueType::I64 => "array of i64",
                ValueType::F64 => "array of f64",
                ValueType::String | ValueType::Array => "array",
            },
            single => single.value_type().name(),
        }
    }

    /// Returns the value if it is an integer of any width.
    fn integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(value) => value.into(),
            Self::I8(value) => value.into(),
            Self::U16(value) => value.into(),
            Self::I16(value) => value.into(),
            Self::U32(value) => value.into(),
            Self::I32(value) => value.into(),
            Self::U64(value) => value.into(),
            Self::I64(value) => value.into(),
            _ => return None,
        })
    }

    /// Reads a single value of a number type from its bytes; `None` for a bool other than 0 or 1.
    fn number(ty: ValueType, bytes: &[u8]) -> Option<ValueRef<'a>> {
        /// The array of a number's bytes.
        fn le<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.try_into().expect("the caller took the size of the type")
        }
        Some(match ty {
            ValueType::U8 => Self::U8(u8::from_le_bytes(le(bytes))),
            ValueType::I8 => Self::I8(i8::from_le_bytes(le(bytes))),
            ValueType::U16 => Self::U16(u16::from_le_bytes(le(bytes))),
            ValueType::I16 => Self::I16(i16::from_le_bytes(le(bytes))),
            ValueType::U32 => Self::U32(u32::from_le_bytes(le(bytes))),
            ValueType::I32 => Self::I32(i32::from_le_bytes(le(bytes))),
            ValueType::F32 => Self::F32(f32::from_le_bytes(le(bytes))),
            ValueType::Bool if bytes[0] <= 1 => Self::Bool(bytes[0] == 1),
            ValueType::U64 => Self::U64(u64::from_le_bytes(le(bytes))),
            ValueType::I64 => Self::I64(i64::from_le_bytes(le(bytes))),
            ValueType::F64 => Self::F64(f64::from_le_bytes(le(bytes))),
            ValueType::Bool | ValueType::String | ValueType::Array => return None,
        })
    }
}

/// An array of strings, as a view.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Strings<'a> {
    text: &'a str,
    start: u32,
    ends: &'a [u32],
}

impl<'a> Strings<'a> {
    /// Returns the number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns whether there is no string.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns the string of this index.
    pub fn get(&self, index: usize) -> Option<&'a str> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { self.start } else { self.ends[index - 1] };
        Some(&self.text[start as usize..end as usize])
    }

    /// Returns the strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a str> + use<'a> {
        let view = *self;
        (0..view.len()).map(move |index| view.get(index).expect("the index is below the length"))
    }
}

/// A value as it is kept: strings are places in `Metadata::text`.
#[derive(Debug, Clone)]
enum Value {
    Single(ValueType, [u8; 8]),
    String(Range<u32>),
    Strings { start: u32, ends: Box<[u32]> },
    Numbers(ValueType, Box<[u8]>),
}

/// The metadata entries of a file.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    /// Every string value, one after another.
    text: String,
    /// Keys and values in the order of the file.
    entries: Vec<(String, Value)>,
    /// Indices of `entries`, ordered by key.
    by_key: Vec<u32>,
}

impl Metadata {
    /// Reads `count` entries and refuses two of the same key.
    pub(super) fn read(reader: &mut Reader, count: usize) -> Result<Self, Error> {
        let mut metadata = Self::default();
        metadata.entries.reserve_exact(count);
        for index in 0..count {
            let field = || Field::Key(index as u64);
            let key = reader.string(KEY_LEN_MAX, field)?;
            if key.is_empty() {
                return Err(Error::Empty { field: field() });
            }
            let value = metadata.read_value(reader, key)?;
            metadata.entries.push((key.to_owned(), value));
        }
        let mut by_key: Vec<u32> = (0..).take(count).collect();
        by_key.sort_by_key(|&index| metadata.entries[index as usize].0.as_str());
        let key_of = |index: u32| metadata.entries[index as usize].0.as_str();
        if let Some(pair) = by_key.windows(2).find(|pair| key_of(pair[0]) == key_of(pair[1])) {
            return Err(Error::DuplicateKey { key: Name::new(key_of(pair[0])) });
        }
        metadata.by_key = by_key;
        Ok(metadata)
    }

    fn read_value(&mut self, reader: &mut Reader, key: &str) -> Result<Value, Error> {
        let field = || Field::Value(Name::new(key));
        let ty = read_type(reader, Field::ValueType(Name::new(key)))?;
        match ty {
            ValueType::String => {
                let start = self.text_end();
                self.text.push_str(reader.string(STRING_LEN_MAX, field)?);
                Ok(Value::String(start..self.text_end()))
            }
            ValueType::Array => self.read_array(reader, key),
            _ => {
                let bytes = reader.take(ty.size_min(), field)?;
                if ValueRef::number(ty, bytes).is_none() {
                    return Err(Error::BadBool { key: Name::new(key) });
                }
                let mut single = [0; 8];
                single[..bytes.len()].copy_from_slice(bytes);
                Ok(Value::Single(ty, single))
            }
        }
    }

    fn read_array(&mut self, reader: &mut Reader, key: &str) -> Result<Value, Error> {
        let field = || Field::Value(Name::new(key));
        let element = read_type(reader, Field::ElementType(Name::new(key)))?;
        if element == ValueType::Array {
            return Err(Error::NestedArray { key: Name::new(key) });
        }
        let len_field = Field::ArrayLen(Name::new(key));
        let len = reader.count(len_field, ARRAY_LEN_MAX, element.size_min())?;
        if element == ValueType::String {
            let start = self.text_end();
            let mut ends = Vec::with_capacity(len);
            for _ in 0..len {
                self.text.push_str(reader.string(STRING_LEN_MAX, field)?);
                ends.push(self.text_end());
            }
            return Ok(Value::Strings { start, ends: ends.into() });
        }
        let bytes = reader.take(len as u64 * element.size_min(), field)?;
        if element == ValueType::Bool && bytes.iter().any(|&byte| byte > 1) {
            return Err(Error::BadBool { key: Name::new(key) });
        }
        Ok(Value::Numbers(element, bytes.into()))
    }

    fn text_end(&self) -> u32 {
        u32::try_from(self.text.len()).expect("the text is shorter than HEADER_SIZE_MAX")
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the keys in the order of the file.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|(key, _)| key.as_str())
    }

    /// Returns keys and values in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, ValueRef<'_>)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), self.view(value)))
    }

    /// Returns the value of this key, whatever its type.
    pub fn value(&self, key: &str) -> Option<ValueRef<'_>> {
        let key_of = |index: &u32| self.entries[*index as usize].0.as_str();
        let place = self.by_key.binary_search_by(|index| key_of(index).cmp(key)).ok()?;
        Some(self.view(&self.entries[self.by_key[place] as usize].1))
    }

    fn view<'a>(&'a self, value: &'a Value) -> ValueRef<'a> {
        match value {
            Value::Single(ty, bytes) => {
                let size = usize::try_from(ty.size_min()).expect("at most eight");
                ValueRef::number(*ty, &bytes[..size]).expect("`read_value` let it pass")
            }
            Value::String(place) => {
                ValueRef::String(&self.text[place.start as usize..place.end as usize])
            }
            Value::Strings { start, ends } => {
                ValueRef::Strings(Strings { text: &self.text, start: *start, ends })
            }
            Value::Numbers(element, bytes) => ValueRef::Numbers(*element, bytes),
        }
    }

    /// Returns the string of this key.
    ///
    /// # Errors
    ///
    /// [`Error::WrongType`] if it is something else.
    pub fn string(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(ValueRef::String(text)) => Ok(Some(text)),
            Some(other) => Err(Error::wrong_type(key, "string", other.type_name())),
        }
    }

    /// Returns the bool of this key.
    ///
    /// # Errors
    ///
    /// [`Error::WrongType`] if it is something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(ValueRef::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(Error::wrong_type(key, "bool", other.type_name())),
        }
    }

    /// Returns the 32-bit float of this key.
    ///
    /// # Errors
    ///
    /// [`Error::WrongType`] if it is something else.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(ValueRef::F32(value)) => Ok(Some(value)),
            Some(other) => Err(Error::wrong_type(key, "f32", other.type_name())),
        }
    }

    /// Returns the integer of this key, of whatever width the file gives it.
    ///
    /// # Errors
    ///
    /// [`Error::WrongType`] if it is no integer, [`Error::OutOfRange`] if it does not fit.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, Error> {
        self.integer(key, "u32")
    }

    /// Returns the integer of this key, of whatever width the file gives it.
    ///
    /// # Errors
    ///
    /// [`Error::WrongType`] if it is no integer, [`Error::OutOfRange`] if it does not fit.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, Error> {
        self.integer(key, "u64")
    }

    /// Returns the integer of this key, of whatever width the file gives it.
    ///
    /// # Errors
    ///
    /// [`Error::WrongType`] if it is no integer, [`Error::OutOfRange`] if it does not fit.
    pub fn i32(&self, key: &str) -> Result<Option<i32>, Error> {
        self.integer(key, "i32")
    }

    fn integer<T: TryFrom<i128>>(
        &self,
        key: &str,
        expected: &'static str,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let Some(integer) = value.integer() else {
            return Err(Error::wrong_type(key, expected, value.type_name()));
        };
        let out_of_range = |_| Error::OutOfRange { key: Name::new(key), expected };
        T::try_from(integer).map(Some).map_err(out_of_range)
    }

    /// Returns the array of strings of this key.
    ///
    /// # Errors
    ///
    /// [`Error::WrongType`] if it is something else.
    pub fn strings(&self, key: &str) -> Result<Option<Strings<'_>>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(ValueRef::Strings(strings)) => Ok(Some(strings)),
            Some(other) => Err(Error::wrong_type(key, "array of string", other.type_name())),
        }
    }

    /// Returns the array of 32-bit floats of this key.
    ///
    /// # Errors
    ///
    /// [`Error::WrongType`] if it is something else.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        self.numbers(key, ValueType::F32, "array of f32", f32::from_le_bytes)
    }

    /// Returns the array of signed 32-bit integers of this key.
    ///
    /// # Errors
    ///
    /// [`Error::WrongType`] if it is something else.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, Error> {
        self.numbers(key, ValueType::I32, "array of i32", i32::from_le_bytes)
    }

    /// Returns the array of unsigned 32-bit integers of this key.
    ///
    /// # Errors
    ///
    /// [`Error::WrongType`] if it is something else.
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, Error> {
        self.numbers(key, ValueType::U32, "array of u32", u32::from_le_bytes)
    }

    /// Returns the array of bools of this key.
    ///
    /// # Errors
    ///
    /// [`Error::WrongType`] if it is something else.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>, Error> {
        self.numbers(key, ValueType::Bool, "array of bool", |[byte]| byte == 1)
    }

    fn numbers<T, const N: usize>(
        &self,
        key: &str,
        element: ValueType,
        expected: &'static str,
        from_le: impl Fn([u8; N]) -> T,
    ) -> Result<Option<Vec<T>>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(ValueRef::Numbers(found, bytes)) if found == element => {
                let (chunks, _) = bytes.as_chunks::<N>();
                Ok(Some(chunks.iter().map(|chunk| from_le(*chunk)).collect()))
            }
            Some(other) => Err(Error::wrong_type(key, expected, other.type_name())),
        }
    }
}

/// Turns an absent value into [`Error::Missing`].
///
/// # Errors
///
/// The error of the getter, or [`Error::Missing`].
pub fn required<T>(key: &str, value: Result<Option<T>, Error>) -> Result<T, Error> {
    value?.ok_or_else(|| Error::Missing { key: Name::new(key) })
}

fn read_type(reader: &mut Reader, field: Field) -> Result<ValueType, Error> {
    let id = reader.u32(field.clone())?;
    ValueType::from_id(id).ok_or(Error::UnknownValueType { field, id })
}
