//! Between gateway and supervisor: who may have work, what is signed, who serves it. Never a text, never a key.

use super::{Digest, ModelIndex, RequestId, WorkerIndex};

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
    /// Sign a TLS 1.3 handshake (the content of a server's `CertificateVerify`).
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
    /// Requests came without a key, or with what cannot be one.
    KeysMalformed {
        /// How many since the last such message; never 0.
        count: u32,
    },
}

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`
    Chat = 1,
    /// `POST /v1/completions`
    Completion = 2,
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
    /// No model of this name.
    ModelUnknown = 2,
    /// The model is not ready.
    ModelUnavailable = 3,
    /// The audit log cannot be written.
    LogUnavailable = 4,
    /// Too many requests of this principal, or in all.
    TooManyRequests = 5,
    /// Cloister is stopping.
    Stopping = 6,
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
