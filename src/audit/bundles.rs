//! Reads the bundles of a log in order, on all processors: hashes, checks and parses each beside the
//! others, a bounded number ahead of who asks.

use std::path::Path;

use super::Error;
use super::lanes::in_order;
use super::merkle::{Edge, Hash, TILE_WIDTH, leaf_hash, perfect_root};
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

/// What of a log of some size is not full, and is replaced when the log grows. What is wrong with it is told
/// when its turn comes.
pub(super) struct Open {
    /// The last bundle; `None` if all are full.
    bundle: Option<Result<Bundle, Error>>,
    tiles: Result<Vec<OpenTile>, Error>,
}

/// The index of the open tile of a level, and the hashes that are in it.
type OpenTile = (u64, Vec<Hash>);

impl Open {
    /// Reads what is open in a log of `size` records.
    pub(super) fn read(folder: &Path, size: u64) -> Self {
        let is_open = !size.is_multiple_of(TILE_WIDTH as u64);
        let bundle = is_open.then(|| read_bundle(folder, size, size / TILE_WIDTH as u64));
        Self { bundle, tiles: read_open_tiles(folder, size) }
    }

    /// Holds the open tiles against those that the records give.
    pub(super) fn compare(self, edge: &Edge) -> Result<(), Error> {
        for ((level, want), (tile, got)) in (0_u8..).zip(edge.open_tiles()).zip(self.tiles?) {
            if let Some(at) = want.iter().zip(&got).position(|(want, got)| want != got) {
                let index = tile * TILE_WIDTH as u64 + at as u64;
                return Err(Error::TileMismatch { level, index });
            }
        }
        Ok(())
    }
}

/// Reads the open tile of each level, the lowest first.
fn read_open_tiles(folder: &Path, size: u64) -> Result<Vec<OpenTile>, Error> {
    let (mut tiles, mut count) = (Vec::new(), size);
    for level in 0_u8.. {
        let index = count / TILE_WIDTH as u64;
        let width = usize::try_from(count % TILE_WIDTH as u64).unwrap_or(TILE_WIDTH);
        let hashes = match width {
            0 => Vec::new(),
            _ => read_hashes(folder, level, index, width)?,
        };
        tiles.push((index, hashes));
        if index == 0 {
            break;
        }
        count = index;
    }
    Ok(tiles)
}

/// Gives the bundles of a log of `size` records to `each`, in order, until it fails; the one that is open was
/// read before.
pub(super) fn read_in_order(
    folder: &Path,
    size: u64,
    open: &mut Open,
    mut each: impl FnMut(Bundle) -> Result<(), Error>,
) -> Result<(), Error> {
    let read = |index| read_bundle(folder, size, index);
    in_order(0..size / TILE_WIDTH as u64, read, |_, bundle| each(bundle).map(|()| true))?;
    open.bundle.take().map_or(Ok(()), |bundle| each(bundle?))
}

/// Reads a bundle of a log of `size` records, and holds its records against its hash tile.
fn read_bundle(folder: &Path, size: u64, index: u64) -> Result<Bundle, Error> {
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
