//! Signature bundles: the samples of the reference tool, and every way of being wrong.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cloister::ipc::message::Digest;
use cloister::package::files::Ownership;
use cloister::package::keys::SigningKey;
use cloister::package::signature::{sign, verify};
use cloister::package::trust::TrustStore;
use cloister::package::{ChainFault, Error, Fault};
use pki_types::PrivatePkcs8KeyDer;
use pki_types::pem::PemObject as _;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

use super::{Folder, Random, samples};

/// Within the validity of the sample's certificates.
const SAMPLE_TIME_S: u64 = 1_796_000_000;

fn sample_trust() -> (Folder, TrustStore) {
    let folder = Folder::new();
    for name in ["p256.pub.pem", "p521.pub.pem", "root.pem"] {
        folder.write(name, fs::read(samples().join(name)).unwrap());
    }
    let trust = TrustStore::open(&folder.0, &Ownership::of(&[nix::unistd::getuid().as_raw()]));
    (folder, trust.unwrap())
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest(digest(&SHA256, bytes).as_ref().try_into().unwrap())
}

fn hex(digest: &Digest) -> String {
    digest.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_sample_of_the_reference_tool_gets_its_verdict() {
    let (_folder, trust) = sample_trust();
    let verdict = |name: &str| {
        let bundle = fs::read(samples().join(name)).unwrap();
        verify(&bundle, &trust, None, at(SAMPLE_TIME_S))
    };
    let model = sha256(&fs::read(samples().join("tiny.gguf")).unwrap());
    let tiny = verdict("tiny.sig").unwrap();
    assert_eq!((tiny.signer.as_str(), tiny.subject.as_str()), ("p256.pub.pem", "tiny.gguf"));
    tiny.check(&model).unwrap();
    let single = verdict("single.sig").unwrap();
    assert!(hex(&single.digest).starts_with("61b81a1990c7"));
    assert!(matches!(single.check(&model), Err(Error::DigestMismatch)));
    let cert = verdict("cert.sig").unwrap();
    assert_eq!((cert.signer.as_str(), &cert.digest), ("root.pem", &single.digest));
    assert!(matches!(verdict("model.sig"), Err(Error::ResourceName)));
    assert!(matches!(verdict("p521.sig"), Err(Error::CurveUnsupported { curve: "P-521" })));
    let field = |field: &'static str| move |e: Error| matches!(e, Error::Field { field: f, fault: Fault::Unsupported } if f == field);
    assert!(field("predicate.serialization.method")(verdict("shard.sig").unwrap_err()));
    assert!(field("predicate.serialization.hash_type")(verdict("blake3.sig").unwrap_err()));
}

#[test]
fn the_statement_may_be_bound_to_a_name() {
    let (_folder, trust) = sample_trust();
    let bundle = fs::read(samples().join("tiny.sig")).unwrap();
    assert!(verify(&bundle, &trust, Some("tiny.gguf"), at(0)).is_ok());
    let other = verify(&bundle, &trust, Some("other.gguf"), at(0));
    assert!(matches!(other, Err(Error::SubjectName)));
}

#[test]
fn a_certificate_counts_only_while_it_is_valid_and_its_root_is_trusted() {
    let (_folder, trust) = sample_trust();
    let bundle = fs::read(samples().join("cert.sig")).unwrap();
    let day = 86_400;
    for (time, fault) in [
        (SAMPLE_TIME_S - 30 * day, ChainFault::NotYetValid),
        (SAMPLE_TIME_S + 500 * day, ChainFault::Expired),
    ] {
        let refused = verify(&bundle, &trust, None, at(time));
        assert!(matches!(refused, Err(Error::Chain(got)) if got == fault), "{refused:?}");
    }
    let (key, _) = SigningKey::generate().unwrap();
    let other = TrustStore::default().with_key("other", key.public().clone());
    let refused = verify(&bundle, &other, None, at(SAMPLE_TIME_S));
    assert!(matches!(refused, Err(Error::Chain(ChainFault::UnknownIssuer))));
}

#[test]
fn any_changed_byte_of_a_bundle_is_refused() {
    let (_folder, trust) = sample_trust();
    let text = fs::read_to_string(samples().join("tiny.sig")).unwrap();
    let bundle: Value = serde_json::from_str(&text).unwrap();
    let refused = |bundle: &Value| {
        verify(bundle.to_string().as_bytes(), &trust, None, at(SAMPLE_TIME_S)).unwrap_err()
    };
    for pointer in ["/dsseEnvelope/payload", "/dsseEnvelope/signatures/0/sig"] {
        let bytes = BASE64_STANDARD.decode(bundle.pointer(pointer).unwrap().as_str().unwrap());
        let bytes = bytes.unwrap();
        for i in 0..bytes.len() {
            for flip in [0x01, 0x80] {
                let mut changed = bytes.clone();
                changed[i] ^= flip;
                let mut bundle = bundle.clone();
                *bundle.pointer_mut(pointer).unwrap() = BASE64_STANDARD.encode(&changed).into();
                assert!(matches!(refused(&bundle), Error::Signature), "{pointer} byte {i}");
            }
        }
    }
    let pointer = "/verificationMaterial/publicKey/hint";
    let hint = bundle.pointer(pointer).unwrap().as_str().unwrap().to_owned();
    for i in 0..hint.len() {
        let mut changed = hint.clone().into_bytes();
        changed[i] = if changed[i] == b'0' { b'1' } else { b'0' };
        let mut bundle = bundle.clone();
        *bundle.pointer_mut(pointer).unwrap() = String::from_utf8(changed).unwrap().into();
        assert!(matches!(refused(&bundle), Error::UnknownKey), "hint digit {i}");
    }
    // Any byte of the text itself: nothing verifies but a change that JSON does not mean.
    let mut random = Random(7);
    for i in 0..text.len() {
        let mut changed = text.clone().into_bytes();
        changed[i] ^= 1 << random.below(7);
        let verified = verify(&changed, &trust, None, at(SAMPLE_TIME_S));
        let keyid = i > text.find("keyid").unwrap();
        assert!(verified.is_err() || keyid, "byte {i}");
    }
}

#[test]
fn any_changed_byte_of_the_model_is_refused() {
    let (_folder, trust) = sample_trust();
    let bundle = fs::read(samples().join("tiny.sig")).unwrap();
    let statement = verify(&bundle, &trust, Some("tiny.gguf"), at(SAMPLE_TIME_S)).unwrap();
    let model = fs::read(samples().join("tiny.gguf")).unwrap();
    let mut random = Random(42);
    for _ in 0..1000 {
        let mut changed = model.clone();
        let place = random.below(changed.len());
        changed[place] ^= 1 << random.below(8);
        assert!(matches!(statement.check(&sha256(&changed)), Err(Error::DigestMismatch)));
    }
    for changed in [[&model[..], &[0]].concat(), model[1..].to_vec(), Vec::new()] {
        assert!(statement.check(&sha256(&changed)).is_err());
    }
}

/// Signs any payload, as a signer that makes mistakes would.
struct Signer {
    pair: EcdsaKeyPair,
    trust: TrustStore,
    hint: String,
}

impl Signer {
    fn new() -> Self {
        let (key, pem) = SigningKey::generate().unwrap();
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.expose()).unwrap();
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, der.secret_pkcs8_der(), &random).unwrap();
        let hint = key.public().hint().to_owned();
        let trust = TrustStore::default().with_key("signer", key.public().clone());
        Self { pair, trust, hint }
    }

    fn bundle(&self, payload: &[u8]) -> Value {
        let kind = "application/vnd.in-toto+json";
        let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
        let message = [head.as_bytes(), payload].concat();
        let sig = self.pair.sign(&SystemRandom::new(), &message).unwrap();
        json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": { "publicKey": { "hint": self.hint }, "tlogEntries": [] },
            "dsseEnvelope": {
                "payload": BASE64_STANDARD.encode(payload),
                "payloadType": kind,
                "signatures": [{ "sig": BASE64_STANDARD.encode(sig.as_ref()), "keyid": "" }],
            },
        })
    }

    fn verify(&self, text: &str) -> Result<String, Error> {
        verify(text.as_bytes(), &self.trust, None, at(0)).map(|s| s.subject.clone())
    }
}

/// A payload that verifies.
fn good_payload() -> Value {
    let file = sha256(b"model");
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "name": "m.gguf", "digest": { "sha256": hex(&sha256(&file.0)) } }],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": [],
            },
            "resources": [{ "name": ".", "algorithm": "sha256", "digest": hex(&file) }],
        },
    })
}

/// What the error must be, as `Debug` shows it.
fn field(field: &str, fault: &str) -> String {
    format!("Field {{ field: \"{field}\", fault: {fault} }}")
}

fn assert_refused(signer: &Signer, text: &str, want: &str, case: &str) {
    let error = signer.verify(text).unwrap_err();
    let got = format!("{error:?}");
    assert!(got.starts_with(want), "{case}: {got}, not {want}");
}

#[test]
fn every_wrong_payload_is_refused_by_name_although_its_signature_holds() {
    let signer = Signer::new();
    let good = good_payload();
    assert_eq!(
        signer.verify(&signer.bundle(good.to_string().as_bytes()).to_string()).unwrap(),
        "m.gguf"
    );
    let resource = good.pointer("/predicate/resources/0").unwrap().clone();
    let two = json!([resource, resource]);
    let field =
        |field: &str, fault: &str| format!("Field {{ field: \"{field}\", fault: {fault} }}");
    let method = "predicate.serialization.method";
    let hash_type = "predicate.serialization.hash_type";
    let symlinks = "predicate.serialization.allow_symlinks";
    let cases: Vec<(&str, Value, String)> = vec![
        ("/_type", json!("https://in-toto.io/Statement/v0.1"), field("_type", "Unsupported")),
        ("/_type", Value::Null, field("_type", "WrongType")),
        ("/subject", json!([]), field("subject", "NotOne")),
        ("/subject", json!({}), field("subject", "WrongType")),
        ("/subject/0/name", json!(3), field("subject[0].name", "WrongType")),
        ("/subject/0/digest", json!({}), field("subject[0].digest.sha256", "Missing")),
        ("/subject/0/digest/sha256", json!("00"), field("subject[0].digest.sha256", "NotHex")),
        ("/subject/0/digest/sha256", json!("0".repeat(64)), "RootDigest".into()),
        (
            "/predicateType",
            json!("https://model_signing/Digests/v0.1"),
            field("predicateType", "Unsupported"),
        ),
        ("/predicate/serialization/method", json!("shards"), field(method, "Unsupported")),
        ("/predicate/serialization/hash_type", json!("blake2b"), field(hash_type, "Unsupported")),
        ("/predicate/serialization/allow_symlinks", json!(true), field(symlinks, "Unsupported")),
        ("/predicate/serialization", json!([]), field("predicate.serialization", "WrongType")),
        ("/predicate/resources", json!([]), "ResourceCount { count: 0 }".into()),
        ("/predicate/resources", two, "ResourceCount { count: 2 }".into()),
        ("/predicate/resources/0/name", json!("other.gguf"), "ResourceName".into()),
        ("/predicate/resources/0/name", json!("./m.gguf"), "ResourceName".into()),
        ("/predicate/resources/0/name", json!(""), "ResourceName".into()),
        ("/predicate/resources/0/name", json!("../m.gguf"), "UnsafeName".into()),
        ("/predicate/resources/0/name", json!("/m.gguf"), "UnsafeName".into()),
        ("/predicate/resources/0/name", json!("a\\..\\m"), "UnsafeName".into()),
        (
            "/predicate/resources/0/algorithm",
            json!("md5"),
            field("predicate.resources[0].algorithm", "Unsupported"),
        ),
        (
            "/predicate/resources/0/digest",
            json!("é".repeat(32)),
            field("predicate.resources[0].digest", "NotHex"),
        ),
        ("/predicate/resources/0/digest", json!("1".repeat(64)), "RootDigest".into()),
    ];
    for (pointer, value, want) in cases {
        let mut payload = good.clone();
        *payload.pointer_mut(pointer).unwrap() = value.clone();
        let bundle = signer.bundle(payload.to_string().as_bytes()).to_string();
        assert_refused(&signer, &bundle, &want, &format!("{pointer} = {value}"));
    }
    let twice = good.to_string().replacen("\"method\"", "\"method\":\"files\",\"method\"", 1);
    let bundle = signer.bundle(twice.as_bytes()).to_string();
    assert_refused(&signer, &bundle, "DuplicateMember", "a member twice");
    let bundle = signer.bundle(format!("{good}{good}").as_bytes()).to_string();
    assert_refused(&signer, &bundle, "Json", "two payloads");
}

#[test]
fn the_forms_that_others_write_are_accepted() {
    let signer = Signer::new();
    let mut named = good_payload();
    *named.pointer_mut("/predicate/resources/0/name").unwrap() = json!("m.gguf");
    let mut upper = good_payload();
    let digest = upper.pointer_mut("/predicate/resources/0/digest").unwrap();
    *digest = digest.as_str().unwrap().to_uppercase().into();
    let mut more = good_payload();
    more["predicate"]["later"] = json!({ "unknown": 1.5 });
    for payload in
        [named.to_string(), upper.to_string(), more.to_string(), format!("{:#}", good_payload())]
    {
        let bundle = signer.bundle(payload.as_bytes());
        assert_eq!(signer.verify(&format!("{bundle}\n")).unwrap(), "m.gguf", "{payload}");
    }
    let mut bundle = signer.bundle(good_payload().to_string().as_bytes());
    bundle["dsseEnvelope"]["signatures"][0].as_object_mut().unwrap().remove("keyid");
    bundle["verificationMaterial"].as_object_mut().unwrap().remove("tlogEntries");
    assert!(signer.verify(&bundle.to_string()).is_ok());
}

#[test]
fn every_wrong_bundle_is_refused_by_name() {
    let signer = Signer::new();
    let good = signer.bundle(good_payload().to_string().as_bytes());
    let field =
        |field: &str, fault: &str| format!("Field {{ field: \"{field}\", fault: {fault} }}");
    let envelope = "/dsseEnvelope";
    let material = "/verificationMaterial";
    let sig = good.pointer("/dsseEnvelope/signatures/0").unwrap().clone();
    let cases: Vec<(String, Value, String)> = vec![
        (
            "/mediaType".into(),
            json!("application/vnd.dev.sigstore.bundle.v0.2+json"),
            field("mediaType", "Unsupported"),
        ),
        (
            format!("{envelope}/payloadType"),
            json!("text/plain"),
            field("dsseEnvelope.payloadType", "Unsupported"),
        ),
        (format!("{envelope}/payload"), json!("e30"), field("dsseEnvelope.payload", "NotBase64")),
        (format!("{envelope}/payload"), json!("e31="), field("dsseEnvelope.payload", "NotBase64")),
        (format!("{envelope}/payload"), json!("e3 0="), field("dsseEnvelope.payload", "NotBase64")),
        (format!("{envelope}/payload"), json!("e30="), "Signature".into()),
        (format!("{envelope}/signatures"), json!([]), field("dsseEnvelope.signatures", "NotOne")),
        (
            format!("{envelope}/signatures"),
            json!([sig, sig]),
            field("dsseEnvelope.signatures", "NotOne"),
        ),
        (format!("{envelope}/signatures/0/sig"), json!(""), "Signature".into()),
        (
            format!("{envelope}/signatures/0/keyid"),
            json!(1),
            field("dsseEnvelope.signatures[0].keyid", "WrongType"),
        ),
        (
            format!("{material}/publicKey"),
            json!({ "rawBytes": "AA==" }),
            field("verificationMaterial.publicKey.hint", "Missing"),
        ),
        (format!("{material}/publicKey/hint"), json!("0".repeat(64)), "UnknownKey".into()),
        (
            format!("{material}/tlogEntries"),
            json!([{}]),
            field("verificationMaterial.tlogEntries", "Unsupported"),
        ),
        (
            material.into(),
            json!({ "certificate": {} }),
            field("verificationMaterial.certificate", "Unsupported"),
        ),
        (material.into(), json!({}), field("verificationMaterial", "NotOne")),
        (
            material.into(),
            json!({ "x509CertificateChain": { "certificates": [] } }),
            field("verificationMaterial.x509CertificateChain.certificates", "Missing"),
        ),
        (
            material.into(),
            json!({ "x509CertificateChain": { "certificates": [{ "rawBytes": "AA==" }] } }),
            "Chain(Malformed)".into(),
        ),
    ];
    for (pointer, value, want) in cases {
        let mut bundle = good.clone();
        *bundle.pointer_mut(&pointer).unwrap() = value.clone();
        assert_refused(&signer, &bundle.to_string(), &want, &format!("{pointer} = {value}"));
    }
}

#[test]
fn a_bundle_of_the_wrong_form_is_refused() {
    let signer = Signer::new();
    let good = signer.bundle(good_payload().to_string().as_bytes());
    for (pointer, name) in [
        ("", "bundle"),
        ("/verificationMaterial", "verificationMaterial"),
        ("/verificationMaterial/publicKey", "verificationMaterial.publicKey"),
        ("/dsseEnvelope", "dsseEnvelope"),
        ("/dsseEnvelope/signatures/0", "dsseEnvelope.signatures"),
    ] {
        let mut bundle = good.clone();
        bundle.pointer_mut(pointer).unwrap()["extra"] = json!(1);
        assert_refused(&signer, &bundle.to_string(), &field(name, "UnknownMember"), pointer);
    }
    let text = good.to_string();
    let twice = text.replacen("\"keyid\"", "\"keyid\":\"\",\"keyid\"", 1);
    assert_refused(&signer, &twice, "DuplicateMember", "a member twice");
    assert_refused(&signer, &format!("{text}x"), "Json", "trailing bytes");
    assert_refused(&signer, &text[..text.len() - 1], "Json", "truncated");
    assert_refused(&signer, &format!("\u{feff}{text}"), "Json", "byte order mark");
    assert_refused(&signer, &format!("{text}{}", " ".repeat(1 << 20)), "TooLong", "1 MiB and more");
    assert_refused(&signer, &"[".repeat(1 << 20), "Json", "deep nesting");
}

#[test]
fn what_is_signed_here_verifies_here_and_with_no_other_key() {
    let (key, _) = SigningKey::generate().unwrap();
    let (other, _) = SigningKey::generate().unwrap();
    let bundle = sign(&key, "m.gguf", &sha256(b"model")).unwrap();
    let trust = TrustStore::default().with_key("me", key.public().clone());
    let statement = verify(bundle.as_bytes(), &trust, Some("m.gguf"), at(0)).unwrap();
    assert_eq!((statement.signer.as_str(), statement.digest), ("me", sha256(b"model")));
    let trust = TrustStore::default().with_key("other", other.public().clone());
    let refused = verify(bundle.as_bytes(), &trust, None, at(0));
    assert!(matches!(refused, Err(Error::UnknownKey)));
    // A hint that points at another key does not make its signature.
    let forged = bundle.replace(key.public().hint(), other.public().hint());
    assert!(matches!(verify(forged.as_bytes(), &trust, None, at(0)), Err(Error::Signature)));
}
