//! What can be wrong with an audit log; no variant carries a record's content.

use std::path::PathBuf;
use std::{fmt, io};

/// A fault of the log, its key or its files.
#[derive(Debug)]
pub enum Error {
    /// An operation on a file failed.
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The signing key is not an Ed25519 key in PKCS#8 PEM.
    KeyMalformed,
    /// A verifier key (`name+id+base64`) is malformed.
    VerifierKeyMalformed,
    /// A signed note is malformed.
    NoteMalformed,
    /// No signature of the note is by the expected key.
    NoteUnsigned,
    /// The signature by the expected key is wrong.
    NoteSignature,
    /// The checkpoint's text is malformed.
    CheckpointMalformed,
    /// The checkpoint is of another log.
    CheckpointOrigin,
    /// The signing key was replaced, by a change that it signed itself.
    KeyRetired {
        /// Records that it may sign for.
        size: u64,
    },
    /// A change of the log's key does not hold.
    RotationWrong {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// The checkpoint covers more records than the log holds: records were dropped.
    Truncated {
        /// Records that the checkpoint covers.
        signed: u64,
        /// Records that are there.
        found: u64,
    },
    /// The checkpoint is older than the records that were settled under a later one.
    CheckpointOlder {
        /// Records that the checkpoint covers.
        signed: u64,
        /// Records that a later checkpoint covered.
        settled: u64,
    },
    /// Another process has the log open for writing.
    Locked,
    /// The tree over the records is not the signed one.
    RootMismatch {
        /// Records that the checkpoint covers.
        size: u64,
    },
    /// A tile's hashes are not those of its records or of the tiles below.
    TileMismatch {
        /// Tile level.
        level: u8,
        /// Index of the first hash that differs.
        index: u64,
    },
    /// A file of the tree is missing or of the wrong length.
    TileMissing {
        /// The file.
        path: PathBuf,
    },
    /// A bundle of records is malformed.
    BundleMalformed {
        /// The file.
        path: PathBuf,
    },
    /// A record is longer than 65,535 bytes.
    RecordTooLong,
    /// The journal's head is damaged.
    JournalMalformed,
    /// The journal's head does not say what the records before it say.
    JournalHead {
        /// How many they are.
        base: u64,
    },
    /// A journal record differs from the signed tree.
    JournalMismatch {
        /// Index of the record.
        index: u64,
    },
    /// The log could not be written since the last good commit.
    Unavailable,
    /// The oldest records are gone, and no record says that they were pruned.
    RecordsGone {
        /// How many are gone.
        gone: u64,
        /// How many of them the log says were pruned.
        recorded: u64,
    },
    /// The TPM's counter of starts does not rise.
    CounterStands {
        /// The record of the start; `None` for one that would be made now.
        index: Option<u64>,
        /// At the start before.
        before: u64,
        /// Then.
        counter: u64,
    },
    /// A copy of the log was left behind and is being brought up to date.
    CopyBehind {
        /// Its folder.
        path: PathBuf,
    },
    /// Two copies of the log hold different records.
    CopiesDiffer {
        /// The folder of the shorter one.
        path: PathBuf,
        /// Its records.
        size: u64,
    },
    /// A record is not of the known schema.
    RecordMalformed {
        /// Index of the record.
        index: u64,
    },
    /// No random bytes.
    Random,
    /// A proof is malformed.
    ProofMalformed,
    /// A record does not lead to the signed root.
    ProofWrong {
        /// Where the proof says that it stands.
        index: u64,
    },
    /// The log holds no such record.
    IndexBeyond {
        /// The index that was asked for.
        index: u64,
        /// Records in the log.
        size: u64,
    },
    /// A principal's key file is damaged, or wrapped under another key.
    PrincipalKeyMalformed {
        /// The file.
        path: PathBuf,
    },
    /// A principal's key was erased.
    PrincipalKeyGone,
    /// The wrapping key's file holds none.
    WrappingKeyMalformed,
    /// The principals' keys are wrapped under another key.
    WrappingKeyOther {
        /// Its name.
        want: String,
        /// The name of the one that was given.
        given: String,
    },
}

impl Error {
    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// What an error without facts of its own says.
    fn words(&self) -> Option<&'static str> {
        Some(match self {
            Self::KeyMalformed => "the audit key is not an Ed25519 key in PKCS#8 PEM",
            Self::VerifierKeyMalformed => {
                "the audit public key is malformed: expected one line NAME+KEYID+BASE64"
            }
            Self::NoteMalformed => "the checkpoint is not a signed note",
            Self::NoteUnsigned => "the checkpoint has no signature by this key",
            Self::NoteSignature => "the checkpoint's signature is wrong",
            Self::CheckpointMalformed => "the checkpoint is malformed",
            Self::CheckpointOrigin => "the checkpoint is of another log",
            Self::Locked => "another process is writing this audit log",
            Self::RecordTooLong => "a record is longer than 65535 bytes",
            Self::JournalMalformed => "the journal's head is damaged",
            Self::Unavailable => "the audit log cannot be written",
            Self::ProofMalformed => "the proof is malformed",
            Self::Random => "the system gives no random bytes",
            Self::PrincipalKeyGone => "the principal's key was erased",
            Self::WrappingKeyMalformed => {
                "the wrapping key is none; cloister keygen wrapping makes one"
            }
            _ => return None,
        })
    }
}

impl Error {
    /// What is wrong between what the log says now and what it or others said before.
    fn say_of_history(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JournalHead { base } => write!(
                f,
                "the journal's head does not say of the {base} records before it what they say: who was erased, \
                 which requests are open, how the last run started and ended"
            ),
            Self::CounterStands { index: Some(index), before, counter } => write!(
                f,
                "the TPM's counter does not rise at record {index}: a start has {counter} after one with {before}"
            ),
            Self::CounterStands { index: None, before, counter } => write!(
                f,
                "the TPM's counter is {counter}, and the last start recorded {before}: it is of an earlier start or \
                 of another TPM, so nothing starts; for a new TPM begin a new log"
            ),
            Self::CopyBehind { path } => {
                write!(f, "the copy in {} is being brought up to date", path.display())
            }
            Self::CopiesDiffer { path, size } => write!(
                f,
                "the {size} records of the copy in {} are not the first of the other copy: keep \
                 both, and start with one that you trust",
                path.display()
            ),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(words) = self.words() {
            return f.write_str(words);
        }
        match self {
            Self::Io { action, path, source } => {
                write!(f, "cannot {action} {}: {source}", path.display())
            }
            Self::Truncated { signed, found } => {
                write!(f, "records were dropped: {signed} are signed, {found} are there")
            }
            Self::KeyRetired { size } => write!(
                f,
                "the key that signs was replaced at {size} records: the log's key is the one that \
                 rotation/{size}.tlog-proof names, or one after it"
            ),
            Self::RotationWrong { path, reason } => {
                write!(f, "the change of the key in {} does not hold: {reason}", path.display())
            }
            Self::CheckpointOlder { signed, settled } => {
                write!(f, "the checkpoint was rolled back: it covers {signed} of {settled} records")
            }
            Self::RootMismatch { size } => {
                write!(f, "the records do not match the signed tree of {size} records")
            }
            Self::TileMismatch { level, index } => {
                write!(f, "record or hash {index} of level {level} does not match the tree")
            }
            Self::TileMissing { path } => {
                write!(f, "{} is missing or of the wrong length", path.display())
            }
            Self::BundleMalformed { path } => write!(f, "{} is malformed", path.display()),
            Self::JournalMismatch { index } => {
                write!(f, "record {index} of the journal does not match the signed tree")
            }
            Self::RecordsGone { gone, recorded } => write!(
                f,
                "records 0 to {} are gone, and by the log {recorded} were pruned",
                gone.saturating_sub(1)
            ),
            Self::RecordMalformed { index } => {
                write!(f, "record {index} is not of the known schema")
            }
            Self::ProofWrong { index } => {
                write!(f, "the proof of record {index} does not lead to the signed tree")
            }
            Self::IndexBeyond { index, size } => {
                write!(f, "there is no record {index}: the log holds {size}")
            }
            Self::PrincipalKeyMalformed { path } => {
                write!(f, "{} is not a principal's key under this wrapping key", path.display())
            }
            Self::WrappingKeyOther { want, given } => write!(
                f,
                "the principals' keys are wrapped under {want}, and keys.wrapping is {given}: \
                 give that key, or finish a rotation with cloister audit rotate-wrapping-key"
            ),
            _ => self.say_of_history(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
