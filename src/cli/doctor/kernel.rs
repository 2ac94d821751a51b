//! The kernel: what the sandbox needs of it, and what it lets others see.

use nix::errno::Errno;

use super::host::Host;
use super::{Finding, Weight};
use crate::sandbox::LANDLOCK_ABI_FLOOR;

/// The first landlock ABI that scopes signals and abstract sockets.
const LANDLOCK_ABI_SCOPES: u32 = 6;
/// The first kernel whose landlock is at the floor.
const KERNEL_FLOOR: (u32, u32) = (5, 19);

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    vec![
        version(host),
        landlock(host),
        seccomp(host),
        user_namespaces(host),
        yama(host),
        perf(host),
        bpf(host),
        lockdown(host),
        crash_kernel(host),
        core_pattern(host),
        mitigations(host),
    ]
}

fn version(host: &Host) -> Finding {
    let Some(release) = host.read("/proc/sys/kernel/osrelease") else {
        return Finding::new("kernel", Weight::Warning, "/proc/sys/kernel/osrelease is not there")
            .advise("mount /proc: Cloister reads it at the start");
    };
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    let version = (numbers.next().flatten().unwrap_or(0), numbers.next().flatten().unwrap_or(0));
    let weight = if version < KERNEL_FLOOR { Weight::Fault } else { Weight::Good };
    Finding::new("kernel", weight, format!("Linux {release}"))
        .advise("Linux 5.19 or newer is needed")
}

fn landlock(host: &Host) -> Finding {
    let check = "landlock";
    match host.landlock {
        Ok(abi) if abi < LANDLOCK_ABI_FLOOR => {
            Finding::new(check, Weight::Fault, format!("ABI {abi}"))
                .advise("at least ABI 2 is needed: Linux 5.19 or newer")
        }
        Ok(abi) if abi < LANDLOCK_ABI_SCOPES => {
            Finding::new(check, Weight::Note, format!("ABI {abi}")).advise(
                "from ABI 6 (Linux 6.12) on it also denies signals and abstract sockets; here \
                namespaces and seccomp do so alone",
            )
        }
        Ok(abi) => Finding::good(check, format!("ABI {abi}")),
        Err(Errno::EOPNOTSUPP) => Finding::new(check, Weight::Fault, "built in, but switched off")
            .advise("add landlock to the kernel's lsm= parameter"),
        Err(errno) => Finding::new(check, Weight::Fault, errno.desc())
            .advise("a kernel with CONFIG_SECURITY_LANDLOCK is needed"),
    }
}

fn seccomp(host: &Host) -> Finding {
    let check = "seccomp";
    match host.read("/proc/sys/kernel/seccomp/actions_avail") {
        Some(actions) if actions.split(' ').any(|action| action == "kill_process") => {
            Finding::good(check, "kill_process")
        }
        _ => Finding::new(check, Weight::Fault, "the kernel cannot kill a process by filter")
            .advise("a kernel with CONFIG_SECCOMP_FILTER is needed"),
    }
}

fn user_namespaces(host: &Host) -> Finding {
    let check = "user namespaces";
    let is = |path: &str, value: u64| host.number(path) == Some(value);
    if is("/proc/sys/user/max_user_namespaces", 0) {
        return Finding::new(check, Weight::Fault, "none are allowed")
            .advise("sysctl user.max_user_namespaces=1024: each child lives in one of its own");
    }
    let is_restricted = is("/proc/sys/kernel/unprivileged_userns_clone", 0)
        || is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", 1);
    if is_restricted {
        return Finding::new(check, Weight::Note, "for root alone")
            .advise("the service starts as root and works; the demo as a plain user does not");
    }
    Finding::good(check, "allowed")
}

fn yama(host: &Host) -> Finding {
    let check = "ptrace";
    match host.number("/proc/sys/kernel/yama/ptrace_scope") {
        Some(scope) if scope > 0 => Finding::good(check, format!("Yama scope {scope}")),
        found => {
            let found = found.map_or("no Yama".to_owned(), |scope| format!("Yama scope {scope}"));
            Finding::new(check, Weight::Note, found).advise(
                "Cloister's processes refuse to be traced by their user anyway; kernel.yama.\
                 ptrace_scope=1 protects the operator's shell too",
            )
        }
    }
}

fn perf(host: &Host) -> Finding {
    let level = host.read("/proc/sys/kernel/perf_event_paranoid").unwrap_or("not there".to_owned());
    let is_strict = level.parse::<i64>().map_or(true, |level| level >= 2);
    let weight = if is_strict { Weight::Good } else { Weight::Warning };
    Finding::new("perf events", weight, format!("perf_event_paranoid {level}")).advise(
        "sysctl kernel.perf_event_paranoid=2: users without privileges could count events \
            of the kernel on shared processors",
    )
}

fn bpf(host: &Host) -> Finding {
    let value = host.number("/proc/sys/kernel/unprivileged_bpf_disabled");
    let weight = if value == Some(0) { Weight::Warning } else { Weight::Good };
    let found = if value == Some(0) { "for everybody" } else { "for root alone" };
    Finding::new("bpf", weight, found).advise("sysctl kernel.unprivileged_bpf_disabled=1")
}

fn lockdown(host: &Host) -> Finding {
    let check = "lockdown";
    match host.read("/sys/kernel/security/lockdown") {
        Some(modes) if !modes.contains("[none]") => Finding::good(check, bracketed(&modes)),
        found => Finding::new(check, Weight::Note, found.map_or("unknown", |_| "none"))
            .advise("root can read all memory; lockdown=confidentiality and Secure Boot hinder it"),
    }
}

fn crash_kernel(host: &Host) -> Finding {
    let is_loaded = host.number("/sys/kernel/kexec_crash_loaded") == Some(1);
    let weight = if is_loaded { Weight::Warning } else { Weight::Good };
    let found = if is_loaded { "loaded" } else { "not loaded" };
    Finding::new("crash kernel", weight, found).advise(
        "a dump of the whole machine holds prompts and weights: disable kdump, or let it write to \
         an encrypted disk",
    )
}

fn core_pattern(host: &Host) -> Finding {
    let pattern = host.read("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let is_piped = pattern.starts_with('|');
    let weight = if is_piped { Weight::Note } else { Weight::Good };
    let found = if is_piped { "piped to a program" } else { "written to files" };
    Finding::new("core dumps", weight, found).advise(
        "a pipe ignores the limit on core dumps; Cloister's processes cannot be dumped at all, \
         which holds for pipes too",
    )
}

fn mitigations(host: &Host) -> Finding {
    let folder = "/sys/devices/system/cpu/vulnerabilities";
    let open: Vec<String> = host
        .list(folder)
        .into_iter()
        .filter(|name| {
            host.read(&format!("{folder}/{name}"))
                .is_some_and(|text| text.starts_with("Vulnerable"))
        })
        .collect();
    let weight = if open.is_empty() { Weight::Good } else { Weight::Warning };
    let found = if open.is_empty() { "none is open".to_owned() } else { open.join(", ") };
    Finding::new("cpu faults", weight, found).advise(
        "the kernel calls the processor vulnerable to these: update microcode and kernel, and do \
         not switch mitigations off",
    )
}

/// The chosen word of a line such as `none [integrity] confidentiality`.
pub(super) fn bracketed(modes: &str) -> String {
    let chosen = modes.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    chosen.map_or(modes, |(chosen, _)| chosen).to_owned()
}
