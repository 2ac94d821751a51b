//! JSON as signed texts need it: every member of every object once, depth and length bounded.
//!
//! serde_json keeps the last of two equal members when it reads into a map; two verifiers may then
//! read one signed text in two ways. Here the second member is an error at any depth.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{Error, Fault};

/// What serde's error text is when a member stands twice; never shown.
const DUPLICATE: &str = "duplicate member";

/// A JSON value. Numbers are kept as presence only: no signed field that is read holds one.
#[derive(Debug)]
pub(super) enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// Any number.
    Number,
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object.
    Object(Object),
}

/// A JSON object; its members are taken out one by one.
#[derive(Debug, Default)]
pub(super) struct Object(BTreeMap<String, Json>);

/// Parses one JSON text; `part` names it in errors.
pub(super) fn parse(part: &'static str, text: &[u8]) -> Result<Json, Error> {
    serde_json::from_slice(text).map_err(|error| {
        if error.is_data() && error.to_string().starts_with(DUPLICATE) {
            return Error::DuplicateMember { part };
        }
        Error::Json { part, line: error.line(), column: error.column() }
    })
}

impl Json {
    /// Returns the object, or an error that names `field`.
    pub(super) fn object(self, field: &'static str) -> Result<Object, Error> {
        match self {
            Self::Object(object) => Ok(object),
            _ => Err(Error::Field { field, fault: Fault::WrongType }),
        }
    }

    /// Returns the only element of the list, or an error that names `field`.
    pub(super) fn only(self, field: &'static str) -> Result<Json, Error> {
        let mut list = self.list(field)?;
        match (list.pop(), list.is_empty()) {
            (Some(element), true) => Ok(element),
            _ => Err(Error::Field { field, fault: Fault::NotOne }),
        }
    }

    /// Returns whether this is `[]`.
    pub(super) fn is_empty_list(&self) -> bool {
        matches!(self, Self::List(list) if list.is_empty())
    }

    /// Returns the list, or an error that names `field`.
    pub(super) fn list(self, field: &'static str) -> Result<Vec<Json>, Error> {
        match self {
            Self::List(list) => Ok(list),
            _ => Err(Error::Field { field, fault: Fault::WrongType }),
        }
    }
}

impl Object {
    /// Takes a member out; `field` is its path in errors.
    pub(super) fn take(&mut self, name: &str, field: &'static str) -> Result<Json, Error> {
        self.0.remove(name).ok_or(Error::Field { field, fault: Fault::Missing })
    }

    /// Takes a member out if it is there.
    pub(super) fn take_optional(&mut self, name: &str) -> Option<Json> {
        self.0.remove(name)
    }

    /// Takes a string member out.
    pub(super) fn take_text(&mut self, name: &str, field: &'static str) -> Result<String, Error> {
        match self.take(name, field)? {
            Json::Text(text) => Ok(text),
            _ => Err(Error::Field { field, fault: Fault::WrongType }),
        }
    }

    /// Takes a string member out that must have one exact value.
    pub(super) fn expect_text(
        &mut self,
        name: &str,
        field: &'static str,
        value: &str,
    ) -> Result<(), Error> {
        if self.take_text(name, field)? == value {
            return Ok(());
        }
        Err(Error::Field { field, fault: Fault::Unsupported })
    }

    /// Refuses members that nobody took.
    pub(super) fn finish(self, field: &'static str) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(Error::Field { field, fault: Fault::UnknownMember })
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            list.push(element);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut object = BTreeMap::new();
        while let Some((name, value)) = members.next_entry::<String, Json>()? {
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom(DUPLICATE));
            }
        }
        Ok(Json::Object(Object(object)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_member_that_stands_twice_at_any_depth() {
        for text in [r#"{"a":1,"a":2}"#, r#"{"b":[{"a":1,"\u0061":2}]}"#] {
            let error = parse("payload", text.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::DuplicateMember { part: "payload" }), "{text}");
        }
    }

    #[test]
    fn refuses_trailing_bytes_and_deep_nesting() {
        for text in ["{} x", "{}{}", &"[".repeat(100_000), "", "nul"] {
            let error = parse("bundle", text.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::Json { .. }));
        }
    }
}
