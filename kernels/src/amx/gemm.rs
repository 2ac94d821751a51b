//! Matrix products with AMX; see [`crate::gemm()`] for the formula.
//!
//! The products of a block are made on tiles: 16 tokens times a tile of rows. They are read back as vectors
//! with a row in each lane, and scaled and added as AVX-512 does it: the bits are the same. Only K formats with
//! minima, whose bytes need no zero taken off and whose scales are for a whole block, and only many tokens; all
//! else is AVX-512's.
//!
//! Nothing waits for the products just made: those of a block are stored while the next ones are made, and added
//! a block later. They take 2 KB, since a neighbour on the same core leaves half of its first cache: with those
//! of a super-block and two tiles of rows between (16 KB), many tokens took a quarter to a third longer beside
//! one, longer than AVX-512's dot products.

use core::arch::x86_64::*;

use super::tiles::{self, Shapes, Weights};
use crate::avx512::{here, load_lanes, store_lanes};
use crate::gemm::{
    DIRECT_TOKENS_MAX, FloatChunk, IntChunk, Kernel, SUPER_BLOCKS, Sums, TileCols, TileDots,
    UNIT_TILES,
};
use crate::isa::AmxInt8;
use crate::packed::{IntForm, IntTile};
use crate::prefetch::Ahead;
use crate::quantize::{Panel, TILE_TOKENS, TilePanel};

impl Kernel for AmxInt8 {
    fn unpack_int(self, tile: &IntTile<'_>, chunk: &mut IntChunk, index: usize) {
        self.avx512().unpack_int(tile, chunk, index);
    }

    fn multiply_int(
        self,
        form: IntForm,
        tiles: usize,
        chunk: &IntChunk,
        panel: &Panel<'_>,
        ahead: &mut Ahead<'_>,
        sums: &mut [Sums],
    ) {
        self.avx512().multiply_int(form, tiles, chunk, panel, ahead, sums);
    }

    const DIRECT_TOKENS: usize = DIRECT_TOKENS_MAX;

    fn multiply_direct(
        self,
        tiles: &[IntTile<'_>],
        panels: &[Panel<'_>],
        ahead: &mut Ahead<'_>,
        sums: &mut [Sums],
    ) {
        self.avx512().multiply_direct(tiles, panels, ahead, sums);
    }

    const TILED: bool = true;

    fn with_tiles(self, work: impl FnOnce()) {
        // SAFETY: `AmxInt8` proves that the CPU has AMX, and that the kernel has given leave.
        let _shapes = unsafe { Shapes::set() };
        work();
    }

    fn multiply_tiled(
        self,
        chunk: &IntChunk,
        panel: &TilePanel<'_>,
        dots: &mut TileDots,
        ahead: &mut Ahead<'_>,
        sums: &mut [Sums],
    ) {
        // SAFETY: `AmxInt8` proves that the CPU has the features; the driver calls this in `with_tiles`.
        unsafe { multiply_tiled(chunk, panel, dots, ahead, sums) }
    }

    fn unpack_float(self, tile: &TileCols<'_>, len: usize, chunk: &mut FloatChunk, index: usize) {
        self.avx512().unpack_float(tile, len, chunk, index);
    }

    fn multiply_float(self, tiles: usize, chunk: &FloatChunk, x: &[&[f32]], sums: &mut [Sums]) {
        self.avx512().multiply_float(tiles, chunk, x, sums);
    }
}

/// See [`Kernel::multiply_tiled`].
///
/// # Safety
///
/// The thread has [`Shapes`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn multiply_tiled(
    chunk: &IntChunk,
    panel: &TilePanel<'_>,
    dots: &mut TileDots,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    let mut asked = *ahead;
    for index in 0..UNIT_TILES {
        if let Some(sums) = sums.first_chunk_mut::<TILE_TOKENS>() {
            // SAFETY: the caller's word is passed on.
            unsafe { tokens_times_tile(index, chunk, panel, dots, &mut asked, sums) };
        } else if let Some(sums) = sums.first_chunk_mut::<{ TILE_TOKENS / 2 }>() {
            // SAFETY: as above.
            unsafe { tokens_times_tile(index, chunk, panel, dots, &mut asked, sums) };
        }
    }
    *ahead = asked;
}

/// Adds the first `TOKENS` tokens of a panel times tile `index` of a chunk to their sums.
///
/// # Safety
///
/// The thread has [`Shapes`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn tokens_times_tile<const TOKENS: usize>(
    index: usize,
    chunk: &IntChunk,
    panel: &TilePanel<'_>,
    TileDots(dots): &mut TileDots,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums; TOKENS],
) {
    let whole = [panel.quants.len(), panel.scales.len(), panel.biases.len(), panel.sums.len()];
    assert!(whole.into_iter().all(|len| len >= SUPER_BLOCKS), "a super-block is whole");
    let weights: &[Weights] = chunk.bytes[index].as_chunks().0;
    let mut totals = [_mm512_setzero_ps(); TOKENS];
    for (total, sums) in totals.iter_mut().zip(&*sums) {
        *total = load_lanes(&sums.as_chunks().0[index]);
    }
    macro_rules! multiply {
        ($block:expr) => {
            ahead.step();
            // SAFETY: the caller's word is passed on.
            unsafe { tiles::multiply::<{ $block % 2 }>(&panel.quants[$block], &weights[$block]) }
        };
    }
    macro_rules! store {
        ($block:expr) => {
            // SAFETY: the caller's word is passed on.
            unsafe { tiles::store::<{ $block % 2 }>(&mut dots[$block % 2]) }
        };
    }
    macro_rules! add {
        ($block:expr) => {
            let [x_scales, x_biases, x_sums] =
                [panel.scales, panel.biases, panel.sums].map(|floats| &floats[$block]);
            let scale = load_lanes(&chunk.scales[index][$block]);
            let min = load_lanes(&chunk.mins[index][$block]);
            for token in 0..TOKENS {
                let x_scale = _mm512_set1_ps(x_scales[token]);
                let x_bias = _mm512_set1_ps(x_biases[token]);
                let dots = load_dots(&dots[$block % 2][token]);
                let total =
                    _mm512_fmadd_ps(_mm512_fmadd_ps(dots, x_scale, x_bias), scale, totals[token]);
                let total = _mm512_fmadd_ps(_mm512_set1_ps(x_sums[token]), min, total);
                // Without this the compiler loads what all tokens need first, and has no registers left.
                totals[token] = _mm512_castsi512_ps(here(_mm512_castps_si512(total)));
            }
        };
    }
    macro_rules! blocks {
        ($($block:literal)*) => {$(
            multiply!($block + 2);
            store!($block + 1);
            add!($block);
        )*};
    }
    const { assert!(SUPER_BLOCKS == 8, "all blocks are written out") };
    multiply!(0);
    multiply!(1);
    store!(0);
    blocks!(0 1 2 3 4 5);
    store!(7);
    add!(6);
    add!(7);
    for (sums, total) in sums.iter_mut().zip(totals) {
        store_lanes(&mut sums.as_chunks_mut().0[index], total);
    }
}

/// Loads products that started at [`crate::quantize::MAGIC_BITS`], as what their bits are as floats.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_dots(dots: &[i32; 16]) -> __m512 {
    // SAFETY: `dots` is 64 readable bytes, and `loadu` takes any alignment.
    unsafe { _mm512_loadu_ps(dots.as_ptr().cast()) }
}
