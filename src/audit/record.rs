//! One record: which events exist and which facts they may carry. Never a word of content.
//!
//! A record is one JSON object with a closed, versioned set of members; `record.schema.json` says
//! what each means, and a test holds it against these types. Every fact stands under `observed`
//! (the supervisor saw it itself) or `declared` (another process said so). Counts and durations are
//! bucketed to the next power of two, times to a second.

mod facts;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod schema_tests;
mod words;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

pub use facts::*;
pub use words::*;

use crate::sys::clock;

/// Version of the record schema.
pub const SCHEMA_VERSION: u32 = 1;
/// The schema of a record, as JSON Schema (draft 2020-12).
pub const SCHEMA: &str = include_str!("record.schema.json");

/// A record as it stands in the log.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Schema version.
    pub v: u32,
    /// When, in seconds since 1970 by the system's clock.
    pub time_s: u64,
    /// What the kernel said of that clock.
    pub clock: Clock,
    /// Seconds since the machine started; never goes back within one `boot`.
    pub monotonic_s: u64,
    /// Which start of the machine, in hex.
    pub boot: String,
    /// What happened.
    pub event: Event,
}

impl Record {
    /// The record of an event that happens now, which is `time_s` by the system's clock, in this start of the
    /// machine.
    #[must_use]
    pub fn now(time_s: u64, boot: &str, event: Event) -> Self {
        let clock = match clock::is_synchronized() {
            true => Clock::Synchronized,
            false => Clock::Unsynchronized,
        };
        let boot = boot.to_owned();
        Self { v: SCHEMA_VERSION, time_s, clock, monotonic_s: monotonic_s(), boot, event }
    }
}

/// Seconds since the machine started, those in which it slept among them.
fn monotonic_s() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .ok()
        .and_then(|time| u64::try_from(time.tv_sec()).ok())
        .unwrap_or(0)
}

/// A digest that only the holder of a principal's key can recompute.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct KeyedDigest {
    /// Fresh for each digest, in hex.
    pub nonce: String,
    /// `HMAC-SHA-256(K_principal, nonce || SHA-256(text))`, in hex.
    pub hmac: String,
}

/// What happened.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// Cloister started.
    Start {
        /// What the supervisor saw.
        observed: StartFacts,
    },
    /// Cloister stopped in order.
    Stop {},
    /// The last run ended without `stop`; records that were not durable are lost.
    Recovered {
        /// What the supervisor saw.
        observed: RecoveredFacts,
    },
    /// The log could not be written for so long that events were dropped: the newest of those that waited.
    EventsDropped {
        /// What the supervisor saw.
        observed: DroppedFacts,
    },
    /// Something that the start depends on is not what it was at the last start.
    ConfigChanged {
        /// What the supervisor saw.
        observed: ChangeFacts,
    },
    /// A setting is in force that weakens a protection.
    Override {
        /// What the supervisor saw.
        observed: OverrideFacts,
    },
    /// A model was verified and opened.
    ModelOpened {
        /// What the supervisor saw.
        observed: ModelFacts,
    },
    /// A model was refused.
    ModelRefused {
        /// What the supervisor saw.
        observed: ModelRefusedFacts,
        /// What the loader said, if it was the loader that refused.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        declared: Option<LoaderFacts>,
    },
    /// A request may be served; durable before its first token.
    Begin {
        /// The request, in hex.
        request: String,
        /// What the supervisor looked up itself.
        observed: BeginFacts,
        /// What the gateway said.
        declared: AskedFacts,
    },
    /// A request ended.
    End {
        /// The request, in hex.
        request: String,
        /// What the supervisor saw.
        observed: EndedFacts,
        /// What the worker said.
        declared: EndFacts,
    },
    /// A request's end was never reported.
    EndMissing {
        /// The request, in hex.
        request: String,
        /// What the supervisor saw.
        observed: EndMissingFacts,
    },
    /// Requests were refused before they began.
    Refused {
        /// What the supervisor saw.
        observed: RefusedFacts,
    },
    /// Keys were presented that open nothing.
    AuthenticationFailed {
        /// What the supervisor saw, when it was asked about them.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        observed: Option<AuthenticationFacts>,
        /// What the gateway said, when it was not.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        declared: Option<UnaskedFacts>,
    },
    /// A worker was asked to serve a request without a ticket, and refused.
    TicketMissing {
        /// What the supervisor saw.
        observed: TicketFacts,
        /// What the worker said.
        declared: TicketRequestFacts,
    },
    /// A key was made.
    KeyCreated {
        /// What the supervisor saw.
        observed: KeyFacts,
    },
    /// A long-term key was used.
    KeyUsed {
        /// What the supervisor saw.
        observed: KeyUseFacts,
    },
    /// A key was replaced by another.
    KeyRotated {
        /// What the supervisor saw.
        observed: RotationFacts,
    },
    /// A key was destroyed.
    KeyDestroyed {
        /// What the supervisor saw.
        observed: KeyFacts,
    },
    /// The token table was read.
    TokensLoaded {
        /// What the supervisor saw.
        observed: TokensFacts,
    },
    /// Another TLS certificate was taken.
    CertificateLoaded {
        /// What the supervisor saw.
        observed: CertificateFacts,
    },
    /// Files were to be taken anew while Cloister runs.
    Reloaded {
        /// What the supervisor saw.
        observed: ReloadFacts,
    },
    /// A child process started.
    ChildStarted {
        /// What the supervisor saw.
        observed: ChildFacts,
    },
    /// A child process is gone.
    ChildDied {
        /// What the supervisor saw.
        observed: DeathFacts,
        /// What the child said, if it panicked.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        declared: Option<PanicFacts>,
    },
    /// A worker that serves one request ended after it, as it should.
    WorkerEnded {
        /// The request, in hex.
        request: String,
        /// What the supervisor saw.
        observed: ChildFacts,
    },
    /// A child process was killed by the kernel for a system call that its filter does not allow.
    SandboxViolation {
        /// What the supervisor saw.
        observed: ViolationFacts,
    },
    /// The system's clock and the machine's monotonic clock came apart.
    ClockJump {
        /// What the supervisor saw.
        observed: ClockFacts,
    },
    /// The log was read or checked through Cloister.
    LogRead {
        /// What the supervisor saw.
        observed: ReaderFacts,
        /// What the command line said.
        declared: LogReadFacts,
    },
    /// The oldest records were removed; their hashes stay.
    RetentionRun {
        /// What the supervisor saw.
        observed: RetentionFacts,
    },
    /// An operator asked for an erasure that others must confirm.
    ErasureAsked {
        /// What the supervisor saw.
        observed: ErasureAskedFacts,
    },
    /// A principal's key was destroyed: nothing in this log can be linked to it any more.
    Erased {
        /// What the supervisor saw.
        observed: ErasedFacts,
    },
}

impl Event {
    /// The event's name in the log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Stop {} => "stop",
            Self::Recovered { .. } => "recovered",
            Self::EventsDropped { .. } => "events_dropped",
            Self::ConfigChanged { .. } => "config_changed",
            Self::Override { .. } => "override",
            Self::ModelOpened { .. } => "model_opened",
            Self::ModelRefused { .. } => "model_refused",
            Self::Begin { .. } => "begin",
            Self::End { .. } => "end",
            Self::EndMissing { .. } => "end_missing",
            Self::Refused { .. } => "refused",
            Self::AuthenticationFailed { .. } => "authentication_failed",
            Self::TicketMissing { .. } => "ticket_missing",
            Self::KeyCreated { .. } => "key_created",
            Self::KeyUsed { .. } => "key_used",
            Self::KeyRotated { .. } => "key_rotated",
            Self::KeyDestroyed { .. } => "key_destroyed",
            Self::TokensLoaded { .. } => "tokens_loaded",
            Self::CertificateLoaded { .. } => "certificate_loaded",
            Self::Reloaded { .. } => "reloaded",
            Self::ChildStarted { .. } => "child_started",
            Self::ChildDied { .. } => "child_died",
            Self::WorkerEnded { .. } => "worker_ended",
            Self::SandboxViolation { .. } => "sandbox_violation",
            Self::ClockJump { .. } => "clock_jump",
            Self::LogRead { .. } => "log_read",
            Self::RetentionRun { .. } => "retention_run",
            Self::ErasureAsked { .. } => "erasure_asked",
            Self::Erased { .. } => "erased",
        }
    }

    /// The request that the event is about.
    #[must_use]
    pub fn request(&self) -> Option<&str> {
        match self {
            Self::Begin { request, .. }
            | Self::End { request, .. }
            | Self::EndMissing { request, .. }
            | Self::WorkerEnded { request, .. } => Some(request),
            _ => None,
        }
    }

    /// The pseudonym of the principal that the event names.
    #[must_use]
    pub fn principal(&self) -> Option<&str> {
        match self {
            Self::Begin { observed, .. } => Some(&observed.principal),
            Self::Refused { observed } => observed.principal.as_deref(),
            Self::AuthenticationFailed { observed, .. } => observed.as_ref()?.principal.as_deref(),
            Self::ErasureAsked { observed } => Some(&observed.principal),
            Self::Erased { observed } => Some(&observed.principal),
            _ => None,
        }
    }

    /// The name of the model that the event is about.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        match self {
            Self::Override { observed } => observed.model.as_deref(),
            Self::ModelOpened { observed } => Some(&observed.model),
            Self::ModelRefused { observed, .. } => Some(&observed.model),
            Self::Begin { observed, .. } => Some(&observed.model),
            Self::TicketMissing { observed, .. } => Some(&observed.model),
            _ => None,
        }
    }

    /// That a request's end was never reported.
    #[must_use]
    pub fn end_missing(request: String, cause: MissingCause) -> Self {
        Self::EndMissing { request, observed: EndMissingFacts { cause } }
    }
}

/// The next power of two, so that a count tells no exact length; 0 stays 0.
#[must_use]
pub fn bucket(count: u64) -> u64 {
    if count == 0 { 0 } else { count.checked_next_power_of_two().unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        assert_eq!([0, 1, 2, 3, 5, 1000].map(bucket), [0, 1, 2, 4, 8, 1024]);
        assert_eq!(bucket(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_record_is_of_its_moment() {
        let record = Record::now(7, "ab", Event::Stop {});
        assert!(record.time_s == 7 && record.monotonic_s > 0, "{record:?}");
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}
