//! `messages` and `tools` of a chat: checked for form, rebuilt from known fields.
//!
//! What reaches the worker is a JSON array of objects with `role`, `content` (one string, or none
//! beside `tool_calls`), `name`, `reasoning_content`, `tool_calls` and `tool_call_id`.

use serde_json::{Map, Value};

use super::fields::Fields;
use super::json::{Budget, parse_object};
use crate::gateway::error::{ApiError, Rule};
use crate::gateway::param::Param;
use crate::ipc::message::MESSAGES_COUNT_MAX;

/// Most parts of one message's content.
const PARTS_COUNT_MAX: usize = 1024;

/// Most tools, and most calls in one message.
const TOOLS_COUNT_MAX: usize = 128;

/// Longest name of a tool, a call or a participant, in bytes.
const TOOL_NAME_LEN_MAX_BYTES: usize = 128;

const ROLES: &str = "system, developer, user, assistant, tool";

/// Checks `messages`; `None` when absent or null.
pub(super) fn parse_messages(
    value: Option<Value>,
    budget: &Budget,
) -> Result<Vec<Value>, ApiError> {
    let param = Param::new("messages");
    let messages = match value {
        None => return Err(ApiError::Field(param, Rule::Missing)),
        Some(Value::Array(messages)) => messages,
        Some(_) => return Err(ApiError::Field(param, Rule::WrongType("an array"))),
    };
    if messages.is_empty() {
        return Err(ApiError::Field(param, Rule::Empty));
    }
    if messages.len() > MESSAGES_COUNT_MAX {
        return Err(ApiError::Field(param, Rule::TooMany { max: MESSAGES_COUNT_MAX }));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(i, message)| parse_message(message, param.index(i), budget))
        .collect()
}

fn object(value: Value, param: &Param) -> Result<Fields, ApiError> {
    match value {
        Value::Object(map) => Ok(Fields::new(map, Some(param.clone()))),
        _ => Err(ApiError::Field(param.clone(), Rule::WrongType("an object"))),
    }
}

fn parse_message(value: Value, param: Param, budget: &Budget) -> Result<Value, ApiError> {
    let mut fields = object(value, &param)?;
    let asked = fields.string("role")?.ok_or_else(|| fields.refuse("role", Rule::Missing))?;
    // Templates know `system`; OpenAI's newer name for it is `developer`.
    let role = match asked.as_str() {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" => "tool",
        _ => return Err(fields.refuse("role", Rule::NotOneOf(ROLES))),
    };
    let mut message = Map::new();
    message.insert("role".to_owned(), role.into());
    let calls = parse_calls(&mut fields, role, budget)?;
    match parse_content(&mut fields)? {
        Some(content) => message.insert("content".to_owned(), content.into()),
        None if calls.is_some() => message.insert("content".to_owned(), "".into()),
        None => return Err(fields.refuse("content", Rule::Missing)),
    };
    if let Some(calls) = calls {
        message.insert("tool_calls".to_owned(), calls);
    }
    for name in ["name", "tool_call_id"] {
        if let Some(text) = short_string(&mut fields, name)? {
            message.insert(name.to_owned(), text.into());
        }
    }
    if let Some(text) = fields.string("reasoning_content")? {
        message.insert("reasoning_content".to_owned(), text.into());
    }
    // What an answer of this API may carry beside its text, given back as history.
    if fields.array("annotations")?.is_some_and(|list| !list.is_empty()) {
        return Err(fields.refuse("annotations", Rule::Unsupported("annotations")));
    }
    for name in ["audio", "function_call", "refusal"] {
        if fields.take(name).is_some() {
            return Err(fields.refuse(name, Rule::Unsupported("send text content")));
        }
    }
    fields.finish()?;
    Ok(Value::Object(message))
}

fn short_string(fields: &mut Fields, name: &'static str) -> Result<Option<String>, ApiError> {
    let text = fields.string(name)?;
    if text.as_ref().is_some_and(|text| text.len() > TOOL_NAME_LEN_MAX_BYTES) {
        let rule = Rule::TooLong { max_bytes: TOOL_NAME_LEN_MAX_BYTES };
        return Err(fields.refuse(name, rule));
    }
    Ok(text)
}

/// A string, or text parts joined by newlines.
fn parse_content(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let param = fields.param("content");
    let parts = match fields.take("content") {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text)),
        Some(Value::Array(parts)) => parts,
        Some(_) => {
            return Err(ApiError::Field(param, Rule::WrongType("a string or an array of parts")));
        }
    };
    if parts.is_empty() {
        return Err(ApiError::Field(param, Rule::Empty));
    }
    if parts.len() > PARTS_COUNT_MAX {
        return Err(ApiError::Field(param, Rule::TooMany { max: PARTS_COUNT_MAX }));
    }
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.into_iter().enumerate() {
        let mut part = object(part, &param.index(i))?;
        match part.string("type")?.as_deref() {
            Some("text") => {}
            None => return Err(part.refuse("type", Rule::Missing)),
            Some(_) => return Err(part.refuse("type", Rule::Unsupported("only `text` parts are"))),
        }
        texts.push(part.string("text")?.ok_or_else(|| part.refuse("text", Rule::Missing))?);
        part.finish()?;
    }
    Ok(Some(texts.join("\n")))
}

/// `tool_calls` of an assistant, with their arguments as objects: templates print them as such.
fn parse_calls(
    fields: &mut Fields,
    role: &str,
    budget: &Budget,
) -> Result<Option<Value>, ApiError> {
    let Some(calls) = fields.array("tool_calls")? else { return Ok(None) };
    let param = fields.param("tool_calls");
    if calls.is_empty() {
        return Ok(None);
    }
    if role != "assistant" {
        return Err(ApiError::Field(param, Rule::Conflicts("role")));
    }
    if calls.len() > TOOLS_COUNT_MAX {
        return Err(ApiError::Field(param, Rule::TooMany { max: TOOLS_COUNT_MAX }));
    }
    let mut checked = Vec::with_capacity(calls.len());
    for (i, call) in calls.into_iter().enumerate() {
        checked.push(parse_call(object(call, &param.index(i))?, budget)?);
    }
    Ok(Some(Value::Array(checked)))
}

fn parse_call(mut call: Fields, budget: &Budget) -> Result<Value, ApiError> {
    require_function_type(&mut call)?;
    let id = short_string(&mut call, "id")?;
    // The stream's own numbering, which clients leave in.
    call.integer("index", (0, 1 << 16), "a small whole number")?;
    let mut function =
        call.object("function")?.ok_or_else(|| call.refuse("function", Rule::Missing))?;
    let name = short_string(&mut function, "name")?
        .ok_or_else(|| function.refuse("name", Rule::Missing))?;
    let wrong = function.refuse("arguments", Rule::WrongType("a JSON object as a string"));
    let arguments = match function.take("arguments") {
        None => Map::new(),
        Some(Value::String(text)) if text.trim().is_empty() => Map::new(),
        Some(Value::String(text)) => {
            parse_object(text.as_bytes(), &[], budget).map_err(|_| wrong)?
        }
        Some(Value::Object(map)) => map,
        Some(_) => return Err(wrong),
    };
    function.finish()?;
    call.finish()?;
    let mut inner = Map::new();
    inner.insert("name".to_owned(), name.into());
    inner.insert("arguments".to_owned(), Value::Object(arguments));
    let mut outer = Map::new();
    if let Some(id) = id {
        outer.insert("id".to_owned(), id.into());
    }
    outer.insert("type".to_owned(), "function".into());
    outer.insert("function".to_owned(), Value::Object(inner));
    Ok(Value::Object(outer))
}

fn require_function_type(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.string("type")?.as_deref() {
        Some("function") => Ok(()),
        None => Err(fields.refuse("type", Rule::Missing)),
        Some(_) => Err(fields.refuse("type", Rule::Unsupported("only `function` is"))),
    }
}

/// Checks `tools`, which the template prints into the prompt as they stand.
pub(super) fn parse_tools(tools: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    let param = Param::new("tools");
    if tools.len() > TOOLS_COUNT_MAX {
        return Err(ApiError::Field(param, Rule::TooMany { max: TOOLS_COUNT_MAX }));
    }
    for (i, tool) in tools.iter().enumerate() {
        check_tool(object(tool.clone(), &param.index(i))?)?;
    }
    Ok(tools)
}

fn check_tool(mut tool: Fields) -> Result<(), ApiError> {
    require_function_type(&mut tool)?;
    let mut function =
        tool.object("function")?.ok_or_else(|| tool.refuse("function", Rule::Missing))?;
    let name = short_string(&mut function, "name")?
        .ok_or_else(|| function.refuse("name", Rule::Missing))?;
    if name.is_empty() {
        return Err(function.refuse("name", Rule::Empty));
    }
    function.string("description")?;
    function.object("parameters")?;
    if function.boolean("strict")? == Some(true) {
        let rule = Rule::Unsupported("answers are not held to a schema");
        return Err(function.refuse("strict", rule));
    }
    function.finish()?;
    tool.finish()
}
