//! What a certificate says of itself, for explanations alone: nothing is decided by it.

use ring::digest::{SHA256, digest};
use x509_parser::parse_x509_certificate;

use super::hex;

/// Longest name that is shown, in characters.
const NAME_LEN_MAX: usize = 200;

/// Names, dates and fingerprint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateFacts {
    /// Whose it is, in printable ASCII.
    pub subject: String,
    /// Who issued it, in printable ASCII.
    pub issuer: String,
    /// From when it holds, in seconds since 1970.
    pub not_before_s: i64,
    /// Until when it holds, in seconds since 1970.
    pub not_after_s: i64,
    /// SHA-256 of the DER, in hexadecimal.
    pub sha256: String,
}

impl CertificateFacts {
    /// Reads a certificate; `None` when it does not parse.
    #[must_use]
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = parse_x509_certificate(der).ok()?;
        let validity = certificate.validity();
        Some(Self {
            subject: printable(&certificate.subject().to_string()),
            issuer: printable(&certificate.issuer().to_string()),
            not_before_s: validity.not_before.timestamp(),
            not_after_s: validity.not_after.timestamp(),
            sha256: hex(digest(&SHA256, der).as_ref()),
        })
    }
}

/// Names come from whoever made the certificate, and go to a terminal.
fn printable(name: &str) -> String {
    let plain = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
    name.chars().map(plain).take(NAME_LEN_MAX).collect()
}
