//! Checks messages and tools, and brings them into the form that templates expect.

use serde_json::{Map, Value};

use super::error::{Error, Problem};
use super::provenance;
use crate::ipc::message::MESSAGES_COUNT_MAX;

/// The roles of messages. They are the only words from outside that may be part of markup, as in
/// `'<|' + role + '|>'`, so the list is closed.
pub(super) const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool", "function"];
/// Deepest nesting of tools and arguments.
const DEPTH_MAX: usize = 64;

/// Returns the messages as templates expect them: contents are strings, arguments are objects.
pub(super) fn messages(messages: &Value) -> Result<Value, Error> {
    let list = messages.as_array().map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() || list.len() > MESSAGES_COUNT_MAX {
        return Err(Error::MessageCount { count: list.len() });
    }
    let checked = list.iter().enumerate().map(|(index, message)| {
        let object = message.as_object().ok_or(Problem::NotAnObject);
        let message = object.and_then(checked_message);
        message.map(Value::Object).map_err(|problem| Error::Message { index, problem })
    });
    checked.collect()
}

/// Returns the tools, or nothing when there are none.
pub(super) fn tools(tools: Option<&Value>) -> Result<Option<&Value>, Error> {
    let Some(tools) = tools.filter(|tools| !tools.is_null()) else { return Ok(None) };
    let problem = |problem| Error::Tools { problem };
    let list = tools.as_array().ok_or(problem(Problem::NotAnObject))?;
    if !list.iter().all(Value::is_object) {
        return Err(problem(Problem::NotAnObject));
    }
    check_value(tools, DEPTH_MAX).map_err(problem)?;
    Ok(Some(tools).filter(|_| !list.is_empty()))
}

fn checked_message(message: &Map<String, Value>) -> Result<Map<String, Value>, Problem> {
    let role = message.get("role").and_then(Value::as_str).ok_or(Problem::Role)?;
    if !ROLES.contains(&role) {
        return Err(Problem::Role);
    }
    let mut checked = Map::new();
    checked.insert("role".into(), role.into());
    checked.insert("content".into(), content(message.get("content"))?.into());
    for (key, value) in message.iter().filter(|(_, value)| !value.is_null()) {
        match key.as_str() {
            "role" | "content" => continue,
            "name" | "tool_call_id" | "reasoning_content" | "refusal" => {
                checked.insert(key.clone(), value.as_str().ok_or(Problem::FieldType)?.into());
            }
            "tool_calls" => {
                let calls = value.as_array().ok_or(Problem::FieldType)?;
                let calls: Result<Vec<Value>, Problem> = calls.iter().map(tool_call).collect();
                checked.insert(key.clone(), Value::Array(calls?));
            }
            _ => return Err(Problem::UnknownField),
        }
    }
    checked.values().try_for_each(|value| check_value(value, DEPTH_MAX))?;
    Ok(checked)
}

/// Returns the content as one string; parts are joined by newlines.
fn content(content: Option<&Value>) -> Result<String, Problem> {
    let parts = match content {
        None | Some(Value::Null) => return Ok(String::new()),
        Some(Value::String(text)) => return Ok(text.clone()),
        Some(Value::Array(parts)) => parts,
        Some(_) => return Err(Problem::Content),
    };
    let text_of = |part: &Value| {
        let is_text = part.get("type").and_then(Value::as_str) == Some("text");
        let text = part.get("text").and_then(Value::as_str).filter(|_| is_text);
        text.map(str::to_owned).ok_or(Problem::Content)
    };
    let texts: Result<Vec<String>, Problem> = parts.iter().map(text_of).collect();
    Ok(texts?.join("\n"))
}

/// Returns a tool call with its arguments parsed: the API has them as JSON in a string, templates
/// want them as an object.
fn tool_call(call: &Value) -> Result<Value, Problem> {
    let mut call = call.clone();
    let function = call.get_mut("function").ok_or(Problem::FieldType)?;
    if !function.get("name").is_some_and(Value::is_string) {
        return Err(Problem::FieldType);
    }
    if let Some(Value::String(text)) = function.get("arguments")
        && let Ok(arguments @ Value::Object(_)) = serde_json::from_str(text)
    {
        function["arguments"] = arguments;
    }
    Ok(call)
}

fn check_value(value: &Value, depth_left: usize) -> Result<(), Problem> {
    let depth_left = depth_left.checked_sub(1).ok_or(Problem::Depth)?;
    match value {
        Value::String(text) => check_text(text),
        Value::Array(values) => values.iter().try_for_each(|value| check_value(value, depth_left)),
        Value::Object(entries) => entries.iter().try_for_each(|(key, value)| {
            check_text(key)?;
            check_value(value, depth_left)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

fn check_text(text: &str) -> Result<(), Problem> {
    if text.chars().any(provenance::is_marked) { Err(Problem::UnassignedCodePoint) } else { Ok(()) }
}
