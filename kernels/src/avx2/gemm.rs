//! Matrix products with AVX2; see [`crate::gemm()`] for the formula.
//!
//! A tile times two or three tokens at a time, so many as have their sums in registers; what is read of a
//! token serves both halves of the tile. `maddubs` adds two products of an unsigned and a signed byte in 16
//! bits; as many of them are added in 16 bits as cannot overflow, given the bits of the weights. Bytes of
//! 8 bits are multiplied nibble by nibble.

#![expect(clippy::needless_range_loop, reason = "one index for several arrays of registers")]

use core::arch::x86_64::*;
use core::ops::Range;

use super::unpack::{
    self, HalfLanes, HalfLine, StepScales, group_bytes, high_part, load, load_lanes, low_part,
    store_lanes,
};
use crate::gemm::{FloatChunk, IntChunk, Kernel, Lanes, Sums, TileCols, by_form};
use crate::isa::Avx2Fma;
use crate::packed::{BLOCK_LEN, IntForm, IntTile};
use crate::prefetch::{self, Ahead};
use crate::quantize::{MAGIC_BITS, Panel};
use crate::reference::Plain;

impl Kernel for Avx2Fma {
    fn unpack_int(self, tile: &IntTile<'_>, chunk: &mut IntChunk, index: usize) {
        // SAFETY: `Avx2Fma` proves that the CPU has the features.
        unsafe { unpack::int(tile, chunk, index) }
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
        // SAFETY: `Avx2Fma` proves that the CPU has the features.
        unsafe { multiply_int(form, tiles, chunk, panel, ahead, sums) }
    }

    const DIRECT_TOKENS: usize = 1;

    fn multiply_direct(
        self,
        tiles: &[IntTile<'_>],
        panels: &[Panel<'_>],
        ahead: &mut Ahead<'_>,
        sums: &mut [Sums],
    ) {
        let [panel] = panels else { unreachable!("one panel at a time") };
        let [sums] = sums else { unreachable!("one token at a time") };
        for (tile, sums) in tiles.iter().zip(sums.as_chunks_mut().0) {
            // SAFETY: `Avx2Fma` proves that the CPU has the features.
            unsafe { multiply_one(tile, panel, ahead, sums) }
        }
    }

    fn unpack_float(self, tile: &TileCols<'_>, len: usize, chunk: &mut FloatChunk, index: usize) {
        // SAFETY: `Avx2Fma` proves that the CPU has the features.
        let is_done = unsafe { unpack::float(tile, len, chunk, index) };
        if !is_done {
            Plain.unpack_float(tile, len, chunk, index);
        }
    }

    fn multiply_float(self, tiles: usize, chunk: &FloatChunk, x: &[&[f32]], sums: &mut [Sums]) {
        for tile in 0..tiles {
            // SAFETY: `Avx2Fma` proves that the CPU has the features.
            unsafe { multiply_float(tile, &chunk.weights[tile], x, sums) }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn multiply_int(
    form: IntForm,
    tiles: usize,
    chunk: &IntChunk,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    match (form.bits, form.scales.has_min()) {
        (4, false) => by_width::<4, 1, false>(tiles, chunk, panel, ahead, sums),
        (5, false) => by_width::<5, 1, false>(tiles, chunk, panel, ahead, sums),
        (6, false) => by_width::<6, 2, false>(tiles, chunk, panel, ahead, sums),
        (4, true) => by_width::<4, 1, true>(tiles, chunk, panel, ahead, sums),
        (5, true) => by_width::<5, 1, true>(tiles, chunk, panel, ahead, sums),
        _ => by_width::<8, 1, false>(tiles, chunk, panel, ahead, sums),
    }
}

#[target_feature(enable = "avx2,fma")]
fn by_width<const BITS: u32, const SUBS: usize, const MIN: bool>(
    tiles: usize,
    chunk: &IntChunk,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    // Sums of 4-bit weights stay in 16 bits for a whole block, which leaves room for a third token.
    match (panel.width, BITS == 4) {
        (1, _) => panel_times_unit::<1, 1, 0, 0, BITS, SUBS, MIN>(tiles, chunk, panel, ahead, sums),
        (2, _) => panel_times_unit::<2, 2, 0, 0, BITS, SUBS, MIN>(tiles, chunk, panel, ahead, sums),
        (3, true) => {
            panel_times_unit::<3, 3, 0, 0, BITS, SUBS, MIN>(tiles, chunk, panel, ahead, sums)
        }
        (3, false) => {
            panel_times_unit::<3, 2, 1, 0, BITS, SUBS, MIN>(tiles, chunk, panel, ahead, sums)
        }
        (4, _) => panel_times_unit::<4, 2, 2, 0, BITS, SUBS, MIN>(tiles, chunk, panel, ahead, sums),
        (5, true) => {
            panel_times_unit::<5, 3, 2, 0, BITS, SUBS, MIN>(tiles, chunk, panel, ahead, sums)
        }
        (5, false) => {
            panel_times_unit::<5, 2, 2, 1, BITS, SUBS, MIN>(tiles, chunk, panel, ahead, sums)
        }
        (_, true) => {
            panel_times_unit::<6, 3, 3, 0, BITS, SUBS, MIN>(tiles, chunk, panel, ahead, sums)
        }
        (_, false) => {
            panel_times_unit::<6, 2, 2, 2, BITS, SUBS, MIN>(tiles, chunk, panel, ahead, sums)
        }
    }
}

/// So many blocks before it is read, what was asked into the second cache is asked into the first: the hundred
/// and more instructions of a block leave the CPU no room to see that far ahead.
pub(super) const NEAR_BLOCKS: usize = 4;

/// Sub-blocks of a block: only the 6-bit format has two.
pub(super) const fn subs_of(bits: u32) -> usize {
    if bits == 6 { 2 } else { 1 }
}

/// Groups whose `maddubs` fit in 16 bits: `groups * 2 * 127 * (2^bits - 1) < 2^15`.
const fn groups_in_16_bits(bits: u32) -> usize {
    match bits {
        6 => 2,
        5 => 4,
        // 8-bit weights are multiplied as two nibbles.
        _ => 8,
    }
}

/// The blocks of a panel in the shapes that the inner loop reads.
pub(crate) struct Blocks<'a, const WIDTH: usize, const SUBS: usize> {
    /// `[block][group][token]`
    pub(crate) quants: &'a [[[[i8; 4]; WIDTH]; 8]],
    /// `[block][token]`
    pub(crate) scales: &'a [[f32; WIDTH]],
    /// `[block][token]`
    pub(crate) biases: &'a [[f32; WIDTH]],
    /// `[block][token]`
    pub(crate) sums: &'a [[f32; WIDTH]],
    /// `[block][sub-block][token]`; empty if the weights have a minimum
    pub(crate) starts: &'a [[[i32; WIDTH]; SUBS]],
}

impl<'a, const WIDTH: usize, const SUBS: usize> Blocks<'a, WIDTH, SUBS> {
    pub(crate) fn of(panel: &Panel<'a>) -> Self {
        Self {
            quants: panel.quants.as_chunks().0.as_chunks().0.as_chunks().0,
            scales: panel.scales.as_chunks().0,
            biases: panel.biases.as_chunks().0,
            sums: panel.sums.as_chunks().0,
            starts: panel.starts.as_chunks().0.as_chunks().0,
        }
    }
}

/// Adds `WIDTH` tokens times the tiles of a unit: `A`, then `B`, then `C` of them.
#[target_feature(enable = "avx2,fma")]
fn panel_times_unit<
    const WIDTH: usize,
    const A: usize,
    const B: usize,
    const C: usize,
    const BITS: u32,
    const SUBS: usize,
    const MIN: bool,
>(
    tiles: usize,
    chunk: &IntChunk,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    const { assert!(A + B + C == WIDTH && (C == 0 || A + B == 4)) };
    let blocks = Blocks::<WIDTH, SUBS>::of(panel);
    let sums: &mut [Sums; WIDTH] = sums.first_chunk_mut().expect("each token has its sums");
    // Of long rows the activations lie beyond the second cache, and the hardware follows no panel into the
    // next: a part is asked for before each part of the work.
    let parts = tiles * (1 + usize::from(B > 0) + usize::from(C > 0));
    let (mut next, part) = (panel.next, panel.next.len() / parts);
    let mut ask = || {
        let (now, later) = next.split_at(part);
        next = later;
        prefetch::ask_from(now.as_ptr(), now.len());
    };
    for tile in 0..tiles {
        ahead.steps(blocks.scales.len().div_ceil(tiles));
        ask();
        tokens_times_tile::<WIDTH, 0, A, BITS, SUBS, MIN>(chunk, tile, &blocks, sums);
        if B > 0 {
            ask();
            tokens_times_tile::<WIDTH, A, B, BITS, SUBS, MIN>(chunk, tile, &blocks, sums);
        }
        if C > 0 {
            ask();
            tokens_times_tile::<WIDTH, 4, C, BITS, SUBS, MIN>(chunk, tile, &blocks, sums);
        }
    }
}

/// Adds `TOKENS` tokens of a panel, from token `FROM` on, times a tile.
///
/// One function to its end: a part that stays a call keeps its sums in memory.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn tokens_times_tile<
    const WIDTH: usize,
    const FROM: usize,
    const TOKENS: usize,
    const BITS: u32,
    const SUBS: usize,
    const MIN: bool,
>(
    chunk: &IntChunk,
    tile: usize,
    panel: &Blocks<'_, WIDTH, SUBS>,
    sums: &mut [Sums; WIDTH],
) {
    let mut totals = [[_mm256_setzero_ps(); 2]; TOKENS];
    for token in 0..TOKENS {
        for half in 0..2 {
            totals[token][half] = load_lanes(half_of(&mut sums[FROM + token], tile * 2 + half));
        }
    }
    let bytes: &[[[HalfLine; 2]; 8]] =
        chunk.bytes[tile].as_flattened().as_chunks().0.as_chunks().0.as_chunks().0;
    let scales = chunk.scales[tile].as_chunks::<SUBS>().0.iter().zip(&chunk.mins[tile]);
    let x_scales = panel.scales.iter().zip(panel.biases).zip(panel.sums);
    let mut starts = panel.starts.iter();
    let blocks = bytes.iter().zip(panel.quants).zip(x_scales).zip(scales);
    for (((bytes, quants), ((x_scales, x_biases), x_sums)), (scales, mins)) in blocks {
        let mut block_starts = [[MAGIC_BITS; WIDTH]; SUBS];
        if !MIN && let Some(starts) = starts.next() {
            block_starts = *starts;
        }
        for sub in 0..SUBS {
            let starts = core::array::from_fn(|token| block_starts[sub][FROM + token]);
            let groups = sub * 8 / SUBS..(sub + 1) * 8 / SUBS;
            let dots = dots::<WIDTH, FROM, TOKENS, BITS>(bytes, quants, groups, starts);
            for token in 0..TOKENS {
                let x_scale = _mm256_set1_ps(x_scales[FROM + token]);
                let x_bias = _mm256_set1_ps(x_biases[FROM + token]);
                for half in 0..2 {
                    let dot = _mm256_castsi256_ps(dots[token][half]);
                    let steps = _mm256_fmadd_ps(dot, x_scale, x_bias);
                    let scale = load_lanes(&scales[sub].as_chunks().0[half]);
                    totals[token][half] = _mm256_fmadd_ps(steps, scale, totals[token][half]);
                }
            }
        }
        if MIN {
            for token in 0..TOKENS {
                let x_sum = _mm256_set1_ps(x_sums[FROM + token]);
                for half in 0..2 {
                    let min = load_lanes(&mins.as_chunks().0[half]);
                    totals[token][half] = _mm256_fmadd_ps(x_sum, min, totals[token][half]);
                }
            }
        }
    }
    for token in 0..TOKENS {
        for half in 0..2 {
            store_lanes(half_of(&mut sums[FROM + token], tile * 2 + half), totals[token][half]);
        }
    }
}

/// Returns the sums in integers of some groups of a block, from `starts` on: `[token][half]`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn dots<const WIDTH: usize, const FROM: usize, const TOKENS: usize, const BITS: u32>(
    bytes: &[[HalfLine; 2]; 8],
    quants: &[[[i8; 4]; WIDTH]; 8],
    groups: Range<usize>,
    starts: [i32; TOKENS],
) -> [[__m256i; 2]; TOKENS] {
    let nibble = _mm256_set1_epi8(15);
    let mut dots = starts.map(|start| [_mm256_set1_epi32(start); 2]);
    for first in groups.step_by(groups_in_16_bits(BITS)) {
        let mut low = [[_mm256_setzero_si256(); 2]; TOKENS];
        let mut high = [[_mm256_setzero_si256(); 2]; TOKENS];
        for group in first..first + groups_in_16_bits(BITS) {
            let bytes = [load(&bytes[group][0]), load(&bytes[group][1])];
            for token in 0..TOKENS {
                let quants = broadcast(&quants[group][FROM + token]);
                for half in 0..2 {
                    let (bytes, low, high) =
                        (bytes[half], &mut low[token][half], &mut high[token][half]);
                    if BITS == 8 {
                        let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble);
                        *high = add_products(*high, upper, quants);
                        *low = add_products(*low, _mm256_and_si256(bytes, nibble), quants);
                    } else {
                        *low = here(add_products(*low, bytes, quants));
                    }
                }
            }
        }
        for token in 0..TOKENS {
            for half in 0..2 {
                let dot = &mut dots[token][half];
                *dot = add_pairs(*dot, low[token][half], 1);
                if BITS == 8 {
                    *dot = add_pairs(*dot, high[token][half], 16);
                }
                *dot = here(*dot);
            }
        }
    }
    dots
}

/// Returns the sums of 8 rows, part `part` of the unit.
#[inline(always)]
pub(super) fn half_of(sums: &mut Sums, part: usize) -> &mut HalfLanes {
    &mut sums.as_chunks_mut().0[part]
}

/// Returns `value`, from a register in which it is at this place: without this the compiler computes products
/// far ahead of their sums, and has no registers left for the sums.
#[inline]
#[target_feature(enable = "avx2")]
fn here(mut value: __m256i) -> __m256i {
    // SAFETY: there is no instruction.
    unsafe {
        core::arch::asm!("/* {0} */", inout(ymm_reg) value, options(nomem, nostack, preserves_flags));
    }
    value
}

/// Adds `factor` times the sums of pairs to 32-bit sums.
#[inline]
#[target_feature(enable = "avx2")]
fn add_pairs(dots: __m256i, pairs: __m256i, factor: i16) -> __m256i {
    _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, _mm256_set1_epi16(factor)))
}

/// Adds the products of pairs of bytes in 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn add_products(sums: __m256i, bytes: __m256i, quants: __m256i) -> __m256i {
    _mm256_add_epi16(sums, _mm256_maddubs_epi16(bytes, quants))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn broadcast(quants: &[i8; 4]) -> __m256i {
    _mm256_set1_epi32(i32::from_le_bytes(quants.map(i8::cast_unsigned)))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_one(tile: &IntTile<'_>, panel: &Panel<'_>, ahead: &mut Ahead<'_>, sums: &mut Lanes) {
    let totals = by_form!(tile.form, token_times_tile, [], (tile, panel, ahead));
    for (sums, total) in sums.as_chunks_mut().0.iter_mut().zip(totals) {
        store_lanes(sums, total);
    }
}

/// Computes one token times a tile, unpacking in registers: the upper 8 rows, the lower 8 rows.
#[target_feature(enable = "avx2,fma,f16c")]
fn token_times_tile<const BITS: u32, const SUPER: bool, const MIN: bool>(
    tile: &IntTile<'_>,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
) -> [__m256; 2] {
    let quants = panel.quants.as_chunks::<4>().0.as_chunks::<8>().0;
    let subs = subs_of(BITS);
    let (size, step_cols) = tile.form.scales.step();
    let step_blocks = step_cols / BLOCK_LEN;
    let mut asked = *ahead;
    let mut totals = [_mm256_setzero_ps(); 2];
    for (step, quants) in quants.chunks_exact(step_blocks).enumerate() {
        let bytes = &tile.scales[step * size..][..size];
        let scales = [0, 1].map(|half| StepScales::read::<SUPER, MIN>(bytes, half));
        for (i, quants) in quants.iter().enumerate() {
            let block = step * step_blocks + i;
            let low = low_part::<BITS>(tile.low, block);
            let high = high_part::<BITS>(tile.high, block);
            prefetch::ask_near(low, NEAR_BLOCKS);
            prefetch::ask_near(high, NEAR_BLOCKS);
            let x_scale = _mm256_set1_ps(panel.scales[block]);
            let x_bias = _mm256_set1_ps(panel.biases[block]);
            asked.step();
            for sub in 0..subs {
                let start = if MIN { MAGIC_BITS } else { panel.starts[block * subs + sub] };
                let dots = token_dots::<BITS>(low, high, quants, sub, start);
                for half in 0..2 {
                    let steps = _mm256_fmadd_ps(_mm256_castsi256_ps(dots[half]), x_scale, x_bias);
                    let scale = scales[half].scale::<SUPER, MIN>(i * subs + sub);
                    totals[half] = _mm256_fmadd_ps(steps, scale, totals[half]);
                }
            }
            if MIN {
                let x_sum = _mm256_set1_ps(panel.sums[block]);
                for half in 0..2 {
                    let min = scales[half].min::<SUPER>(i);
                    totals[half] = _mm256_fmadd_ps(x_sum, min, totals[half]);
                }
            }
        }
    }
    *ahead = asked;
    totals
}

/// Returns the sums in integers of a sub-block of one token, from `start` on: the upper 8 rows, the lower 8 rows.
/// Each group is multiplied as soon as it is unpacked: a whole block has no place in the registers.
#[inline]
#[target_feature(enable = "avx2")]
fn token_dots<const BITS: u32>(
    low: &[HalfLine],
    high: &[HalfLine],
    quants: &[[i8; 4]; 8],
    sub: usize,
    start: i32,
) -> [__m256i; 2] {
    let nibble = _mm256_set1_epi8(15);
    let mut dots = [_mm256_set1_epi32(start); 2];
    let mut sums = [_mm256_setzero_si256(); 2];
    let mut uppers = [_mm256_setzero_si256(); 2];
    // Written out: in a loop, whether low or high nibbles are meant is asked each time.
    macro_rules! each_group {
        ($($group:literal)*) => {$(
            if subs_of(BITS) == 1 || $group / 4 == sub {
                let quants = here(broadcast(&quants[$group]));
                for half in 0..2 {
                    let mut bytes = group_bytes::<BITS>(low, high, half, $group);
                    if BITS == 8 {
                        let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble);
                        uppers[half] = here(add_products(uppers[half], upper, quants));
                        bytes = _mm256_and_si256(bytes, nibble);
                    }
                    sums[half] = here(add_products(sums[half], bytes, quants));
                    if ($group + 1) % groups_in_16_bits(BITS) == 0 {
                        dots[half] = add_pairs(dots[half], sums[half], 1);
                        sums[half] = _mm256_setzero_si256();
                    }
                }
            }
        )*};
    }
    each_group!(0 1 2 3 4 5 6 7);
    if BITS == 8 {
        for half in 0..2 {
            dots[half] = add_pairs(dots[half], uppers[half], 16);
        }
    }
    dots
}

#[target_feature(enable = "avx2,fma")]
fn multiply_float(tile: usize, weights: &[Lanes], x: &[&[f32]], sums: &mut [Sums]) {
    match *x {
        [] => {}
        [a] => floats_times_tile(tile, weights, [a], sums),
        [a, b] => floats_times_tile(tile, weights, [a, b], sums),
        [a, b, c] => floats_times_tile(tile, weights, [a, b, c], sums),
        [a, b, c, d] => floats_times_tile(tile, weights, [a, b, c, d], sums),
        [a, b, c, d, e] => floats_times_tile(tile, weights, [a, b, c, d, e], sums),
        [a, b, c, d, e, f, ..] => floats_times_tile(tile, weights, [a, b, c, d, e, f], sums),
    }
}

#[target_feature(enable = "avx2,fma")]
fn floats_times_tile<const WIDTH: usize>(
    tile: usize,
    weights: &[Lanes],
    mut x: [&[f32]; WIDTH],
    sums: &mut [Sums],
) {
    let len = x[0].len();
    for x in &mut x {
        *x = &x[..len];
    }
    let sums: &mut [Sums; WIDTH] = sums.first_chunk_mut().expect("each token has its sums");
    let mut totals = [[_mm256_setzero_ps(); 2]; WIDTH];
    for token in 0..WIDTH {
        for half in 0..2 {
            totals[token][half] = load_lanes(half_of(&mut sums[token], tile * 2 + half));
        }
    }
    for (col, weights) in weights[..len].iter().enumerate() {
        let lanes = weights.as_chunks().0;
        let (upper, lower) = (load_lanes(&lanes[0]), load_lanes(&lanes[1]));
        for token in 0..WIDTH {
            let x = _mm256_set1_ps(x[token][col]);
            totals[token][0] = _mm256_fmadd_ps(upper, x, totals[token][0]);
            totals[token][1] = _mm256_fmadd_ps(lower, x, totals[token][1]);
        }
    }
    for token in 0..WIDTH {
        for half in 0..2 {
            store_lanes(half_of(&mut sums[token], tile * 2 + half), totals[token][half]);
        }
    }
}
