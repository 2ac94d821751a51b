//! A log as it was at one checkpoint: single records, each proven against the signed root before it is given out.
//!
//! Writes nothing and needs no secret. Opening reads the signed checkpoint and the tree's right
//! edge, so a log of any length opens in milliseconds, and a log that grows meanwhile changes
//! nothing of what is read. What is proven is each record that was read; that all others stand too
//! is what `verify` tells.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::Error;
use super::lanes::in_order;
use super::merkle::{Hash, TILE_WIDTH, leaf_hash, perfect_root};
use super::note::{Checkpoint, NOTE_LEN_MAX_BYTES, Verifier};
use super::proof::{self, subtree};
use super::proof_file::ProofFile;
use super::record::{Record, SCHEMA_VERSION};
use super::tiles::{read_bounded, read_bundle, read_entries, read_hashes, split_entries};

const WIDTH: u64 = TILE_WIDTH as u64;
/// Levels of tiles: a tree of 2^63 records has eight.
const LEVELS_COUNT: u8 = 8;
/// Most tries to open a log that is being written: each takes the newest checkpoint.
const TRIES_COUNT_MAX: usize = 20;

/// What a sweep found of a bundle.
#[derive(Debug)]
pub enum Swept {
    /// Its file is not there.
    Absent,
    /// Records that are proven, and not wanted.
    Other,
    /// Proven records.
    Records(Vec<Vec<u8>>),
}

/// A log, as it was when it was opened.
#[derive(Debug)]
pub struct Snapshot {
    folder: PathBuf,
    verifier: Verifier,
    note: String,
    signed: Checkpoint,
    /// Of each level, the hashes of the tile that is not full.
    open: Vec<Vec<Hash>>,
    /// The records of the bundle that is not full.
    tail: Vec<Vec<u8>>,
    /// Of each level, the full tile that was proven last.
    proven: Vec<Option<(u64, Vec<Hash>)>>,
}

impl Snapshot {
    /// Opens the log in `folder`, as its newest checkpoint has it.
    ///
    /// # Errors
    ///
    /// A checkpoint that neither `verifier` signed nor a key that it handed over to; a right edge that is
    /// not the signed tree's; a change of the key that this log does not extend.
    pub fn open(folder: &Path, verifier: &Verifier) -> Result<Self, Error> {
        let read = || read_bounded(&folder.join("checkpoint"), NOTE_LEN_MAX_BYTES);
        let mut note = read()?;
        for _ in 1..TRIES_COUNT_MAX {
            match Self::open_at(folder, verifier, &note) {
                Err(error) => {
                    let newer = read()?;
                    if newer == note {
                        return Err(error);
                    }
                    note = newer;
                }
                opened => return opened,
            }
        }
        Self::open_at(folder, verifier, &note)
    }

    fn open_at(folder: &Path, verifier: &Verifier, note: &[u8]) -> Result<Self, Error> {
        // A change of the key is there before anything that the new key signs.
        let verifier = verifier.follow(folder)?;
        let signed = verifier.checkpoint(note)?;
        let mut open = Vec::new();
        let mut count = signed.size;
        for level in 0..LEVELS_COUNT {
            let width = usize::try_from(count % WIDTH).unwrap_or(0);
            count /= WIDTH;
            let tile =
                if width == 0 { Vec::new() } else { read_hashes(folder, level, count, width)? };
            open.push(tile);
        }
        let mismatch = || Error::RootMismatch { size: signed.size };
        // The subtrees that a tree of this size ends in lie all in tiles that are not full.
        let mut edge = |start: u64, height: u8| {
            let (level, at, count) = place(start, height);
            open.get(usize::from(level))
                .and_then(|tile| perfect_of(tile, at, count))
                .ok_or_else(mismatch)
        };
        if subtree(&mut edge, 0..signed.size)? != signed.root {
            return Err(mismatch());
        }
        let bundle = signed.size / WIDTH;
        let tail = if open[0].is_empty() {
            Vec::new()
        } else {
            read_entries(folder, bundle, open[0].len())?
        };
        let first = bundle * WIDTH;
        for (index, (entry, hash)) in (first..).zip(tail.iter().zip(&open[0])) {
            if leaf_hash(entry) != *hash {
                return Err(Error::TileMismatch { level: 0, index });
            }
        }
        let note = String::from_utf8(note.to_vec()).map_err(|_| Error::NoteMalformed)?;
        let proven = vec![None; usize::from(LEVELS_COUNT)];
        let folder = folder.to_owned();
        let mut opened = Self { folder, verifier, note, signed, open, tail, proven };
        opened.check_changes()?;
        Ok(opened)
    }

    /// Holds the tree against those that a key handed over.
    fn check_changes(&mut self) -> Result<(), Error> {
        let changes = self.verifier.changes().iter();
        let handed: Vec<Checkpoint> = changes.map(|change| change.checkpoint.clone()).collect();
        for Checkpoint { size, root, .. } in handed {
            if self.root_at(size)? != root {
                return Err(Error::RootMismatch { size });
            }
        }
        Ok(())
    }

    /// The log's key, and those before it.
    #[must_use]
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// What was signed.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.signed
    }

    /// The signed note, as it stands in the log.
    #[must_use]
    pub fn note(&self) -> &str {
        &self.note
    }

    /// Records.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.signed.size
    }

    /// Bundles of up to 256 records.
    #[must_use]
    pub fn bundles(&self) -> u64 {
        self.signed.size.div_ceil(WIDTH)
    }

    /// Index of the first record that is there: those before it were pruned.
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::entries`].
    pub fn first_kept(&mut self) -> Result<u64, Error> {
        let (mut gone, mut end) = (0, self.signed.size / WIDTH);
        while gone < end {
            let middle = gone + (end - gone) / 2;
            match self.entries(middle) {
                Err(Error::TileMissing { .. }) => gone = middle + 1,
                entries => {
                    entries?;
                    end = middle;
                }
            }
        }
        Ok(gone * WIDTH)
    }

    /// The records of a bundle, proven; the first has index `bundle * 256`.
    ///
    /// # Errors
    ///
    /// [`Error::TileMissing`] for a bundle that is not there; [`Error::TileMismatch`] with the place of
    /// the first record that is not the signed one.
    pub fn entries(&mut self, bundle: u64) -> Result<Vec<Vec<u8>>, Error> {
        if bundle >= self.signed.size / WIDTH {
            return Ok(self.tail.clone());
        }
        let entries = read_entries(&self.folder, bundle, TILE_WIDTH)?;
        let leaves: Vec<Hash> = entries.iter().map(|entry| leaf_hash(entry)).collect();
        if perfect_root(&leaves) == self.hash(1, bundle)? {
            return Ok(entries);
        }
        let hashes = self.tile(0, bundle)?;
        let at = hashes.iter().zip(&leaves).position(|(want, got)| want != got).unwrap_or(0);
        Err(Error::TileMismatch { level: 0, index: bundle * WIDTH + at as u64 })
    }

    /// Goes through the bundles of `range` in order, on all processors, and proves each; gives `each` the
    /// records of those whose bytes `is_wanted`, until it returns false.
    ///
    /// # Errors
    ///
    /// [`Error::TileMismatch`] with the place of the first record that is not the signed one, wanted or not.
    pub fn sweep(
        &mut self,
        range: Range<u64>,
        is_wanted: &(dyn Fn(&[u8]) -> bool + Sync),
        each: &mut dyn FnMut(u64, Swept) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let (folder, full) = (self.folder.clone(), self.signed.size / WIDTH);
        let read = |bundle: u64| {
            if bundle >= full {
                return Ok(Some(None));
            }
            let bytes = match read_bundle(&folder, bundle, TILE_WIDTH) {
                Err(Error::TileMissing { .. }) => return Ok(None),
                bytes => bytes?,
            };
            // A bundle that is none has no root, and is named below.
            let entries = split_entries(&bytes, TILE_WIDTH).unwrap_or_default();
            let leaves: Vec<Hash> = entries.iter().map(|entry| leaf_hash(entry)).collect();
            let root = (!leaves.is_empty()).then(|| perfect_root(&leaves));
            let copy = || entries.iter().map(|entry| entry.to_vec()).collect::<Vec<_>>();
            Ok(Some(root.map(|root| (root, is_wanted(&bytes).then(copy)))))
        };
        in_order(range, read, |bundle, read| match read {
            None => each(bundle, Swept::Absent),
            Some(Some((root, entries))) if root == self.hash(1, bundle)? => {
                each(bundle, entries.map_or(Swept::Other, Swept::Records))
            }
            // The one that is not full, or one that is not the signed one.
            Some(_) => each(bundle, Swept::Records(self.entries(bundle)?)),
        })
    }

    /// The bytes of one record, proven.
    ///
    /// # Errors
    ///
    /// [`Error::IndexBeyond`], and those of [`Snapshot::entries`].
    pub fn entry(&mut self, index: u64) -> Result<Vec<u8>, Error> {
        let size = self.signed.size;
        let mut entries = self.entries(index / WIDTH)?;
        let at = usize::try_from(index % WIDTH).unwrap_or(usize::MAX);
        if index >= size || at >= entries.len() {
            return Err(Error::IndexBeyond { index, size });
        }
        Ok(entries.swap_remove(at))
    }

    /// One record, proven and parsed.
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::entry`], and [`Error::RecordMalformed`].
    pub fn record(&mut self, index: u64) -> Result<Record, Error> {
        parse(&self.entry(index)?, index)
    }

    /// One record with what proves it to others.
    ///
    /// # Errors
    ///
    /// Those of [`Snapshot::entry`].
    pub fn proof(&mut self, index: u64) -> Result<ProofFile, Error> {
        let record = self.entry(index)?;
        let size = self.signed.size;
        let path = proof::inclusion(&mut |start, height| self.node(start, height), index, size)?;
        Ok(ProofFile { record, index, path, note: self.note.clone() })
    }

    /// What shows that the first `old` records are the beginning of this log.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`] when this log is shorter.
    pub fn consistency(&mut self, old: u64) -> Result<Vec<Hash>, Error> {
        let size = self.signed.size;
        if old > size {
            return Err(Error::Truncated { signed: old, found: size });
        }
        proof::consistency(&mut |start, height| self.node(start, height), old, size)
    }

    /// The root that the log had when it held `size` records, by the tree that it has now.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`] when this log is shorter.
    pub fn root_at(&mut self, size: u64) -> Result<Hash, Error> {
        let found = self.signed.size;
        if size > found {
            return Err(Error::Truncated { signed: size, found });
        }
        subtree(&mut |start, height| self.node(start, height), 0..size)
    }

    /// The root of a perfect subtree, proven.
    ///
    /// # Errors
    ///
    /// Those of the tiles on the way.
    pub fn node(&mut self, start: u64, height: u8) -> Result<Hash, Error> {
        let (level, at, count) = place(start, height);
        let size = self.signed.size;
        let tile = self.tile(level, (start >> (8 * u32::from(level))) / WIDTH)?;
        perfect_of(tile, at, count).ok_or(Error::IndexBeyond { index: start, size })
    }

    fn hash(&mut self, level: u8, index: u64) -> Result<Hash, Error> {
        let size = self.signed.size;
        let at = usize::try_from(index % WIDTH).unwrap_or(usize::MAX);
        let tile = self.tile(level, index / WIDTH)?;
        tile.get(at).copied().ok_or(Error::IndexBeyond { index, size })
    }

    /// A tile that its parents, up to the signed root, have the hash of.
    fn tile(&mut self, level: u8, index: u64) -> Result<&[Hash], Error> {
        let at = usize::from(level);
        let full = self.signed.size.checked_shr(8 * u32::from(level) + 8).unwrap_or(0);
        if at >= self.open.len() || index > full {
            return Ok(&[]);
        }
        if index == full {
            return Ok(&self.open[at]);
        }
        if self.proven[at].as_ref().is_none_or(|(known, _)| *known != index) {
            let hashes = read_hashes(&self.folder, level, index, TILE_WIDTH)?;
            if perfect_root(&hashes) != self.hash(level + 1, index)? {
                return Err(Error::TileMismatch { level: level + 1, index });
            }
            self.proven[at] = Some((index, hashes));
        }
        Ok(self.proven[at].as_ref().map_or(&[], |(_, hashes)| hashes.as_slice()))
    }
}

/// A record's bytes as the record that they are.
///
/// # Errors
///
/// [`Error::RecordMalformed`] unless they are of the known schema.
pub fn parse(entry: &[u8], index: u64) -> Result<Record, Error> {
    serde_json::from_slice::<Record>(entry)
        .ok()
        .filter(|record| record.v == SCHEMA_VERSION)
        .ok_or(Error::RecordMalformed { index })
}

/// Where a subtree's hashes lie: tile level, place in the tile, and how many.
fn place(start: u64, height: u8) -> (u8, usize, usize) {
    let level = height / 8;
    let at = (start >> (8 * u32::from(level))) % WIDTH;
    (level, usize::try_from(at).unwrap_or(usize::MAX), 1 << (height % 8))
}

fn perfect_of(tile: &[Hash], at: usize, count: usize) -> Option<Hash> {
    Some(perfect_root(tile.get(at..at.checked_add(count)?)?))
}
