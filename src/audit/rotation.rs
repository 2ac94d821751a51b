//! Changes of the log's key: each leaves a file in the log in which the old key hands over to the new.
//!
//! `rotation/<SIZE>.tlog-proof` holds the record of the change, its way to the root, and the checkpoint
//! of which it is the last record, signed by both keys. Who trusts the old key learns the new one from
//! it, who trusts the new one learns up to where the old one counts; nobody else can make such a file.

use std::fs;
use std::path::{Path, PathBuf};

use super::merkle::leaf_hash;
use super::note::{Checkpoint, Signer, Verifier};
use super::proof::root_of_inclusion;
use super::proof_file::{PROOF_FILE_LEN_MAX_BYTES, ProofFile};
use super::record::{Event, KeyRole};
use super::tiles::read_bounded;
use super::{Error, snapshot};

/// The folder of the changes, in the log's.
pub(super) const FOLDER: &str = "rotation";
/// Most changes of a log's key that are followed.
const CHANGES_COUNT_MAX: usize = 1000;

/// A change of the log's key that both keys signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// What both keys signed; its last record is that of the change.
    pub checkpoint: Checkpoint,
    /// The old key.
    pub before: Verifier,
    /// The new one.
    pub after: Verifier,
    /// The file's text.
    text: String,
}

impl Rotation {
    /// Hands over to `next`: `proof` is of the log's last record, under the old key's checkpoint.
    pub(super) fn new(mut proof: ProofFile, next: &Signer) -> Result<Self, Error> {
        proof.note = next.sign_too(&proof.note)?;
        Self::parse(&proof.to_text()).map_err(|_| Error::ProofMalformed)
    }

    /// Parses a file's text; says what is wrong with it.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let proof = ProofFile::parse(text).map_err(|_| "it is no proof of a record")?;
        let record = snapshot::parse(&proof.record, proof.index)
            .map_err(|_| "its record is not of the known schema")?;
        let Event::KeyRotated { observed } = record.event else {
            return Err("its record is no change of the key");
        };
        let key = |text: &str| Verifier::parse(text).ok().filter(|_| !text.contains('\n'));
        let (Some(before), Some(after)) = (key(&observed.before), key(&observed.after)) else {
            return Err("its record names no keys");
        };
        if observed.key != KeyRole::Audit || before.name() != after.name() {
            return Err("its record is no change of this log's key");
        }
        let note = proof.note.as_bytes();
        before.open(note).map_err(|_| "the key before did not sign it")?;
        after.open(note).map_err(|_| "the key after did not sign it")?;
        let checkpoint = after.checkpoint(note).map_err(|_| "what is signed is no checkpoint")?;
        let is_last = proof.index.checked_add(1) == Some(checkpoint.size)
            && observed.size == Some(checkpoint.size);
        if !is_last {
            return Err("its record is not the last of its checkpoint");
        }
        let leaf = leaf_hash(&proof.record);
        let root = root_of_inclusion(leaf, proof.index, checkpoint.size, &proof.path);
        if root != Some(checkpoint.root) {
            return Err("its record does not lead to the signed tree");
        }
        Ok(Self { checkpoint, before, after, text: text.to_owned() })
    }

    /// Where it lies in the log in `folder`.
    pub(super) fn path(&self, folder: &Path) -> PathBuf {
        folder.join(FOLDER).join(self.name())
    }

    /// The file's name.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.tlog-proof", self.checkpoint.size)
    }

    /// The file's text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// That something is wrong with it.
    pub(super) fn wrong(&self, reason: &'static str) -> Error {
        Error::RotationWrong { path: Path::new(FOLDER).join(self.name()), reason }
    }
}

/// Reads the changes of the key in a log's folder, oldest first.
pub(super) fn read(log: &Path) -> Result<Vec<Rotation>, Error> {
    let folder = log.join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("read", &folder))?,
    };
    let mut changes = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("read", &folder))?.path();
        // A file that is being written has its name at the end.
        if path.extension().is_none_or(|ending| ending != "tlog-proof") {
            continue;
        }
        let wrong = |reason| Error::RotationWrong { path: path.clone(), reason };
        if changes.len() == CHANGES_COUNT_MAX {
            return Err(wrong("there are too many"));
        }
        let text = read_bounded(&path, PROOF_FILE_LEN_MAX_BYTES)?;
        let text = String::from_utf8(text).map_err(|_| wrong("it is no text"))?;
        let change = Rotation::parse(&text).map_err(wrong)?;
        if path.file_name().is_none_or(|name| name != change.name().as_str()) {
            return Err(wrong("its name is not its checkpoint's size"));
        }
        changes.push(change);
    }
    changes.sort_unstable_by_key(|change| change.checkpoint.size);
    Ok(changes)
}
