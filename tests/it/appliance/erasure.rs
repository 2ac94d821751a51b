//! Erasing a principal on the running appliance, and making older copies of the keys useless.

use cloister::audit::record::KeyedDigest;
use cloister::audit::{PrincipalKeys, WrappingKey};

use super::records::{complete, facts, tiny};
use super::*;

/// The text that every request of these tests asks about.
const TEXT: &str = "abc";

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().unwrap()
}

/// What an auditor with these keys finds: how many requests sent the text.
fn found_with(appliance: &Appliance, keys: &str, wrapping: &str) -> usize {
    let wrapping = WrappingKey::parse(&fs::read(appliance.path(wrapping)).unwrap()).unwrap();
    let keys = PrincipalKeys::look(Path::new(&appliance.path(keys)), wrapping).unwrap();
    let keys = keys.all().unwrap();
    let digest = sha256(TEXT.as_bytes());
    let ends = facts(appliance, "end");
    let is_it = |end: &&Value| {
        let messages = end["declared"]["messages"].as_array().unwrap();
        let keyed = |one: &Value| serde_json::from_value::<KeyedDigest>(one.clone()).unwrap();
        messages.iter().map(keyed).any(|one| keys.iter().any(|key| key.matches(&one, &digest)))
    };
    ends.iter().filter(is_it).count()
}

fn found(appliance: &Appliance) -> usize {
    found_with(appliance, "principals", "wrapping.key")
}

/// Another principal; returns its token.
fn other_principal(appliance: &Appliance) -> String {
    let config = appliance.path("cloister.toml");
    let made = cloister_ok(&["token", "add", "other", "--json", "--config", &config]);
    let made: Value = serde_json::from_str(&made).unwrap();
    made["token"].as_str().unwrap().to_owned()
}

fn erase(appliance: &Appliance, principal: &str) -> (Option<i32>, Value) {
    let socket = appliance.path("control.sock");
    let words = ["audit", "erase", "--principal", principal, "--yes", "--json", "--socket"];
    let done = cloister(&[&words[..], &[&socket]].concat());
    (done.status.code(), serde_json::from_slice(&done.stdout).unwrap_or_default())
}

#[test]
fn what_an_erased_principal_sent_is_found_no_more_and_the_log_stays_whole() {
    let mut appliance = tiny(As::Oneself, "");
    let other = other_principal(&appliance);
    eventually("an answer", || complete(&appliance) == 200);
    let first = std::mem::replace(&mut appliance.token, other);
    eventually("another's answer", || complete(&appliance) == 200);
    let begun = facts(&appliance, "begin");
    let pseudonym = begun[0]["observed"]["principal"].clone();
    assert_ne!(pseudonym, begun[1]["observed"]["principal"]);
    eventually("both ends", || facts(&appliance, "end").len() == 2);
    assert_eq!(found(&appliance), 2, "the control: with the keys both are found");
    assert_eq!(erase(&appliance, "nobody").0, Some(1));
    let socket = appliance.path("control.sock");
    let unsure = ["audit", "erase", "--principal", "test", "--socket", &socket];
    assert_eq!(cloister(&unsure).status.code(), Some(2), "without --yes");
    assert_eq!(found(&appliance), 2);

    let (code, answer) = erase(&appliance, "test");
    assert_eq!((code, &answer["pseudonym"]), (Some(0), &pseudonym), "{answer}");
    assert_eq!(found(&appliance), 1, "the other principal's text is found as before");
    let erased = facts(&appliance, "erased");
    assert_eq!(erased.len(), 1);
    assert_eq!(erased[0]["observed"]["principal"], pseudonym);
    let destroyed = || facts(&appliance, "key_destroyed");
    eventually("the destroyed key", || destroyed().len() == 1);
    assert_eq!(destroyed()[0]["observed"], json!({ "key": "principal", "id": pseudonym }));
    assert_eq!(erase(&appliance, "test").0, Some(1), "there is no key any more");

    // Who holds the token goes on as somebody whom nothing links to what was before.
    appliance.token = first;
    assert_eq!(complete(&appliance), 200);
    let again = facts(&appliance, "begin").swap_remove(2);
    assert_ne!(again["observed"]["principal"], pseudonym);
    appliance.stop();
    assert_eq!(found(&appliance), 2);
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
    assert_eq!(appliance.verify_log()["open_requests"], 0);
}

#[test]
fn two_users_must_ask_where_two_are_asked_for_and_they_may_do_nothing_else() {
    if !is_root() {
        return support::tell("only root may be two users: erasures were confirmed by none here");
    }
    let mut appliance = tiny(As::Oneself, "");
    appliance.stop();
    let two = "[audit]\nerase_confirmations = 2\nerase_operators = [65534]\n";
    appliance.change_config("[audit]\n", two);
    appliance.start_again();
    appliance.wait_until_ready();
    assert_eq!(complete(&appliance), 200);
    eventually("its end", || found(&appliance) == 1);
    let socket = appliance.path("control.sock");
    let as_user = |uid: u32, words: &[&str]| -> Option<i32> {
        let mut command = Command::new("setpriv");
        command.args([
            &format!("--reuid={uid}"),
            &format!("--regid={uid}"),
            "--clear-groups",
            "--",
        ]);
        command.arg(env!("CARGO_BIN_EXE_cloister")).args(words).args(["--socket", &socket]);
        command.output().unwrap().status.code()
    };
    let words = ["audit", "erase", "--principal", "test", "--yes"];
    let status = ["status"];
    for _ in 0..2 {
        let (code, answer) = erase(&appliance, "test");
        assert_eq!((code, &answer["erased"]), (Some(0), &json!(false)), "{answer}");
        assert_eq!(answer["confirmations"], 1, "root alone stays one user");
    }
    assert_eq!(as_user(1, &words), Some(2), "a user whom the configuration does not name");
    assert_eq!(found(&appliance), 1);
    assert_eq!(as_user(65534, &status), Some(2), "erasures alone");
    assert_eq!(as_user(0, &status), Some(0), "the control");
    assert_eq!(as_user(65534, &words), Some(0));
    assert_eq!(found(&appliance), 0);
    let asked = facts(&appliance, "erasure_asked");
    assert_eq!(asked.len(), 1, "who asks again adds nothing");
    assert_eq!(asked[0]["observed"]["uid"], 0);
    assert_eq!(facts(&appliance, "erased")[0]["observed"]["by"], json!([0, 65534]));
    appliance.stop();
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}

#[test]
fn a_backup_of_the_keys_is_useless_once_the_wrapping_key_is_replaced() {
    for user in users() {
        let mut appliance = tiny(user, "");
        assert_eq!(complete(&appliance), 200);
        eventually("its end", || found(&appliance) == 1);
        let made = facts(&appliance, "key_created");
        let roles: Vec<_> = made.iter().map(|one| one["observed"]["key"].clone()).collect();
        assert_eq!(roles, ["wrapping", "principal"], "{made:?}");
        let path = |name: &str| appliance.path(name);
        let copy = |from: &str, to: &str| {
            let done = Command::new("cp").args(["-a", &path(from), &path(to)]).status();
            assert!(done.unwrap().success());
        };
        copy("principals", "backup");
        copy("wrapping.key", "old.key");

        let rotate = ["audit", "rotate-wrapping-key", "--config", &path("cloister.toml")];
        let done = cloister(&rotate);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert!(!Path::new(&path("wrapping.key.new")).exists());
        assert_eq!(found(&appliance), 1, "the keys are the same");
        assert_eq!(complete(&appliance), 200, "and served with");
        eventually("the rotation", || facts(&appliance, "key_rotated").len() == 1);
        let rotated = &facts(&appliance, "key_rotated")[0]["observed"];
        assert_eq!((&rotated["key"], &rotated["count"]), (&json!("wrapping"), &json!(1)));

        let words = ["audit", "erase", "--principal", "test", "--yes"];
        let socket = path("control.sock");
        cloister_ok(&[&words[..], &["--socket", &socket]].concat());
        eventually("the erasure", || found(&appliance) == 0);
        copy("backup", "copy");
        assert!(
            found_with(&appliance, "copy", "old.key") > 0,
            "the control: with the old key it is"
        );
        let opened = WrappingKey::parse(&fs::read(path("wrapping.key")).unwrap()).unwrap();
        let refused = PrincipalKeys::look(Path::new(&path("backup")), opened).err().unwrap();
        assert!(refused.to_string().contains("rotate-wrapping-key"), "{refused}");

        // A service that is given the backup does not start with it.
        appliance.stop();
        fs::remove_dir_all(appliance.path("principals")).unwrap();
        fs::rename(appliance.path("backup"), appliance.path("principals")).unwrap();
        give_to(&appliance.folder, user);
        appliance.start_again();
        assert!(!appliance.child.wait().unwrap().success());
        assert!(appliance.told().contains("are wrapped under"), "{}", appliance.told());
    }
}

/// What `cloister audit match` says of the text: exit code and what it tells.
fn matched(appliance: &Appliance) -> (Option<i32>, String) {
    let body = appliance.path("wanted.txt");
    fs::write(&body, TEXT).unwrap();
    let (log, key, config) =
        (appliance.path("audit"), appliance.path("audit.vkey"), appliance.path("cloister.toml"));
    let words = ["audit", "match", &log, "--public-key", &key, "--config", &config];
    let done = cloister(&[&words[..], &["--body", &body, "--plain"]].concat());
    (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
}

/// The one attack on an erasure that needs no other wrapping key: a copy of the key's file comes back.
#[test]
fn an_erased_key_that_is_put_back_from_a_backup_finds_nothing_and_is_destroyed_again() {
    let mut appliance = tiny(As::Oneself, "");
    assert_eq!(complete(&appliance), 200);
    eventually("its end", || found(&appliance) == 1);
    assert_eq!(matched(&appliance).0, Some(0), "the control");
    let path = |name: &str| appliance.path(name);
    let copy = |from: &str, to: &str| {
        let done = Command::new("cp").args(["-aT", &path(from), &path(to)]).status();
        assert!(done.unwrap().success());
    };
    copy("principals", "backup");
    let (code, answer) = erase(&appliance, "test");
    assert_eq!((code, &answer["wrapping_key_replaced"]), (Some(0), &json!(false)), "{answer}");
    let pseudonym = answer["pseudonym"].as_str().unwrap().to_owned();
    assert_eq!(matched(&appliance).0, Some(1));

    // While the appliance runs: no look-up, and its next request is another's.
    copy("backup", "principals");
    assert_eq!(found(&appliance), 1, "the control: the file is a key, for who asks no log");
    let (code, told) = matched(&appliance);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains(&format!("the key of {pseudonym}, which was erased")), "{told}");
    assert_eq!(complete(&appliance), 200);
    let destroyed = || {
        let all = facts(&appliance, "key_destroyed");
        all.iter().filter(|one| one["observed"]["id"] == pseudonym.as_str()).count()
    };
    eventually("the second destruction", || destroyed() == 2);
    assert!(!matched(&appliance).1.contains("was erased"), "the file is gone");
    let begun = facts(&appliance, "begin");
    assert_eq!(begun[0]["observed"]["principal"], pseudonym.as_str());
    assert_ne!(begun[1]["observed"]["principal"], pseudonym.as_str());

    // While it does not run: the next start destroys it.
    appliance.stop();
    let path = |name: &str| appliance.path(name);
    fs::remove_dir_all(path("principals")).unwrap();
    fs::rename(path("backup"), path("principals")).unwrap();
    appliance.start_again();
    appliance.wait_until_ready();
    let told = appliance.told();
    assert!(
        told.contains(&format!("the key of {pseudonym} was erased and is there again")),
        "{told}"
    );
    assert_eq!(complete(&appliance), 200);
    let last = facts(&appliance, "begin").pop().unwrap();
    assert_ne!(last["observed"]["principal"], pseudonym.as_str());
    let all = facts(&appliance, "key_destroyed");
    assert_eq!(all.iter().filter(|one| one["observed"]["id"] == pseudonym.as_str()).count(), 3);
    appliance.stop();
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}

#[test]
fn an_erasure_replaces_the_wrapping_key_so_that_no_copy_from_before_is_of_use() {
    let mut appliance = tiny(As::Oneself, "");
    let other = other_principal(&appliance);
    let first = std::mem::replace(&mut appliance.token, other);
    eventually("an answer", || complete(&appliance) == 200);
    appliance.token = first;
    assert_eq!(complete(&appliance), 200);
    eventually("both ends", || found(&appliance) == 2);
    let path = |name: &str| appliance.path(name);
    let backup = |from: &str, to: &str| {
        let done = Command::new("cp").args(["-a", &path(from), &path(to)]).status();
        assert!(done.unwrap().success());
    };
    backup("principals", "backup");
    backup("wrapping.key", "old.key");
    let config = path("cloister.toml");
    let words = ["audit", "erase", "--principal", "test", "--yes", "--json", "--config", &config];
    let answer: Value = serde_json::from_str(&cloister_ok(&words)).unwrap();
    assert_eq!(answer["wrapping_key_replaced"], true, "{answer}");
    eventually("the rotation", || facts(&appliance, "key_rotated").len() == 1);
    assert_eq!(found(&appliance), 1, "the other principal's key goes on");
    assert_eq!(found_with(&appliance, "backup", "old.key"), 2, "the control");
    let opened = WrappingKey::parse(&fs::read(path("wrapping.key")).unwrap()).unwrap();
    assert!(PrincipalKeys::look(Path::new(&path("backup")), opened).is_err());
    assert!(!Path::new(&path("wrapping.key.new")).exists());
    appliance.stop();
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}
