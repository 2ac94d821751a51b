//! The closed sets of words that stand in records.

use serde::{Deserialize, Serialize};

/// What the kernel says of the system's clock.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// Something keeps it right.
    Synchronized,
    /// Nothing does.
    Unsynchronized,
}

/// Why an end is missing.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum MissingCause {
    /// The worker is gone.
    WorkerGone,
    /// The gateway is gone.
    GatewayGone,
    /// The supervisor itself was gone: found at the next start.
    SupervisorGone,
    /// The deadline passed.
    Deadline,
    /// The gateway gave the request up before the worker was asked.
    Abandoned,
    /// Its token was revoked while it waited for a worker.
    Revoked,
    /// The log failed just after the begin became durable: the request was denied.
    LogUnavailable,
    /// The worker's report came, but the principal's key was not to be had.
    KeyUnavailable,
}

/// Why requests were refused.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// No such model.
    ModelUnknown,
    /// The model does not serve now.
    ModelUnavailable,
    /// The log could not be written at the time.
    LogUnavailable,
    /// Over a limit.
    TooManyRequests,
    /// Cloister was stopping.
    Stopping,
}

/// Why a presented key opens nothing.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum AuthenticationCause {
    /// No token has this digest.
    Unknown,
    /// The token has expired.
    Expired,
    /// The token was revoked.
    Revoked,
}

/// Why the gateway asks nobody about what was presented.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum UnaskedCause {
    /// It cannot be a key, or there was none.
    Malformed,
}

/// Which key.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum KeyRole {
    /// The age identity that opens models.
    ModelIdentity,
    /// The TLS key.
    Tls,
    /// The key that signs the log's checkpoints.
    Audit,
    /// The key that the principals' keys are wrapped under.
    Wrapping,
    /// A principal's key.
    Principal,
}

/// What has changed since the last start.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum ConfigPart {
    /// The configuration file.
    Configuration,
    /// The compiled policy.
    Policy,
    /// The programs.
    Build,
}

/// A setting that weakens a protection.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum WeakSetting {
    /// A model is served although nobody whom the operator trusts signed it.
    AllowUnsigned,
    /// The parts run as one user, without root.
    EvaluationProfile,
    /// Memory may be written to a swap device.
    Swap,
    /// The timing of an answer shows where it repeats itself.
    GuessTokens,
    /// A card computes layers of a model: its driver is in the worker's process.
    GpuLayers,
}

/// Whose rules say for how long records are kept.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum RetentionPreset {
    /// The European Union's: at least six months (AI Act, Art. 19(1) and 26(6)), at most a year.
    Eu,
    /// The United States' for health: at least six years (45 CFR 164.316(b)(2)).
    Us,
}

/// Whether files were taken.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum ReloadOutcome {
    /// They are in force.
    Taken,
    /// Nothing has changed.
    Refused,
}

/// Which way the system's clock went, against the monotonic one.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum ClockDirection {
    /// Into the future.
    Forward,
    /// Into the past.
    Back,
}

/// How the log was read.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum LogAction {
    /// Checked against its signed tree.
    Verify,
    /// Records were printed or searched.
    List,
    /// One record was shown.
    Show,
    /// A text was looked for.
    Match,
    /// Counts were made.
    Stats,
    /// Records were written to a file.
    Export,
    /// A report was made.
    Report,
    /// Records were printed as they came.
    Follow,
    /// Records were browsed.
    Browse,
}
