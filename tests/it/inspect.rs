//! `cloister model inspect` says what a file is, and ends with the right exit code.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::gguf_file::File;
use crate::support::golden;

fn inspect(file: &Path, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cloister"))
        .args(["model", "inspect"])
        .arg(file)
        .args(options)
        .output()
        .unwrap()
}

#[test]
fn a_right_file_is_described_in_json() {
    let output = inspect(&golden().join("tiny/gemma3.gguf"), &["--json", "--tensors"]);
    assert_eq!(output.status.code(), Some(0));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["architecture"], "gemma3");
    assert_eq!(said["tensor_types"][0]["type"], "F32");
    assert_eq!(said["tensors"].as_array().unwrap().len() as u64, said["tensor_count"]);
    assert_eq!(said["tensor_types"][0]["weights"], said["parameters"]);
}

#[test]
fn a_wrong_file_ends_with_1_and_a_missing_one_with_2() {
    let folder = std::env::temp_dir().join(format!("cloister-it-inspect-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("wrong.gguf");
    let file = File::new(1, 0).tensor("\u{1b}[31mblk.0", &[32, 0], 0, 0).data(32, 128);
    std::fs::write(&path, file.bytes()).unwrap();
    let output = inspect(&path, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("wrong.gguf: a dimension of tensor `\\u{1b}[31mblk.0` is zero; "),
        "{said}"
    );
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(said["error"].as_str().unwrap().contains("is zero"));

    let output = inspect(&folder.join("missing.gguf"), &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    std::fs::remove_dir_all(&folder).unwrap();
}
