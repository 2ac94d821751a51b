//! Who and what is admitted: revocation, the list of allowed models, certificates that have expired since.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cloister::ipc::message::Digest;
use cloister::package::admission::Admissions;
use cloister::package::digest_lists::Revocable;
use cloister::package::files::Ownership;
use cloister::package::keys::SigningKey;
use cloister::package::signature::{sign, verify};
use cloister::package::trust::{PublicKey, TrustStore};
use cloister::package::{ChainFault, Error};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair as _,
};
use serde_json::json;

use super::Folder;
use super::chains::{Authority, bundle, hex, payload_of, pre_authentication, sha256};

const DAY_S: u64 = 86_400;
/// When the test's leaf begins to be valid.
const START_S: u64 = 1_790_000_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn open_trust(folder: &Folder) -> Result<TrustStore, Error> {
    TrustStore::open(&folder.path("trust"), &Ownership::of(&[nix::unistd::getuid().as_raw()]))
}

/// A folder with a root in its trust folder, and an empty folder for admissions.
fn site() -> (Folder, Authority) {
    let folder = Folder::new();
    for name in ["trust", "admissions"] {
        fs::create_dir(folder.path(name)).unwrap();
    }
    let authority = Authority::new();
    folder.write("trust/root.pem", &authority.root_pem);
    (folder, authority)
}

#[test]
fn a_model_that_was_admitted_opens_after_its_certificate_expired_and_no_other_does() {
    let (folder, authority) = site();
    let trust = open_trust(&folder).unwrap();
    let leaf = authority.leaf(START_S, START_S + 10 * DAY_S);
    let model = sha256(b"model");
    let text = leaf.sign(&model);
    let admissions = Admissions::new(&folder.path("admissions"));
    let check = |text: &str, now_s| admissions.verify(text.as_bytes(), &trust, at(now_s));
    let fault = |text: &str, now_s| match check(text, now_s).unwrap_err() {
        Error::Chain(fault) => fault,
        error => panic!("{error:?}"),
    };
    let (during, after) = (START_S + DAY_S, START_S + 500 * DAY_S);
    assert_eq!(fault(&text, START_S - DAY_S), ChainFault::NotYetValid);
    assert_eq!(fault(&text, after), ChainFault::Expired, "never admitted");
    let admitted = check(&text, during).unwrap();
    assert_eq!((admitted.since_s, admitted.statement.digest), (None, model));
    admissions.keep(&admitted, at(during)).unwrap();
    let again = check(&text, after).unwrap();
    assert_eq!((again.since_s, again.statement.digest), (Some(during), model));
    // What is kept stays as it was.
    admissions.keep(&again, at(after)).unwrap();
    assert_eq!(check(&text, after).unwrap().since_s, Some(during));
    // Neither another model of the same signer, nor the same one signed anew, nor a clock that went back.
    assert_eq!(fault(&leaf.sign(&sha256(b"other")), after), ChainFault::Expired);
    assert_eq!(fault(&leaf.sign(&model), after), ChainFault::Expired);
    assert_eq!(fault(&text, START_S - DAY_S), ChainFault::NotYetValid);
    // All else is checked anew: the root and revocation.
    let (other, _) = site();
    let stranger = open_trust(&other).unwrap();
    let verdict = admissions.verify(text.as_bytes(), &stranger, at(after));
    assert!(matches!(verdict, Err(Error::Chain(ChainFault::Invalid))), "{verdict:?}");
    folder.write("trust/revoked.sha256", format!("{}  stolen\n", hex(&sha256(&leaf.der))));
    let verdict = admissions.verify(text.as_bytes(), &open_trust(&folder).unwrap(), at(after));
    assert!(matches!(verdict, Err(Error::Revoked { .. })), "{verdict:?}");
    // What was kept of another model, or of nothing, admits nothing.
    let kept = fs::read_dir(folder.path("admissions")).unwrap().next().unwrap().unwrap().path();
    let good = fs::read_to_string(&kept).unwrap();
    fs::write(&kept, good.replace(&hex(&model), &hex(&sha256(b"other")))).unwrap();
    assert_eq!(fault(&text, after), ChainFault::Expired);
    fs::write(&kept, good.replace(&during.to_string(), &(after + 1).to_string())).unwrap();
    assert_eq!(fault(&text, after), ChainFault::Expired, "kept in the future");
    for wrong in ["", "{}", "{\"model\":\"\",\"admitted_s\":-1}", "x"] {
        fs::write(&kept, wrong).unwrap();
        assert!(matches!(check(&text, after), Err(Error::Admission { .. })), "{wrong}");
    }
    fs::remove_file(&kept).unwrap();
    assert_eq!(fault(&text, after), ChainFault::Expired);
}

#[test]
fn a_key_needs_no_admission() {
    let (folder, _) = site();
    let key = SigningKey::open(&folder.signer("me")).unwrap();
    let text = sign(&key, "m.gguf", &sha256(b"model")).unwrap();
    let admissions = Admissions::new(&folder.path("admissions"));
    let trust = open_trust(&folder).unwrap();
    let admitted = admissions.verify(text.as_bytes(), &trust, at(0)).unwrap();
    admissions.keep(&admitted, at(0)).unwrap();
    assert_eq!(fs::read_dir(folder.path("admissions")).unwrap().count(), 0);
}

#[test]
fn keys_certificates_and_models_are_revoked_by_name() {
    let (folder, authority) = site();
    let leaf = authority.leaf(START_S, START_S + DAY_S);
    let key_path = folder.signer("me");
    let key = SigningKey::open(&key_path).unwrap();
    let model = sha256(b"model");
    let by_key = sign(&key, "m.gguf", &model).unwrap();
    let by_chain = leaf.sign(&model);
    let check = |text: &str| {
        verify(text.as_bytes(), &open_trust(&folder).unwrap(), None, at(START_S)).map(drop)
    };
    assert!(check(&by_key).is_ok() && check(&by_chain).is_ok());
    let everything = |pem: &str| hex(&sha256(pem.as_bytes()));
    let cases = [
        ("the key, by its PEM", everything(&key.public().to_pem()), &by_key, Revocable::Key),
        ("the leaf's key", everything(&leaf.public_pem), &by_chain, Revocable::Key),
        ("the leaf, by DER", hex(&sha256(&leaf.der)), &by_chain, Revocable::Certificate),
        ("the leaf, by PEM", everything(&leaf.pem), &by_chain, Revocable::Certificate),
        ("the root, by DER", hex(&sha256(&authority.root_der)), &by_chain, Revocable::Certificate),
        ("the root, by PEM", everything(&authority.root_pem), &by_chain, Revocable::Certificate),
        ("the model, by a key", hex(&model), &by_key, Revocable::Model),
        ("the model, by a chain", hex(&model), &by_chain, Revocable::Model),
    ];
    for (case, digest, text, want) in cases {
        folder.write("trust/revoked.sha256", format!("# gone\n{digest}  stolen in May\n"));
        match check(text).unwrap_err() {
            Error::Revoked { what, entry } => {
                assert_eq!((what, entry.as_str()), (want, "stolen in May"), "{case}");
            }
            error => panic!("{case}: {error:?}"),
        }
        // Without a remark the digest is named; another line revokes nothing.
        folder.write("trust/revoked.sha256", &digest);
        assert!(check(text).unwrap_err().to_string().contains(&digest), "{case}");
        folder.write("trust/revoked.sha256", hex(&sha256(case.as_bytes())));
        assert!(check(text).is_ok(), "{case}");
    }
}

#[test]
fn where_models_are_listed_no_other_is_admitted() {
    let (folder, _) = site();
    let key = SigningKey::open(&folder.signer("me")).unwrap();
    let model = sha256(b"model");
    let text = sign(&key, "m.gguf", &model).unwrap();
    let check = || verify(text.as_bytes(), &open_trust(&folder).unwrap(), None, at(0)).map(drop);
    assert!(check().is_ok(), "no list");
    for none in [String::new(), "# none\n".to_owned(), format!("{}  other\n", hex(&sha256(b"x")))] {
        folder.write("trust/allowed.sha256", &none);
        let refused = check().unwrap_err();
        assert!(matches!(refused, Error::NotAllowed { digest } if digest == model), "{refused:?}");
        assert!(refused.to_string().contains(&hex(&model)), "{refused}");
    }
    folder.write("trust/allowed.sha256", format!("{} *m.gguf\n", hex(&model).to_uppercase()));
    assert!(check().is_ok());
    folder.write("trust/revoked.sha256", hex(&model));
    assert!(matches!(check(), Err(Error::Revoked { .. })), "revocation is stronger");
}

#[test]
fn a_list_that_is_wrong_or_not_ours_stops_everything() {
    let (folder, _) = site();
    for name in ["allowed.sha256", "revoked.sha256"] {
        let list = folder.write(&format!("trust/{name}"), "# fine\nnonsense\n");
        match open_trust(&folder).unwrap_err() {
            Error::DigestList { path, line } => assert_eq!((path, line), (list.clone(), 2)),
            error => panic!("{name}: {error:?}"),
        }
        folder.write(&format!("trust/{name}"), vec![b'#'; (1 << 20) + 1]);
        assert!(matches!(open_trust(&folder), Err(Error::TooLong { .. })), "{name}");
        fs::write(&list, "").unwrap();
        fs::set_permissions(&list, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(open_trust(&folder), Err(Error::Ownership { .. })), "{name}");
        fs::remove_file(&list).unwrap();
    }
    // Lists alone trust nobody.
    fs::remove_file(folder.path("trust/root.pem")).unwrap();
    folder.write("trust/allowed.sha256", "");
    assert!(matches!(open_trust(&folder), Err(Error::TrustEmpty { .. })));
}

/// Signs with a key of this curve; returns the trust in it, its hint and the DER signature.
fn sign_with(
    algorithm: &'static EcdsaSigningAlgorithm,
    head: &[u8],
    payload: &[u8],
) -> (TrustStore, String, Vec<u8>) {
    let random = SystemRandom::new();
    let der = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, der.as_ref(), &random).unwrap();
    let public = PublicKey::from_spki(&[head, pair.public_key().as_ref()].concat()).unwrap();
    let hint = public.hint().to_owned();
    let sig = pair.sign(&random, &pre_authentication(payload)).unwrap();
    (TrustStore::default().with_key("signer", public), hint, sig.as_ref().to_vec())
}

/// The heads of public keys in DER, before the point.
const SPKI_P256: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
    \x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
const SPKI_P384: &[u8] = b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
    \x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00";

#[test]
fn signatures_are_der_over_p256_or_p384_whichever_of_the_two_values_of_s_they_hold() {
    let payload = payload_of(&sha256(b"model")).to_string();
    let check = |trust: &TrustStore, hint: &str, sig: &[u8]| {
        let material = json!({ "publicKey": { "hint": hint }, "tlogEntries": [] });
        let text = bundle(&material, payload.as_bytes(), sig).to_string();
        verify(text.as_bytes(), trust, None, at(0)).map(|statement| statement.digest)
    };
    let algorithm = &ECDSA_P384_SHA384_ASN1_SIGNING;
    let (trust, hint, sig) = sign_with(algorithm, SPKI_P384, payload.as_bytes());
    assert_eq!(check(&trust, &hint, &sig).unwrap(), sha256(b"model"), "P-384");

    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    // One other s of a byte less than usual, as one in 256 is: its first byte is not written.
    for is_short in [true, false] {
        let (trust, hint, sig, other) = loop {
            let (trust, hint, sig) = sign_with(algorithm, SPKI_P256, payload.as_bytes());
            let (_, s) = values(&sig);
            let other = minus(&s);
            if (other[0] == 0) == is_short {
                break (trust, hint, sig, other);
            }
        };
        assert_eq!(check(&trust, &hint, &sig).unwrap(), sha256(b"model"), "P-256");
        let (r, _) = values(&sig);
        let mirrored = signature_of(&r, &other);
        assert_eq!(check(&trust, &hint, &mirrored).unwrap(), sha256(b"model"), "{is_short}");
    }
    let (trust, hint, sig) = sign_with(algorithm, SPKI_P256, payload.as_bytes());
    let (r, s) = values(&sig);
    assert_eq!(signature_of(&r, &s), sig);
    let raw = [&r[..], &s[..]].concat();
    for (case, sig) in [
        ("r and s side by side", raw),
        ("a byte behind", [&sig[..], &[0]].concat()),
        ("truncated", sig[..sig.len() - 1].to_vec()),
        ("a longer form of the length", [&[0x30, 0x81], &sig[1..]].concat()),
        ("nothing", Vec::new()),
    ] {
        assert!(matches!(check(&trust, &hint, &sig), Err(Error::Signature)), "{case}");
    }
}

/// `r` and `s` of a DER signature.
fn values(sig: &[u8]) -> ([u8; 32], [u8; 32]) {
    (integer(&sig[2..]), integer(&sig[2 + 2 + usize::from(sig[3])..]))
}

/// The 32 bytes of a DER integer.
fn integer(der: &[u8]) -> [u8; 32] {
    let value = &der[2..2 + usize::from(der[1])];
    let mut bytes = [0; 32];
    let value = if value.len() > 32 { &value[1..] } else { value };
    bytes[32 - value.len()..].copy_from_slice(value);
    bytes
}

/// The DER signature of `r` and `s`.
fn signature_of(r: &[u8; 32], s: &[u8; 32]) -> Vec<u8> {
    let values = [r, s].map(|value| {
        // As few bytes as hold it, and a zero before a first bit that is set: there it would be a sign.
        let value = &value[value.iter().position(|&byte| byte != 0).unwrap()..];
        let value = [if value[0] & 0x80 == 0 { &[][..] } else { &[0] }, value].concat();
        [&[2, u8::try_from(value.len()).unwrap()], &value[..]].concat()
    });
    let values = values.concat();
    [&[0x30, u8::try_from(values.len()).unwrap()], &values[..]].concat()
}

/// `n - s`, with the order n of P-256.
fn minus(s: &[u8; 32]) -> [u8; 32] {
    let order = Digest([
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
        0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ])
    .0;
    let mut difference = [0; 32];
    let mut borrow = false;
    for i in (0..32).rev() {
        let (value, first) = order[i].overflowing_sub(s[i]);
        let (value, second) = value.overflowing_sub(u8::from(borrow));
        difference[i] = value;
        borrow = first || second;
    }
    difference
}
