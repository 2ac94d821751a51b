//! Integer matrix products with AVX-VNNI; see [`crate::gemm()`] for the formula.
//!
//! A tile times a panel of six tokens keeps 12 integer sums in registers, and each broadcast
//! serves both halves of the tile. Few tokens are multiplied straight from the packed bytes, half
//! a tile at a time. Everything else is as with AVX2 alone.

#![expect(clippy::needless_range_loop, reason = "one index for several arrays of registers")]

use core::arch::x86_64::*;

use super::gemm::{Blocks, NEAR_BLOCKS, broadcast, half_of, subs_of};
use super::unpack::store_lanes;
use super::unpack::{HalfLine, StepScales, block_bytes, high_part, load, load_lanes, low_part};
use crate::gemm::{FloatChunk, IntChunk, Kernel, Sums, TileCols, by_form};
use crate::isa::Avx2Vnni;
use crate::packed::{BLOCK_LEN, IntForm, IntTile, Scales};
use crate::prefetch::{self, Ahead};
use crate::quantize::{MAGIC_BITS, PANEL_TOKENS, Panel};

impl Kernel for Avx2Vnni {
    fn unpack_int(self, tile: &IntTile<'_>, chunk: &mut IntChunk, index: usize) {
        self.avx2().unpack_int(tile, chunk, index);
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
        // SAFETY: `Avx2Vnni` proves that the CPU has the features.
        unsafe { multiply_int(form, tiles, chunk, panel, ahead, sums) }
    }

    const DIRECT_TOKENS: usize = PANEL_TOKENS;

    fn multiply_direct(
        self,
        tiles: &[IntTile<'_>],
        panels: &[Panel<'_>],
        ahead: &mut Ahead<'_>,
        sums: &mut [Sums],
    ) {
        let [panel] = panels else { unreachable!("one panel at a time") };
        for (index, tile) in tiles.iter().enumerate() {
            // SAFETY: `Avx2Vnni` proves that the CPU has the features.
            unsafe { multiply_direct(index, tile, panel, ahead, sums) }
        }
    }

    fn unpack_float(self, tile: &TileCols<'_>, len: usize, chunk: &mut FloatChunk, index: usize) {
        self.avx2().unpack_float(tile, len, chunk, index);
    }

    fn multiply_float(self, tiles: usize, chunk: &FloatChunk, x: &[&[f32]], sums: &mut [Sums]) {
        self.avx2().multiply_float(tiles, chunk, x, sums);
    }
}

#[target_feature(enable = "avx2,fma,avxvnni")]
fn multiply_int(
    form: IntForm,
    tiles: usize,
    chunk: &IntChunk,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    match form.scales {
        Scales::Plain => by_width::<1, false>(tiles, chunk, panel, ahead, sums),
        Scales::SuperPlain => by_width::<2, false>(tiles, chunk, panel, ahead, sums),
        Scales::Min | Scales::SuperMin => by_width::<1, true>(tiles, chunk, panel, ahead, sums),
    }
}

#[target_feature(enable = "avx2,fma,avxvnni")]
fn by_width<const SUBS: usize, const MIN: bool>(
    tiles: usize,
    chunk: &IntChunk,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    match panel.width {
        1 => panel_times_unit::<1, SUBS, MIN>(tiles, chunk, panel, ahead, sums),
        2 => panel_times_unit::<2, SUBS, MIN>(tiles, chunk, panel, ahead, sums),
        3 => panel_times_unit::<3, SUBS, MIN>(tiles, chunk, panel, ahead, sums),
        4 => panel_times_unit::<4, SUBS, MIN>(tiles, chunk, panel, ahead, sums),
        5 => panel_times_unit::<5, SUBS, MIN>(tiles, chunk, panel, ahead, sums),
        _ => panel_times_unit::<6, SUBS, MIN>(tiles, chunk, panel, ahead, sums),
    }
}

/// Adds `WIDTH` tokens times the tiles of a unit.
#[target_feature(enable = "avx2,fma,avxvnni")]
fn panel_times_unit<const WIDTH: usize, const SUBS: usize, const MIN: bool>(
    tiles: usize,
    chunk: &IntChunk,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    let blocks = Blocks::<WIDTH, SUBS>::of(panel);
    let sums: &mut [Sums; WIDTH] = sums.first_chunk_mut().expect("each token has its sums");
    for tile in 0..tiles {
        ahead.steps(blocks.scales.len().div_ceil(tiles));
        panel_times_tile::<WIDTH, SUBS, MIN>(chunk, tile, &blocks, sums);
    }
}

/// Adds `WIDTH` tokens times a tile.
#[inline]
#[target_feature(enable = "avx2,fma,avxvnni")]
fn panel_times_tile<const WIDTH: usize, const SUBS: usize, const MIN: bool>(
    chunk: &IntChunk,
    tile: usize,
    panel: &Blocks<'_, WIDTH, SUBS>,
    sums: &mut [Sums; WIDTH],
) {
    let mut totals = [[_mm256_setzero_ps(); 2]; WIDTH];
    for token in 0..WIDTH {
        for half in 0..2 {
            totals[token][half] = load_lanes(half_of(&mut sums[token], tile * 2 + half));
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
            let mut dots = [[_mm256_setzero_si256(); 2]; WIDTH];
            for token in 0..WIDTH {
                dots[token] = [_mm256_set1_epi32(block_starts[sub][token]); 2];
            }
            for group in sub * 8 / SUBS..(sub + 1) * 8 / SUBS {
                let bytes = [load(&bytes[group][0]), load(&bytes[group][1])];
                for token in 0..WIDTH {
                    let quants = broadcast(&quants[group][token]);
                    for half in 0..2 {
                        dots[token][half] =
                            _mm256_dpbusd_avx_epi32(dots[token][half], bytes[half], quants);
                    }
                }
            }
            for token in 0..WIDTH {
                let x_scale = _mm256_set1_ps(x_scales[token]);
                let x_bias = _mm256_set1_ps(x_biases[token]);
                for half in 0..2 {
                    let dot = _mm256_castsi256_ps(dots[token][half]);
                    let steps = _mm256_fmadd_ps(dot, x_scale, x_bias);
                    let scale = load_lanes(&scales[sub].as_chunks().0[half]);
                    totals[token][half] = _mm256_fmadd_ps(steps, scale, totals[token][half]);
                }
            }
        }
        if MIN {
            for token in 0..WIDTH {
                let x_sum = _mm256_set1_ps(x_sums[token]);
                for half in 0..2 {
                    let min = load_lanes(&mins.as_chunks().0[half]);
                    totals[token][half] = _mm256_fmadd_ps(x_sum, min, totals[token][half]);
                }
            }
        }
    }
    for token in 0..WIDTH {
        for half in 0..2 {
            store_lanes(half_of(&mut sums[token], tile * 2 + half), totals[token][half]);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn multiply_direct(
    index: usize,
    tile: &IntTile<'_>,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    match panel.width {
        1 => direct_by_form::<1>(index, tile, panel, ahead, sums),
        2 => direct_by_form::<2>(index, tile, panel, ahead, sums),
        3 => direct_by_form::<3>(index, tile, panel, ahead, sums),
        4 => direct_by_form::<4>(index, tile, panel, ahead, sums),
        5 => direct_by_form::<5>(index, tile, panel, ahead, sums),
        _ => direct_by_form::<6>(index, tile, panel, ahead, sums),
    }
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn direct_by_form<const WIDTH: usize>(
    index: usize,
    tile: &IntTile<'_>,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    let sums: &mut [Sums; WIDTH] = sums.first_chunk_mut().expect("each token has its sums");
    let totals = by_form!(tile.form, direct, [WIDTH], (tile, panel, ahead));
    for (sums, totals) in sums.iter_mut().zip(totals) {
        for (half, total) in totals.into_iter().enumerate() {
            store_lanes(half_of(sums, index * 2 + half), total);
        }
    }
}

/// Computes `WIDTH` tokens times a tile, unpacking in registers.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn direct<const WIDTH: usize, const BITS: u32, const SUPER: bool, const MIN: bool>(
    tile: &IntTile<'_>,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
) -> [[__m256; 2]; WIDTH] {
    let blocks = Blocks::<WIDTH, 1>::of(panel);
    let starts: &[[i32; WIDTH]] = panel.starts.as_chunks().0;
    let subs = subs_of(BITS);
    let (size, step_cols) = tile.form.scales.step();
    let step_blocks = step_cols / BLOCK_LEN;
    let mut asked = *ahead;
    let mut totals = [[_mm256_setzero_ps(); 2]; WIDTH];
    for (step, quants) in blocks.quants.chunks_exact(step_blocks).enumerate() {
        let bytes = &tile.scales[step * size..][..size];
        let scales = [0, 1].map(|half| StepScales::read::<SUPER, MIN>(bytes, half));
        for (i, quants) in quants.iter().enumerate() {
            let block = step * step_blocks + i;
            let low = low_part::<BITS>(tile.low, block);
            let high = high_part::<BITS>(tile.high, block);
            prefetch::ask_near(low, NEAR_BLOCKS);
            prefetch::ask_near(high, NEAR_BLOCKS);
            let (x_scales, x_biases) = (&blocks.scales[block], &blocks.biases[block]);
            let x_sums = &blocks.sums[block];
            asked.step();
            for half in 0..2 {
                let bytes = block_bytes::<BITS>(low, high, half);
                for sub in 0..subs {
                    let scale = scales[half].scale::<SUPER, MIN>(i * subs + sub);
                    for token in 0..WIDTH {
                        let start =
                            if MIN { MAGIC_BITS } else { starts[block * subs + sub][token] };
                        let mut dot = _mm256_set1_epi32(start);
                        for group in sub * 8 / subs..(sub + 1) * 8 / subs {
                            let quants = broadcast(&quants[group][token]);
                            dot = _mm256_dpbusd_avx_epi32(dot, bytes[group], quants);
                        }
                        let x_scale = _mm256_set1_ps(x_scales[token]);
                        let x_bias = _mm256_set1_ps(x_biases[token]);
                        let steps = _mm256_fmadd_ps(_mm256_castsi256_ps(dot), x_scale, x_bias);
                        totals[token][half] = _mm256_fmadd_ps(steps, scale, totals[token][half]);
                    }
                }
                if MIN {
                    let min = scales[half].min::<SUPER>(i);
                    for token in 0..WIDTH {
                        let x_sum = _mm256_set1_ps(x_sums[token]);
                        totals[token][half] = _mm256_fmadd_ps(x_sum, min, totals[token][half]);
                    }
                }
            }
        }
    }
    *ahead = asked;
    totals
}
