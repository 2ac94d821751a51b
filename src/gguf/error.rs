//! What can be wrong with a GGUF file, and how its fields are named.

use std::fmt;

/// Most characters of a name that an error repeats.
const NAME_CHARS_MAX: usize = 80;

/// A name that a model file chose: shown escaped, in quotes, and cut to a readable length.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    pub(super) fn new(name: &str) -> Self {
        match name.char_indices().nth(NAME_CHARS_MAX) {
            None => Self(name.to_owned()),
            Some((end, _)) => Self(format!("{}…", &name[..end])),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0.escape_debug())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

/// A field of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// The first four bytes.
    Magic,
    /// The version of the format.
    Version,
    /// The number of tensors.
    TensorCount,
    /// The number of metadata entries.
    KeyCount,
    /// The key of the metadata entry of this index.
    Key(u64),
    /// The type of the value of this key.
    ValueType(Name),
    /// The value of this key.
    Value(Name),
    /// The element type of the array of this key.
    ElementType(Name),
    /// The number of elements of the array of this key.
    ArrayLen(Name),
    /// The name of the tensor of this index.
    TensorName(u64),
    /// The number of dimensions of this tensor.
    DimCount(Name),
    /// The dimensions of this tensor.
    Dims(Name),
    /// The type of this tensor.
    TensorType(Name),
    /// The data offset of this tensor.
    Offset(Name),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "the magic number"),
            Self::Version => write!(f, "the version"),
            Self::TensorCount => write!(f, "the number of tensors"),
            Self::KeyCount => write!(f, "the number of metadata entries"),
            Self::Key(index) => write!(f, "the key of metadata entry {index}"),
            Self::ValueType(key) => write!(f, "the value type of {key}"),
            Self::Value(key) => write!(f, "the value of {key}"),
            Self::ElementType(key) => write!(f, "the element type of {key}"),
            Self::ArrayLen(key) => write!(f, "the array length of {key}"),
            Self::TensorName(index) => write!(f, "the name of tensor {index}"),
            Self::DimCount(tensor) => write!(f, "the number of dimensions of tensor {tensor}"),
            Self::Dims(tensor) => write!(f, "the dimensions of tensor {tensor}"),
            Self::TensorType(tensor) => write!(f, "the type of tensor {tensor}"),
            Self::Offset(tensor) => write!(f, "the data offset of tensor {tensor}"),
        }
    }
}

/// Why a file was refused, or why a metadata value cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The file does not start with `GGUF`.
    BadMagic,
    /// The file is big endian.
    BigEndian,
    /// The version is neither 2 nor 3.
    UnsupportedVersion {
        /// The version that the file has.
        version: u32,
    },
    /// The file ends before or inside this field.
    Truncated {
        /// The field that is cut.
        field: Field,
    },
    /// The bytes given end inside this field though the file goes on.
    Incomplete {
        /// The field that is cut.
        field: Field,
    },
    /// The header passes [`super::HEADER_SIZE_MAX`] at this field.
    HeaderTooLong {
        /// The field that passes the limit.
        field: Field,
    },
    /// A count is above its limit.
    TooMany {
        /// The count.
        field: Field,
        /// What the file says.
        count: u64,
        /// The limit.
        max: u64,
    },
    /// A string is longer than its limit.
    TooLong {
        /// The string.
        field: Field,
        /// Its length in bytes.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// A key or tensor name is empty.
    Empty {
        /// The name.
        field: Field,
    },
    /// A string is not UTF-8.
    NotUtf8 {
        /// The string.
        field: Field,
    },
    /// A value type or element type that GGUF does not have.
    UnknownValueType {
        /// The type.
        field: Field,
        /// What the file says.
        id: u32,
    },
    /// An array of arrays.
    NestedArray {
        /// The key.
        key: Name,
    },
    /// A bool that is neither 0 nor 1.
    BadBool {
        /// The key.
        key: Name,
    },
    /// Two metadata entries have this key.
    DuplicateKey {
        /// The key.
        key: Name,
    },
    /// `general.alignment` is not a power of two up to [`super::ALIGNMENT_MAX`].
    BadAlignment {
        /// What the file says.
        alignment: u32,
    },
    /// A tensor has no dimension or more than [`super::DIM_COUNT_MAX`].
    BadDimCount {
        /// The tensor.
        tensor: Name,
        /// What the file says.
        count: u32,
    },
    /// A dimension of a tensor is zero.
    ZeroDim {
        /// The tensor.
        tensor: Name,
    },
    /// The number of weights or bytes of a tensor passes 2^63.
    TensorTooLarge {
        /// The tensor.
        tensor: Name,
    },
    /// A tensor type that GGML does not have.
    UnknownTensorType {
        /// The tensor.
        tensor: Name,
        /// What the file says.
        id: u32,
    },
    /// A tensor type that GGML has or had and that is not supported.
    UnsupportedTensorType {
        /// The tensor.
        tensor: Name,
        /// What the file says.
        id: u32,
        /// GGML's name of it.
        name: &'static str,
    },
    /// A row of a tensor is not a whole number of blocks.
    PartialBlock {
        /// The tensor.
        tensor: Name,
        /// The length of a row, in weights.
        cols: u64,
        /// The length of a block, in weights.
        block_len: usize,
    },
    /// Two tensors have this name.
    DuplicateTensor {
        /// The tensor.
        tensor: Name,
    },
    /// The data offset of a tensor is not a multiple of the alignment.
    Misaligned {
        /// The tensor.
        tensor: Name,
        /// Its offset from the start of the tensor data, in bytes.
        offset: u64,
        /// The alignment of the file, in bytes.
        alignment: u32,
    },
    /// The data of a tensor reaches past the end of the file.
    PastEnd {
        /// The tensor.
        tensor: Name,
        /// Its offset from the start of the tensor data, in bytes.
        offset: u64,
        /// Its size, in bytes.
        size: u64,
        /// How many bytes of tensor data the file has.
        data_len: u64,
    },
    /// The data of two tensors overlap.
    Overlap {
        /// The tensor.
        tensor: Name,
        /// The tensor that starts earlier.
        other: Name,
    },
    /// A metadata entry that is needed is absent.
    Missing {
        /// The key.
        key: Name,
    },
    /// A metadata value has another type than the one needed.
    WrongType {
        /// The key.
        key: Name,
        /// The type that is needed.
        expected: &'static str,
        /// The type that the file has.
        found: &'static str,
    },
    /// A metadata number does not fit the type that is needed.
    OutOfRange {
        /// The key.
        key: Name,
        /// The type that is needed.
        expected: &'static str,
    },
}

impl Error {
    pub(super) fn wrong_type(key: &str, expected: &'static str, found: &'static str) -> Self {
        Self::WrongType { key: Name::new(key), expected, found }
    }
}

impl fmt::Display for Error {
    #[expect(clippy::too_many_lines, reason = "a table with one line for each fault")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadMagic => write!(f, "not a GGUF file: it does not start with `GGUF`"),
            Self::BigEndian => write!(f, "big-endian GGUF is not supported: convert it first"),
            Self::UnsupportedVersion { version } => {
                write!(f, "GGUF version {version} is not supported, only 2 and 3")
            }
            Self::Truncated { field } => write!(f, "the file ends inside {field}"),
            Self::Incomplete { field } => write!(f, "the bytes at hand end inside {field}"),
            Self::HeaderTooLong { field } => {
                write!(f, "the header passes {} bytes at {field}", super::HEADER_SIZE_MAX)
            }
            Self::TooMany { field, count, max } => {
                write!(f, "{field} is {count}, above the limit of {max}")
            }
            Self::TooLong { field, len, max } => {
                write!(f, "{field} is {len} bytes long, above the limit of {max}")
            }
            Self::Empty { field } => write!(f, "{field} is empty"),
            Self::NotUtf8 { field } => write!(f, "{field} is not UTF-8"),
            Self::UnknownValueType { field, id } => write!(f, "{field} is {id}, unknown to GGUF"),
            Self::NestedArray { key } => {
                write!(f, "the value of {key} is an array of arrays, which is not supported")
            }
            Self::BadBool { key } => write!(f, "the value of {key} is a bool other than 0 or 1"),
            Self::DuplicateKey { key } => write!(f, "two metadata entries have the key {key}"),
            Self::BadAlignment { alignment } => write!(
                f,
                "the value of `general.alignment` is {alignment}, not a power of two up to {}",
                super::ALIGNMENT_MAX
            ),
            Self::BadDimCount { tensor, count } => write!(
                f,
                "tensor {tensor} has {count} dimensions, not 1 to {}",
                super::DIM_COUNT_MAX
            ),
            Self::ZeroDim { tensor } => write!(f, "a dimension of tensor {tensor} is zero"),
            Self::TensorTooLarge { tensor } => {
                write!(f, "the size of tensor {tensor} does not fit 63 bits")
            }
            Self::UnknownTensorType { tensor, id } => {
                write!(f, "tensor {tensor} has type {id}, unknown to GGML")
            }
            Self::UnsupportedTensorType { tensor, id, name } => {
                write!(f, "tensor {tensor} has type {name} (id {id}), which is not supported")
            }
            Self::PartialBlock { tensor, cols, block_len } => {
                write!(
                    f,
                    "rows of tensor {tensor} have {cols} weights, not a multiple of {block_len}"
                )
            }
            Self::DuplicateTensor { tensor } => write!(f, "two tensors have the name {tensor}"),
            Self::Misaligned { tensor, offset, alignment } => write!(
                f,
                "the data offset of tensor {tensor} is {offset}, not a multiple of {alignment}"
            ),
            Self::PastEnd { tensor, offset, size, data_len } => write!(
                f,
                "tensor {tensor} has {size} bytes from offset {offset}, past the {data_len} bytes of tensor data"
            ),
            Self::Overlap { tensor, other } => {
                write!(f, "the data of tensor {tensor} overlap those of tensor {other}")
            }
            Self::Missing { key } => write!(f, "the metadata entry {key} is missing"),
            Self::WrongType { key, expected, found } => {
                write!(f, "the value of {key} is of type {found}, not {expected}")
            }
            Self::OutOfRange { key, expected } => {
                write!(f, "the value of {key} does not fit type {expected}")
            }
        }
    }
}

impl std::error::Error for Error {}
