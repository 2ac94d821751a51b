//! Metadata values as a caller sees them: types, views, single elements.

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
    pub(super) fn from_id(id: u32) -> Option<Self> {
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
    pub(super) fn size(self) -> usize {
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
    pub fn type_name(&self) -> &'static str {
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

    /// Returns the number of elements of an array.
    pub fn array_len(&self) -> Option<usize> {
        match self {
            Self::Strings(strings) => Some(strings.len()),
            Self::Numbers(element, bytes) => Some(bytes.len() / element.size()),
            _ => None,
        }
    }

    /// Returns the element of this index of an array.
    pub fn element(&self, index: usize) -> Option<ValueRef<'a>> {
        match *self {
            Self::Strings(strings) => strings.get(index).map(Self::String),
            Self::Numbers(element, bytes) => {
                Self::number(element, bytes.chunks_exact(element.size()).nth(index)?)
            }
            _ => None,
        }
    }

    /// Returns the value if it is an integer of any width.
    pub(super) fn integer(&self) -> Option<i128> {
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
    pub(super) fn number(ty: ValueType, bytes: &[u8]) -> Option<ValueRef<'a>> {
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
    /// Makes a view of the strings that lie one after another in `text` from `start` to each end.
    pub(super) fn new(text: &'a str, start: u32, ends: &'a [u32]) -> Self {
        Self { text, start, ends }
    }

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
