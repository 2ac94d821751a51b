//! Every kernel once more, through the code that a worker for cards runs: the driver is loaded at run
//! time, memory is allocated, kernels are launched. The driver is a stand-in that emulates the card.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use crate::emulator::{Emulator, Request, can_build, pointer, sources, value};

/// The programs of `examples`, linked dynamically, and the folder of the stand-in.
pub(crate) struct Client {
    /// `cuda_run`, beside the others.
    pub(crate) program: PathBuf,
    pub(crate) folder: PathBuf,
}

impl Client {
    /// Builds both, once.
    pub(crate) fn get() -> Option<&'static Self> {
        static BUILT: OnceLock<Option<Client>> = OnceLock::new();
        BUILT.get_or_init(|| can_build().then(Self::build)).as_ref()
    }

    fn build() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-stand-in");
        fs::create_dir_all(&folder).unwrap();
        let emulated = sources().join("emulated");
        let mut compiler = Command::new("g++");
        compiler.args(["-std=c++17", "-O1", "-shared", "-fPIC", "-DCLOISTER_EMULATED"]);
        compiler.args(["-ffp-contract=off", "-Wno-unknown-pragmas", "-I"]).arg(sources());
        compiler.arg("-o").arg(folder.join("libcuda.so.1")).args(["-x", "c++"]);
        compiler.arg(sources().join("kernels.cu"));
        compiler.args([emulated.join("device.cpp"), emulated.join("driver.cpp")]);
        let done = compiler.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));

        let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self { program: build_examples(crate_folder).join("cuda_run"), folder }
    }

    /// The client as a program of requests, beside a stand-in with these settings.
    fn with(&self, settings: &[(&str, &str)]) -> Emulator {
        let library = [("LD_LIBRARY_PATH", self.folder.to_str().unwrap())];
        Emulator::of(self.program.clone(), &[&library[..], settings].concat())
    }

    fn lines(&self, argument: &str) -> Vec<String> {
        let mut command = Command::new(&self.program);
        let done = command.arg(argument).env("LD_LIBRARY_PATH", &self.folder).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

/// Builds the programs that ask the driver, from the sources in a folder; returns where they are.
pub(crate) fn build_examples(crate_folder: &Path) -> PathBuf {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap();
    let name = crate_folder.file_name().unwrap().to_str().unwrap();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("dynamic-{name}"));
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "-p", "kernels", "--features", "cuda"]);
    for example in ["cuda_run", "cuda_check", "cuda_roofline"] {
        cargo.args(["--example", example]);
    }
    for setting in ["profile.dev.package.kernels.opt-level=0", "profile.dev.debug=false"] {
        cargo.args(["--config", setting]);
    }
    cargo.arg("--target-dir").arg(&target);
    cargo.env("RUSTFLAGS", "-C target-feature=-crt-static").env_remove("CARGO_ENCODED_RUSTFLAGS");
    assert!(cargo.current_dir(crate_folder).status().unwrap().success());
    // With a named target its folder lies between.
    let folders = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().path());
    let mut folders = folders.chain([target.clone()]).map(|it| it.join("debug/examples"));
    folders.find(|folder| folder.join("cuda_run").exists()).unwrap()
}

/// Runs the tests of a name again through the driver; returns what was launched.
fn run_again(client: &Client, name: &str, settings: &[(&str, &str)]) -> BTreeSet<String> {
    let launches = client.folder.join(format!("launches-{}", settings.len()));
    let _ = fs::remove_file(&launches);
    let done = Command::new(std::env::current_exe().unwrap())
        .args([name, "--skip", "mutants", "--skip", "driver", "--skip", "faults"])
        .args(["--skip", "roofline", "--skip", "check_script"])
        .env("CLOISTER_CUDA", &client.program)
        .env("LD_LIBRARY_PATH", &client.folder)
        .env("STANDIN_LAUNCHES", &launches)
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{told}\n{}", String::from_utf8_lossy(&done.stderr));
    fs::read_to_string(&launches).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn every_kernel_computes_the_same_through_the_driver() {
    let Some(client) = Client::get() else { return };
    let launched = run_again(client, "", &[]);
    let known: BTreeSet<_> = client.lines("--kernels").into_iter().collect();
    assert_eq!(launched, known, "every kernel of the image was launched");
}

#[test]
fn kernels_compute_the_same_in_a_graph() {
    let Some(client) = Client::get() else { return };
    let launched = run_again(client, "between", &[("CLOISTER_CUDA_GRAPH", "1")]);
    for name in ["graph", "add_norm", "quantize", "gate", "zero_pages"] {
        assert!(launched.contains(name), "{name}: {launched:?}");
    }
}

/// What `cuda_check` says and how it ended.
pub(crate) fn check(programs: &Path, client: &Client, settings: &[(&str, &str)]) -> (bool, String) {
    let mut command = Command::new(programs.join("cuda_check"));
    command.env("LD_LIBRARY_PATH", &client.folder).envs(settings.iter().copied());
    let done = command.output().unwrap();
    let told = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8_lossy(&told).into_owned())
}

#[test]
fn graphs_pinned_memory_and_timers_do_what_they_must() {
    let Some(client) = Client::get() else { return };
    let programs = client.program.parent().unwrap();
    for devices in ["1", "2"] {
        let (is_right, told) = check(programs, client, &[("STANDIN_DEVICES", devices)]);
        assert!(is_right, "{told}");
        assert_eq!(told.matches(": ok\n").count(), 14, "{told}");
    }
    let (is_right, told) = check(programs, client, &[("STANDIN_PINNED", "50")]);
    let wanted = "the host has no 4096 bytes of memory that the card can reach";
    assert!(!is_right && told.contains(wanted), "{told}");
}

#[test]
fn a_card_is_told_of() {
    let Some(client) = Client::get() else { return };
    let wanted = "0: CUDA kernels on the CPU, compute capability 8.0, 1 multiprocessors, 1024 MiB";
    assert_eq!(client.lines("--devices"), [wanted]);
}

/// Asks for a buffer of a megabyte and has some of it zeroed.
fn request(arguments: usize) -> Request {
    let mut request = Request::new(1);
    let buffer = request.output::<u8>(1 << 20);
    let all = [pointer(buffer), value(16_u64), value(0_u64)];
    request.launch("zero", [1, 1, 1], 256, &all[..arguments]);
    request
}

#[test]
fn what_cannot_be_is_said() {
    let Some(client) = Client::get() else { return };
    assert!(request(2).try_run(&client.with(&[])).is_ok());
    for (settings, wanted) in [
        (("STANDIN_VERSION", "12080"), "the CUDA driver implements 12.8; 13.0 is needed"),
        (("STANDIN_DEVICES", "0"), "the CUDA driver finds no card"),
        (
            ("STANDIN_CAPABILITY", "75"),
            "the card has compute capability 7.5; 8.0 or later is needed",
        ),
        (("STANDIN_MEMORY", "1000"), "the card has 1000 bytes free, and 1048576 are needed"),
    ] {
        let told = request(2).try_run(&client.with(&[settings])).err().unwrap();
        assert!(told.starts_with(wanted), "{told}");
    }
    for arguments in [1, 3] {
        let told = request(arguments).try_run(&client.with(&[])).err().unwrap();
        assert_eq!(told, "zero takes other arguments\n");
    }
}

#[test]
fn a_driver_that_is_missing_or_lacks_functions_is_named() {
    let Some(client) = Client::get() else { return };
    let folder = client.folder.join("other");
    fs::create_dir_all(&folder).unwrap();
    let told = || {
        let settings = [("LD_LIBRARY_PATH", folder.to_str().unwrap())];
        request(2).try_run(&Emulator::of(client.program.clone(), &settings)).err().unwrap()
    };
    fs::write(folder.join("libcuda.so.1"), "no library").unwrap();
    assert!(told().starts_with("no CUDA driver: libcuda.so.1 cannot be loaded"), "{}", told());
    let mut compiler = Command::new("g++");
    compiler.args(["-shared", "-x", "c++", "/dev/null", "-o"]).arg(folder.join("libcuda.so.1"));
    assert!(compiler.status().unwrap().success());
    assert!(told().starts_with("the CUDA driver lacks cuDriverGetVersion"), "{}", told());
}
