//! Members of the auditors' group read the log's files themselves; what they read through Cloister is on the
//! record, or they are told and shown nothing.

use std::os::unix::fs::MetadataExt as _;

use super::records::{complete, facts, tiny};
use super::*;

/// The group of the test: nobody's.
const GROUP: u32 = 60_805;
/// A member of it, and a user who is none.
const AUDITOR: u32 = 65_533;
const STRANGER: u32 = 65_532;

/// `cloister audit WORDS` as a user with these groups: exit code, what it prints, what it tells.
fn as_user(
    (appliance, uid, groups): (&Appliance, u32, &str),
    words: &[&str],
) -> (Option<i32>, String, String) {
    // The files that the supervisor wrote since.
    let readable = Command::new("chmod").args(["-R", "a+rX", &appliance.path("audit")]).status();
    assert!(readable.unwrap().success());
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={uid}"), &format!("--regid={uid}")]);
    match groups {
        "" => command.arg("--clear-groups"),
        groups => command.arg(format!("--groups={groups}")),
    };
    command.args(["--", env!("CARGO_BIN_EXE_cloister"), "audit"]).args(words);
    let (log, key, config) =
        (appliance.path("audit"), appliance.path("audit.vkey"), appliance.path("cloister.toml"));
    command.args([&log, "--public-key", &key, "--config", &config]);
    let done = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (done.status.code(), text(done.stdout), text(done.stderr))
}

#[test]
fn an_auditor_who_is_not_root_is_on_the_record_or_is_shown_nothing() {
    if !is_root() {
        return support::tell(
            "only root may be another user: no auditor's reading was recorded here",
        );
    }
    let mut appliance = tiny(As::Oneself, "");
    appliance.stop();
    appliance.change_config("[audit]\n", &format!("[audit]\nreaders_group = {GROUP}\n"));
    appliance.start_again();
    appliance.wait_until_ready();
    assert_eq!(complete(&appliance), 200);
    let group = GROUP.to_string();
    let auditor =
        |appliance: &Appliance, words: &[&str]| as_user((appliance, AUDITOR, &group), words);
    let read = |appliance: &Appliance| {
        let mut all = facts(appliance, "log_read");
        all.retain(|one| one["observed"]["uid"] == AUDITOR);
        all
    };
    let (code, printed, told) = auditor(&appliance, &["list", "--event", "begin", "--from", "1h"]);
    assert_eq!((code, told.as_str()), (Some(0), ""), "{printed}");
    assert!(printed.contains("begin"), "{printed}");
    let seen = read(&appliance);
    assert_eq!(seen.len(), 1, "{seen:?}");
    let declared = &seen[0]["declared"];
    assert_eq!(declared["action"], "list");
    assert!(declared["from_s"].is_u64() && declared["to_s"].is_null(), "{declared}");
    let (code, _, told) = auditor(&appliance, &["verify"]);
    assert_eq!((code, told.as_str()), (Some(0), ""));

    // Who can read the files but is no member: refused, unless they answer for it themselves.
    let stranger = (&appliance, STRANGER, "");
    let (code, printed, told) = as_user(stranger, &["list"]);
    assert_eq!((code, printed.as_str()), (Some(2), ""), "{told}");
    assert!(told.contains("cannot be recorded") && told.contains("--unrecorded"), "{told}");
    let (code, printed, told) = as_user(stranger, &["list", "--unrecorded"]);
    assert!(code == Some(0) && printed.contains("begin"), "{told}");
    assert!(told.contains("not recorded"), "{told}");
    let all = facts(&appliance, "log_read");
    assert!(all.iter().all(|one| one["observed"]["uid"] != STRANGER), "{all:?}");
    // Neither may ask anything of the operators' socket.
    let control = PathBuf::from(appliance.path("control.sock"));
    assert_eq!(fs::metadata(control).unwrap().mode() & 0o777, 0o600);
    let readers = fs::metadata(appliance.path("readers.sock")).unwrap();
    assert_eq!((readers.gid(), readers.mode() & 0o777), (GROUP, 0o660));

    // Many readings of one kind are two records: the first, and the rest together.
    for _ in 0..5 {
        assert_eq!(auditor(&appliance, &["stats"]).0, Some(0));
    }
    appliance.stop();
    let stats: Vec<Value> =
        read(&appliance).into_iter().filter(|one| one["declared"]["action"] == "stats").collect();
    let counts: Vec<u64> =
        stats.iter().map(|one| one["observed"]["count"].as_u64().unwrap_or(1)).collect();
    assert_eq!(counts.iter().sum::<u64>(), 5, "{stats:?}");
    assert!(counts.len() <= 3, "{counts:?}");

    // Nobody can record it: the log is checked, but no record is shown.
    let (code, printed, told) = auditor(&appliance, &["list"]);
    assert_eq!((code, printed.as_str()), (Some(2), ""), "{told}");
    assert!(told.contains("cannot be recorded"), "{told}");
    let (code, printed, told) = auditor(&appliance, &["verify"]);
    assert!(code == Some(0) && printed.starts_with("INTACT"), "{told}");
    assert!(told.contains("not recorded"), "{told}");
    assert_eq!(auditor(&appliance, &["list", "--unrecorded"]).0, Some(0));
}
