//! Why the supervisor does not start, or stops: each with the file or step it is about.

use std::path::PathBuf;
use std::{fmt, io};

use super::compute::Misplaced;
use super::opening::Refusal;
use super::{config, secret_file, tls, tokens};

/// A fault of the start. No variant holds a key, a token or a client's text.
#[derive(Debug)]
pub(super) enum Error {
    /// An argument of the command line.
    Argument(String),
    /// The configuration.
    Config(config::Error),
    /// A secret file.
    Secret(secret_file::Error),
    /// The identity file holds no identity, or several.
    Identity(PathBuf),
    /// The TLS key or certificate.
    Tls(PathBuf, tls::Error),
    /// The token table.
    Tokens(tokens::Error),
    /// The trust folder or a model file.
    Package(crate::package::Error),
    /// The TPM's counter of starts.
    TpmCounter(PathBuf, TpmFault),
    /// The audit log or its key.
    Audit(PathBuf, crate::audit::Error),
    /// An address cannot be listened on.
    Listen(String, io::Error),
    /// The service manager handed down listeners that the configuration does not name.
    ListenersLeft(usize),
    /// The service manager's socket cannot be reached.
    Manager(io::Error),
    /// The control socket cannot be made.
    Control(PathBuf, io::Error),
    /// The auditors' socket cannot be made.
    Readers(PathBuf, io::Error),
    /// A folder cannot be made.
    Folder(PathBuf, io::Error),
    /// A step of giving up powers.
    Sandbox(crate::sandbox::Error),
    /// The spawner.
    Spawner(crate::spawner::Error),
    /// A child could not be started.
    Spawn(crate::sandbox::Role, crate::spawner::message::Failed),
    /// A channel to a child.
    Channel(crate::ipc::Error),
    /// A model was refused.
    Model(String, ModelFault),
    /// The memory node that was asked for.
    Node(Misplaced),
    /// A model's layers cannot go to a card: the configuration, the model, why.
    Card(PathBuf, String, String),
    /// Memory could be swapped out, which the configuration refuses.
    Swap,
    /// Memory cannot be locked: no more than so many bytes of it.
    Lock(u64),
    /// A part did not come up.
    NotReady(&'static str),
    /// A system call failed.
    System(&'static str, nix::errno::Errno),
    /// Stopped by the operator before it served.
    Stopped,
}

/// Why the TPM's counter of starts is not taken.
#[derive(Debug)]
pub(super) enum TpmFault {
    /// Its file is not there, or somebody else could have written it.
    File(crate::package::Error),
    /// It holds no number.
    Text,
}

impl fmt::Display for TpmFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => write!(f, "{error}"),
            Self::Text => f.write_str("it holds no number"),
        }
    }
}

/// Why a model was refused.
#[derive(Debug)]
pub(super) enum ModelFault {
    /// Its signature.
    Signature(crate::package::Error),
    /// Its bytes or content.
    Refused(Refusal),
}

impl fmt::Display for ModelFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signature(error) => {
                write!(f, "{error}")?;
                error.fix().map_or(Ok(()), |fix| write!(f, "; {fix}"))
            }
            Self::Refused(refusal) => write!(f, "{refusal}"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(text) => write!(f, "{text}; usage: cloister-supervisor [--config FILE]"),
            Self::Config(error) => write!(f, "{error}"),
            Self::Secret(error) => write!(f, "{error}"),
            Self::Identity(path) => write!(
                f,
                "{}: holds not exactly one age identity; make one with cloister keygen",
                path.display()
            ),
            Self::Tls(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Tokens(error) => write!(f, "{error}"),
            Self::Package(error) => {
                write!(f, "{error}")?;
                error.fix().map_or(Ok(()), |fix| write!(f, "; {fix}"))
            }
            Self::TpmCounter(path, fault) => write!(
                f,
                "audit.tpm_counter {}: {fault}; nothing starts without it: \
                 systemctl status cloister-tpm-counter.service, or take the setting out",
                path.display()
            ),
            Self::Audit(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Listen(address, error) => write!(f, "listen on {address}: {error}"),
            Self::ListenersLeft(count) => write!(
                f,
                "the service manager handed down {count} sockets that server.listen does not \
                 name; write their addresses there, or disable the socket unit"
            ),
            Self::Manager(error) => write!(f, "NOTIFY_SOCKET: {error}"),
            Self::Control(path, error) => {
                write!(f, "control socket {}: {error}", path.display())
            }
            Self::Readers(path, error) => write!(
                f,
                "the auditors' socket {}: {error}; have root start Cloister, or its user be a member of \
                 audit.readers_group",
                path.display()
            ),
            Self::Folder(path, error) => write!(f, "folder {}: {error}", path.display()),
            Self::Sandbox(error) => write!(f, "{error}"),
            Self::Spawner(error) => write!(f, "spawner: {error}"),
            Self::Spawn(role, failed) => write!(f, "{role}: {failed}"),
            Self::Channel(error) => write!(f, "channel: {error}"),
            Self::Model(name, fault) => {
                write!(f, "model {name} is refused: {fault}; every check: cloister model explain")
            }
            Self::Card(file, model, why) => {
                write!(f, "{}: model.gpu_layers of model {model}: {why}", file.display())
            }
            Self::Node(misplaced) => write!(f, "worker.numa_node: {misplaced}"),
            Self::Swap => write!(f, "sandbox.swap = \"refuse\": {}", super::swap::MISSING),
            Self::Lock(limit) => write!(
                f,
                "sandbox.swap = \"lock\": no more than {limit} bytes may be locked (RLIMIT_MEMLOCK), and the \
                 limit cannot be raised here; LimitMEMLOCK=infinity in the unit, as the shipped one has, or \
                 start with CAP_SYS_RESOURCE"
            ),
            Self::NotReady(part) => write!(f, "the {part} did not come up"),
            Self::System(action, errno) => write!(f, "{action}: {}", errno.desc()),
            Self::Stopped => write!(f, "stopped before it served"),
        }
    }
}
