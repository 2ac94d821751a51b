//! Walks a log with nothing but its public key, and names the first break.
//!
//! Writes nothing and needs no secret. What it proves: every record is the one that was
//! signed, in its place. What it cannot: that the whole log was not replaced by an older
//! state of itself; for that it is held against a checkpoint kept elsewhere.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::Error;
use super::journal::Journal;
use super::merkle::{Edge, TILE_WIDTH, leaf_hash};
use super::note::{Checkpoint, NOTE_LEN_MAX_BYTES, Verifier};
use super::record::{Event, Record, SCHEMA_VERSION};
use super::tiles::{read_bounded, read_entries, read_hashes};

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
    /// Size of the older checkpoint that the log was held against.
    pub anchored_at: Option<u64>,
}

/// Most walks over a log that is being written: each starts over with the newest checkpoint.
const WALKS_COUNT_MAX: usize = 20;

/// Verifies the log in `folder`; `visit` sees each record, `anchor` is a checkpoint kept
/// elsewhere that this log must extend.
///
/// A log that grows meanwhile replaces its open tiles; the walk then starts over, and `visit`
/// sees record 0 again.
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
    let signed = Checkpoint::parse(verifier.open(note)?)?;
    if signed.origin != verifier.name() {
        return Err(Error::CheckpointOrigin);
    }
    let mut walk = Walk::new(anchor);
    let mut index = 0;
    while index < signed.size {
        let width = TILE_WIDTH.min(usize::try_from(signed.size - index).unwrap_or(TILE_WIDTH));
        let bundle = index / TILE_WIDTH as u64;
        let hashes = read_hashes(folder, 0, bundle, width)?;
        for (entry, hash) in read_entries(folder, bundle, width)?.iter().zip(&hashes) {
            if leaf_hash(entry) != *hash {
                return Err(Error::TileMismatch { level: 0, index });
            }
            let record = parse(entry, index)?;
            visit(index, &record);
            for tile in walk.push(entry, &record)? {
                if tile.level > 0 {
                    compare(folder, tile.level, tile.index, &tile.hashes)?;
                }
            }
            index += 1;
        }
    }
    compare_open_tiles(folder, &walk.edge)?;
    if walk.edge.root() != signed.root {
        return Err(Error::RootMismatch { size: signed.size });
    }
    walk.finish(folder, &signed)
}

struct Walk<'a> {
    edge: Edge,
    report: Report,
    began: HashSet<String>,
    ended: HashSet<String>,
    anchor: Option<&'a Checkpoint>,
}

impl<'a> Walk<'a> {
    fn new(anchor: Option<&'a Checkpoint>) -> Self {
        Self {
            edge: Edge::default(),
            report: Report::default(),
            began: HashSet::new(),
            ended: HashSet::new(),
            anchor,
        }
    }

    fn push(
        &mut self,
        entry: &[u8],
        record: &Record,
    ) -> Result<Vec<super::merkle::FullTile>, Error> {
        let report = &mut self.report;
        *report.events.entry(record.event.name()).or_default() += 1;
        let (first, last) = report.time_s.unwrap_or((record.time_s, record.time_s));
        report.clock_steps_back += u64::from(record.time_s < last);
        report.time_s = Some((first, record.time_s));
        match &record.event {
            Event::Begin { request, .. } => {
                self.began.insert(request.clone());
            }
            Event::End { request, .. } | Event::EndMissing { request, .. } => {
                let matched = self.began.remove(request) && self.ended.insert(request.clone());
                report.unmatched_ends += u64::from(!matched);
            }
            _ => {}
        }
        let tiles = self.edge.push(leaf_hash(entry));
        if let Some(anchor) = self.anchor.filter(|anchor| anchor.size == self.edge.size()) {
            if anchor.root != self.edge.root() {
                return Err(Error::RootMismatch { size: anchor.size });
            }
            report.anchored_at = Some(anchor.size);
        }
        Ok(tiles)
    }

    fn finish(mut self, folder: &Path, signed: &Checkpoint) -> Result<Report, Error> {
        if let Some(anchor) = self.anchor {
            if anchor.origin != signed.origin {
                return Err(Error::CheckpointOrigin);
            }
            if anchor.size > signed.size {
                return Err(Error::Truncated { signed: anchor.size, found: signed.size });
            }
        }
        if let Some(journal) = Journal::read(&folder.join("journal"))? {
            let held = journal.base + journal.records.len() as u64;
            if held < signed.size {
                return Err(Error::Truncated { signed: signed.size, found: held });
            }
            self.report.unsigned_tail = held - signed.size;
        }
        self.report.origin.clone_from(&signed.origin);
        self.report.size = signed.size;
        self.report.root = super::principal_keys::hex(&signed.root);
        self.report.open_requests = self.began.len() as u64;
        Ok(self.report)
    }
}

fn parse(entry: &[u8], index: u64) -> Result<Record, Error> {
    serde_json::from_slice::<Record>(entry)
        .ok()
        .filter(|record| record.v == SCHEMA_VERSION)
        .ok_or(Error::RecordMalformed { index })
}

fn compare(folder: &Path, level: u8, tile: u64, want: &[[u8; 32]]) -> Result<(), Error> {
    let got = read_hashes(folder, level, tile, want.len())?;
    match want.iter().zip(&got).position(|(want, got)| want != got) {
        Some(at) => Err(Error::TileMismatch { level, index: tile * TILE_WIDTH as u64 + at as u64 }),
        None => Ok(()),
    }
}

fn compare_open_tiles(folder: &Path, edge: &Edge) -> Result<(), Error> {
    let mut count = edge.size();
    for (level, hashes) in (0_u8..).zip(edge.open_tiles()) {
        count /= TILE_WIDTH as u64;
        if !hashes.is_empty() {
            compare(folder, level, count, hashes)?;
        }
    }
    Ok(())
}
