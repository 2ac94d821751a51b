//! Keys that the supervisor has used and needs no more: nowhere in its memory once it serves.
//!
//! The test reads that memory as root may. The control finds the identity while a model is opened with it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

/// The secret bytes of an identity, as age writes it: bech32, five bits a character, then six of checksum.
pub(crate) fn scalar(identity: &str) -> Vec<u8> {
    const DIGITS: &str = "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L";
    let digits = identity.trim().strip_prefix("AGE-SECRET-KEY-1").unwrap();
    let values = digits[..digits.len() - 6].chars().map(|c| DIGITS.find(c).unwrap());
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0_usize);
    for value in values {
        held = (held << 5 | value) & 0xFFF;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(held >> bits & 0xFF).unwrap());
        }
    }
    assert_eq!(bytes.len(), 32);
    bytes
}

/// What must be gone, each by its name: texts of key files, and the secret bytes that they stand for.
fn secrets(appliance: &Appliance) -> Vec<(&'static str, Vec<u8>)> {
    let read = |name| fs::read_to_string(appliance.path(name)).unwrap();
    let (identity, audit) = (read("identity.age"), read("audit.key"));
    let identity = identity.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).unwrap();
    let audit = audit.lines().nth(1).unwrap();
    let der = STANDARD.decode(audit).unwrap();
    // RFC 8410: the seed is an octet string of 32 bytes within another.
    let seed = der.windows(4).position(|it| it == [4, 34, 4, 32]).unwrap() + 4;
    vec![
        ("the identity's text", identity.as_bytes().to_vec()),
        // But for the bits that X25519 sets and clears at its ends.
        ("the identity", scalar(identity)[1..31].to_vec()),
        ("the audit key's text", audit.as_bytes()[24..].to_vec()),
        ("the audit key's seed", der[seed..seed + 32].to_vec()),
    ]
}

fn held(secrets: &[(&'static str, Vec<u8>)], pid: i32) -> Vec<String> {
    let found = secrets.iter().flat_map(|(name, secret)| {
        found_in(pid, secret).into_iter().map(move |at| format!("{name} at {at}"))
    });
    found.collect()
}

#[test]
fn a_key_that_was_used_is_gone_from_the_supervisors_memory() {
    if !is_root() {
        return support::skip("the memory of living processes", "the tests run as a plain user");
    }
    let mut appliance = Appliance::start(As::Oneself);
    appliance.stop();
    let secrets = secrets(&appliance);
    let own = held(&secrets, std::process::id().cast_signed());
    for (name, _) in &secrets {
        assert!(own.iter().any(|at| at.starts_with(name)), "the control: {name} in {own:?}");
    }
    appliance.start_again();
    let start = Instant::now();
    let opener = loop {
        match appliance.children("cloister-opener")[..] {
            [opener, ..] => break opener,
            [] => assert!(start.elapsed() < Duration::from_secs(60), "{}", appliance.told()),
        }
    };
    kill(opener, "STOP");
    let supervisor = appliance.child.id().cast_signed();
    let found = held(&secrets, supervisor);
    assert!(found.iter().any(|at| at.starts_with("the identity at")), "the control: {found:?}");
    kill(opener, "CONT");
    appliance.wait_until_ready();
    assert_eq!(held(&secrets, supervisor), [""; 0]);
    assert_eq!(appliance.chat(&ask("hi", 4)).0, 200);
    assert_eq!(held(&secrets, supervisor), [""; 0], "after an answer");
    appliance.stop();
}
