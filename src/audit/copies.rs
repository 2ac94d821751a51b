//! The copies of one log: one tree, written to each; which of them must succeed; and which is the
//! newest when a log is opened.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::Flock;

use super::Error;
use super::carried::Carried;
use super::copy::{self, Copy};
use super::disk::Disk;
use super::journal::{Content, Journal, frames_len};
use super::log::edge_of_full_tiles;
use super::merkle::{Edge, TILE_WIDTH};
use super::note::{Checkpoint, NOTE_LEN_MAX_BYTES, Signer, Verifier};
use super::retention;
use super::rotation::{self, Rotation};
use super::settle::reserve_bytes;
use super::snapshot::Snapshot;
use super::tail::Tail;
use super::tiles::read_bounded;

/// Time between two attempts to write a copy that failed while another goes on.
const RETRY: Duration = Duration::from_secs(1);

/// Which copies must take a record before it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// At least one: the log goes on while another copy fails, and brings it up to date later.
    One,
    /// All.
    #[default]
    Both,
}

/// How a copy is, for the operator.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CopyState {
    /// Its folder.
    pub folder: PathBuf,
    /// Why it does not hold all records; `None` when it does.
    pub fault: Option<String>,
}

/// A copy, and why it failed last.
#[derive(Debug)]
struct Member {
    copy: Copy,
    fault: Option<String>,
    /// When to try again, where another copy goes on.
    due: Option<Instant>,
}

/// The copies.
#[derive(Debug)]
pub(super) struct Copies {
    members: Vec<Member>,
    mode: Mode,
    settle_count: u64,
}

/// What is to be made durable at once.
pub(super) struct Batch {
    pub(super) records: Vec<Vec<u8>>,
    /// How many of them are begins, and how many are ends.
    pub(super) begins: u64,
    pub(super) ends: u64,
}

impl Batch {
    /// Whether all are ends, which may use the room that is reserved for them.
    fn is_ends_alone(&self) -> bool {
        self.ends == self.records.len() as u64
    }
}

impl Copies {
    /// The first copy is in step with the tail, the others are not known to be.
    pub(super) fn new(copies: Vec<Copy>, mode: Mode, settle_count: u64) -> Self {
        let behind = |copy: &Copy| Error::CopyBehind { path: copy.folder().to_owned() }.to_string();
        let members = copies.into_iter().enumerate().map(|(at, copy)| {
            let fault = (at > 0).then(|| behind(&copy));
            Member { copy, fault, due: None }
        });
        Self { members: members.collect(), mode, settle_count }
    }

    /// Publishes the newest copy.
    pub(super) fn begin(&mut self, tail: &Tail, signer: &Signer) -> Result<(), Error> {
        let Some(member) = self.members.first_mut() else { return Ok(()) };
        member.copy.repair(tail, &|| sign(signer, tail), None)?;
        member.copy.publish(tail, &sign(signer, tail))
    }

    /// The folder of a copy that holds all records.
    pub(super) fn good_folder(&self) -> Option<&Path> {
        let good = self.members.iter().find(|member| member.fault.is_none());
        good.map(|member| member.copy.folder())
    }

    /// How each copy is.
    pub(super) fn states(&self) -> Vec<CopyState> {
        let state = |member: &Member| CopyState {
            folder: member.copy.folder().to_owned(),
            fault: member.fault.clone(),
        };
        self.members.iter().map(state).collect()
    }

    /// Makes a batch durable, then publishes it.
    ///
    /// After an error the tail holds the batch if it is durable nonetheless.
    pub(super) fn commit(
        &mut self,
        tail: &mut Tail,
        signer: &Signer,
        batch: Batch,
    ) -> Result<(), Error> {
        let open = tail.carried().open.len() as u64 + batch.begins;
        let room = frames_len(&batch.records) + reserve_bytes(open.saturating_sub(batch.ends));
        let ready = self.step(true, |copy, other| {
            copy.repair(tail, &|| sign(signer, tail), other)?;
            copy.take_room(room)
        });
        if ready.is_err() && !batch.is_ends_alone() {
            return ready;
        }
        if !batch.records.is_empty() {
            self.append(tail, &batch.records, ready.is_err())?;
        }
        for record in batch.records {
            tail.push(record)?;
        }
        ready?;
        let note = sign(signer, tail);
        self.step(false, |copy, _| copy.publish(tail, &note))?;
        self.forget(tail);
        let count = self.settle_count;
        self.step(false, |copy, _| copy.settle(tail, &|| note.clone(), count))
    }

    /// Settles all whole bundles of each copy that is in order.
    pub(super) fn settle_all(&mut self, tail: &Tail, signer: &Signer) -> Result<(), Error> {
        let note = sign(signer, tail);
        self.step(false, |copy, _| copy.settle_all(tail, &|| note.clone()))
    }

    /// Appends to the journals: to those that are in order, or to all that have `reserved` room on a
    /// full disk. No journal is left that holds other records than the tail will.
    fn append(&mut self, tail: &Tail, records: &[Vec<u8>], is_reserved: bool) -> Result<(), Error> {
        let (len, all) = (frames_len(records), self.members.len());
        let (mut done_count, mut first_error) = (0, None);
        for member in &mut self.members {
            let is_fit = match is_reserved {
                true => member.copy.room() >= len,
                false => member.fault.is_none(),
            };
            if !is_fit {
                member.copy.take_back();
                continue;
            }
            match member.copy.append(tail.size(), records) {
                Ok(()) => done_count += 1,
                Err(error) => first_error = Some(member.fail(error)),
            }
        }
        if self.is_enough(done_count, all) {
            return Ok(());
        }
        self.members.iter_mut().for_each(|member| member.copy.take_back());
        Err(first_error.unwrap_or(Error::Unavailable))
    }

    /// Does a step with each copy that is in order; at the `first` of a commit also with those that
    /// failed, to repair them. Fails unless enough of them did it.
    fn step(
        &mut self,
        is_first: bool,
        mut step: impl FnMut(&mut Copy, Option<&Path>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let good = self.good_folder().map(Path::to_owned);
        let (mut done_count, mut first_error) = (0, None);
        for member in &mut self.members {
            let is_paused = good.is_some()
                && self.mode == Mode::One
                && member.due.is_some_and(|due| Instant::now() < due);
            if member.fault.is_some() && (!is_first || is_paused) {
                continue;
            }
            let other = good.as_deref().filter(|folder| *folder != member.copy.folder());
            match step(&mut member.copy, other) {
                Ok(()) => {
                    member.fault = None;
                    done_count += 1;
                }
                Err(error) => first_error = first_error.or(Some(member.fail(error))),
            }
        }
        match self.is_enough(done_count, self.members.len()) {
            true => Ok(()),
            false => Err(first_error.unwrap_or(Error::Unavailable)),
        }
    }

    fn is_enough(&self, done_count: usize, all_count: usize) -> bool {
        match self.mode {
            Mode::One => done_count > 0,
            Mode::Both => done_count == all_count,
        }
    }

    /// Forgets what every copy that is in order holds in durable tiles.
    fn forget(&self, tail: &mut Tail) {
        let good = self.members.iter().filter(|member| member.fault.is_none());
        if let Some(least) = good.map(|member| &member.copy).min_by_key(|copy| copy.base()) {
            tail.forget(least.base(), least.carried());
        }
    }

    /// The first bundle whose records are there, the first after it that is not wholly older than
    /// `before_s`, and whether there may be more before that.
    pub(super) fn old_bundles(&self, before_s: u64) -> Result<(u64, u64, bool), Error> {
        let good = self.members.iter().filter(|member| member.fault.is_none());
        let Some(copy) = good.map(|member| &member.copy).min_by_key(|copy| copy.base()) else {
            return Ok((0, 0, false));
        };
        let count = copy.base() / TILE_WIDTH as u64;
        let first = retention::first_kept(copy.folder(), count);
        let (end, has_more) = retention::old_bundles(copy.folder(), (first, count), before_s)?;
        Ok((first, end, has_more))
    }

    /// Removes the records of bundles up to `end`, which is on the record.
    pub(super) fn remove_bundles(&mut self, end: u64) -> Result<(), Error> {
        self.step(false, |copy, _| copy.remove_bundles(end))
    }

    /// Waits until what is written beside the commits is.
    #[cfg(test)]
    pub(super) fn wait(&mut self, tail: &Tail) -> Result<(), Error> {
        self.members.iter_mut().try_for_each(|member| member.copy.finish_settling(tail))
    }

    /// Brings every copy up to date, and waits for it.
    pub(super) fn catch_up(&mut self, tail: &Tail, signer: &Signer) -> Result<(), Error> {
        let Some(good) = self.members.first().map(|one| one.copy.folder().to_owned()) else {
            return Ok(());
        };
        for member in self.members.iter_mut().skip(1) {
            let mut repair = || member.copy.repair(tail, &|| sign(signer, tail), Some(&good));
            if let Err(Error::CopyBehind { .. }) = repair() {
                member.copy.finish_settling(tail)?;
            }
        }
        Ok(())
    }
}

impl Member {
    /// Notes why the copy fails.
    fn fail(&mut self, error: Error) -> Error {
        self.fault = Some(error.to_string());
        self.due = Some(Instant::now() + RETRY);
        error
    }
}

/// A signed checkpoint over all of the tail, whose records are durable.
pub(super) fn sign(signer: &Signer, tail: &Tail) -> String {
    let origin = signer.verifier().name().to_owned();
    let (size, root) = (tail.size(), tail.edge().root());
    signer.sign(&Checkpoint { origin, size, root }.to_text())
}

/// A copy as it was found.
struct FoundCopy {
    folder: PathBuf,
    lock: Flock<File>,
    tail: Tail,
    signed: Option<Checkpoint>,
    dropped_bytes: u64,
    is_checkpoint_lost: bool,
    /// Whether there is no journal: a copy that is to be made.
    is_fresh: bool,
    /// Bytes of a journal that holds nothing but what the checkpoint covers: all of that was synced before
    /// it was signed, so that the journal needs not be written anew.
    synced_bytes: Option<u64>,
}

/// The log as its copies have it.
pub(super) struct Opened {
    pub(super) tail: Tail,
    /// The newest first.
    pub(super) copies: Vec<Copy>,
    pub(super) dropped_bytes: u64,
    pub(super) is_checkpoint_lost: bool,
    /// What the other copies are signed for.
    others: Vec<(PathBuf, Checkpoint)>,
}

/// Opens the copies in `folders`, which `verifier`'s newest key signs from now on, and finds the newest.
pub(super) fn open(
    folders: &[&Path],
    verifier: &Verifier,
    disk: &Arc<dyn Disk>,
) -> Result<Opened, Error> {
    let followed = follow(folders, verifier)?;
    let found: Result<Vec<FoundCopy>, Error> =
        folders.iter().map(|folder| find(folder, &followed)).collect();
    let mut found = found?;
    let has_journal = found.iter().any(|copy| !copy.is_fresh);
    if !has_journal && found.iter().any(|copy| copy.signed.is_some()) {
        return Err(Error::JournalMalformed);
    }
    let age = |copy: &FoundCopy| (copy.signed.as_ref().map_or(0, |one| one.size), copy.tail.size());
    // Of equal ones the first.
    let newest = (0..found.len()).rev().max_by_key(|&at| (!found[at].is_fresh, age(&found[at])));
    found.swap(0, newest.unwrap_or(0));
    let changed = followed.changes().last().map_or(0, |change| change.checkpoint.size);
    if let Some(short) = found.first().map(|copy| copy.tail.size()).filter(|&size| size < changed) {
        return Err(Error::Truncated { signed: changed, found: short });
    }
    let mut opened: Option<Opened> = None;
    for found in found {
        let (base, carried) = match found.is_fresh {
            true => (0, Carried::default()),
            false => (found.tail.first().0, found.tail.first().1.clone()),
        };
        let newest = opened.as_ref().map_or(&found.tail, |opened| &opened.tail);
        let synced = found.synced_bytes.filter(|_| newest.edge() == found.tail.edge());
        let journal = found.folder.join("journal");
        let journal = synced.and_then(|bytes| Journal::go_on(disk.as_ref(), &journal, bytes));
        let disk = Arc::clone(disk);
        let copy = Copy::new(&found.folder, disk, (base, carried), journal, found.lock)?;
        match &mut opened {
            None => {
                opened = Some(Opened {
                    tail: found.tail,
                    copies: vec![copy],
                    dropped_bytes: found.dropped_bytes,
                    is_checkpoint_lost: found.is_checkpoint_lost,
                    others: Vec::new(),
                });
            }
            Some(opened) => {
                opened.copies.push(copy);
                opened.others.extend(found.signed.map(|signed| (found.folder, signed)));
            }
        }
    }
    opened.ok_or(Error::Unavailable)
}

impl Opened {
    /// Holds the other copies against the newest, once that is published.
    pub(super) fn check_others(
        others: &[(PathBuf, Checkpoint)],
        newest: &Path,
        verifier: &Verifier,
    ) -> Result<(), Error> {
        for (folder, signed) in others.iter().filter(|other| other.1.size > 0) {
            let is_prefix = Snapshot::open(newest, verifier)?.root_at(signed.size)? == signed.root;
            if !is_prefix {
                return Err(Error::CopiesDiffer { path: folder.clone(), size: signed.size });
            }
        }
        Ok(())
    }

    /// Takes what is known of the other copies.
    pub(super) fn take_others(&mut self) -> Vec<(PathBuf, Checkpoint)> {
        std::mem::take(&mut self.others)
    }
}

/// The keys of the log, whose changes lie in any of its copies.
fn follow(folders: &[&Path], verifier: &Verifier) -> Result<Verifier, Error> {
    let mut changes: Vec<Rotation> = Vec::new();
    for folder in folders {
        let more = rotation::read(folder)?;
        changes.extend(
            more.into_iter().filter(|change| !changes.contains(change)).collect::<Vec<_>>(),
        );
    }
    changes.sort_by_key(|change| change.checkpoint.size);
    let followed = verifier.clone().through(changes)?;
    if followed.is_newest_of(verifier) {
        return Ok(followed);
    }
    let retired = followed.changes().iter().find(|change| change.before.is_newest_of(verifier));
    Err(retired.map_or(Error::NoteUnsigned, |it| Error::KeyRetired { size: it.checkpoint.size }))
}

fn find(folder: &Path, verifier: &Verifier) -> Result<FoundCopy, Error> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let lock = copy::lock(folder)?;
    let (signed, is_checkpoint_lost) = newest_checkpoint(folder, verifier)?;
    let content = Journal::read(&folder.join("journal"))?;
    let is_fresh = content.is_none();
    let (mut dropped_bytes, mut synced_bytes) = (0, None);
    let tail = match content {
        None => Tail::new(Carried::default(), verifier.changes()),
        Some(content) => {
            dropped_bytes = content.dropped_bytes;
            let used = content.used;
            let (tail, is_as_told) = restore(folder, content, signed.as_ref(), verifier.changes())?;
            let is_signed = signed.as_ref().is_some_and(|signed| signed.size == tail.size());
            let is_synced = is_as_told && is_signed && !is_checkpoint_lost && dropped_bytes == 0;
            synced_bytes = is_synced.then_some(used);
            tail
        }
    };
    let folder = folder.to_owned();
    Ok(FoundCopy {
        folder,
        lock,
        tail,
        signed,
        dropped_bytes,
        is_checkpoint_lost,
        is_fresh,
        synced_bytes,
    })
}

/// Restores the tail behind the edge that the journal's head has; where that is not known or does not
/// lead to the signed tree, behind the edge that the durable tiles have. Says whether the head was right.
fn restore(
    folder: &Path,
    content: Content,
    signed: Option<&Checkpoint>,
    changes: &[Rotation],
) -> Result<(Tail, bool), Error> {
    let Content { base, mut carried, records, .. } = content;
    if carried.edge.size() == base {
        match replay(folder, Tail::new(carried.clone(), changes), &records, signed) {
            Err(Error::RootMismatch { .. }) => {}
            restored => return Ok((restored?, true)),
        }
    }
    carried.edge = edge_of_full_tiles(folder, base)?;
    Ok((replay(folder, Tail::new(carried, changes), &records, signed)?, false))
}

/// Brings the journal's records behind the tree before it, and holds them against the signed checkpoint
/// and what a key handed over to the next.
fn replay(
    folder: &Path,
    mut tail: Tail,
    records: &[Vec<u8>],
    signed: Option<&Checkpoint>,
) -> Result<Tail, Error> {
    let base = tail.size();
    let mut is_seen = false;
    if let Some(signed) = signed {
        if signed.size < base {
            return Err(Error::CheckpointOlder { signed: signed.size, settled: base });
        }
        is_seen = matches(tail.edge(), signed)?;
    } else if base > 0 {
        return Err(Error::TileMissing { path: folder.join("checkpoint") });
    }
    for record in records {
        tail.push(record.clone())?;
        if let Some(signed) = signed {
            is_seen |= matches(tail.edge(), signed)?;
        }
        for change in tail.changes() {
            matches(tail.edge(), &change.checkpoint)?;
        }
    }
    match signed {
        Some(signed) if !is_seen => {
            Err(Error::Truncated { signed: signed.size, found: tail.size() })
        }
        _ => Ok(tail),
    }
}

/// Whether the tree is now as large as the checkpoint's; then it must be the same.
fn matches(edge: &Edge, signed: &Checkpoint) -> Result<bool, Error> {
    if signed.size != edge.size() {
        return Ok(false);
    }
    if signed.root != edge.root() {
        return Err(Error::RootMismatch { size: signed.size });
    }
    Ok(true)
}

/// The newest checkpoint, and whether it was lost: readers' own is not synced, so that a power cut
/// may leave a part of it. Then the last durable one is taken, if there ever was one.
fn newest_checkpoint(
    folder: &Path,
    verifier: &Verifier,
) -> Result<(Option<Checkpoint>, bool), Error> {
    let is_torn = match read_checkpoint(&folder.join("checkpoint"), verifier) {
        Ok(Some(checkpoint)) => return Ok((Some(checkpoint), false)),
        Ok(None) => false,
        Err(Error::NoteMalformed) => true,
        Err(error) => return Err(error),
    };
    let settled = read_checkpoint(&folder.join("checkpoint.settled"), verifier)?;
    let is_lost = is_torn || settled.is_some();
    Ok((settled, is_lost))
}

fn read_checkpoint(path: &Path, verifier: &Verifier) -> Result<Option<Checkpoint>, Error> {
    if !path.exists() {
        return Ok(None);
    }
    let note = read_bounded(path, NOTE_LEN_MAX_BYTES)?;
    verifier.kept(&note).map(Some)
}
