//! What the tests share: real models, golden folders, skips that are counted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use cloister::cli::fetch::{self, KnownModel};

/// One fetch at a time, whichever test asks first.
static FETCHING: Mutex<()> = Mutex::new(());

/// The path of a real model, fetched into `target/models` when it is not there.
///
/// # Panics
///
/// Panics when it cannot be fetched: a real model is never skipped in silence.
pub(crate) fn model(model: &KnownModel) -> PathBuf {
    let _one = FETCHING.lock().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models");
    fetch::fetch(model, &folder).unwrap()
}

/// The golden folder: `CLOISTER_GOLDEN`, or the one of the repository.
pub(crate) fn golden() -> PathBuf {
    std::env::var_os("CLOISTER_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from)
}

/// Says that something was not tested. `.ci/run` fails when it finds such a line that is not
/// about an instruction set.
pub(crate) fn skip(what: &str, why: &str) {
    tell(&format!("skipped: {what}: {why}"));
}

/// Whether `part` is somewhere in `bytes`, which may be many.
pub(crate) fn holds(bytes: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(bytes, part).is_some()
}

/// Says a line, straight to the descriptor, so that the test harness does not capture it.
pub(crate) fn tell(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Whether this is a machine of the tests' own, which is emulated.
pub(crate) fn is_emulated() -> bool {
    std::env::var_os("CLOISTER_OWN_MACHINE").is_some()
}

/// How long to wait for what must come: in an emulated machine all is slow, and slower beside other tests.
pub(crate) fn patience(usual_s: u64) -> Duration {
    Duration::from_secs(if is_emulated() { 10 * usual_s } else { usual_s })
}

/// A Python that has `module`: `CLOISTER_PYTHON`, or `python3`.
pub(crate) fn python_with(module: &str) -> Option<PathBuf> {
    let python = std::env::var_os("CLOISTER_PYTHON").map_or("python3".into(), PathBuf::from);
    let found = Command::new(&python)
        .args(["-c", &format!("import {module}")])
        .stderr(std::process::Stdio::null())
        .status();
    found.is_ok_and(|status| status.success()).then_some(python)
}

/// Copies a program that is to be run. Another process does it: were the copy open for writing in this one, a child that
/// another test forks at that moment would hold it too, and running it would fail with "Text file busy".
pub(crate) fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("--").args([from, to]).status().unwrap().success(), "{to:?}");
}

/// Cargo as a shell would call it. What cargo tells a test of its package would run build scripts of others again,
/// and compile all that depends on them, here and in the next call from a shell.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    let is_told = |name: &str| {
        name == "OUT_DIR" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_told)) {
        cargo.env_remove(name);
    }
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo
}

/// Builds a program of the tests, which `cargo test --test it` does not do.
pub(crate) fn build_example(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let profile = own.parent().unwrap().parent().unwrap();
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--example", name]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.status().unwrap().success());
    profile.join("examples").join(name)
}
