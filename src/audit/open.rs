//! What of a log is not full: its last bundle, and a tile of hashes on each level. A log that grows replaces
//! them, so a reader takes them before all else; what is full stays. Nothing is written here.

use std::path::Path;

use super::Error;
use super::bundles::{Bundle, read_bundle};
use super::merkle::{Edge, Hash, TILE_WIDTH};
use super::tiles::{compare, read_hashes};

/// What is not full in a log of some size. What is wrong with it is told when its turn comes.
pub(super) struct Open {
    /// The last bundle; `None` if all are full.
    pub(super) bundle: Option<Result<Bundle, Error>>,
    /// Of each level, the lowest first, the index of its tile and the hashes that are in it.
    tiles: Result<Vec<(u64, Vec<Hash>)>, Error>,
}

impl Open {
    /// Reads what is open in a log of `size` records.
    pub(super) fn read(folder: &Path, size: u64) -> Self {
        let is_open = !size.is_multiple_of(TILE_WIDTH as u64);
        let bundle = is_open.then(|| read_bundle(folder, size, size / TILE_WIDTH as u64));
        Self { bundle, tiles: read_tiles(folder, size) }
    }

    /// Holds the tiles against those that the records give.
    ///
    /// # Errors
    ///
    /// What was wrong when they were read, or [`Error::TileMismatch`] with the place.
    pub(super) fn compare(self, edge: &Edge) -> Result<(), Error> {
        let tiles = self.tiles?;
        for (level, want) in (0_u8..).zip(edge.open_tiles()) {
            let (index, got) =
                tiles.get(usize::from(level)).map_or((0, &[][..]), |(at, it)| (*at, it));
            compare(level, index, want, got)?;
        }
        Ok(())
    }
}

fn read_tiles(folder: &Path, size: u64) -> Result<Vec<(u64, Vec<Hash>)>, Error> {
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
