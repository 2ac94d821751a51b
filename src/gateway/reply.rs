//! The answers' JSON objects, as OpenAI's API has them.

use serde::Serialize;
use serde_json::Value;

use super::error::ApiError;
use crate::ipc::message::{Endpoint, Finish, ModelInfo, RequestId};

/// Chunks of an obfuscated stream are a multiple of this long, in bytes; nearly all are one.
pub(super) const CHUNK_LEN_BYTES: usize = 512;

/// A field of filler: `,"obfuscation":""`.
const FILLER_FIELD_LEN_BYTES: usize = 17;

/// Shows an id as lower-case hexadecimal digits.
pub(super) fn hex(request: RequestId) -> String {
    use std::fmt::Write;
    request.0.iter().fold(String::with_capacity(32), |mut text, byte| {
        // Writing to a `String` cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// What all objects of one answer share.
pub(super) struct Head {
    pub(super) endpoint: Endpoint,
    pub(super) request: RequestId,
    pub(super) model: String,
    pub(super) created_s: u64,
}

/// Token counts.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
struct CompletionDetails {
    reasoning_tokens: u32,
}

impl Usage {
    pub(super) fn new(prompt_tokens: u32, completion_tokens: u32, cached_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: u64::from(prompt_tokens) + u64::from(completion_tokens),
            prompt_tokens_details: PromptDetails { cached_tokens },
            completion_tokens_details: CompletionDetails { reasoning_tokens: 0 },
        }
    }
}

/// OpenAI's word for why an answer ended; `None` when it was cancelled.
pub(super) fn finish_reason(finish: Finish) -> Option<&'static str> {
    match finish {
        Finish::Stop => Some("stop"),
        Finish::Length => Some("length"),
        Finish::Cancelled => None,
    }
}

#[derive(Serialize)]
struct Object<'a, C> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: u32,
    message: Message<'a>,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChatDelta<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Serialize)]
struct TextChoice<'a> {
    index: u32,
    text: &'a str,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

/// One step of a streamed answer.
#[derive(Clone, Copy)]
pub(super) enum Step<'a> {
    /// The assistant begins; chats only.
    Role,
    /// Text.
    Text(&'a str),
    /// The end.
    Finish(&'static str),
    /// The token counts, when asked for.
    Usage(Usage),
}

impl Head {
    fn id(&self) -> String {
        let kind = match self.endpoint {
            Endpoint::Chat => "chatcmpl",
            Endpoint::Completion => "cmpl",
        };
        format!("{kind}-{}", hex(self.request))
    }

    fn object<C: Serialize>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Option<Usage>>,
    ) -> String {
        let (id, created, model) = (self.id(), self.created_s, self.model.as_str());
        let object = Object { id, object, created, model, choices, usage };
        // Strings and numbers alone cannot fail to serialize.
        serde_json::to_string(&object).unwrap_or_default()
    }

    /// The whole answer.
    pub(super) fn whole(&self, text: &str, finish_reason: &'static str, usage: Usage) -> String {
        let usage = Some(Some(usage));
        match self.endpoint {
            Endpoint::Chat => {
                let message = Message { role: "assistant", content: text, refusal: None };
                let choice = ChatChoice { index: 0, message, logprobs: None, finish_reason };
                self.object("chat.completion", vec![choice], usage)
            }
            Endpoint::Completion => {
                let finish_reason = Some(finish_reason);
                let choice = TextChoice { index: 0, text, logprobs: None, finish_reason };
                self.object("text_completion", vec![choice], usage)
            }
        }
    }

    /// One chunk of a streamed answer. `null_usage`: other chunks say that theirs is none yet.
    pub(super) fn chunk(&self, step: Step<'_>, null_usage: bool) -> String {
        let none_yet = null_usage.then_some(None);
        match self.endpoint {
            Endpoint::Chat => {
                let (delta, finish_reason, usage) = match step {
                    Step::Role => {
                        let delta = Delta { role: Some("assistant"), content: Some("") };
                        (Some(delta), None, none_yet)
                    }
                    Step::Text(text) => {
                        let delta = Delta { role: None, content: Some(text) };
                        (Some(delta), None, none_yet)
                    }
                    Step::Finish(reason) => (Some(Delta::default()), Some(reason), none_yet),
                    Step::Usage(usage) => (None, None, Some(Some(usage))),
                };
                let choice = |delta| ChatDelta { index: 0, delta, logprobs: None, finish_reason };
                let choices = delta.map(choice).into_iter().collect();
                self.object("chat.completion.chunk", choices, usage)
            }
            Endpoint::Completion => {
                let (text, finish_reason, usage) = match step {
                    Step::Role => (Some(""), None, none_yet),
                    Step::Text(text) => (Some(text), None, none_yet),
                    Step::Finish(reason) => (Some(""), Some(reason), none_yet),
                    Step::Usage(usage) => (None, None, Some(Some(usage))),
                };
                let choice = |text| TextChoice { index: 0, text, logprobs: None, finish_reason };
                let choices = text.map(choice).into_iter().collect();
                self.object("text_completion", choices, usage)
            }
        }
    }
}

/// Fills a chunk up to a multiple of `CHUNK_LEN_BYTES`, so that its length says nothing of its
/// text. The filler is constant: TLS hides it, and nothing compresses it.
pub(super) fn obfuscate(mut chunk: String) -> String {
    if chunk.pop().is_none() {
        return chunk;
    }
    let bare_len = chunk.len() + 1 + FILLER_FIELD_LEN_BYTES;
    let filler_len = bare_len.next_multiple_of(CHUNK_LEN_BYTES) - bare_len;
    chunk.push_str(",\"obfuscation\":\"");
    chunk.extend(std::iter::repeat_n('.', filler_len));
    chunk.push_str("\"}");
    chunk
}

/// One server-sent event.
pub(super) fn sse(data: &str) -> String {
    format!("data: {data}\n\n")
}

/// The error that ends a stream.
pub(super) fn sse_error(error: &ApiError) -> String {
    sse(&error.body().to_string())
}

/// A model as `GET /v1/models` shows it.
pub(super) fn model(info: &ModelInfo) -> Value {
    serde_json::json!({
        "id": info.name,
        "object": "model",
        "created": info.created_s,
        "owned_by": "cloister",
        // vLLM's name for it, which clients read.
        "max_model_len": info.context_len_tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(endpoint: Endpoint) -> Head {
        let request = RequestId([0xab; 16]);
        Head { endpoint, request, model: "m".to_owned(), created_s: 7 }
    }

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn chat_chunks_have_openai_form() {
        let head = head(Endpoint::Chat);
        let role = parsed(&head.chunk(Step::Role, false));
        assert_eq!(role["id"], "chatcmpl-abababababababababababababababab");
        assert_eq!(role["object"], "chat.completion.chunk");
        assert_eq!(role["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(role["choices"][0]["finish_reason"], Value::Null);
        assert!(role.get("usage").is_none());
        let text = parsed(&head.chunk(Step::Text("a\"\n"), true));
        assert_eq!(text["choices"][0]["delta"], serde_json::json!({"content": "a\"\n"}));
        assert_eq!(text.get("usage"), Some(&Value::Null));
        let finish = parsed(&head.chunk(Step::Finish("length"), true));
        assert_eq!(finish["choices"][0]["delta"], serde_json::json!({}));
        assert_eq!(finish["choices"][0]["finish_reason"], "length");
        let usage = parsed(&head.chunk(Step::Usage(Usage::new(u32::MAX, 2, 1)), true));
        assert_eq!(usage["choices"], serde_json::json!([]));
        assert_eq!(usage["usage"]["total_tokens"], 4_294_967_297_u64);
    }

    #[test]
    fn completion_objects_have_openai_form() {
        let head = head(Endpoint::Completion);
        let whole = parsed(&head.whole("x", "stop", Usage::new(1, 2, 0)));
        assert_eq!(whole["object"], "text_completion");
        assert_eq!(whole["choices"][0]["text"], "x");
        assert_eq!(whole["usage"]["total_tokens"], 3);
        assert_eq!(parsed(&head.chunk(Step::Text("y"), false))["choices"][0]["text"], "y");
    }

    #[test]
    fn obfuscated_chunks_have_one_length() {
        let head = head(Endpoint::Chat);
        for text in ["", "a", "\u{1f600}", "\n\n\n\n", "a word of many letters"] {
            let chunk = obfuscate(head.chunk(Step::Text(text), true));
            assert_eq!(chunk.len(), CHUNK_LEN_BYTES, "{text}");
            assert_eq!(parsed(&chunk)["choices"][0]["delta"]["content"], text);
        }
        let long = obfuscate(head.chunk(Step::Text(&"x".repeat(1000)), false));
        assert_eq!(long.len() % CHUNK_LEN_BYTES, 0);
        assert_eq!(obfuscate(head.chunk(Step::Role, false)).len(), CHUNK_LEN_BYTES);
        assert_eq!(obfuscate(head.chunk(Step::Finish("stop"), false)).len(), CHUNK_LEN_BYTES);
    }

    #[test]
    fn an_event_is_one_line_whatever_the_text() {
        let event = sse(&head(Endpoint::Chat).chunk(Step::Text("a\r\n\ndata: b\u{2028}"), false));
        assert!(event.starts_with("data: {") && event.ends_with("}\n\n"));
        assert_eq!(event.matches('\n').count(), 2);
        assert!(!event.contains('\r'));
    }
}
