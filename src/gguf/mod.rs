//! Strict, bounded reader of GGUF v2 and v3 headers.
//!
//! The reader takes bytes and never a file; it allocates nothing before the length that asks for
//! it was held against a limit and against the bytes that remain. Nothing is guessed or repaired:
//! what is wrong is an [`Error`] that names the field.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic, `GGUF` |
//! | 4 | 4 | version, 2 or 3 |
//! | 8 | 8 | number of tensors |
//! | 16 | 8 | number of metadata entries |
//! | 24 | | metadata: key (u64 length, UTF-8), value type (u32), value |
//! | | | tensors: name, number of dimensions (u32), dimensions (u64 each), type (u32), offset (u64) |
//! | | | zeros up to a multiple of `general.alignment` (32 if absent) |
//! | `data_offset` | | the tensors' bytes, each at its offset from here |
//!
//! Not read: version 1 (32-bit lengths), big-endian files, arrays of arrays.
//!
//! Source: ggml `docs/gguf.md`, and `gguf.cpp` where that is silent.

mod error;
mod metadata;
mod reader;
mod tensors;
#[cfg(test)]
mod tests;
mod value;

use std::ops::Range;

pub use error::{Error, Field, Name};
pub use metadata::{Metadata, required};
pub use tensors::TensorInfo;
pub use value::{Strings, ValueRef, ValueType};

use reader::Reader;

/// Longest header, in bytes; the largest vocabularies of today take 12 MB.
pub const HEADER_SIZE_MAX: u64 = 128 << 20;
/// Most metadata entries; models have about fifty.
pub const KEY_COUNT_MAX: u64 = 1 << 16;
/// Longest metadata key, in bytes.
pub const KEY_LEN_MAX: u64 = 256;
/// Longest string value, in bytes; the longest of today are chat templates of 30 KB.
pub const STRING_LEN_MAX: u64 = 16 << 20;
/// Most elements of an array; the largest vocabularies of today have 262,144 tokens.
pub const ARRAY_LEN_MAX: u64 = 1 << 24;
/// Most tensors; the largest models of today have some thousands.
pub const TENSOR_COUNT_MAX: u64 = 1 << 16;
/// Longest tensor name, in bytes, as in ggml.
pub const TENSOR_NAME_LEN_MAX: u64 = 63;
/// Most dimensions of a tensor, as in ggml.
pub const DIM_COUNT_MAX: u32 = 4;
/// Largest `general.alignment`, in bytes; it is a power of two from 1 to this.
pub const ALIGNMENT_MAX: u32 = 4096;
/// The alignment of files that name none, in bytes.
pub const ALIGNMENT_DEFAULT: u32 = 32;

/// The key that sets the alignment of tensor data.
const ALIGNMENT_KEY: &str = "general.alignment";
/// Fewest bytes of a metadata entry: key length, one letter, type, one byte of value.
const ENTRY_SIZE_MIN: u64 = 8 + 1 + 4 + 1;

/// What a GGUF file says before its tensor data.
#[derive(Debug, Clone)]
pub struct Header {
    /// The version of the format, 2 or 3.
    pub version: u32,
    /// The alignment of tensor data, in bytes.
    pub alignment: u32,
    /// The metadata entries.
    pub metadata: Metadata,
    /// The tensors, in the order of the file.
    pub tensors: Vec<TensorInfo>,
    /// Indices of `tensors`, ordered by name.
    by_name: Vec<u32>,
    /// Where tensor data starts, in bytes from the file's start.
    pub data_offset: u64,
}

impl Header {
    /// Returns the tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let name_of = |index: &u32| self.tensors[*index as usize].name.as_str();
        let place = self.by_name.binary_search_by(|index| name_of(index).cmp(name)).ok()?;
        Some(&self.tensors[self.by_name[place] as usize])
    }

    /// Returns where in the file the tensor's bytes lie.
    pub fn data_range(&self, tensor: &TensorInfo) -> Range<u64> {
        let start = self.data_offset + tensor.offset;
        start..start + tensor.size
    }
}

/// Parses the header of a GGUF file.
///
/// `bytes` is the file's start, at least its whole header; `file_len` is the length of the whole
/// file. Every tensor lies within the file, is aligned, and shares no byte with another.
///
/// # Errors
///
/// The first fault in the order of the file. [`Error::Incomplete`] alone means that the file may be
/// right and `bytes` ends too early.
pub fn parse(bytes: &[u8], file_len: u64) -> Result<Header, Error> {
    let mut reader = Reader::new(bytes, file_len);
    let version = read_version(&mut reader)?;
    let tensor_count =
        reader.count(Field::TensorCount, TENSOR_COUNT_MAX, tensors::INFO_SIZE_MIN)?;
    let key_count = reader.count(Field::KeyCount, KEY_COUNT_MAX, ENTRY_SIZE_MIN)?;
    let metadata = Metadata::read(&mut reader, key_count)?;
    let alignment = read_alignment(&metadata)?;
    let tensors = tensors::read(&mut reader, tensor_count)?;
    let by_name = tensors::order_by_name(&tensors)?;
    let data_offset = reader.position().next_multiple_of(u64::from(alignment));
    tensors::check_places(&tensors, alignment, file_len.saturating_sub(data_offset))?;
    Ok(Header { version, alignment, metadata, tensors, by_name, data_offset })
}

fn read_version(reader: &mut Reader) -> Result<u32, Error> {
    if reader.take_array(Field::Magic)? != *b"GGUF" {
        return Err(Error::BadMagic);
    }
    let version = reader.u32(Field::Version)?;
    match version {
        2 | 3 => Ok(version),
        // A small number read the wrong way round.
        _ if version != 0 && version & 0xFFFF == 0 => Err(Error::BigEndian),
        _ => Err(Error::UnsupportedVersion { version }),
    }
}

fn read_alignment(metadata: &Metadata) -> Result<u32, Error> {
    let alignment = match metadata.value(ALIGNMENT_KEY) {
        None => ALIGNMENT_DEFAULT,
        Some(ValueRef::U32(alignment)) => alignment,
        Some(other) => {
            return Err(Error::wrong_type(ALIGNMENT_KEY, "u32", other.value_type().name()));
        }
    };
    if alignment.is_power_of_two() && alignment <= ALIGNMENT_MAX {
        Ok(alignment)
    } else {
        Err(Error::BadAlignment { alignment })
    }
}
