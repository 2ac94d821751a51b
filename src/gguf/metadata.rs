//! The metadata entries of a file, and typed access to them.
//!
//! Strings are checked to be UTF-8 once and kept in one buffer; an array of strings is a list of
//! ends in that buffer, so that a vocabulary costs no allocation a token. Integers are given where
//! the value fits the type asked for; elements of arrays must have exactly the type asked for.

use std::ops::Range;

use super::reader::Reader;
use super::value::{Strings, ValueRef, ValueType};
use super::{ARRAY_LEN_MAX, Error, Field, KEY_LEN_MAX, Name, STRING_LEN_MAX};

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
                let bytes = reader.take(ty.size() as u64, field)?;
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
        let len = reader.count(len_field, ARRAY_LEN_MAX, element.size() as u64)?;
        if element == ValueType::String {
            let start = self.text_end();
            let mut ends = Vec::with_capacity(len);
            for _ in 0..len {
                self.text.push_str(reader.string(STRING_LEN_MAX, field)?);
                ends.push(self.text_end());
            }
            return Ok(Value::Strings { start, ends: ends.into() });
        }
        let bytes = reader.take((len * element.size()) as u64, field)?;
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
                ValueRef::number(*ty, &bytes[..ty.size()]).expect("`read_value` let it pass")
            }
            Value::String(place) => {
                ValueRef::String(&self.text[place.start as usize..place.end as usize])
            }
            Value::Strings { start, ends } => {
                ValueRef::Strings(Strings::new(&self.text, *start, ends))
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
