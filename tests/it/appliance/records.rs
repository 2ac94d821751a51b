//! What the real supervisor puts on the record: each event that a run can bring about, in a log whose every
//! record is of the shipped schema.

use std::collections::BTreeSet;

use cloister::audit::record::{LogAction, SCHEMA};
use cloister::supervisor::control::{self, Command as Question};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use super::hostile::{deaths, order, taken_over};
use super::*;

/// An appliance of a model that loads at once.
pub(super) fn tiny(user: As, worker: &str) -> Appliance {
    Appliance::start_with(user, &support::golden().join("tiny/llama.gguf"), worker)
}

pub(super) fn complete(appliance: &Appliance) -> u16 {
    let body = json!({ "model": "smol", "prompt": "abc", "max_tokens": 3, "temperature": 0 });
    let answer = read_answer(appliance.post("/v1/completions", &body));
    answer.map(|(status, _)| status).unwrap_or_default()
}

/// All records of the log, each of which must be of the schema.
pub(super) fn all_records(appliance: &Appliance) -> Vec<Value> {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let (log, key) = (appliance.path("audit"), appliance.path("audit.vkey"));
    let listed = cloister_ok(&["audit", "list", &log, "--public-key", &key, "--json"]);
    let records = listed.lines().map(|line| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        record.as_object_mut().unwrap().remove("index");
        let faults: Vec<_> = validator.iter_errors(&record).map(|e| e.to_string()).collect();
        assert!(faults.is_empty(), "{record}: {faults:?}");
        record
    });
    records.collect()
}

fn name(record: &Value) -> &str {
    record["event"].as_object().unwrap().keys().next().unwrap()
}

/// The facts of each such event, in order.
pub(super) fn facts(appliance: &Appliance, event: &str) -> Vec<Value> {
    let records = appliance.records(event);
    records.into_iter().map(|record| record["event"][event].clone()).collect()
}

#[test]
fn what_happens_in_a_run_is_recorded_in_records_of_the_schema() {
    let mut appliance = tiny(As::Oneself, "guess_tokens = 1\n");
    let config = appliance.path("cloister.toml");
    assert_eq!(complete(&appliance), 200);
    authentication_fails(&mut appliance, &config);
    files_are_taken_anew(&appliance, &config);
    let socket = PathBuf::from(appliance.path("control.sock"));
    for (records, from_s) in [(1000, Some(7)), (9, None), (2000, Some(9))] {
        let (action, to_s) = (LogAction::Export, None);
        let ask = Question::LogRead { action, records, from_s, to_s };
        assert_eq!(control::ask(&socket, ask, &[]).unwrap()["ok"], true);
        assert_eq!(facts(&appliance, "log_read").len(), 1, "durable before it is answered");
    }
    let worker = appliance.only_child("cloister-worker");
    kill(worker, "KILL");
    eventually("another worker", || complete(&appliance) == 200);
    appliance.stop();
    settings_change(&mut appliance);

    let records = all_records(&appliance);
    let seen: BTreeSet<&str> = records.iter().map(name).collect();
    let want = [
        "authentication_failed",
        "begin",
        "child_died",
        "child_started",
        "config_changed",
        "end",
        "key_used",
        "log_read",
        "model_opened",
        "override",
        "reloaded",
        "start",
        "stop",
        "tokens_loaded",
    ];
    assert!(want.iter().all(|event| seen.contains(event)), "{seen:?}");
    let uid = nix::unistd::geteuid().as_raw();
    let declared = json!({ "action": "export", "records_max": 1024, "from_s": 7 });
    let first = json!({ "observed": { "uid": uid }, "declared": declared });
    // Those that followed shortly after stand in one record.
    let declared = json!({ "action": "export", "records_max": 2048 });
    let more = json!({ "observed": { "uid": uid, "count": 2 }, "declared": declared });
    assert_eq!(facts(&appliance, "log_read"), [first, more]);
}

/// A key that is none, and one that was revoked, are told apart; the second names whose it was.
fn authentication_fails(appliance: &mut Appliance, config: &str) {
    let made = cloister_ok(&["token", "add", "gone", "--json", "--config", config]);
    let made: Value = serde_json::from_str(&made).unwrap();
    let gone = made["token"].as_str().unwrap().to_owned();
    let good = std::mem::replace(&mut appliance.token, gone);
    assert_eq!(complete(appliance), 200);
    cloister_ok(&["token", "revoke", "gone", "--config", config]);
    eventually("the revocation", || complete(appliance) == 401);
    appliance.token = "sk-cloister-none".into();
    assert_eq!(complete(appliance), 401);
    for token in ["", "two words", &"k".repeat(600)] {
        appliance.token = token.into();
        assert_eq!(complete(appliance), 401);
    }
    appliance.token = good;
    eventually("what the gateway refused by itself", || {
        let all = facts(appliance, "authentication_failed");
        let declared = all.iter().filter(|one| one["declared"]["cause"] == "malformed");
        declared.map(|one| one["declared"]["count"].as_u64().unwrap()).sum::<u64>() == 3
    });
    let failed = || facts(appliance, "authentication_failed");
    let is = |facts: &Value, cause: &str| facts["observed"]["cause"] == cause;
    eventually("both failures", || {
        let failed = failed();
        failed.iter().any(|one| is(one, "unknown")) && failed.iter().any(|one| is(one, "revoked"))
    });
    let failed = failed();
    let revoked = failed.iter().find(|one| is(one, "revoked")).unwrap();
    let begun = facts(appliance, "begin");
    assert_eq!(revoked["observed"]["principal"], begun[1]["observed"]["principal"], "{failed:?}");
}

/// A reload that is taken, one that is refused, and two by signal, which name nobody: the first takes the lists
/// although the token table is refused, the second takes both, in one record, where the supervisor may read both.
fn files_are_taken_anew(appliance: &Appliance, config: &str) {
    let before = facts(appliance, "reloaded").len();
    assert!(cloister(&["reload", "--config", config]).status.success());
    let tokens = appliance.path("tokens.toml");
    let loosely = |mode| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&tokens, fs::Permissions::from_mode(mode)).unwrap();
    };
    loosely(0o644);
    assert_eq!(cloister(&["reload", "--config", config]).status.code(), Some(1));
    kill(appliance.child.id().cast_signed(), "HUP");
    eventually("all reloads", || facts(appliance, "reloaded").len() == before + 4);
    loosely(0o600);
    // The table is root's own, and the supervisor of root is another user by now.
    let is_withheld = is_root() && matches!(appliance.user, As::Oneself);
    let by_name: &[&str] = if is_withheld { &["refused", "taken"] } else { &["taken"] };
    let count = before + 4 + by_name.len();
    kill(appliance.child.id().cast_signed(), "HUP");
    eventually("what a signal takes", || facts(appliance, "reloaded").len() >= count);
    assert!(cloister(&["reload", "--config", config]).status.success());
    eventually("the last reload", || facts(appliance, "reloaded").len() > count);
    let reloads = facts(appliance, "reloaded").split_off(before);
    let of = |at: usize, member: &str| reloads[at]["observed"][member].clone();
    let outcomes: Vec<_> = (0..reloads.len()).map(|at| of(at, "outcome")).collect();
    let wanted = [&["taken", "refused", "refused", "taken"], by_name, &["taken"]].concat();
    assert_eq!(outcomes, wanted, "{reloads:?}");
    for refused in [1, 2] {
        assert!(of(refused, "check").as_str().unwrap().contains("chmod 600"), "{reloads:?}");
    }
    let named = (0..reloads.len()).map(|at| of(at, "uid").is_number());
    let by_signal = 2..reloads.len() - 1;
    assert!(named.enumerate().all(|(at, is)| is != by_signal.contains(&at)), "{reloads:?}");
    let tables = facts(appliance, "tokens_loaded");
    let pairs = tables.iter().zip(&tables[1..]);
    for (before, after) in pairs {
        assert_eq!(after["observed"]["before"], before["observed"]["digest"]);
    }
}

/// A configuration that was changed, and what it weakens, stand behind the start.
fn settings_change(appliance: &mut Appliance) {
    let weak = |appliance: &Appliance| -> Vec<String> {
        let overrides = facts(appliance, "override");
        let named = |one: &Value| one["observed"]["setting"].as_str().unwrap().to_owned();
        overrides.iter().map(named).collect()
    };
    let before = weak(appliance);
    assert!(before.contains(&"guess_tokens".into()), "{before:?}");
    assert!(!before.contains(&"allow_unsigned".into()), "{before:?}");
    assert!(facts(appliance, "config_changed").is_empty());
    appliance.change_config("name = \"smol\"\n", "name = \"smol\"\nallow_unsigned = true\n");
    give_to(&appliance.folder, appliance.user);
    appliance.start_again();
    appliance.wait_until_ready();
    appliance.stop();
    assert!(weak(appliance).contains(&"allow_unsigned".into()));
    let changed = facts(appliance, "config_changed");
    let starts = facts(appliance, "start");
    let want = json!({
        "part": "configuration",
        "before": starts[0]["observed"]["config_digest"],
        "after": starts[1]["observed"]["config_digest"],
    });
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(changed[0]["observed"], want);
    let programs = &starts[0]["observed"]["programs"];
    let worker = fs::read(appliance.programs.join("cloister-worker")).unwrap();
    let digest = cloister::audit::principal_keys::hex(
        ring::digest::digest(&ring::digest::SHA256, &worker).as_ref(),
    );
    assert_eq!(programs["worker"], digest);
}

#[test]
fn a_child_that_its_filter_killed_is_named_and_one_that_died_otherwise_is_not() {
    for user in users() {
        let mut appliance = taken_over(user, "cloister-gateway");
        appliance.start_again();
        appliance.wait_until_ready();
        assert_eq!(order(&appliance, "garbage"), None, "the control");
        eventually("the first death", || deaths(&appliance, "gateway").len() == 1);
        assert!(appliance.records("sandbox_violation").is_empty());
        appliance.wait_until_ready();
        assert_eq!(order(&appliance, "break-filter"), None);
        eventually("the violation", || appliance.records("sandbox_violation").len() == 1);
        let broken = &facts(&appliance, "sandbox_violation")[0];
        assert_eq!(broken["observed"], json!({ "child": "gateway", "signal": 31 }));
        appliance.stop();
        all_records(&appliance);
        let weak = facts(&appliance, "override");
        let is_evaluation =
            weak.iter().any(|one| one["observed"]["setting"] == "evaluation_profile");
        assert_eq!(is_evaluation, user == As::Nobody || !is_root(), "{weak:?}");
    }
}

#[test]
fn a_clock_that_was_set_between_two_runs_is_recorded() {
    if !is_root() {
        return support::tell("only root may make a time namespace: the clock was not set here");
    }
    let mut appliance = tiny(As::Oneself, "");
    appliance.stop();
    appliance.start_again();
    appliance.wait_until_ready();
    appliance.stop();
    assert!(appliance.records("clock_jump").is_empty(), "the control");
    // In this namespace the machine runs a day longer, so the system's clock seems to be set back.
    appliance.child = Command::new("unshare")
        .args(["--time", "--fork", "--boottime", "86400", "--"])
        .arg(appliance.programs.join("cloister-supervisor"))
        .args(["--config", &appliance.path("cloister.toml")])
        .current_dir("/")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    appliance.wait_until_ready();
    kill(descendants(appliance.child.id().cast_signed())[0], "TERM");
    appliance.child.wait().unwrap();
    let jumps = facts(&appliance, "clock_jump");
    assert_eq!(jumps, [json!({ "observed": { "direction": "back", "by_s_max": 131_072 } })]);
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}

/// Sets the machine's clock by so many seconds, and by nothing but the moment between two system calls less.
fn step_clock(by_s: i64) {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).unwrap();
    clock_settime(ClockId::CLOCK_REALTIME, now + TimeSpec::new(by_s, 0)).unwrap();
}

#[test]
#[ignore = "sets the machine's clock: for a machine of its own, in an emulator"]
fn a_clock_that_is_set_while_it_serves_is_recorded() {
    if !support::is_emulated() {
        return support::tell("this machine is not the test's own: its clock was not set");
    }
    let mut appliance = tiny(As::Oneself, "");
    assert!(facts(&appliance, "clock_jump").is_empty(), "the control");
    let steps = [(86_400, "forward", 131_072), (-7_200, "back", 8192), (4, "forward", 4)];
    for (count, (by_s, direction, by_s_max)) in (1..).zip(steps) {
        step_clock(by_s);
        eventually("the step", || facts(&appliance, "clock_jump").len() == count);
        let last = facts(&appliance, "clock_jump").pop().unwrap();
        let observed = &last["observed"];
        assert_eq!(observed["direction"], direction, "{last}");
        let near = [by_s_max, 2 * by_s_max, by_s_max / 2];
        assert!(near.iter().any(|it| observed["by_s_max"] == *it), "{last}");
        assert_eq!(complete(&appliance), 200, "after a step of {by_s} s");
    }
    appliance.stop();
    let report = appliance.verify_log();
    assert_eq!((&report["verdict"], &report["clock_steps_back"]), (&json!("INTACT"), &json!(1)));
    step_clock(7_200 - 86_400 - 4);
}
