//! Between worker and supervisor: tickets in, digests and counts out. Never a text.

use super::{Digest, RequestId};
use crate::engine::KvType;

/// Worker to supervisor.
#[derive(Debug)]
pub enum WorkerReport {
    /// The sandbox is closed and the worker serves. Once.
    Ready {
        /// The context it serves, in tokens.
        context_len_tokens: u32,
        /// What it declares of itself ("avx512, 2 threads, int8").
        engine: String,
    },
    /// A request without a ticket was refused.
    NoTicket {
        /// The request as named by the gateway.
        request: RequestId,
    },
    /// A request ended; its ticket is used up.
    End(EndReport),
    /// A request that was revoked is not with this worker: its ticket, if it was unused, is void.
    Unused {
        /// The request.
        request: RequestId,
    },
    /// The answer to `AreYouThere`, through every thread.
    Alive,
    /// No card computes what was asked for; the worker ends. Before it serves, so that it has seen no text.
    NoCard {
        /// Why, and what to do.
        why: String,
    },
    /// A panic: file and line, never its text.
    Panicked {
        /// Source file.
        file: String,
        /// Line.
        line: u32,
    },
}

/// What the worker observed of a request.
#[derive(Debug, PartialEq)]
pub struct EndReport {
    /// The request.
    pub request: RequestId,
    /// How it ended.
    pub outcome: Outcome,
    /// SHA-256 of each message's content (or of the one prompt), in order.
    pub messages: Vec<Digest>,
    /// SHA-256 of the answer's text.
    pub answer: Digest,
    /// SHA-256 of the request's parameters, written as text.
    pub parameters: Digest,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Outcome {
    /// End-of-generation token or stop string.
    Stop = 1,
    /// `max_tokens` or the context's end.
    Length = 2,
    /// Cancelled by the gateway or the supervisor.
    Cancelled = 3,
    /// Refused before the first token (too long, template, invalid value).
    Refused = 4,
    /// A fault of the engine.
    Failed = 5,
}

/// Supervisor to worker.
#[derive(Debug)]
pub enum ToWorkerControl {
    /// First message. Comes with two descriptors: the sealed model image, the data channel.
    Config(WorkerConfig),
    /// One request may be served, once.
    Ticket(Ticket),
    /// The request must stop; its ticket, if unused, is void. Answered by `End` or `Unused`.
    Revoke {
        /// The request.
        request: RequestId,
    },
    /// Nothing of this cache domain may be kept any longer.
    Forget {
        /// The domain.
        cache_domain: [u8; 16],
    },
    /// Do all threads still work? Answered by `Alive`.
    AreYouThere,
    /// Finish what runs and exit.
    Drain,
}

/// What a worker needs to serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerConfig {
    /// Compute threads.
    pub threads: u16,
    /// The processor of each thread; none leaves them to the system.
    pub processors: Vec<u16>,
    /// f32 activations and f32 KV instead of int8 and what `kv` says.
    pub exact: bool,
    /// How keys and values are kept.
    pub kv: KvFormat,
    /// Longest context, in tokens; 0 takes the model's own.
    pub context_len_tokens: u32,
    /// Most requests at once.
    pub sequences_max: u16,
    /// Cache domains that may keep prefixes of what they asked.
    pub prefix_domains: u16,
    /// Tokens of prefixes that each of them may keep.
    pub prefix_len_tokens: u32,
    /// Time that prefixes outlive their domain's last request, in seconds.
    pub prefix_keep_s: u32,
    /// Most tokens of an answer that are guessed and verified at once; 0 guesses none.
    pub guess_tokens: u16,
    /// Most bytes of text that all requests together bring.
    pub texts_len_max_bytes: u64,
    /// It serves one request and ends.
    pub one_request: bool,
    /// Layers that cards compute; none for a worker that has none.
    pub gpu_layers: Option<GpuLayers>,
    /// Cards that were named for them; 0 without any.
    pub gpu_count: u16,
}

/// How many layers of a model go to a card: the last ones, and then the output too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GpuLayers {
    /// As many as fit.
    Auto,
    /// All of them.
    All,
    /// So many.
    Count(u16),
}

/// How a worker keeps keys and values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvFormat {
    /// 16-bit floats.
    F16,
    /// 8-bit integers, 32 with a 16-bit scale.
    Q8_0,
}

impl From<KvFormat> for KvType {
    fn from(format: KvFormat) -> Self {
        match format {
            KvFormat::F16 => Self::F16,
            KvFormat::Q8_0 => Self::Q8_0,
        }
    }
}

/// The right to have one request served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// The request.
    pub request: RequestId,
    /// Which requests may share cached prefixes; `None` shares and keeps nothing.
    pub cache_domain: Option<[u8; 16]>,
    /// Most tokens to generate, whatever the gateway asks.
    pub max_tokens: u32,
    /// Time to the end, in milliseconds.
    pub deadline_ms: u32,
}
