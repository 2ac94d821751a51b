//! The log's key is changed: who trusts either key verifies all of it, who has neither makes no change,
//! and the old key signs nothing more that counts.

use std::sync::Arc;

use super::super::disk::Kernel;
use super::super::log::Options;
use super::super::merkle::{Edge, leaf_hash};
use super::attacks::{entries, log_of, write_tree};
use super::faulty_disk::{FaultyDisk, Left, Remains};
use super::*;

/// Records before the change, which is one more.
const BEFORE: u64 = 300;
const CHANGED: u64 = BEFORE + 1;
/// Where the change stands.
const AT: usize = 300;

struct Changed {
    folder: Folder,
    old: Key,
    new: Key,
    /// The last checkpoint that the old key alone signed.
    kept: Vec<u8>,
}

/// A log whose key was changed, with a hundred records since.
fn changed(name: &str) -> Changed {
    let (old, new) = (Key::new(), Key::new());
    let folder = log_of(name, &old, BEFORE);
    let kept = fs::read(folder.0.join("checkpoint")).unwrap();
    let (mut log, _) = Log::open(&folder.0, old.signer()).unwrap();
    assert_eq!(log.rotate(new.signer(), 7).unwrap(), Some(CHANGED));
    assert_eq!(log.rotate(new.signer(), 7).unwrap(), None, "done already");
    assert!(matches!(log.rotate(old.signer(), 7), Err(Error::KeyRetired { size: CHANGED })));
    fill(&mut log, 100);
    Changed { folder, old, new, kept }
}

impl Changed {
    fn size(&self) -> u64 {
        CHANGED + 100
    }

    fn change(&self) -> PathBuf {
        self.folder.0.join(format!("rotation/{CHANGED}.tlog-proof"))
    }

    fn check(&self, key: &Key) -> Result<Report, Error> {
        key.check(&self.folder.0)
    }
}

/// A checkpoint over records, as whoever has a key may make it.
fn signed(key: &Key, entries: &[Vec<u8>]) -> String {
    let mut edge = Edge::default();
    entries.iter().for_each(|entry| drop(edge.push(leaf_hash(entry))));
    let origin = "test.example/log".to_owned();
    let checkpoint = Checkpoint { origin, size: edge.size(), root: edge.root() };
    key.signer().sign(&checkpoint.to_text())
}

fn event(entry: &[u8]) -> serde_json::Value {
    serde_json::from_slice::<serde_json::Value>(entry).unwrap()["event"].clone()
}

#[test]
fn who_trusts_either_key_verifies_all_of_it() {
    let it = changed("either");
    let (old, new) = (it.old.signer().verifier(), it.new.signer().verifier());
    let by_old = it.check(&it.old).unwrap();
    assert_eq!((by_old.size, by_old.followed_to.clone()), (it.size(), Some(new.newest())));
    let by_new = it.check(&it.new).unwrap();
    assert_eq!((by_new.size, &by_new.followed_to), (it.size(), &None));
    for report in [&by_old, &by_new] {
        let [change] = report.key_changes.as_slice() else { panic!("{report:?}") };
        assert_eq!((change.size, &change.before), (CHANGED, &old.newest()));
        assert_eq!(change.after, new.newest());
    }
    // What the old key signed before still anchors, for who knows the new key alone.
    let anchor = new.follow(&it.folder.0).unwrap().kept(&it.kept).unwrap();
    let report = verify(&it.folder.0, &new, Some(&anchor), &mut |_, _| {}).unwrap();
    assert_eq!(report.anchored_at, Some(BEFORE));
    assert!(matches!(new.kept(&it.kept), Err(Error::NoteUnsigned)), "the control");
    // Single records too.
    for key in [&old, &new] {
        let mut reader = Snapshot::open(&it.folder.0, key).unwrap();
        let proof = reader.proof(BEFORE).unwrap();
        let (_, record) = proof.check(reader.verifier()).unwrap();
        let Event::KeyRotated { observed } = record.event else { panic!("{record:?}") };
        let keys = (observed.before.as_str(), observed.after.as_str());
        assert_eq!(keys, (old.newest().as_str(), new.newest().as_str()));
        assert_eq!((observed.uid, observed.size), (7, Some(CHANGED)));
    }
}

#[test]
fn the_new_key_goes_on_and_the_old_one_is_refused() {
    let it = changed("goes-on");
    let error = Log::open(&it.folder.0, it.old.signer()).unwrap_err();
    assert!(matches!(error, Error::KeyRetired { size: CHANGED }), "{error}");
    assert!(error.to_string().contains("rotation/301.tlog-proof"), "{error}");
    let (mut log, _) = Log::open(&it.folder.0, it.new.signer()).unwrap();
    let third = Key::new();
    assert_eq!(log.rotate(third.signer(), 0).unwrap(), Some(it.size() + 1));
    fill(&mut log, 5);
    drop(log);
    for key in [&it.old, &it.new, &third] {
        let report = it.check(key).unwrap();
        assert_eq!((report.size, report.key_changes.len()), (it.size() + 6, 2));
    }
    assert!(matches!(
        Log::open(&it.folder.0, it.new.signer()),
        Err(Error::KeyRetired { size }) if size == it.size() + 1
    ));
    assert!(Log::open(&it.folder.0, third.signer()).is_ok());
}

#[test]
fn a_key_of_another_log_is_not_taken() {
    let (key, other) = (Key::new(), Key::new());
    let folder = Folder::new("other-name");
    let (mut log, _) = Log::open(&folder.0, key.signer()).unwrap();
    let other = Signer::from_pem("other.example/log", &other.0).unwrap();
    assert!(matches!(log.rotate(other, 0), Err(Error::CheckpointOrigin)));
    assert_eq!(log.size(), 0);
}

/// Who has neither key may write all files: each try is named.
#[test]
fn a_change_by_who_has_neither_key_is_named() {
    let (key, thief) = (Key::new(), Key::new());
    let folder = log_of("thief", &key, BEFORE);
    let own = Folder::new("thief-own");
    copy_tree(&folder.0, &own.0);
    // A log of the same records and the thief's change, all of it signed by the thief.
    let mut forged = entries(&folder.0, BEFORE);
    let text = changed("thief-model");
    let record = entries(&text.folder.0, text.size())[AT].clone();
    let record = String::from_utf8(record).unwrap();
    let record = record
        .replace(&text.old.signer().verifier().newest(), &key.signer().verifier().newest())
        .replace(&text.new.signer().verifier().newest(), &thief.signer().verifier().newest());
    forged.push(record.into_bytes());
    write_tree(&own.0, &forged);
    fs::write(own.0.join("checkpoint"), signed(&thief, &forged)).unwrap();
    let mut proof =
        Snapshot::open(&own.0, &thief.signer().verifier()).unwrap().proof(BEFORE).unwrap();
    assert!(matches!(key.check(&own.0), Err(Error::NoteUnsigned)), "a newer key and no change");
    let path = own.0.join(format!("rotation/{CHANGED}.tlog-proof"));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut reason = |note: String| {
        proof.note = note;
        fs::write(&path, proof.to_text()).unwrap();
        let error = key.check(&own.0).unwrap_err();
        let opened = Snapshot::open(&own.0, &key.signer().verifier()).unwrap_err();
        assert_eq!(opened.to_string(), error.to_string());
        let written = Log::open(&own.0, key.signer()).unwrap_err();
        assert_eq!(written.to_string(), error.to_string());
        error.to_string()
    };
    let by_thief = signed(&thief, &forged);
    let told = reason(by_thief.clone());
    assert!(told.contains("the key before did not sign it"), "{told}");
    // A signature of the old key over something else.
    let line = |note: &str| note.lines().last().unwrap().to_owned();
    let older = fs::read_to_string(folder.0.join("checkpoint")).unwrap();
    let told = reason(format!("{by_thief}{}\n", line(&older)));
    assert!(told.contains("the key before did not sign it"), "{told}");
    // By who has the old key: the new one must sign as well.
    let told = reason(signed(&key, &forged));
    assert!(told.contains("the key after did not sign it"), "{told}");
}

#[test]
fn a_change_that_was_altered_is_named() {
    let it = changed("altered");
    let good = fs::read_to_string(it.change()).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let last = lines.len() - 1;
    let mut without_new = lines[..last].join("\n");
    without_new.push('\n');
    let bad = [
        (good.replace("index 300", "index 299"), "its record is not the last"),
        (good.replacen(lines[4], lines[3], 1), "its record does not lead to the signed tree"),
        (without_new, "the key after did not sign it"),
        (String::new(), "it is no proof of a record"),
    ];
    for (text, reason) in bad {
        assert_ne!(text, good, "{reason}");
        fs::write(it.change(), text).unwrap();
        for key in [&it.old, &it.new] {
            let told = it.check(key).unwrap_err().to_string();
            assert!(told.contains(reason), "{told}");
        }
    }
    // Another record's proof, by both keys' own signatures.
    fs::write(it.change(), &good).unwrap();
    fs::rename(it.change(), it.change().with_file_name("299.tlog-proof")).unwrap();
    assert!(it.check(&it.old).unwrap_err().to_string().contains("its name"));
    // Removed: who knows the old key alone cannot follow, who knows the new one needs it not.
    fs::remove_dir_all(it.change().parent().unwrap()).unwrap();
    assert!(matches!(it.check(&it.old), Err(Error::NoteUnsigned)));
    assert!(it.check(&it.new).is_ok());
}

/// A thief of the old key signs after the change.
#[test]
fn what_the_old_key_signs_after_the_change_is_named() {
    let it = changed("after");
    let all = entries(&it.folder.0, it.size());
    let note = signed(&it.old, &all);
    fs::write(it.folder.0.join("checkpoint"), &note).unwrap();
    for key in [&it.old, &it.new] {
        let error = it.check(key).unwrap_err();
        assert!(matches!(error, Error::KeyRetired { size: CHANGED }), "{error}");
    }
    assert!(matches!(
        Log::open(&it.folder.0, it.new.signer()),
        Err(Error::KeyRetired { size: CHANGED })
    ));
    let verifier = it.new.signer().verifier().follow(&it.folder.0).unwrap();
    assert!(matches!(verifier.kept(note.as_bytes()), Err(Error::KeyRetired { size: CHANGED })));
    // Put back to before the change.
    let note = signed(&it.old, &all[..AT]);
    fs::write(it.folder.0.join("checkpoint"), &note).unwrap();
    for key in [&it.old, &it.new] {
        let error = it.check(key).unwrap_err();
        assert!(matches!(error, Error::Truncated { signed: CHANGED, found: BEFORE }), "{error}");
    }
    assert!(verifier.kept(note.as_bytes()).is_ok(), "as one that was kept it counts");
}

/// A thief of the new key writes what was before the change anew.
#[test]
fn a_past_that_the_new_key_changes_is_named() {
    let it = changed("past");
    let mut all = entries(&it.folder.0, it.size());
    let text = String::from_utf8(all[100].clone()).unwrap();
    all[100] = text.replace("\"count\":", "\"count\":7").into_bytes();
    write_tree(&it.folder.0, &all);
    fs::write(it.folder.0.join("checkpoint"), signed(&it.new, &all)).unwrap();
    for key in [&it.old, &it.new] {
        let error = it.check(key).unwrap_err();
        assert!(matches!(error, Error::RootMismatch { size: CHANGED }), "{error}");
        let error = Snapshot::open(&it.folder.0, &key.signer().verifier()).unwrap_err();
        assert!(matches!(error, Error::RootMismatch { size: CHANGED }), "{error}");
    }
    assert_eq!(event(&all[AT])["key_rotated"]["observed"]["key"], "audit");
}

#[test]
fn a_copy_that_was_left_behind_takes_the_change_too() {
    let (one, other) = (Folder::new("change-one"), Folder::new("change-other"));
    let (old, new) = (Key::new(), Key::new());
    let folders = [one.0.as_path(), other.0.as_path()];
    let open = |key: &Key| Log::open_copies(&folders, Mode::Both, key.signer(), None);
    let (mut log, _) = open(&old).unwrap();
    fill(&mut log, 20);
    drop(log);
    let (mut log, _) = Log::open(&other.0, old.signer()).unwrap();
    log.rotate(new.signer(), 0).unwrap();
    fill(&mut log, 9000);
    drop(log);
    assert!(matches!(open(&old), Err(Error::KeyRetired { size: 21 })));
    let (mut log, _) = open(&new).unwrap();
    fill(&mut log, 1);
    drop(log);
    for folder in folders {
        for key in [&old, &new] {
            assert_eq!(key.check(folder).unwrap().size, 9022);
        }
    }
}

/// The power goes between any two operations of a change: the log goes on under one of the two keys, under
/// the new one once the change was acknowledged, and both verify it.
#[test]
fn a_power_cut_leaves_the_log_to_one_of_the_two_keys() {
    let (folder, after) = (Folder::new("change-power"), Folder::new("change-power-after"));
    let (old, new) = (Key::new(), Key::new());
    let disk = Arc::new(FaultyDisk::default());
    let options = Options { disk: Arc::clone(&disk) as _, ..Options::default() };
    let (mut log, _) = Log::open_with(&[&folder.0], old.signer(), options).unwrap();
    fill(&mut log, 20);
    let begun = disk.count();
    log.rotate(new.signer(), 0).unwrap();
    let acknowledged = disk.count();
    fill(&mut log, 3);
    drop(log);
    let reopen = |key: &Key| {
        let disk = Arc::new(Kernel { is_durable: false });
        let options = Options { disk, ..Options::default() };
        Log::open_with(&[&after.0], key.signer(), options)
    };
    let mut remains = Remains::default();
    let (mut by_old, mut by_new) = (0, 0);
    for (done, operation) in (1..).zip(disk.operations()) {
        if !remains.apply(&operation) || done < begun {
            continue;
        }
        for left in
            [Left::Nothing, Left::NamesAndTornBytes, Left::BytesWithoutNames, Left::Everything]
        {
            remains.write(left, &folder.0, &after.0);
            let (mut log, key) = match reopen(&old) {
                Ok((log, _)) => {
                    assert!(done < acknowledged, "after {done}, {left:?}");
                    by_old += 1;
                    (log, &old)
                }
                Err(Error::KeyRetired { size: 21 }) => {
                    by_new += 1;
                    (
                        reopen(&new).unwrap_or_else(|error| panic!("{done}, {left:?}: {error}")).0,
                        &new,
                    )
                }
                Err(error) => panic!("after {done}, {left:?}: {error}"),
            };
            fill(&mut log, 2);
            log.rotate(new.signer(), 0).unwrap();
            drop(log);
            for one in [&old, &new, key] {
                one.check(&after.0).unwrap_or_else(|error| panic!("{done}, {left:?}: {error}"));
            }
        }
    }
    assert!(by_old > 0 && by_new > 0, "{by_old} {by_new}");
}
