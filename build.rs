//! Compiles the seccomp filters of `policy/seccomp` into BPF, which the programs embed, and lists the
//! source files, so that a place in one of them can be told from a text.
//!
//! A filter that does not compile, or names an unknown system call, stops the build.

use std::path::Path;
use std::{env, fs, process::exit};

use seccompiler::{BpfProgram, TargetArch, compile_from_json};

fn main() {
    if let Err(reason) = compile_filters().and_then(|()| list_sources()) {
        println!("cargo::error={reason}");
        exit(1);
    }
}

fn compile_filters() -> Result<(), String> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").map_err(|error| error.to_string())?;
    let out = env::var("OUT_DIR").map_err(|error| error.to_string())?;
    let policy = format!("policy/seccomp/{arch}.json");
    println!("cargo::rerun-if-changed={policy}");
    let target = TargetArch::try_from(arch.as_str()).map_err(|error| error.to_string())?;
    let json = fs::read(&policy).map_err(|error| format!("{policy}: {error}"))?;
    let filters =
        compile_from_json(json.as_slice(), target).map_err(|error| format!("{policy}: {error}"))?;
    for (name, program) in &filters {
        let path = Path::new(&out).join(format!("{name}.bpf"));
        fs::write(&path, bytes(program)).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Writes the paths of all source files, as the compiler names them, for `include!`.
fn list_sources() -> Result<(), String> {
    let out = env::var("OUT_DIR").map_err(|error| error.to_string())?;
    let (mut folders, mut files) = (vec!["src".to_owned(), "kernels/src".to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        println!("cargo::rerun-if-changed={folder}");
        let entries = fs::read_dir(&folder).map_err(|error| format!("{folder}: {error}"))?;
        for entry in entries.flatten() {
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            match entry.path().is_dir() {
                true => folders.push(path),
                false if path.ends_with(".rs") => files.push(path),
                false => {}
            }
        }
    }
    files.sort();
    let path = Path::new(&out).join("sources.rs");
    fs::write(&path, format!("&{files:?}")).map_err(|error| format!("{}: {error}", path.display()))
}

/// The kernel's `sock_filter`, little-endian: code, jump if true, jump if false, k.
fn bytes(program: &BpfProgram) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.extend_from_slice(&instruction.code.to_le_bytes());
        bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
        bytes.extend_from_slice(&instruction.k.to_le_bytes());
    }
    bytes
}
