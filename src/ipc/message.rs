//! Every message between the processes, with its size limit and who may say it.
//!
//! No message carries a key but `FileKey` (to the opener, one file's) and no message to the
//! supervisor carries text: digests, counts and closed enums only.

use zeroize::Zeroizing;

pub use super::sampling::Sampling;
use crate::engine::KvType;

/// Longest frame on a control channel (supervisor to anyone), in bytes.
pub const CONTROL_FRAME_LEN_MAX_BYTES: usize = 64 << 10;
/// Longest frame on the data channel (gateway to worker), in bytes; a full body of text.
pub const DATA_FRAME_LEN_MAX_BYTES: usize = 16 << 20;
/// Most messages in one chat, so that their digests fit one control frame and one audit record.
pub const MESSAGES_COUNT_MAX: usize = 512;
/// Longest model name, in bytes.
pub const NAME_LEN_MAX_BYTES: usize = 128;
/// Most certificates of a chain; all of them fit a control frame.
pub const CERTIFICATES_COUNT_MAX: usize = 8;
/// Longest certificate, in bytes.
pub const CERTIFICATE_LEN_MAX_BYTES: usize = 7 << 10;
/// Most stop strings of a request.
pub const STOP_COUNT_MAX: usize = 16;
/// Longest stop string, in bytes.
pub const STOP_LEN_MAX_BYTES: usize = 256;
/// Most entries in `logit_bias`.
pub const LOGIT_BIAS_COUNT_MAX: usize = 1024;

/// Names a request; made by the supervisor at random.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RequestId(pub [u8; 16]);

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Digest(pub [u8; 32]);

/// Which model a message is about: the index in the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ModelIndex(pub u16);

/// Which place for a worker a message is about; a worker that follows another has the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WorkerIndex(pub u16);

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`
    Chat = 1,
    /// `POST /v1/completions`
    Completion = 2,
}

/// Gateway to supervisor.
#[derive(Debug)]
pub enum FromGateway {
    /// The sandbox is closed and the gateway serves. Once, after `GatewayConfig`.
    Ready,
    /// May this key have this work? Answered by `Begun` or `Denied` with the same correlation.
    Begin {
        /// The gateway's own number of the question.
        correlation: u64,
        /// SHA-256 of the presented API key.
        key: Digest,
        /// What is asked for.
        endpoint: Endpoint,
        /// The model's name as asked; empty means the default model.
        model: String,
        /// Asked `max_tokens`; 0 when the client named none.
        max_tokens: u32,
        /// Whether the answer is streamed.
        stream: bool,
    },
    /// Is this key valid (for `GET /v1/models`)? Answered by `Authorized` or `Denied`.
    Authorize {
        /// The gateway's own number of the question.
        correlation: u64,
        /// SHA-256 of the presented API key.
        key: Digest,
    },
    /// Sign a TLS handshake message (TLS 1.3 CertificateVerify or TLS 1.2 key exchange).
    Sign {
        /// The gateway's own number of the question.
        correlation: u64,
        /// TLS `SignatureScheme`.
        scheme: u16,
        /// The bytes to sign; their form is checked.
        message: Vec<u8>,
    },
    /// The client went away, or the gateway gave up, before the worker was asked.
    Abandoned {
        /// The request.
        request: RequestId,
    },
    /// The answer to `AreYouThere`.
    Alive,
    /// A worker sent what is no frame; nothing more is read of it.
    WorkerBroken {
        /// Which worker.
        worker: WorkerIndex,
    },
}

/// Supervisor to gateway.
#[derive(Debug)]
pub enum ToGateway {
    /// First message. Descriptors that follow it: the listeners, in order.
    Config(GatewayConfig),
    /// Requests for a model are taken from now on.
    ModelUp {
        /// The model.
        model: ModelIndex,
        /// What the API shows of it.
        info: ModelInfo,
    },
    /// And no longer.
    ModelDown {
        /// The model.
        model: ModelIndex,
    },
    /// A worker serves. Comes with one descriptor: the data channel, whose end is the worker's.
    WorkerUp {
        /// Which.
        worker: WorkerIndex,
    },
    /// The begin record is durable, and the worker, if there is one yet, has its ticket.
    Begun {
        /// The question's number.
        correlation: u64,
        /// The request.
        request: RequestId,
        /// The model that serves it.
        model: ModelIndex,
        /// The worker that serves it; `Turn` names one that is still to come.
        worker: Option<WorkerIndex>,
    },
    /// What a begun request has waited for.
    Turn {
        /// The request.
        request: RequestId,
        /// The worker that has its ticket; without one it is not served any more.
        worker: Option<WorkerIndex>,
    },
    /// The key is valid.
    Authorized {
        /// The question's number.
        correlation: u64,
    },
    /// No work.
    Denied {
        /// The question's number.
        correlation: u64,
        /// Why.
        reason: Denial,
    },
    /// The signature; empty when refused.
    Signature {
        /// The question's number.
        correlation: u64,
        /// DER signature.
        signature: Vec<u8>,
    },
    /// Do you still work? Answered by `Alive`.
    AreYouThere,
    /// Handshakes show these from now on.
    Certificates {
        /// The chain in DER, leaf first.
        certificates: Vec<Vec<u8>>,
        /// As in `GatewayConfig`.
        tls_scheme: u16,
    },
    /// Stop taking connections, finish what runs, exit.
    Drain,
}

/// Why the supervisor grants no work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Denial {
    /// No such key, or revoked, or expired: one answer for all.
    KeyInvalid = 1,
    /// The key's role may not do this.
    RoleForbids = 2,
    /// No model of this name.
    ModelUnknown = 3,
    /// The model is not ready.
    ModelUnavailable = 4,
    /// The audit log cannot be written.
    LogUnavailable = 5,
    /// Too many requests of this principal, or in all.
    TooManyRequests = 6,
    /// Cloister is stopping.
    Stopping = 7,
}

/// What the gateway needs to serve.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// What each listener descriptor is, in order.
    pub listeners: Vec<ListenerKind>,
    /// The certificate chain in DER, leaf first; empty without TLS.
    pub certificates: Vec<Vec<u8>>,
    /// The scheme that the supervisor's TLS key signs with (`SignatureScheme`); 0 without TLS.
    pub tls_scheme: u16,
    /// Longest request body, in bytes.
    pub body_len_max_bytes: u32,
    /// Time for a whole request head and body to arrive, in milliseconds.
    pub read_deadline_ms: u32,
    /// Time a client may leave its answer unread, in milliseconds.
    pub write_deadline_ms: u32,
    /// Most connections at once.
    pub connections_max: u16,
    /// Most connections of one peer at once.
    pub connections_per_peer_max: u16,
    /// Most requests at once; one more is answered 429.
    pub requests_max: u16,
}

/// How a listener speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ListenerKind {
    /// TLS over TCP.
    Tls = 1,
    /// Plain HTTP on a loopback address.
    PlainLoopback = 2,
    /// Plain HTTP on a Unix socket.
    Unix = 3,
}

/// What the API shows of a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelInfo {
    /// Name in the API.
    pub name: String,
    /// Longest prompt and answer together, in tokens.
    pub context_len_tokens: u32,
    /// When it was loaded, in seconds since 1970.
    pub created_s: u64,
}

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
    /// The answer to `AreYouThere`, through every thread.
    Alive,
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
    /// The request must stop; its ticket, if unused, is void.
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

/// Opener to supervisor.
#[derive(Debug)]
pub enum FromOpener {
    /// Unwrap this X25519 stanza (at most 128 times). Answered by `FileKey` or `NoMatch`.
    Unwrap {
        /// The stanza's ephemeral share.
        ephemeral: [u8; 32],
        /// The stanza's body.
        body: [u8; 32],
    },
    /// All plaintext is written.
    Finished {
        /// Plaintext bytes.
        len_bytes: u64,
    },
    /// Refused.
    Refused {
        /// Which check failed.
        check: OpenCheck,
    },
}

/// Supervisor to opener.
pub enum ToOpener {
    /// Open an age file. Descriptors: the file, the pipe's write end.
    OpenAge,
    /// Copy a plain file. Descriptors: the file, the pipe's write end.
    OpenPlain,
    /// That file's key.
    FileKey(Zeroizing<[u8; 16]>),
    /// The identity does not open this stanza.
    NoMatch,
}

/// Which check refused an encrypted file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum OpenCheck {
    /// The header is not an age v1 header, or over a limit.
    AgeHeader = 1,
    /// No stanza opens with the identity.
    NoMatchingIdentity = 2,
    /// The header's MAC is wrong.
    HeaderMac = 3,
    /// A chunk does not authenticate.
    Chunk = 4,
    /// The file ends without its last chunk, or goes on after it.
    Truncated = 5,
    /// The file cannot be read.
    Io = 6,
}

/// Supervisor to loader.
#[derive(Debug)]
pub enum ToLoader {
    /// First message. Descriptor: the pipe's read end.
    Load {
        /// Plaintext bytes to expect, so that memory is reserved once.
        len_max_bytes: u64,
        /// How the worker will keep keys and values; a model that cannot be served so is refused.
        kv: KvFormat,
    },
    /// The digest and signature hold: parse and repack.
    Verified,
}

/// Loader to supervisor.
#[derive(Debug)]
pub enum FromLoader {
    /// All bytes up to the end of the pipe are held.
    Received {
        /// Bytes.
        len_bytes: u64,
    },
    /// How far the repacking is.
    Progress {
        /// Bytes done.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// Packed and sealed. Descriptor: the image.
    Sealed {
        /// Bytes of the image.
        len_bytes: u64,
    },
    /// Refused: a static text that names the check and the field, never file content.
    Refused {
        /// Which check failed.
        check: String,
    },
}
