//! One random key per principal: what makes a digest useless without it, and erasable with it.
//!
//! A key is never derived from anything, so destroying its file is final. The log names a
//! principal by a random pseudonym, which lies beside the key. Files are wrapped under a
//! [`WrappingKey`]; what is wrapped under another is of no use, and refused. A key whose erasure the log
//! records is not used either, should a copy of its file come back.
//!
//! | file in the folder | what |
//! |---|---|
//! | `current` | the name of the wrapping key in force |
//! | `ID.NAME` | pseudonym and key, wrapped; `ID` names the wrapping key, `NAME` is 16 bytes of SHA-256 of the principal's name, in hex |
//! | `ID.NAME.erased` | a key that is being destroyed: the log may not say so yet |

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
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
use super::wrapping::WrappingKey;

const PSEUDONYM_LEN: usize = 8;
const KEY_LEN: usize = 32;
const NONCE_LEN: usize = 16;
/// Longest file of the folder, in bytes.
const FILE_LEN_MAX_BYTES: usize = 256;
/// End of the name of a key that is being destroyed.
const ERASED: &str = ".erased";
/// End of the name of a file that is being written.
const FRESH: &str = ".new";

/// A principal's pseudonym and key.
pub struct PrincipalKey {
    pseudonym: String,
    key: hmac::Key,
}

impl PrincipalKey {
    fn new(secret: &[u8]) -> Option<Self> {
        let (pseudonym, key) = secret.split_at_checked(PSEUDONYM_LEN)?;
        let key = (key.len() == KEY_LEN).then(|| hmac::Key::new(hmac::HMAC_SHA256, key))?;
        Some(Self { pseudonym: hex(pseudonym), key })
    }

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
    wrapping: WrappingKey,
    loaded: HashMap<String, PrincipalKey>,
    /// Pseudonyms of keys that were made since [`PrincipalKeys::take_created`].
    created: Vec<String>,
    /// Pseudonyms that the log says were erased.
    erased: BTreeSet<String>,
    /// Those of them whose key was there again, and was destroyed, since [`PrincipalKeys::take_returned`].
    returned: Vec<String>,
}

impl PrincipalKeys {
    /// Uses `folder`, which is made when it is not there, under `wrapping`.
    ///
    /// # Errors
    ///
    /// [`Error::WrappingKeyOther`] when the keys are wrapped under another; [`Error::Io`].
    pub fn open(folder: &Path, wrapping: WrappingKey) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let keys = Self::look(folder, wrapping)?;
        if current(folder)?.is_none() {
            write_whole(&folder.join("current"), keys.wrapping.id().as_bytes())?;
        }
        keys.destroy_others()?;
        Ok(keys)
    }

    /// Looks at `folder`, which another process may write, and changes nothing in it.
    ///
    /// # Errors
    ///
    /// As [`PrincipalKeys::open`].
    pub fn look(folder: &Path, wrapping: WrappingKey) -> Result<Self, Error> {
        if let Some(want) = current(folder)?.filter(|id| id != wrapping.id()) {
            return Err(Error::WrappingKeyOther { want, given: wrapping.id().to_owned() });
        }
        Ok(Self {
            folder: folder.to_owned(),
            wrapping,
            loaded: HashMap::new(),
            created: Vec::new(),
            erased: BTreeSet::new(),
            returned: Vec::new(),
        })
    }

    /// Takes these pseudonyms for erased: no key of theirs is used from now on.
    pub fn forbid(&mut self, pseudonyms: impl IntoIterator<Item = String>) {
        self.erased.extend(pseudonyms);
    }

    /// The name of the wrapping key in force.
    #[must_use]
    pub fn wrapping_id(&self) -> &str {
        self.wrapping.id()
    }

    /// The key of `principal`; made, durably, at its first use.
    ///
    /// # Errors
    ///
    /// [`Error::PrincipalKeyMalformed`], [`Error::Random`] or [`Error::Io`].
    pub fn of(&mut self, principal: &str) -> Result<&PrincipalKey, Error> {
        if self.find(principal)?.is_none() {
            let mut secret = Zeroizing::new([0; PSEUDONYM_LEN + KEY_LEN]);
            SystemRandom::new().fill(secret.as_mut_slice()).map_err(|_| Error::Random)?;
            self.write(&self.wrapping, &name_of(principal), secret.as_slice())?;
            let key = PrincipalKey::new(secret.as_slice()).ok_or(Error::Random)?;
            self.created.push(key.pseudonym.clone());
            self.loaded.insert(principal.to_owned(), key);
        }
        self.loaded.get(principal).ok_or(Error::Random)
    }

    /// The key of `principal`, if it has one. One that was erased and is there again is destroyed again.
    ///
    /// # Errors
    ///
    /// [`Error::PrincipalKeyMalformed`] or [`Error::Io`].
    pub fn find(&mut self, principal: &str) -> Result<Option<&PrincipalKey>, Error> {
        let path = self.path(&name_of(principal));
        if !self.loaded.contains_key(principal)
            && let Some(key) = self.key(&path)?
            && !self.destroy_if_returned(&path, &key)?
        {
            self.loaded.insert(principal.to_owned(), key);
        }
        Ok(self.loaded.get(principal))
    }

    /// All keys, to look a text up whoever sent it, less the erased ones; the folder does not know the
    /// names.
    ///
    /// # Errors
    ///
    /// [`Error::PrincipalKeyMalformed`] or [`Error::Io`].
    pub fn all(&self) -> Result<Vec<PrincipalKey>, Error> {
        let mut keys: Vec<_> = self.whole()?.into_iter().map(|(_, key)| key).collect();
        keys.retain(|key| !self.erased.contains(&key.pseudonym));
        Ok(keys)
    }

    /// Erased keys that are there again, from a copy: pseudonym and file.
    ///
    /// # Errors
    ///
    /// As [`PrincipalKeys::all`].
    pub fn returned(&self) -> Result<Vec<(String, PathBuf)>, Error> {
        let mut found = self.whole()?;
        found.retain(|(_, key)| self.erased.contains(&key.pseudonym));
        Ok(found.into_iter().map(|(path, key)| (key.pseudonym, path)).collect())
    }

    /// Destroys all erased keys that are there again. What is damaged is left to who looks for it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn destroy_returned(&mut self) -> Result<(), Error> {
        for path in self.files(|name| !name.ends_with(ERASED))? {
            if let Ok(Some(key)) = self.key(&path) {
                self.destroy_if_returned(&path, &key)?;
            }
        }
        Ok(())
    }

    /// Pseudonyms of keys that were destroyed again since the last call.
    pub fn take_returned(&mut self) -> Vec<String> {
        std::mem::take(&mut self.returned)
    }

    /// Pseudonyms of keys that were made since the last call.
    pub fn take_created(&mut self) -> Vec<String> {
        std::mem::take(&mut self.created)
    }

    /// Puts the key of `principal` aside, so that nobody finds it any more, and returns its pseudonym;
    /// `None` when there is none. [`PrincipalKeys::finish_erasures`] destroys it,
    /// [`PrincipalKeys::undo_erasure`] brings it back.
    ///
    /// # Errors
    ///
    /// [`Error::PrincipalKeyMalformed`] or [`Error::Io`].
    pub fn begin_erasure(&mut self, principal: &str) -> Result<Option<String>, Error> {
        let Some(key) = self.find(principal)? else { return Ok(None) };
        let pseudonym = key.pseudonym.clone();
        let path = self.path(&name_of(principal));
        rename(&path, &erased(&path))?;
        self.loaded.remove(principal);
        Ok(Some(pseudonym))
    }

    /// Brings a key back whose erasure could not be recorded.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn undo_erasure(&mut self, principal: &str) -> Result<(), Error> {
        let path = self.path(&name_of(principal));
        rename(&erased(&path), &path)
    }

    /// Pseudonyms of keys that were put aside and not destroyed: a crash came between.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn unfinished_erasures(&self) -> Result<Vec<String>, Error> {
        let mut pseudonyms = Vec::new();
        for path in self.files(|name| name.ends_with(ERASED))? {
            // What cannot be read any more has no name; it is destroyed all the same.
            let secret = self.read(&path).ok().flatten();
            pseudonyms.extend(secret.and_then(|it| PrincipalKey::new(&it)).map(|it| it.pseudonym));
        }
        Ok(pseudonyms)
    }

    /// Destroys the keys that were put aside, those of `pseudonyms`, which are erased from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn finish_erasures(&mut self, pseudonyms: &[String]) -> Result<(), Error> {
        self.forbid(pseudonyms.iter().cloned());
        self.files(|name| name.ends_with(ERASED))?.iter().try_for_each(|path| destroy(path))
    }

    /// Wraps every key anew under `next` and destroys what was wrapped under the old one; returns how
    /// many. A crash leaves all under the one or all under the other.
    ///
    /// # Errors
    ///
    /// [`Error::PrincipalKeyMalformed`], [`Error::Random`] or [`Error::Io`].
    pub fn rotate(&mut self, next: WrappingKey) -> Result<u64, Error> {
        let mut count = 0;
        for path in self.files(|_| true)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let name = name.split_once('.').map_or(name, |(_, name)| name);
            let malformed = || Error::PrincipalKeyMalformed { path: path.clone() };
            let secret = self.read(&path)?.ok_or_else(malformed)?;
            self.write(&next, name, &secret)?;
            count += 1;
        }
        write_whole(&self.folder.join("current"), next.id().as_bytes())?;
        self.wrapping = next;
        self.destroy_others()?;
        Ok(count)
    }

    /// The keys that are not being destroyed, and their files.
    fn whole(&self) -> Result<Vec<(PathBuf, PrincipalKey)>, Error> {
        let key = |path: PathBuf| match self.key(&path)? {
            Some(key) => Ok((path, key)),
            None => Err(Error::PrincipalKeyMalformed { path }),
        };
        self.files(|name| !name.ends_with(ERASED))?.into_iter().map(key).collect()
    }

    /// The key in a file; `None` when there is no such file.
    fn key(&self, path: &Path) -> Result<Option<PrincipalKey>, Error> {
        let malformed = || Error::PrincipalKeyMalformed { path: path.to_owned() };
        let secret = self.read(path)?;
        secret.map(|secret| PrincipalKey::new(&secret).ok_or_else(malformed)).transpose()
    }

    /// Destroys a key's file if the key was erased before, and notes that.
    fn destroy_if_returned(&mut self, path: &Path, key: &PrincipalKey) -> Result<bool, Error> {
        let is_erased = self.erased.contains(&key.pseudonym);
        if is_erased {
            destroy(path)?;
            self.returned.push(key.pseudonym.clone());
        }
        Ok(is_erased)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}.{name}", self.wrapping.id()))
    }

    /// The secret in a file; `None` when there is no such file.
    fn read(&self, path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let bytes = match read_bounded(path, FILE_LEN_MAX_BYTES) {
            Err(Error::TileMissing { .. }) if !path.exists() => return Ok(None),
            bytes => bytes?,
        };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let owner = owner_of(name);
        let secret = self.wrapping.unwrap(owner, &bytes);
        secret.map(Some).ok_or_else(|| Error::PrincipalKeyMalformed { path: path.to_owned() })
    }

    fn write(&self, wrapping: &WrappingKey, name: &str, secret: &[u8]) -> Result<(), Error> {
        let file = format!("{}.{name}", wrapping.id());
        write_whole(&self.folder.join(&file), &wrapping.wrap(owner_of(&file), secret)?)
    }

    /// The files under the wrapping key in force whose name `is_wanted`.
    fn files(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, Error> {
        let prefix = format!("{}.", self.wrapping.id());
        let names = names(&self.folder)?.into_iter();
        let names = names.filter(|name| name.starts_with(&prefix) && is_wanted(name));
        Ok(names.map(|name| self.folder.join(name)).collect())
    }

    /// Destroys what is wrapped under another key, and unfinished files: a rotation's remains.
    fn destroy_others(&self) -> Result<(), Error> {
        let prefix = format!("{}.", self.wrapping.id());
        let is_other = |name: &String| !name.starts_with(&prefix) || name.ends_with(FRESH);
        let others = names(&self.folder)?.into_iter().filter(|name| is_key_file(name));
        others.filter(is_other).try_for_each(|name| destroy(&self.folder.join(name)))
    }
}

/// The name of the wrapping key that the keys in `folder` are under; `None` when there are none yet.
///
/// # Errors
///
/// [`Error::Io`].
pub fn current(folder: &Path) -> Result<Option<String>, Error> {
    let path = folder.join("current");
    match read_bounded(&path, FILE_LEN_MAX_BYTES) {
        Ok(id) => Ok(Some(String::from_utf8_lossy(&id).into_owned())),
        Err(Error::TileMissing { .. }) if !path.exists() => Ok(None),
        Err(error) => Err(error),
    }
}

/// A principal's file name, less the wrapping key's.
fn name_of(principal: &str) -> String {
    hex(&digest(&SHA256, principal.as_bytes()).as_ref()[..16])
}

/// What is authenticated with a wrapped key: whose it is, whether it is being destroyed or not.
fn owner_of(file: &str) -> &str {
    let name = file.split_once('.').map_or(file, |(_, name)| name);
    name.strip_suffix(ERASED).unwrap_or(name)
}

/// Whether a file is one of this folder's, under whatever wrapping key.
fn is_key_file(file: &str) -> bool {
    let file = file.strip_suffix(FRESH).unwrap_or(file);
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts = file.split_once('.').map(|(id, _)| (id, owner_of(file)));
    parts.is_some_and(|(id, name)| (id.len(), name.len()) == (16, 32) && is_hex(id) && is_hex(name))
}

fn erased(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ERASED);
    PathBuf::from(name)
}

fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Writes a file whole; its bytes and its name are durable on return.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(FRESH);
    let fresh = PathBuf::from(fresh);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&fresh).map_err(Error::io("create", &fresh))?;
    file.write_all(bytes).map_err(Error::io("write", &fresh))?;
    file.sync_all().map_err(Error::io("sync", &fresh))?;
    rename(&fresh, path)
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(Error::io("rename", from))?;
    sync_folder_of(to)
}

/// Overwrites a file, then removes it, durably. What the medium keeps of old blocks stays wrapped.
fn destroy(path: &Path) -> Result<(), Error> {
    let mut file = match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file.map_err(Error::io("open", path))?,
    };
    let len = file.metadata().map_err(Error::io("look at", path))?.len();
    let zeros = vec![0; usize::try_from(len).unwrap_or(0).min(FILE_LEN_MAX_BYTES)];
    file.write_all(&zeros).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))?;
    fs::remove_file(path).map_err(Error::io("remove", path))?;
    sync_folder_of(path)
}

fn sync_folder_of(path: &Path) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let opened = File::open(folder).map_err(Error::io("open", folder))?;
    opened.sync_all().map_err(Error::io("sync", folder))
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

#[cfg(test)]
mod tests;
