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
    /// What the supervisor is told of it.
    pub(super) digests: Digests,
}

/// What the supervisor is told of a request, whether it is served or not.
#[derive(Clone, Debug)]
pub(super) struct Digests {
    /// SHA-256 of each message's text, in order.
    pub(super) messages: Vec<Digest>,
    /// SHA-256 of the parameters' text.
    pub(super) parameters: Digest,
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
        let digests = digests(&generate);
        match prepare(text, context_len, *generate, right, &digests) {
            Ok(prepared) => {
                if engine.send(Heard::Start(Box::new(prepared))).is_err() {
                    return;
                }
            }
            Err(failure) => refuse(mouth, request, digests, failure),
        }
    }
}

/// Answers and reports a request that never reached the engine.
pub(super) fn refuse(mouth: &Mouth, request: RequestId, digests: Digests, failure: Failure) {
    mouth.say(Said::Supervisor(WorkerReport::End(EndReport {
        request,
        outcome: Outcome::Refused,
        messages: digests.messages,
        answer: digest(b""),
        parameters: digests.parameters,
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
    digests: &Digests,
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
        digests: digests.clone(),
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

fn digests(generate: &Generate) -> Digests {
    Digests {
        messages: message_digests(&generate.prompt),
        parameters: digest(parameters_text(generate).as_bytes()),
    }
}

/// The parameters as text, in the form that the schema of the log's records gives.
fn parameters_text(generate: &Generate) -> String {
    let sampling = &generate.sampling;
    let seed = sampling.seed.map(|seed| seed.to_string()).unwrap_or_default();
    let biases = sampling.logit_bias.iter().map(|(token, bias)| format!("{token}:{bias}"));
    let fields = [
        ("temperature", sampling.temperature.to_string()),
        ("top_k", sampling.top_k.to_string()),
        ("top_p", sampling.top_p.to_string()),
        ("min_p", sampling.min_p.to_string()),
        ("repeat_penalty", sampling.repeat_penalty.to_string()),
        ("presence_penalty", sampling.presence_penalty.to_string()),
        ("frequency_penalty", sampling.frequency_penalty.to_string()),
        ("seed", seed),
        ("max_tokens", generate.max_tokens.to_string()),
        ("logit_bias", biases.collect::<Vec<_>>().join(",")),
    ];
    let stops = generate.stop.iter().map(|stop| ("stop", Value::from(stop.as_str()).to_string()));
    let lines = fields.into_iter().chain(stops).map(|(name, value)| format!("{name}={value}\n"));
    lines.collect()
}

/// SHA-256 of each message's text: of `content` when it is a string, of its text parts one
/// after the other when it is a list, of the prompt when there are no messages.
fn message_digests(prompt: &Prompt) -> Vec<Digest> {
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
        assert_eq!(message_digests(&prompt), [digest(b"ab"), digest(b"ab")]);
        assert_eq!(message_digests(&Prompt::Text("ab".into())), [digest(b"ab")]);
    }

    #[test]
    fn parameters_have_one_text() {
        let mut generate = Generate {
            request: RequestId([0; 16]),
            prompt: Prompt::Text("ab".into()),
            sampling: Sampling { temperature: 0.7, ..Sampling::greedy() },
            stop: vec!["a\nb=".into()],
            max_tokens: 16,
        };
        let text = "temperature=0.7\ntop_k=0\ntop_p=1\nmin_p=0\nrepeat_penalty=1\n\
            presence_penalty=0\nfrequency_penalty=0\nseed=\nmax_tokens=16\nlogit_bias=\n\
            stop=\"a\\nb=\"\n";
        assert_eq!(parameters_text(&generate), text);
        let before = digests(&generate);
        generate.sampling.seed = Some(0);
        generate.sampling.logit_bias = vec![(3, -1.5), (4, 2.0)];
        assert!(
            parameters_text(&generate).contains("seed=0\nmax_tokens=16\nlogit_bias=3:-1.5,4:2\n")
        );
        assert_ne!(digests(&generate).parameters, before.parameters);
        assert_eq!(digests(&generate).messages, before.messages);
    }
}
