//! Compiles the seccomp filters of `policy/seccomp` into BPF, which the programs embed.
//!
//! A filter that does not compile, or names an unknown system call, stops the build.

use std::path::Path;
use std::{env, fs, process::exit};

use seccompiler::{BpfProgram, TargetArch, compile_from_json};

fn main() {
    if let Err(reason) = compile_filters() {
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
