//! The card of these tests: the stand-in for NVIDIA's driver that emulates the kernels on the CPU, or, if
//! `CLOISTER_CARD` is set, the first card of the machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

use kernels::cuda::{Card, Driver};

/// Runs a test with a card: in a process of its own, since the driver is found where the process starts.
/// `name` is the test's in this program. Returns which kernels were launched, unless this is that process.
pub(crate) fn with_card(name: &str, test: impl FnOnce(&Card<'_>)) -> Option<BTreeSet<String>> {
    with(name, &[], test)
}

/// Does the same with a card that fails after so many kernels; nothing on a real one.
pub(crate) fn with_failing_card(name: &str, kernels: usize, test: impl FnOnce(&Card<'_>)) {
    if std::env::var_os("CLOISTER_CARD").is_none() {
        with(name, &[("STANDIN_KERNELS", &kernels.to_string())], test);
    }
}

fn with(
    name: &str,
    settings: &[(&str, &str)],
    test: impl FnOnce(&Card<'_>),
) -> Option<BTreeSet<String>> {
    let is_inside = std::env::var_os("CLOISTER_STAND_IN").is_some();
    if is_inside || std::env::var_os("CLOISTER_CARD").is_some() {
        let driver = Driver::load().unwrap();
        let devices = driver.devices().unwrap();
        test(&Card::open(&driver, &devices[0]).unwrap());
        return None;
    }
    if cfg!(not(target_arch = "x86_64")) {
        eprintln!("skipped: instruction set cuda: its emulation switches fibers of x86-64");
        return None;
    }
    let mut inside = Command::new(std::env::current_exe().unwrap());
    inside.args([name, "--exact", "--nocapture"]);
    let launches = folder().join(name.replace("::", "-"));
    let _ = fs::remove_file(&launches);
    inside.env("CLOISTER_STAND_IN", "1").env("LD_LIBRARY_PATH", folder());
    inside.env("STANDIN_LAUNCHES", &launches).envs(settings.iter().copied());
    let done = inside.output().unwrap();
    let told = [done.stdout, done.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert!(done.status.success() && told.contains("1 passed"), "{name}: {told}");
    let launched = fs::read_to_string(&launches).unwrap_or_default();
    Some(launched.lines().map(str::to_owned).collect())
}

/// The folder of the stand-in, which is built if a source is newer.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stand-in");
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/cuda");
        let library = folder.join("libcuda.so.1");
        if changed(&library) < newest(&sources) {
            build(&sources, &folder);
        }
        folder
    })
}

fn changed(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn newest(sources: &Path) -> SystemTime {
    let folders = [sources.to_owned(), sources.join("emulated")];
    let files = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    files.map(|file| changed(&file.unwrap().path())).max().unwrap()
}

fn build(sources: &Path, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let unfinished = folder.join("unfinished");
    let mut compiler = Command::new("g++");
    compiler.args(["-std=c++17", "-O2", "-shared", "-fPIC", "-DCLOISTER_EMULATED"]);
    compiler.args(["-ffp-contract=off", "-Wno-unknown-pragmas", "-I"]).arg(sources);
    compiler.arg("-o").arg(&unfinished).args(["-x", "c++"]).arg(sources.join("kernels.cu"));
    compiler.args(["device.cpp", "driver.cpp"].map(|part| sources.join("emulated").join(part)));
    let done = compiler.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    fs::rename(unfinished, folder.join("libcuda.so.1")).unwrap();
}
