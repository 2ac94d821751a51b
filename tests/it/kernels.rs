//! Cloister on other kernels than this machine's: booted in an emulator, with two memory nodes, attacked
//! and asked there; and refused where landlock is switched off.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{jail, support};

/// What is run on every kernel: the walls as they are there, and an appliance on each node.
const TESTS: &[&str] = &[
    "jail::every_attack_kills_the_attacker",
    "jail::the_other_walls_stand_without_seccomp",
    "jail::every_thread_has_no_power_left",
    "jail::memory_without_end_is_refused",
    "jail::a_child_dies_with_its_spawner",
    "jail::a_panic_ends_a_sealed_child_and_says_nothing",
    "traps::a_change_of_user_clears_the_parent_death_signal_and_ours_is_set_after_it",
    "traps::a_new_program_can_be_dumped_again_and_ours_forbids_it_after_its_start",
    "traps::powers_are_given_up_by_one_thread_alone_and_ours_before_there_is_another",
    "traps::a_landlocked_process_cannot_mount_and_ours_has_its_root_before",
    "traps::landlock_denies_paths_of_sockets_and_udp_where_the_kernel_can",
    "traps::ambient_capabilities_survive_a_change_of_user_and_ours_are_dropped_before_it",
    "traps::a_core_pipe_passes_the_limit_and_gets_nothing_of_a_sealed_child",
    "appliance::node::a_model_lies_on_the_node_that_was_asked_for",
    "appliance::node::a_node_that_is_absent_or_too_small_is_refused",
    "appliance::records::a_clock_that_is_set_while_it_serves_is_recorded",
    "appliance::swap::locked_memory_is_all_memory",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of the kernels; `None`, said aloud, when none can be booted here.
fn kernels() -> Option<PathBuf> {
    let folder = std::env::var_os("CLOISTER_KERNELS")
        .map_or_else(|| root().join("target/kernels"), PathBuf::from);
    let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if folder == Path::new("none") {
        support::tell("other kernels cannot be fetched here: none was booted");
        return None;
    }
    let missing = ["qemu-system-x86_64", "cpio", "zstd"].into_iter().find(|tool| !has(tool));
    if let Some(tool) = missing {
        support::skip("other kernels", &format!("{tool} is not installed"));
    } else if !Path::new("/bin/busybox").exists() {
        support::skip("other kernels", "busybox-static is not installed");
    } else if !folder.join("vmlinuz-6.1").exists() {
        support::skip("other kernels", "tests/machine/kernels.sh target/kernels was not run");
    } else {
        return Some(folder);
    }
    None
}

/// So many lines of a machine that failed before its tests could say why.
const LAST_LINES: usize = 20;

/// What a boot left behind.
struct Booted {
    folder: PathBuf,
    is_success: bool,
}

impl Booted {
    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    /// What of its output tells why it failed: the failed tests with their reasons, or how far it came.
    fn why(&self) -> String {
        let console = self.text("console.log");
        let lines: Vec<&str> = console.lines().collect();
        let failures = lines.iter().position(|line| *line == "failures:");
        let from = failures.unwrap_or(lines.len().saturating_sub(LAST_LINES));
        lines[from..].join("\n")
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Boots a kernel and runs a script that finds the programs, the tests and their data.
fn boot(name: &str, arguments: &str, script: &str) -> Option<Booted> {
    let kernel = kernels()?.join(format!("vmlinuz-{name}"));
    let kind = if arguments.is_empty() { "plain" } else { "changed" };
    let folder = PathBuf::from("/var/tmp")
        .join(format!("cloister-kernel-{}-{name}-{kind}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let (script_file, probe) = (folder.join("script"), jail::built_probe());
    let own = std::env::current_exe().unwrap();
    let names = [("IT", own.as_path()), ("CLOISTER_PROBE", &probe)];
    let cloister = ("CLOISTER", Path::new(env!("CARGO_BIN_EXE_cloister")));
    let set: String = names
        .into_iter()
        .chain([cloister])
        .map(|(name, path)| format!("export {name}={}\n", path.display()))
        .collect();
    let tiny = support::golden().join("tiny/llama.gguf");
    let golden = format!("export CLOISTER_GOLDEN={}\n", support::golden().display());
    fs::write(&script_file, format!("{set}{golden}{script}")).unwrap();
    let mut command = Command::new(root().join("tests/machine/boot.sh"));
    command.arg(kernel).arg(&folder).arg(&script_file).arg(&own).arg(&probe).arg(tiny);
    command.args([
        env!("CARGO_BIN_EXE_cloister"),
        env!("CARGO_BIN_EXE_cloister-supervisor"),
        env!("CARGO_BIN_EXE_cloister-gateway"),
        env!("CARGO_BIN_EXE_cloister-worker"),
        "/usr/bin/setpriv",
    ]);
    command.env("CLOISTER_KERNEL_ARGUMENTS", arguments).env("CLOISTER_BOOT_LIMIT_S", "1200");
    let done = command.output().unwrap();
    let booted = Booted { folder, is_success: done.status.success() };
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(booted.folder.join("status").exists(), "{name}: {told}\n{}", booted.why());
    Some(booted)
}

/// Attacks and runs Cloister on a kernel, whose landlock has at least this ABI.
fn holds_on(name: &str, abi_min: u64) {
    let script = format!(
        "$CLOISTER doctor --json >/out/doctor.json\n\
         export CLOISTER_OWN_MACHINE=1\n\
         $IT --exact --include-ignored --test-threads=1 {}\n",
        TESTS.join(" ")
    );
    let Some(booted) = boot(name, "", &script) else { return };
    let log = booted.text("script.log");
    let passed = format!("test result: ok. {} passed; 0 failed", TESTS.len());
    assert!(booted.is_success && log.contains(&passed), "{name}: {}", booted.why());
    let skipped = log.lines().find(|line| line.contains("skipped: "));
    assert_eq!(skipped, None, "{name}");
    let doctor: serde_json::Value = serde_json::from_str(&booted.text("doctor.json")).unwrap();
    let findings = doctor["findings"].as_array().unwrap();
    let found = |check| findings.iter().find(|it| it["check"] == check).unwrap()["found"].as_str();
    let abi = found("landlock").unwrap().strip_prefix("ABI ").unwrap();
    assert!(abi.parse::<u64>().unwrap() >= abi_min, "{abi}");
    assert!(found("memory nodes").unwrap().contains("node 1: processors 1"), "{doctor}");
}

#[test]
fn every_wall_stands_on_linux_6_1() {
    holds_on("6.1", 2);
}

#[test]
fn every_wall_stands_on_linux_6_12() {
    holds_on("6.12", 6);
}

#[test]
fn every_wall_stands_on_the_newest_linux() {
    holds_on("new", 10);
}

#[test]
fn without_landlock_nothing_starts() {
    let script = "$CLOISTER doctor || echo doctor $?\n\
        $CLOISTER demo --model $CLOISTER_GOLDEN/tiny/llama.gguf --dir /tmp/demo || echo demo $?\n";
    let arguments = "lsm=lockdown,capability,yama,apparmor";
    let Some(booted) = boot("6.1", arguments, script) else { return };
    let log = booted.text("script.log");
    assert!(log.contains("FAULT    landlock") && log.contains("doctor 1"), "{log}");
    assert!(log.contains("landlock is switched off; add landlock to the kernel's lsm="), "{log}");
    assert!(log.contains("demo 2") && !log.contains("ready: "), "{log}");
}
