//! Keys in files: the P-256 key that signs models, the X25519 identity that opens them.
//!
//! Secrets are in memory that is erased on drop (but for what ring and age keep on their own), are
//! written with mode 0600 and are never part of an error or of `Debug`.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::str::FromStr as _;

use age::Identity as _;
use age::secrecy::ExposeSecret as _;
use age_core::format::Stanza;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _,
};
use zeroize::Zeroizing;

use super::Error;
use super::files::{io_error, open_regular, read_small_open};
use super::trust::{Curve, PublicKey};
use crate::secret::Secret;

/// Longest private key file, in bytes.
const KEY_LEN_MAX_BYTES: u64 = 16 << 10;
/// What age calls the identity of an X25519 key.
const IDENTITY_PREFIX: &str = "AGE-SECRET-KEY-1";

/// A key that signs models.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// Makes a P-256 key; returns it and its PKCS#8 PEM text.
    ///
    /// # Errors
    ///
    /// [`Error::Generate`] when the system has no randomness.
    pub fn generate() -> Result<(Self, Secret), Error> {
        let failed = || Error::Generate { what: "P-256 key" };
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
            .map_err(|_| failed())?;
        let key = Self::from_pkcs8(der.as_ref()).ok_or_else(failed)?;
        Ok((key, Secret::new(pem("PRIVATE KEY", der.as_ref()).as_bytes().to_vec())))
    }

    /// Reads a PKCS#8 PEM file with a P-256 or P-384 key.
    ///
    /// # Errors
    ///
    /// [`Error::Key`] when it holds no such key; I/O errors.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let der = read_pkcs8(path)?;
        let what = "P-256 or P-384 private key in PKCS#8 PEM";
        Self::from_pkcs8(&der).ok_or_else(|| Error::Key { path: path.to_owned(), what })
    }

    /// Returns the public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs a message; the signature is ASN.1 DER.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature = self.pair.sign(&SystemRandom::new(), message);
        let signature = signature.map_err(|_| Error::Generate { what: "signature" })?;
        Ok(signature.as_ref().to_vec())
    }

    fn from_pkcs8(der: &[u8]) -> Option<Self> {
        let kinds = [
            (Curve::P256, &ECDSA_P256_SHA256_ASN1_SIGNING),
            (Curve::P384, &ECDSA_P384_SHA384_ASN1_SIGNING),
        ];
        kinds.into_iter().find_map(|(curve, algorithm)| {
            let pair = EcdsaKeyPair::from_pkcs8(algorithm, der, &SystemRandom::new()).ok()?;
            let public = PublicKey::from_point(curve, pair.public_key().as_ref())?;
            Some(Self { pair, public })
        })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public.hint())
    }
}

/// Makes an Ed25519 key, as the audit log signs with; returns its PKCS#8 PEM text.
///
/// # Errors
///
/// [`Error::Generate`] when the system has no randomness.
pub fn generate_ed25519() -> Result<Secret, Error> {
    let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
    let der = der.map_err(|_| Error::Generate { what: "Ed25519 key" })?;
    Ok(Secret::new(pem("PRIVATE KEY", der.as_ref()).as_bytes().to_vec()))
}

/// Reads the DER of a PKCS#8 PEM file.
///
/// # Errors
///
/// [`Error::Key`] when it holds no such block; I/O errors.
pub fn read_pkcs8(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let what = "private key in PKCS#8 PEM";
    let text = read_private(path, "private key file")?;
    private_der(&text).ok_or_else(|| Error::Key { path: path.to_owned(), what })
}

/// Decodes a `PRIVATE KEY` block. Not by a library: its buffers would keep the key.
fn private_der(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let text = std::str::from_utf8(text).ok()?;
    let (_, rest) = text.split_once("-----BEGIN PRIVATE KEY-----")?;
    let (block, _) = rest.split_once("-----END PRIVATE KEY-----")?;
    let mut base64 = Zeroizing::new(String::with_capacity(block.len()));
    base64.extend(block.chars().filter(|c| !c.is_ascii_whitespace()));
    let mut der = Zeroizing::new(vec![0; base64.len()]);
    let len = BASE64_STANDARD.decode_slice(base64.as_bytes(), &mut der).ok()?;
    der.truncate(len);
    Some(der)
}

/// Reads a file that must not be readable by everybody.
fn read_private(path: &Path, what: &'static str) -> Result<Zeroizing<Vec<u8>>, Error> {
    let file = open_regular(path)?;
    let mode = file.metadata().map_err(io_error("look at", path))?.mode() & 0o7777;
    // Group may read: systemd shows the access list of a credential in these bits.
    if mode & 0o027 != 0 {
        return Err(Error::KeyExposed { path: path.to_owned(), mode });
    }
    read_small_open(&file, path, what, KEY_LEN_MAX_BYTES)
}

/// Writes a PEM block: base64 in lines of 64 columns.
pub(crate) fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(BASE64_STANDARD.encode(der));
    // The whole capacity at once: a growing string would leave copies of a key behind.
    let capacity = base64.len() + base64.len() / 64 + 2 * label.len() + 64;
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    for (i, c) in base64.chars().enumerate() {
        if i > 0 && i % 64 == 0 {
            text.push('\n');
        }
        text.push(c);
    }
    text.push_str("\n-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// The key of one encrypted file.
pub struct FileKey(Zeroizing<[u8; 16]>);

impl FileKey {
    /// Takes the key's bytes, which are erased on drop.
    #[must_use]
    pub fn new(bytes: Zeroizing<[u8; 16]>) -> Self {
        Self(bytes)
    }

    /// Shows the bytes to the one operation that needs them.
    #[must_use]
    pub fn expose(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileKey")
    }
}

/// Opens model files that were sealed to its recipient. In the supervisor and `cloister` only.
///
/// In a place of its own, so that whoever passes it on leaves no copy behind.
pub struct Identity(Box<age::x25519::Identity>);

impl Identity {
    /// Makes a new identity.
    #[must_use]
    pub fn generate() -> Self {
        Self(Box::new(age::x25519::Identity::generate()))
    }

    /// Reads an identity file as `age-keygen` writes it: comments and one `AGE-SECRET-KEY-1...`.
    ///
    /// # Errors
    ///
    /// [`Error::Key`] when it holds no X25519 identity or several; I/O errors.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text = read_private(path, "identity file")?;
        let what = "single X25519 identity (AGE-SECRET-KEY-1...)";
        Self::parse(&text).ok_or_else(|| Error::Key { path: path.to_owned(), what })
    }

    /// Parses the text of an identity file; `None` unless it holds exactly one.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut lines =
            text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let (line, None) = (lines.next()?, lines.next()) else {
            return None;
        };
        if !line.starts_with(IDENTITY_PREFIX) {
            return None;
        }
        age::x25519::Identity::from_str(line).ok().map(|identity| Self(Box::new(identity)))
    }

    /// Returns the text of an identity file.
    #[must_use]
    pub fn to_file(&self) -> Secret {
        let secret = self.0.to_string();
        let text = format!("# public key: {}\n{}\n", self.recipient(), secret.expose_secret());
        Secret::new(text.into_bytes())
    }

    /// Returns what files are sealed to: `age1...`.
    #[must_use]
    pub fn recipient(&self) -> String {
        self.0.to_public().to_string()
    }

    /// Unwraps an X25519 stanza; `None` when it is another's.
    #[must_use]
    pub fn unwrap_stanza(&self, ephemeral: &[u8; 32], body: &[u8; 32]) -> Option<FileKey> {
        let stanza = Stanza {
            tag: "X25519".to_owned(),
            args: vec![BASE64_STANDARD_NO_PAD.encode(ephemeral)],
            body: body.to_vec(),
        };
        let key = self.0.unwrap_stanza(&stanza)?.ok()?;
        let mut bytes = Zeroizing::new([0; 16]);
        bytes.copy_from_slice(key.expose_secret());
        Some(FileKey(bytes))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_key() {
        let identity = Identity::generate();
        let file = identity.to_file();
        let (key, pem) = SigningKey::generate().unwrap();
        let shown = format!("{identity:?} {file:?} {key:?} {pem:?}");
        let shown = format!("{shown} {:?}", FileKey::new(Zeroizing::new(*b"YELLOW SUBMARINE")));
        assert!(!shown.contains("AGE-SECRET") && !shown.contains("YELLOW"), "{shown}");
        assert!(shown.contains("FileKey") && !shown.contains("PRIVATE"), "{shown}");
    }

    #[test]
    fn a_stanza_opens_with_its_identity_alone() {
        let stanza = |n: u8| ([n; 32], [n; 32]);
        for n in [0, 1, 255] {
            let (ephemeral, body) = stanza(n);
            assert!(Identity::generate().unwrap_stanza(&ephemeral, &body).is_none());
        }
    }
}
