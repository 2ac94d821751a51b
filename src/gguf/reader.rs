//! A bounded cursor over the header's bytes.

use super::{Error, Field, HEADER_SIZE_MAX};

/// Reads little-endian fields in order; every read is held against the limit of the header, the
/// length of the file and the bytes at hand, in this order.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
    file_len: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], file_len: u64) -> Self {
        let file_len = file_len.max(bytes.len() as u64);
        Self { bytes, position: 0, file_len }
    }

    /// Returns how many bytes were read.
    pub(super) fn position(&self) -> u64 {
        self.position as u64
    }

    /// Takes the next `len` bytes.
    pub(super) fn take(
        &mut self,
        len: u64,
        field: impl FnOnce() -> Field,
    ) -> Result<&'a [u8], Error> {
        if len > self.file_len - self.position() {
            return Err(Error::Truncated { field: field() });
        }
        if self.position() + len > HEADER_SIZE_MAX {
            return Err(Error::HeaderTooLong { field: field() });
        }
        let rest = &self.bytes[self.position..];
        match usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
            None => Err(Error::Incomplete { field: field() }),
            Some(taken) => {
                self.position += taken.len();
                Ok(taken)
            }
        }
    }

    pub(super) fn take_array<const N: usize>(&mut self, field: Field) -> Result<[u8; N], Error> {
        let bytes = self.take(N as u64, || field)?;
        Ok(bytes.try_into().expect("`take` returns the length asked for"))
    }

    pub(super) fn u32(&mut self, field: Field) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.take_array(field)?))
    }

    pub(super) fn u64(&mut self, field: Field) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.take_array(field)?))
    }

    /// Reads a number of things that take at least `size_min` bytes each of the rest of the file.
    pub(super) fn count(&mut self, field: Field, max: u64, size_min: u64) -> Result<usize, Error> {
        let count = self.u64(field.clone())?;
        if count > max {
            return Err(Error::TooMany { field, count, max });
        }
        if count * size_min > self.file_len - self.position() {
            return Err(Error::Truncated { field });
        }
        Ok(usize::try_from(count).expect("every limit fits a usize"))
    }

    /// Reads a string: its length (u64), then its bytes.
    pub(super) fn string(&mut self, max: u64, field: impl Fn() -> Field) -> Result<&'a str, Error> {
        let len = self.take(8, &field)?;
        let len = u64::from_le_bytes(len.try_into().expect("`take` returns the length asked for"));
        if len > max {
            return Err(Error::TooLong { field: field(), len, max });
        }
        let bytes = self.take(len, &field)?;
        std::str::from_utf8(bytes).map_err(|_| Error::NotUtf8 { field: field() })
    }
}
