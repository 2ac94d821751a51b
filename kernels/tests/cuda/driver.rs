//! Every kernel once more, through the code that a worker for cards runs: the driver is loaded at run
//! time, memory is allocated, kernels are launched. The driver is a stand-in that emulates the card.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::emulator::{Emulator, Request, can_build, pointer, sources, value};

/// `cuda_run`, linked dynamically, and the folder of the stand-in.
struct Client {
    program: PathBuf,
    folder: PathBuf,
}

impl Client {
    /// Builds both, once.
    fn get() -> Option<&'static Self> {
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

        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dynamic");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([
            "build",
            "--quiet",
            "-p",
            "kernels",
            "--features",
            "cuda",
            "--example",
            "cuda_run",
        ]);
        cargo
            .args(["--config", "profile.dev.package.kernels.opt-level=1", "--target-dir"])
            .arg(&target);
        cargo
            .env("RUSTFLAGS", "-C target-feature=-crt-static")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        assert!(cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
        let mut profile = target.join("debug/examples/cuda_run");
        // With a named target its folder lies between.
        for entry in fs::read_dir(&target).unwrap() {
            let program = entry.unwrap().path().join("debug/examples/cuda_run");
            if program.exists() {
                profile = program;
            }
        }
        Self { program: profile, folder }
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

#[test]
fn every_kernel_computes_the_same_through_the_driver() {
    let Some(client) = Client::get() else { return };
    let launches = client.folder.join("launches");
    let _ = fs::remove_file(&launches);
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--skip", "mutants", "--skip", "driver"])
        .env("CLOISTER_CUDA", &client.program)
        .env("LD_LIBRARY_PATH", &client.folder)
        .env("STANDIN_LAUNCHES", &launches)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{told}\n{}", String::from_utf8_lossy(&done.stderr));
    let launched = fs::read_to_string(&launches).unwrap();
    let launched: BTreeSet<_> = launched.lines().map(str::to_owned).collect();
    let known: BTreeSet<_> = client.lines("--kernels").into_iter().collect();
    assert_eq!(launched, known, "every kernel of the image was launched");
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
