//! The token table: who may use the appliance, by SHA-256 of each token.
//!
//! Tokens are 256 random bits, so their plain digests tell nothing about them; a token itself is
//! shown once, by `cloister token add`, and never stored. The supervisor reads the table; the
//! operator's `cloister token` writes it.

use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nix::fcntl::{Flock, FlockArg};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::secret_file;
use crate::audit::record::AuthenticationCause;
use crate::ipc::message::Digest;

/// What every token starts with, so that secret scanners know it.
pub const TOKEN_PREFIX: &str = "sk-cloister-";
/// Most tokens of a table; the look-up compares with every one.
pub const TOKENS_COUNT_MAX: usize = 4096;
/// Longest name of a token, in bytes.
const NAME_LEN_MAX_BYTES: usize = 64;
/// Longest table, in bytes: some 250 bytes a token.
pub(super) const FILE_LEN_MAX_BYTES: usize = 2 << 20;
/// First lines of the file.
const FILE_HEAD: &str =
    "# Cloister's tokens, written by `cloister token`. It holds digests only.\n\n";

/// As whose the requests of a token are recorded; all may send the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A user's.
    User,
    /// An administrator's.
    Admin,
}

impl Role {
    /// The name as written in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
        }
    }
}

/// One token, as stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Whose it is; the principal.
    pub name: String,
    /// As whose its requests are recorded.
    pub role: Role,
    /// SHA-256 of the token, in hex.
    sha256: HexDigest,
    /// When it was made, in seconds since 1970.
    pub created_s: u64,
    /// When it ends, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_s: Option<u64>,
    /// When it was revoked, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_s: Option<u64>,
}

impl Token {
    /// Whether it opens the door at `now_s`.
    #[must_use]
    pub fn is_valid(&self, now_s: u64) -> bool {
        self.revoked_s.is_none() && self.expires_s.is_none_or(|end| now_s < end)
    }

    /// `valid`, `expired` or `revoked`.
    #[must_use]
    pub fn state(&self, now_s: u64) -> &'static str {
        match self.revoked_s {
            Some(_) => "revoked",
            None if self.is_valid(now_s) => "valid",
            None => "expired",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct HexDigest(Digest);

impl Serialize for HexDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&crate::audit::principal_keys::hex(&self.0.0))
    }
}

impl<'de> Deserialize<'de> for HexDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.as_bytes();
        let mut bytes = [0; 32];
        let fault = || serde::de::Error::custom("sha256 is not 64 lower-case hex digits");
        if digits.len() != 64 {
            return Err(fault());
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let (high, low) =
                (nibble(pair[0]).ok_or_else(fault)?, nibble(pair[1]).ok_or_else(fault)?);
            *byte = high << 4 | low;
        }
        Ok(Self(Digest(bytes)))
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// What is wrong with a token table or with what was asked of it.
#[derive(Debug)]
pub enum Error {
    /// The file cannot be read or written.
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is not as guarded as it must be.
    Guard(secret_file::Error),
    /// The text is not a token table.
    Form {
        /// The line, from 1.
        line: usize,
    },
    /// Two tokens of one name or one digest.
    Twice {
        /// The name.
        name: String,
    },
    /// More than [`TOKENS_COUNT_MAX`] tokens.
    TooMany,
    /// A name that is empty, too long or of other characters.
    Name,
    /// No token of this name.
    Unknown {
        /// The name.
        name: String,
    },
    /// No random bytes.
    Random,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { action, path, source } => {
                write!(f, "{action} {}: {source}", path.display())
            }
            Self::Guard(error) => write!(f, "{error}"),
            Self::Form { line } => write!(f, "token table, line {line}: not a token table"),
            Self::Twice { name } => write!(f, "token table holds {name} twice"),
            Self::TooMany => write!(f, "token table holds more than {TOKENS_COUNT_MAX} tokens"),
            Self::Name => {
                write!(f, "not a name; use 1 to {NAME_LEN_MAX_BYTES} letters, digits and . _ - @")
            }
            Self::Unknown { name } => write!(f, "there is no token named {name}"),
            Self::Random => write!(f, "the system gives no random bytes"),
        }
    }
}

impl std::error::Error for Error {}

/// All tokens.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenTable {
    #[serde(default, rename = "token")]
    tokens: Vec<Token>,
}

impl TokenTable {
    /// Checks the text of a table.
    ///
    /// # Errors
    ///
    /// `Form`, `Name`, `Twice`, `TooMany`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let table: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            Error::Form { line: 1 + before.bytes().filter(|&byte| byte == b'\n').count() }
        })?;
        if table.tokens.len() > TOKENS_COUNT_MAX {
            return Err(Error::TooMany);
        }
        let mut names = std::collections::HashSet::new();
        let mut digests = std::collections::HashSet::new();
        for token in &table.tokens {
            check_name(&token.name)?;
            if !names.insert(&token.name) || !digests.insert(token.sha256.0) {
                return Err(Error::Twice { name: token.name.clone() });
            }
        }
        Ok(table)
    }

    /// Reads the table at `path`; an absent file is an empty table.
    ///
    /// # Errors
    ///
    /// `Guard` when others may read or write it, and those of [`TokenTable::parse`].
    pub fn read(path: &Path, owner_uid: u32) -> Result<Self, Error> {
        match secret_file::open(path, owner_uid) {
            Ok(file) => Self::read_open(file),
            Err(error) if error.is_absent() => Ok(Self::default()),
            Err(error) => Err(Error::Guard(error)),
        }
    }

    /// Reads the table of an open and checked file.
    ///
    /// # Errors
    ///
    /// As [`TokenTable::read`].
    pub(super) fn read_open(file: secret_file::SecretFile) -> Result<Self, Error> {
        let text = file.read_to_end(FILE_LEN_MAX_BYTES).map_err(Error::Guard)?;
        let text = std::str::from_utf8(text.expose()).map_err(|_| Error::Form { line: 1 })?;
        Self::parse(text)
    }

    /// The token of this digest, if it is valid at `now_s`; takes the same time whichever it is.
    #[must_use]
    pub fn find(&self, key: &Digest, now_s: u64) -> Option<&Token> {
        let mut found = None;
        for token in &self.tokens {
            let is_it = bool::from(token.sha256.0.0.ct_eq(&key.0));
            if is_it && token.is_valid(now_s) {
                found = Some(token);
            }
        }
        found
    }

    /// Why [`TokenTable::find`] found nothing, and whose the token was; takes the same time too.
    #[must_use]
    pub fn rejection(&self, key: &Digest) -> (AuthenticationCause, Option<&str>) {
        let mut found = (AuthenticationCause::Unknown, None);
        for token in &self.tokens {
            if bool::from(token.sha256.0.0.ct_eq(&key.0)) {
                let cause = match token.revoked_s {
                    Some(_) => AuthenticationCause::Revoked,
                    None => AuthenticationCause::Expired,
                };
                found = (cause, Some(token.name.as_str()));
            }
        }
        found
    }

    /// Whether a token of this name is valid at `now_s`.
    #[must_use]
    pub fn is_valid_name(&self, name: &str, now_s: u64) -> bool {
        self.tokens.iter().any(|token| token.name == name && token.is_valid(now_s))
    }

    /// The names of the first tokens that are not revoked, in the order they were made.
    pub(super) fn first_names(&self, count: usize) -> impl Iterator<Item = &str> {
        let kept = self.tokens.iter().filter(|token| token.revoked_s.is_none());
        kept.take(count).map(|token| token.name.as_str())
    }

    /// All tokens, in the order they were made.
    #[must_use]
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// How many tokens are valid at `now_s`.
    #[must_use]
    pub fn valid_count(&self, now_s: u64) -> usize {
        self.tokens.iter().filter(|token| token.is_valid(now_s)).count()
    }

    /// Adds a fresh token and returns it: the only time that it is seen.
    ///
    /// # Errors
    ///
    /// `Name`, `Twice`, `TooMany`, `Random`.
    pub fn add(
        &mut self,
        name: &str,
        role: Role,
        now_s: u64,
        expires_s: Option<u64>,
    ) -> Result<Zeroizing<String>, Error> {
        check_name(name)?;
        if self.tokens.iter().any(|token| token.name == name) {
            return Err(Error::Twice { name: name.to_owned() });
        }
        if self.tokens.len() >= TOKENS_COUNT_MAX {
            return Err(Error::TooMany);
        }
        let mut bytes = Zeroizing::new([0_u8; 32]);
        SystemRandom::new().fill(bytes.as_mut_slice()).map_err(|_| Error::Random)?;
        let mut text = Zeroizing::new(String::with_capacity(TOKEN_PREFIX.len() + 43));
        text.push_str(TOKEN_PREFIX);
        URL_SAFE_NO_PAD.encode_string(bytes.as_slice(), &mut text);
        self.tokens.push(Token {
            name: name.to_owned(),
            role,
            sha256: HexDigest(token_digest(&text)),
            created_s: now_s,
            expires_s,
            revoked_s: None,
        });
        Ok(text)
    }

    /// Revokes the token `name`; a second time changes nothing.
    ///
    /// # Errors
    ///
    /// `Unknown`.
    pub fn revoke(&mut self, name: &str, now_s: u64) -> Result<(), Error> {
        let token = self.tokens.iter_mut().find(|token| token.name == name);
        let token = token.ok_or_else(|| Error::Unknown { name: name.to_owned() })?;
        token.revoked_s.get_or_insert(now_s);
        Ok(())
    }

    /// SHA-256 of the table's text.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, self.to_text().as_bytes()).as_ref());
        Digest(bytes)
    }

    fn to_text(&self) -> String {
        let body = toml::to_string(self).unwrap_or_default();
        format!("{FILE_HEAD}{body}")
    }
}

/// SHA-256 of a presented token, as the gateway sends it.
#[must_use]
pub fn token_digest(token: &str) -> Digest {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    Digest(bytes)
}

fn check_name(name: &str) -> Result<(), Error> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    if name.is_empty() || name.len() > NAME_LEN_MAX_BYTES || !name.chars().all(is_plain) {
        return Err(Error::Name);
    }
    Ok(())
}

/// Changes the table at `path` under a lock: the new file is complete and durable, or the old
/// one stands.
///
/// # Errors
///
/// Those of reading, writing and of `change`.
pub fn update<T>(
    path: &Path,
    owner_uid: u32,
    change: impl FnOnce(&mut TokenTable) -> Result<T, Error>,
) -> Result<T, Error> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    };
    let folder_path = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = File::open(folder_path).map_err(io("open", folder_path))?;
    let lock = Flock::lock(folder, FlockArg::LockExclusive)
        .map_err(|(_, errno)| io("lock", folder_path)(errno.into()))?;
    let mut table = TokenTable::read(path, owner_uid)?;
    let result = change(&mut table)?;
    let fresh = path.with_extension("new");
    // What an interrupted change left behind was never the table.
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io("remove", &fresh)(error));
        }
        _ => {}
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(io("create", &fresh))?;
    if let Ok(old) = std::fs::metadata(path)
        && (old.uid() != nix::unistd::geteuid().as_raw()
            || old.gid() != nix::unistd::getegid().as_raw())
    {
        std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))
            .map_err(io("give to its owner", &fresh))?;
    }
    file.write_all(table.to_text().as_bytes()).map_err(io("write", &fresh))?;
    file.sync_all().map_err(io("sync", &fresh))?;
    std::fs::rename(&fresh, path).map_err(io("rename", &fresh))?;
    lock.sync_all().map_err(io("sync", folder_path))?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cloister-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn uid() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    #[test]
    fn a_token_is_found_by_its_digest_until_it_ends() {
        let mut table = TokenTable::default();
        let token = table.add("alice", Role::User, 100, Some(200)).unwrap();
        assert!(token.starts_with(TOKEN_PREFIX) && token.len() == TOKEN_PREFIX.len() + 43);
        let key = token_digest(&token);
        assert_eq!(table.find(&key, 199).map(|token| token.name.as_str()), Some("alice"));
        assert!(table.find(&key, 200).is_none());
        assert!(table.find(&token_digest("sk-cloister-other"), 199).is_none());
        assert_eq!(table.tokens()[0].state(200), "expired");
    }

    #[test]
    fn a_revoked_token_is_not_found_and_stays_listed() {
        let mut table = TokenTable::default();
        let token = table.add("alice", Role::Admin, 100, None).unwrap();
        table.revoke("alice", 150).unwrap();
        table.revoke("alice", 160).unwrap();
        assert!(table.find(&token_digest(&token), 155).is_none());
        assert_eq!(table.tokens()[0].revoked_s, Some(150));
        assert!(!table.is_valid_name("alice", 155));
        assert!(matches!(table.revoke("bob", 1), Err(Error::Unknown { .. })));
    }

    #[test]
    fn names_are_plain_and_taken_once() {
        let mut table = TokenTable::default();
        table.add("a.b_c-d@e", Role::User, 0, None).unwrap();
        for name in ["", "a b", "ä", "a\n", &"x".repeat(65)] {
            assert!(matches!(table.add(name, Role::User, 0, None), Err(Error::Name)), "{name}");
        }
        let twice = table.add("a.b_c-d@e", Role::User, 0, None);
        assert!(matches!(twice, Err(Error::Twice { .. })));
    }

    #[test]
    fn the_file_round_trips_with_mode_0600_and_holds_no_token() {
        let folder = folder("tokens");
        let path = folder.join("tokens.toml");
        let add = |name: &'static str| {
            update(&path, uid(), |table| table.add(name, Role::User, 7, Some(9))).unwrap()
        };
        let (one, two) = (add("one"), add("two"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&one[TOKEN_PREFIX.len()..]));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let table = TokenTable::read(&path, uid()).unwrap();
        assert_eq!(table.find(&token_digest(&two), 8).unwrap().name, "two");
        assert_eq!(table.digest(), TokenTable::parse(&text).unwrap().digest());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_failed_change_leaves_the_old_table() {
        let folder = folder("tokens-failed");
        let path = folder.join("tokens.toml");
        update(&path, uid(), |table| table.add("one", Role::User, 7, None)).unwrap();
        let before = std::fs::read(&path).unwrap();
        let failed = update(&path, uid(), |table| table.add("one", Role::User, 7, None));
        assert!(matches!(failed, Err(Error::Twice { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), before);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn refuses_what_is_no_table() {
        let digest = "00".repeat(32);
        let token = |name: &str, sha256: &str| {
            format!(
                "[[token]]\nname = \"{name}\"\nrole = \"user\"\nsha256 = \"{sha256}\"\ncreated_s = 1\n"
            )
        };
        assert!(TokenTable::parse(&token("a", &digest)).is_ok());
        let line = |text: &str| match TokenTable::parse(text) {
            Err(Error::Form { line }) => line,
            other => panic!("{other:?}"),
        };
        assert_eq!(line(&token("a", &digest[1..])), 4);
        assert_eq!(line(&token("a", &"0G".repeat(32))), 4);
        assert_eq!(line(&format!("{}more = 1\n", token("a", &digest))), 6);
        assert_eq!(line("tokens = 1"), 1);
        let twice = token("a", &digest) + &token("b", &digest);
        assert!(matches!(TokenTable::parse(&twice), Err(Error::Twice { .. })));
    }

    #[test]
    fn a_table_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = folder("tokens-mode");
        let path = folder.join("tokens.toml");
        update(&path, uid(), |table| table.add("one", Role::User, 7, None)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(TokenTable::read(&path, uid()), Err(Error::Guard(_))));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
