//! Reads the full bundles of a log in order, on all processors: hashes, checks and parses each beside the
//! others, a bounded number ahead of who asks.

use std::path::Path;

use super::Error;
use super::lanes::in_order;
use super::merkle::{Hash, TILE_WIDTH, leaf_hash, perfect_root};
use super::record::{Record, SCHEMA_VERSION};
use super::tiles::{read_entries, read_hashes};

/// A bundle whose records are those of its hash tile.
#[derive(Debug)]
pub(super) struct Bundle {
    /// Index of its first record.
    pub(super) first: u64,
    /// Hashes of the records.
    pub(super) leaves: Vec<Hash>,
    /// The root over a full bundle's hashes.
    pub(super) root: Option<Hash>,
    /// The records; `None` when their file is not there.
    pub(super) records: Option<Vec<Record>>,
}

/// Gives the full bundles of a log of `size` records to `each`, in order, until it fails.
pub(super) fn read_in_order(
    folder: &Path,
    size: u64,
    mut each: impl FnMut(Bundle) -> Result<(), Error>,
) -> Result<(), Error> {
    let read = |index| read_bundle(folder, size, index);
    in_order(0..size / TILE_WIDTH as u64, read, |_, bundle| each(bundle).map(|()| true))
}

/// Reads a bundle of a log of `size` records, and holds its records against its hash tile.
pub(super) fn read_bundle(folder: &Path, size: u64, index: u64) -> Result<Bundle, Error> {
    let first = index * TILE_WIDTH as u64;
    let width = usize::try_from(size - first).map_or(TILE_WIDTH, |left| left.min(TILE_WIDTH));
    let leaves = read_hashes(folder, 0, index, width)?;
    let root = (width == TILE_WIDTH).then(|| perfect_root(&leaves));
    let entries = match read_entries(folder, index, width) {
        Err(Error::TileMissing { .. }) => return Ok(Bundle { first, leaves, root, records: None }),
        entries => entries?,
    };
    let mut records = Vec::with_capacity(width);
    for ((index, entry), hash) in (first..).zip(&entries).zip(&leaves) {
        if leaf_hash(entry) != *hash {
            return Err(Error::TileMismatch { level: 0, index });
        }
        records.push(parse(entry, index)?);
    }
    Ok(Bundle { first, leaves, root, records: Some(records) })
}

fn parse(entry: &[u8], index: u64) -> Result<Record, Error> {
    serde_json::from_slice::<Record>(entry)
        .ok()
        .filter(|record| record.v == SCHEMA_VERSION)
        .ok_or(Error::RecordMalformed { index })
}
