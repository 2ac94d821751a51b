//! The tables of `message` on the wire: number, variant, fields in order, each with its limit.
//!
//! The numbers and the order are the format; both ends are of one release.

use super::codec::{Decode, Encode, Limit, Message, Reader, Writer, fields, variants};
use super::message::{
    CERTIFICATE_LEN_MAX_BYTES, CERTIFICATES_COUNT_MAX, CONTROL_FRAME_LEN_MAX_BYTES,
    DATA_FRAME_LEN_MAX_BYTES, Denial, Digest, EndReport, Endpoint, Failure, Finish, FromGateway,
    FromLoader, FromOpener, FromWorker, GatewayConfig, Generate, GpuLayers, KvFormat,
    LOGIT_BIAS_COUNT_MAX, ListenerKind, MESSAGES_COUNT_MAX, ModelIndex, ModelInfo,
    NAME_LEN_MAX_BYTES, OpenCheck, Outcome, Prompt, RequestId, STOP_COUNT_MAX, STOP_LEN_MAX_BYTES,
    Sampling, Ticket, ToGateway, ToLoader, ToOpener, ToWorker, ToWorkerControl, WorkerConfig,
    WorkerIndex, WorkerReport,
};
use super::{DESCRIPTORS_COUNT_MAX, Error};

/// Longest TLS handshake message to sign, in bytes; TLS 1.3 needs 146.
const SIGN_LEN_MAX_BYTES: usize = 256;
/// Longest signature, in bytes; one of P-256 in DER has 72.
const SIGNATURE_LEN_MAX_BYTES: usize = 256;
/// Most processors that a worker's threads are put on.
const PROCESSORS_COUNT_MAX: usize = 1024;
/// Longest text in which a worker says how it computes, in bytes: each of up to 16 cards is named.
const ENGINE_LEN_MAX_BYTES: usize = 2 << 10;
/// Longest static text that a child says of itself (check, source file), in bytes.
const LABEL_LEN_MAX_BYTES: usize = 256;
/// Longest piece of an answer, in bytes.
const DELTA_LEN_MAX_BYTES: usize = 64 << 10;
/// Longest text of a request, in bytes; the frame is the closer limit.
const TEXT_LEN_MAX_BYTES: usize = DATA_FRAME_LEN_MAX_BYTES;

/// Writes the codec of a newtype.
macro_rules! newtype {
    ($($type:ident)*) => {$(
        impl Encode for $type {
            fn put(&self, writer: &mut Writer, what: &'static str, limit: Limit) -> Result<(), Error> {
                self.0.put(writer, what, limit)
            }
        }
        impl Decode for $type {
            fn take(reader: &mut Reader<'_>, what: &'static str, limit: Limit) -> Result<Self, Error> {
                Decode::take(reader, what, limit).map(Self)
            }
        }
    )*};
}

newtype!(RequestId Digest ModelIndex WorkerIndex);

variants!(Endpoint { 1 Chat, 2 Completion });

variants!(FromGateway {
    1 Ready,
    2 Begin {
        correlation,
        key,
        endpoint,
        model: Limit::bytes(NAME_LEN_MAX_BYTES),
        max_tokens,
        stream,
    },
    3 Authorize { correlation, key },
    4 Sign { correlation, scheme, message: Limit::bytes(SIGN_LEN_MAX_BYTES) },
    5 Abandoned { request },
    6 Alive,
    7 WorkerBroken { worker },
    8 KeysMalformed { count },
});

impl Message for FromGateway {
    const NAME: &'static str = "FromGateway";
    const LEN_MAX_BYTES: usize = 1 << 10;
}

variants!(ToGateway {
    1 Config(config),
    2 WorkerUp { worker },
    3 ModelDown { model },
    4 Begun { correlation, request, model, worker },
    5 Authorized { correlation },
    6 Denied { correlation, reason },
    7 Signature { correlation, signature: Limit::bytes(SIGNATURE_LEN_MAX_BYTES) },
    8 Drain,
    9 AreYouThere,
    10 Certificates {
        certificates: Limit::count_bytes(CERTIFICATES_COUNT_MAX, CERTIFICATE_LEN_MAX_BYTES),
        tls_scheme,
    },
    11 ModelUp { model, info },
    12 Turn { request, worker },
});

impl Message for ToGateway {
    const NAME: &'static str = "ToGateway";
    const LEN_MAX_BYTES: usize = CONTROL_FRAME_LEN_MAX_BYTES;

    fn descriptor_count(&self) -> usize {
        match self {
            Self::Config(config) => config.listeners.len(),
            Self::WorkerUp { .. } => 1,
            _ => 0,
        }
    }
}

variants!(Denial {
    1 KeyInvalid,
    2 ModelUnknown,
    3 ModelUnavailable,
    4 LogUnavailable,
    5 TooManyRequests,
    6 Stopping,
});

fields!(GatewayConfig {
    listeners: Limit::count(DESCRIPTORS_COUNT_MAX),
    certificates: Limit::count_bytes(CERTIFICATES_COUNT_MAX, CERTIFICATE_LEN_MAX_BYTES),
    tls_scheme,
    body_len_max_bytes,
    read_deadline_ms,
    write_deadline_ms,
    connections_max,
    connections_per_peer_max,
    requests_max,
});

variants!(ListenerKind { 1 Tls, 2 PlainLoopback, 3 Unix });

fields!(ModelInfo { name: Limit::bytes(NAME_LEN_MAX_BYTES), context_len_tokens, created_s });

variants!(ToWorker { 1 Generate(generate), 2 Cancel { request } });

impl Message for ToWorker {
    const NAME: &'static str = "ToWorker";
    const LEN_MAX_BYTES: usize = DATA_FRAME_LEN_MAX_BYTES;
}

fields!(Generate {
    request,
    prompt,
    sampling,
    stop: Limit::count_bytes(STOP_COUNT_MAX, STOP_LEN_MAX_BYTES),
    max_tokens,
});

variants!(Prompt {
    1 Chat {
        messages_json: Limit::bytes(TEXT_LEN_MAX_BYTES),
        messages_count,
        tools_json: Limit::bytes(TEXT_LEN_MAX_BYTES),
    },
    2 Text(text: Limit::bytes(TEXT_LEN_MAX_BYTES)),
});

fields!(Sampling {
    temperature,
    top_k,
    top_p,
    min_p,
    repeat_penalty,
    presence_penalty,
    frequency_penalty,
    logit_bias: Limit::count(LOGIT_BIAS_COUNT_MAX),
    seed,
});

variants!(FromWorker {
    1 Started { request, prompt_tokens },
    2 Delta { request, text: Limit::bytes(DELTA_LEN_MAX_BYTES) },
    3 Done { request, finish, prompt_tokens, completion_tokens, cached_tokens },
    4 Failed { request, failure },
});

impl Message for FromWorker {
    const NAME: &'static str = "FromWorker";
    const LEN_MAX_BYTES: usize = DELTA_LEN_MAX_BYTES + 64;
}

variants!(Finish { 1 Stop, 2 Length, 3 Cancelled });

variants!(Failure {
    1 NoTicket,
    2 ContextTooLong { prompt_tokens, max_tokens, context_len_tokens },
    3 TemplateRefused,
    4 RequestInvalid,
    5 Busy,
    6 Internal,
});

variants!(WorkerReport {
    1 Ready { context_len_tokens, engine: Limit::bytes(ENGINE_LEN_MAX_BYTES) },
    2 NoTicket { request },
    3 End(report),
    4 Panicked { file: Limit::bytes(LABEL_LEN_MAX_BYTES), line },
    5 Alive,
    6 Unused { request },
    7 NoCard { why: Limit::bytes(LABEL_LEN_MAX_BYTES) },
});

impl Message for WorkerReport {
    const NAME: &'static str = "WorkerReport";
    const LEN_MAX_BYTES: usize = CONTROL_FRAME_LEN_MAX_BYTES;
}

fields!(EndReport {
    request,
    outcome,
    messages: Limit::count(MESSAGES_COUNT_MAX),
    answer,
    parameters,
    prompt_tokens,
    completion_tokens,
});

variants!(Outcome { 1 Stop, 2 Length, 3 Cancelled, 4 Refused, 5 Failed });

variants!(ToWorkerControl {
    1 Config(config),
    2 Ticket(ticket),
    3 Revoke { request },
    4 Drain,
    5 Forget { cache_domain },
    6 AreYouThere,
});

impl Message for ToWorkerControl {
    const NAME: &'static str = "ToWorkerControl";
    const LEN_MAX_BYTES: usize = 4 << 10;

    fn descriptor_count(&self) -> usize {
        match self {
            Self::Config(_) => 2,
            _ => 0,
        }
    }
}

fields!(WorkerConfig {
    threads,
    processors: Limit::count(PROCESSORS_COUNT_MAX),
    exact,
    kv,
    context_len_tokens,
    sequences_max,
    prefix_domains,
    prefix_len_tokens,
    prefix_keep_s,
    guess_tokens,
    texts_len_max_bytes,
    one_request,
    gpu_layers,
    gpu_count,
});

variants!(GpuLayers { 1 Auto, 2 All, 3 Count(count) });

variants!(KvFormat { 1 F16, 2 Q8_0 });

fields!(Ticket { request, cache_domain, max_tokens, deadline_ms });

variants!(FromOpener {
    1 Unwrap { ephemeral, body },
    2 Finished { len_bytes },
    3 Refused { check },
    4 Segment,
});

impl Message for FromOpener {
    const NAME: &'static str = "FromOpener";
    const LEN_MAX_BYTES: usize = 256;

    fn descriptor_count(&self) -> usize {
        usize::from(matches!(self, Self::Segment))
    }
}

variants!(ToOpener { 1 OpenAge, 2 OpenPlain, 3 FileKey(key), 4 NoMatch, 5 Taken });

impl Message for ToOpener {
    const NAME: &'static str = "ToOpener";
    const LEN_MAX_BYTES: usize = 256;

    fn descriptor_count(&self) -> usize {
        match self {
            Self::OpenAge | Self::OpenPlain => 1,
            _ => 0,
        }
    }
}

variants!(OpenCheck {
    1 AgeHeader,
    2 NoMatchingIdentity,
    3 HeaderMac,
    4 Chunk,
    5 Truncated,
    6 Io,
});

variants!(ToLoader { 1 Load { len_max_bytes, kv }, 2 Verified, 3 Segment });

impl Message for ToLoader {
    const NAME: &'static str = "ToLoader";
    const LEN_MAX_BYTES: usize = 256;

    fn descriptor_count(&self) -> usize {
        usize::from(matches!(self, Self::Segment))
    }
}

variants!(FromLoader {
    1 Received { len_bytes },
    2 Progress { done_bytes, total_bytes },
    3 Sealed { len_bytes },
    4 Refused { check: Limit::bytes(LABEL_LEN_MAX_BYTES) },
});

impl Message for FromLoader {
    const NAME: &'static str = "FromLoader";
    const LEN_MAX_BYTES: usize = 512;

    fn descriptor_count(&self) -> usize {
        match self {
            Self::Sealed { .. } => 1,
            _ => 0,
        }
    }
}
