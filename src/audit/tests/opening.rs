//! What a start takes from the journal's head is a shortcut: where it is absent or wrong, the tiles tell,
//! and where those do not lead to the signed root either, nothing is written.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};

use super::super::log::Options;
use super::super::record::samples;
use super::faulty_disk::{Fault, FaultyDisk};
use super::*;

/// Nothing is written by a start that finds all as the last run left it, wherever that ended between two
/// commits.
#[test]
fn a_start_behind_a_whole_commit_writes_nothing() {
    for count in [0, 1, 300, 512, 5000, 9000] {
        let (folder, key) = (Folder::new("no-write"), Key::new());
        let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
        fill(&mut log, count);
        drop(log);
        let files = || {
            let mut found = Vec::new();
            let mut folders = vec![folder.0.clone()];
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(folder).unwrap() {
                    let path = entry.unwrap().path();
                    match path.is_dir() {
                        true => folders.push(path),
                        false => found.push((path.clone(), fs::read(path).unwrap())),
                    }
                }
            }
            found.sort();
            found
        };
        let before = files();
        let disk = Arc::new(FaultyDisk::default());
        let options = Options { disk: Arc::clone(&disk) as _, ..Options::default() };
        let (mut log, _) = Log::open_with(&[&folder.0], key.signer(), options).unwrap();
        log.wait_until_settled().unwrap();
        // Enough records are settled beside, and then the journal is another.
        if count < 8192 {
            assert_eq!(disk.operations(), [], "{count} records");
            assert!(before == files(), "{count} records");
        }
        fill(&mut log, 300);
        drop(log);
        assert_eq!(key.check(&folder.0).unwrap().size, count + 300);
        let (log, found) = Log::open(&folder.0, key.signer()).unwrap();
        assert_eq!((log.size(), found.dropped_bytes), (count + 300, 0));
    }
}

/// Index of the first record of a journal.
fn base_of(folder: &Path) -> u64 {
    let journal = fs::read(folder.join("journal")).unwrap();
    u64::from_le_bytes(journal[8..16].try_into().unwrap())
}

#[test]
fn a_log_that_was_ended_in_order_leaves_less_than_a_bundle_to_replay() {
    for count in [0, 1, 255, 256, 300, 5000, 9000] {
        let (folder, key) = (Folder::new("closed"), Key::new());
        let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
        fill(&mut log, count);
        let checkpoint = fs::read(folder.0.join("checkpoint")).unwrap();
        log.close().unwrap();
        assert_eq!(base_of(&folder.0), count / 256 * 256);
        assert_eq!(fs::read(folder.0.join("checkpoint")).unwrap(), checkpoint);
        assert_eq!(key.check(&folder.0).unwrap().size, count);
        let disk = Arc::new(FaultyDisk::default());
        let options = Options { disk: Arc::clone(&disk) as _, ..Options::default() };
        let (mut log, found) = Log::open_with(&[&folder.0], key.signer(), options).unwrap();
        assert_eq!((log.size(), found.dropped_bytes), (count, 0));
        assert_eq!(disk.operations(), [], "the next start writes nothing");
        fill(&mut log, 300);
        log.close().unwrap();
        assert_eq!(key.check(&folder.0).unwrap().size, count + 300);
    }
}

#[test]
fn an_end_whose_disk_fails_takes_nothing() {
    for operation in ["create", "write", "sync", "rename", "sync folder"] {
        let (folder, key) = (Folder::new("closed-badly"), Key::new());
        let disk = Arc::new(FaultyDisk::default());
        let options = Options { disk: Arc::clone(&disk) as _, ..Options::default() };
        let (mut log, _) = Log::open_with(&[&folder.0], key.signer(), options).unwrap();
        fill(&mut log, 700);
        disk.set(Some(Fault { operation, after: 1, errno: Errno::EIO, path: "" }));
        assert!(log.close().is_err(), "{operation}");
        assert_eq!(key.check(&folder.0).unwrap().size, 700, "{operation}");
        let (log, found) = Log::open(&folder.0, key.signer()).unwrap();
        assert_eq!((log.size(), found.dropped_bytes), (700, 0), "{operation}");
    }
}

#[test]
fn a_journal_stays_short_however_slowly_whole_tiles_become_durable() {
    const BATCH_COUNT: u64 = 64;
    let (folder, key) = (Folder::new("slow"), Key::new());
    let disk = FaultyDisk::slow_tiles(Duration::from_millis(40));
    let options = Options { disk: Arc::new(disk), settle_count: 256, ..Options::default() };
    let (mut log, _) = Log::open_with(&[&folder.0], key.signer(), options).unwrap();
    let mut longest = 0;
    for commit in 0..50 {
        for count in 0..BATCH_COUNT {
            log.append(refused(commit * BATCH_COUNT + count)).unwrap();
        }
        log.commit().unwrap();
        longest = longest.max(log.size() - base_of(&folder.0));
    }
    assert!(longest > 256, "the control: the tiles are slower than the commits");
    assert!(longest <= 2 * 256 + BATCH_COUNT, "{longest}");
}

/// A journal that a copy made of holes gives no room, and is written anew.
#[test]
fn a_journal_that_the_disk_has_not_given_is_written_anew() {
    let (folder, key) = (Folder::new("holes"), Key::new());
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    fill(&mut log, 20);
    drop(log);
    let path = folder.0.join("journal");
    let bytes = fs::read(&path).unwrap();
    let mut holes = fs::File::create(&path).unwrap();
    io::Write::write_all(&mut holes, &bytes[..used(&bytes)]).unwrap();
    holes.set_len(bytes.len() as u64).unwrap();
    let given = || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&path).unwrap()) * 512;
    assert!(given() < bytes.len() as u64, "the control");
    drop(Log::open(&folder.0, key.signer()).unwrap());
    assert!(given() >= bytes.len() as u64);
    assert_eq!(key.check(&folder.0).unwrap().size, 20);
}

/// A log whose tree has three levels of tiles, all its whole bundles settled.
fn deep_log(name: &str, key: &Key) -> Folder {
    let folder = Folder::new(name);
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    for count in 0..66_000 {
        log.append(refused(count)).unwrap();
    }
    log.commit().unwrap();
    log.wait_until_settled().unwrap();
    folder
}

/// Changes the state in the journal's head, as somebody who knows the format.
fn edit_head(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("journal");
    let bytes = fs::read(&path).unwrap();
    let len = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    let mut state: Value = serde_json::from_slice(&bytes[28..28 + len]).unwrap();
    edit(&mut state);
    let state = serde_json::to_vec(&state).unwrap();
    let mut context = Context::new(&SHA256);
    context.update(&bytes[8..16]);
    context.update(&state);
    let check = context.finish();
    let len_now = u32::try_from(state.len()).unwrap().to_le_bytes();
    let head = [&bytes[..16], &len_now, &check.as_ref()[..8], &state].concat();
    fs::write(&path, [&head, &bytes[28 + len..]].concat()).unwrap();
}

fn edge_of(folder: &Path) -> Value {
    let mut edge = Value::Null;
    edit_head(folder, |state| edge = state["edge"].clone());
    edge
}

#[test]
fn a_start_needs_no_tile_below_the_journal() {
    let key = Key::new();
    let folder = deep_log("shortcut", &key);
    assert_eq!(edge_of(&folder.0)[0], 65_792);
    let tile = tile_path(&folder.0, Kind::Hashes(0), 256, 256);
    let good = fs::read(&tile).unwrap();
    fs::remove_file(&tile).unwrap();
    assert_eq!(Log::open(&folder.0, key.signer()).unwrap().0.size(), 66_000);
    assert!(matches!(key.check(&folder.0), Err(Error::TileMissing { .. })));
    fs::write(&tile, good).unwrap();
    assert_eq!(key.check(&folder.0).unwrap().size, 66_000);
}

#[test]
fn an_edge_that_is_absent_or_wrong_is_read_from_the_tiles() {
    let key = Key::new();
    let folder = deep_log("edge", &key);
    let good = edge_of(&folder.0);
    let other = "A".repeat(43) + "=";
    let wrong = [
        Value::Null,
        json!([65_792, ["", other, good[1][2]]]),
        json!([65_792, ["", good[1][1], other]]),
        json!([65_792, []]),
        json!([65_792, ["?"]]),
        json!([0, []]),
        json!([65_536, ["", "", good[1][2]]]),
    ];
    for edge in wrong {
        edit_head(&folder.0, |state| match edge {
            Value::Null => drop(state.as_object_mut().unwrap().remove("edge")),
            ref edge => state["edge"] = edge.clone(),
        });
        let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
        assert_eq!(edge_of(&folder.0), good, "{edge}");
        log.append(refused(1)).unwrap();
        log.commit().unwrap();
        drop(log);
        key.check(&folder.0).unwrap();
    }
}

#[test]
fn an_edge_and_a_tile_that_are_wrong_are_refused() {
    let key = Key::new();
    let folder = deep_log("edge-and-tile", &key);
    let journal = fs::read(folder.0.join("journal")).unwrap();
    edit_head(&folder.0, |state| drop(state.as_object_mut().unwrap().remove("edge")));
    let tile = tile_path(&folder.0, Kind::Hashes(0), 256, 256);
    flip(&tile, 40);
    let error = Log::open(&folder.0, key.signer()).unwrap_err();
    assert!(matches!(error, Error::RootMismatch { size: 66_000 }), "{error}");
    flip(&tile, 40);
    fs::write(folder.0.join("journal"), journal).unwrap();
    assert!(Log::open(&folder.0, key.signer()).is_ok(), "the control");
}

/// The head says of the records before it what no start looks up in them; nobody signs it, but who verifies
/// the log sees that it was changed.
#[test]
fn a_journal_whose_head_lies_about_the_records_before_it_is_named() {
    let (folder, key) = (Folder::new("head"), Key::new());
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    log.append(samples::all().into_iter().find(|event| event.name() == "start").unwrap()).unwrap();
    log.append(begin("01")).unwrap();
    log.append(Event::Erased {
        observed: record::ErasedFacts { principal: "ab".into(), by: vec![0] },
    })
    .unwrap();
    fill(&mut log, 253);
    log.close().unwrap();
    assert_eq!(base_of(&folder.0), 256);
    let journal = fs::read(folder.0.join("journal")).unwrap();
    let edits: [(&str, Value); 9] = [
        ("tpm_counter", json!(u64::MAX)),
        ("tombstones", json!([])),
        ("tombstones", json!(["ab", "cd"])),
        ("open", json!([])),
        ("open", json!(["02"])),
        ("is_stopped", json!(true)),
        ("last_start", Value::Null),
        ("last_moment", Value::Null),
        ("last_moment", json!(["00", 1, 1])),
    ];
    for (member, value) in edits {
        edit_head(&folder.0, |state| state[member] = value.clone());
        let error = key.check(&folder.0).unwrap_err();
        assert!(matches!(error, Error::JournalHead { base: 256 }), "{member} {value}: {error}");
        fs::write(folder.0.join("journal"), &journal).unwrap();
        assert_eq!(key.check(&folder.0).unwrap().size, 256, "the control");
    }
}

/// Before the first record of all there is nothing that a head could say, to a start or to who verifies.
#[test]
fn a_head_that_tells_of_records_before_the_first_is_refused() {
    let (folder, key) = (Folder::new("first-head"), Key::new());
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    fill(&mut log, 20);
    drop(log);
    assert_eq!(base_of(&folder.0), 0);
    let journal = fs::read(folder.0.join("journal")).unwrap();
    let edits: [(&str, Value); 5] = [
        ("tombstones", json!(["ab"])),
        ("open", json!(["02"])),
        ("is_stopped", json!(false)),
        ("last_moment", json!(["00", 1, 1])),
        ("edge", json!([256, ["", "A".repeat(43) + "="]])),
    ];
    for (member, value) in edits {
        edit_head(&folder.0, |state| state[member] = value.clone());
        let error = key.check(&folder.0).unwrap_err();
        assert!(matches!(error, Error::JournalMalformed), "{member}: {error}");
        let error = Log::open(&folder.0, key.signer()).unwrap_err();
        assert!(matches!(error, Error::JournalMalformed), "{member}: {error}");
        fs::write(folder.0.join("journal"), &journal).unwrap();
    }
    assert_eq!(key.check(&folder.0).unwrap().size, 20, "the control");
    assert!(Log::open(&folder.0, key.signer()).is_ok(), "the control");
}

/// A head beyond the signed records could say what it likes: nothing is there to hold it against.
#[test]
fn a_journal_that_begins_behind_the_signed_records_is_named() {
    let (folder, key) = (Folder::new("ahead"), Key::new());
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    fill(&mut log, 100);
    let old = Folder::new("ahead-old");
    let copied = std::process::Command::new("cp")
        .args(["-a", "-T", folder.0.to_str().unwrap(), old.0.to_str().unwrap()])
        .status();
    assert!(copied.unwrap().success());
    assert_eq!(key.check(&old.0).unwrap().size, 100, "the control");
    fill(&mut log, 200);
    log.close().unwrap();
    fs::copy(folder.0.join("journal"), old.0.join("journal")).unwrap();
    let error = key.check(&old.0).unwrap_err();
    assert!(matches!(error, Error::CheckpointOlder { signed: 100, settled: 256 }), "{error}");
}
