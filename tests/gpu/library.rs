//! The stand-in for NVIDIA's driver, which emulates the kernels on the CPU: built when a source is newer. It needs
//! no library but libc's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The folder of the stand-in, `libcuda.so.1`.
pub(crate) fn folder() -> &'static Path {
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
    let unfinished = folder.join(format!("unfinished-{}", std::process::id()));
    let mut compiler = Command::new("g++");
    compiler.args(["-std=c++17", "-O2", "-shared", "-fPIC", "-DCLOISTER_EMULATED"]);
    compiler.args(["-static-libstdc++", "-static-libgcc"]);
    compiler.args(["-ffp-contract=off", "-Wno-unknown-pragmas", "-I"]).arg(sources);
    compiler.arg("-o").arg(&unfinished).args(["-x", "c++"]).arg(sources.join("kernels.cu"));
    compiler.args(["device.cpp", "driver.cpp"].map(|part| sources.join("emulated").join(part)));
    let done = compiler.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    fs::rename(unfinished, folder.join("libcuda.so.1")).unwrap();
}
