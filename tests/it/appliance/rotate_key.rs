//! The log's key is changed while the appliance serves, and by a command that was interrupted.

use super::records::{all_records, complete, facts, tiny};
use super::*;

fn verify(appliance: &Appliance, key: &str, more: &[&str]) -> Value {
    let (log, key) = (appliance.path("audit"), appliance.path(key));
    let words = ["audit", "verify", &log, "--public-key", &key, "--json"];
    serde_json::from_str(&cloister_ok(&[&words[..], more].concat())).unwrap()
}

fn rotate(appliance: &Appliance) -> Output {
    cloister(&["audit", "rotate-key", "--json", "--config", &appliance.path("cloister.toml")])
}

#[test]
fn an_operator_changes_the_key_and_auditors_with_either_verify() {
    for user in users() {
        let mut appliance = tiny(user, "");
        let path = |name: &str| appliance.path(name);
        assert_eq!(complete(&appliance), 200);
        for (from, to) in [("audit.vkey", "old.vkey"), ("audit.key", "old.key")] {
            fs::copy(path(from), path(to)).unwrap();
        }
        fs::copy(path("audit/checkpoint"), path("kept.txt")).unwrap();
        let old = fs::read_to_string(path("old.vkey")).unwrap();

        let done = rotate(&appliance);
        let told: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let key = fs::read_to_string(path("audit.vkey")).unwrap();
        assert_eq!(told["key"], key.trim());
        assert_ne!(key, old);
        assert!(!Path::new(&path("audit.key.new")).exists());
        assert_eq!(complete(&appliance), 200, "it serves on");
        let size = told["size"].as_u64().unwrap();
        let proof = path(&format!("audit/rotation/{size}.tlog-proof"));
        cloister_ok(&["audit", "check-proof", &proof, "--public-key", &path("old.vkey")]);
        cloister_ok(&["audit", "check-proof", &proof, "--public-key", &path("audit.vkey")]);
        let rotated = &facts(&appliance, "key_rotated")[0]["observed"];
        assert_eq!((&rotated["key"], &rotated["size"]), (&json!("audit"), &told["size"]));
        assert_eq!(rotated["before"], old.trim());
        assert_eq!(rotated["after"], key.trim());

        for (file, followed) in [("old.vkey", json!(key.trim())), ("audit.vkey", Value::Null)] {
            let report = verify(&appliance, file, &["--checkpoint", &path("kept.txt")]);
            assert_eq!((&report["verdict"], &report["followed_to"]), (&json!("INTACT"), &followed));
            assert_eq!(report["key_changes"][0]["size"], told["size"], "{report}");
            assert!(report["anchor"].as_str().unwrap().starts_with("ANCHORED"), "{report}");
        }
        let log = path("audit");
        let told = cloister_ok(&["audit", "verify", &log, "--public-key", &path("old.vkey")]);
        assert!(told.contains("from now on give this one") && told.contains(key.trim()), "{told}");
        // An export takes the change along.
        let out = path("export");
        cloister_ok(&["audit", "export", &log, "--public-key", &path("old.vkey"), "--out", &out]);
        for key in ["old.vkey", "audit.vkey"] {
            cloister_ok(&["audit", "verify-export", &out, "--public-key", &path(key)]);
        }

        appliance.stop();
        // The command was root's here; the files it wrote are the service's.
        appliance.start_again();
        appliance.wait_until_ready();
        assert_eq!(complete(&appliance), 200);
        assert!(all_records(&appliance).len() as u64 > size);
        // The old key, from a copy, starts nothing any more.
        appliance.stop();
        fs::copy(appliance.path("old.key"), appliance.path("audit.key")).unwrap();
        give_to(&appliance.folder, user);
        appliance.start_again();
        assert!(!appliance.child.wait().unwrap().success());
        assert!(
            appliance.told().contains("the key that signs was replaced"),
            "{}",
            appliance.told()
        );
    }
}

/// The supervisor has changed the key and ends before the command has put the file in its place.
#[test]
fn a_change_that_was_interrupted_is_finished_by_asking_again() {
    let mut appliance = tiny(As::Oneself, "");
    let path = |name: &str| appliance.path(name);
    fs::copy(path("audit.vkey"), path("old.vkey")).unwrap();
    let words = ["keygen", "audit", "--name", "test.example/audit", "--out"];
    cloister_ok(&[&words[..], &[&path("audit.key.new")]].concat());
    fs::copy(path("audit.key.new"), path("fresh.key")).unwrap();
    let config = path("cloister.toml");
    let words = ["audit", "rotate-key", "--config", &config, "--new", &path("fresh.key")];
    let told = cloister_ok(&words);
    assert!(told.contains("the new key signs the log, the old one up to"), "{told}");
    appliance.stop();
    appliance.start_again();
    assert!(!appliance.child.wait().unwrap().success(), "the old key's file is still there");
    let done = rotate(&appliance);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    appliance.start_again();
    appliance.wait_until_ready();
    assert_eq!(complete(&appliance), 200);
    for key in ["old.vkey", "audit.vkey"] {
        assert_eq!(verify(&appliance, key, &[])["verdict"], "INTACT");
    }
    // A key of another log is refused, and nothing has changed.
    let other = appliance.path("other.key");
    cloister_ok(&["keygen", "audit", "--name", "other.example/audit", "--out", &other]);
    let words = ["audit", "rotate-key", "--config", &config, "--new", &appliance.path("old.key")];
    assert_eq!(cloister(&words).status.code(), Some(2), "no such file");
    assert_eq!(facts(&appliance, "key_rotated").len(), 1);
}
