//! Between gateway and worker: the only messages that carry text. The supervisor never sees one.

use super::{RequestId, Sampling};

/// Gateway to worker, on the data channel.
#[derive(Debug)]
pub enum ToWorker {
    /// Generate; refused unless the ticket is there.
    Generate(Box<Generate>),
    /// Stop within one engine step.
    Cancel {
        /// The request.
        request: RequestId,
    },
}

/// One request's work.
pub struct Generate {
    /// The request; must have a ticket.
    pub request: RequestId,
    /// What to answer.
    pub prompt: Prompt,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Strings that end the answer; not part of it.
    pub stop: Vec<String>,
    /// Most tokens to generate; 0 means as many as fit.
    pub max_tokens: u32,
}

/// What to answer.
pub enum Prompt {
    /// A chat, rendered by the model's template.
    Chat {
        /// `messages` as a JSON array of objects, already checked for form by the gateway
        /// and checked again by the worker; the text is never tokenized as markup.
        messages_json: String,
        /// How many messages the array holds.
        messages_count: u16,
        /// `tools` as a JSON array; empty without tools.
        tools_json: String,
    },
    /// Plain text, continued as it stands.
    Text(String),
}

/// Worker to gateway, on the data channel.
#[derive(PartialEq)]
pub enum FromWorker {
    /// The prompt is read; tokens will follow.
    Started {
        /// The request.
        request: RequestId,
        /// Tokens of the prompt.
        prompt_tokens: u32,
    },
    /// More text; whole UTF-8 characters.
    Delta {
        /// The request.
        request: RequestId,
        /// The text.
        text: String,
    },
    /// The end.
    Done {
        /// The request.
        request: RequestId,
        /// Why it ended.
        finish: Finish,
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Tokens of the answer.
        completion_tokens: u32,
        /// Tokens of the prompt that an earlier request of the same principal had left.
        cached_tokens: u32,
    },
    /// No answer.
    Failed {
        /// The request.
        request: RequestId,
        /// Why.
        failure: Failure,
    },
}

/// Why an answer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Finish {
    /// End-of-generation token or stop string.
    Stop = 1,
    /// `max_tokens` or the context's end.
    Length = 2,
    /// The client went away or the request was cancelled.
    Cancelled = 3,
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The request had no ticket.
    NoTicket,
    /// `prompt + max_tokens` exceeds the context.
    ContextTooLong {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Asked tokens.
        max_tokens: u32,
        /// The context.
        context_len_tokens: u32,
    },
    /// The model's chat template refused the messages or ran out of its limits.
    TemplateRefused,
    /// A value of the request is out of its range.
    RequestInvalid,
    /// No room for one more sequence.
    Busy,
    /// A fault of the engine.
    Internal,
}
