//! `cloister bench` and `cloister model distance` print what they promise; no test holds a time.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::golden;

fn cloister(words: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cloister"))
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn tiny(name: &str) -> String {
    golden().join(format!("tiny/{name}.gguf")).to_str().unwrap().to_owned()
}

#[test]
fn every_speed_stands_beside_its_limit_even_with_more_threads_than_cores() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let threads = format!("{cores},{}", cores * 2);
    let file = tiny("gemma3");
    let words = ["bench", &file, "--threads", &threads, "--prompt", "40,7", "--depth", "0,33"];
    let options = ["--batch", "1,3", "--generate", "2", "--rounds", "2", "--json"];
    let output = cloister(&[&words[..], &options[..]].concat(), "");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let positive = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0);
    // Of less than all, a speed is the larger share.
    let has_both = |row: &Value, share, usual| {
        positive(&row[share]) && row[usual].as_f64() >= row[share].as_f64()
    };
    assert!(positive(&said["limits"]["read_bandwidth_bytes_per_s"]));
    assert!(positive(&said["resident_peak_bytes"]) && positive(&said["load"]["total_s"]));
    let (prefill, decode) =
        (said["prefill"].as_array().unwrap(), said["decode"].as_array().unwrap());
    assert_eq!((prefill.len(), decode.len()), (4, 8));
    for row in prefill {
        assert!(positive(&row["prefill_tokens_per_s"]) && positive(&row["first_token_s"]));
        assert!(has_both(row, "int8_peak_share", "int8_peak_usual_share"));
    }
    for row in decode {
        assert!(positive(&row["decode_tokens_per_s"]));
        assert!(has_both(row, "bandwidth_share", "bandwidth_usual_share"));
        assert_eq!(row["rounds_tokens_per_s"].as_array().unwrap().len(), 2);
    }
    let is_second = |row: &&Value| row["threads"] == cores * 2;
    let second: Vec<_> = prefill.iter().chain(decode).filter(is_second).collect();
    assert_eq!(second.len(), 6);
    assert!(second.iter().all(|row| positive(&row["ratio_to_first_threads"])));
}

#[test]
fn keys_and_values_in_8_bits_take_34_bytes_for_64() {
    let file = tiny("gemma3");
    let bytes = |kv| {
        let words = ["bench", &file, "--kv", kv, "--only", "decode", "--depth", "40"];
        let options = ["--batch", "1", "--generate", "1", "--rounds", "1", "--json"];
        let output = cloister(&[&words[..], &options[..]].concat(), "");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["kv"], kv);
        said["kv_bytes_per_position"].as_u64().unwrap()
    };
    assert_eq!(bytes("q8_0") * 64, bytes("f16") * 34);
}

#[test]
fn a_round_is_run_for_each_line() {
    let file = tiny("llama");
    let words = ["bench", &file, "--stepwise", "--prompt", "9", "--depth", "3", "--batch", "2"];
    let output = cloister(&words, "\n\nnext\n\n");
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["ready"], "prefill 9");
    assert_eq!((&lines[1]["tokens"], &lines[2]["tokens"]), (&9.into(), &9.into()));
    assert_eq!(lines[3]["ready"], "decode of 2 at depth 3");
    assert_eq!((lines.len(), &lines[4]["tokens"]), (5, &64.into()));
}

#[test]
fn wrong_arguments_are_refused_by_name() {
    let file = tiny("llama");
    let cases = [
        (&["bench", &file, "--prompt", "99999"][..], "--prompt 99999"),
        (&["bench", &file, "--depth", "99999"], "--depth 99999"),
        (&["bench", &file, "--isa", "abacus"], "--isa"),
        (&["bench", &file, "--kv", "q4_0"], "[possible values: f16, q8_0]"),
        (&["bench", &file, "--threads", "0"], "--threads"),
        (&["bench", &file, "--batch", "1,x"], "--batch"),
        (&["bench", "missing.gguf"], "missing.gguf"),
        (&["model", "distance", &file, "missing.txt"], "missing.txt"),
        (&["model", "distance", &file, "Cargo.toml", "--context", "99999"], "--context 99999"),
        (&["model", "distance", &file, "LICENSE", "--positions", "9999999"], "--positions 9999999"),
    ];
    for (words, name) in cases {
        let output = cloister(words, "");
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(name), "{words:?}: {said}");
    }
}

#[test]
fn the_distance_of_the_fast_mode_is_measured_at_every_position() {
    for (name, kv) in [("llama", "f16"), ("gemma3", "f16"), ("gemma3", "q8_0")] {
        let file = tiny(name);
        let words = ["model", "distance", &file, "LICENSE", "--positions", "150", "--kv", kv];
        let options = ["--context", "70", "--json", "--threads", "2"];
        let output = cloister(&[&words[..], &options[..]].concat(), "");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&said["positions"], &said["context"]), (&150.into(), &70.into()));
        let number = |name: &str| said[name].as_f64().unwrap();
        // Weights of 32-bit floats take no part in the bytes of the fast mode: only the cache does.
        assert!(number("kl_mean") < 1e-3 && number("kl_mean") <= number("kl_max"));
        assert!(number("top1_agreement") > 0.9);
        let ratio = number("perplexity_fast") / number("perplexity_exact");
        assert!((ratio - 1.0).abs() < 0.01);
    }
}

#[test]
fn the_log_is_timed_beside_its_disk() {
    let folder = std::path::PathBuf::from("/var/tmp").join(format!("bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let words = ["bench", "audit", "--folder", folder.to_str().unwrap(), "--records", "700"];
    let options = ["--rate", "200", "--seconds", "1", "--json"];
    let output = cloister(&[&words[..], &options[..]].concat(), "");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let positive = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0);
    for place in [
        &said["disk"]["sync_into_room"]["p99_ms"],
        &said["disk"]["sync_behind_end"]["p50_ms"],
        &said["steady"]["records_per_s"],
        &said["steady"]["delay"]["p99_ms"],
        &said["full_speed"]["records_per_commit"],
        &said["long_log"]["open_for_append_s"],
        &said["long_log"]["open_for_append_processor_s"],
        &said["long_log"]["open_for_append_after_kill_s"],
        &said["long_log"]["open_for_review_s"],
        &said["long_log"]["verify_records_per_s"],
        &said["long_log"]["bytes"],
    ] {
        assert!(positive(place), "{said}");
    }
    assert_eq!(said["long_log"]["records"], 700);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "nothing is left");
    std::fs::remove_dir(&folder).unwrap();
}
