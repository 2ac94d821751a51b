//! Every message between the processes, with its size limit and who may say it: one file for each pair.
//!
//! No message carries a key but `FileKey` (to the opener, one file's) and no message to the
//! supervisor carries text: digests, counts and closed enums only.

mod data;
mod gateway;
mod opening;
mod worker;

pub use self::data::{Failure, Finish, FromWorker, Generate, Prompt, ToWorker};
pub use self::gateway::{
    Denial, Endpoint, FromGateway, GatewayConfig, ListenerKind, ModelInfo, ToGateway,
};
pub use self::opening::{
    FromLoader, FromOpener, OpenCheck, SEGMENT_LEN_BYTES, SEGMENTS_COUNT_MAX, ToLoader, ToOpener,
};
pub use self::worker::{
    EndReport, GpuLayers, KvFormat, Outcome, Ticket, ToWorkerControl, WorkerConfig, WorkerReport,
};
pub use super::sampling::Sampling;

/// Longest frame on a control channel (supervisor to anyone), in bytes.
pub const CONTROL_FRAME_LEN_MAX_BYTES: usize = 64 << 10;
/// Longest frame on the data channel (gateway to worker), in bytes; a full body of text.
pub const DATA_FRAME_LEN_MAX_BYTES: usize = 16 << 20;
/// Most messages in one chat, so that their digests fit one control frame and one audit record.
pub const MESSAGES_COUNT_MAX: usize = 512;
/// Most requests without a ticket that a worker reports in its life.
pub const NO_TICKETS_COUNT_MAX: usize = 4096;
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
