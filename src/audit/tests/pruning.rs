//! Old records go whole bundles at a time, on the record; everything else is still proven.

use std::cell::Cell;

use super::super::log::Options;
use super::*;
use crate::audit::retention::parse_time_s;

const DAY_S: u64 = 86_400;

/// A log of 20 days, 100 records each, settled but for the last.
fn log_of_20_days(folder: &Folder, key: &Key) -> Log {
    // Each test has a thread of its own.
    thread_local!(static NOW_S: Cell<u64> = const { Cell::new(0) });
    let open = || {
        let options = Options { settle_count: 256, now_s: || NOW_S.get(), ..Options::default() };
        Log::open_with(&[&folder.0], key.signer(), options).unwrap().0
    };
    let mut log = open();
    for day in 0..20 {
        NOW_S.set(1_000_000_000 + day * DAY_S);
        fill(&mut log, 100);
    }
    log.wait_until_settled().unwrap();
    drop(log);
    let mut log = open();
    log.wait_until_settled().unwrap();
    log
}

#[test]
fn old_bundles_go_and_the_rest_is_proven() {
    let (folder, key) = (Folder::new("prune"), Key::new());
    let mut log = log_of_20_days(&folder, &key);
    let anchor = power::checkpoint_of(&folder.0, &key);
    // Days 0 to 9 are older than ten days: 1,000 records, three whole bundles.
    assert_eq!(log.prune(10 * DAY_S - 1, true).unwrap(), (768, false));
    assert_eq!(log.prune(10 * DAY_S - 1, true).unwrap(), (0, false));
    let report = key.check(&folder.0).unwrap();
    assert_eq!((report.pruned, report.size, report.events["retention_run"]), (768, 2001, 1));
    assert!(!tile_path(&folder.0, Kind::Entries, 2, 256).exists());
    assert!(tile_path(&folder.0, Kind::Entries, 3, 256).exists());
    assert!(tile_path(&folder.0, Kind::Hashes(0), 0, 256).exists());
    fill(&mut log, 300);
    drop(log);
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    fill(&mut log, 1);
    let report = verify(&folder.0, &key.signer().verifier(), Some(&anchor), &mut |index, _| {
        assert!(index >= 768);
    });
    assert_eq!(report.unwrap().anchored_at, Some(2000));
    let mut reader = Snapshot::open(&folder.0, &key.signer().verifier()).unwrap();
    assert!(matches!(reader.entries(0), Err(Error::TileMissing { .. })));
    assert_eq!(reader.entries(3).unwrap().len(), 256);
    assert_eq!(reader.root_at(2000).unwrap(), anchor.root);
}

#[test]
fn records_that_are_gone_without_a_record_of_it_are_named() {
    let (folder, key) = (Folder::new("prune-less"), Key::new());
    let mut log = log_of_20_days(&folder, &key);
    log.prune(10 * DAY_S, true).unwrap();
    drop(log);
    fs::remove_file(tile_path(&folder.0, Kind::Entries, 3, 256)).unwrap();
    let error = key.check(&folder.0).unwrap_err();
    assert!(matches!(error, Error::RecordsGone { gone: 1024, recorded: 768 }), "{error}");
    fs::remove_file(tile_path(&folder.0, Kind::Entries, 5, 256)).unwrap();
    let error = key.check(&folder.0).unwrap_err();
    assert!(matches!(&error, Error::TileMissing { path } if path.ends_with("005")), "{error}");
}

#[test]
fn a_clock_that_was_set_ahead_removes_nothing() {
    let (folder, key) = (Folder::new("prune-clock"), Key::new());
    drop(log_of_20_days(&folder, &key));
    let options = Options { now_s: || 5_000_000_000, ..Options::default() };
    let (mut log, _) = Log::open_with(&[&folder.0], key.signer(), options).unwrap();
    assert_eq!(log.prune(parse_time_s("1y").unwrap(), false).unwrap(), (0, false));
    assert_eq!(key.check(&folder.0).unwrap().pruned, 0);
}
