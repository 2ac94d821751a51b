//! The jail of a worker whose model has layers on a card: a root that is not empty, and a filter that knows of
//! ioctls. The probe stands in its place; its root holds a library, `/dev/null` as a device, and a text.

use super::*;

pub(super) const ROLE: &str = "worker-gpu";
/// Bytes of what the driver is told by the environment.
pub(super) const ENVIRONMENT_LEN: usize =
    "LD_LIBRARY_PATH=/lib\0CUDA_MODULE_LOADING=EAGER\0CUDA_CACHE_DISABLE=1\0".len();

/// Most calls that a sealed worker with a card may have.
const CALLS_MAX: usize = 50;

/// `NV_ESC_RM_CONTROL` of any length, `NV_ESC_RM_FREE`, `UVM_FREE`: what is let through when it is sealed.
const IOCTLS_ALLOWED: [&str; 4] = ["c020462a", "c0ff462a", "c0104629", "22"];
/// `NV_ESC_RM_ALLOC`, `NV_ESC_RM_MAP_MEMORY`, `FIONBIO`: let through until it is sealed, with what `/dev/null` says of them.
const IOCTLS_BEFORE: [(&str, &str); 3] =
    [("c030462b", "ENOTTY\n"), ("c020464e", "ENOTTY\n"), ("5421", "EFAULT\n")];
/// Reads alone, another device's, `TIOCSTI`, and of UVM the one that reads another process's memory.
const IOCTLS_NEVER: [&str; 4] = ["8020462a", "c020452a", "5412", "3e"];

#[test]
fn its_root_holds_what_was_put_there_and_nothing_else() {
    for &user in users() {
        let found = probe(user, &["jail", ROLE, "begun", "tell-root"]);
        let want = "/dev/null /lib/library /proc/driver/nvidia/params /proc/self\n";
        assert_eq!(found, want, "{user:?}");
    }
}

#[test]
fn what_is_there_is_read_and_nothing_is_changed() {
    let begun = |user, attempt: &str| probe(user, &["jail", ROLE, "begun", attempt]);
    for &user in users() {
        for there in ["/lib/library", "/proc/driver/nvidia/params", "/dev/null"] {
            assert_eq!(begun(user, &format!("open-file:{there}")), "ok\n", "{user:?} {there}");
        }
        assert_eq!(begun(user, "write-file:/dev/null"), "ok\n", "{user:?}");
        // Of itself, below its own threads alone.
        assert_eq!(begun(user, "write-file:/proc/self/task/1/comm"), "ok\n", "{user:?}");
        assert_eq!(begun(user, "write-file:/proc/self/coredump_filter"), "EACCES\n", "{user:?}");
        for kept in ["/lib/library", "/proc/driver/nvidia/params"] {
            let outcome = begun(user, &format!("write-file:{kept}"));
            assert!(["EACCES\n", "EROFS\n"].contains(&&*outcome), "{user:?} {kept}: {outcome}");
        }
        for absent in ["/etc/passwd", "/old/etc/passwd", "/processes/1/status", "/dev/zero"] {
            let outcome = begun(user, &format!("open-file:{absent}"));
            assert_eq!(outcome, "ENOENT\n", "{user:?} {absent}");
        }
        assert_ne!(begun(user, "make-file"), "ok\n", "{user:?}");
    }
    let outside = if users().contains(&User::Root) { User::Root } else { User::Plain };
    for there in ["open-file:/etc/passwd", "open-file:/dev/zero", "write-file:/dev/null"] {
        assert_eq!(probe(outside, &["free", there]), "ok\n", "the control: {there}");
    }
}

#[test]
fn every_attack_kills_it_when_it_is_sealed() {
    for &user in users() {
        assert_eq!(probe(user, &["jail", ROLE, "full", "nothing"]), "ok\n");
        let own = ["open-file:/dev/null", "open-file:/lib/library", "tell-root"];
        for attempt in ATTACKS.iter().map(|Attack(attempt, ..)| *attempt).chain(own) {
            let outcome = probe(user, &["jail", ROLE, "full", attempt]);
            assert_eq!(outcome, "Signal(31)\n", "{user:?} {attempt}");
        }
    }
}

/// Those of a worker without a card hold here too, but that it can list its root.
#[test]
fn the_other_walls_stand_without_its_filter() {
    let abi = cloister::sys::process::landlock_abi().unwrap();
    for &user in users() {
        for Attack(attack, walls, _) in ATTACKS {
            let is_bound_alone = *attack == "inet-bind" && abi < LANDLOCK_ABI_TCP;
            let lists = ["list-root", "leave-root"].contains(attack);
            if *walls == StopIt && !is_bound_alone && !lists {
                let outcome = probe(user, &["jail", ROLE, "begun", attack]);
                assert_ne!(outcome, "ok\n", "{user:?} {attack}");
            }
        }
    }
}

#[test]
fn it_may_steer_and_free_by_ioctl_and_make_nothing_new() {
    const KILLED: &str = "Signal(31)\n";
    for &user in users() {
        let is = |role: &str, walls: &str, number: &str, wanted: &str| {
            let outcome = probe(user, &["jail", role, walls, &format!("ioctl:{number}")]);
            assert_eq!(outcome, wanted, "{user:?} {role} {walls} {number}");
        };
        for number in IOCTLS_ALLOWED {
            // The device is none of the driver's.
            is(ROLE, "full", number, "ENOTTY\n");
            // A worker without a card knows of no ioctl at all.
            is("worker", "full", number, KILLED);
        }
        for (number, outcome) in IOCTLS_BEFORE {
            is(ROLE, "begun", number, outcome);
            is(ROLE, "full", number, KILLED);
        }
        for number in IOCTLS_NEVER {
            is(ROLE, "begun", number, KILLED);
            is(ROLE, "full", number, KILLED);
        }
    }
}

#[test]
fn its_memory_is_bounded_by_what_it_holds_when_it_is_sealed() {
    for (way, want) in [
        ("at-once", "ENOMEM\n"),
        ("bit-by-bit", "ENOMEM\n"),
        ("break", "ENOMEM\n"),
        ("addresses", "ENOMEM\n"),
        ("shared", "Signal(31)\n"),
    ] {
        let attempt = format!("take-memory:{way}");
        for &user in users() {
            let outcome = probe(user, &["jail", ROLE, "full", &attempt]);
            assert_eq!(outcome, want, "{user:?} {way}");
            assert_eq!(probe(user, &["jail", ROLE, "begun", &attempt]), "ok\n", "{way}");
        }
    }
}

#[test]
fn its_filter_is_short() {
    let filters = policy::filters().unwrap();
    let filter = filters.iter().find(|filter| filter.name() == ROLE).unwrap();
    assert!(filter.calls <= CALLS_MAX, "{}", filter.calls);
    // Nothing is opened, mapped to be run, started or connected.
    for rule in &filter.rules {
        let never = ["openat", "socket", "connect", "execve", "execveat", "clone", "clone3"];
        assert!(!never.contains(&rule.syscall.as_str()), "{rule:?}");
        assert!(rule.syscall != "ioctl" || rule.args.iter().any(|arg| arg.index == 1), "{rule:?}");
    }
}
