//! What the stand-in is worth: each of these faults, put into the code that asks the driver, is noticed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::driver::{Client, build_examples, check};

/// A fault in the code that asks the driver: file, what stands there, what is put there, and what is told.
const FAULTS: &[(&str, &str, &str, &str)] = &[
    (
        "pinned.rs",
        "// SAFETY: the allocation has so many bytes, and nobody reads or writes them now.
        unsafe { self.start.write_bytes(0, self.size.max(1)) };",
        "",
        "stand-in: pinned memory that is given back is not zero",
    ),
    (
        "pinned.rs",
        "let _ = self.card.finish();",
        "",
        "stand-in: pinned memory is given back while work waits",
    ),
    (
        "pinned.rs",
        "if self.card.is_recording.get() {",
        "if false {",
        "stand-in: pinned memory is left when the context goes",
    ),
    (
        "pinned.rs",
        "if !ptr::addr_eq(card, self.card) {",
        "if false {",
        "memory_that_another_card_pinned_is_refused: a write: None, not Some(OtherCard)",
    ),
    (
        "card.rs",
        "        let _ = self.finish();
        let functions",
        "        let functions",
        "stand-in: a stream is destroyed while work waits",
    ),
    (
        "graph.rs",
        "        if self.card.is_recording.get() {",
        "        if false {",
        "the_recording_ends_when_the_work_panics: a graph is recorded",
    ),
    ("graph.rs", "card.give_back_left();", "", "stand-in: memory is left when the context goes"),
    (
        "card.rs",
        "if self.is_recording.get() { Err(CudaError::WhileRecording) } else { Ok(()) }",
        "Ok(())",
        "the_card_goes_on: finish: Some(WhileRecording), not None",
    ),
];

/// Copies the crate into a workspace of its own.
fn copy() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faulty");
    let _ = fs::remove_dir_all(&folder);
    copy_folder(&source.join("src"), &folder.join("src"));
    copy_folder(&source.join("examples"), &folder.join("examples"));
    copy_folder(&source.join("benches"), &folder.join("benches"));
    fs::create_dir_all(folder.join("cuda")).unwrap();
    fs::copy(source.join("cuda/kernels.fatbin"), folder.join("cuda/kernels.fatbin")).unwrap();
    fs::copy(source.join("../Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    let manifest = fs::read_to_string(source.join("Cargo.toml")).unwrap();
    let of_workspace = |line: &&str| !line.ends_with(".workspace = true");
    let lines: Vec<_> = manifest.lines().filter(of_workspace).collect();
    let own = ["edition = \"2024\"", "[workspace]"];
    let manifest = lines.join("\n").replacen("[package]", &format!("[package]\n{}", own[0]), 1);
    fs::write(folder.join("Cargo.toml"), format!("{manifest}\n{}\n", own[1])).unwrap();
    folder
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

#[test]
fn faults_in_graphs_and_pinned_memory_are_noticed() {
    let Some(client) = Client::get() else { return };
    let folder = copy();
    let (is_right, told) = check(&build_examples(&folder), client, &[]);
    assert!(is_right, "without a fault: {told}");
    for (file, from, to, wanted) in FAULTS {
        let path = folder.join("src/cuda").join(file);
        let sound = fs::read_to_string(&path).unwrap();
        assert_eq!(sound.matches(from).count(), 1, "{file} has this once: {from}");
        fs::write(&path, sound.replace(from, to)).unwrap();
        let (is_right, told) = check(&build_examples(&folder), client, &[]);
        assert!(!is_right && told.contains(wanted), "{file}, {from}: {told}");
        fs::write(&path, sound).unwrap();
    }
    fs::remove_dir_all(folder).unwrap();
}
