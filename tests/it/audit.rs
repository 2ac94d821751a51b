//! What an auditor sees: searches, proofs, exports and the report, all of them proven, none of them fooled.

mod export;
mod files;
mod forward;
mod many;
mod report;
mod story;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cloister::audit::tiles::{Kind, tile_path};
use cloister::audit::{Signer, Snapshot, Verifier};
use serde_json::Value;

use story::{HOSTILE, START_S, Writer};

const DAY_S: u64 = 86_400;

/// A folder with a log, its key and its public key; gone with the test.
struct Site {
    folder: PathBuf,
    signer: Signer,
}

impl Site {
    fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("cloister-review-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("log")).unwrap();
        let key = folder.join("audit.pem").display().to_string();
        let made = cloister(&["keygen", "audit", "--name", "ward.example/audit", "--out", &key]);
        assert!(made.status.success(), "{made:?}");
        let signer = Signer::from_pem("ward.example/audit", &fs::read(&key).unwrap()).unwrap();
        Self { folder, signer }
    }

    /// A site with the whole story.
    fn of_story(name: &str) -> Self {
        let site = Self::new(name);
        site.write(&story::story());
        site
    }

    fn write(&self, records: &[Vec<u8>]) {
        let log = self.folder.join("log");
        let _ = fs::remove_dir_all(&log);
        fs::create_dir_all(&log).unwrap();
        let mut writer = Writer::new(&log);
        records.iter().for_each(|record| writer.push(record));
        writer.publish(&self.signer);
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn verifier(&self) -> Verifier {
        self.signer.verifier()
    }

    /// `cloister audit COMMAND LOG WORDS`.
    fn audit(&self, command: &str, words: &[&str]) -> Output {
        let log = self.path("log");
        self.cloister(&[&["audit", command, log.as_str()], words].concat())
    }

    /// A command with this site's public key.
    fn cloister(&self, words: &[&str]) -> Output {
        cloister(&[words, &["--public-key", &self.path("audit.vkey")]].concat())
    }

    /// The JSON lines of a command that must succeed.
    fn lines(&self, command: &str, words: &[&str]) -> Vec<Value> {
        let done = self.audit(command, words);
        assert!(done.status.success(), "{done:?}");
        let text = String::from_utf8(done.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn cloister(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cloister")).args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The records of the story with their index, as plain values.
fn all() -> Vec<Value> {
    let parse = |(index, record): (usize, Vec<u8>)| {
        let mut value: Value = serde_json::from_slice(&record).unwrap();
        value["index"] = index.into();
        value
    };
    story::story().into_iter().enumerate().map(parse).collect()
}

fn name(record: &Value) -> &str {
    record["event"].as_object().unwrap().keys().next().unwrap()
}

fn request(record: &Value) -> &str {
    record["event"][name(record)]["request"].as_str().unwrap_or_default()
}

/// Whether a record is one that a search must find.
type IsWanted<'a> = Box<dyn Fn(&Value) -> bool + 'a>;

#[test]
fn a_search_finds_what_a_plain_look_at_all_records_finds() {
    let site = Site::of_story("search");
    let all = all();
    let principal = all.iter().find(|one| name(one) == "begin").unwrap();
    let principal = principal["event"]["begin"]["observed"]["principal"].as_str().unwrap();
    let begun: Vec<&str> = all
        .iter()
        .filter(|one| one["event"]["begin"]["observed"]["principal"] == principal)
        .map(request)
        .collect();
    let is_its = |one: &Value| {
        begun.contains(&request(one))
            || one.to_string().contains(&format!("\"principal\":\"{principal}\""))
    };
    let time = |one: &Value| one["time_s"].as_u64().unwrap();
    let outcome = |one: &Value, word: &str| one["event"]["end"]["declared"]["outcome"] == word;
    let cases: Vec<(Vec<&str>, IsWanted<'_>)> = vec![
        (vec![], Box::new(|_| true)),
        (vec!["--event", "refused"], Box::new(|one| name(one) == "refused")),
        (
            vec!["--event", "start", "--event", "stop"],
            Box::new(|one| ["start", "stop"].contains(&name(one))),
        ),
        (vec!["--principal", &principal[..6]], Box::new(is_its)),
        (vec!["--outcome", "failed"], Box::new(move |one| outcome(one, "failed"))),
        (
            vec!["--from", "2026-11-03", "--to", "2026-11-05"],
            Box::new(move |one| (START_S + 6 * DAY_S..START_S + 9 * DAY_S).contains(&time(one))),
        ),
        (
            vec!["--from", "2026-11-14T20:00:00Z", "--whole"],
            Box::new(move |one| time(one) >= START_S + 17 * DAY_S + 72_000),
        ),
        (vec!["--request", &begun[3][..8]], Box::new(|one| request(one) == begun[3])),
        (vec!["--to", "2026-10-27"], Box::new(|_| false)),
    ];
    for (words, is_wanted) in cases {
        let want: Vec<&Value> = all.iter().filter(|one| is_wanted(one)).collect();
        assert!(words.contains(&"2026-10-27") == want.is_empty(), "{words:?} tests nothing");
        let found = site.lines("list", &[&["--json"], words.as_slice()].concat());
        assert_eq!(found.iter().collect::<Vec<_>>(), want, "{words:?}");
        let back = site.lines("search", &[&["--json", "--newest"], words.as_slice()].concat());
        assert_eq!(back.iter().rev().collect::<Vec<_>>(), want, "{words:?} newest first");
        let few = site
            .lines("search", &[&["--json", "--newest", "--limit", "3"], words.as_slice()].concat());
        assert_eq!(
            few.iter().collect::<Vec<_>>(),
            want.iter().rev().take(3).copied().collect::<Vec<_>>(),
            "{words:?}"
        );
    }
}

/// The cells of a line of comma-separated values.
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut is_quoted) = (vec![String::new()], false);
    for char in line.chars() {
        match char {
            // The second of two quotes opens again what the first has closed.
            '"' => {
                let cell = cells.last_mut().unwrap();
                is_quoted = !is_quoted;
                if is_quoted && !cell.is_empty() {
                    cell.push('"');
                }
            }
            ',' if !is_quoted => cells.push(String::new()),
            other => cells.last_mut().unwrap().push(other),
        }
    }
    cells
}

#[test]
fn foreign_text_acts_on_no_terminal_and_in_no_spreadsheet() {
    let site = Site::of_story("foreign");
    for words in [vec![], vec!["--csv"], vec!["--newest", "--csv"]] {
        let done = site.audit("list", &words);
        let shown = text(&done.stdout);
        assert!(done.status.success() && shown.contains("cmd|"), "{shown}");
        assert!(
            !shown.chars().any(|char| char != '\n' && (char.is_control() || char == '\u{202e}'))
        );
        let is_csv = words.contains(&"--csv");
        for cell in shown.lines().filter(|_| is_csv).flat_map(cells) {
            assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "{cell}");
        }
    }
    let stats = text(&site.audit("stats", &[]).stdout);
    assert!(stats.contains("cmd|") && !stats.contains('\u{1b}'), "{stats}");
    assert!(HOSTILE.contains('\u{1b}'), "the control");
}

#[test]
fn a_changed_record_is_refused_where_it_stands_and_nothing_after_it_is_shown() {
    let site = Site::of_story("changed");
    let path = tile_path(&site.folder.join("log"), Kind::Entries, 2, 256);
    let mut bytes = fs::read(&path).unwrap();
    let at = text(&bytes).find("\"time_s\":1").unwrap() + 10;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let done = site.audit("list", &["--json"]);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("record or hash 512 of level 0"), "{}", text(&done.stderr));
    assert_eq!(text(&done.stdout).lines().count(), 512);
    let other = site.audit("list", &["--json", "--from", "2026-11-20"]);
    assert!(other.status.success(), "records elsewhere are still proven: {other:?}");
    for command in ["stats", "list"] {
        assert_eq!(site.audit(command, &[]).status.code(), Some(1), "{command}");
    }
    assert_eq!(site.cloister(&["audit", "show", "#512", &site.path("log")]).status.code(), Some(1));
    assert!(site.cloister(&["audit", "show", "#511", &site.path("log")]).status.success());
}

#[test]
fn hash_tiles_are_believed_only_under_the_signed_root() {
    let site = Site::of_story("tiles");
    let log = site.folder.join("log");
    // A record and the hash tile over it, changed together: the tile above tells.
    let entries = tile_path(&log, Kind::Entries, 1, 256);
    let mut bytes = fs::read(&entries).unwrap();
    let len = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    let at = 2 + text(&bytes[2..2 + len]).find("\"boot\":\"").unwrap() + 8;
    bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    let leaf = cloister::audit::merkle::leaf_hash(&bytes[2..2 + len]);
    fs::write(&entries, &bytes).unwrap();
    let hashes = tile_path(&log, Kind::Hashes(0), 1, 256);
    let mut tile = fs::read(&hashes).unwrap();
    tile[..32].copy_from_slice(&leaf);
    fs::write(&hashes, tile).unwrap();
    let done = site.audit("list", &[]);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("hash 1 of level 1"), "{}", text(&done.stderr));
}

#[test]
fn a_proof_convinces_a_third_party_and_a_changed_one_does_not() {
    let site = Site::of_story("proof");
    let all = all();
    let ended = all.iter().find(|one| name(one) == "end").unwrap();
    let (file, key) = (site.path("one.tlog-proof"), site.path("audit.vkey"));
    let id = &request(ended)[..12];
    let shown =
        site.cloister(&["audit", "show", id, &site.path("log"), "--proof", &file, "--json"]);
    assert!(shown.status.success(), "{shown:?}");
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["records"].as_array().unwrap().len(), 2, "begin and end");
    for record in shown["records"].as_array().unwrap() {
        let index = record["index"].as_u64().unwrap();
        let file = site.path(&format!("one-{index}.tlog-proof"));
        let check =
            |key: &str| cloister(&["audit", "check-proof", &file, "--public-key", key, "--json"]);
        let checked: Value = serde_json::from_slice(&check(&key).stdout).unwrap();
        assert_eq!(checked["verdict"], "INCLUDED");
        assert_eq!(checked["record"]["event"], record["event"]);
        assert!(independent_inclusion(&fs::read_to_string(&file).unwrap(), &site.verifier()));
        let other = Site::new("proof-other");
        assert_eq!(check(&other.path("audit.vkey")).status.code(), Some(1));
        let good = fs::read(&file).unwrap();
        for at in (0..good.len()).step_by(13) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&file, &bad).unwrap();
            assert_ne!(check(&key).status.code(), Some(0), "byte {at}");
        }
    }
    assert_eq!(
        site.cloister(&["audit", "show", "feedfeedfeed", &site.path("log")]).status.code(),
        Some(1)
    );
    for id in ["xyz", "#", "#99999999999999999999", "ab"] {
        assert_eq!(
            site.cloister(&["audit", "show", id, &site.path("log")]).status.code(),
            Some(2),
            "{id}"
        );
    }
    assert_eq!(
        site.cloister(&["audit", "show", "#999999", &site.path("log")]).status.code(),
        Some(1)
    );
}

/// Checks a proof by RFC 6962's recursive definition, with code of the test's own.
fn independent_inclusion(text: &str, verifier: &Verifier) -> bool {
    use base64::Engine as _;
    use ring::digest::{SHA256, digest};
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let (head, note) = text.split_once("\n\n").unwrap();
    let lines: Vec<&str> = head.lines().collect();
    let record = decode(lines[1].strip_prefix("extra ").unwrap());
    let index: u64 = lines[2].strip_prefix("index ").unwrap().parse().unwrap();
    let mut path: Vec<Vec<u8>> = lines[3..].iter().map(|line| decode(line)).collect();
    let signed: Vec<&str> = verifier.open(note.as_bytes()).unwrap().lines().collect();
    fn root(leaf: &[u8], index: u64, size: u64, path: &mut Vec<Vec<u8>>) -> Vec<u8> {
        if size == 1 {
            return digest(&SHA256, &[&[0], leaf].concat()).as_ref().to_vec();
        }
        let split = (size - 1).ilog2();
        let split = 1 << split;
        let sibling = path.pop().unwrap();
        let pair = if index < split {
            [root(leaf, index, split, path), sibling]
        } else {
            [sibling, root(leaf, index - split, size - split, path)]
        };
        digest(&SHA256, &[&[1], pair[0].as_slice(), &pair[1]].concat()).as_ref().to_vec()
    }
    let found = root(&record, index, signed[1].parse().unwrap(), &mut path);
    path.is_empty() && found == decode(signed[2])
}

#[test]
fn records_whose_files_are_gone_are_said_and_the_rest_is_shown() {
    let site = Site::of_story("pruned");
    for bundle in [0, 1] {
        fs::remove_file(tile_path(Path::new(&site.path("log")), Kind::Entries, bundle, 256))
            .unwrap();
    }
    let done = site.audit("list", &["--json"]);
    assert!(done.status.success(), "{done:?}");
    assert!(text(&done.stderr).contains("records 0-511 are not here"), "{}", text(&done.stderr));
    assert_eq!(text(&done.stdout).lines().count(), all().len() - 512);
    let newest = site.lines("list", &["--json", "--newest", "--limit", "1"]);
    assert_eq!(newest[0]["index"], all().len() - 1);
}

#[test]
fn where_there_is_no_log_or_no_key_it_is_said_with_what_to_do() {
    let site = Site::of_story("nothing");
    let (empty, key) = (site.path("empty"), site.path("audit.vkey"));
    fs::create_dir(&empty).unwrap();
    for command in ["list", "verify", "stats"] {
        let done = site.cloister(&["audit", command, &empty]);
        assert_eq!(done.status.code(), Some(2), "{done:?}");
        assert!(text(&done.stderr).contains("empty: there is no audit log here"), "{done:?}");
        let done = cloister(&["audit", command, &site.path("log"), "--public-key", "/nonexistent"]);
        assert_eq!(done.status.code(), Some(2), "{done:?}");
        assert!(text(&done.stderr).contains("name it with --public-key"), "{done:?}");
        let config = site.path("none.toml");
        let words =
            ["audit", command, &site.path("log"), "--public-key", &key, "--config", &config];
        let done = cloister(&words);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        assert!(text(&done.stderr).contains("there is no appliance here"), "{done:?}");
    }
    // The one place where the key is looked for unasked is where `systemd/README.md` has it made.
    let help = text(&cloister(&["audit", "verify", "--help"]).stdout);
    assert!(help.contains("[default: /etc/cloister/audit.vkey]"), "{help}");
}
