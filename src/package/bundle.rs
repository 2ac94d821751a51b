//! The sigstore bundle that carries an OpenSSF Model Signing v1 signature.
//!
//! Only the form is read here: nothing in a [`Bundle`] is trusted before `signature::verify`.
//!
//! | member | meaning |
//! |---|---|
//! | `mediaType` | exactly [`MEDIA_TYPE`] |
//! | `verificationMaterial.publicKey.hint` | SHA-256 of the signer's public key as PEM text |
//! | `verificationMaterial.x509CertificateChain.certificates[].rawBytes` | or: leaf first, DER |
//! | `verificationMaterial.tlogEntries` | empty: a transparency log is another trust model |
//! | `dsseEnvelope.payload` | the signed statement, base64 |
//! | `dsseEnvelope.payloadType` | exactly [`PAYLOAD_TYPE`] |
//! | `dsseEnvelope.signatures[0].sig` | ASN.1 DER ECDSA over the DSSE pre-authentication encoding |
//!
//! Source: OpenSSF Model Signing v1.0; sigstore bundle v0.3; DSSE v1.0.2.

use std::io::ErrorKind;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use super::files::read_small;
use super::json::{self, Json, Object};
use super::{Error, Fault};

/// Longest bundle, in bytes; a certificate chain and a payload of one file need 8 KiB.
pub const BUNDLE_LEN_MAX_BYTES: usize = 1 << 20;
/// Most certificates in a chain.
pub const CERTIFICATES_COUNT_MAX: usize = 8;
/// The media type of the bundle.
pub const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// The type of the signed payload.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

const PART: &str = "signature bundle";
const MATERIAL: &str = "verificationMaterial";
const TLOG: &str = "verificationMaterial.tlogEntries";
const PUBLIC_KEY: &str = "verificationMaterial.publicKey";
const HINT: &str = "verificationMaterial.publicKey.hint";
const CHAIN: &str = "verificationMaterial.x509CertificateChain";
const CERTIFICATES: &str = "verificationMaterial.x509CertificateChain.certificates";
const RAW_BYTES: &str = "verificationMaterial.x509CertificateChain.certificates[].rawBytes";
const KEYLESS: &str = "verificationMaterial.certificate";
const ENVELOPE: &str = "dsseEnvelope";
const PAYLOAD: &str = "dsseEnvelope.payload";
const SIGNATURES: &str = "dsseEnvelope.signatures";
const SIG: &str = "dsseEnvelope.signatures[0].sig";
const KEY_ID: &str = "dsseEnvelope.signatures[0].keyid";

/// Reads the file of a bundle.
///
/// # Errors
///
/// [`Error::SignatureMissing`], [`Error::TooLong`], or another that keeps it from being read.
pub fn read_bundle(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    read_small(path, PART, BUNDLE_LEN_MAX_BYTES as u64).map_err(|error| match error {
        Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
            Error::SignatureMissing { path: path.to_owned() }
        }
        other => other,
    })
}

/// How the bundle says who signed.
#[derive(Debug)]
pub enum Material {
    /// By the hash of a public key.
    KeyHint(String),
    /// By a certificate chain in DER, leaf first.
    Chain(Vec<Vec<u8>>),
}

/// A bundle of the right form; not verified.
#[derive(Debug)]
pub struct Bundle {
    /// Who says to have signed.
    pub material: Material,
    /// The statement's bytes.
    pub payload: Vec<u8>,
    /// The DER signature.
    pub signature: Vec<u8>,
}

impl Bundle {
    /// Parses a bundle.
    ///
    /// # Errors
    ///
    /// Too long, not JSON, a member twice or unknown, a field missing or not of its exact form.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        if text.len() > BUNDLE_LEN_MAX_BYTES {
            let limit_bytes = BUNDLE_LEN_MAX_BYTES as u64;
            return Err(Error::TooLong { what: PART, limit_bytes });
        }
        let mut bundle = json::parse(PART, text)?.object("bundle")?;
        bundle.expect_text("mediaType", "mediaType", MEDIA_TYPE)?;
        let material = parse_material(bundle.take(MATERIAL, MATERIAL)?.object(MATERIAL)?)?;
        let envelope = bundle.take(ENVELOPE, ENVELOPE)?.object(ENVELOPE)?;
        bundle.finish("bundle")?;
        let (payload, signature) = parse_envelope(envelope)?;
        Ok(Self { material, payload, signature })
    }

    /// Writes the bundle as the reference tool does: compact, no newline at the end.
    #[must_use]
    pub fn to_json(&self) -> String {
        let material = match &self.material {
            Material::KeyHint(hint) => serde_json::json!({
                "publicKey": { "hint": hint }, "tlogEntries": []
            }),
            Material::Chain(chain) => {
                let certificates: Vec<_> = chain
                    .iter()
                    .map(|der| serde_json::json!({ "rawBytes": BASE64_STANDARD.encode(der) }))
                    .collect();
                serde_json::json!({
                    "x509CertificateChain": { "certificates": certificates }, "tlogEntries": []
                })
            }
        };
        serde_json::json!({
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": material,
            "dsseEnvelope": {
                "payload": BASE64_STANDARD.encode(&self.payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{ "sig": BASE64_STANDARD.encode(&self.signature), "keyid": "" }],
            },
        })
        .to_string()
    }
}

fn parse_material(mut material: Object) -> Result<Material, Error> {
    match material.take_optional("tlogEntries") {
        None => {}
        Some(entries) if entries.is_empty_list() => {}
        Some(_) => return Err(Error::Field { field: TLOG, fault: Fault::Unsupported }),
    }
    if material.take_optional("certificate").is_some() {
        return Err(Error::Field { field: KEYLESS, fault: Fault::Unsupported });
    }
    let key = material.take_optional("publicKey");
    let chain = material.take_optional("x509CertificateChain");
    material.finish(MATERIAL)?;
    match (key, chain) {
        (Some(key), None) => {
            let mut key = key.object(PUBLIC_KEY)?;
            let hint = key.take_text("hint", HINT)?;
            key.finish(PUBLIC_KEY)?;
            Ok(Material::KeyHint(hint))
        }
        (None, Some(chain)) => Ok(Material::Chain(parse_chain(chain)?)),
        _ => Err(Error::Field { field: MATERIAL, fault: Fault::NotOne }),
    }
}

fn parse_chain(chain: Json) -> Result<Vec<Vec<u8>>, Error> {
    let mut chain = chain.object(CHAIN)?;
    let certificates = chain.take("certificates", CERTIFICATES)?.list(CERTIFICATES)?;
    chain.finish(CHAIN)?;
    if certificates.is_empty() {
        return Err(Error::Field { field: CERTIFICATES, fault: Fault::Missing });
    }
    if certificates.len() > CERTIFICATES_COUNT_MAX {
        return Err(Error::Field { field: CERTIFICATES, fault: Fault::Unsupported });
    }
    let mut ders = Vec::with_capacity(certificates.len());
    for certificate in certificates {
        let mut certificate = certificate.object(CERTIFICATES)?;
        ders.push(decode(&certificate.take_text("rawBytes", RAW_BYTES)?, RAW_BYTES)?);
        certificate.finish(CERTIFICATES)?;
    }
    Ok(ders)
}

/// Returns payload and signature.
fn parse_envelope(mut envelope: Object) -> Result<(Vec<u8>, Vec<u8>), Error> {
    envelope.expect_text("payloadType", "dsseEnvelope.payloadType", PAYLOAD_TYPE)?;
    let payload = decode(&envelope.take_text("payload", PAYLOAD)?, PAYLOAD)?;
    let only = envelope.take("signatures", SIGNATURES)?.only(SIGNATURES)?;
    envelope.finish(ENVELOPE)?;
    let mut signature = only.object(SIGNATURES)?;
    let sig = decode(&signature.take_text("sig", SIG)?, SIG)?;
    match signature.take_optional("keyid") {
        // An unauthenticated remark; the format leaves it empty.
        None | Some(Json::Null | Json::Text(_)) => {}
        Some(_) => return Err(Error::Field { field: KEY_ID, fault: Fault::WrongType }),
    }
    signature.finish(SIGNATURES)?;
    Ok((payload, sig))
}

/// Decodes canonical, padded base64.
fn decode(text: &str, field: &'static str) -> Result<Vec<u8>, Error> {
    BASE64_STANDARD.decode(text).map_err(|_| Error::Field { field, fault: Fault::NotBase64 })
}
