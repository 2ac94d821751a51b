//! A power cut between any two operations: nothing that was acknowledged is lost, no checkpoint that
//! was published is contradicted, and the next start knows.

use std::sync::Arc;

use super::super::disk::Kernel;
use super::super::log::Options;
use super::faulty_disk::{FaultyDisk, Left, Remains};
use super::*;

/// A commit that was acknowledged: after how many operations, at which size, under which checkpoint.
struct Acknowledged {
    operations: usize,
    size: u64,
    checkpoint: Checkpoint,
}

pub(super) fn checkpoint_of(folder: &Path, key: &Key) -> Checkpoint {
    let note = fs::read(folder.join("checkpoint")).unwrap();
    Checkpoint::parse(key.signer().verifier().open(&note).unwrap()).unwrap()
}

/// Writes a log of some tiles, which are settled in the middle or at its end, and notes what was
/// acknowledged when.
fn write_log(
    folder: &Path,
    key: &Key,
    disk: &Arc<FaultyDisk>,
    settle_count: u64,
) -> Vec<Acknowledged> {
    let options = Options { disk: Arc::clone(disk) as _, settle_count, ..Options::default() };
    let (mut log, _) = Log::open_with(&[folder], key.signer(), options).unwrap();
    let mut acknowledged = Vec::new();
    // The fourth completes a bundle.
    for (commit, count) in [1, 120, 3, 140, 2, 30].into_iter().enumerate() {
        for i in 0..count {
            log.append(begin(&format!("{commit:02}{i:03}"))).unwrap();
        }
        log.commit().unwrap();
        acknowledged.push(Acknowledged {
            operations: disk.count(),
            size: log.size(),
            checkpoint: checkpoint_of(folder, key),
        });
        log.wait_until_settled().unwrap();
    }
    log.close().unwrap();
    acknowledged
}

#[test]
fn a_power_cut_at_any_point_takes_nothing_that_was_acknowledged() {
    cut_everywhere("power", 256);
}

#[test]
fn a_power_cut_while_a_log_is_ended_takes_nothing_that_was_acknowledged() {
    cut_everywhere("power-end", 8192);
}

fn cut_everywhere(name: &str, settle_count: u64) {
    let (folder, after) = (Folder::new(name), Folder::new(&format!("{name}-after")));
    let (key, disk) = (Key::new(), Arc::new(FaultyDisk::default()));
    let acknowledged = write_log(&folder.0, &key, &disk, settle_count);
    let operations = disk.operations();
    assert!(operations.len() > 100, "{}", operations.len());
    let mut remains = Remains::default();
    let mut unacknowledged_kept = 0;
    for done in 0..=operations.len() {
        if done > 0 && !remains.apply(&operations[done - 1]) {
            continue;
        }
        let last = acknowledged.iter().rev().find(|one| one.operations <= done);
        for left in
            [Left::Nothing, Left::NamesAndTornBytes, Left::BytesWithoutNames, Left::Everything]
        {
            remains.write(left, &folder.0, &after.0);
            let size = last.map_or(0, |one| one.size);
            let recovered = recover(&after.0, &key, last.map(|one| &one.checkpoint))
                .unwrap_or_else(|error| panic!("after {done} operations, {left:?}: {error}"));
            assert!(recovered >= size, "after {done}, {left:?}: {recovered} of {size}");
            unacknowledged_kept += u64::from(recovered > size);
        }
    }
    // A control: that more than the acknowledged may be there, so that the cut falls inside commits.
    assert!(unacknowledged_kept > 0);
}

/// Starts on what is left, goes on, and verifies against the last published checkpoint.
fn recover(folder: &Path, key: &Key, anchor: Option<&Checkpoint>) -> Result<u64, Error> {
    let disk = Arc::new(Kernel { is_durable: false });
    let options = Options { disk, ..Options::default() };
    let (mut log, found) = Log::open_with(&[folder], key.signer(), options)?;
    let size = log.size();
    assert!(!found.stopped_in_order || size == 0);
    assert_eq!(found.open_requests.len() as u64, size, "each began and none ended");
    log.append(refused(1))?;
    log.commit()?;
    let report = verify(folder, &key.signer().verifier(), anchor, &mut |_, _| {})?;
    assert_eq!(report.size, size + 1);
    Ok(size)
}
