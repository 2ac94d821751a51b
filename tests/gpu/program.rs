//! A program with the feature holds the kernels and asks for the driver: `tests/it/binaries.rs` looks for
//! the same in programs without it.

use std::fs;

#[test]
fn with_its_feature_a_program_holds_code_for_a_card() {
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/cuda/kernels.fatbin");
    let image = fs::read(image).unwrap();
    let program = fs::read(env!("CARGO_BIN_EXE_cloister")).unwrap();
    for needle in [&b"cuModuleLoadData"[..], &image[..64]] {
        assert!(program.windows(needle.len()).any(|window| window == needle));
    }
}
