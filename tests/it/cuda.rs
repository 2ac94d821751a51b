//! The kernels of the card that are checked in are those of the sources beside them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/cuda")
}

fn digest(path: &Path) -> String {
    let digest = Sha256::digest(fs::read(path).unwrap());
    digest.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[test]
fn the_manifest_names_every_source_and_its_digest() {
    let manifest = fs::read_to_string(folder().join("MANIFEST")).unwrap();
    let mut named = BTreeMap::new();
    for line in manifest.lines().filter(|line| !line.contains(": ")) {
        let (digest, name) = line.split_once("  ").unwrap();
        named.insert(name.to_owned(), digest.to_owned());
    }
    let is_source = |path: &PathBuf| {
        path.extension().is_some_and(|it| ["cu", "cuh"].iter().any(|known| it == *known))
    };
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut found = BTreeMap::new();
    for path in files
        .filter(is_source)
        .chain(["compiler.txt", "kernels.fatbin"].map(|it| folder().join(it)))
    {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        found.insert(name, digest(&path));
    }
    assert_eq!(found, named, "run kernels/cuda/build.sh");
}

#[test]
fn the_kernels_are_there_for_every_card_that_is_named() {
    let manifest = fs::read_to_string(folder().join("MANIFEST")).unwrap();
    for code in ["sm_80", "sm_86", "sm_89", "sm_90a", "compute_80"] {
        assert!(manifest.contains(&format!("code={code}")), "{code}");
    }
    // The magic number of a fat binary, and room for the kernels.
    let image = fs::read(folder().join("kernels.fatbin")).unwrap();
    assert_eq!(image[..4], 0xBA55_ED50_u32.to_le_bytes());
    assert!(image.len() > 1_000_000, "{}", image.len());
}
