//! Reads single bundles of a log, each proven against the signed root when it is read: a log of any
//! length is open at once.
//!
//! What it proves: a record is the signed one in its place. What it does not: that all others are.

use std::path::{Path, PathBuf};

use super::Error;
use super::bundles::{Bundle, read_bundle};
use super::merkle::{Edge, Hash, TILE_WIDTH, empty_root, node_hash, perfect_root};
use super::note::{Checkpoint, NOTE_LEN_MAX_BYTES, Verifier};
use super::record::Record;
use super::tiles::{read_bounded, read_hashes};

/// A log at its newest checkpoint.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    checkpoint: Checkpoint,
    /// The checkpoint as a signed note.
    note: String,
    /// The tiles that are not full, whose root is the signed one.
    edge: Edge,
}

impl Reader {
    /// Opens the log in `folder` as its checkpoint has it.
    ///
    /// # Errors
    ///
    /// A checkpoint that is not of this key and log, or a right edge that is not of the signed tree.
    pub fn open(folder: &Path, verifier: &Verifier) -> Result<Self, Error> {
        let note = read_bounded(&folder.join("checkpoint"), NOTE_LEN_MAX_BYTES)?;
        let checkpoint = Checkpoint::parse(verifier.open(&note)?)?;
        if checkpoint.origin != verifier.name() {
            return Err(Error::CheckpointOrigin);
        }
        let mut levels = Vec::new();
        let mut count = checkpoint.size;
        for level in 0_u8..8 {
            let (index, width) = (count / TILE_WIDTH as u64, count % TILE_WIDTH as u64);
            let width = usize::try_from(width).unwrap_or(0);
            levels.push(match width {
                0 => Vec::new(),
                width => read_hashes(folder, level, index, width)?,
            });
            count = index;
        }
        let edge = Edge::of_open_tiles(checkpoint.size, levels);
        if edge.root() != checkpoint.root {
            return Err(Error::RootMismatch { size: checkpoint.size });
        }
        let note = String::from_utf8(note).map_err(|_| Error::NoteMalformed)?;
        Ok(Self { folder: folder.to_owned(), checkpoint, note, edge })
    }

    /// What was signed.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The signed note that says so.
    #[must_use]
    pub fn note(&self) -> &str {
        &self.note
    }

    /// How many bundles of 256 records there are; the last may be shorter.
    #[must_use]
    pub fn bundles_count(&self) -> u64 {
        self.checkpoint.size.div_ceil(TILE_WIDTH as u64)
    }

    /// The records of a bundle, from record `256 * index` on; `None` when their file is not there.
    ///
    /// # Errors
    ///
    /// The first record or hash that is not of the signed tree.
    pub fn bundle(&self, index: u64) -> Result<Option<Vec<Record>>, Error> {
        let Bundle { leaves, root, records, .. } =
            read_bundle(&self.folder, self.checkpoint.size, index)?;
        match root {
            Some(root) => self.prove(1, index, root)?,
            None if self.open_tile(0) == leaves => {}
            None => return Err(Error::TileMismatch { level: 0, index: index * TILE_WIDTH as u64 }),
        }
        Ok(records)
    }

    /// The proof that this log extends its state of `old` records, as a witness asks for it.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`] when the log is shorter, or a tile that is not there.
    pub fn consistency_proof(&self, old: u64) -> Result<Vec<Hash>, Error> {
        let size = self.checkpoint.size;
        if old > size {
            return Err(Error::Truncated { signed: old, found: size });
        }
        consistency(old, size, &|height, index| self.node(height, index))
    }

    /// The root that the log had at `size` records, which it has now.
    pub(super) fn root_at(&self, size: u64) -> Result<Hash, Error> {
        if size > self.checkpoint.size {
            return Err(Error::Truncated { signed: size, found: self.checkpoint.size });
        }
        root_at(size, &|height, index| self.node(height, index))
    }

    /// The node over `2^height` records, the `index`th of its height.
    fn node(&self, height: u32, index: u64) -> Result<Hash, Error> {
        let (level, inside) = (height / 8, height % 8);
        let count = self.checkpoint.size >> (8 * level);
        let (tile, at) =
            ((index << inside) / TILE_WIDTH as u64, (index << inside) % TILE_WIDTH as u64);
        let level = u8::try_from(level).map_err(|_| Error::Unavailable)?;
        let at = usize::try_from(at).unwrap_or(0);
        let hashes = match tile == count / TILE_WIDTH as u64 {
            true => self.open_tile(level).to_vec(),
            false => read_hashes(&self.folder, level, tile, TILE_WIDTH)?,
        };
        let below = hashes.get(at..at + (1 << inside)).ok_or(Error::Unavailable)?;
        Ok(perfect_root(below))
    }

    fn open_tile(&self, level: u8) -> &[Hash] {
        self.edge.open_tiles().get(usize::from(level)).map_or(&[], Vec::as_slice)
    }

    /// Holds the hash at `index` of a level against the signed tree, from tile to tile upwards.
    fn prove(&self, level: u8, index: u64, hash: Hash) -> Result<(), Error> {
        let (mut index, mut hash) = (index, hash);
        for level in level..8 {
            let tile = index / TILE_WIDTH as u64;
            let at = usize::try_from(index % TILE_WIDTH as u64).unwrap_or(0);
            let count = self.checkpoint.size >> (8 * u32::from(level));
            let is_open = tile == count / TILE_WIDTH as u64;
            let hashes = match is_open {
                true => self.open_tile(level).to_vec(),
                false => read_hashes(&self.folder, level, tile, TILE_WIDTH)?,
            };
            if hashes.get(at) != Some(&hash) {
                return Err(Error::TileMismatch { level, index });
            }
            if is_open {
                return Ok(());
            }
            (index, hash) = (tile, perfect_root(&hashes));
        }
        Err(Error::RootMismatch { size: self.checkpoint.size })
    }
}

/// Gives the node over `2^height` leaves, the `index`th of its height.
type Nodes<'a> = dyn Fn(u32, u64) -> Result<Hash, Error> + 'a;

/// The proof that the tree of `new` leaves extends that of `old`, which is not larger.
fn consistency(old: u64, new: u64, nodes: &Nodes<'_>) -> Result<Vec<Hash>, Error> {
    let mut proof = Vec::new();
    if old > 0 && old < new {
        descend(old, (0, new), true, nodes, &mut proof)?;
    }
    Ok(proof)
}

/// The root of the first `size` leaves.
fn root_at(size: u64, nodes: &Nodes<'_>) -> Result<Hash, Error> {
    if size == 0 { Ok(empty_root()) } else { root(0, size, nodes) }
}

/// `SUBPROOF(m, D[start:end], is_whole)`, where `m` counts from `start`.
fn descend(
    m: u64,
    (start, end): (u64, u64),
    is_whole: bool,
    nodes: &Nodes<'_>,
    proof: &mut Vec<Hash>,
) -> Result<(), Error> {
    if m == end - start {
        if !is_whole {
            proof.push(root(start, end, nodes)?);
        }
        return Ok(());
    }
    let middle = start + split(end - start);
    if start + m <= middle {
        descend(m, (start, middle), is_whole, nodes, proof)?;
        proof.push(root(middle, end, nodes)?);
    } else {
        descend(start + m - middle, (middle, end), false, nodes, proof)?;
        proof.push(root(start, middle, nodes)?);
    }
    Ok(())
}

/// `MTH(D[start:end])`; `start` is a multiple of the largest power of two that fits.
fn root(start: u64, end: u64, nodes: &Nodes<'_>) -> Result<Hash, Error> {
    let len = end - start;
    if len.is_power_of_two() {
        return nodes(len.ilog2(), start / len);
    }
    let middle = start + split(len);
    Ok(node_hash(&root(start, middle, nodes)?, &root(middle, end, nodes)?))
}

/// The largest power of two below `len`, which is at least 2.
fn split(len: u64) -> u64 {
    1 << (len - 1).ilog2()
}
