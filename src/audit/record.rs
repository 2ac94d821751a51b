//! One record: which events exist and which facts they may carry. Never a word of content.
//!
//! A record is one JSON object with a closed, versioned set of members. What the supervisor
//! saw itself stands under `observed`; what another process said, under `declared`. Counts and
//! durations are bucketed to the next power of two, times to a second.

use serde::{Deserialize, Serialize};

/// Version of the record schema.
pub const SCHEMA_VERSION: u32 = 1;

/// A record as it stands in the log.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Schema version.
    pub v: u32,
    /// When, in seconds since 1970 by the system's clock.
    pub time_s: u64,
    /// Seconds since the machine started; never goes back within one `boot`.
    pub monotonic_s: u64,
    /// Which start of the machine, in hex.
    pub boot: String,
    /// What happened.
    pub event: Event,
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
        /// Bytes of an unfinished write that were dropped.
        dropped_bytes: u64,
    },
    /// A model was verified and opened.
    ModelOpened {
        /// What the supervisor saw.
        observed: ModelFacts,
    },
    /// A model was refused.
    ModelRefused {
        /// Name in the configuration.
        model: String,
        /// Which check failed.
        check: String,
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
        /// Seconds from begin to end, bucketed.
        duration_s_max: u64,
        /// What the worker said.
        declared: EndFacts,
    },
    /// A request's end was never reported.
    EndMissing {
        /// The request, in hex.
        request: String,
        /// What the supervisor saw instead.
        cause: MissingCause,
    },
    /// Requests were refused before they began.
    Refused {
        /// Why.
        reason: RefusalReason,
        /// How many since the last such record.
        count: u64,
        /// Whose, when known.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        principal: Option<String>,
    },
    /// A worker was asked to serve a request without a ticket, and refused.
    TicketMissing {
        /// Which model's worker.
        model: String,
        /// The request as the gateway named it, in hex.
        request: String,
    },
    /// A long-term key was used.
    KeyUsed {
        /// Which key.
        key: KeyRole,
        /// How often since the last such record.
        count: u64,
    },
    /// The token table was read.
    TokensLoaded {
        /// SHA-256 of the table, in hex.
        digest: String,
        /// How many tokens are valid.
        count: u64,
    },
    /// Another TLS certificate was taken.
    CertificateLoaded {
        /// SHA-256 of the leaf, in hex.
        digest: String,
    },
    /// A child process started.
    ChildStarted {
        /// Which.
        child: String,
    },
    /// A child process is gone.
    ChildDied {
        /// Which.
        child: String,
        /// Why, as far as the supervisor saw.
        cause: String,
    },
    /// The oldest records were removed; their hashes stay.
    Pruned {
        /// All records before this index.
        before: u64,
        /// How old the youngest of them was at least, in seconds.
        older_than_s: u64,
        /// Whether the operator overrode the shortest time that is allowed.
        forced: bool,
    },
    /// A worker of one request is gone, as it should be after it.
    WorkerEnded {
        /// Which.
        child: String,
        /// The request that it served, in hex.
        request: String,
    },
    /// The log was read or checked through Cloister.
    LogRead {
        /// Who, by uid.
        uid: u32,
    },
}

/// Facts of a start.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct StartFacts {
    /// Version of Cloister.
    pub version: String,
    /// `full` or `evaluation`.
    pub profile: String,
    /// SHA-256 of the configuration file, in hex.
    pub config_digest: String,
    /// SHA-256 of the compiled policy, in hex.
    pub policy_digest: String,
    /// Effective landlock ABI.
    pub landlock_abi: u32,
}

/// Facts of an opened model.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ModelFacts {
    /// Name in the configuration.
    pub model: String,
    /// SHA-256 of the plaintext GGUF, in hex.
    pub digest: String,
    /// Label of the key that signed it.
    pub signer: String,
    /// Whether the file was encrypted.
    pub sealed: bool,
    /// When it was first admitted, in seconds since 1970, if its signer's certificate has expired since.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub admitted_s: Option<u64>,
}

/// Facts of a request that the supervisor looked up.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct BeginFacts {
    /// The principal's pseudonym.
    pub principal: String,
    /// Its role.
    pub role: String,
    /// Name of the model.
    pub model: String,
    /// SHA-256 of the model, in hex.
    pub model_digest: String,
}

/// Facts of a request as the gateway told them.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct AskedFacts {
    /// `chat` or `completion`.
    pub endpoint: String,
    /// Asked tokens, bucketed; 0 when none were named.
    pub max_tokens: u64,
    /// Whether the answer is streamed.
    pub stream: bool,
}

/// Facts of an end as the worker told them.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct EndFacts {
    /// `stop`, `length`, `cancelled`, `refused` or `failed`.
    pub outcome: String,
    /// Keyed digest of each message, in order.
    pub messages: Vec<KeyedDigest>,
    /// Keyed digest of the answer.
    pub answer: KeyedDigest,
    /// Tokens of the prompt, at most.
    pub prompt_tokens_max: u64,
    /// Tokens of the answer, at most.
    pub completion_tokens_max: u64,
}

/// Why an end is missing.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
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
    /// No valid key.
    KeyInvalid,
    /// The role may not.
    RoleForbids,
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

/// Which long-term key.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum KeyRole {
    /// The age identity that opens models.
    ModelIdentity,
    /// The TLS key.
    Tls,
}

/// The next power of two, so that a count tells no exact length; 0 stays 0.
#[must_use]
pub fn bucket(count: u64) -> u64 {
    if count == 0 { 0 } else { count.checked_next_power_of_two().unwrap_or(u64::MAX) }
}

impl Event {
    /// The event's name in the log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Stop {} => "stop",
            Self::Recovered { .. } => "recovered",
            Self::ModelOpened { .. } => "model_opened",
            Self::ModelRefused { .. } => "model_refused",
            Self::Begin { .. } => "begin",
            Self::End { .. } => "end",
            Self::EndMissing { .. } => "end_missing",
            Self::Refused { .. } => "refused",
            Self::TicketMissing { .. } => "ticket_missing",
            Self::KeyUsed { .. } => "key_used",
            Self::TokensLoaded { .. } => "tokens_loaded",
            Self::CertificateLoaded { .. } => "certificate_loaded",
            Self::ChildStarted { .. } => "child_started",
            Self::ChildDied { .. } => "child_died",
            Self::Pruned { .. } => "pruned",
            Self::WorkerEnded { .. } => "worker_ended",
            Self::LogRead { .. } => "log_read",
        }
    }

    /// The request that the event is about.
    #[must_use]
    pub fn request(&self) -> Option<&str> {
        match self {
            Self::Begin { request, .. }
            | Self::End { request, .. }
            | Self::EndMissing { request, .. }
            | Self::WorkerEnded { request, .. }
            | Self::TicketMissing { request, .. } => Some(request),
            _ => None,
        }
    }
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
    fn records_round_trip_and_unknown_members_are_refused() {
        let record = Record {
            v: SCHEMA_VERSION,
            time_s: 1,
            monotonic_s: 2,
            boot: "ab".into(),
            event: Event::EndMissing { request: "00".into(), cause: MissingCause::WorkerGone },
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        let more = text.replacen("\"v\":1", "\"v\":1,\"prompt\":\"x\"", 1);
        assert!(serde_json::from_str::<Record>(&more).is_err());
    }
}
