//! A pipe or an endless file in the place of a key or a checkpoint makes no command wait or grow.

use std::fs::File;

use super::{Command, Output, Site, fs, text};

/// Longer than anything that is read, and nothing on the disk.
const SPARSE_LEN_BYTES: u64 = 10 << 30;

fn within_seconds(words: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_cloister");
    Command::new("timeout").args(["20", program]).args(words).output().unwrap()
}

#[test]
fn a_pipe_or_an_endless_file_is_refused_wherever_a_small_file_is_read() {
    let site = Site::of_story("files");
    let (log, key, pipe, long) =
        (site.path("log"), site.path("audit.vkey"), site.path("pipe"), site.path("long"));
    nix::unistd::mkfifo(pipe.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    File::create(&long).unwrap().set_len(SPARSE_LEN_BYTES).unwrap();
    let (kept, page, config) = (site.path("kept.txt"), site.path("r.html"), site.path("c.toml"));
    fs::copy(site.path("log/checkpoint"), &kept).unwrap();
    fs::write(&config, "[[model]]\nfile = \"m.gguf\"\n").unwrap();
    for bad in [&pipe, &long] {
        let (log, key, kept, page) = (log.as_str(), key.as_str(), kept.as_str(), page.as_str());
        let ask = ["--witness", "http://127.0.0.1:9", "--out", page];
        let commands: [&[&str]; 13] = [
            &["verify", log, "--public-key", bad],
            &["verify", log, "--public-key", key, "--checkpoint", bad],
            &["verify", log, "--public-key", key, "--checkpoint", kept, "--witness-key", bad],
            &["list", log, "--public-key", bad],
            &["report", log, "--public-key", key, "--checkpoint", bad, "--out", page],
            &["export", log, "--public-key", key, "--since", bad, "--out", page],
            &["check-proof", bad, "--public-key", key],
            &["checkpoint", log, "--public-key", bad],
            &[&["witness", log, "--public-key", bad, "--witness-key", kept], &ask[..]].concat(),
            &[&["witness", log, "--public-key", key, "--witness-key", bad], &ask[..]].concat(),
            &["match", log, "--public-key", key, "--body", kept, "--wrapping", bad],
            &["rotate-key", "--config", &config, "--new", bad],
            &["rotate-wrapping-key", "--config", &config, "--new", bad],
        ];
        for command in commands {
            let done = within_seconds(&[&["audit"], command].concat());
            let told = text(&done.stderr);
            assert_eq!(done.status.code(), Some(2), "{command:?}: {told}");
            let why = if *bad == pipe { "regular file" } else { "longer than" };
            assert!(told.contains(why) && told.len() < 500, "{command:?}: {told}");
        }
    }
    fs::write(&config, "[[model]]\nfile = \"m.gguf\"\n[tokens]\nfile = \"pipe\"\n").unwrap();
    let done = within_seconds(&["reload", "--config", &config]);
    let told = text(&done.stderr);
    assert!(done.status.code() == Some(2) && told.contains("regular file"), "{told}");
}

#[test]
fn a_pipe_or_an_endless_file_is_no_list_of_certificates_and_no_api_key() {
    let site = Site::of_story("certificates");
    let (pipe, long, key) = (site.path("pipe"), site.path("long"), site.path("api.key"));
    nix::unistd::mkfifo(pipe.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    File::create(&long).unwrap().set_len(SPARSE_LEN_BYTES).unwrap();
    fs::write(&key, "key").unwrap();
    for bad in [&pipe, &long] {
        let (url, bad) = ("https://127.0.0.1:9/v1", bad.as_str());
        let done =
            within_seconds(&["chat", "--url", url, "--ca", bad, "--api-key-file", &key, "a"]);
        let told = text(&done.stderr);
        assert!(done.status.code().is_some_and(|code| code != 0 && code != 124), "{told}");
        assert!(told.contains(bad), "{told}");
    }
    let endless = ["chat", "--url", "http://127.0.0.1:9/v1", "--api-key-file", "/dev/zero", "a"];
    let told = text(&within_seconds(&endless).stderr);
    assert!(told.contains("longer than 1024 bytes"), "{told}");
}
