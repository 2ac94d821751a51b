//! Which models may be served and what is revoked: two lists in the trust folder.
//!
//! Each line is a SHA-256 in hexadecimal and, behind it, a remark that refusals show; `sha256sum` writes
//! such lines. Empty lines and lines that start with `#` mean nothing; anything else is an error.
//!
//! | file | what its lines name | effect |
//! |---|---|---|
//! | `allowed.sha256` | models (the plain GGUF) | where the file is there, no other model is opened |
//! | `revoked.sha256` | models, public keys (PEM), certificates (DER or PEM) | refused, whoever signed |

use std::fs::File;
use std::io;
use std::path::Path;

use ring::digest::{SHA256, digest};

use super::files::{Ownership, io_error, open_regular, read_small_open};
use super::{Error, hex, keys, unhex};
use crate::ipc::message::Digest;

/// The file of models that may be served.
pub const ALLOWED_FILE: &str = "allowed.sha256";
/// The file of what is revoked.
pub const REVOKED_FILE: &str = "revoked.sha256";
/// Longest list, in bytes.
pub(super) const LIST_LEN_MAX_BYTES: u64 = 1 << 20;
/// Longest remark, in bytes.
const REMARK_LEN_MAX_BYTES: usize = 128;
/// Length of a SHA-256 in hexadecimal.
const HEX_LEN: usize = 64;

/// What can be revoked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Revocable {
    /// A key that signs.
    Key,
    /// A certificate of the chain, or its root.
    Certificate,
    /// A model.
    Model,
}

/// A line of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    sha256: [u8; 32],
    remark: String,
}

/// The lists of a trust folder.
#[derive(Clone, Default, Debug)]
pub struct DigestLists {
    allowed: Option<Vec<Entry>>,
    revoked: Vec<Entry>,
}

impl DigestLists {
    /// Takes the text of one of the two files.
    pub(super) fn read(&mut self, path: &Path, name: &str, text: &[u8]) -> Result<(), Error> {
        let entries = parse(text).map_err(|line| Error::DigestList { path: path.to_owned(), line });
        match name {
            ALLOWED_FILE => self.allowed = Some(entries?),
            _ => self.revoked = entries?,
        }
        Ok(())
    }

    /// Reads lists from open files; one that is not among them is empty.
    ///
    /// # Errors
    ///
    /// A file that is not regular or that another user could have changed, that is too long, or has a line
    /// that is none.
    pub fn read_open(
        files: &[(&str, File)],
        folder: &Path,
        ownership: &Ownership,
    ) -> Result<Self, Error> {
        let mut lists = Self::default();
        for (name, file) in files {
            let path = folder.join(name);
            if !file.metadata().map_err(io_error("look at", &path))?.is_file() {
                return Err(Error::NotRegular { path });
            }
            ownership.check(file, &path)?;
            let text = read_small_open(file, &path, "list of digests", LIST_LEN_MAX_BYTES)?;
            lists.read(&path, name, &text)?;
        }
        Ok(lists)
    }

    /// Opens the lists that are in a trust folder.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::NotRegular`].
    pub fn open_files(folder: &Path) -> Result<Vec<(&'static str, File)>, Error> {
        let mut files = Vec::new();
        for name in [ALLOWED_FILE, REVOKED_FILE] {
            match open_regular(&folder.join(name)) {
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                file => files.push((name, file?)),
            }
        }
        Ok(files)
    }

    /// Returns whether a file of the trust folder is a list, by its name.
    pub(super) fn is_list(name: &str) -> bool {
        name == ALLOWED_FILE || name == REVOKED_FILE
    }

    /// Returns how many models are allowed; `None` where all are that are signed.
    #[must_use]
    pub fn allowed_count(&self) -> Option<usize> {
        self.allowed.as_ref().map(Vec::len)
    }

    /// Returns how many entries revoke.
    #[must_use]
    pub fn revoked_count(&self) -> usize {
        self.revoked.len()
    }

    /// Checks a model's digest: not revoked, and allowed where there is a list of those.
    ///
    /// # Errors
    ///
    /// [`Error::Revoked`] or [`Error::NotAllowed`].
    pub fn check_model(&self, model: &Digest) -> Result<(), Error> {
        self.check(Revocable::Model, &model.0)?;
        match &self.allowed {
            Some(allowed) if !allowed.iter().any(|entry| entry.sha256 == model.0) => {
                Err(Error::NotAllowed { digest: *model })
            }
            _ => Ok(()),
        }
    }

    /// Checks a key by its PEM text.
    pub(super) fn check_key(&self, pem: &str) -> Result<(), Error> {
        self.check(Revocable::Key, &sha256(pem.as_bytes()))
    }

    /// Checks a certificate, which may stand there by its DER or by its PEM text as OpenSSL writes it.
    pub(super) fn check_certificate(&self, der: &[u8]) -> Result<(), Error> {
        self.check(Revocable::Certificate, &sha256(der))?;
        let pem = keys::pem("CERTIFICATE", der);
        self.check(Revocable::Certificate, &sha256(pem.as_bytes()))
    }

    fn check(&self, what: Revocable, sha256: &[u8; 32]) -> Result<(), Error> {
        match self.revoked.iter().find(|entry| entry.sha256 == *sha256) {
            None => Ok(()),
            Some(entry) if entry.remark.is_empty() => {
                Err(Error::Revoked { what, entry: hex(sha256) })
            }
            Some(entry) => Err(Error::Revoked { what, entry: entry.remark.clone() }),
        }
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 is 32 bytes")
}

/// Returns the entries, or the number of the first line that is none, from 1.
fn parse(text: &[u8]) -> Result<Vec<Entry>, usize> {
    let mut entries = Vec::new();
    for (number, line) in (1_usize..).zip(text.split(|byte| *byte == b'\n')) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        entries.push(parse_line(line).ok_or(number)?);
    }
    Ok(entries)
}

/// `HEX`, or `HEX`, a space, a space or `*`, and the remark.
fn parse_line(line: &[u8]) -> Option<Entry> {
    let (digits, rest) = line.split_at_checked(HEX_LEN)?;
    let remark = match rest {
        [] => rest,
        [b' ', b' ' | b'*', remark @ ..] => remark,
        _ => return None,
    };
    // It stands in the log and on terminals.
    let is_plain = remark.iter().all(|byte| (b' '..=b'~').contains(byte));
    if !is_plain || remark.len() > REMARK_LEN_MAX_BYTES {
        return None;
    }
    Some(Entry { sha256: unhex(digits)?, remark: String::from_utf8(remark.to_vec()).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_sha256sum_and_nothing_else() {
        let hex = "0123456789abcdef".repeat(4);
        let good = format!("# a remark\n\n{hex}  model.gguf\n{hex} *binary.gguf\r\n{hex}\n");
        let entries = parse(good.as_bytes()).unwrap();
        let remarks: Vec<_> = entries.iter().map(|entry| entry.remark.as_str()).collect();
        assert_eq!(remarks, ["model.gguf", "binary.gguf", ""]);
        assert_eq!(entries[0].sha256[..2], [0x01, 0x23]);
        for wrong in [
            hex[1..].to_owned(),
            format!("{hex}0"),
            format!("{hex} model"),
            format!(" {hex}"),
            format!("\\{hex}  name"),
            format!("{hex}  {}", "x".repeat(129)),
            format!("{hex}  a\tb"),
            format!("{hex}  \u{e9}"),
            hex.replace('a', "g"),
        ] {
            assert_eq!(parse(format!("{hex}\n{wrong}\n").as_bytes()), Err(2), "{wrong}");
        }
        assert_eq!(parse(b""), Ok(Vec::new()));
    }
}
