//! `cloister.toml`: read once, strictly, by the supervisor only; every default and limit is here.
//!
//! An unknown key, a wrong type or a value out of range is an error that names file, line, key
//! and what to do. Children get what they need by message; nothing else reads this file.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs};

use serde::Deserialize;

use crate::audit::{Mode, Retention};
use crate::ipc::message::{GpuLayers, KvFormat};
use crate::sandbox::LANDLOCK_ABI_FLOOR;

mod devices;
mod error;
mod text;

pub use self::devices::Devices;
pub use self::error::{Error, Fault};

/// Where the configuration is without `--config`.
pub const DEFAULT_FILE: &str = "/etc/cloister/cloister.toml";
/// Where the log is unless the configuration says otherwise.
pub const DEFAULT_AUDIT_FOLDER: &str = "/var/lib/cloister/audit";
/// Where the control socket is unless the configuration says otherwise.
pub const DEFAULT_CONTROL_SOCKET: &str = "/run/cloister/control.sock";
/// Longest configuration file, in bytes.
const FILE_LEN_MAX_BYTES: u64 = 1 << 20;
/// Most models of one appliance; each has a worker, a uid and two channels.
pub const MODELS_COUNT_MAX: usize = 16;
/// Most worker processes at once, of all models: the spawner starts no more.
pub const WORKERS_COUNT_MAX: usize = 56;
/// Most users who must agree to an erasure, and most who may.
const ERASURE_USERS_COUNT_MAX: u32 = 8;
/// Most listeners: they travel as descriptors of one message.
pub const LISTENERS_COUNT_MAX: usize = 8;

/// Which protections hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Started by root: own uids, namespaces, everything in SECURITY.md.
    Full,
    /// Started by a plain user: loopback and Unix sockets only, and `status` lists what is missing.
    Evaluation,
}

impl Profile {
    /// The name as written in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Evaluation => "evaluation",
        }
    }
}

/// Where the gateway listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How weights' activations are held during the arithmetic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// Quantised per block; fast.
    Int8,
    /// The exact mode.
    F32,
}

/// How keys and values are held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kv {
    /// 16-bit floats.
    F16,
    /// 8-bit integers, 32 with a 16-bit scale.
    #[serde(rename = "q8_0")]
    Q8_0,
}

impl Kv {
    /// What children are told.
    #[must_use]
    pub fn format(self) -> KvFormat {
        match self {
            Self::F16 => KvFormat::F16,
            Self::Q8_0 => KvFormat::Q8_0,
        }
    }
}

/// The whole configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from.
    pub file: PathBuf,
    /// SHA-256 of the text that was read from it, in hex.
    pub digest: String,
    /// Which protections hold.
    pub profile: Profile,
    /// Where the gateway listens, in order.
    pub listen: Vec<Listen>,
    /// The certificate chain (PEM); `None` without TLS.
    pub certificate: Option<PathBuf>,
    /// Limits of requests and connections.
    pub limits: Limits,
    /// The models, in the order of the file; the first is the default.
    pub models: Vec<Model>,
    /// Where keys are.
    pub keys: Keys,
    /// The audit log's folder.
    pub audit_folder: PathBuf,
    /// Where a second copy of the log is written.
    pub audit_replica: Option<PathBuf>,
    /// Which copies must take a record.
    pub audit_replica_mode: Mode,
    /// For how long records are kept.
    pub audit_retention: Retention,
    /// The log's name in its checkpoints.
    pub audit_origin: String,
    /// Where the TPM's counter of starts is written before each start; `None` where none is kept.
    pub audit_tpm_counter: Option<PathBuf>,
    /// The group whose members may announce that they read the log.
    pub audit_readers_group: Option<u32>,
    /// Who must agree to an erasure.
    pub erasure: Erasure,
    /// The token table.
    pub tokens_file: PathBuf,
    /// The control socket.
    pub control_socket: PathBuf,
    /// How workers compute.
    pub worker: Worker,
    /// The folder of NVIDIA's libraries, where it is not one that is looked into anyway.
    pub gpu_driver: Option<PathBuf>,
    /// What is asked of the kernel.
    pub sandbox: Sandbox,
    /// The user ids of the parts; used by profile `full` only.
    pub users: Users,
}

/// Limits of requests and connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest request body, in bytes.
    pub body_len_max_bytes: u32,
    /// Time for a whole request to arrive, in milliseconds.
    pub read_deadline_ms: u32,
    /// Time a client may leave its answer unread, in milliseconds.
    pub write_deadline_ms: u32,
    /// Most connections at once.
    pub connections_max: u16,
    /// Most connections of one peer at once.
    pub connections_per_peer_max: u16,
    /// Most requests at once.
    pub requests_max: u16,
    /// Most requests of one key at once.
    pub requests_per_key_max: u16,
    /// Time from ticket to end, in milliseconds.
    pub request_deadline_ms: u32,
    /// Most tokens of one answer; 0 leaves it to the context.
    pub completion_tokens_max: u32,
    /// Time in which a worker or the gateway must answer that it works, in milliseconds.
    pub hang_ms: u32,
}

impl Limits {
    /// Most bytes of text that all requests together bring.
    #[must_use]
    pub fn texts_len_max_bytes(&self) -> u64 {
        u64::from(self.requests_max) * u64::from(self.body_len_max_bytes)
    }

    /// Time in which a child must answer that it works.
    #[must_use]
    pub fn hang(&self) -> Duration {
        Duration::from_millis(self.hang_ms.into())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_len_max_bytes: 4 << 20,
            read_deadline_ms: 30_000,
            write_deadline_ms: 60_000,
            connections_max: 256,
            connections_per_peer_max: 64,
            requests_max: 32,
            requests_per_key_max: 8,
            request_deadline_ms: 600_000,
            completion_tokens_max: 0,
            hang_ms: 120_000,
        }
    }
}

/// One model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Model {
    /// Name in the API.
    pub name: String,
    /// The `.gguf` or `.gguf.age` file.
    pub file: PathBuf,
    /// The signature bundle.
    pub signature: PathBuf,
    /// Whether it is served although no signature holds: an override that is recorded.
    pub allow_unsigned: bool,
    /// Layers that a card computes; none if no card is used.
    pub gpu_layers: Option<GpuLayers>,
    /// Which cards.
    pub gpu_devices: Devices,
}

impl Model {
    /// Whether the file is an age file.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.file.extension().is_some_and(|extension| extension == "age")
    }
}

/// Where keys are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keys {
    /// Folder of public keys whose signatures on models are believed.
    pub trust_folder: PathBuf,
    /// The age identity that opens `.gguf.age` files.
    pub identity: PathBuf,
    /// The Ed25519 key that signs the audit log's checkpoints.
    pub audit: PathBuf,
    /// Public keys that signed the log before.
    pub audit_retired: Option<PathBuf>,
    /// The P-256 key of the TLS certificate.
    pub tls: Option<PathBuf>,
    /// The key that the principals' keys are wrapped under.
    pub wrapping: PathBuf,
}

/// Who must agree before a principal's key is destroyed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Erasure {
    /// How many users of the machine must ask for the same erasure.
    pub confirmations: u32,
    /// Users, beside root and the supervisor's own, who may ask for one, and for nothing else.
    pub operators: Vec<u32>,
}

/// How long a worker process lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifetime {
    /// As long as its model is served: one serves all requests.
    Model,
    /// For one request, whatever its outcome: nothing of it is left for the next.
    Request,
}

/// How workers compute.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    /// How long a worker process lives.
    pub lifetime: Lifetime,
    /// Fresh workers that stand ready beside those that serve, per model; with `Request` alone.
    pub spare: u16,
    /// Compute threads of each worker; 0 shares the machine's among the models.
    pub threads: u16,
    /// Whether each thread keeps to one processor, where there is one for every thread.
    pub pin: bool,
    /// The memory node that holds weights, keys and values, and whose processors compute.
    pub numa_node: MemoryNode,
    /// How activations are held.
    pub activations: Activations,
    /// How keys and values are held; the exact mode takes 32-bit floats whatever this says, and
    /// is refused with anything but the default.
    pub kv: Kv,
    /// Longest context, in tokens; 0 takes the model's own.
    pub context: u32,
    /// Most requests computed at once, per model.
    pub sequences: u16,
    /// Tokens of earlier requests that are kept for each principal, per model; 0 keeps none.
    pub prefix_tokens: u32,
    /// For how many principals: the first of the token table that are not revoked.
    pub prefix_principals: u16,
    /// Time that they are kept after a principal's last request, in seconds.
    pub prefix_keep_s: u32,
    /// Most tokens of an answer that are guessed and verified at once; 0 guesses none.
    pub guess_tokens: u16,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            lifetime: Lifetime::Model,
            spare: 1,
            threads: 0,
            pin: true,
            numa_node: MemoryNode::Any,
            activations: Activations::Int8,
            kv: Kv::F16,
            context: 8192,
            sequences: 4,
            prefix_tokens: 4096,
            prefix_principals: 4,
            prefix_keep_s: 600,
            guess_tokens: 0,
        }
    }
}

impl Worker {
    /// Worker processes of a model.
    #[must_use]
    pub fn count(&self) -> u16 {
        match self.lifetime {
            Lifetime::Model => 1,
            Lifetime::Request => self.sequences.saturating_add(self.spare),
        }
    }

    /// Those of them that compute at once.
    #[must_use]
    pub fn computing_count(&self) -> u16 {
        match self.lifetime {
            Lifetime::Model => 1,
            Lifetime::Request => self.sequences,
        }
    }
}

/// Which memory node a model is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryNode {
    /// The system chooses, for every page.
    Any,
    /// The one with most memory left.
    Auto,
    /// This one.
    Number(u16),
}

impl<'de> Deserialize<'de> for MemoryNode {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl serde::de::Visitor<'_> for Either {
            type Value = MemoryNode;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a node's number, \"auto\" or \"any\"")
            }

            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<MemoryNode, E> {
                let wrong = || E::invalid_value(serde::de::Unexpected::Signed(value), &self);
                u16::try_from(value).map(MemoryNode::Number).map_err(|_| wrong())
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<MemoryNode, E> {
                match value {
                    "any" => Ok(MemoryNode::Any),
                    "auto" => Ok(MemoryNode::Auto),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(value), &self)),
                }
            }
        }
        from.deserialize_any(Either)
    }
}

/// What is asked of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sandbox {
    /// The oldest landlock ABI to serve under.
    pub landlock_abi_min: u32,
    /// What happens where memory could be swapped out.
    pub swap: Swap,
}

/// What happens where memory could be written to a swap device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Swap {
    /// Start and `status` say so.
    Tell,
    /// Nothing starts.
    Refuse,
    /// Every process locks its memory, so that none of it can be; where that is not allowed, nothing starts.
    Lock,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self { landlock_abi_min: LANDLOCK_ABI_FLOOR, swap: Swap::Tell }
    }
}

/// The user ids (and equal group ids) of the parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Users {
    /// The supervisor after start.
    pub supervisor: u32,
    /// The gateway.
    pub gateway: u32,
    /// The opener.
    pub opener: u32,
    /// The loader.
    pub loader: u32,
    /// The first worker; each further one has the next.
    pub worker_first: u32,
}

impl Default for Users {
    /// From a range that systemd's allocation table leaves unused (60706 to 61183).
    fn default() -> Self {
        Self {
            supervisor: 60_800,
            gateway: 60_801,
            opener: 60_802,
            loader: 60_803,
            worker_first: 60_810,
        }
    }
}

impl Config {
    /// Where the principals' keys are: beside the log, not in it.
    #[must_use]
    pub fn principals_folder(&self) -> PathBuf {
        self.audit_folder.parent().unwrap_or(Path::new(".")).join("principals")
    }

    /// Reads and checks `file`; `is_root` chooses the profile, and `credentials` is the folder of
    /// systemd's, if there is one.
    ///
    /// # Errors
    ///
    /// [`Error`] names the file, the line, the key and what to do.
    pub fn read(file: &Path, is_root: bool, credentials: Option<&Path>) -> Result<Self, Error> {
        let io = |error| Error {
            file: file.to_owned(),
            line: 0,
            key: String::new(),
            fault: Fault::Io(error),
        };
        let mut text = String::new();
        let opened = fs::File::open(file).map_err(io)?;
        opened.take(FILE_LEN_MAX_BYTES + 1).read_to_string(&mut text).map_err(io)?;
        if text.len() as u64 > FILE_LEN_MAX_BYTES {
            return Err(Error {
                file: file.to_owned(),
                line: 0,
                key: String::new(),
                fault: Fault::TooLong,
            });
        }
        Self::parse(file, &text, is_root, credentials)
    }
}

#[cfg(test)]
mod tests;
