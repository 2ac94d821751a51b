//! The log keeps what it acknowledged, refuses what was changed, and names the place.

use std::fs;
use std::path::{Path, PathBuf};

use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;

use super::record::{MissingCause, RefusalReason, RefusedFacts};
use super::tiles::{Kind, tile_path};
use super::verify::{Report, verify};
use super::*;

mod attacks;
mod counter;
mod faults;
mod faulty_disk;
mod opening;
mod power;
mod pruning;
mod replica;
mod rotation;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("cloister-audit-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Key(Vec<u8>);

impl Key {
    fn new() -> Self {
        use base64::Engine as _;
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let text = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
        Self(format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n").into())
    }

    fn signer(&self) -> Signer {
        Signer::from_pem("test.example/log", &self.0).unwrap()
    }

    fn check(&self, folder: &Path) -> Result<Report, Error> {
        verify(folder, &self.signer().verifier(), None, &mut |_, _| {})
    }
}

fn refused(count: u64) -> Event {
    let reason = RefusalReason::TooManyRequests;
    Event::Refused { observed: RefusedFacts { reason, count, principal: None } }
}

fn fill(log: &mut Log, count: u64) {
    for i in 0..count {
        log.append(refused(i)).unwrap();
        if i % 7 == 0 {
            log.commit().unwrap();
        }
    }
    log.commit().unwrap();
}

#[test]
fn narrower_tiles_go_with_the_checkpoint_that_needs_them() {
    let (folder, key) = (Folder::new("narrower"), Key::new());
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    for size in 1..=600 {
        log.append(refused(size)).unwrap();
        log.commit().unwrap();
        let partial =
            |kind, index| tile_path(&folder.0, kind, index, 1).parent().unwrap().to_owned();
        for kind in [Kind::Entries, Kind::Hashes(0)] {
            for index in 0..=size / 256 {
                let left = fs::read_dir(partial(kind, index)).map_or(0, Iterator::count);
                let wanted = usize::from(index == size / 256 && !size.is_multiple_of(256));
                assert_eq!(left, wanted, "{kind:?} {index} of {size}");
            }
        }
    }
    assert_eq!(key.check(&folder.0).unwrap().size, 600);
}

#[test]
fn a_log_survives_reopening_at_every_kind_of_size() {
    for size in [0, 1, 255, 256, 257, 1000] {
        let (folder, key) = (Folder::new(&format!("reopen{size}")), Key::new());
        let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
        fill(&mut log, size);
        drop(log);
        assert_eq!(key.check(&folder.0).unwrap().size, size);
        let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
        assert_eq!(log.size(), size);
        fill(&mut log, 300);
        assert_eq!(key.check(&folder.0).unwrap().size, size + 300);
    }
}

#[test]
fn tiles_above_the_first_level_are_checked() {
    let (folder, key) = (Folder::new("levels"), Key::new());
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    for i in 0..66_000 {
        log.append(refused(i)).unwrap();
    }
    log.commit().unwrap();
    drop(log);
    assert_eq!(key.check(&folder.0).unwrap().size, 66_000);
    assert_eq!(Log::open(&folder.0, key.signer()).unwrap().0.size(), 66_000);
    flip(&tile_path(&folder.0, Kind::Hashes(1), 0, 256), 40);
    assert!(matches!(key.check(&folder.0), Err(Error::TileMismatch { level: 1, index: 1 })));
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_change_of_any_file_is_caught() {
    let (folder, key) = (Folder::new("change"), Key::new());
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    fill(&mut log, 300);
    drop(log);
    let files = [
        tile_path(&folder.0, Kind::Entries, 0, 256),
        tile_path(&folder.0, Kind::Entries, 1, 44),
        tile_path(&folder.0, Kind::Hashes(0), 0, 256),
        tile_path(&folder.0, Kind::Hashes(0), 1, 44),
        tile_path(&folder.0, Kind::Hashes(1), 0, 1),
        folder.0.join("checkpoint"),
    ];
    for path in files {
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(97) {
            flip(&path, at);
            assert!(key.check(&folder.0).is_err(), "{}: byte {at}", path.display());
            fs::write(&path, &good).unwrap();
        }
    }
    assert_eq!(key.check(&folder.0).unwrap().size, 300);
    assert!(matches!(Key::new().check(&folder.0), Err(Error::NoteUnsigned)));
}

/// Bytes of a journal before its zeros.
fn used(journal: &[u8]) -> usize {
    journal.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1)
}

#[test]
fn a_dropped_tail_of_the_journal_is_caught() {
    let (folder, key) = (Folder::new("tail"), Key::new());
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    fill(&mut log, 10);
    drop(log);
    let path = folder.0.join("journal");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..used(&bytes) - 1]).unwrap();
    let truncated = |error| matches!(error, Error::Truncated { signed: 10, found: 9 });
    assert!(truncated(key.check(&folder.0).unwrap_err()));
    assert!(truncated(Log::open(&folder.0, key.signer()).unwrap_err()));
}

#[test]
fn an_unfinished_write_is_dropped_and_told() {
    let (folder, key) = (Folder::new("torn"), Key::new());
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    fill(&mut log, 10);
    drop(log);
    let path = folder.0.join("journal");
    let mut bytes = fs::read(&path).unwrap();
    let end = used(&bytes);
    bytes[end..end + 5].copy_from_slice(&[1, 2, 3, 4, 5]);
    fs::write(&path, bytes).unwrap();
    let (log, found) = Log::open(&folder.0, key.signer()).unwrap();
    assert_eq!((log.size(), found.dropped_bytes), (10, 5));
}

#[test]
fn durable_records_without_a_checkpoint_are_kept_and_signed() {
    let (folder, key) = (Folder::new("unsigned"), Key::new());
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    fill(&mut log, 10);
    let old = fs::read(folder.0.join("checkpoint")).unwrap();
    fill(&mut log, 5);
    drop(log);
    // A power cut may keep the journal and lose the newer checkpoint.
    fs::write(folder.0.join("checkpoint"), old).unwrap();
    let (log, _) = Log::open(&folder.0, key.signer()).unwrap();
    assert_eq!(log.size(), 15);
    assert_eq!(key.check(&folder.0).unwrap().size, 15);
}

#[test]
fn a_rolled_back_log_is_caught_by_an_anchor_and_only_so() {
    let (folder, key) = (Folder::new("rollback"), Key::new());
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    fill(&mut log, 10);
    let copy = Folder::new("rollback-copy");
    copy_tree(&folder.0, &copy.0);
    fill(&mut log, 10);
    drop(log);
    let verifier = key.signer().verifier();
    let note = fs::read(folder.0.join("checkpoint")).unwrap();
    let anchor = Checkpoint::parse(verifier.open(&note).unwrap()).unwrap();
    assert!(key.check(&copy.0).is_ok());
    let held = verify(&copy.0, &verifier, Some(&anchor), &mut |_, _| {});
    assert!(matches!(held, Err(Error::Truncated { signed: 20, found: 10 })));
    let report = verify(&folder.0, &verifier, Some(&anchor), &mut |_, _| {}).unwrap();
    assert_eq!(report.anchored_at, Some(20));
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_log_that_is_being_written_verifies() {
    let (folder, key) = (Folder::new("live"), Key::new());
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    fill(&mut log, 1);
    let (path, verifier) = (folder.0.clone(), key.signer().verifier());
    let reader = std::thread::spawn(move || {
        for _ in 0..20 {
            verify(&path, &verifier, None, &mut |_, _| {}).unwrap();
        }
    });
    for i in 0..400 {
        log.append(refused(i)).unwrap();
        log.commit().unwrap();
    }
    reader.join().unwrap();
}

#[test]
fn a_second_writer_is_refused() {
    let (folder, key) = (Folder::new("lock"), Key::new());
    let _first = Log::open(&folder.0, key.signer()).unwrap();
    assert!(matches!(Log::open(&folder.0, key.signer()), Err(Error::Locked)));
}

#[test]
fn requests_without_an_end_are_found_at_the_next_start() {
    let (folder, key) = (Folder::new("open"), Key::new());
    let (mut log, found) = Log::open(&folder.0, key.signer()).unwrap();
    assert!(found.stopped_in_order);
    for request in ["01", "02"] {
        log.append(begin(request)).unwrap();
    }
    log.append(Event::end_missing("01".into(), MissingCause::Deadline)).unwrap();
    log.commit().unwrap();
    drop(log);
    let (mut log, found) = Log::open(&folder.0, key.signer()).unwrap();
    assert!(!found.stopped_in_order);
    assert_eq!(found.open_requests, ["02"]);
    log.append(Event::Stop {}).unwrap();
    log.commit().unwrap();
    drop(log);
    assert!(Log::open(&folder.0, key.signer()).unwrap().1.stopped_in_order);
}

fn begin(request: &str) -> Event {
    Event::Begin {
        request: request.into(),
        observed: record::BeginFacts {
            principal: "p".into(),
            role: "user".into(),
            model: "m".into(),
            model_digest: "00".into(),
            policy_digest: "00".into(),
            build_digest: "00".into(),
        },
        declared: record::AskedFacts { endpoint: "chat".into(), max_tokens: 16, stream: true },
    }
}
