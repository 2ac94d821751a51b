//! Admissions that stand: a model that a certificate vouched for once is opened again after it expired.
//!
//! Certificates of signers end; a model that was admitted must not stop serving at the next restart for
//! that. When one is opened whose signer has a certificate, a file keeps the time and the model's digest,
//! named by SHA-256 of the signature bundle. Once the chain has expired it is held against that time
//! instead of now. All else is checked anew: the signature, the root in the trust folder, the lists of
//! allowed and revoked digests, and the bytes. A bundle that was never admitted gains nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::files::{io_error, read_small};
use super::signature::{Verified, verify};
use super::statement::Statement;
use super::trust::TrustStore;
use super::{ChainFault, Error, hex, unhex};
use crate::ipc::message::Digest;

/// Longest file of an admission, in bytes.
const FILE_LEN_MAX_BYTES: u64 = 1 << 10;

/// A signature that holds, now or at the time of an admission.
#[derive(Debug)]
pub struct Admitted {
    /// What the signature states.
    pub statement: Verified<Statement>,
    /// When it was admitted, in seconds since 1970, if its certificates have expired since.
    pub since_s: Option<u64>,
    /// Names the bundle: SHA-256 of its text.
    bundle: Digest,
}

/// What is kept of an admission.
#[derive(Serialize, Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// SHA-256 of the model, in hexadecimal.
    model: String,
    /// When it was admitted, in seconds since 1970.
    admitted_s: u64,
}

/// The folder of admissions; nobody but its owner may write there.
#[derive(Debug)]
pub struct Admissions {
    folder: PathBuf,
}

impl Admissions {
    /// Uses a folder that exists.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Verifies a bundle at the time `now`, or, where its certificates have expired, at the time at which it
    /// was admitted.
    ///
    /// # Errors
    ///
    /// As [`verify`]; [`Error::Admission`] when what was kept cannot be read.
    pub fn verify(
        &self,
        bundle: &[u8],
        trust: &TrustStore,
        now: SystemTime,
    ) -> Result<Admitted, Error> {
        let name = Digest(digest(&SHA256, bundle).as_ref().try_into().expect("32 bytes"));
        let expired = match verify(bundle, trust, None, now) {
            Ok(statement) => return Ok(Admitted { statement, since_s: None, bundle: name }),
            Err(error @ Error::Chain(ChainFault::Expired)) => error,
            Err(error) => return Err(error),
        };
        let Some(kept) = self.read(&name)? else { return Err(expired) };
        let then = UNIX_EPOCH.checked_add(Duration::from_secs(kept.admitted_s));
        let Some(then) = then.filter(|then| *then <= now) else { return Err(expired) };
        let statement = verify(bundle, trust, None, then)?;
        if unhex(kept.model.as_bytes()) != Some(statement.digest.0) {
            return Err(expired);
        }
        Ok(Admitted { statement, since_s: Some(kept.admitted_s), bundle: name })
    }

    /// Keeps an admission whose model was opened, if it will need it: a key does not expire.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn keep(&self, admitted: &Admitted, now: SystemTime) -> Result<(), Error> {
        let path = self.path(&admitted.bundle);
        if !admitted.statement.has_chain || admitted.since_s.is_some() || path.exists() {
            return Ok(());
        }
        let admitted_s = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let kept = Kept { model: hex(&admitted.statement.digest.0), admitted_s };
        let text = serde_json::to_string(&kept).expect("a text and a number are JSON");
        // Under its name only when it is whole, also after a power cut.
        let temporary = path.with_extension("partial");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&temporary).map_err(io_error("create", &temporary))?;
        file.write_all(text.as_bytes()).map_err(io_error("write", &temporary))?;
        file.sync_all().map_err(io_error("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(io_error("create", &path))?;
        let folder = File::open(&self.folder).and_then(|folder| folder.sync_all());
        folder.map_err(io_error("write", &self.folder))
    }

    fn path(&self, bundle: &Digest) -> PathBuf {
        self.folder.join(hex(&bundle.0))
    }

    fn read(&self, bundle: &Digest) -> Result<Option<Kept>, Error> {
        let path = self.path(bundle);
        let text = match read_small(&path, "admission", FILE_LEN_MAX_BYTES) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(None);
            }
            read => read?,
        };
        serde_json::from_slice(&text).map(Some).map_err(|_| Error::Admission { path })
    }
}
