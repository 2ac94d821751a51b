//! The newest part of a tree, in memory: its right edge, and the records that are not yet in durable
//! tiles.

use super::Error;
use super::carried::Carried;
use super::merkle::{Edge, FullTile, TILE_WIDTH};
use super::rotation::Rotation;

/// The tail of a tree.
#[derive(Debug)]
pub(super) struct Tail {
    /// Index of the first record here; a multiple of 256.
    first: u64,
    records: Vec<Vec<u8>>,
    /// Tiles that the records here completed.
    full: Vec<FullTile>,
    /// The state before the first record here, and behind the last.
    carried_first: Carried,
    carried: Carried,
    /// The changes of the log's key, oldest first.
    changes: Vec<Rotation>,
}

impl Tail {
    /// Starts behind full tiles, in a log whose key was changed so.
    pub(super) fn new(carried: Carried, changes: &[Rotation]) -> Self {
        Self {
            first: carried.edge.size(),
            records: Vec::new(),
            full: Vec::new(),
            carried_first: carried.clone(),
            carried,
            changes: changes.to_vec(),
        }
    }

    /// Appends a record, which is durable in a journal.
    pub(super) fn push(&mut self, record: Vec<u8>) -> Result<(), Error> {
        self.full.extend(self.carried.note(&record)?);
        self.records.push(record);
        Ok(())
    }

    /// The changes of the log's key, oldest first.
    pub(super) fn changes(&self) -> &[Rotation] {
        &self.changes
    }

    /// Adds the newest change of the log's key.
    pub(super) fn add_change(&mut self, change: Rotation) {
        self.changes.push(change);
    }

    /// The right edge.
    pub(super) fn edge(&self) -> &Edge {
        &self.carried.edge
    }

    /// Records of the whole tree.
    pub(super) fn size(&self) -> u64 {
        self.edge().size()
    }

    /// Records in whole bundles.
    pub(super) fn whole(&self) -> u64 {
        self.size() / TILE_WIDTH as u64 * TILE_WIDTH as u64
    }

    /// The state behind the last record.
    pub(super) fn carried(&self) -> &Carried {
        &self.carried
    }

    /// Index of the first record here, and the state before it.
    pub(super) fn first(&self) -> (u64, &Carried) {
        (self.first, &self.carried_first)
    }

    /// The records from `from` to `to`.
    pub(super) fn records(&self, from: u64, to: u64) -> &[Vec<u8>] {
        let at = |index: u64| usize::try_from(index.checked_sub(self.first)?).ok();
        let range = at(from).zip(at(to)).map(|(from, to)| from..to);
        range.and_then(|range| self.records.get(range)).unwrap_or_default()
    }

    /// The tiles that records from `from` to `to` completed.
    pub(super) fn full_tiles(&self, from: u64, to: u64) -> impl Iterator<Item = &FullTile> {
        self.full.iter().filter(move |tile| (from + 1..=to).contains(&tile.end()))
    }

    /// Forgets the records before `index`, a multiple of 256; `carried` is the state there.
    pub(super) fn forget(&mut self, index: u64, carried: &Carried) {
        if index <= self.first {
            return;
        }
        let count = usize::try_from(index - self.first).unwrap_or(usize::MAX);
        self.records.drain(..count.min(self.records.len()));
        self.full.retain(|tile| tile.end() > index);
        self.first = index;
        self.carried_first.clone_from(carried);
    }
}
