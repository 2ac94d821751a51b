//! House rules that rustc, clippy and rustfmt cannot check, as ordinary tests.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::tests_outside_test_module, reason = "an integration test has no such module")]

use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, in lines. Tests are exempt.
const FILE_LINES_MAX: usize = 600;

/// Most lines of code of the spawner, without comments and empty lines.
const SPAWNER_LINES_MAX: usize = 600;

/// The only folders in which `unsafe` may be written.
const UNSAFE_HOMES: &[&str] = &["kernels/src/", "src/sys/"];

/// Which names a folder must never mention: the walls between the processes.
const WALLS: &[(&str, &[&str])] = &[
    ("src/supervisor", &["hyper", "rustls", "tokio", "crate::gateway::", "crate::engine::"]),
    ("src/spawner", &["hyper", "rustls", "tokio", "use ring", "std::net", "crate::supervisor"]),
    ("src/opener", &["hyper", "rustls", "tokio", "std::net", "crate::gguf", "crate::engine"]),
    ("src/loader", &["hyper", "rustls", "tokio", "std::net", "use ring", "crate::package"]),
    ("src/worker", &["hyper", "rustls", "tokio", "std::net", "use ring", "crate::gateway"]),
    ("src/engine", &["hyper", "rustls", "tokio", "std::net", "std::fs", "crate::ipc"]),
    ("src/gateway", &["kernels", "memmap2", "crate::engine", "crate::package"]),
    ("kernels/src", &["std::fs", "std::net", "std::env", "std::process"]),
];

/// SAFETY comments that say nothing.
const EMPTY_WORDS: &[&str] = &["trivially safe", "safe because", "valid parameters", "always safe"];

#[test]
fn every_source_file_is_tidy() {
    let mut faults = Vec::new();
    for path in source_files() {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.to_str().unwrap().replace('\\', "/");
        check_file(&name, &text, &mut faults);
    }
    assert!(faults.is_empty(), "untidy:\n{}", faults.join("\n"));
}

fn check_file(name: &str, text: &str, faults: &mut Vec<String>) {
    if !text.starts_with("//! ") {
        faults.push(format!("{name}: starts without a `//!` line that says what it is for"));
    }
    if !name.ends_with("tests.rs") && text.lines().count() > FILE_LINES_MAX {
        faults.push(format!("{name}: longer than {FILE_LINES_MAX} lines"));
    }
    for (i, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let at = format!("{name}:{}", i + 1);
        let says_unsafe =
            code.split(|c: char| c != '_' && !c.is_alphanumeric()).any(|w| w == "unsafe");
        if says_unsafe && !UNSAFE_HOMES.iter().any(|home| name.starts_with(home)) {
            faults.push(format!("{at}: `unsafe` outside {UNSAFE_HOMES:?}"));
        }
        for (folder, banned) in WALLS {
            for word in banned.iter().filter(|_| name.starts_with(folder)) {
                if code.contains(word) {
                    faults.push(format!("{at}: `{folder}` must not mention `{word}`"));
                }
            }
        }
        if let Some(reason) = line.trim_start().strip_prefix("// SAFETY:") {
            let reason = reason.to_lowercase();
            if EMPTY_WORDS.iter().any(|words| reason.contains(words)) {
                faults.push(format!("{at}: name the fact that makes this sound"));
            }
        }
    }
}

/// A promise whose test was renamed, moved or removed is none.
#[test]
fn every_test_and_file_that_the_security_page_names_is_there() {
    let page = fs::read_to_string("SECURITY.md").unwrap();
    let (mut tests, mut files) = (0, 0);
    for name in page.split('`').skip(1).step_by(2) {
        if let Some((path, last)) = name.rsplit_once("::") {
            let sources = sources_of(path);
            assert!(!sources.is_empty(), "SECURITY.md names {name}, and there is no such file");
            let is_there = |text: &String| {
                text.contains(&format!("fn {last}(")) || text.contains(&format!("mod {last};"))
            };
            assert!(sources.iter().any(is_there), "SECURITY.md names {name}, which is not there");
            tests += 1;
        } else if ["tests/", "src/", "systemd/", "policy/"].iter().any(|top| name.starts_with(top))
        {
            assert!(Path::new(name).exists(), "SECURITY.md names {name}, which is not there");
            files += 1;
        }
    }
    assert!(tests >= 60 && files >= 60, "{tests} tests, {files} files");
}

/// The source files that a test's module path may stand for.
fn sources_of(path: &str) -> Vec<String> {
    let path = path.replace("::", "/");
    let names = ["tests/it/PATH.rs", "src/PATH.rs", "src/PATH/mod.rs", "src/PATH/tests.rs"];
    // A module of tests inside its file.
    let inner = path.strip_suffix("/tests").map(|outer| format!("src/{outer}.rs"));
    let found = names.iter().map(|name| name.replace("PATH", &path)).chain(inner);
    found.filter_map(|name| fs::read_to_string(name).ok()).collect()
}

#[test]
fn every_seccomp_rule_says_why() {
    for entry in fs::read_dir("policy/seccomp").unwrap() {
        let path = entry.unwrap().path();
        for (i, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let is_rule = line.contains("\"syscall\"");
            assert!(!is_rule || line.contains("\"comment\""), "{}:{}", path.display(), i + 1);
        }
    }
}

/// The only process that stays root: small enough to be read in one sitting. Its messages are those of `ipc`.
#[test]
fn the_spawner_is_small() {
    let mut lines = 0;
    for path in source_files().iter().filter(|path| path.starts_with("src/spawner")) {
        let text = fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
        lines += code.lines().filter(is_code).count();
    }
    assert!((1..=SPAWNER_LINES_MAX).contains(&lines), "src/spawner: {lines} lines of code");
}

fn source_files() -> Vec<PathBuf> {
    files_below(&["src", "kernels/src"])
}

fn files_below(folders: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<_> = folders.iter().map(PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension() == Some(Path::new("rs").as_os_str()) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
