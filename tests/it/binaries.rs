//! The walls between the processes hold in the binaries: what the linker left in the worker.

use std::fs;

/// Names that must not be in the worker: no runtime, TLS, HTTP or signature code.
const NOT_IN_THE_WORKER: &[&str] = &["5tokio", "6rustls", "5hyper", "4ring", "9age_core", "5rcgen"];

/// Our own folders that must not be there either: keys, log, signatures, the other processes.
const FOLDERS_NOT_IN_THE_WORKER: &[&str] =
    &["5audit", "7package", "10supervisor", "7gateway", "6opener", "7spawner"];

/// Mangled symbol names stand in the binary's string table, in debug and release builds alike.
#[test]
fn the_worker_links_no_network_tls_or_signature_code() {
    let worker = fs::read(env!("CARGO_BIN_EXE_cloister-worker")).unwrap();
    let gateway = fs::read(env!("CARGO_BIN_EXE_cloister-gateway")).unwrap();
    for name in NOT_IN_THE_WORKER {
        assert!(!has_symbol_of(&worker, name), "the worker links {name}");
    }
    let supervisor = fs::read(env!("CARGO_BIN_EXE_cloister-supervisor")).unwrap();
    for folder in FOLDERS_NOT_IN_THE_WORKER {
        let name = format!("8cloister{folder}");
        assert!(!has_symbol_of(&worker, &name), "the worker links {folder}");
        let other = if *folder == "7gateway" { &gateway } else { &supervisor };
        assert!(has_symbol_of(other, &name), "the test finds no {folder} where it must be");
    }
    for name in ["5tokio", "6rustls", "5hyper", "4ring"] {
        assert!(has_symbol_of(&gateway, name), "the test finds no {name} where it must be");
    }
    for name in NOT_IN_THE_WORKER.iter().chain(&["7kernels", "9minijinja"]) {
        if ["7kernels", "9minijinja", "9age_core"].contains(name) {
            assert!(!has_symbol_of(&gateway, name), "the gateway links {name}");
        }
    }
}

/// What a program for cards holds: the name of the driver, and the start of the kernels' machine code.
/// `tests/gpu/program.rs` finds both where they must be.
#[cfg(not(feature = "cuda"))]
#[test]
fn without_its_feature_no_program_holds_code_for_a_card() {
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/cuda/kernels.fatbin");
    let image = fs::read(image).unwrap();
    for program in [
        env!("CARGO_BIN_EXE_cloister"),
        env!("CARGO_BIN_EXE_cloister-gateway"),
        env!("CARGO_BIN_EXE_cloister-supervisor"),
        env!("CARGO_BIN_EXE_cloister-worker"),
    ] {
        let bytes = fs::read(program).unwrap();
        for needle in [&b"libcuda.so"[..], &image[..64]] {
            let is_there = bytes.windows(needle.len()).any(|window| window == needle);
            assert!(!is_there, "{program} holds code for a card");
        }
    }
}

/// Whether a mangled Rust path starts in the crate `name`, given as its length and name.
fn has_symbol_of(binary: &[u8], name: &str) -> bool {
    // Legacy mangling: `_ZN` and the path's parts.
    let needle = format!("_ZN{name}");
    binary.windows(needle.len()).any(|window| window == needle.as_bytes())
}
