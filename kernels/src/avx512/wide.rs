//! Products of more tokens than a panel has, up to three panels, with AVX-512 VNNI, straight from the packed
//! bytes; see [`crate::gemm()`] for the formula.
//!
//! One tile times all of the tokens: each weight that is unpacked meets them all, whose integer sums are in
//! registers; the float sums, touched once a sub-block, stay in the first-level cache. Nothing that is unpacked
//! is written down.

#![expect(clippy::needless_range_loop, reason = "one index for several arrays of registers")]

use core::arch::x86_64::*;

use super::gemm::broadcast;
use super::unpack::{StepScales, group_bytes, high_part, load_lanes, low_part, store_lanes};
use crate::avx2::Blocks;
use crate::gemm::{Sums, by_form};
use crate::packed::{BLOCK_LEN, IntTile};
use crate::prefetch::Ahead;
use crate::quantize::{MAGIC_BITS, PANEL_TOKENS, Panel};

/// Adds the tokens of two or three panels times a whole tile to its sums, part `index` of the unit.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn multiply(
    index: usize,
    tile: &IntTile<'_>,
    panels: &[Panel<'_>],
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    match *panels {
        [a, c] => by_width::<0>(index, tile, &[a, a, c], ahead, sums),
        [a, b, c] => by_width::<PANEL_TOKENS>(index, tile, &[a, b, c], ahead, sums),
        _ => unreachable!("two or three panels"),
    }
}

/// All panels but the last are full; without a `MIDDLE` there is no second one.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn by_width<const MIDDLE: usize>(
    index: usize,
    tile: &IntTile<'_>,
    panels: &[Panel<'_>; 3],
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    match panels[2].width {
        1 => by_form::<MIDDLE, 1>(index, tile, panels, ahead, sums),
        2 => by_form::<MIDDLE, 2>(index, tile, panels, ahead, sums),
        3 => by_form::<MIDDLE, 3>(index, tile, panels, ahead, sums),
        4 => by_form::<MIDDLE, 4>(index, tile, panels, ahead, sums),
        5 => by_form::<MIDDLE, 5>(index, tile, panels, ahead, sums),
        _ => by_form::<MIDDLE, 6>(index, tile, panels, ahead, sums),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn by_form<const MIDDLE: usize, const LAST: usize>(
    index: usize,
    tile: &IntTile<'_>,
    panels: &[Panel<'_>; 3],
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    by_form!(tile.form, tokens_times_tile, [MIDDLE, LAST], (index, tile, panels, ahead, sums));
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tokens_times_tile<
    const MIDDLE: usize,
    const LAST: usize,
    const BITS: u32,
    const SUPER: bool,
    const MIN: bool,
>(
    index: usize,
    tile: &IntTile<'_>,
    panels: &[Panel<'_>; 3],
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    // Starts are read flat, whether a block has one sub-block or two.
    let first = Blocks::<PANEL_TOKENS, 1>::of(&panels[0]);
    let last = Blocks::<LAST, 1>::of(&panels[2]);
    let enough = "each token has its sums";
    let (first_sums, rest) = sums.split_first_chunk_mut().expect(enough);
    let (middle_sums, rest) = rest.split_at_mut(MIDDLE);
    let last_sums = rest.first_chunk_mut().expect(enough);
    let subs = if SUPER && !MIN { 2 } else { 1 };
    let (size, step_cols) = tile.form.scales.step();
    let step_blocks = step_cols / BLOCK_LEN;
    let mut asked = *ahead;
    for (step, scales) in tile.scales.chunks_exact(size).enumerate() {
        let scales = StepScales::read::<SUPER, MIN>(scales);
        for i in 0..step_blocks {
            let block = step * step_blocks + i;
            asked.step();
            let low = low_part::<BITS>(tile.low.as_chunks().0, block);
            let high = high_part::<BITS>(tile.high.as_chunks().0, block);
            let min = if MIN { scales.min::<SUPER>(i) } else { _mm512_setzero_ps() };
            for sub in 0..subs {
                let scale = scales.scale::<SUPER, MIN>(i * subs + sub);
                let mut ones = starts::<PANEL_TOKENS, MIN>(&first, block * subs + sub);
                let mut others = starts::<LAST, MIN>(&last, block * subs + sub);
                // Written out: in a loop, whether low or high nibbles are meant is asked each time.
                macro_rules! each_group {
                    ($group:ident, $bytes:ident, $multiply:block) => {
                        each_group!($group, $bytes, $multiply, 0 1 2 3 4 5 6 7)
                    };
                    ($group:ident, $bytes:ident, $multiply:block, $($index:literal)*) => {$(
                        let $group: usize = $index;
                        if subs == 1 || $group / 4 == sub {
                            let $bytes = group_bytes::<BITS>(low, high, $group);
                            $multiply
                        }
                    )*};
                }
                if MIDDLE == 0 {
                    each_group!(group, bytes, {
                        multiply_group(&mut ones, bytes, &first.quants[block][group]);
                        multiply_group(&mut others, bytes, &last.quants[block][group]);
                    });
                } else {
                    let middle = Blocks::<PANEL_TOKENS, 1>::of(&panels[1]);
                    let mut dots = starts::<PANEL_TOKENS, MIN>(&middle, block * subs + sub);
                    each_group!(group, bytes, {
                        multiply_group(&mut ones, bytes, &first.quants[block][group]);
                        multiply_group(&mut dots, bytes, &middle.quants[block][group]);
                        multiply_group(&mut others, bytes, &last.quants[block][group]);
                    });
                    add::<PANEL_TOKENS, MIN>(
                        &middle,
                        block,
                        &dots,
                        (scale, min),
                        index,
                        middle_sums.first_chunk_mut().expect(enough),
                    );
                }
                add::<PANEL_TOKENS, MIN>(&first, block, &ones, (scale, min), index, first_sums);
                add::<LAST, MIN>(&last, block, &others, (scale, min), index, last_sums);
            }
        }
    }
    *ahead = asked;
}

/// Returns what the integer sums of a sub-block start from.
#[inline]
#[target_feature(enable = "avx512f")]
fn starts<const WIDTH: usize, const MIN: bool>(
    panel: &Blocks<'_, WIDTH, 1>,
    sub: usize,
) -> [__m512i; WIDTH] {
    let mut dots = [_mm512_set1_epi32(MAGIC_BITS); WIDTH];
    if !MIN {
        for token in 0..WIDTH {
            dots[token] = _mm512_set1_epi32(panel.starts[sub][0][token]);
        }
    }
    dots
}

/// Adds 16 rows × 4 columns times the tokens of a panel.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply_group<const WIDTH: usize>(
    dots: &mut [__m512i; WIDTH],
    bytes: __m512i,
    quants: &[[i8; 4]; WIDTH],
) {
    for token in 0..WIDTH {
        dots[token] = here(_mm512_dpbusd_epi32(dots[token], bytes, broadcast(&quants[token])));
    }
}

/// Returns `value`, from a register in which it is at this place: without this the compiler unpacks groups far
/// ahead of their products, and has no registers left for the sums.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn here(mut value: __m512i) -> __m512i {
    // SAFETY: there is no instruction.
    unsafe {
        core::arch::asm!("/* {0} */", inout(zmm_reg) value, options(nomem, nostack, preserves_flags));
    }
    value
}

/// Adds the integer sums of a sub-block to the sums of a panel's tokens; `scale_and_min` are of the weights.
#[inline]
#[target_feature(enable = "avx512f")]
fn add<const WIDTH: usize, const MIN: bool>(
    panel: &Blocks<'_, WIDTH, 1>,
    block: usize,
    dots: &[__m512i; WIDTH],
    (scale, min): (__m512, __m512),
    index: usize,
    sums: &mut [Sums; WIDTH],
) {
    for token in 0..WIDTH {
        let lanes = &mut sums[token].as_chunks_mut().0[index];
        let x_scale = _mm512_set1_ps(panel.scales[block][token]);
        let x_bias = _mm512_set1_ps(panel.biases[block][token]);
        let steps = _mm512_fmadd_ps(_mm512_castsi512_ps(dots[token]), x_scale, x_bias);
        let mut total = _mm512_fmadd_ps(steps, scale, load_lanes(lanes));
        if MIN {
            total = _mm512_fmadd_ps(_mm512_set1_ps(panel.sums[block][token]), min, total);
        }
        store_lanes(lanes, total);
    }
}
