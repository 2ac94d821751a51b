//! Takes known fields out of a JSON object, one by one, with their checks.

use serde_json::{Map, Value};

use crate::gateway::error::{ApiError, Rule};
use crate::gateway::param::Param;

/// An object whose fields are taken one by one; what is left at the end is not known.
pub(super) struct Fields {
    map: Map<String, Value>,
    /// The object's own name; `None` for the body.
    name: Option<Param>,
}

/// The range of a number, with its words.
pub(super) struct Range {
    pub(super) least: f64,
    pub(super) most: f64,
    pub(super) text: &'static str,
}

impl Fields {
    pub(super) fn new(map: Map<String, Value>, name: Option<Param>) -> Self {
        Self { map, name }
    }

    /// The full name of a field of this object.
    pub(super) fn param(&self, name: &'static str) -> Param {
        self.name.as_ref().map_or_else(|| Param::new(name), |object| object.field(name))
    }

    pub(super) fn refuse(&self, name: &'static str, rule: Rule) -> ApiError {
        ApiError::Field(self.param(name), rule)
    }

    /// Takes a field; `null` counts as absent.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Value> {
        // `shift_remove` keeps the order, so that an unknown field's place can be told.
        self.map.get_mut(name).map(Value::take).filter(|value| !value.is_null())
    }

    pub(super) fn string(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.refuse(name, Rule::WrongType("a string"))),
        }
    }

    pub(super) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.refuse(name, Rule::WrongType("true or false"))),
        }
    }

    pub(super) fn array(&mut self, name: &'static str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(_) => Err(self.refuse(name, Rule::WrongType("an array"))),
        }
    }

    pub(super) fn object(&mut self, name: &'static str) -> Result<Option<Self>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self::new(map, Some(self.param(name))))),
            Some(_) => Err(self.refuse(name, Rule::WrongType("an object"))),
        }
    }

    /// Takes a number; a string that holds one is refused.
    pub(super) fn number(
        &mut self,
        name: &'static str,
        range: &Range,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        number_within(&value, range).map(Some).map_err(|rule| self.refuse(name, rule))
    }

    /// Takes a whole number from `least` to `most`.
    pub(super) fn integer(
        &mut self,
        name: &'static str,
        (least, most): (u64, u64),
        text: &'static str,
    ) -> Result<Option<u64>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_u64() {
                Some(value) if (least..=most).contains(&value) => Ok(Some(value)),
                _ => Err(self.refuse(name, Rule::OutOfRange(text))),
            },
            Some(_) => Err(self.refuse(name, Rule::WrongType(text))),
        }
    }

    /// Refuses any field that was not taken, by its place: its name is the client's text.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        let left = self.map.iter().position(|(_, value)| !value.is_null());
        match (left, self.name) {
            (None, _) => Ok(()),
            (Some(index), Some(object)) => {
                Err(ApiError::Field(object, Rule::UnknownField(index + 1)))
            }
            (Some(index), None) => Err(ApiError::Body(Rule::UnknownField(index + 1))),
        }
    }
}

/// Reads a number within a range.
pub(super) fn number_within(value: &Value, range: &Range) -> Result<f32, Rule> {
    let Value::Number(number) = value else { return Err(Rule::WrongType("a number")) };
    match number.as_f64() {
        #[expect(clippy::cast_possible_truncation, reason = "the ranges are far inside f32")]
        Some(value) if (range.least..=range.most).contains(&value) => Ok(value as f32),
        _ => Err(Rule::OutOfRange(range.text)),
    }
}
