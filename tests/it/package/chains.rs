//! Signers with certificates, made for a test: a root, leaves of any validity, bundles with their chain.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cloister::ipc::message::Digest;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use time::OffsetDateTime;

/// SHA-256 of bytes.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest(digest(&SHA256, bytes).as_ref().try_into().unwrap())
}

/// A digest as bundles and lists write it.
pub(crate) fn hex(digest: &Digest) -> String {
    digest.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A payload that verifies, about a file of this digest.
pub(crate) fn payload_of(model: &Digest) -> Value {
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "name": "m.gguf", "digest": { "sha256": hex(&sha256(&model.0)) } }],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": [],
            },
            "resources": [{ "name": ".", "algorithm": "sha256", "digest": hex(model) }],
        },
    })
}

/// What a signature is over.
pub(crate) fn pre_authentication(payload: &[u8]) -> Vec<u8> {
    let kind = "application/vnd.in-toto+json";
    [format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).as_bytes(), payload].concat()
}

/// A bundle of these parts.
pub(crate) fn bundle(material: &Value, payload: &[u8], sig: &[u8]) -> Value {
    json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": material,
        "dsseEnvelope": {
            "payload": BASE64_STANDARD.encode(payload),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{ "sig": BASE64_STANDARD.encode(sig), "keyid": "" }],
        },
    })
}

/// A root and its key.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) root_pem: String,
    pub(crate) root_der: Vec<u8>,
}

/// A signer with a certificate.
pub(crate) struct Leaf {
    pair: EcdsaKeyPair,
    pub(crate) der: Vec<u8>,
    pub(crate) pem: String,
    pub(crate) public_pem: String,
}

fn at(seconds: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap()
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Test root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap();
        let (root_pem, root_der) = (root.pem(), root.der().to_vec());
        Self { issuer: Issuer::new(params, key), root_pem, root_der }
    }

    /// A leaf for signing code, valid between these times in seconds since 1970.
    pub(crate) fn leaf(&self, not_before_s: u64, not_after_s: u64) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Test signer");
        params.not_before = at(not_before_s);
        params.not_after = at(not_after_s);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, &key.serialize_der(), &SystemRandom::new());
        Leaf {
            pair: pair.unwrap(),
            der: certificate.der().to_vec(),
            pem: certificate.pem(),
            public_pem: key.public_key_pem(),
        }
    }
}

impl Leaf {
    /// Signs a model; returns the bundle's text.
    pub(crate) fn sign(&self, model: &Digest) -> String {
        let payload = payload_of(model).to_string();
        let message = pre_authentication(payload.as_bytes());
        let sig = self.pair.sign(&SystemRandom::new(), &message).unwrap();
        let certificate = json!({ "rawBytes": BASE64_STANDARD.encode(&self.der) });
        let material = json!({
            "x509CertificateChain": { "certificates": [certificate] }, "tlogEntries": []
        });
        bundle(&material, payload.as_bytes(), sig.as_ref()).to_string()
    }
}
