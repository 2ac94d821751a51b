//! What is found on machines that are made up of files.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::*;

/// A machine in a folder of its own, which goes with it.
struct Machine {
    root: PathBuf,
}

impl Machine {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let root =
            std::env::temp_dir().join(format!("cloister-doctor-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self { root }
    }

    fn host(&self) -> Host {
        Host::copied(&self.root)
    }

    fn examine(&self) -> Vec<Finding> {
        examine(&self.host(), &self.root.join("etc/cloister.toml"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// What the driver tells of a card whose device files are missing.
const CARD: &[(&str, &str)] = &[(
    "/proc/driver/nvidia/gpus/0000:01:00.0/information",
    "Model: \t A card\nDevice Minor: \t 0\n",
)];
/// The same with them.
const CARD_AND_DEVICES: &[(&str, &str)] = &[
    CARD[0],
    ("/proc/driver/nvidia/version", "NVRM version: 580.95\nGCC version:\n"),
    ("/dev/nvidiactl", ""),
    ("/dev/nvidia-uvm", ""),
    ("/dev/nvidia0", ""),
];

/// A machine without a fault or a warning.
const SOUND: &[(&str, &str)] = &[
    ("/proc/sys/kernel/osrelease", "6.12.9-amd64\n"),
    ("/proc/sys/kernel/seccomp/actions_avail", "kill_process kill_thread trap errno log allow\n"),
    ("/proc/sys/user/max_user_namespaces", "9000\n"),
    ("/proc/sys/kernel/yama/ptrace_scope", "1\n"),
    ("/proc/sys/kernel/perf_event_paranoid", "2\n"),
    ("/proc/sys/kernel/unprivileged_bpf_disabled", "2\n"),
    ("/sys/kernel/security/lockdown", "none [integrity] confidentiality\n"),
    ("/sys/kernel/kexec_crash_loaded", "0\n"),
    ("/proc/sys/kernel/core_pattern", "core\n"),
    ("/sys/devices/system/cpu/vulnerabilities/meltdown", "Mitigation: PTI\n"),
    ("/proc/meminfo", "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n"),
    ("/proc/swaps", "Filename Type Size Used Priority\n"),
    ("/sys/power/state", "freeze mem\n"),
    ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
    ("/sys/kernel/mm/ksm/run", "0\n"),
    ("/proc/cmdline", "quiet init_on_free=1\n"),
    ("/sys/devices/system/cpu/smt/active", "0\n"),
    ("/sys/devices/system/cpu/online", "0-3\n"),
    ("/sys/devices/system/node/node0/cpulist", "0-3\n"),
    (
        "/sys/devices/system/node/node0/meminfo",
        "Node 0 MemTotal:       8388608 kB\nNode 0 MemFree:        4194304 kB\n",
    ),
    ("/dev/sev-guest", ""),
    ("/dev/tpmrm0", ""),
    ("/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
];

fn by_name<'f>(findings: &'f [Finding], check: &str) -> &'f Finding {
    findings.iter().find(|finding| finding.check == check).unwrap()
}

#[test]
fn a_sound_machine_has_nothing_to_change() {
    let machine = Machine::new("sound", SOUND);
    let findings = machine.examine();
    for finding in &findings {
        let is_about_the_test = ["configuration", "disk of the log", "processor"];
        if !is_about_the_test.contains(&finding.check) {
            assert_eq!(finding.weight, Weight::Good, "{finding:?}");
            assert_eq!(finding.advice, "", "{finding:?}");
        }
    }
    assert_eq!(by_name(&findings, "memory").found, "8192 MiB, of which 4096 MiB are free");
    assert_eq!(
        by_name(&findings, "memory nodes").found,
        "node 0: processors 0-3, 4096 MiB available of 8192"
    );
    assert_eq!(by_name(&findings, "lockdown").found, "integrity");
}

#[test]
fn each_weakness_is_found_and_says_what_to_do() {
    let compressed = "Filename\n/dev/zram0 partition 1 0 1\n";
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Weight, &'a str);
    let cases: &[Case<'_>] = &[
        ("kernel", &[("/proc/sys/kernel/osrelease", "5.15.0-1")], Weight::Fault, "5.19"),
        (
            "seccomp",
            &[("/proc/sys/kernel/seccomp/actions_avail", "trap")],
            Weight::Fault,
            "SECCOMP",
        ),
        (
            "user namespaces",
            &[("/proc/sys/user/max_user_namespaces", "0")],
            Weight::Fault,
            "sysctl",
        ),
        (
            "user namespaces",
            &[("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1")],
            Weight::Note,
            "root",
        ),
        ("ptrace", &[("/proc/sys/kernel/yama/ptrace_scope", "0")], Weight::Note, "ptrace_scope=1"),
        ("perf events", &[("/proc/sys/kernel/perf_event_paranoid", "-1")], Weight::Warning, "=2"),
        ("bpf", &[("/proc/sys/kernel/unprivileged_bpf_disabled", "0")], Weight::Warning, "=1"),
        (
            "lockdown",
            &[("/sys/kernel/security/lockdown", "[none] integrity")],
            Weight::Note,
            "root",
        ),
        ("crash kernel", &[("/sys/kernel/kexec_crash_loaded", "1")], Weight::Warning, "kdump"),
        ("core dumps", &[("/proc/sys/kernel/core_pattern", "|/x %p")], Weight::Note, "pipe"),
        (
            "cpu faults",
            &[("/sys/devices/system/cpu/vulnerabilities/mds", "Vulnerable: no microcode")],
            Weight::Warning,
            "microcode",
        ),
        ("memory", &[("/proc/meminfo", "MemAvailable: 100 kB")], Weight::Warning, "memory"),
        ("swap", &[("/proc/swaps", "Filename\n/dev/sda2 partition")], Weight::Warning, "swapoff"),
        ("swap", &[("/proc/swaps", compressed)], Weight::Note, "MemorySwapMax"),
        (
            "swap",
            &[("/proc/swaps", compressed), ("/sys/block/zram0/backing_dev", "/dev/sda3")],
            Weight::Warning,
            "swapoff",
        ),
        (
            "hibernation",
            &[("/sys/power/state", "mem disk"), ("/sys/power/disk", "[platform] shutdown")],
            Weight::Warning,
            "mask",
        ),
        ("page merging", &[("/sys/kernel/mm/ksm/run", "1")], Weight::Note, "no part"),
        ("zeroing on free", &[("/proc/cmdline", "quiet")], Weight::Note, "init_on_free"),
        ("shared cores", &[("/sys/devices/system/cpu/smt/active", "1")], Weight::Note, "nosmt"),
        ("gpu", CARD, Weight::Warning, "nvidia-modprobe"),
        ("gpu", CARD_AND_DEVICES, Weight::Note, "gpu_layers"),
    ];
    for (i, (check, files, weight, advice)) in cases.iter().enumerate() {
        let files: Vec<_> = SOUND.iter().chain(*files).copied().collect();
        let machine = Machine::new(&format!("weak-{i}"), &files);
        let findings = machine.examine();
        let finding = by_name(&findings, check);
        assert_eq!(finding.weight, *weight, "{finding:?}");
        assert!(finding.advice.contains(advice), "{finding:?}");
    }
}

#[test]
fn a_card_is_told_with_its_driver_and_what_is_not_there() {
    let found = |name: &str, files: &[(&str, &str)]| {
        let machine = Machine::new(name, files);
        by_name(&machine.examine(), "gpu").found.clone()
    };
    let whole = found("card", CARD_AND_DEVICES);
    assert_eq!(whole, "/dev/nvidia0 A card; NVRM version: 580.95");
    let bare = found("bare-card", CARD);
    assert!(bare.ends_with("not there: /dev/nvidiactl, /dev/nvidia-uvm, /dev/nvidia0"), "{bare}");
}

#[test]
fn hibernation_that_is_locked_is_none() {
    let files = [("/sys/power/state", "mem disk"), ("/sys/power/disk", "[disabled]")];
    let machine = Machine::new("locked", &files);
    assert_eq!(by_name(&machine.examine(), "hibernation").weight, Weight::Good);
}

#[test]
fn landlock_is_needed_from_its_second_version_on() {
    let machine = Machine::new("landlock", SOUND);
    let mut host = machine.host();
    let cases = [
        (Ok(1), Weight::Fault, "ABI 2"),
        (Ok(2), Weight::Note, "ABI 6"),
        (Err(Errno::ENOSYS), Weight::Fault, "CONFIG_SECURITY_LANDLOCK"),
        (Err(Errno::EOPNOTSUPP), Weight::Fault, "lsm="),
    ];
    for (abi, weight, advice) in cases {
        host.landlock = abi;
        let findings = kernel::examine(&host);
        let finding = by_name(&findings, "landlock");
        assert_eq!(finding.weight, weight, "{finding:?}");
        assert!(finding.advice.contains(advice), "{finding:?}");
    }
    host.clock_is_synchronized = false;
    let findings = storage::examine(&host, Path::new("/nowhere"));
    assert_eq!(by_name(&findings, "clock").weight, Weight::Warning);
}

#[test]
fn a_configuration_that_is_wrong_is_a_fault() {
    let machine = Machine::new("config", &[("/etc/cloister.toml", "[limits]\nbodies = 1\n")]);
    let findings = machine.examine();
    let finding = by_name(&findings, "configuration");
    assert_eq!(finding.weight, Weight::Fault);
    assert!(finding.found.contains("bodies"), "{finding:?}");
}

#[test]
fn nothing_at_all_is_no_reason_to_panic() {
    let machine = Machine::new("empty", &[("/proc/empty", "")]);
    let findings = machine.examine();
    assert_eq!(by_name(&findings, "seccomp").weight, Weight::Fault);
}
