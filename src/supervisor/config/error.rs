//! What can be wrong with a configuration file, each with what to do about it.

use std::path::PathBuf;
use std::{fmt, io};

use super::devices::DEVICES_COUNT_MAX;
use super::{ERASURE_USERS_COUNT_MAX, LISTENERS_COUNT_MAX, MODELS_COUNT_MAX, WORKERS_COUNT_MAX};
use crate::ipc::message::NAME_LEN_MAX_BYTES;

/// What is wrong with a configuration.
#[derive(Debug)]
pub struct Error {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; 0 when it is about the whole file.
    pub line: usize,
    /// The key as `section.key`; empty when the text does not parse that far.
    pub key: String,
    /// What is wrong.
    pub fault: Fault,
}

/// The kinds of wrong configuration.
#[derive(Debug)]
pub enum Fault {
    /// The file cannot be read.
    Io(io::Error),
    /// Over a mebibyte.
    TooLong,
    /// Not TOML, an unknown key or a wrong type, as the TOML reader says it.
    Form(String),
    /// No `[[model]]`.
    NoModel,
    /// More than [`MODELS_COUNT_MAX`] models.
    TooManyModels,
    /// A name that is empty, too long or of other characters.
    ModelName,
    /// Two models of one name.
    ModelNameTwice,
    /// Not `.gguf` or `.gguf.age`.
    ModelFile,
    /// Not `address:port` or `unix:/path`.
    Listen,
    /// No listener or more than [`LISTENERS_COUNT_MAX`].
    ListenCount,
    /// A TCP address that others reach, without TLS.
    TlsRequired,
    /// A certificate without a key, or the other way.
    TlsHalf,
    /// Evaluation profile with an address that others reach.
    EvaluationNotLoopback,
    /// Profile `full` asked without root.
    FullNeedsRoot,
    /// Profile `evaluation` asked by root.
    EvaluationAsRoot,
    /// A number out of its range.
    Range(std::ops::RangeInclusive<u32>),
    /// No card, more than 16, or one twice.
    Devices,
    /// More than [`WORKERS_COUNT_MAX`] worker processes.
    TooManyWorkers,
    /// 8-bit keys and values asked together with the exact mode.
    KvInExactMode,
    /// Two parts with one user id, or root.
    Users,
    /// A credential asked, but systemd gave no folder of credentials.
    NoCredentials,
    /// Fewer users may ask for an erasure than must, or more than there may be.
    ErasureUsers {
        /// How many must.
        needed: u32,
    },
    /// A name of a log with other than printable characters or a plus sign.
    Origin,
    /// How copies are written is said, but there is one.
    NoReplica,
    /// No time, or less than six months.
    Retention,
    /// Records would be removed sooner than they may be.
    RetentionOrder {
        /// For how long they must be kept, in seconds.
        min_s: u64,
    },
    /// Records must be kept longer than the preset lets them.
    RetentionBeyondPreset,
}

impl Fault {
    /// What is wrong in `[audit]`.
    fn say_of_audit(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ErasureUsers { needed } => write!(
                f,
                "{needed} users must ask for an erasure; name as many but one (root may ask too), \
                 at most {ERASURE_USERS_COUNT_MAX}"
            ),
            Self::NoReplica => write!(f, "there is one copy; set audit.replica too"),
            Self::Retention => write!(
                f,
                "give a time of six months or more, as \"6y\", \"18m\" or \"200d\" (less needs \
                 cloister audit prune --force)"
            ),
            Self::RetentionOrder { min_s } => write!(
                f,
                "shorter than the {} days of audit.retention_min (its preset's, or \"6y\", unless \
                 set); set that lower",
                min_s / 86_400
            ),
            Self::RetentionBeyondPreset => write!(
                f,
                "longer than the preset keeps records; set audit.retention_max too, or remove \
                 audit.retention_preset"
            ),
            Self::Origin => write!(f, "use 1 to 128 letters, digits and . _ - /"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "cannot be read: {error}; give another with --config"),
            Self::TooLong => write!(f, "is over 1 MiB; it holds something else"),
            Self::Form(text) => write!(f, "{text}"),
            Self::NoModel => write!(f, "there is no model; add a [[model]] with file = \"...\""),
            Self::TooManyModels => {
                write!(f, "more than {MODELS_COUNT_MAX} models; remove some")
            }
            Self::ModelName => {
                write!(f, "not a name; use 1 to {NAME_LEN_MAX_BYTES} letters, digits and . _ - : /")
            }
            Self::ModelNameTwice => write!(f, "two models of this name; rename one"),
            Self::ModelFile => {
                write!(f, "not a model file; give one that ends in .gguf or .gguf.age")
            }
            Self::Listen => write!(f, "not an address; use \"127.0.0.1:8443\" or \"unix:/path\""),
            Self::ListenCount => write!(f, "give 1 to {LISTENERS_COUNT_MAX} addresses"),
            Self::TlsRequired => write!(
                f,
                "an address that others reach needs TLS; set server.certificate and keys.tls \
                 (cloister keygen makes both)"
            ),
            Self::TlsHalf => write!(f, "set both server.certificate and keys.tls, or neither"),
            Self::EvaluationNotLoopback => write!(
                f,
                "the evaluation profile serves loopback and Unix sockets only; start as root \
                 for the full profile, or listen on 127.0.0.1"
            ),
            Self::FullNeedsRoot => {
                write!(f, "the full profile needs root; start as root, or remove the line")
            }
            Self::EvaluationAsRoot => {
                write!(f, "root gets the full profile; remove the line, or start as a plain user")
            }
            Self::Range(range) => {
                write!(f, "give a number from {} to {}", range.start(), range.end())
            }
            Self::Devices => write!(f, "give 1 to {DEVICES_COUNT_MAX} cards, each once"),
            Self::TooManyWorkers => write!(
                f,
                "models times (sequences + spare) is more than {WORKERS_COUNT_MAX} processes; lower \
                 worker.sequences, or set worker.lifetime = \"model\""
            ),
            Self::KvInExactMode => write!(
                f,
                "the exact mode (worker.activations = \"f32\") keeps 32-bit floats; remove the \
                 line, or set worker.activations = \"int8\""
            ),
            Self::Users => write!(f, "give each part a user id of its own, none of them 0"),
            Self::NoCredentials => write!(
                f,
                "systemd passed no credentials; add LoadCredential= to the unit, or give a path"
            ),
            _ => self.say_of_audit(f),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.fault)
    }
}

impl std::error::Error for Error {}
