//! The facts of each event. What a member means stands in `record.schema.json` too.

use serde::{Deserialize, Serialize};

use super::KeyedDigest;
use super::words::{
    AuthenticationCause, ClockDirection, ConfigPart, KeyRole, LogAction, MissingCause,
    RefusalReason, ReloadOutcome, RetentionPreset, UnaskedCause, WeakSetting,
};

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
    /// SHA-256 over the digests of `programs`, in hex.
    pub build_digest: String,
    /// The programs of this start.
    pub programs: ProgramFacts,
    /// Effective landlock ABI.
    pub landlock_abi: u32,
    /// For how long records are kept.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retention: Option<RetentionTimes>,
    /// The TPM's counter of starts, where one is kept.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tpm_counter: Option<u64>,
}

/// For how long records are kept.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RetentionTimes {
    /// By whose rules, where a preset was chosen.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub preset: Option<RetentionPreset>,
    /// At least, in seconds.
    pub min_s: u64,
    /// At most, in seconds, where they are removed at all.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_s: Option<u64>,
}

/// SHA-256 of each program, in hex.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ProgramFacts {
    /// `cloister-supervisor`.
    pub supervisor: String,
    /// `cloister-gateway`.
    pub gateway: String,
    /// `cloister-worker`.
    pub worker: String,
    /// `cloister-worker-gpu`, where a model uses a card.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub worker_gpu: Option<String>,
}

/// Facts of a start after a run that did not stop in order.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RecoveredFacts {
    /// Bytes of an unfinished write that were dropped.
    pub dropped_bytes: u64,
}

/// Facts of events that were dropped.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct DroppedFacts {
    /// How many.
    pub count: u64,
}

/// Facts of a change between two starts.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ChangeFacts {
    /// What has changed.
    pub part: ConfigPart,
    /// SHA-256 at the last start, in hex.
    pub before: String,
    /// SHA-256 now, in hex.
    pub after: String,
}

/// Facts of an override.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct OverrideFacts {
    /// Which setting.
    pub setting: WeakSetting,
    /// The model that it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<String>,
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

/// Facts of a refused model.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ModelRefusedFacts {
    /// Name in the configuration.
    pub model: String,
    /// Which check failed.
    pub check: String,
}

/// What the loader said of a model that it refused.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct LoaderFacts {
    /// Which check failed, in its words.
    pub check: String,
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
    /// SHA-256 of the compiled policy, in hex.
    pub policy_digest: String,
    /// SHA-256 over the digests of the programs, in hex.
    pub build_digest: String,
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

/// Facts of an end that the supervisor saw.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct EndedFacts {
    /// Seconds from begin to end, bucketed.
    pub duration_s_max: u64,
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
    /// Keyed digest of the parameters.
    pub parameters: KeyedDigest,
    /// Tokens of the prompt, at most.
    pub prompt_tokens_max: u64,
    /// Tokens of the answer, at most.
    pub completion_tokens_max: u64,
}

/// Facts of a missing end.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct EndMissingFacts {
    /// What the supervisor saw instead.
    pub cause: MissingCause,
}

/// Facts of refused requests.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RefusedFacts {
    /// Why.
    pub reason: RefusalReason,
    /// How many since the last such record.
    pub count: u64,
    /// Whose.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub principal: Option<String>,
}

/// Facts of failed authentications.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct AuthenticationFacts {
    /// Why.
    pub cause: AuthenticationCause,
    /// How many since the last such record.
    pub count: u64,
    /// Whose the key was, when it was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub principal: Option<String>,
}

/// What the gateway said of presented keys that it asked nobody about.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct UnaskedFacts {
    /// Why.
    pub cause: UnaskedCause,
    /// How many since the last such record.
    pub count: u64,
}

/// Facts of a request without a ticket.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TicketFacts {
    /// Which model's worker.
    pub model: String,
}

/// What the worker said of a request without a ticket.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TicketRequestFacts {
    /// A keyed digest of the request's name, under a key of this start.
    pub request: String,
}

/// Facts of a key that was made or destroyed.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct KeyFacts {
    /// Which key.
    pub key: KeyRole,
    /// Its name.
    pub id: String,
}

/// Facts of uses of a key.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct KeyUseFacts {
    /// Which key.
    pub key: KeyRole,
    /// How often since the last such record.
    pub count: u64,
}

/// Facts of a rotation.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RotationFacts {
    /// Which key.
    pub key: KeyRole,
    /// The old one: its public key where there is one, or its name.
    pub before: String,
    /// The new one.
    pub after: String,
    /// Who asked, by uid.
    pub uid: u32,
    /// Records of the log under the old key, this one among them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub size: Option<u64>,
    /// Keys that were wrapped anew.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub count: Option<u64>,
}

/// Facts of a token table.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TokensFacts {
    /// SHA-256 of the table, in hex.
    pub digest: String,
    /// SHA-256 of the table before it, in hex.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<String>,
    /// How many tokens are valid.
    pub count: u64,
}

/// Facts of a certificate.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct CertificateFacts {
    /// SHA-256 of the leaf, in hex.
    pub digest: String,
    /// SHA-256 of the leaf before it, in hex.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<String>,
}

/// Facts of a reload.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ReloadFacts {
    /// Whether the files are in force now.
    pub outcome: ReloadOutcome,
    /// Who asked, by uid; absent for a signal.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uid: Option<u32>,
    /// Which check failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub check: Option<String>,
}

/// Which child.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ChildFacts {
    /// Its name.
    pub child: String,
}

/// Facts of a child's end.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct DeathFacts {
    /// Its name.
    pub child: String,
    /// Why, as far as the supervisor saw.
    pub cause: String,
}

/// What a child said of its panic.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct PanicFacts {
    /// Where.
    pub panic: String,
}

/// Facts of a broken filter.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ViolationFacts {
    /// Which child.
    pub child: String,
    /// The signal that ended it: 31, `SIGSYS`.
    pub signal: u32,
}

/// Facts of a jump of the clock.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ClockFacts {
    /// Which way.
    pub direction: ClockDirection,
    /// By at most so many seconds, bucketed.
    pub by_s_max: u64,
}

/// Who read the log.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ReaderFacts {
    /// By uid, as the kernel says.
    pub uid: u32,
    /// How often since the last such record, where that is more than once.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub count: Option<u64>,
}

/// What the command line said of a reading.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct LogReadFacts {
    /// How the log was read.
    pub action: LogAction,
    /// How many records were shown, at most.
    pub records_max: u64,
    /// The earliest time that was asked for, in seconds since 1970; absent for the log's beginning.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from_s: Option<u64>,
    /// The latest; absent for the log's end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to_s: Option<u64>,
}

/// Facts of a retention run.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RetentionFacts {
    /// All records before this index are gone.
    pub before: u64,
    /// How old the youngest of them was at least, in seconds.
    pub older_than_s: u64,
    /// Whether the operator overrode the shortest time that is allowed.
    pub forced: bool,
}

/// Facts of an erasure that waits.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ErasureAskedFacts {
    /// The principal's pseudonym.
    pub principal: String,
    /// Who asked, by uid.
    pub uid: u32,
    /// How many operators have asked.
    pub confirmations: u32,
    /// How many must.
    pub needed: u32,
}

/// Facts of an erasure.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ErasedFacts {
    /// The principal's pseudonym.
    pub principal: String,
    /// Who asked, by uid; empty when a start finished what was asked before.
    pub by: Vec<u32>,
}
