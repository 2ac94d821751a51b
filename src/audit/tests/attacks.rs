//! What somebody may do to a log without its key, and to a whole log with a copy of it: each is caught,
//! with the record or the reason named.

use super::super::merkle::{Edge, Hash, leaf_hash};
use super::super::tiles::{encode_entries, read_entries};
use super::*;

/// A log of `count` records in two bundles and more, closed.
pub(super) fn log_of(name: &str, key: &Key, count: u64) -> Folder {
    let folder = Folder::new(name);
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    fill(&mut log, count);
    folder
}

pub(super) fn entries(folder: &Path, size: u64) -> Vec<Vec<u8>> {
    let width = |index: u64| usize::try_from(size - index * 256).unwrap().min(256);
    (0..size.div_ceil(256)).flat_map(|i| read_entries(folder, i, width(i)).unwrap()).collect()
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Writes bundles alone, as somebody who forgets the hashes.
fn write_entries(folder: &Path, entries: &[Vec<u8>]) {
    for (index, bundle) in (0..).zip(entries.chunks(256)) {
        write(&tile_path(folder, Kind::Entries, index, bundle.len()), &encode_entries(bundle));
    }
}

/// Writes bundles and every hash of the tree over them, as somebody who knows the format.
pub(super) fn write_tree(folder: &Path, entries: &[Vec<u8>]) {
    write_entries(folder, entries);
    let mut edge = Edge::default();
    let put = |level, index, hashes: &[Hash]| {
        let path = tile_path(folder, Kind::Hashes(level), index, hashes.len());
        write(&path, hashes.as_flattened());
    };
    for tile in entries.iter().flat_map(|entry| edge.push(leaf_hash(entry))) {
        put(tile.level, tile.index, &tile.hashes);
    }
    let mut index = edge.size();
    for (level, hashes) in (0..).zip(edge.open_tiles()) {
        index /= 256;
        if !hashes.is_empty() {
            put(level, index, hashes);
        }
    }
}

/// What an edit of the records looks like, with hashes that were left and with hashes made anew.
fn edited(name: &str, edit: impl Fn(&mut Vec<Vec<u8>>)) -> (Error, Error) {
    let key = Key::new();
    let folder = log_of(name, &key, 600);
    let mut changed = entries(&folder.0, 600);
    edit(&mut changed);
    write_entries(&folder.0, &changed);
    let plain = key.check(&folder.0).unwrap_err();
    write_tree(&folder.0, &changed);
    (plain, key.check(&folder.0).unwrap_err())
}

#[test]
fn a_changed_record_is_named() {
    let (plain, thorough) = edited("changed", |entries| {
        let text = String::from_utf8(entries[300].clone()).unwrap();
        entries[300] = text.replace("\"count\"", "\"kount\"").into_bytes();
    });
    assert!(matches!(plain, Error::TileMismatch { level: 0, index: 300 }), "{plain}");
    assert!(matches!(thorough, Error::RecordMalformed { index: 300 }), "{thorough}");
    let (plain, thorough) = edited("changed-well", |entries| {
        let text = String::from_utf8(entries[300].clone()).unwrap();
        entries[300] = text.replace("\"count\":", "\"count\":7").into_bytes();
    });
    assert!(matches!(plain, Error::TileMismatch { level: 0, index: 300 }), "{plain}");
    assert!(matches!(thorough, Error::RootMismatch { size: 600 }), "{thorough}");
}

#[test]
fn an_inserted_record_is_named() {
    let (plain, thorough) = edited("inserted", |entries| {
        entries.insert(300, entries[0].clone());
        entries.pop();
    });
    assert!(matches!(plain, Error::TileMismatch { level: 0, index: 300 }), "{plain}");
    assert!(matches!(thorough, Error::RootMismatch { size: 600 }), "{thorough}");
    // The tree may be longer than what was signed: what is behind is not of the log.
    let (plain, thorough) = edited("inserted-more", |entries| {
        entries.insert(3, entries[0].clone());
    });
    assert!(matches!(plain, Error::TileMismatch { level: 0, index: 3 }), "{plain}");
    assert!(matches!(thorough, Error::RootMismatch { size: 600 }), "{thorough}");
}

#[test]
fn a_deleted_record_is_named() {
    let (plain, thorough) = edited("deleted", |entries| {
        entries.remove(100);
    });
    assert!(matches!(plain, Error::TileMismatch { level: 0, index: 100 }), "{plain}");
    assert!(matches!(thorough, Error::RootMismatch { size: 600 }), "{thorough}");
}

#[test]
fn reordered_records_are_named() {
    let (plain, thorough) = edited("reordered", |entries| entries.swap(20, 400));
    assert!(matches!(plain, Error::TileMismatch { level: 0, index: 20 }), "{plain}");
    assert!(matches!(thorough, Error::RootMismatch { size: 600 }), "{thorough}");
}

#[test]
fn a_dropped_tail_is_named() {
    let key = Key::new();
    let folder = log_of("dropped", &key, 600);
    fs::remove_file(tile_path(&folder.0, Kind::Entries, 2, 88)).unwrap();
    let error = key.check(&folder.0).unwrap_err();
    assert!(matches!(&error, Error::TileMissing { path } if path.ends_with("002.p/88")), "{error}");
    assert!(Log::open(&folder.0, key.signer()).is_ok(), "the journal still holds it");
    assert!(key.check(&folder.0).is_ok());
}

/// An older state of the whole log is put back and the service goes on: the log is whole, and only a
/// checkpoint from elsewhere tells.
#[test]
fn a_tail_that_was_dropped_and_written_anew_is_caught_by_an_anchor() {
    let (folder, old, key) = (Folder::new("anew"), Folder::new("anew-old"), Key::new());
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    fill(&mut log, 300);
    drop(log);
    copy_tree(&folder.0, &old.0);
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    fill(&mut log, 20);
    drop(log);
    let anchor = power::checkpoint_of(&folder.0, &key);
    let (mut log, _) = Log::open(&old.0, key.signer()).unwrap();
    log.append(begin("other")).unwrap();
    fill(&mut log, 100);
    drop(log);
    assert_eq!(key.check(&old.0).unwrap().size, 401, "whole in itself");
    let verifier = key.signer().verifier();
    let error = verify(&old.0, &verifier, Some(&anchor), &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, Error::RootMismatch { size: 320 }), "{error}");
    assert!(verify(&folder.0, &verifier, Some(&anchor), &mut |_, _| {}).is_ok(), "the control");
}

#[test]
fn a_checkpoint_that_was_signed_anew_is_named() {
    let (key, other) = (Key::new(), Key::new());
    let folder = log_of("resigned", &key, 300);
    let signed = power::checkpoint_of(&folder.0, &key);
    fs::write(folder.0.join("checkpoint"), other.signer().sign(&signed.to_text())).unwrap();
    assert!(matches!(key.check(&folder.0), Err(Error::NoteUnsigned)));
    assert!(matches!(Log::open(&folder.0, key.signer()), Err(Error::NoteUnsigned)));
    assert!(other.check(&folder.0).is_ok(), "the control: by the other key it is whole");
}

/// The beginning of one log and the end of another, both signed by one key.
#[test]
fn two_logs_that_were_spliced_are_named() {
    let key = Key::new();
    let (one, other) = (log_of("splice-one", &key, 600), Folder::new("splice-other"));
    let (mut log, _) = Log::open(&other.0, key.signer()).unwrap();
    log.append(begin("other")).unwrap();
    fill(&mut log, 599);
    drop(log);
    let (first, second) = (entries(&one.0, 600), entries(&other.0, 600));
    let spliced: Vec<_> = first[..256].iter().chain(&second[256..]).cloned().collect();
    write_entries(&one.0, &spliced);
    let error = key.check(&one.0).unwrap_err();
    assert!(matches!(error, Error::TileMismatch { level: 0, index: 256 }), "{error}");
    write_tree(&one.0, &spliced);
    let error = key.check(&one.0).unwrap_err();
    assert!(matches!(error, Error::RootMismatch { size: 600 }), "{error}");
    fs::copy(other.0.join("checkpoint"), one.0.join("checkpoint")).unwrap();
    let error = key.check(&one.0).unwrap_err();
    assert!(matches!(error, Error::RootMismatch { size: 600 }), "{error}");
}

#[test]
fn a_clock_that_was_set_back_is_named() {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NOW_S: AtomicU64 = AtomicU64::new(1000);
    let (folder, key) = (Folder::new("clock"), Key::new());
    let options = log::Options { now_s: || NOW_S.load(Ordering::Relaxed), ..Default::default() };
    let (mut log, _) = Log::open_with(&[&folder.0], key.signer(), options).unwrap();
    fill(&mut log, 300);
    assert_eq!(key.check(&folder.0).unwrap().clock_step_back_first, None);
    NOW_S.store(400, Ordering::Relaxed);
    fill(&mut log, 5);
    NOW_S.store(2000, Ordering::Relaxed);
    fill(&mut log, 5);
    let report = key.check(&folder.0).unwrap();
    assert_eq!((report.clock_steps_back, report.clock_step_back_first), (1, Some(300)));
}

/// A key is changed: the old one's checkpoints still anchor, and it signs nothing new.
#[test]
fn a_log_whose_key_was_changed_verifies_with_both_and_is_signed_by_the_new_one_alone() {
    let (old, new) = (Key::new(), Key::new());
    let folder = log_of("rotated", &old, 300);
    let kept = fs::read(folder.0.join("checkpoint")).unwrap();
    assert!(matches!(Log::open(&folder.0, new.signer()), Err(Error::NoteUnsigned)));
    let retired = Some(old.signer().verifier());
    let folders = [folder.0.as_path()];
    let (mut log, _) = Log::open_copies(&folders, Mode::Both, new.signer(), retired).unwrap();
    fill(&mut log, 100);
    drop(log);
    let both = new.signer().verifier().after(&old.signer().verifier()).unwrap();
    assert_eq!(Verifier::parse(&both.to_text()).unwrap(), both);
    let anchor = both.kept(&kept).unwrap();
    let report = verify(&folder.0, &both, Some(&anchor), &mut |_, _| {}).unwrap();
    assert_eq!((report.size, report.anchored_at), (400, Some(300)));
    assert!(Log::open(&folder.0, new.signer()).is_ok(), "the old key is not needed any more");
    // Who has the old key cannot sign for the log any more.
    let signed = power::checkpoint_of(&folder.0, &new);
    fs::write(folder.0.join("checkpoint"), old.signer().sign(&signed.to_text())).unwrap();
    assert!(matches!(verify(&folder.0, &both, None, &mut |_, _| {}), Err(Error::NoteUnsigned)));
}

/// A search proves also what it does not show: a record that was changed to be left out is named.
#[test]
fn a_search_names_what_was_changed_to_be_left_out() {
    let key = Key::new();
    let folder = log_of("search", &key, 600);
    let verifier = key.signer().verifier();
    let search = |wanted: &[u8]| {
        let mut found = Vec::new();
        let mut snapshot = Snapshot::open(&folder.0, &verifier).unwrap();
        let holds = |bytes: &[u8]| bytes.windows(wanted.len()).any(|part| part == wanted);
        let swept = snapshot.sweep(0..3, &holds, &mut |bundle, swept| {
            found.push((bundle, matches!(swept, snapshot::Swept::Records(_))));
            Ok(true)
        });
        swept.map(|()| found)
    };
    let some = search(b"\"count\":260}").unwrap_or_default();
    assert_eq!(
        some,
        [(0, false), (1, true), (2, true)],
        "the last bundle is not full, and always read"
    );
    let bundle = tile_path(&folder.0, Kind::Entries, 1, 256);
    let good = fs::read(&bundle).unwrap();
    let mut changed = entries(&folder.0, 600);
    let text = String::from_utf8(changed[260].clone()).unwrap();
    changed[260] = text.replace("\"count\":260", "\"count\":261").into_bytes();
    fs::write(&bundle, encode_entries(&changed[256..512])).unwrap();
    let error = search(b"\"count\":260}").unwrap_err();
    assert!(matches!(error, Error::TileMismatch { level: 0, index: 260 }), "{error}");
    fs::write(&bundle, &good[..good.len() - 1]).unwrap();
    assert!(matches!(search(b"nothing"), Err(Error::BundleMalformed { .. })));
    fs::write(&bundle, &good).unwrap();
    assert_eq!(search(b"nothing").unwrap(), [(0, false), (1, false), (2, true)]);
}
