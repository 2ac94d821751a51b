//! Where a unit is computed: unpacked columns, products that were made on tiles, sums. Nothing is computed
//! here.

use core::mem::MaybeUninit;

use crate::gemm::{Lanes, Sums, UNIT_ROWS, UNIT_TILES};
use crate::packed::{BLOCK_LEN, SUPER_LEN, TILE_ROWS};
use crate::quantize::{PANEL_TOKENS, TILE_TOKENS};

/// Most blocks of an [`IntChunk`], whole super-blocks: 33 KB that stay in the first-level cache.
pub(crate) const INT_CHUNK_BLOCKS: usize = 24;

/// Columns of a [`FloatChunk`]: at least one block of every format.
pub(crate) const FLOAT_CHUNK_COLS: usize = 256;
/// Blocks of a super-block, which are multiplied on tiles in one go.
pub(crate) const SUPER_BLOCKS: usize = SUPER_LEN / BLOCK_LEN;
/// Tokens whose sums are kept while the chunks of a unit go by, whole panels and whole tiles: 68 KB.
pub(crate) const TOKENS_MAX: usize = 88 * PANEL_TOKENS;
const _: () = assert!(TOKENS_MAX.is_multiple_of(TILE_TOKENS));

/// Unpacked columns of a unit in an integer format.
#[repr(C, align(64))]
pub(crate) struct IntChunk {
    /// `[tile][column / 4][row][4]`
    pub(crate) bytes: [[[u8; 64]; INT_CHUNK_BLOCKS * 8]; UNIT_TILES],
    /// `[tile][sub-block]`
    pub(crate) scales: [[Lanes; INT_CHUNK_BLOCKS * 2]; UNIT_TILES],
    /// `[tile][block]`
    pub(crate) mins: [[Lanes; INT_CHUNK_BLOCKS]; UNIT_TILES],
}

impl IntChunk {
    pub(crate) fn zeroed() -> Self {
        Self {
            bytes: [[[0; 64]; INT_CHUNK_BLOCKS * 8]; UNIT_TILES],
            scales: [[[0.0; TILE_ROWS]; INT_CHUNK_BLOCKS * 2]; UNIT_TILES],
            mins: [[[0.0; TILE_ROWS]; INT_CHUNK_BLOCKS]; UNIT_TILES],
        }
    }
}

/// Products that were made on tiles: of a sub-block with a tile of rows, those that are stored and those
/// that are added. `[sub-block % 2][token][row]`
#[repr(C, align(64))]
pub(crate) struct TileDots(pub(crate) [[[i32; TILE_ROWS]; TILE_TOKENS]; 2]);

impl TileDots {
    const fn zeroed() -> Self {
        Self([[[0; TILE_ROWS]; TILE_TOKENS]; 2])
    }
}

/// Unpacked weights of four columns of a tile of rows, as tiles take them: `[row][4]`, signed bytes.
pub(crate) type Group = [u8; 64];

/// Those of a block: `[column / 4]`.
pub(crate) type TileWeights = [Group; BLOCK_LEN / 4];

/// A super-block of a tile of rows, unpacked.
#[repr(C, align(64))]
pub(crate) struct TileChunk {
    /// `[block]`
    pub(crate) weights: [TileWeights; SUPER_BLOCKS],
    /// `[sub-block]`
    pub(crate) scales: [Lanes; 2 * SUPER_BLOCKS],
    /// `[block]`
    pub(crate) mins: [Lanes; SUPER_BLOCKS],
}

impl TileChunk {
    pub(crate) const fn zeroed() -> Self {
        Self {
            weights: [[[0; 64]; BLOCK_LEN / 4]; SUPER_BLOCKS],
            scales: [[0.0; TILE_ROWS]; 2 * SUPER_BLOCKS],
            mins: [[0.0; TILE_ROWS]; SUPER_BLOCKS],
        }
    }
}

/// What products of several panels on tiles need.
pub(crate) struct Tiled {
    /// `[tile of rows]`
    pub(crate) chunks: [TileChunk; UNIT_TILES],
    pub(crate) dots: TileDots,
}

impl Tiled {
    pub(crate) fn zeroed() -> Self {
        Self { chunks: [const { TileChunk::zeroed() }; UNIT_TILES], dots: TileDots::zeroed() }
    }
}

/// What lies between the stages of products of one panel on tiles: so little that all of it stays at
/// hand beside a neighbour on the same core.
#[repr(C, align(64))]
pub(crate) struct TileRing {
    /// `[sub-block % 2]`: of the one that is unpacked and of the one that is multiplied.
    pub(crate) weights: [TileWeights; 2],
    pub(crate) dots: TileDots,
    /// `[sub-block % SUBS]`
    pub(crate) scales: [Lanes; Self::SUBS],
    /// `[sub-block % SUBS]`
    pub(crate) mins: [Lanes; Self::SUBS],
}

impl TileRing {
    /// One that is unpacked, one that is multiplied, one that is stored and one that is added.
    pub(crate) const SUBS: usize = 4;

    pub(crate) const fn zeroed() -> Self {
        let (weights, lanes) = ([[[0; 64]; BLOCK_LEN / 4]; 2], [[0.0; TILE_ROWS]; Self::SUBS]);
        Self { weights, dots: TileDots::zeroed(), scales: lanes, mins: lanes }
    }
}

/// Unpacked columns of a unit as floats.
#[repr(C, align(64))]
pub(crate) struct FloatChunk {
    /// `[tile][column]`
    pub(crate) weights: [[Lanes; FLOAT_CHUNK_COLS]; UNIT_TILES],
    /// A tile in an integer format on its way to floats: its bytes and scales are the first ones.
    pub(crate) ints: IntChunk,
}

impl FloatChunk {
    pub(crate) fn zeroed() -> Self {
        Self {
            weights: [[[0.0; TILE_ROWS]; FLOAT_CHUNK_COLS]; UNIT_TILES],
            ints: IntChunk::zeroed(),
        }
    }
}

/// What a thread keeps from unit to unit: it is made, and its pages are touched, once a region.
pub(crate) struct Memory {
    pub(crate) chunks: Chunks,
    /// For as many units as are worked on together.
    pub(crate) rooms: [Room; 2],
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self { chunks: Chunks::default(), rooms: [const { Room::new() }; 2] }
    }
}

/// Unpacked columns: what a kind of product needs is made when it is needed.
#[derive(Default)]
pub(crate) struct Chunks {
    pub(crate) int: Option<IntChunk>,
    pub(crate) tiled: Option<Tiled>,
    pub(crate) ring: Option<TileRing>,
    pub(crate) float: Option<FloatChunk>,
}

/// The sums of some tokens while the chunks of a unit go by; cleared where and when they are
/// first used, since clearing all of them ahead would be felt.
pub(crate) struct Room {
    sums: [MaybeUninit<Sums>; TOKENS_MAX],
    /// So many of `sums`, from the first on, were written.
    written: usize,
}

impl Room {
    pub(crate) const fn new() -> Self {
        Self { sums: [const { MaybeUninit::uninit() }; TOKENS_MAX], written: 0 }
    }

    /// Forgets the sums of the last unit.
    pub(crate) fn clear(&mut self) {
        self.written = 0;
    }

    /// Returns the sums of some tokens, zero when `is_first`.
    ///
    /// # Panics
    ///
    /// Panics if some of them were never asked for as the first.
    pub(crate) fn part(&mut self, first: usize, len: usize, is_first: bool) -> &mut [Sums] {
        let part = &mut self.sums[first..][..len];
        if is_first && first <= self.written {
            for sums in &mut *part {
                sums.write([0.0; UNIT_ROWS]);
            }
            self.written = self.written.max(first + len);
        }
        assert!(first + len <= self.written, "sums are cleared before they are added to");
        // SAFETY: all sums below `written` were written, and the assertion keeps the part there.
        unsafe { part.assume_init_mut() }
    }
}
