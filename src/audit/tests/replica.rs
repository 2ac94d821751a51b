//! Two copies of one tree: which must succeed, how one that failed is brought up to date, and that no
//! start takes the older for the newer.

use std::sync::Arc;

use nix::errno::Errno;

use super::super::log::Options;
use super::faulty_disk::{Fault, FaultyDisk};
use super::*;

struct Pair {
    one: Folder,
    other: Folder,
    key: Key,
}

impl Pair {
    fn new(name: &str) -> Self {
        let (one, other) = (Folder::new(name), Folder::new(&format!("{name}-other")));
        Self { one, other, key: Key::new() }
    }

    /// Opens both; operations on paths that hold `-other` fail as the disk says.
    fn open(&self, mode: Mode, disk: &Arc<FaultyDisk>) -> Result<Log, Error> {
        let options =
            Options { disk: Arc::clone(disk) as _, settle_count: 256, mode, ..Options::default() };
        let folders = [self.one.0.as_path(), self.other.0.as_path()];
        Ok(Log::open_with(&folders, self.key.signer(), options)?.0)
    }

    fn sizes(&self) -> (u64, u64) {
        let size = |folder: &Folder| self.key.check(&folder.0).unwrap().size;
        (size(&self.one), size(&self.other))
    }
}

fn disk_of_other(errno: Errno) -> Arc<FaultyDisk> {
    let disk = Arc::new(FaultyDisk::default());
    disk.set(Some(Fault { operation: "", after: 0, errno, path: "-other" }));
    disk
}

fn eventually(log: &mut Log, mut is_so: impl FnMut(&Log) -> bool) {
    for _ in 0..200 {
        log.append(refused(1)).unwrap();
        log.commit().unwrap();
        if is_so(log) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    panic!("never: {:?}", log.copies());
}

#[test]
fn both_copies_hold_the_same_tree() {
    for mode in [Mode::One, Mode::Both] {
        let pair = Pair::new("both");
        let disk = Arc::new(FaultyDisk::default());
        let mut log = pair.open(mode, &disk).unwrap();
        fill(&mut log, 700);
        eventually(&mut log, |log| log.copies().iter().all(|copy| copy.fault.is_none()));
        drop(log);
        let (one, other) = pair.sizes();
        assert_eq!(one, other);
        assert_eq!(pair.open(mode, &disk).unwrap().size(), one);
        let roots = [&pair.one, &pair.other].map(|it| pair.key.check(&it.0).unwrap().root);
        assert_eq!(roots[0], roots[1]);
    }
}

#[test]
fn a_log_that_must_have_both_stops_when_one_fails() {
    let pair = Pair::new("stops");
    let disk = Arc::new(FaultyDisk::default());
    let mut log = pair.open(Mode::Both, &disk).unwrap();
    fill(&mut log, 300);
    disk.set(Some(Fault { operation: "", after: 0, errno: Errno::EIO, path: "-other" }));
    log.append(begin("aa")).unwrap();
    assert!(log.commit().is_err());
    let states = log.copies();
    assert!(
        states.iter().any(|copy| copy.fault.as_ref().is_some_and(|why| why.contains("-other")))
    );
    assert_eq!(log.size(), 300);
    disk.set(None);
    log.append(begin("bb")).unwrap();
    log.commit().unwrap();
    assert_eq!(log.size(), 301);
    drop(log);
    assert_eq!(pair.sizes(), (301, 301));
}

#[test]
fn a_log_that_must_have_one_goes_on_and_brings_the_other_up_to_date() {
    let pair = Pair::new("goes-on");
    let disk = Arc::new(FaultyDisk::default());
    let mut log = pair.open(Mode::One, &disk).unwrap();
    fill(&mut log, 300);
    disk.set(Some(Fault { operation: "", after: 0, errno: Errno::EIO, path: "-other" }));
    // Far enough that the journal has let go of what the other copy lacks.
    for _ in 0..8 {
        fill(&mut log, 256);
        log.wait_until_settled().ok();
    }
    let fault = log.copies().into_iter().find_map(|copy| copy.fault).unwrap();
    assert!(fault.contains("-other"), "{fault}");
    disk.set(None);
    eventually(&mut log, |log| log.copies().iter().all(|copy| copy.fault.is_none()));
    let size = log.size();
    drop(log);
    assert_eq!(pair.sizes(), (size, size));
}

#[test]
fn a_fresh_copy_of_an_old_log_is_made_at_the_start() {
    for mode in [Mode::One, Mode::Both] {
        let pair = Pair::new("fresh");
        let (mut log, _) = Log::open(&pair.one.0, pair.key.signer()).unwrap();
        for count in 0..9000 {
            log.append(refused(count)).unwrap();
        }
        log.commit().unwrap();
        drop(log);
        let disk = Arc::new(FaultyDisk::default());
        let mut log = pair.open(mode, &disk).unwrap();
        eventually(&mut log, |log| log.copies().iter().all(|copy| copy.fault.is_none()));
        drop(log);
        let (one, other) = pair.sizes();
        assert_eq!(one, other);
    }
}

#[test]
fn the_newer_copy_is_found_and_copies_that_differ_are_refused() {
    let pair = Pair::new("newer");
    let disk = Arc::new(FaultyDisk::default());
    let mut log = pair.open(Mode::Both, &disk).unwrap();
    fill(&mut log, 300);
    drop(log);
    // The first is left behind.
    let (mut log, _) = Log::open(&pair.other.0, pair.key.signer()).unwrap();
    fill(&mut log, 50);
    drop(log);
    let log = pair.open(Mode::Both, &disk).unwrap();
    assert_eq!(log.size(), 350);
    drop(log);
    assert_eq!(pair.sizes(), (350, 350));
    // Each went on alone.
    for (folder, count) in [(&pair.one, 10), (&pair.other, 20)] {
        let (mut log, _) = Log::open(&folder.0, pair.key.signer()).unwrap();
        log.append(begin(&format!("{count}"))).unwrap();
        fill(&mut log, count);
    }
    let error = pair.open(Mode::Both, &disk).unwrap_err();
    assert!(matches!(error, Error::CopiesDiffer { size: 361, .. }), "{error}");
}

#[test]
fn a_copy_that_cannot_be_written_at_the_start_refuses_or_is_told() {
    let pair = Pair::new("at-start");
    assert!(pair.open(Mode::Both, &disk_of_other(Errno::EROFS)).is_err());
    let log = pair.open(Mode::One, &disk_of_other(Errno::EROFS)).unwrap();
    assert_eq!(log.copies().iter().filter(|copy| copy.fault.is_some()).count(), 1);
}
