//! Matrix products with AVX-512 VNNI; see [`crate::gemm()`] for the formula.
//!
//! A unit of two tiles times a panel of six tokens keeps 12 integer and 12 float sums in
//! registers. Integer sums start at `MAGIC_BITS`, so that one fused multiply-add turns them into
//! floats and applies the activation scale (see [`crate::quantize::MAGIC`]).

#![expect(clippy::needless_range_loop, reason = "one index for several arrays of registers")]

use core::arch::x86_64::*;

use super::unpack::{
    self, StepScales, block_bytes, high_part, load, load_lanes, low_part, store_lanes,
};
use super::wide;
use crate::gemm::{
    DIRECT_TOKENS_MAX, FloatChunk, IntChunk, Kernel, Lanes, Sums, TileCols, by_form,
};
use crate::isa::Avx512Vnni;
use crate::packed::{BLOCK_LEN, IntForm, IntTile, Scales};
use crate::prefetch::Ahead;
use crate::quantize::{MAGIC_BITS, Panel};
use crate::reference::Plain;

impl Kernel for Avx512Vnni {
    fn unpack_int(self, tile: &IntTile<'_>, chunk: &mut IntChunk, index: usize) {
        let IntChunk { bytes, scales, mins } = chunk;
        self.unpack_to::<false>(tile, &mut bytes[index], &mut scales[index], &mut mins[index]);
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
        // SAFETY: `Avx512Vnni` proves that the CPU has the features.
        unsafe { multiply_int(form, tiles, chunk, panel, ahead, sums) }
    }

    const DIRECT_TOKENS: usize = DIRECT_TOKENS_MAX;

    fn multiply_direct(
        self,
        tiles: &[IntTile<'_>],
        panels: &[Panel<'_>],
        ahead: &mut Ahead<'_>,
        sums: &mut [Sums],
    ) {
        for (index, tile) in tiles.iter().enumerate() {
            match panels {
                // SAFETY: `Avx512Vnni` proves that the CPU has the features.
                [panel] => unsafe { multiply_direct(index, tile, panel, ahead, sums) },
                // SAFETY: as above.
                _ => unsafe { wide::multiply(index, tile, panels, ahead, sums) },
            }
        }
    }

    fn unpack_float(self, tile: &TileCols<'_>, len: usize, chunk: &mut FloatChunk, index: usize) {
        // SAFETY: `Avx512Vnni` proves that the CPU has the features.
        let is_done = unsafe { unpack::float(tile, len, chunk, index) };
        if !is_done {
            Plain.unpack_float(tile, len, chunk, index);
        }
    }

    fn multiply_float(self, tiles: usize, chunk: &FloatChunk, x: &[&[f32]], sums: &mut [Sums]) {
        // SAFETY: `Avx512Vnni` proves that the CPU has the features.
        unsafe { multiply_float(tiles, chunk, x, sums) }
    }
}

impl Avx512Vnni {
    /// Unpacks blocks of a tile: `bytes: [column / 4][row][4]`, `scales: [sub-block]`, `mins: [block]`. Of a
    /// form on tiles, the bytes may be signed: what stands for 0 is taken off.
    pub(crate) fn unpack_to<const SIGNED: bool>(
        self,
        tile: &IntTile<'_>,
        bytes: &mut [[u8; 64]],
        scales: &mut [Lanes],
        mins: &mut [Lanes],
    ) {
        // SAFETY: `Avx512Vnni` proves that the CPU has the features.
        unsafe { unpack::int::<SIGNED>(tile, bytes, scales, mins) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply_int(
    form: IntForm,
    tiles: usize,
    chunk: &IntChunk,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    match (form.scales, tiles) {
        (Scales::Plain, 1) => by_width::<1, 1, false>(chunk, panel, ahead, sums),
        (Scales::Plain, _) => by_width::<2, 1, false>(chunk, panel, ahead, sums),
        (Scales::SuperPlain, 1) => by_width::<1, 2, false>(chunk, panel, ahead, sums),
        (Scales::SuperPlain, _) => by_width::<2, 2, false>(chunk, panel, ahead, sums),
        (Scales::Min | Scales::SuperMin, 1) => by_width::<1, 1, true>(chunk, panel, ahead, sums),
        (Scales::Min | Scales::SuperMin, _) => by_width::<2, 1, true>(chunk, panel, ahead, sums),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn by_width<const TILES: usize, const SUBS: usize, const MIN: bool>(
    chunk: &IntChunk,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    match panel.width {
        1 => panel_times_unit::<1, TILES, SUBS, MIN>(chunk, panel, ahead, sums),
        2 => panel_times_unit::<2, TILES, SUBS, MIN>(chunk, panel, ahead, sums),
        3 => panel_times_unit::<3, TILES, SUBS, MIN>(chunk, panel, ahead, sums),
        4 => panel_times_unit::<4, TILES, SUBS, MIN>(chunk, panel, ahead, sums),
        5 => panel_times_unit::<5, TILES, SUBS, MIN>(chunk, panel, ahead, sums),
        _ => panel_times_unit::<6, TILES, SUBS, MIN>(chunk, panel, ahead, sums),
    }
}

/// Adds `WIDTH` tokens times `TILES` tiles; a block has `SUBS` sub-blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn panel_times_unit<const WIDTH: usize, const TILES: usize, const SUBS: usize, const MIN: bool>(
    chunk: &IntChunk,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    let quants = panel.quants.as_chunks::<4>().0.as_chunks::<WIDTH>().0.as_chunks::<8>().0;
    let x_scales = panel.scales.as_chunks::<WIDTH>().0;
    let x_biases = panel.biases.as_chunks::<WIDTH>().0;
    let x_sums = panel.sums.as_chunks::<WIDTH>().0;
    let starts = panel.starts.as_chunks::<WIDTH>().0;
    let mut totals = load_sums::<WIDTH, TILES>(sums);
    for (block, (((quants, x_scales), x_biases), x_sums)) in
        quants.iter().zip(x_scales).zip(x_biases).zip(x_sums).enumerate()
    {
        ahead.step();
        for sub in block * SUBS..(block + 1) * SUBS {
            let mut dots = [[_mm512_set1_epi32(MAGIC_BITS); TILES]; WIDTH];
            if !MIN {
                for (dots, start) in dots.iter_mut().zip(starts[sub]) {
                    *dots = [_mm512_set1_epi32(start); TILES];
                }
            }
            let groups = 8 / SUBS;
            for group in sub * groups..(sub + 1) * groups {
                let mut bytes = [_mm512_setzero_si512(); TILES];
                for (bytes, chunk) in bytes.iter_mut().zip(&chunk.bytes) {
                    *bytes = load(&chunk[group]);
                }
                for (dots, quants) in dots.iter_mut().zip(&quants[group % 8]) {
                    let quants = broadcast(quants);
                    for (dot, bytes) in dots.iter_mut().zip(bytes) {
                        *dot = _mm512_dpbusd_epi32(*dot, bytes, quants);
                    }
                }
            }
            for token in 0..WIDTH {
                let scale = _mm512_set1_ps(x_scales[token]);
                let bias = _mm512_set1_ps(x_biases[token]);
                for tile in 0..TILES {
                    let steps =
                        _mm512_fmadd_ps(_mm512_castsi512_ps(dots[token][tile]), scale, bias);
                    let scale = load_lanes(&chunk.scales[tile][sub]);
                    totals[token][tile] = _mm512_fmadd_ps(steps, scale, totals[token][tile]);
                }
            }
        }
        if MIN {
            for (totals, x_sum) in totals.iter_mut().zip(x_sums) {
                for (tile, total) in totals.iter_mut().enumerate() {
                    let min = load_lanes(&chunk.mins[tile][block]);
                    *total = _mm512_fmadd_ps(_mm512_set1_ps(*x_sum), min, *total);
                }
            }
        }
    }
    store_sums(&totals, sums);
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn broadcast(quants: &[i8; 4]) -> __m512i {
    _mm512_set1_epi32(i32::from_le_bytes(quants.map(i8::cast_unsigned)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_sums<const WIDTH: usize, const TILES: usize>(sums: &[Sums]) -> [[__m512; TILES]; WIDTH] {
    let sums: &[Sums; WIDTH] = sums.first_chunk().expect("each token of a panel has its sums");
    let mut totals = [[_mm512_setzero_ps(); TILES]; WIDTH];
    for token in 0..WIDTH {
        for tile in 0..TILES {
            totals[token][tile] = load_lanes(&sums[token].as_chunks().0[tile]);
        }
    }
    totals
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_sums<const WIDTH: usize, const TILES: usize>(
    totals: &[[__m512; TILES]; WIDTH],
    sums: &mut [Sums],
) {
    let sums: &mut [Sums; WIDTH] =
        sums.first_chunk_mut().expect("each token of a panel has its sums");
    for token in 0..WIDTH {
        for tile in 0..TILES {
            store_lanes(&mut sums[token].as_chunks_mut().0[tile], totals[token][tile]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn direct_by_form<const WIDTH: usize>(
    index: usize,
    tile: &IntTile<'_>,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
    sums: &mut [Sums],
) {
    let sums: &mut [Sums; WIDTH] = sums.first_chunk_mut().expect("each token has its sums");
    let totals = by_form!(tile.form, direct, [WIDTH], (tile, panel, ahead));
    for (sums, total) in sums.iter_mut().zip(totals) {
        store_lanes(&mut sums.as_chunks_mut().0[index], total);
    }
}

/// Computes `WIDTH` tokens times a whole tile, unpacking in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn direct<const WIDTH: usize, const BITS: u32, const SUPER: bool, const MIN: bool>(
    tile: &IntTile<'_>,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
) -> [__m512; WIDTH] {
    let quants = panel.quants.as_chunks::<4>().0.as_chunks::<WIDTH>().0.as_chunks::<8>().0;
    let x_scales = panel.scales.as_chunks::<WIDTH>().0;
    let x_biases = panel.biases.as_chunks::<WIDTH>().0;
    let x_sums = panel.sums.as_chunks::<WIDTH>().0;
    let starts = panel.starts.as_chunks::<WIDTH>().0;
    let subs = if SUPER && !MIN { 2 } else { 1 };
    let (size, step_cols) = tile.form.scales.step();
    let step_blocks = step_cols / BLOCK_LEN;
    let mut asked = *ahead;
    let mut totals = [_mm512_setzero_ps(); WIDTH];
    for (step, quants) in quants.chunks_exact(step_blocks).enumerate() {
        let scales = StepScales::read::<SUPER, MIN>(&tile.scales[step * size..][..size]);
        for (i, quants) in quants.iter().enumerate() {
            let block = step * step_blocks + i;
            asked.step();
            let low = low_part::<BITS>(tile.low.as_chunks().0, block);
            let high = high_part::<BITS>(tile.high.as_chunks().0, block);
            let bytes = block_bytes::<BITS>(low, high);
            for sub in 0..subs {
                let scale = scales.scale::<SUPER, MIN>(i * subs + sub);
                for token in 0..WIDTH {
                    let start = if MIN { MAGIC_BITS } else { starts[block * subs + sub][token] };
                    let mut dot = _mm512_set1_epi32(start);
                    for group in sub * 8 / subs..(sub + 1) * 8 / subs {
                        let quants = broadcast(&quants[group][token]);
                        dot = _mm512_dpbusd_epi32(dot, bytes[group], quants);
                    }
                    let x_scale = _mm512_set1_ps(x_scales[block][token]);
                    let x_bias = _mm512_set1_ps(x_biases[block][token]);
                    let steps = _mm512_fmadd_ps(_mm512_castsi512_ps(dot), x_scale, x_bias);
                    totals[token] = _mm512_fmadd_ps(steps, scale, totals[token]);
                }
            }
            if MIN {
                let min = scales.min::<SUPER>(i);
                for token in 0..WIDTH {
                    let x_sum = _mm512_set1_ps(x_sums[block][token]);
                    totals[token] = _mm512_fmadd_ps(x_sum, min, totals[token]);
                }
            }
        }
    }
    *ahead = asked;
    totals
}

#[target_feature(enable = "avx512f")]
fn multiply_float(tiles: usize, chunk: &FloatChunk, x: &[&[f32]], sums: &mut [Sums]) {
    match tiles {
        1 => floats_by_width::<1>(chunk, x, sums),
        _ => floats_by_width::<2>(chunk, x, sums),
    }
}

#[target_feature(enable = "avx512f")]
fn floats_by_width<const TILES: usize>(chunk: &FloatChunk, x: &[&[f32]], sums: &mut [Sums]) {
    match *x {
        [] => {}
        [a] => floats_times_unit::<1, TILES>(chunk, [a], sums),
        [a, b] => floats_times_unit::<2, TILES>(chunk, [a, b], sums),
        [a, b, c] => floats_times_unit::<3, TILES>(chunk, [a, b, c], sums),
        [a, b, c, d] => floats_times_unit::<4, TILES>(chunk, [a, b, c, d], sums),
        [a, b, c, d, e] => floats_times_unit::<5, TILES>(chunk, [a, b, c, d, e], sums),
        [a, b, c, d, e, f, ..] => {
            floats_times_unit::<6, TILES>(chunk, [a, b, c, d, e, f], sums);
        }
    }
}

#[target_feature(enable = "avx512f")]
fn floats_times_unit<const WIDTH: usize, const TILES: usize>(
    chunk: &FloatChunk,
    mut x: [&[f32]; WIDTH],
    sums: &mut [Sums],
) {
    let len = x[0].len();
    for x in &mut x {
        *x = &x[..len];
    }
    let mut weights = [&chunk.weights[0][..len]; TILES];
    for tile in 0..TILES {
        weights[tile] = &chunk.weights[tile][..len];
    }
    let mut totals = load_sums::<WIDTH, TILES>(sums);
    for col in 0..len {
        let mut lanes = [_mm512_setzero_ps(); TILES];
        for (lanes, weights) in lanes.iter_mut().zip(weights) {
            *lanes = load_lanes(&weights[col]);
        }
        for (totals, x) in totals.iter_mut().zip(x) {
            let x = _mm512_set1_ps(x[col]);
            for (total, weights) in totals.iter_mut().zip(lanes) {
                *total = _mm512_fmadd_ps(weights, x, *total);
            }
        }
    }
    store_sums(&totals, sums);
}
