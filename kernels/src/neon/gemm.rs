//! Matrix products with NEON; see [`crate::gemm()`] for the formula.
//!
//! Many tokens: half a tile (8 rows) times a panel of six tokens, 12 integer and 12 float sums.
//! One token: a whole tile.

#![expect(clippy::needless_range_loop, reason = "one index for several arrays of registers")]

use core::arch::aarch64::*;

use super::dot::Dot;
use super::unpack::{
    self, Line, StepScales, group_bytes, high_part, load_4, load_lanes, low_part, store_4,
    store_lanes,
};
use crate::gemm::{FloatChunk, IntChunk, Kernel, Lanes, Sums, TileCols, by_form};
use crate::isa::{Neon, NeonDotprod};
use crate::packed::{BLOCK_LEN, IntForm, IntTile, TILE_ROWS};
use crate::prefetch::Ahead;
use crate::quantize::{MAGIC_BITS, PANEL_TOKENS, Panel};
use crate::reference::Plain;

/// Implements [`Kernel`] for a proof that is a [`Dot`].
macro_rules! kernel {
    ($proof:ty) => {
        impl Kernel for $proof {
            fn unpack_int(self, tile: &IntTile<'_>, chunk: &mut IntChunk, index: usize) {
                // SAFETY: the proof says that the CPU has NEON.
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
                for half in 0..tiles * 2 {
                    ahead.steps((panel.scales.len() / panel.width).div_ceil(tiles * 2));
                    let part = HalfTile {
                        bytes: &chunk.bytes[half / 2],
                        scales: &chunk.scales[half / 2],
                        mins: &chunk.mins[half / 2],
                        half,
                    };
                    // SAFETY: the proof says that the CPU has NEON.
                    unsafe { multiply_half(self, form, &part, panel, sums) }
                }
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
                    // SAFETY: the proof says that the CPU has NEON.
                    unsafe { multiply_one(self, tile, panel, ahead, sums) }
                }
            }

            fn unpack_float(
                self,
                tile: &TileCols<'_>,
                len: usize,
                chunk: &mut FloatChunk,
                index: usize,
            ) {
                // SAFETY: the proof says that the CPU has NEON.
                let is_done = unsafe { unpack::float(tile, len, chunk, index) };
                if !is_done {
                    Plain.unpack_float(tile, len, chunk, index);
                }
            }

            fn multiply_float(
                self,
                tiles: usize,
                chunk: &FloatChunk,
                x: &[&[f32]],
                sums: &mut [Sums],
            ) {
                for tile in 0..tiles {
                    // SAFETY: the proof says that the CPU has NEON.
                    unsafe { multiply_float(tile, &chunk.weights[tile], x, sums) }
                }
            }
        }
    };
}
kernel!(Neon);
kernel!(NeonDotprod);

/// Half of an unpacked tile.
struct HalfTile<'a> {
    /// `[column / 4]`, of the whole tile
    bytes: &'a [Line],
    /// `[sub-block]`, of the whole tile
    scales: &'a [Lanes],
    /// `[block]`, of the whole tile
    mins: &'a [Lanes],
    /// Which half of the unit it is: the first of its 8 rows is `half * 8`.
    half: usize,
}

impl HalfTile<'_> {
    /// Returns the half's part of a line.
    #[inline(always)]
    fn half_of<'a>(&self, line: &'a Line) -> &'a [[u8; 16]; 2] {
        let parts = line.as_chunks().0.as_chunks().0;
        &parts[self.half % 2]
    }

    /// Returns the half's part of a value for each row.
    #[inline]
    #[target_feature(enable = "neon")]
    fn lanes(&self, lanes: &Lanes) -> [float32x4_t; 2] {
        load_8(&lanes.as_chunks().0[self.half % 2])
    }
}

#[target_feature(enable = "neon")]
fn multiply_half<D: Dot>(
    kind: D,
    form: IntForm,
    tile: &HalfTile<'_>,
    panel: &Panel<'_>,
    sums: &mut [Sums],
) {
    match (form.bits, form.scales.has_min()) {
        (4, false) => by_width::<D, 4, false>(kind, tile, panel, sums),
        (5, false) => by_width::<D, 5, false>(kind, tile, panel, sums),
        (6, false) => by_width::<D, 6, false>(kind, tile, panel, sums),
        (4, true) => by_width::<D, 4, true>(kind, tile, panel, sums),
        (5, true) => by_width::<D, 5, true>(kind, tile, panel, sums),
        _ => by_width::<D, 8, false>(kind, tile, panel, sums),
    }
}

#[target_feature(enable = "neon")]
fn by_width<D: Dot, const BITS: u32, const MIN: bool>(
    kind: D,
    tile: &HalfTile<'_>,
    panel: &Panel<'_>,
    sums: &mut [Sums],
) {
    match panel.width {
        1 => panel_times_half::<D, 1, BITS, MIN>(kind, tile, panel, sums),
        2 => panel_times_half::<D, 2, BITS, MIN>(kind, tile, panel, sums),
        3 => panel_times_half::<D, 3, BITS, MIN>(kind, tile, panel, sums),
        4 => panel_times_half::<D, 4, BITS, MIN>(kind, tile, panel, sums),
        5 => panel_times_half::<D, 5, BITS, MIN>(kind, tile, panel, sums),
        _ => panel_times_half::<D, 6, BITS, MIN>(kind, tile, panel, sums),
    }
}

/// Sub-blocks of a block: only the 6-bit format has two.
const fn subs_of(bits: u32) -> usize {
    if bits == 6 { 2 } else { 1 }
}

/// Returns what an integer sum starts from. The bytes of 8 bits have been moved by their zero.
#[inline(always)]
fn start<const BITS: u32, const MIN: bool>(starts: &[i32], at: usize) -> i32 {
    if MIN || BITS == 8 { MAGIC_BITS } else { starts[at] }
}

/// Adds `WIDTH` tokens times half a tile.
#[target_feature(enable = "neon")]
fn panel_times_half<D: Dot, const WIDTH: usize, const BITS: u32, const MIN: bool>(
    kind: D,
    tile: &HalfTile<'_>,
    panel: &Panel<'_>,
    sums: &mut [Sums],
) {
    let quants = panel.quants.as_chunks::<4>().0.as_chunks::<WIDTH>().0.as_chunks::<8>().0;
    let x_scales = panel.scales.as_chunks::<WIDTH>().0;
    let x_biases = panel.biases.as_chunks::<WIDTH>().0;
    let x_sums = panel.sums.as_chunks::<WIDTH>().0;
    let sums: &mut [Sums; WIDTH] = sums.first_chunk_mut().expect("each token has its sums");
    let mut totals = [[vdupq_n_f32(0.0); 2]; WIDTH];
    for token in 0..WIDTH {
        totals[token] = load_8(&sums[token].as_chunks().0[tile.half]);
    }
    for (block, (((quants, x_scales), x_biases), x_sums)) in
        quants.iter().zip(x_scales).zip(x_biases).zip(x_sums).enumerate()
    {
        let quants: &[[[i8; 16]; WIDTH]; 2] = halves_of(quants);
        for i in 0..subs_of(BITS) {
            let sub = block * subs_of(BITS) + i;
            let mut dots = [[vdupq_n_s32(0); 2]; WIDTH];
            for token in 0..WIDTH {
                let start = start::<BITS, MIN>(panel.starts, sub * WIDTH + token);
                dots[token] = [vdupq_n_s32(start); 2];
            }
            let halves = 2 / subs_of(BITS);
            for half in i * halves..(i + 1) * halves {
                let bytes = &tile.bytes.as_chunks().0[block * 2 + half];
                add_groups::<D, WIDTH, BITS>(kind, tile, bytes, &quants[half], &mut dots);
            }
            let scale = tile.lanes(&tile.scales[sub]);
            for token in 0..WIDTH {
                for part in 0..2 {
                    let dots = vreinterpretq_f32_s32(dots[token][part]);
                    let bias = vdupq_n_f32(x_biases[token]);
                    let steps = vfmaq_n_f32(bias, dots, x_scales[token]);
                    totals[token][part] = vfmaq_f32(totals[token][part], steps, scale[part]);
                }
            }
        }
        if MIN {
            let min = tile.lanes(&tile.mins[block]);
            for token in 0..WIDTH {
                for part in 0..2 {
                    totals[token][part] =
                        vfmaq_n_f32(totals[token][part], min[part], x_sums[token]);
                }
            }
        }
    }
    for token in 0..WIDTH {
        let target: &mut [[f32; 4]] = sums[token].as_chunks_mut().0;
        for part in 0..2 {
            store_4(&mut target[tile.half * 2 + part], totals[token][part]);
        }
    }
}

/// Cuts the quants of a block, `[group][token][4]`, into vectors: as many as there are tokens for
/// each half of the groups.
#[inline(always)]
fn halves_of<const WIDTH: usize>(quants: &[[[i8; 4]; WIDTH]; 8]) -> &[[[i8; 16]; WIDTH]; 2] {
    let vectors = quants.as_flattened().as_flattened().as_chunks::<16>().0;
    vectors.as_chunks().0.first_chunk().expect("8 groups of 4 bytes are 2 vectors for a token")
}

/// Adds the products of four groups to `dots`.
#[inline(always)]
fn add_groups<D: Dot, const WIDTH: usize, const BITS: u32>(
    kind: D,
    tile: &HalfTile<'_>,
    bytes: &[Line; 4],
    quants: &[[i8; 16]; WIDTH],
    dots: &mut [[int32x4_t; 2]; WIDTH],
) {
    const { assert!(WIDTH <= PANEL_TOKENS && PANEL_TOKENS * 4 == 24, "every product is below") };
    let mut sums = [[kind.begin(dots[0][0]); 2]; WIDTH];
    unrolled!(AT in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23] {
        let (group, token) = (AT / WIDTH, AT % WIDTH);
        if group < 4 {
            let quants = load_quants(&quants[AT / 4]);
            for (part, bytes) in tile.half_of(&bytes[group]).iter().enumerate() {
                let dots = &mut dots[token][part];
                let sums = &mut sums[token][part];
                if group.is_multiple_of(D::groups(BITS)) {
                    *sums = kind.begin(*dots);
                }
                let bytes = load_bytes(bytes);
                *sums = kind.add::<{ AT as i32 % 4 }>(*sums, bytes, quants);
                if (group + 1).is_multiple_of(D::groups(BITS)) {
                    *dots = kind.end(*dots, *sums);
                }
            }
        }
    });
}

/// Loads the bytes of four rows.
#[inline(always)]
fn load_bytes(bytes: &[u8; 16]) -> int8x16_t {
    // SAFETY: `bytes` is 16 readable bytes, and `vld1q` takes any alignment.
    unsafe { vld1q_s8(bytes.as_ptr().cast()) }
}

/// Loads four groups of quants.
#[inline(always)]
fn load_quants(quants: &[i8; 16]) -> int8x16_t {
    // SAFETY: `quants` is 16 readable bytes, and `vld1q` takes any alignment.
    unsafe { vld1q_s8(quants.as_ptr()) }
}

/// Loads a value for each of 8 rows.
#[inline]
#[target_feature(enable = "neon")]
fn load_8(lanes: &[f32; 8]) -> [float32x4_t; 2] {
    let parts = lanes.as_chunks().0;
    [load_4(&parts[0]), load_4(&parts[1])]
}

#[target_feature(enable = "neon")]
fn multiply_one<D: Dot>(
    kind: D,
    tile: &IntTile<'_>,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
    sums: &mut Lanes,
) {
    let totals = by_form!(tile.form, token_times_tile, [D], (kind, tile, panel, ahead));
    store_lanes(sums, totals);
}

/// Computes one token times a tile, unpacking in registers.
#[target_feature(enable = "neon")]
fn token_times_tile<D: Dot, const BITS: u32, const SUPER: bool, const MIN: bool>(
    kind: D,
    tile: &IntTile<'_>,
    panel: &Panel<'_>,
    ahead: &mut Ahead<'_>,
) -> [float32x4_t; 4] {
    let quants = panel.quants.as_chunks::<4>().0.as_chunks::<8>().0;
    let subs = subs_of(BITS);
    let (size, step_cols) = tile.form.scales.step();
    let step_blocks = step_cols / BLOCK_LEN;
    let mut asked = *ahead;
    let mut totals = [vdupq_n_f32(0.0); 4];
    for (step, quants) in quants.chunks_exact(step_blocks).enumerate() {
        let scales = StepScales::read::<SUPER, MIN>(&tile.scales[step * size..][..size]);
        for (i, quants) in quants.iter().enumerate() {
            let block = step * step_blocks + i;
            let low = low_part::<BITS>(tile.low, block);
            let high = high_part::<BITS>(tile.high, block);
            asked.step();
            for sub in 0..subs {
                let start = start::<BITS, MIN>(panel.starts, block * subs + sub);
                let mut dots = [vdupq_n_s32(start); 4];
                if subs == 1 || sub == 0 {
                    add_packed::<D, BITS, 0>(kind, low, high, quants, &mut dots);
                }
                if subs == 1 || sub == 1 {
                    add_packed::<D, BITS, 1>(kind, low, high, quants, &mut dots);
                }
                let bias = vdupq_n_f32(panel.biases[block]);
                let scale = scales.scale::<SUPER, MIN>(i * subs + sub);
                for part in 0..4 {
                    let dots = vreinterpretq_f32_s32(dots[part]);
                    let steps = vfmaq_n_f32(bias, dots, panel.scales[block]);
                    totals[part] = vfmaq_f32(totals[part], steps, scale[part]);
                }
            }
            if MIN {
                let min = scales.min::<SUPER>(i);
                for part in 0..4 {
                    totals[part] = vfmaq_n_f32(totals[part], min[part], panel.sums[block]);
                }
            }
        }
    }
    *ahead = asked;
    totals
}

/// Adds the products of half a packed block to `dots`.
#[inline]
#[target_feature(enable = "neon")]
fn add_packed<D: Dot, const BITS: u32, const HALF: usize>(
    kind: D,
    low: &[Line],
    high: &[Line],
    quants: &[[i8; 4]; 8],
    dots: &mut [int32x4_t; 4],
) {
    let quants = load_quants(&quants.as_flattened().as_chunks().0[HALF]);
    let mut sums = [kind.begin(dots[0]); 4];
    unrolled!(GROUP in [0 1 2 3] {
        let bytes = group_bytes::<BITS>(low, high, HALF * 4 + GROUP);
        for part in 0..4 {
            if GROUP.is_multiple_of(D::groups(BITS)) {
                sums[part] = kind.begin(dots[part]);
            }
            sums[part] = kind.add::<{ GROUP as i32 }>(sums[part], bytes[part], quants);
            if (GROUP + 1).is_multiple_of(D::groups(BITS)) {
                dots[part] = kind.end(dots[part], sums[part]);
            }
        }
    });
}

#[target_feature(enable = "neon")]
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

#[target_feature(enable = "neon")]
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
    let mut totals = [[vdupq_n_f32(0.0); 4]; WIDTH];
    for token in 0..WIDTH {
        totals[token] = load_lanes(&sums[token].as_chunks::<TILE_ROWS>().0[tile]);
    }
    for (col, weights) in weights[..len].iter().enumerate() {
        let lanes = load_lanes(weights);
        for token in 0..WIDTH {
            for part in 0..4 {
                totals[token][part] = vfmaq_n_f32(totals[token][part], lanes[part], x[token][col]);
            }
        }
    }
    for token in 0..WIDTH {
        store_lanes(&mut sums[token].as_chunks_mut().0[tile], totals[token]);
    }
}
