//! Matrix products with AMX; see [`crate::gemm()`] for the formula.
//!
//! The products of a super-block are made on tiles: 16 tokens times two tiles of rows. They are read back
//! as vectors with a row in each lane, and scaled and added as AVX-512 does it: the bits are the same.
//! Only K formats with minima, whose bytes need no zero taken off and whose scales are for a whole block,
//! and only many tokens; all else is AVX-512's.
//!
//! The CPU makes products on tiles or adds vectors, not both at a time: a block takes 75 cycles for the
//! one and 75 for the other (both measured alone), against some 210 of AVX-512's dot products.

use core::arch::x86_64::*;

use super::tiles::{self, Shapes};
use crate::avx512::{load_lanes, store_lanes};
use crate::gemm::{
    DIRECT_TOKENS_MAX, FloatChunk, IntChunk, Kernel, SUPER_BLOCKS, Sums, TileCols, TileDots,
};
use crate::isa::AmxInt8;
use crate::packed::{IntForm, IntTile};
use crate::prefetch::Ahead;
use crate::quantize::{Panel, TilePanel};

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

/// Tokens whose sums are in registers while products are added.
const FOLD_TOKENS: usize = 8;

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
    // Checked here, the lengths let the compiler keep all sums in registers; block by block, they do not.
    let whole = [panel.quants.len(), panel.scales.len(), panel.biases.len(), panel.sums.len()];
    assert!(whole.into_iter().all(|len| len >= SUPER_BLOCKS), "a super-block is whole");
    let mut asked = *ahead;
    let [one, other] = &mut dots.0;
    let [weights, others] = chunk.bytes.each_ref().map(|bytes| bytes.as_chunks().0);
    let blocks = panel.quants.iter().zip(weights).zip(others).zip(one).zip(other);
    for ((((x, weights), others), one), other) in blocks {
        asked.step();
        // SAFETY: the caller's word is passed on.
        unsafe { tiles::multiply(x, [weights, others], [one, other]) };
    }
    let (eights, _) = sums.as_chunks_mut();
    if let [first, rest @ ..] = eights {
        fold::<0>(chunk, panel, dots, &mut asked, first);
        if let [second, ..] = rest {
            fold::<1>(chunk, panel, dots, &mut asked, second);
        }
    }
    *ahead = asked;
}

/// Adds what was multiplied to the sums of eight tokens of the panel. Each block is written out: in a
/// loop the compiler moves every sum once more. Inlined: alone, it knows so much of its arguments that it
/// reads what all blocks need first, for which there are no registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn fold<const EIGHT: usize>(
    chunk: &IntChunk,
    panel: &TilePanel<'_>,
    dots: &TileDots,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums; FOLD_TOKENS],
) {
    let mut one = [_mm512_setzero_ps(); FOLD_TOKENS];
    let mut other = one;
    for ((one, other), sums) in one.iter_mut().zip(&mut other).zip(&*sums) {
        let (lanes, _) = sums.as_chunks();
        (*one, *other) = (load_lanes(&lanes[0]), load_lanes(&lanes[1]));
    }
    macro_rules! blocks {
        ($($block:literal)*) => {
            $(
                ahead.step();
                fold_block::<$block, EIGHT>(chunk, panel, dots, &mut one, &mut other);
            )*
        };
    }
    const { assert!(SUPER_BLOCKS == 8, "all blocks are written out") };
    blocks!(0 1 2 3 4 5 6 7);
    for ((one, other), sums) in one.into_iter().zip(other).zip(sums) {
        let (lanes, _) = sums.as_chunks_mut();
        store_lanes(&mut lanes[0], one);
        store_lanes(&mut lanes[1], other);
    }
}

/// Adds a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn fold_block<const BLOCK: usize, const EIGHT: usize>(
    chunk: &IntChunk,
    panel: &TilePanel<'_>,
    dots: &TileDots,
    one: &mut [__m512; FOLD_TOKENS],
    other: &mut [__m512; FOLD_TOKENS],
) {
    let [scales, biases, x_sums] = [panel.scales, panel.biases, panel.sums]
        .map(|floats| &floats[BLOCK].as_chunks::<FOLD_TOKENS>().0[EIGHT]);
    let [dots, other_dots] =
        dots.0.each_ref().map(|dots| &dots[BLOCK].as_chunks::<FOLD_TOKENS>().0[EIGHT]);
    let [scale, other_scale] = chunk.scales.each_ref().map(|scales| &scales[BLOCK]);
    let [min, other_min] = chunk.mins.each_ref().map(|mins| &mins[BLOCK]);
    let (scale, other_scale) = (load_lanes(scale), load_lanes(other_scale));
    let (min, other_min) = (load_lanes(min), load_lanes(other_min));
    for token in 0..FOLD_TOKENS {
        let (x_scale, bias) = (_mm512_set1_ps(scales[token]), _mm512_set1_ps(biases[token]));
        let x_sum = _mm512_set1_ps(x_sums[token]);
        let steps = _mm512_fmadd_ps(load_dots(&dots[token]), x_scale, bias);
        let total = _mm512_fmadd_ps(steps, scale, one[token]);
        one[token] = _mm512_fmadd_ps(x_sum, min, total);
        let steps = _mm512_fmadd_ps(load_dots(&other_dots[token]), x_scale, bias);
        let total = _mm512_fmadd_ps(steps, other_scale, other[token]);
        other[token] = _mm512_fmadd_ps(x_sum, other_min, total);
    }
}

/// Loads products that started at [`crate::quantize::MAGIC_BITS`], as what their bits are as floats.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_dots(dots: &[i32; 16]) -> __m512 {
    // SAFETY: `dots` is 64 readable bytes, and `loadu` takes any alignment.
    unsafe { _mm512_loadu_ps(dots.as_ptr().cast()) }
}
