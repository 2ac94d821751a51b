//! The traps of a start: each wrong order of its steps really leaves a power behind, and our children have none.
//!
//! What is read of our children is read from outside, of children that the real spawner started.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::jail::{ROLES, User, probe, users};
use super::support::{is_emulated, skip};

/// The line of a trap's or a child's report that starts with `start`, without it.
fn line<'a>(report: &'a str, start: &str) -> &'a str {
    let found = report.lines().find_map(|line| line.strip_prefix(start));
    found.unwrap_or_else(|| panic!("no line `{start}`: {report}")).trim()
}

/// Runs `check` on every kind of child, started by everybody that the tests can be.
fn of_each_child(check: impl Fn(User, &str, &str)) {
    for &user in users() {
        for role in ROLES {
            check(user, role, &probe(user, &["look", role]));
        }
    }
}

/// A trap that only root can walk into.
fn trap_of_root(name: &str) -> Option<String> {
    match users() {
        [User::Root, ..] => Some(probe(User::Root, &["trap", name])),
        _ => None,
    }
}

/// Of every thread of a child.
fn threads(report: &str) -> Vec<BTreeMap<&str, &str>> {
    let mut threads = Vec::new();
    for thread in report.split("thread\n").skip(1) {
        let fields = thread.lines().filter_map(|line| line.split_once(':'));
        threads.push(fields.map(|(key, value)| (key, value.trim())).collect());
    }
    threads
}

#[test]
fn a_change_of_user_clears_the_parent_death_signal_and_ours_is_set_after_it() {
    if let Some(trap) = trap_of_root("death-signal") {
        assert_eq!(trap, "set 9\nafter the change of user 0\nset again 9\n");
    }
    of_each_child(|user, role, report| {
        let ready = line(report, "ready ");
        assert!(ready.contains("death signal 9,"), "{user:?} {role}: {ready}");
    });
}

#[test]
fn a_new_program_can_be_dumped_again_and_ours_forbids_it_after_its_start() {
    for &user in users() {
        assert_eq!(probe(user, &["trap", "dumpable-exec"]), "set 0\nnow 1\n", "{user:?}");
    }
    if let Some(trap) = trap_of_root("dumpable-user") {
        let by_kernel = fs::read_to_string("/proc/sys/fs/suid_dumpable").unwrap();
        assert_eq!(trap, format!("set 1\nnow {}\n", by_kernel.trim()));
    }
    of_each_child(|user, role, report| {
        assert_eq!(line(report, "owner "), "0", "{user:?} {role} can be dumped");
    });
}

#[test]
fn powers_are_given_up_by_one_thread_alone_and_ours_before_there_is_another() {
    for &user in users() {
        let trap = probe(user, &["trap", "one-thread"]);
        let (own, other) = (line(&trap, "own "), line(&trap, "other "));
        assert!(own.contains("CapEff:0000000000000000") && own.ends_with("NoNewPrivs:1"), "{trap}");
        assert!(!other.contains("CapEff:0000000000000000"), "{user:?} {trap}");
        assert!(!other.contains("CapPrm:0000000000000000"), "{user:?} {trap}");
        assert!(other.ends_with("NoNewPrivs:0"), "{user:?} {trap}");
    }
    of_each_child(|user, role, report| {
        let threads = threads(report);
        assert_eq!(threads.len(), 3, "{user:?} {role}");
        for thread in threads {
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(thread[set], "0000000000000000", "{user:?} {role} {set}");
            }
            assert_eq!((thread["NoNewPrivs"], thread["Seccomp"]), ("1", "2"), "{user:?} {role}");
        }
    });
}

#[test]
fn a_landlocked_process_cannot_mount_and_ours_has_its_root_before() {
    for &user in users() {
        let trap = probe(user, &["trap", "landlock-mount"]);
        assert_eq!(trap, "before Ok(())\nafter Err(EPERM)\n", "{user:?}");
    }
    of_each_child(|user, role, report| {
        let ready = line(report, "ready ");
        assert!(ready.ends_with("root of 0 entries"), "{user:?} {role}: {ready}");
    });
    // Not so where nobody has changed the root.
    assert_ne!(fs::read_dir("/").unwrap().count(), 0);
}

/// The first landlock ABIs that know of sockets by their path, and of UDP.
const LANDLOCK_ABI_PATHS: u32 = 9;
/// See [`LANDLOCK_ABI_PATHS`].
const LANDLOCK_ABI_UDP: u32 = 10;

#[test]
fn landlock_denies_paths_of_sockets_and_udp_where_the_kernel_can() {
    let abi = cloister::sys::process::landlock_abi().unwrap();
    let from = |first| if abi >= first { "Err(EACCES)" } else { "Ok(())" };
    let (path, udp) = (from(LANDLOCK_ABI_PATHS), from(LANDLOCK_ABI_UDP));
    for &user in users() {
        let seen = probe(user, &["trap", "landlock-sockets"]);
        assert_eq!(line(&seen, "before "), "path Ok(()) bind Ok(()) send Ok(())", "{user:?}");
        let want = format!("path {path} bind {udp} send {udp}");
        assert_eq!(line(&seen, "after "), want, "{user:?}");
        for role in ROLES {
            let bound = probe(user, &["jail", role, "begun", "udp-bind"]);
            // The spawner's filter, which it has from its first instruction on, knows of no socket.
            assert_eq!(bound, "Signal(31)\n", "{role}");
        }
    }
}

#[test]
fn ambient_capabilities_survive_a_change_of_user_and_ours_are_dropped_before_it() {
    let Some(kept) = trap_of_root("ambient-kept") else { return };
    assert_eq!(kept, "setuid Ok(())\n");
    let dropped = trap_of_root("ambient-dropped").unwrap();
    assert_eq!(line(&dropped, "setuid "), "Err(EPERM)");
    let none =
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| format!("{set}:{:016}", 0));
    assert!(dropped.contains(&none.join(" ")), "{dropped}");
}

/// Sets where the kernel sends core dumps, so it runs on a kernel of its own (`kernels.rs`).
#[test]
#[ignore = "changes the kernel's core_pattern; run in an emulated machine"]
fn a_core_pipe_passes_the_limit_and_gets_nothing_of_a_sealed_child() {
    if !is_emulated() {
        return skip("core pipes", "not on a machine that is used otherwise");
    }
    fs::write("/proc/sys/kernel/core_pattern", "|/bin/busybox dd of=/tmp/core-of-%P").unwrap();
    let dumps = || {
        let entries = fs::read_dir(Path::new("/tmp")).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("core-of-")).count()
    };
    // The kernel waits until the pipe's reader has ended, before the dead process can be waited for.
    assert_eq!(dumps(), 0);
    probe(User::Root, &["trap", "core"]);
    assert_eq!(dumps(), 1, "no limit stops a pipe");
    for (number, role) in (2..).zip(ROLES) {
        assert_eq!(probe(User::Root, &["jail", role, "begun", "abort"]), "Signal(11)\n");
        assert_eq!(dumps(), number, "{role}: nor the other walls");
    }
    for role in ROLES {
        assert_eq!(probe(User::Root, &["jail", role, "full", "abort"]), "Signal(11)\n");
    }
    assert_eq!(dumps(), 1 + ROLES.len(), "a sealed child was dumped");
}
