//! Which log is meant, what it must be signed with, and who is told that it is read.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::filter::Filter;
use super::recorded::{self, Reading};
use super::text::time_text;
use crate::audit::note::NOTE_LEN_MAX_BYTES;
use crate::audit::tiles::open_file;
use crate::audit::{Checkpoint, Snapshot, Verifier, Witness};
use crate::supervisor::config;

/// Longest file of public keys, in bytes: a line for each key that a log had.
pub const PUBLIC_KEY_LEN_MAX_BYTES: usize = 64 << 10;
/// Where the log's public key is, beside the configuration: `cloister keygen audit` writes it there.
pub const DEFAULT_KEY: &str = "/etc/cloister/audit.vkey";

/// Which log, and what it must be signed with.
#[derive(Args, Clone, Debug)]
pub(super) struct Log {
    /// The log's folder.
    #[arg(value_name = "LOG", default_value = "/var/lib/cloister/audit")]
    pub(super) folder: PathBuf,
    #[command(flatten)]
    pub(super) key: PublicKey,
    #[command(flatten)]
    pub(super) appliance: Appliance,
}

/// What a log must be signed with.
#[derive(Args, Clone, Debug)]
pub(super) struct PublicKey {
    /// The log's public key (NAME+KEYID+BASE64).
    ///
    /// Take it from where the log cannot be changed: a key that lies beside the log proves
    /// only that the log is whole.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_KEY)]
    pub(super) public_key: PathBuf,
}

/// The appliance that records that its log is read.
#[derive(Args, Clone, Debug)]
pub(super) struct Appliance {
    /// The configuration of the appliance that records the reading, if LOG is its log.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    pub(super) config: PathBuf,
    /// Read even if the appliance cannot record it.
    ///
    /// Needed only by who is neither root nor the log's owner, of the appliance's own log: say
    /// elsewhere that you read it, and why.
    #[arg(long)]
    pub(super) unrecorded: bool,
}

impl Log {
    /// The log's public key.
    pub(super) fn verifier(&self) -> Result<Verifier, Box<dyn std::error::Error>> {
        self.key.read()
    }

    /// Says what is wrong with a folder that holds no log.
    pub(super) fn must_be_there(&self) -> Result<(), String> {
        let folder = self.folder.display();
        match self.folder.join("checkpoint").try_exists() {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{folder}: there is no audit log here (no checkpoint in it)")),
            Err(error) => Err(format!(
                "{folder}: {error}; root, its owner and the group that its access list names may read it"
            )),
        }
    }

    /// Opens the log and has the reading of what `filter` wants recorded, before a record is shown.
    pub(super) fn open(
        &self,
        reading: Reading,
        filter: &Filter,
    ) -> Result<Snapshot, Box<dyn std::error::Error>> {
        let verifier = self.verifier()?;
        self.must_be_there()?;
        let reader = Snapshot::open(&self.folder, &verifier)?;
        recorded::announce(self, reading, reader.size(), filter)?;
        Ok(reader)
    }
}

impl PublicKey {
    /// Reads the key.
    pub(super) fn read(&self) -> Result<Verifier, Box<dyn std::error::Error>> {
        Ok(read_key(&self.public_key)?)
    }
}

/// Reads a log's public key.
pub fn read_key(path: &Path) -> Result<Verifier, String> {
    let text = read_text(path, PUBLIC_KEY_LEN_MAX_BYTES).map_err(|error| {
        format!("cannot read the audit public key {error}; name it with --public-key")
    })?;
    Verifier::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// What a log is held against: a checkpoint kept elsewhere.
#[derive(Args, Clone, Debug)]
pub(super) struct Anchor {
    /// A checkpoint kept off this machine, which the log must extend.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// The key of a witness that must have signed that checkpoint.
    #[arg(long, value_name = "FILE", requires = "checkpoint")]
    witness_key: Option<PathBuf>,
}

impl Anchor {
    /// The checkpoint, if one was given, and by whom it was kept: one of the log in `folder`.
    pub(super) fn read(
        &self,
        verifier: &Verifier,
        folder: &Path,
    ) -> Result<Option<(Checkpoint, String)>, Box<dyn std::error::Error>> {
        let Some(path) = &self.checkpoint else { return Ok(None) };
        let fault =
            |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let note = read_text(path, NOTE_LEN_MAX_BYTES)?;
        // A change of the key that does not hold is named when the log is read.
        let followed = verifier.follow(folder).unwrap_or_else(|_| verifier.clone());
        let checkpoint = followed.kept(note.as_bytes()).map_err(|error| fault(path, &error))?;
        let Some(key) = &self.witness_key else {
            return Ok(Some((checkpoint, path.display().to_string())));
        };
        let text = read_text(key, PUBLIC_KEY_LEN_MAX_BYTES)?;
        let witness = Witness::parse(&text).map_err(|error| fault(key, &error))?;
        let seen_s = witness.seen_s(note.as_bytes()).map_err(|error| fault(path, &error))?;
        let by = format!("witness {} (seen {})", witness.name(), time_text(seen_s));
        Ok(Some((checkpoint, by)))
    }
}

/// Reads a text file of at most `len_max` bytes; a pipe or a device in its place is refused.
pub fn read_text(path: &Path, len_max: usize) -> Result<String, String> {
    let fault = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut text = String::new();
    let file = open_file(path).map_err(|error| fault(&error))?;
    file.take(len_max as u64 + 1).read_to_string(&mut text).map_err(|error| fault(&error))?;
    if text.len() > len_max {
        return Err(fault(&format!("longer than {len_max} bytes: it holds something else")));
    }
    Ok(text)
}
