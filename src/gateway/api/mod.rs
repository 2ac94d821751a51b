//! Request bodies, strictly parsed: every field known, every number in its range.
//!
//! What would change the answer and cannot be done is refused by name, never ignored. Accepted
//! without effect, because they do not change the answer: `user`, `safety_identifier`,
//! `metadata`, `service_tier`, `store: false`, `prompt_cache_key`, `prompt_cache_retention`,
//! `prompt_cache_options`, `parallel_tool_calls: true`.
//!
//! Defaults are OpenAI's: `temperature` 1, `top_p` 1, no penalties, `max_tokens` 16 for
//! completions and the rest of the context for chats. Other samplers are off until asked for.

mod fields;
mod json;
mod messages;
#[cfg(test)]
mod tests;

use serde_json::Value;

use self::fields::{Fields, Range, number_within};
use self::json::{Budget, parse_object};
use crate::gateway::error::{ApiError, JsonFault, Rule};
use crate::gateway::param::Param;
use crate::ipc::message::{
    Endpoint, LOGIT_BIAS_COUNT_MAX, NAME_LEN_MAX_BYTES, Prompt, STOP_COUNT_MAX, STOP_LEN_MAX_BYTES,
    Sampling,
};

/// `max_tokens` of `/v1/completions` when the client names none, as OpenAI has it.
const COMPLETION_TOKENS_DEFAULT: u32 = 16;

const TEMPERATURE: Range = Range { least: 0.0, most: 2.0, text: "a number from 0 to 2" };
const FRACTION: Range = Range { least: 0.0, most: 1.0, text: "a number from 0 to 1" };
const PENALTY: Range = Range { least: -2.0, most: 2.0, text: "a number from -2 to 2" };
const REPEAT: Range = Range { least: 0.01, most: 10.0, text: "a number from 0.01 to 10" };
const BIAS: Range = Range { least: -100.0, most: 100.0, text: "numbers from -100 to 100" };

const TOKENS: (u64, u64) = (1, 0x7fff_ffff);
const TOKENS_TEXT: &str = "a whole number from 1 to 2147483647";
const TOP_K: (u64, u64) = (0, 0x7fff_ffff);
const TOP_K_TEXT: &str = "a whole number from 0 (off) to 2147483647";
const SEED: (u64, u64) = (0, 0x7fff_ffff_ffff_ffff);
const SEED_TEXT: &str = "a whole number from 0 to 9223372036854775807";

/// Fields that both endpoints read.
const COMMON: &[&str] = &[
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "stop",
    "n",
    "logprobs",
];

/// Fields of one endpoint.
const CHAT: &[&str] = &[
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "max_completion_tokens",
    "modalities",
    "store",
];
const COMPLETION: &[&str] = &["prompt", "echo", "best_of"];

/// Accepted without effect.
const WITHOUT_EFFECT: &[&str] = &[
    "user",
    "safety_identifier",
    "metadata",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
];

/// Known from OpenAI, llama.cpp or vLLM, but not done here.
const UNSUPPORTED: &[&str] = &[
    "suffix",
    "top_logprobs",
    "functions",
    "function_call",
    "audio",
    "prediction",
    "reasoning_effort",
    "verbosity",
    "web_search_options",
    "moderation",
    "grammar",
    "json_schema",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "ignore_eos",
    "min_tokens",
    "n_predict",
    "stop_token_ids",
    "bad_words",
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "dry_multiplier",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "dynatemp_range",
    "dynatemp_exponent",
    "repeat_last_n",
    "length_penalty",
    "use_beam_search",
    "n_probs",
    "prompt_logprobs",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
    "cache_prompt",
    "cache_salt",
    "id_slot",
    "lora",
    "priority",
    "samplers",
];

/// What a request asks for. Holds the client's text, so it is never printed.
pub struct Request {
    /// Model by name; empty means the default model.
    pub model: String,
    /// What to answer.
    pub prompt: Prompt,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Most tokens of the answer; 0 means as many as fit.
    pub max_tokens: u32,
    /// How the answer is streamed; `None` means as one object.
    pub stream: Option<StreamOptions>,
}

/// How an answer is streamed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamOptions {
    /// A last chunk with the token counts.
    pub include_usage: bool,
    /// Chunks are filled to equal lengths, so that their size on the wire says nothing.
    pub include_obfuscation: bool,
}

/// Parses a body.
///
/// # Errors
///
/// Names the first field that is refused, and never repeats the client's text.
pub fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Request, ApiError> {
    let own = match endpoint {
        Endpoint::Chat => CHAT,
        Endpoint::Completion => COMPLETION,
    };
    let known = [COMMON, own].concat();
    let budget = Budget::of_one_body();
    let map = parse_object(body, &known, &budget).map_err(|refused| {
        match (refused.field, refused.fault) {
            (Some(field), JsonFault::Syntax { .. }) => {
                ApiError::Field(Param::new(field), Rule::NotJson)
            }
            (_, fault) => ApiError::Json(fault),
        }
    })?;
    let mut fields = Fields::new(map, None);
    for name in WITHOUT_EFFECT {
        fields.take(name);
    }
    for name in UNSUPPORTED {
        if fields.take(name).is_some() {
            return Err(fields.refuse(name, Rule::Unsupported("leave it out")));
        }
    }
    let (prompt, max_tokens) = match endpoint {
        Endpoint::Chat => parse_chat(&mut fields, &budget)?,
        Endpoint::Completion => parse_completion(&mut fields)?,
    };
    let model = fields.string("model")?.unwrap_or_default();
    if model.len() > NAME_LEN_MAX_BYTES {
        return Err(fields.refuse("model", Rule::TooLong { max_bytes: NAME_LEN_MAX_BYTES }));
    }
    let stream = parse_stream(&mut fields)?;
    let sampling = parse_sampling(&mut fields)?;
    let stop = parse_stop(&mut fields)?;
    fields.integer("n", (1, 1), "1")?;
    refuse_logprobs(&mut fields)?;
    fields.finish()?;
    Ok(Request { model, prompt, sampling, stop, max_tokens, stream })
}

fn max_tokens_of(fields: &mut Fields, name: &'static str) -> Result<Option<u32>, ApiError> {
    let tokens = fields.integer(name, TOKENS, TOKENS_TEXT)?;
    Ok(tokens.map(|n| u32::try_from(n).unwrap_or(u32::MAX)))
}

fn parse_chat(fields: &mut Fields, budget: &Budget) -> Result<(Prompt, u32), ApiError> {
    let messages = messages::parse_messages(fields.take("messages"), budget)?;
    let tools = fields.array("tools")?.map(messages::parse_tools).transpose()?.unwrap_or_default();
    let tools = apply_tool_choice(fields, tools)?;
    if fields.boolean("parallel_tool_calls")? == Some(false) && !tools.is_empty() {
        let rule = Rule::Unsupported("the number of tool calls is not bounded");
        return Err(fields.refuse("parallel_tool_calls", rule));
    }
    refuse_response_format(fields)?;
    if let Some(kinds) = fields.array("modalities")?
        && kinds.iter().any(|kind| kind.as_str() != Some("text"))
    {
        return Err(fields.refuse("modalities", Rule::Unsupported("only `text` is")));
    }
    if fields.boolean("store")? == Some(true) {
        return Err(fields.refuse("store", Rule::Unsupported("answers are never stored")));
    }
    let old = max_tokens_of(fields, "max_tokens")?;
    let new = max_tokens_of(fields, "max_completion_tokens")?;
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        return Err(fields.refuse("max_completion_tokens", Rule::Conflicts("max_tokens")));
    }
    let messages_count = u16::try_from(messages.len()).unwrap_or(u16::MAX);
    let tools_json = if tools.is_empty() { String::new() } else { Value::from(tools).to_string() };
    let messages_json = Value::from(messages).to_string();
    let prompt = Prompt::Chat { messages_json, messages_count, tools_json };
    Ok((prompt, new.or(old).unwrap_or(0)))
}

/// `none` hides the tools, `auto` shows them; a forced call cannot be promised.
fn apply_tool_choice(fields: &mut Fields, tools: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    match fields.take("tool_choice") {
        None => Ok(tools),
        Some(Value::String(choice)) if choice == "auto" => Ok(tools),
        Some(Value::String(choice)) if choice == "none" => Ok(Vec::new()),
        Some(Value::String(_) | Value::Object(_)) => {
            Err(fields.refuse("tool_choice", Rule::Unsupported("only `auto` and `none` are")))
        }
        Some(_) => Err(fields.refuse("tool_choice", Rule::WrongType("a string"))),
    }
}

fn refuse_response_format(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(()) };
    match format.string("type")?.as_deref() {
        Some("text") => format.finish(),
        None => Err(format.refuse("type", Rule::Missing)),
        Some(_) => {
            let rule = Rule::Unsupported("answers are not held to a grammar; only `text` is");
            Err(fields.refuse("response_format", rule))
        }
    }
}

fn parse_completion(fields: &mut Fields) -> Result<(Prompt, u32), ApiError> {
    const ONE_STRING: Rule = Rule::WrongType("a string, or an array of one string");
    let text = match fields.take("prompt") {
        None => return Err(fields.refuse("prompt", Rule::Missing)),
        Some(Value::String(text)) => text,
        Some(Value::Array(mut prompts)) => match (prompts.pop(), prompts.pop()) {
            (Some(Value::String(text)), None) => text,
            (Some(Value::String(_)), Some(Value::String(_))) => {
                let rule = Rule::Unsupported("one prompt at a time");
                return Err(fields.refuse("prompt", rule));
            }
            (Some(Value::Number(_) | Value::Array(_)), _) => {
                let rule = Rule::Unsupported("a prompt is text, not tokens");
                return Err(fields.refuse("prompt", rule));
            }
            _ => return Err(fields.refuse("prompt", ONE_STRING)),
        },
        Some(_) => return Err(fields.refuse("prompt", ONE_STRING)),
    };
    if fields.boolean("echo")? == Some(true) {
        return Err(fields.refuse("echo", Rule::Unsupported("only `false` is")));
    }
    fields.integer("best_of", (1, 1), "1")?;
    let max_tokens = max_tokens_of(fields, "max_tokens")?.unwrap_or(COMPLETION_TOKENS_DEFAULT);
    Ok((Prompt::Text(text), max_tokens))
}

fn parse_stream(fields: &mut Fields) -> Result<Option<StreamOptions>, ApiError> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let options = fields.object("stream_options")?;
    if !stream {
        return match options {
            None => Ok(None),
            Some(_) => Err(fields.refuse("stream_options", Rule::Conflicts("stream"))),
        };
    }
    let mut parsed = StreamOptions { include_usage: false, include_obfuscation: true };
    if let Some(mut options) = options {
        parsed.include_usage = options.boolean("include_usage")?.unwrap_or(false);
        parsed.include_obfuscation = options.boolean("include_obfuscation")?.unwrap_or(true);
        options.finish()?;
    }
    Ok(Some(parsed))
}

fn parse_sampling(fields: &mut Fields) -> Result<Sampling, ApiError> {
    let repeat = fields.number("repeat_penalty", &REPEAT)?;
    let repetition = fields.number("repetition_penalty", &REPEAT)?;
    if repeat.is_some() && repetition.is_some() && repeat != repetition {
        return Err(fields.refuse("repetition_penalty", Rule::Conflicts("repeat_penalty")));
    }
    let top_k = fields.integer("top_k", TOP_K, TOP_K_TEXT)?.unwrap_or(0);
    Ok(Sampling {
        temperature: fields.number("temperature", &TEMPERATURE)?.unwrap_or(1.0),
        top_k: u32::try_from(top_k).unwrap_or(u32::MAX),
        top_p: fields.number("top_p", &FRACTION)?.unwrap_or(1.0),
        min_p: fields.number("min_p", &FRACTION)?.unwrap_or(0.0),
        repeat_penalty: repeat.or(repetition).unwrap_or(1.0),
        presence_penalty: fields.number("presence_penalty", &PENALTY)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", &PENALTY)?.unwrap_or(0.0),
        logit_bias: parse_logit_bias(fields)?,
        seed: fields.integer("seed", SEED, SEED_TEXT)?,
    })
}

fn parse_logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    const FORM: Rule = Rule::WrongType("an object of token ids and numbers");
    const NAME: &str = "logit_bias";
    let map = match fields.take(NAME) {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(fields.refuse(NAME, FORM)),
    };
    if map.len() > LOGIT_BIAS_COUNT_MAX {
        return Err(fields.refuse(NAME, Rule::TooMany { max: LOGIT_BIAS_COUNT_MAX }));
    }
    let mut biases: Vec<(u32, f32)> = Vec::with_capacity(map.len());
    for (token, bias) in &map {
        // `parse` alone would take "+7" and "007", which name a token twice.
        let id: u32 = token.parse().map_err(|_| fields.refuse(NAME, FORM))?;
        if id.to_string() != *token {
            return Err(fields.refuse(NAME, FORM));
        }
        let bias = number_within(bias, &BIAS).map_err(|rule| fields.refuse(NAME, rule))?;
        biases.push((id, bias));
    }
    Ok(biases)
}

fn parse_stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let param = Param::new("stop");
    let values = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(value) => vec![value],
    };
    if values.len() > STOP_COUNT_MAX {
        return Err(ApiError::Field(param, Rule::TooMany { max: STOP_COUNT_MAX }));
    }
    let mut stops = Vec::with_capacity(values.len());
    for value in values {
        let Value::String(stop) = value else {
            return Err(ApiError::Field(param, Rule::WrongType("a string or an array of strings")));
        };
        if stop.is_empty() {
            return Err(ApiError::Field(param, Rule::Empty));
        }
        if stop.len() > STOP_LEN_MAX_BYTES {
            return Err(ApiError::Field(param, Rule::TooLong { max_bytes: STOP_LEN_MAX_BYTES }));
        }
        stops.push(stop);
    }
    Ok(stops)
}

/// `logprobs` is a truth value for chats and a number for completions.
fn refuse_logprobs(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.take("logprobs") {
        None | Some(Value::Bool(false)) => Ok(()),
        Some(Value::Bool(true) | Value::Number(_)) => {
            Err(fields.refuse("logprobs", Rule::Unsupported("leave it out")))
        }
        Some(_) => Err(fields.refuse("logprobs", Rule::WrongType("true or false"))),
    }
}
