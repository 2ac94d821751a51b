//! What shows a rollback: a checkpoint on paper, and a witness, which is Go's own implementation here.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Output, Stdio};

use super::*;

/// The witness of the tests.
struct Witness {
    program: Child,
    url: String,
}

impl Witness {
    fn start(folder: &Folder) -> Option<Self> {
        let program = go::build(&folder.0, "witness")?;
        let vkey = folder.path("audit.vkey");
        let mut program = Command::new(program).arg(vkey).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
        let mut next = || lines.next().unwrap().unwrap();
        let url = next();
        fs::write(folder.path("witness.vkey"), next()).unwrap();
        Some(Self { program, url })
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn cloister(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cloister")).args(words).output().unwrap()
}

fn told(done: &Output) -> String {
    String::from_utf8_lossy(&[done.stdout.as_slice(), &done.stderr].concat()).into_owned()
}

impl Folder {
    fn ask(&self, witness: &Witness, log: &str, out: &str) -> Output {
        cloister(&[
            "audit",
            "witness",
            &self.path(log),
            "--public-key",
            &self.path("audit.vkey"),
            "--witness",
            &witness.url,
            "--witness-key",
            &self.path("witness.vkey"),
            "--out",
            &self.path(out),
        ])
    }

    fn verify(&self, log: &str, witness_key: &str) -> Output {
        cloister(&[
            "audit",
            "verify",
            &self.path(log),
            "--public-key",
            &self.path("audit.vkey"),
            "--checkpoint",
            &self.path("witnessed.txt"),
            "--witness-key",
            &self.path(witness_key),
        ])
    }
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

#[test]
fn a_witness_sees_the_log_grow_and_names_a_rollback() {
    let folder = Folder::new("witness");
    let Some(witness) = Witness::start(&folder) else { return };
    let (mut log, _) = Log::open(&folder.log(), folder.signer()).unwrap();
    let kept = folder.0.join("kept.txt");
    for size in [1, 7, 256, 300, 3000] {
        grow(&mut log, &folder.log(), size, &kept);
        for _ in 0..2 {
            let done = folder.ask(&witness, "log", "witnessed.txt");
            assert!(done.status.success(), "{size}: {}", told(&done));
            assert!(
                told(&done).starts_with(&format!("{size} records seen by witness.example/tests"))
            );
        }
        if size == 300 {
            copy(&folder.log(), &folder.0.join("old"));
        }
    }
    let done = folder.verify("log", "witness.vkey");
    let text = told(&done);
    assert!(done.status.success(), "{text}");
    let first = text.lines().next().unwrap();
    let want = "INTACT: 3000 records of test.example/audit, ANCHORED by witness witness.example/tests (seen ";
    assert!(first.starts_with(want), "{first}");
    assert!(first.contains(") at 3000 records, "), "{first}");
    // A witness that did not sign, a log that went back, and one that went back and on.
    fs::copy(folder.path("audit.vkey"), folder.path("other.vkey")).unwrap();
    assert_eq!(folder.verify("log", "other.vkey").status.code(), Some(2));
    let done = folder.verify("old", "witness.vkey");
    assert_eq!(done.status.code(), Some(1), "{}", told(&done));
    assert!(told(&done).contains("3000 are signed, 300 are there"), "{}", told(&done));
    for out in ["witnessed.txt", "fresh.txt"] {
        let done = folder.ask(&witness, "old", out);
        assert_eq!(done.status.code(), Some(1), "{}", told(&done));
        assert!(told(&done).contains("an older state of it was put back"), "{}", told(&done));
    }
    let old = folder.0.join("old");
    let (mut log, _) = Log::open(&old, folder.signer()).unwrap();
    log.append(Event::Stop {}).unwrap();
    grow(&mut log, &old, 4000, &kept);
    let done = folder.ask(&witness, "old", "fresh.txt");
    assert_eq!(done.status.code(), Some(1), "{}", told(&done));
    assert!(told(&done).contains("records were changed"), "{}", told(&done));
    let done = folder.verify("old", "witness.vkey");
    assert_eq!(done.status.code(), Some(1), "{}", told(&done));
}

#[test]
fn a_checkpoint_is_printed_and_read_back_from_its_code() {
    let folder = Folder::new("checkpoint");
    let (mut log, _) = Log::open(&folder.log(), folder.signer()).unwrap();
    grow(&mut log, &folder.log(), 300, &folder.0.join("kept.txt"));
    let words =
        ["audit", "checkpoint", &folder.path("log"), "--public-key", &folder.path("audit.vkey")];
    let done = cloister(&words);
    assert!(done.status.success(), "{}", told(&done));
    let note = fs::read_to_string(folder.path("kept.txt")).unwrap();
    assert_eq!(String::from_utf8(done.stdout).unwrap(), note);
    let done = cloister(&[&words[..], &["--qr"]].concat());
    let text = String::from_utf8(done.stdout).unwrap();
    assert_eq!(read_code(text.strip_prefix(&note).unwrap()), note);
    // What the log's folder holds is not believed: the key is somebody else's.
    let other = Folder::new("checkpoint-other");
    let words =
        ["audit", "checkpoint", &folder.path("log"), "--public-key", &other.path("audit.vkey")];
    assert_eq!(cloister(&words).status.code(), Some(1));
}

/// Reads a QR code of half blocks as a camera would, off paper.
fn read_code(text: &str) -> String {
    const SCALE: usize = 4;
    let rows: Vec<Vec<bool>> = text
        .lines()
        .flat_map(|line| {
            let half = |upper: &'static str| line.chars().map(|c| upper.contains(c)).collect();
            [half("█▀"), half("█▄")]
        })
        .collect();
    let width = rows[0].len();
    let mut image =
        rqrr::PreparedImage::prepare_from_greyscale(width * SCALE, rows.len() * SCALE, |x, y| {
            if rows[y / SCALE].get(x / SCALE) == Some(&true) { 0 } else { 255 }
        });
    let grids = image.detect_grids();
    grids[0].decode().unwrap().1
}
