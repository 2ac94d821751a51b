//! Walks a log with nothing but its public key, and names the first break.
//!
//! Writes nothing and needs no secret. What it proves: every record is the one that was
//! signed, in its place. What it cannot: that the whole log was not replaced by an older
//! state of itself; for that it is held against a checkpoint kept elsewhere.

use std::collections::BTreeMap;
use std::path::Path;

use super::Error;
use super::bundles::{Bundle, read_in_order};
use super::carried::Carried;
use super::journal::{Content, Journal};
use super::merkle::TILE_WIDTH;
use super::note::{Checkpoint, NOTE_LEN_MAX_BYTES, Verifier, named_size};
use super::open::Open;
use super::record::{Event, Record};
use super::rotation::Rotation;
use super::tiles::{Kind, compare, read_bounded, read_hashes, tile_path};

/// What a whole log shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// The log's origin.
    pub origin: String,
    /// Signed records.
    pub size: u64,
    /// Root of the signed tree, in hex.
    pub root: String,
    /// Durable records that the checkpoint does not cover yet.
    pub unsigned_tail: u64,
    /// Time of the first and last record, in seconds since 1970.
    pub time_s: Option<(u64, u64)>,
    /// How many of each event.
    pub events: BTreeMap<&'static str, u64>,
    /// Requests that began and have no end record yet.
    pub open_requests: u64,
    /// Ends without a begin, or second ends.
    pub unmatched_ends: u64,
    /// Records whose clock stands before the record before them.
    pub clock_steps_back: u64,
    /// Index of the first of them.
    pub clock_step_back_first: Option<u64>,
    /// Size of the older checkpoint that the log was held against.
    pub anchored_at: Option<u64>,
    /// Time of the last record under that checkpoint, in seconds since 1970.
    pub anchored_time_s: Option<u64>,
    /// Records at the beginning that were pruned, on the record: their hashes alone are there.
    pub pruned: u64,
    /// The TPM's counter of starts, where they recorded one.
    pub tpm_counter: Option<CounterReport>,
    /// Changes of the log's key, oldest first.
    pub key_changes: Vec<KeyChange>,
    /// The log's key, where it is not the one that was given but one that this handed over to.
    pub followed_to: Option<String>,
}

/// The TPM's counter over the starts that recorded it: it rises at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CounterReport {
    /// At the first of them.
    pub first: u64,
    /// At the last.
    pub last: u64,
    /// How many starts recorded it.
    pub starts: u64,
    /// Starts after the first of them that did not.
    pub starts_without: u64,
    /// Values between the first and the last that no start recorded: a start failed before it was
    /// recorded, or records of it are gone and the log went on from before.
    pub unrecorded: u64,
}

/// A change of the log's key, which both keys signed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct KeyChange {
    /// Records under the old key.
    pub size: u64,
    /// The old key.
    pub before: String,
    /// The new one.
    pub after: String,
}

/// Most walks over a log that is being written: each starts over with the newest checkpoint.
const WALKS_COUNT_MAX: usize = 20;

/// Verifies the log in `folder`; `visit` sees each record, `anchor` is a checkpoint kept
/// elsewhere that this log must extend.
///
/// A log that grows replaces its open tiles, which are read before all others; where they are gone even
/// so, the walk starts over, and `visit` may see the first record again.
///
/// # Errors
///
/// The first break, with its place.
pub fn verify(
    folder: &Path,
    verifier: &Verifier,
    anchor: Option<&Checkpoint>,
    visit: &mut dyn FnMut(u64, &Record),
) -> Result<Report, Error> {
    let read = || read_bounded(&folder.join("checkpoint"), NOTE_LEN_MAX_BYTES);
    let mut note = read()?;
    for _ in 1..WALKS_COUNT_MAX {
        match verify_at(folder, verifier, &note, anchor, visit) {
            Err(error) => {
                let newer = read()?;
                if newer == note {
                    return Err(error);
                }
                note = newer;
            }
            report => return report,
        }
    }
    verify_at(folder, verifier, &note, anchor, visit)
}

/// Verifies the log as the checkpoint in `note` has it.
fn verify_at(
    folder: &Path,
    verifier: &Verifier,
    note: &[u8],
    anchor: Option<&Checkpoint>,
    visit: &mut dyn FnMut(u64, &Record),
) -> Result<Report, Error> {
    // Before the note is checked, which takes longer than a log that grows may keep what is open.
    let mut open = Open::read(folder, named_size(note).unwrap_or_default());
    let followed = verifier.follow(folder)?;
    let signed = followed.checkpoint(note)?;
    // Never behind the checkpoint: what is signed was in it before.
    let journal = Journal::read(&folder.join("journal"))?;
    if let Some(settled) = journal.as_ref().map(|one| one.base).filter(|&base| base > signed.size) {
        return Err(Error::CheckpointOlder { signed: signed.size, settled });
    }
    let mut walk = Walk::new(folder, anchor, journal.as_ref());
    walk.handed.extend(followed.changes().iter().map(|change| &change.checkpoint));
    read_in_order(folder, signed.size, |bundle| walk.push(bundle, visit))?;
    if let Some(bundle) = open.bundle.take() {
        walk.push(bundle?, visit)?;
    }
    open.compare(&walk.carried.edge)?;
    if walk.carried.edge.root() != signed.root {
        return Err(Error::RootMismatch { size: signed.size });
    }
    let mut report = walk.finish(&signed)?;
    let change = |change: &Rotation| KeyChange {
        size: change.checkpoint.size,
        before: change.before.newest(),
        after: change.after.newest(),
    };
    report.key_changes = followed.changes().iter().map(change).collect();
    report.followed_to = (!followed.is_newest_of(verifier)).then(|| followed.newest());
    Ok(report)
}

struct Walk<'a> {
    folder: &'a Path,
    report: Report,
    /// The state behind the records that were seen.
    carried: Carried,
    /// Records that may be gone, as the log says.
    pruned_recorded: u64,
    anchor: Option<&'a Checkpoint>,
    /// What one key handed over to the next.
    handed: Vec<&'a Checkpoint>,
    journal: Option<&'a Content>,
}

impl<'a> Walk<'a> {
    fn new(folder: &'a Path, anchor: Option<&'a Checkpoint>, journal: Option<&'a Content>) -> Self {
        Self {
            folder,
            report: Report::default(),
            carried: Carried::default(),
            pruned_recorded: 0,
            anchor,
            handed: Vec::new(),
            journal,
        }
    }

    fn push(&mut self, bundle: Bundle, visit: &mut dyn FnMut(u64, &Record)) -> Result<(), Error> {
        let Bundle { first, leaves, root, records } = bundle;
        let end = first + leaves.len() as u64;
        match records {
            Some(records) => {
                for (index, record) in (first..).zip(&records) {
                    visit(index, record);
                    self.note(index, record);
                    self.note_start(index, record)?;
                    self.carried.note_record(record);
                    self.check_journal(index)?;
                }
            }
            None if first == self.report.pruned => self.report.pruned = end,
            None => {
                let index = first / TILE_WIDTH as u64;
                let path = tile_path(self.folder, Kind::Entries, index, leaves.len());
                return Err(Error::TileMissing { path });
            }
        }
        let mut known = self.anchor.iter().chain(&self.handed);
        let has_anchor = known.any(|one| (first + 1..end).contains(&one.size));
        let mut full = Vec::new();
        match root {
            Some(root) if !has_anchor => full = self.carried.edge.push_tile(leaves, root),
            _ => {
                for leaf in leaves {
                    full.extend(self.carried.edge.push(leaf));
                    self.check_anchor()?;
                }
            }
        }
        self.check_anchor()?;
        for tile in full.iter().filter(|tile| tile.level > 0) {
            let got = read_hashes(self.folder, tile.level, tile.index, TILE_WIDTH)?;
            compare(tile.level, tile.index, &tile.hashes, &got)?;
        }
        Ok(())
    }

    /// Counts a record.
    fn note(&mut self, index: u64, record: &Record) {
        let report = &mut self.report;
        *report.events.entry(record.event.name()).or_default() += 1;
        let (first, last) = report.time_s.unwrap_or((record.time_s, record.time_s));
        if record.time_s < last {
            report.clock_steps_back += 1;
            report.clock_step_back_first.get_or_insert(index);
        }
        report.time_s = Some((first, record.time_s));
        match &record.event {
            Event::End { request, .. } | Event::EndMissing { request, .. } => {
                // Its begin may have been pruned.
                let is_matched = self.carried.open.contains(request) || report.pruned > 0;
                report.unmatched_ends += u64::from(!is_matched);
            }
            Event::RetentionRun { observed } => {
                self.pruned_recorded = self.pruned_recorded.max(observed.before);
            }
            _ => {}
        }
        if self.anchor.is_some_and(|anchor| anchor.size == index + 1) {
            report.anchored_time_s = Some(record.time_s);
        }
    }

    /// Holds the TPM's counter of a start against that of the start before it.
    fn note_start(&mut self, index: u64, record: &Record) -> Result<(), Error> {
        let Event::Start { observed } = &record.event else { return Ok(()) };
        let known = &mut self.report.tpm_counter;
        match (known.as_mut(), observed.tpm_counter) {
            (None, None) => {}
            (None, Some(counter)) => {
                *known = Some(CounterReport {
                    first: counter,
                    last: counter,
                    starts: 1,
                    starts_without: 0,
                    unrecorded: 0,
                });
            }
            (Some(known), None) => known.starts_without += 1,
            (Some(known), Some(counter)) => {
                let before = std::mem::replace(&mut known.last, counter);
                let skipped = counter.checked_sub(before).and_then(|rise| rise.checked_sub(1));
                let stands = Error::CounterStands { index: Some(index), before, counter };
                known.unrecorded += skipped.ok_or(stands)?;
                known.starts += 1;
            }
        }
        Ok(())
    }

    /// Holds the journal's head, which no key signs, against the records before it.
    fn check_journal(&self, index: u64) -> Result<(), Error> {
        let at_head = self.journal.filter(|journal| journal.base == index + 1);
        match at_head {
            Some(Content { base, carried, .. })
                if !carried.agrees_with(&self.carried, self.report.pruned > 0) =>
            {
                Err(Error::JournalHead { base: *base })
            }
            _ => Ok(()),
        }
    }

    /// Holds the tree against the anchor, and what a key handed over, once it has their size.
    fn check_anchor(&mut self) -> Result<(), Error> {
        let size = self.carried.edge.size();
        for known in self.anchor.iter().chain(&self.handed).filter(|one| one.size == size) {
            if known.root != self.carried.edge.root() {
                return Err(Error::RootMismatch { size });
            }
        }
        if self.anchor.is_some_and(|anchor| anchor.size == size) {
            self.report.anchored_at = Some(size);
        }
        Ok(())
    }

    fn finish(mut self, signed: &Checkpoint) -> Result<Report, Error> {
        if let Some(anchor) = self.anchor {
            if anchor.origin != signed.origin {
                return Err(Error::CheckpointOrigin);
            }
            if anchor.size > signed.size {
                return Err(Error::Truncated { signed: anchor.size, found: signed.size });
            }
        }
        if let Some(handed) = self.handed.iter().find(|handed| handed.size > signed.size) {
            return Err(Error::Truncated { signed: handed.size, found: signed.size });
        }
        if self.report.pruned > self.pruned_recorded {
            let (gone, recorded) = (self.report.pruned, self.pruned_recorded);
            return Err(Error::RecordsGone { gone, recorded });
        }
        if let Some(journal) = self.journal {
            let held = journal.base + journal.records.len() as u64;
            if held < signed.size {
                return Err(Error::Truncated { signed: signed.size, found: held });
            }
            self.report.unsigned_tail = held - signed.size;
        }
        self.report.origin.clone_from(&signed.origin);
        self.report.size = signed.size;
        self.report.root = super::principal_keys::hex(&signed.root);
        self.report.open_requests = self.carried.open.len() as u64;
        Ok(self.report)
    }
}
