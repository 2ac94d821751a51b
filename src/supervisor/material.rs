//! What is opened by name while the supervisor still may: keys, models, signatures, listeners.
//!
//! Everything here runs before the powers are dropped and parses nothing that a client or a model
//! author wrote.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::config::{Config, Listen, Model, Profile};
use super::error::{Error, TpmFault};
use super::manager::Manager;
use super::secret_file;
use super::tls::TlsKey;
use super::tokens::TokenTable;
use crate::audit::{Signer, Verifier, WrappingKey};
use crate::ipc::message::ListenerKind;
use crate::package::bundle::read_bundle;
use crate::package::files::{
    Overwrite, Ownership, open_regular, read_small, read_small_open, write_new,
};
use crate::package::keys::Identity;
use crate::package::quarantine;
use crate::package::trust::TrustStore;

/// Longest key or certificate file, in bytes.
pub(super) const KEY_LEN_MAX_BYTES: usize = 64 << 10;
/// Longest file of a counter, in bytes: 20 digits and a line's end.
const COUNTER_LEN_MAX_BYTES: u64 = 21;

/// Long-term keys and tables.
pub(super) struct Keys {
    pub(super) audit: Signer,
    /// Keys that signed the log before.
    pub(super) audit_retired: Option<Verifier>,
    pub(super) identity: Option<Identity>,
    pub(super) tls: Option<TlsKey>,
    /// The certificate chain in DER; empty without TLS.
    pub(super) certificates: Vec<Vec<u8>>,
    pub(super) tokens: TokenTable,
    pub(super) wrapping: WrappingKey,
    /// Whether this start made it.
    pub(super) is_wrapping_fresh: bool,
    /// The TPM's counter of starts, where one is kept.
    pub(super) tpm_counter: Option<u64>,
}

/// A model that is about to be opened.
pub(super) struct ModelFile {
    pub(super) file: File,
    /// Its signature, not verified; `None` when it is served unsigned. An error is a refusal that is
    /// recorded once there is a log.
    pub(super) bundle: Result<Option<Zeroizing<Vec<u8>>>, crate::package::Error>,
}

/// Reads the keys; their files must belong to root or to whom the supervisor was started by.
pub(super) fn read_keys(config: &Config) -> Result<Keys, Error> {
    let owner = owner_uid(config.profile);
    let audit = secret(&config.keys.audit, owner)?;
    let audit = Signer::from_pem(&config.audit_origin, audit.expose())
        .map_err(|error| Error::Audit(config.keys.audit.clone(), error))?;
    let audit_retired = match &config.keys.audit_retired {
        Some(path) => Some(read_retired(path)?),
        None => None,
    };
    let needs_identity = config.models.iter().any(Model::is_encrypted);
    let identity = match needs_identity {
        true => Some(read_identity(&config.keys.identity, owner)?),
        false => None,
    };
    let (tls, certificates) = match (&config.keys.tls, &config.certificate) {
        (Some(key), Some(certificate)) => {
            let secret = secret(key, owner)?;
            let chain = read_small(certificate, "certificate", KEY_LEN_MAX_BYTES as u64)
                .map_err(Error::Package)?;
            let (key, chain) = TlsKey::read(&secret, &chain)
                .map_err(|error| Error::Tls(certificate.clone(), error))?;
            (Some(key), chain)
        }
        _ => (None, Vec::new()),
    };
    let tokens = TokenTable::read(&config.tokens_file, owner).map_err(Error::Tokens)?;
    let (wrapping, is_wrapping_fresh) = wrapping_key(config, owner)?;
    Ok(Keys {
        audit,
        audit_retired,
        identity,
        tls,
        certificates,
        tokens,
        wrapping,
        is_wrapping_fresh,
        tpm_counter: read_tpm_counter(config, owner)?,
    })
}

/// Reads the TPM's counter of starts: a number that nobody but root, or whom the supervisor was started by,
/// could have written.
fn read_tpm_counter(config: &Config, owner: u32) -> Result<Option<u64>, Error> {
    let Some(path) = &config.audit_tpm_counter else { return Ok(None) };
    let fault = |fault| Error::TpmCounter(path.clone(), fault);
    let package = |error| fault(TpmFault::File(error));
    let file = open_regular(path).map_err(package)?;
    Ownership::of(&[owner]).check(&file, path).map_err(package)?;
    let text =
        read_small_open(&file, path, "TPM counter", COUNTER_LEN_MAX_BYTES).map_err(package)?;
    let digits = std::str::from_utf8(&text).unwrap_or_default().trim_end_matches('\n');
    let is_plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let counter = digits.parse().ok().filter(|_| is_plain);
    counter.map(Some).ok_or_else(|| fault(TpmFault::Text))
}

/// Reads the wrapping key, or makes it where there is none; whether there is anything that is wrapped under
/// another is seen when the principals' folder is opened, by its own user.
fn wrapping_key(config: &Config, owner: u32) -> Result<(WrappingKey, bool), Error> {
    let path = &config.keys.wrapping;
    let fault = |error| Error::Audit(path.clone(), error);
    let is_fresh = secret_file::open(path, owner).is_err_and(|error| error.is_absent());
    if is_fresh {
        let text = WrappingKey::generate().map_err(fault)?;
        write_new(path, 0o600, Overwrite::No, text.expose()).map_err(Error::Package)?;
    }
    let text = secret(path, owner)?;
    Ok((WrappingKey::parse(text.expose()).map_err(fault)?, is_fresh))
}

/// Who may own secret files, beside root.
pub(super) fn owner_uid(profile: Profile) -> u32 {
    match profile {
        Profile::Full => 0,
        Profile::Evaluation => nix::unistd::geteuid().as_raw(),
    }
}

fn secret(path: &Path, owner_uid: u32) -> Result<crate::secret::Secret, Error> {
    let file = secret_file::open(path, owner_uid).map_err(Error::Secret)?;
    file.read_to_end(KEY_LEN_MAX_BYTES).map_err(Error::Secret)
}

/// Reads the public keys that signed the log before.
fn read_retired(path: &Path) -> Result<Verifier, Error> {
    let text =
        read_small(path, "retired audit keys", KEY_LEN_MAX_BYTES as u64).map_err(Error::Package)?;
    let text = String::from_utf8_lossy(&text);
    Verifier::parse(&text).map_err(|error| Error::Audit(path.to_owned(), error))
}

fn read_identity(path: &Path, owner_uid: u32) -> Result<Identity, Error> {
    let text = secret(path, owner_uid)?;
    Identity::parse(text.expose()).ok_or_else(|| Error::Identity(path.to_owned()))
}

/// Opens the trust folder and the model files, and reads their signatures.
pub(super) fn open_models(config: &Config) -> Result<(Option<TrustStore>, Vec<ModelFile>), Error> {
    let ownership = Ownership::of(&[owner_uid(config.profile)]);
    let needs_trust = config.models.iter().any(|model| !model.allow_unsigned);
    let has_trust = config.keys.trust_folder.is_dir();
    let trust = match needs_trust || has_trust {
        true => {
            Some(TrustStore::open(&config.keys.trust_folder, &ownership).map_err(Error::Package)?)
        }
        false => None,
    };
    let mut files = Vec::new();
    for model in &config.models {
        let file = open_regular(&model.file).map_err(Error::Package)?;
        let bundle = match &trust {
            Some(_) => bundle_of(model),
            None => Ok(None),
        };
        let bundle = quarantine::check(&model.file).and(bundle);
        files.push(ModelFile { file, bundle });
    }
    Ok((trust, files))
}

/// Reads a model's bundle; the override takes a bundle that is not there, never a wrong one.
fn bundle_of(model: &Model) -> Result<Option<Zeroizing<Vec<u8>>>, crate::package::Error> {
    if model.allow_unsigned && fs::symlink_metadata(&model.signature).is_err() {
        return Ok(None);
    }
    read_bundle(&model.signature).map(Some)
}

/// Binds the listeners, in order, but for those that the service manager hands down.
pub(super) fn bind_listeners(
    config: &Config,
    manager: &mut Manager,
) -> Result<Vec<(ListenerKind, OwnedFd)>, Error> {
    let mut listeners = Vec::new();
    for listen in &config.listen {
        let fault = |source| Error::Listen(listen.to_string(), source);
        let (kind, fd) = match listen {
            Listen::Tcp(address) => {
                let listener = match manager.take_listener(listen) {
                    Some(inherited) => TcpListener::from(inherited),
                    None => TcpListener::bind(address).map_err(fault)?,
                };
                listener.set_nonblocking(true).map_err(fault)?;
                let kind = match config.certificate {
                    Some(_) => ListenerKind::Tls,
                    None => ListenerKind::PlainLoopback,
                };
                (kind, listener.into())
            }
            Listen::Unix(path) => {
                let listener = match manager.take_listener(listen) {
                    Some(inherited) => UnixListener::from(inherited),
                    None => bind_unix(path).map_err(fault)?,
                };
                listener.set_nonblocking(true).map_err(fault)?;
                (ListenerKind::Unix, listener.into())
            }
        };
        listeners.push((kind, fd));
    }
    match manager.listeners_left() {
        0 => Ok(listeners),
        left => Err(Error::ListenersLeft(left)),
    }
}

/// Binds a Unix socket in the place of one that nobody listens on. Whoever reaches the folder may
/// connect: the API's tokens decide.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt as _;
    use std::os::unix::net::UnixStream;
    if let Ok(facts) = fs::symlink_metadata(path) {
        if !facts.file_type().is_socket() || UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Makes the folders that the supervisor writes to, as its own user's.
pub(super) fn make_folders(config: &Config) -> Result<(), Error> {
    // Auditors may be let into the log by an access list, which shows as the group's bits; nobody else
    // is, and nobody at all into what else is kept.
    let logs = std::iter::once(&config.audit_folder).chain(&config.audit_replica);
    let logs = logs.map(|folder| (folder.clone(), 0o7027));
    let others =
        [config.principals_folder(), admissions_folder(config)].map(|folder| (folder, 0o7077));
    for (folder, forbidden) in logs.chain(others) {
        let folder = &folder;
        let fault = |source| Error::Folder(folder.clone(), source);
        fs::create_dir_all(folder).map_err(fault)?;
        // A service that was given ready folders needs no power to make them so.
        let facts = fs::metadata(folder).map_err(fault)?;
        let mode = facts.permissions().mode();
        if mode & 0o700 != 0o700 || mode & forbidden != 0 {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(fault)?;
        }
        let uid = config.users.supervisor;
        let is_owned = (facts.uid(), facts.gid()) == (uid, uid);
        if config.profile == Profile::Full && !is_owned {
            std::os::unix::fs::chown(folder, Some(uid), Some(uid)).map_err(fault)?;
        }
    }
    Ok(())
}

/// Where admissions are kept: beside the log.
pub(super) fn admissions_folder(config: &Config) -> PathBuf {
    config.audit_folder.parent().unwrap_or(Path::new(".")).join("admissions")
}
