//! A disk that fails: nothing is acknowledged, the ends of what runs are still written where there is
//! room, and all goes on without a restart once the disk works.

use std::sync::Arc;

use nix::errno::Errno;

use super::super::log::Options;
use super::faulty_disk::{Fault, FaultyDisk};
use super::*;

fn open(folder: &Path, key: &Key, disk: &Arc<FaultyDisk>) -> Log {
    let options = Options { disk: Arc::clone(disk) as _, settle_count: 256, ..Options::default() };
    Log::open_with(&[folder], key.signer(), options).unwrap().0
}

fn end(request: &str) -> Event {
    Event::end_missing(request.into(), MissingCause::WorkerGone)
}

/// Errors that a disk gives, on each operation that a commit makes.
const FAULTS: [(&str, Errno); 7] = [
    ("write", Errno::ENOSPC),
    ("write", Errno::EIO),
    ("create", Errno::ENOSPC),
    ("create", Errno::EROFS),
    ("sync", Errno::EIO),
    ("sync", Errno::ENOSPC),
    ("rename", Errno::EROFS),
];

#[test]
fn a_commit_that_fails_acknowledges_nothing_and_the_next_recovers() {
    for (operation, errno) in FAULTS {
        for after in 0..4 {
            let (folder, key) = (Folder::new("faults"), Key::new());
            let disk = Arc::new(FaultyDisk::default());
            let mut log = open(&folder.0, &key, &disk);
            fill(&mut log, 250);
            disk.set(Some(Fault { operation, after, errno, path: "" }));
            for i in 0..12 {
                log.append(refused(i)).unwrap();
            }
            let failed = log.commit();
            // With enough successes before, the whole commit passes.
            if let Err(error) = failed {
                let is_it = matches!(&error, Error::Io { source, .. }
                    if source.raw_os_error() == Some(errno as i32));
                assert!(is_it, "{operation} {errno} after {after}: {error}");
                log.append(begin("aa")).unwrap();
                assert!(log.commit().is_err(), "it fails for as long as the disk does");
            }
            let durable = log.size();
            disk.set(None);
            log.append(refused(99)).unwrap();
            log.commit().unwrap_or_else(|error| panic!("{operation} {errno} {after}: {error}"));
            assert_eq!(log.size(), durable + 1, "{operation} {errno} after {after}");
            drop(log);
            assert_eq!(key.check(&folder.0).unwrap().size, durable + 1);
            assert_eq!(open(&folder.0, &key, &disk).size(), durable + 1);
        }
    }
}

/// The pages of a failed sync are gone, and another sync would not tell: the test's disk does as the
/// kernel does. Only who writes anew has a log that opens.
#[test]
fn a_failed_sync_is_followed_by_writing_anew() {
    let (folder, key) = (Folder::new("sync"), Key::new());
    let disk = Arc::new(FaultyDisk::default());
    let mut log = open(&folder.0, &key, &disk);
    fill(&mut log, 20);
    disk.set(Some(Fault { operation: "sync", after: 0, errno: Errno::EIO, path: "" }));
    log.append(refused(1)).unwrap();
    assert!(log.commit().is_err());
    assert_eq!(log.size(), 20);
    let is_lost = || {
        let journal = fs::read(folder.0.join("journal")).unwrap();
        journal.windows(32).any(|bytes| bytes == [0xee; 32])
    };
    assert!(is_lost(), "a control: the pages are lost");
    disk.set(None);
    log.append(refused(2)).unwrap();
    log.commit().unwrap();
    assert!(!is_lost(), "the journal was written anew");
    drop(log);
    assert_eq!(open(&folder.0, &key, &disk).size(), 21);
    assert_eq!(key.check(&folder.0).unwrap().size, 21);
}

#[test]
fn a_full_disk_takes_the_ends_of_all_that_began_and_nothing_else() {
    const OPEN_COUNT: usize = 40;
    let (folder, key) = (Folder::new("full"), Key::new());
    let disk = Arc::new(FaultyDisk::default());
    let mut log = open(&folder.0, &key, &disk);
    fill(&mut log, 245);
    for request in 0..OPEN_COUNT {
        log.append(begin(&format!("{request:02}"))).unwrap();
    }
    log.commit().unwrap();
    let before = log.size();
    let written = fs::metadata(folder.0.join("journal")).unwrap().len();
    // No new block: no file, and no byte behind the journal's end.
    disk.set(Some(Fault { operation: "create", after: 0, errno: Errno::ENOSPC, path: "" }));
    for request in 0..OPEN_COUNT {
        log.append(end(&format!("{request:02}"))).unwrap();
        assert!(log.commit().is_err(), "no checkpoint can be written");
        assert_eq!(log.size(), before + request as u64 + 1, "but the end is durable");
    }
    log.append(begin("zz")).unwrap();
    assert!(log.commit().is_err());
    assert_eq!(log.size(), before + OPEN_COUNT as u64, "a begin is not");
    assert_eq!(fs::metadata(folder.0.join("journal")).unwrap().len(), written);
    drop(log);
    disk.set(None);
    let options = Options { disk: Arc::clone(&disk) as _, settle_count: 256, ..Options::default() };
    let (log, found) = Log::open_with(&[&folder.0], key.signer(), options).unwrap();
    assert_eq!(found.open_requests, [""; 0]);
    assert_eq!(log.size(), before + OPEN_COUNT as u64);
    assert_eq!(key.check(&folder.0).unwrap().open_requests, 0);
}

#[test]
fn the_reserve_is_for_as_many_ends_as_are_open_however_long_they_are() {
    let (folder, key) = (Folder::new("reserve"), Key::new());
    let mut log = open(&folder.0, &key, &Arc::new(FaultyDisk::default()));
    for request in 0..100 {
        log.append(begin(&format!("{request:02}"))).unwrap();
        log.commit().unwrap();
    }
    let journal = fs::read(folder.0.join("journal")).unwrap();
    let room = journal.len() - used(&journal);
    assert!(room >= 100 * tiles::RECORD_LEN_MAX_BYTES, "{room} bytes");
}

#[test]
fn tiles_that_cannot_be_settled_stop_the_log_and_are_settled_later() {
    let (folder, key) = (Folder::new("settle"), Key::new());
    let disk = Arc::new(FaultyDisk::default());
    let mut log = open(&folder.0, &key, &disk);
    fill(&mut log, 250);
    for i in 0..10 {
        log.append(refused(i)).unwrap();
    }
    // The journal's own sync succeeds, that of the first settled tile does not.
    disk.set(Some(Fault { operation: "sync", after: 1, errno: Errno::EIO, path: "" }));
    log.commit().unwrap();
    assert!(log.wait_until_settled().is_err());
    log.append(refused(1)).unwrap();
    assert!(log.commit().is_err());
    assert_eq!(log.size(), 260);
    disk.set(None);
    log.append(refused(2)).unwrap();
    log.commit().unwrap();
    drop(log);
    assert_eq!(key.check(&folder.0).unwrap().size, 261);
    assert_eq!(open(&folder.0, &key, &disk).size(), 261);
}
