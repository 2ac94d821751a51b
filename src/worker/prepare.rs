//! From a request's messages to its tokens, on a thread of its own.
//!
//! The chat template and the tokenizer run here, off the compute threads. A request that is
//! refused here is answered and reported from here; it never reaches the engine.

use std::sync::mpsc::{Receiver, Sender};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::link::{Admitted, Mouth, Said};
use super::scheduler::Heard;
use super::text::Text;
use super::tickets::Right;
use crate::ipc::message::{
    Digest, EndReport, Failure, FromWorker, Generate, LOGIT_BIAS_COUNT_MAX, MESSAGES_COUNT_MAX,
    Outcome, Prompt, RequestId, STOP_COUNT_MAX, STOP_LEN_MAX_BYTES, Sampling, WorkerReport,
};

/// A request that the engine can start.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The request.
    pub(super) request: RequestId,
    /// Its ticket.
    pub(super) right: Right,
    /// The prompt.
    pub(super) tokens: Vec<u32>,
    /// How to choose tokens.
    pub(super) sampling: Sampling,
    /// Strings that end the answer.
    pub(super) stop: Vec<String>,
    /// Most tokens to generate.
    pub(super) max_tokens: u32,
    /// SHA-256 of each message's text, in order.
    pub(super) digests: Vec<Digest>,
}

/// Renders and tokenizes until the link is gone.
pub(super) fn run(
    text: &Text,
    context_len: u32,
    admitted: &Receiver<Admitted>,
    engine: &Sender<Heard>,
    mouth: &Mouth,
) {
    while let Ok(admitted) = admitted.recv() {
        let Admitted::Request(generate, right) = admitted else {
            if engine.send(Heard::AreYouThere).is_err() {
                return;
            }
            continue;
        };
        let request = generate.request;
        let digests = digests(&generate.prompt);
        match prepare(text, context_len, *generate, right) {
            Ok(mut prepared) => {
                prepared.digests = digests;
                if engine.send(Heard::Start(Box::new(prepared))).is_err() {
                    return;
                }
            }
            Err(failure) => refuse(mouth, request, digests, failure),
        }
    }
}

/// Answers and reports a request that never reached the engine.
pub(super) fn refuse(mouth: &Mouth, request: RequestId, messages: Vec<Digest>, failure: Failure) {
    mouth.say(Said::Supervisor(WorkerReport::End(EndReport {
        request,
        outcome: Outcome::Refused,
        messages,
        answer: digest(b""),
        prompt_tokens: 0,
        completion_tokens: 0,
    })));
    mouth.say(Said::Gateway(FromWorker::Failed { request, failure }));
}

fn prepare(
    text: &Text,
    context_len: u32,
    generate: Generate,
    right: Right,
) -> Result<Prepared, Failure> {
    if !is_valid(&generate) {
        return Err(Failure::RequestInvalid);
    }
    let tokens = match &generate.prompt {
        Prompt::Text(prompt) => text.prompt_tokens(prompt),
        Prompt::Chat { messages_json, tools_json, .. } => {
            let messages = parse_array(messages_json)?;
            let tools = if tools_json.is_empty() { Value::Null } else { parse_array(tools_json)? };
            text.chat_tokens(&messages, &tools).map_err(|_| Failure::TemplateRefused)?
        }
    };
    let prompt_tokens = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
    let max_tokens = fit(prompt_tokens, generate.max_tokens, context_len)?;
    Ok(Prepared {
        request: generate.request,
        right,
        tokens,
        sampling: generate.sampling,
        stop: generate.stop,
        max_tokens: max_tokens.min(right.ticket.max_tokens),
        digests: Vec::new(),
    })
}

/// Most tokens that may be generated; an error with both numbers when the asked ones do not
/// fit, never a silent cut.
fn fit(prompt_tokens: u32, max_tokens: u32, context_len_tokens: u32) -> Result<u32, Failure> {
    let asked = max_tokens.max(1);
    match prompt_tokens.checked_add(asked) {
        Some(sum) if sum <= context_len_tokens && prompt_tokens > 0 => {
            Ok(if max_tokens == 0 { context_len_tokens - prompt_tokens } else { max_tokens })
        }
        Some(_) if prompt_tokens == 0 => Err(Failure::RequestInvalid),
        _ => Err(Failure::ContextTooLong { prompt_tokens, max_tokens, context_len_tokens }),
    }
}

fn parse_array(text: &str) -> Result<Value, Failure> {
    match serde_json::from_str(text) {
        Ok(Value::Array(items)) if items.len() <= MESSAGES_COUNT_MAX => Ok(Value::Array(items)),
        _ => Err(Failure::RequestInvalid),
    }
}

/// The gateway checks these too; its word is not taken for it.
fn is_valid(generate: &Generate) -> bool {
    let sampling = &generate.sampling;
    let within = |value: f32, low: f32, high: f32| value >= low && value <= high;
    let stop = &generate.stop;
    within(sampling.temperature, 0.0, 100.0)
        && within(sampling.top_p, 0.0, 1.0)
        && within(sampling.min_p, 0.0, 1.0)
        && within(sampling.repeat_penalty, 0.01, 100.0)
        && within(sampling.presence_penalty, -100.0, 100.0)
        && within(sampling.frequency_penalty, -100.0, 100.0)
        && sampling.logit_bias.len() <= LOGIT_BIAS_COUNT_MAX
        && sampling.logit_bias.iter().all(|(_, bias)| within(*bias, -1000.0, 1000.0))
        && stop.len() <= STOP_COUNT_MAX
        && stop.iter().all(|text| !text.is_empty() && text.len() <= STOP_LEN_MAX_BYTES)
}

/// SHA-256 of each message's text: of `content` when it is a string, of its text parts one
/// after the other when it is a list, of the prompt when there are no messages.
fn digests(prompt: &Prompt) -> Vec<Digest> {
    match prompt {
        Prompt::Text(text) => vec![digest(text.as_bytes())],
        Prompt::Chat { messages_json, .. } => match parse_array(messages_json) {
            Ok(Value::Array(messages)) => messages.iter().map(message_digest).collect(),
            _ => vec![digest(messages_json.as_bytes())],
        },
    }
}

fn message_digest(message: &Value) -> Digest {
    let mut hash = Sha256::new();
    match &message["content"] {
        Value::String(text) => hash.update(text),
        Value::Array(parts) => {
            for part in parts {
                hash.update(part["text"].as_str().unwrap_or_default());
            }
        }
        _ => {}
    }
    Digest(hash.finalize().into())
}

fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_check_names_both_numbers() {
        assert_eq!(fit(10, 0, 100), Ok(90));
        assert_eq!(fit(10, 90, 100), Ok(90));
        let long = |prompt_tokens, max_tokens| {
            Err(Failure::ContextTooLong { prompt_tokens, max_tokens, context_len_tokens: 100 })
        };
        assert_eq!(fit(10, 91, 100), long(10, 91));
        assert_eq!(fit(100, 0, 100), long(100, 0));
        assert_eq!(fit(u32::MAX, u32::MAX, 100), long(u32::MAX, u32::MAX));
        assert_eq!(fit(0, 1, 100), Err(Failure::RequestInvalid));
    }

    #[test]
    fn digests_are_of_the_text_alone() {
        let messages_json = r#"[{"role":"user","content":"ab"},
            {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]"#;
        let prompt = Prompt::Chat {
            messages_json: messages_json.into(),
            messages_count: 2,
            tools_json: String::new(),
        };
        assert_eq!(digests(&prompt), [digest(b"ab"), digest(b"ab")]);
        assert_eq!(digests(&Prompt::Text("ab".into())), [digest(b"ab")]);
    }
}
