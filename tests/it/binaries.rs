//! The walls between the processes hold in the binaries: what the linker left in the worker.

use std::fs;

use crate::support::holds;

/// Names that must not be in the worker: no runtime, TLS, HTTP or signature code.
pub(crate) const NOT_IN_THE_WORKER: &[&str] =
    &["5tokio", "6rustls", "5hyper", "4ring", "9age_core", "5rcgen"];

/// Our own folders that must not be there either: keys, log, signatures, the other processes.
pub(crate) const FOLDERS_NOT_IN_THE_WORKER: &[&str] =
    &["5audit", "7package", "10supervisor", "7gateway", "6opener", "7spawner"];

/// The driver's library, and the crate that loads it.
pub(crate) const OF_THE_DRIVER: [&str; 2] = ["libcuda.so", "libloading"];

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

/// What a program for cards holds: the name of a function of the driver, and the start of the kernels' machine code.
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
        for needle in [&b"cuModuleLoadData"[..], &image[..64]] {
            assert!(!holds(&bytes, needle), "{program} holds code for a card");
        }
    }
}

/// The card's worker alone loads a driver, and is linked dynamically for that (`appliance/card.rs`).
#[test]
fn the_worker_knows_of_no_driver_and_needs_no_loader() {
    let worker = fs::read(env!("CARGO_BIN_EXE_cloister-worker")).unwrap();
    for name in OF_THE_DRIVER {
        assert!(!holds(&worker, name.as_bytes()), "the worker knows of {name}");
    }
    assert!(!needs_loader(&worker));
}

/// Whether the kernel is to start another program before this one: `PT_INTERP` among its segments.
pub(crate) fn needs_loader(binary: &[u8]) -> bool {
    let number = |at: usize, len: usize| {
        binary[at..at + len].iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|index| number(table + index * size, 4) == 3)
}

/// Whether a mangled Rust path starts in the crate `name`, given as its length and name.
pub(crate) fn has_symbol_of(binary: &[u8], name: &str) -> bool {
    // Legacy mangling: `_ZN` and the path's parts.
    holds(binary, format!("_ZN{name}").as_bytes())
}
