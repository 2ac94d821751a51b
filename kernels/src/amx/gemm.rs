//! Matrix products with AMX; see [`crate::gemm()`] for the formula.
//!
//! The products of a sub-block (a block, or half of one where that has its own scale) are made on tiles:
//! 16 tokens times a tile of rows. They are read back as vectors with a row in each lane, and scaled and
//! added as AVX-512 does it: the bits are the same. Only the forms that [`crate::quantize::is_tiled`], and
//! as many tokens as [`crate::quantize::are_tiled`]; all else is AVX-512's.
//!
//! Nothing waits for the products just made: those of a sub-block are stored while the next ones are
//! made, and added a sub-block later, across tiles and panels. What lies between is small, 2 KB of
//! products and 10 KB of weights, since a neighbour on the same core leaves half of its first cache.
//!
//! What limits this, measured on Emerald Rapids: while tiles are at work, only one of the two ports of
//! 512-bit vectors multiplies, and each row of a tile that is stored takes a step of the other. So the
//! products start from zero, and what turns them into floats is an addition, which goes to the other
//! port; three multiplications are left for each product of a block, or two for one of half a block.

use core::arch::x86_64::*;

use super::add::add_tokens;
use super::direct;
use super::tiles::{self, Shapes};
use crate::avx512::{load_lanes, store_lanes};
use crate::gemm::{
    DIRECT_TOKENS_MAX, FloatChunk, IntChunk, Kernel, SUPER_BLOCKS, Sums, TileChunk, TileCols,
    TileDots, TileRing, TileWork,
};
use crate::isa::AmxInt8;
use crate::packed::{IntForm, IntTile};
use crate::prefetch::{Ahead, Beyond};
use crate::quantize::{Panel, TILE_TOKENS, TilePanel, TileTokens};

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

    fn unpack_tiled(self, tile: &IntTile<'_>, chunk: &mut TileChunk) {
        let TileChunk { weights, scales, mins } = chunk;
        self.avx512().unpack_to::<true>(tile, weights.as_flattened_mut(), scales, mins);
    }

    fn multiply_tiled(
        self,
        form: IntForm,
        chunk: &TileChunk,
        work: &TileWork<'_>,
        dots: &mut TileDots,
        ahead: &mut Ahead<'_>,
        sums: &mut [Sums],
    ) {
        // SAFETY: `AmxInt8` proves that the CPU has the features; the driver calls this in `with_tiles`.
        unsafe { multiply_tiled(form, chunk, work, dots, ahead, sums) }
    }

    fn multiply_direct_tiled(
        self,
        tiles: &[IntTile<'_>],
        x: &TileTokens<'_>,
        ring: &mut TileRing,
        beyond: Beyond,
        sums: &mut [Sums; TILE_TOKENS],
    ) {
        // SAFETY: `AmxInt8` proves that the CPU has the features; the driver calls this in `with_tiles`.
        unsafe { direct::multiply(tiles, x, ring, beyond, sums) }
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
    form: IntForm,
    chunk: &TileChunk,
    work: &TileWork<'_>,
    dots: &mut TileDots,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    if let Some(sums) = sums.first_chunk_mut::<TILE_TOKENS>() {
        // SAFETY: the caller's word is passed on.
        unsafe { by_form(form, chunk, work, dots, ahead, sums) };
    } else if let Some(sums) = sums.first_chunk_mut::<{ TILE_TOKENS / 2 }>() {
        // SAFETY: as above.
        unsafe { by_form(form, chunk, work, dots, ahead, sums) };
    } else {
        unreachable!("there are sums of 8 or 16 tokens");
    }
}

/// # Safety
///
/// The thread has [`Shapes`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn by_form<const TOKENS: usize>(
    form: IntForm,
    chunk: &TileChunk,
    work: &TileWork<'_>,
    dots: &mut TileDots,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums; TOKENS],
) {
    if form.scales.has_min() {
        // SAFETY: the caller's word is passed on.
        unsafe { add_to::<TOKENS, 8>(chunk, work, dots, ahead, sums) };
    } else {
        // SAFETY: as above.
        unsafe { add_to::<TOKENS, 4>(chunk, work, dots, ahead, sums) };
    }
}

/// Adds the first `TOKENS` tokens of a panel times a tile of rows to their sums; `GROUPS` groups of four
/// columns are a sub-block, and there are minima if that is a block.
///
/// # Safety
///
/// The thread has [`Shapes`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn add_to<const TOKENS: usize, const GROUPS: usize>(
    chunk: &TileChunk,
    work: &TileWork<'_>,
    TileDots(dots): &mut TileDots,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums; TOKENS],
) {
    let TileWork { index, panel, has_begun, next } = *work;
    let TilePanel { quants, scales: x_scales, biases: x_biases, sums: x_sums } = *panel;
    let TileChunk { weights, scales, mins } = chunk;
    // Sub-blocks of a block, and the last one of a super-block.
    let subs = 8 / GROUPS;
    let last = SUPER_BLOCKS * subs - 1;
    let mut asked = *ahead;
    macro_rules! multiply {
        ($quants:expr, $weights:expr, $sub:expr, $place:expr) => {
            let weights = $weights.as_flattened()[$sub * GROUPS..].first_chunk::<GROUPS>();
            let weights = weights.expect("a super-block has its sub-blocks");
            let quants = &$quants[$sub / subs];
            // SAFETY: the caller's word is passed on.
            unsafe { tiles::multiply::<{ $place }, GROUPS>(quants, $sub % subs, weights) }
        };
    }
    macro_rules! keep {
        ($place:expr) => {
            // SAFETY: the caller's word is passed on.
            unsafe { tiles::store::<{ $place }>(&mut dots[$place]) }
        };
    }
    if !has_begun {
        multiply!(quants, weights, 0, 0);
        multiply!(quants, weights, 1, 1);
        keep!(0);
    }
    let mut totals = [_mm512_setzero_ps(); TOKENS];
    for (total, sums) in totals.iter_mut().zip(&*sums) {
        *total = load_lanes(&sums.as_chunks().0[index]);
    }
    macro_rules! add {
        ($sub:expr, $place:expr) => {
            let block = $sub / subs;
            if $sub % subs == 0 {
                asked.step();
            }
            let scale = load_lanes(&scales[$sub]);
            let min = if subs == 1 { Some(load_lanes(&mins[block])) } else { None };
            let x = [&x_scales[block], &x_biases[block], &x_sums[block]];
            let dots = &dots[$place];
            add_tokens!(totals, dots, x, scale, min, TOKENS);
        };
    }
    macro_rules! subs {
        ($($sub:literal)*) => {$(
            multiply!(quants, weights, $sub + 2, $sub % 2);
            keep!(($sub + 1) % 2);
            add!($sub, $sub % 2);
        )*};
    }
    const { assert!(SUPER_BLOCKS == 8, "all sub-blocks are written out") };
    subs!(0 1 2 3 4 5);
    if subs == 2 {
        subs!(6 7 8 9 10 11 12 13);
    }
    if let Some((chunk, panel)) = next {
        multiply!(panel.quants, chunk.weights, 0, 0);
    }
    keep!(1);
    add!(last - 1, 0);
    if let Some((chunk, panel)) = next {
        multiply!(panel.quants, chunk.weights, 1, 1);
        keep!(0);
    }
    add!(last, 1);
    for (sums, total) in sums.iter_mut().zip(totals) {
        store_lanes(&mut sums.as_chunks_mut().0[index], total);
    }
    *ahead = asked;
}
