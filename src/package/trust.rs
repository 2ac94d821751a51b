//! The trust folder: whose signatures count.
//!
//! Each file holds one PEM block: a public key (`PUBLIC KEY`) or the root of certificate chains
//! (`CERTIFICATE`). Its name is the label that records and commands show. Two files may stand beside them
//! that say which models are allowed and what is revoked: `digest_lists.rs`.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use pki_types::CertificateDer;
use pki_types::pem::{PemObject as _, SectionKind};
use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, UnparsedPublicKey};

use super::digest_lists::{DigestLists, LIST_LEN_MAX_BYTES};
use super::files::{Ownership, io_error, open_regular, read_small_open};
use super::{Error, hex, keys};

/// Most files in a trust folder.
pub const TRUST_COUNT_MAX: usize = 256;
/// Longest key or certificate file, in bytes.
const FILE_LEN_MAX_BYTES: u64 = 16 << 10;

/// The `SubjectPublicKeyInfo` of an EC key is a fixed head and the point `04 x y`.
const SPKI_P256: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
    \x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
const SPKI_P384: &[u8] = b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
    \x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00";
const SPKI_P521: &[u8] = b"\x30\x81\x9b\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
    \x06\x05\x2b\x81\x04\x00\x23\x03\x81\x86\x00";

/// An elliptic curve by its name in FIPS 186.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Curve {
    /// With SHA-256.
    P256,
    /// With SHA-384.
    P384,
    /// Known by name; ring has no P-521.
    P521,
}

/// A public key that signs models.
#[derive(Clone, Debug)]
pub struct PublicKey {
    curve: Curve,
    /// The uncompressed point.
    point: Vec<u8>,
    hint: String,
}

impl PublicKey {
    /// Reads a `SubjectPublicKeyInfo`; `None` when it is no EC key of a known curve.
    #[must_use]
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        let heads = [
            (Curve::P256, SPKI_P256, 65),
            (Curve::P384, SPKI_P384, 97),
            (Curve::P521, SPKI_P521, 133),
        ];
        let (curve, point) = heads.into_iter().find_map(|(curve, head, point_len)| {
            let point = der.strip_prefix(head)?;
            (point.len() == point_len && point[0] == 4).then(|| (curve, point.to_vec()))
        })?;
        let pem = keys::pem("PUBLIC KEY", der);
        Some(Self { curve, point, hint: hex(digest(&SHA256, pem.as_bytes()).as_ref()) })
    }

    /// Makes the key of a point, as a signing key gives it.
    pub(super) fn from_point(curve: Curve, point: &[u8]) -> Option<Self> {
        Self::from_spki(&[curve.spki_head(), point].concat())
    }

    /// Returns the key as PEM text, as OpenSSL writes it.
    #[must_use]
    pub fn to_pem(&self) -> String {
        keys::pem("PUBLIC KEY", &[self.curve.spki_head(), &self.point].concat()).to_string()
    }

    /// Returns how bundles name this key: SHA-256 of its PEM text.
    #[must_use]
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// Verifies an ASN.1 DER signature over `message`.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), Error> {
        let algorithm = match self.curve {
            Curve::P256 => &ECDSA_P256_SHA256_ASN1,
            Curve::P384 => &ECDSA_P384_SHA384_ASN1,
            Curve::P521 => return Err(Error::CurveUnsupported { curve: "P-521" }),
        };
        let key = UnparsedPublicKey::new(algorithm, &self.point);
        key.verify(message, signature).map_err(|_| Error::Signature)
    }
}

impl Curve {
    fn spki_head(self) -> &'static [u8] {
        match self {
            Self::P256 => SPKI_P256,
            Self::P384 => SPKI_P384,
            Self::P521 => SPKI_P521,
        }
    }
}

/// A root of certificate chains.
#[derive(Clone, Debug)]
pub(super) struct Root {
    pub(super) label: String,
    pub(super) certificate: CertificateDer<'static>,
}

/// Whose signatures count.
#[derive(Clone, Debug, Default)]
pub struct TrustStore {
    keys: Vec<(String, PublicKey)>,
    roots: Vec<Root>,
    lists: DigestLists,
}

impl TrustStore {
    /// Reads a trust folder. Files whose names start with `.` are left out.
    ///
    /// # Errors
    ///
    /// No folder, a folder or file that another user could have changed, a file that is no regular
    /// file or holds no key, a list with a line that is none, more files than [`TRUST_COUNT_MAX`], or no key.
    pub fn open(folder: &Path, ownership: &Ownership) -> Result<Self, Error> {
        let opened = File::open(folder).map_err(|source| match source.kind() {
            ErrorKind::NotFound => Error::TrustMissing { path: folder.to_owned() },
            _ => io_error("open", folder)(source),
        })?;
        if !opened.metadata().map_err(io_error("read", folder))?.is_dir() {
            return Err(Error::TrustNotFolder { path: folder.to_owned() });
        }
        ownership.check(&opened, folder)?;
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(io_error("read", folder))? {
            let name = entry.map_err(io_error("read", folder))?.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if names.len() == TRUST_COUNT_MAX {
                return Err(Error::TrustTooMany { limit: TRUST_COUNT_MAX });
            }
            names.push(name);
        }
        names.sort();
        let mut store = Self::default();
        for name in names {
            store.read(&folder.join(&name), name.to_string_lossy().into_owned(), ownership)?;
        }
        if store.keys.is_empty() && store.roots.is_empty() {
            return Err(Error::TrustEmpty { path: folder.to_owned() });
        }
        Ok(store)
    }

    /// Trusts one key under a label.
    #[must_use]
    pub fn with_key(mut self, label: &str, key: PublicKey) -> Self {
        self.keys.push((label.to_owned(), key));
        self
    }

    /// Returns label and hint of each key; roots by label alone.
    pub fn labels(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let keys = self.keys.iter().map(|(label, key)| (label.as_str(), Some(key.hint())));
        keys.chain(self.roots.iter().map(|root| (root.label.as_str(), None)))
    }

    /// Returns label and DER of each root.
    pub fn root_certificates(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.roots.iter().map(|root| (root.label.as_str(), root.certificate.as_ref()))
    }

    /// Returns which models are allowed and what is revoked.
    #[must_use]
    pub fn lists(&self) -> &DigestLists {
        &self.lists
    }

    /// Takes other lists.
    pub fn set_lists(&mut self, lists: DigestLists) {
        self.lists = lists;
    }

    pub(super) fn key(&self, hint: &str) -> Option<(&str, &PublicKey)> {
        let found = self.keys.iter().find(|(_, key)| key.hint == hint);
        found.map(|(label, key)| (label.as_str(), key))
    }

    pub(super) fn roots(&self) -> &[Root] {
        &self.roots
    }

    fn read(&mut self, path: &Path, label: String, ownership: &Ownership) -> Result<(), Error> {
        const WHAT: &str = "EC public key (P-256, P-384) or certificate in PEM";
        let file = open_regular(path)?;
        ownership.check(&file, path)?;
        if DigestLists::is_list(&label) {
            let text = read_small_open(&file, path, "list of digests", LIST_LEN_MAX_BYTES)?;
            return self.lists.read(path, &label, &text);
        }
        let text = read_small_open(&file, path, "key file", FILE_LEN_MAX_BYTES)?;
        let wrong = || Error::Key { path: path.to_owned(), what: WHAT };
        let mut sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(&text);
        let (Some(Ok((kind, der))), None) = (sections.next(), sections.next()) else {
            return Err(wrong());
        };
        match kind {
            SectionKind::PublicKey => {
                self.keys.push((label, PublicKey::from_spki(&der).ok_or_else(wrong)?));
            }
            SectionKind::Certificate => {
                let certificate = CertificateDer::from(der);
                webpki::anchor_from_trusted_cert(&certificate).map_err(|_| wrong())?;
                self.roots.push(Root { label, certificate });
            }
            _ => return Err(wrong()),
        }
        Ok(())
    }
}
