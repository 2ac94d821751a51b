//! `kernels/cuda/check.sh` tells what held, what failed, and what was not run: tried on the stand-in.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::driver::Client;
use crate::emulator::sources;

/// A folder as `check.sh --build` leaves it, but for the kernel tests: a script in their place.
fn folder(client: &Client, name: &str, kernel_tests: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("card-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    for program in ["cuda_run", "cuda_check", "cuda_roofline"] {
        fs::copy(client.program.with_file_name(program), folder.join(program)).unwrap();
    }
    let tests = folder.join("kernel_tests");
    fs::write(&tests, format!("#!/bin/sh\n{kernel_tests}\n")).unwrap();
    fs::set_permissions(&tests, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Runs what was built; returns the exit code and what was said.
fn run(client: &Client, folder: &Path, seconds: &str) -> (Option<i32>, String) {
    let done = Command::new(sources().join("check.sh"))
        .arg("--run")
        .env("LD_LIBRARY_PATH", &client.folder)
        .env("CLOISTER_CARD_FOLDER", folder)
        .env("CLOISTER_CARD_SHAPES", "tiny")
        .env("CLOISTER_CARD_SECONDS", seconds)
        .output()
        .unwrap();
    let told = [done.stdout, done.stderr].concat();
    (done.status.code(), String::from_utf8_lossy(&told).into_owned())
}

/// What the table says of a step.
fn outcome<'t>(told: &'t str, step: &str) -> &'t str {
    let table = told.rsplit_once("outcome\n").unwrap().1;
    let mut lines = table.lines().filter(|line| line.split_whitespace().next() == Some(step));
    lines.next().unwrap_or_else(|| panic!("{step}: {told}"))
}

#[test]
fn a_run_ends_in_one_table_that_names_what_was_not_run() {
    let Some(client) = Client::get() else { return };
    let folder = folder(client, "right", "exit 0");
    let (code, told) = run(client, &folder, "600");
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.contains("limits, measured: ") && told.contains("CUDA kernels on the CPU"),
        "{told}"
    );
    for step in ["cards", "graphs-and-pinned", "kernels", "roofline", "kernels-in-graphs"] {
        assert!(outcome(&told, step).ends_with(" ok"), "{told}");
    }
    assert!(outcome(&told, "models").ends_with("not run: cloister was not built"), "{told}");
    let json = fs::read_to_string(folder.join("results/roofline.json")).unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{json}");
}

#[test]
fn a_step_that_fails_or_is_cut_off_is_told() {
    let Some(client) = Client::get() else { return };
    let (code, told) = run(client, &folder(client, "wrong", "echo as asked; exit 3"), "600");
    assert_eq!(code, Some(1), "{told}");
    assert!(
        outcome(&told, "kernels").ends_with("FAILED (3)") && told.contains("as asked"),
        "{told}"
    );
    let slow = folder(client, "slow", "sleep 1000");
    let (code, told) = run(client, &slow, "60");
    assert_eq!(code, Some(0), "{told}");
    assert!(outcome(&told, "kernels").ends_with("not finished: cut off"), "{told}");
    let (code, told) = run(client, &slow, "1");
    assert_eq!(code, Some(0), "{told}");
    for step in ["cards", "kernels", "roofline"] {
        assert!(outcome(&told, step).contains("not run: "), "{told}");
    }
}
