//! One random key per principal: what makes a digest useless without it, and erasable with it.
//!
//! A key is never derived from anything, so destroying its file is final. The log names a
//! principal by a random pseudonym, which lies beside the key.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use super::Error;
use super::record::KeyedDigest;
use super::tiles::read_bounded;

const PSEUDONYM_LEN: usize = 8;
const KEY_LEN: usize = 32;
const NONCE_LEN: usize = 16;

/// A principal's pseudonym and key.
pub struct PrincipalKey {
    pseudonym: String,
    key: hmac::Key,
}

impl PrincipalKey {
    /// The principal's name in the log.
    #[must_use]
    pub fn pseudonym(&self) -> &str {
        &self.pseudonym
    }

    /// `HMAC-SHA-256(K_principal, nonce || digest)` under a fresh nonce.
    ///
    /// # Errors
    ///
    /// [`Error::Random`].
    pub fn keyed(&self, digest: &[u8; 32]) -> Result<KeyedDigest, Error> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| Error::Random)?;
        Ok(KeyedDigest { nonce: hex(&nonce), hmac: hex(self.tag(&nonce, digest).as_ref()) })
    }

    /// Whether a record's keyed digest is of this text's digest.
    #[must_use]
    pub fn matches(&self, keyed: &KeyedDigest, digest: &[u8; 32]) -> bool {
        let Some(nonce) = unhex(&keyed.nonce) else { return false };
        let Some(want) = unhex(&keyed.hmac) else { return false };
        let mut message = nonce;
        message.extend_from_slice(digest);
        hmac::verify(&self.key, &message, &want).is_ok()
    }

    fn tag(&self, nonce: &[u8], digest: &[u8; 32]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(nonce);
        context.update(digest);
        context.sign()
    }
}

/// The folder of principals' keys.
pub struct PrincipalKeys {
    folder: PathBuf,
    loaded: HashMap<String, PrincipalKey>,
}

impl PrincipalKeys {
    /// Uses `folder`, which is made when it is not there.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the folder cannot be made.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        Ok(Self { folder: folder.to_owned(), loaded: HashMap::new() })
    }

    /// The key of `principal`; made, durably, at its first use.
    ///
    /// # Errors
    ///
    /// [`Error::PrincipalKeyMalformed`], [`Error::Random`] or [`Error::Io`].
    pub fn of(&mut self, principal: &str) -> Result<&PrincipalKey, Error> {
        if !self.loaded.contains_key(principal) {
            let key = self.read_or_make(principal)?;
            self.loaded.insert(principal.to_owned(), key);
        }
        self.loaded.get(principal).ok_or(Error::Random)
    }

    fn read_or_make(&self, principal: &str) -> Result<PrincipalKey, Error> {
        let name = digest(&SHA256, principal.as_bytes());
        let path = self.folder.join(hex(&name.as_ref()[..16]));
        let mut bytes = Zeroizing::new([0; PSEUDONYM_LEN + KEY_LEN]);
        SystemRandom::new().fill(bytes.as_mut_slice()).map_err(|_| Error::Random)?;
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(mut file) => {
                file.write_all(bytes.as_slice()).map_err(Error::io("write", &path))?;
                file.sync_all().map_err(Error::io("sync", &path))?;
                let folder =
                    fs::File::open(&self.folder).map_err(Error::io("open", &self.folder))?;
                folder.sync_all().map_err(Error::io("sync", &self.folder))?;
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let read = Zeroizing::new(read_bounded(&path, bytes.len())?);
                if read.len() != bytes.len() {
                    return Err(Error::PrincipalKeyMalformed { path });
                }
                bytes.copy_from_slice(&read);
            }
            Err(error) => return Err(Error::io("create", &path)(error)),
        }
        let (pseudonym, key) = bytes.split_at(PSEUDONYM_LEN);
        Ok(PrincipalKey { pseudonym: hex(pseudonym), key: hmac::Key::new(hmac::HMAC_SHA256, key) })
    }
}

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a `String` does not fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
