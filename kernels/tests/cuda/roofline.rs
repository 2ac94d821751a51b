//! The measurement of a card runs, on a card that is emulated: no time is held.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_json::Value;

use crate::driver::Client;

fn measure(client: &Client, words: &[&str]) -> Output {
    let mut command = Command::new(client.program.with_file_name("cuda_roofline"));
    command.args(words).env("LD_LIBRARY_PATH", &client.folder);
    command.output().unwrap()
}

#[test]
fn every_part_of_a_pass_stands_beside_its_limit() {
    let Some(client) = Client::get() else { return };
    let output = measure(client, &["--shape", "tiny", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let positive = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0);
    for limit in ["bytes_per_s", "int8_ops_per_s", "float_ops_per_s"] {
        assert!(positive(&said["limits"][limit]), "{limit}");
    }
    let rows = said["rows"].as_array().unwrap();
    for row in rows {
        assert!(
            positive(&row["seconds"]) && positive(&row["bytes"]) && positive(&row["share"]),
            "{row}"
        );
    }
    let found: BTreeSet<_> = rows.iter().filter_map(|row| row["kernel"].as_str()).collect();
    let wanted = [
        "add_norm",
        "attention_combine",
        "attention_decode_f16_2",
        "attention_prompt_f16_64",
        "embed_rows",
        "embed_scan",
        "gate",
        "gemm_q4_k",
        "gemm_q6_k",
        "matvec_1",
        "matvec_8",
        "prepare_heads_f16",
        "quantize",
        "select_token",
    ];
    assert_eq!(found, BTreeSet::from(wanted));
    let steps = said["steps"].as_array().unwrap();
    let names: Vec<_> = steps.iter().filter_map(|step| step["step"].as_str()).collect();
    assert_eq!(names, ["One", "Many", "Prompt"]);
    assert!(steps.iter().all(|step| positive(&step["tokens_per_s"])));
    // What a token of an answer reads and writes, counted by hand: 256 weights take 148 and 210 bytes as
    // they are packed.
    let bytes = |part: &str| {
        let is_it = |row: &&Value| row["part"] == part && row["step"] == "One";
        rows.iter().find(is_it).unwrap()["bytes"].as_f64().unwrap()
    };
    assert_eq!(bytes("down q4_k"), 256.0 * 512.0 / 256.0 * 148.0 + 512.0 * 1.25 + 256.0 * 4.0);
    assert_eq!(bytes("down q6_k"), 256.0 * 512.0 / 256.0 * 210.0 + 512.0 * 1.25 + 256.0 * 4.0);
}

#[test]
fn the_table_names_the_card_and_a_shape_that_is_not_there_is_refused() {
    let Some(client) = Client::get() else { return };
    let output = measure(client, &["--shape", "tiny"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.starts_with("CUDA kernels on the CPU\nlimits, measured: "), "{told}");
    assert!(told.contains("a prompt of 70: ") && told.contains("long attention"), "{told}");
    let output = measure(client, &["--shape", "9b"]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(told, "cuda_roofline: --shape 9b: there is no such shape\n");
}
