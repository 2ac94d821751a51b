//! JSON read strictly: bounded depth and size, no field named twice.
//!
//! `serde_json` alone keeps the last of two equal fields; two readers of one body could then
//! disagree about what was asked.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::gateway::error::JsonFault;

/// Deepest nesting of objects and arrays.
const DEPTH_MAX: u32 = 64;

/// Most values in one body: messages with parts and calls, a full `logit_bias`, tool schemas.
const VALUES_COUNT_MAX: u32 = 1 << 16;

/// How many more values may be read, in a body and in the JSON texts inside it together.
pub(super) struct Budget(Cell<u32>);

impl Budget {
    /// One body's budget.
    pub(super) fn of_one_body() -> Self {
        Self(Cell::new(VALUES_COUNT_MAX))
    }
}

/// Why a body was not read, and in which known field of its outermost object.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) fault: JsonFault,
    pub(super) field: Option<&'static str>,
}

/// Reads a body that must be one object. `known` are the field names that an error may repeat.
pub(super) fn parse_object(
    bytes: &[u8],
    known: &[&'static str],
    budget: &Budget,
) -> Result<Map<String, Value>, Refused> {
    let state = State { known, budget, field: Cell::new(None), fault: Cell::new(None) };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = Strict { state: &state, depth: 0 }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    match parsed {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Refused { fault: JsonFault::NotAnObject, field: None }),
        Err(error) => {
            let syntax = JsonFault::Syntax { line: error.line(), column: error.column() };
            let fault = state.fault.get().unwrap_or(syntax);
            Err(Refused { fault, field: state.field.get() })
        }
    }
}

/// What is counted and remembered while reading.
struct State<'a> {
    known: &'a [&'static str],
    budget: &'a Budget,
    field: Cell<Option<&'static str>>,
    fault: Cell<Option<JsonFault>>,
}

impl State<'_> {
    fn refuse<E: serde::de::Error>(&self, fault: JsonFault) -> E {
        self.fault.set(Some(fault));
        E::custom("refused")
    }
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    state: &'a State<'a>,
    depth: u32,
}

impl Strict<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= DEPTH_MAX {
            return Err(self.state.refuse(JsonFault::TooDeep));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Some(left) = self.state.budget.0.get().checked_sub(1) else {
            return Err(self.state.refuse(JsonFault::TooManyValues));
        };
        self.state.budget.0.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut array = Vec::new();
        while let Some(value) = elements.next_element_seed(inner)? {
            array.push(value);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut map = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            if self.depth == 0 {
                self.state.field.set(self.state.known.iter().find(|k| **k == name).copied());
            }
            if map.contains_key(&name) {
                return Err(self.state.refuse(JsonFault::DuplicateField));
            }
            map.insert(name, entries.next_value_seed(inner)?);
        }
        if self.depth == 0 {
            self.state.field.set(None);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> Refused {
        parse_object(body.as_bytes(), &["seed", "stop"], &Budget::of_one_body()).unwrap_err()
    }

    #[test]
    fn reads_what_serde_json_reads() {
        let body = r#"{"a":[1,-2,3.5,true,null,"x\n\u00e9"],"b":{"c":{}}}"#;
        let map = parse_object(body.as_bytes(), &[], &Budget::of_one_body()).unwrap();
        assert_eq!(serde_json::to_string(&map).unwrap(), body.replace("\\u00e9", "\u{e9}"));
    }

    #[test]
    fn refuses_a_field_named_twice_at_any_depth() {
        for body in [r#"{"a":1,"a":2}"#, r#"{"x":[{"a":1,"\u0061":2}]}"#] {
            assert_eq!(refused(body).fault, JsonFault::DuplicateField);
        }
    }

    #[test]
    fn refuses_deep_nesting_and_too_many_values() {
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        assert_eq!(refused(&deep).fault, JsonFault::TooDeep);
        let many = format!("{{\"a\":[{}0]}}", "0,".repeat(70_000));
        assert_eq!(refused(&many).fault, JsonFault::TooManyValues);
    }

    #[test]
    fn names_the_known_field_whose_value_is_no_json() {
        for value in ["NaN", "1e999", "-", "Infinity", "\"\\ud800\"", "01"] {
            let at = refused(&format!("{{\"x\":1,\"seed\":{value}}}"));
            assert_eq!(at.field, Some("seed"), "{value}");
            assert!(matches!(at.fault, JsonFault::Syntax { .. }), "{value}");
        }
    }

    #[test]
    fn refuses_what_is_no_object_or_no_json() {
        assert_eq!(refused("[]").fault, JsonFault::NotAnObject);
        assert_eq!(refused("3").fault, JsonFault::NotAnObject);
        for body in ["", "{", "{} {}", "{\"a\":1,}", "{'a':1}", "\u{feff}{}"] {
            assert!(matches!(refused(body).fault, JsonFault::Syntax { .. }), "{body}");
        }
        assert!(parse_object(b"{\"a\":\"\xff\"}", &[], &Budget::of_one_body()).is_err());
    }
}
