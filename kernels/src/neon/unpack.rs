//! Packed tiles of 16 rows into registers: four vectors of four rows, a row in each 32-bit lane.

use core::arch::aarch64::*;

use crate::gemm::{FloatChunk, IntChunk, Lanes, TileCols};
use crate::packed::{BLOCK_LEN, IntTile, Scales};

/// A line of a plane: a byte for each of 16 rows × 4 columns.
pub(super) type Line = [u8; 64];

/// Unpacks the signed bytes of a group of a block: 16 rows × 4 columns.
///
/// `low` and `high` are the block's part of the planes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn group_bytes<const BITS: u32>(
    low: &[Line],
    high: &[Line],
    group: usize,
) -> [int8x16_t; 4] {
    let mut bytes = load(&low[if BITS == 8 { group } else { group / 2 }]);
    for bytes in &mut bytes {
        *bytes = if BITS == 8 {
            veorq_u8(*bytes, vdupq_n_u8(0x80))
        } else if group.is_multiple_of(2) {
            vandq_u8(*bytes, vdupq_n_u8(15))
        } else {
            vshrq_n_u8::<4>(*bytes)
        };
    }
    if BITS == 5 {
        or_bits(&mut bytes, load(&high[0]), group, 0x10);
    } else if BITS == 6 {
        or_bits(&mut bytes, load(&high[group / 4]), group % 4 * 2, 0x30);
    }
    let [a, b, c, d] = bytes;
    [vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b), vreinterpretq_s8_u8(c), vreinterpretq_s8_u8(d)]
}

/// Adds the bits of `high` from bit `from` on, as the bits of `mask` from bit 4 on.
#[inline]
#[target_feature(enable = "neon")]
fn or_bits(bytes: &mut [uint8x16_t; 4], high: [uint8x16_t; 4], from: usize, mask: u8) {
    for (bytes, high) in bytes.iter_mut().zip(high) {
        let shifted = match from {
            0 => vshlq_n_u8::<4>(high),
            1 => vshlq_n_u8::<3>(high),
            2 => vshlq_n_u8::<2>(high),
            3 => vshlq_n_u8::<1>(high),
            5 => vshrq_n_u8::<1>(high),
            6 => vshrq_n_u8::<2>(high),
            7 => vshrq_n_u8::<3>(high),
            _ => high,
        };
        *bytes = vorrq_u8(*bytes, vandq_u8(shifted, vdupq_n_u8(mask)));
    }
}

/// Returns a block's part of the plane of low bits.
#[inline(always)]
pub(super) fn low_part<const BITS: u32>(low: &[u8], block: usize) -> &[Line] {
    let lines = if BITS == 8 { 8 } else { 4 };
    &low.as_chunks().0[block * lines..][..lines]
}

/// Returns a block's part of the plane of high bits.
#[inline(always)]
pub(super) fn high_part<const BITS: u32>(high: &[u8], block: usize) -> &[Line] {
    let lines = if BITS == 5 {
        1
    } else if BITS == 6 {
        2
    } else {
        0
    };
    &high.as_chunks().0[block * lines..][..lines]
}

/// The scales of one step of a scale plane: a block, or a super-block of 8.
#[derive(Clone, Copy)]
pub(super) struct StepScales<'a> {
    scale: [float32x4_t; 4],
    /// The minima, or minus the scale of the minima.
    min: [float32x4_t; 4],
    bytes: &'a [[u8; 16]],
}

impl<'a> StepScales<'a> {
    /// Reads the floats of a step.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn read<const SUPER: bool, const MIN: bool>(step: &'a [u8]) -> Self {
        let floats: &[[u8; 32]] = step.as_chunks().0;
        let mut min = if MIN { halves(&floats[1]) } else { [vdupq_n_f32(0.0); 4] };
        if SUPER {
            for min in &mut min {
                *min = vnegq_f32(*min);
            }
        }
        let bytes = step[if MIN { 64 } else { 32 }..].as_chunks().0;
        Self { scale: halves(&floats[0]), min, bytes }
    }

    /// Returns the scales of sub-block `sub` of the step.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn scale<const SUPER: bool, const MIN: bool>(&self, sub: usize) -> [float32x4_t; 4] {
        if !SUPER {
            return self.scale;
        }
        let steps = if MIN { unsigned(&self.bytes[sub]) } else { signed(&self.bytes[sub]) };
        times(self.scale, steps)
    }

    /// Returns the minima of block `block` of the step.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn min<const SUPER: bool>(&self, block: usize) -> [float32x4_t; 4] {
        if !SUPER {
            return self.min;
        }
        times(self.min, unsigned(&self.bytes[8 + block]))
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn times(mut a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
    for (a, b) in a.iter_mut().zip(b) {
        *a = vmulq_f32(*a, b);
    }
    a
}

/// Returns 16 bytes as floats.
#[inline]
#[target_feature(enable = "neon")]
fn unsigned(bytes: &[u8; 16]) -> [float32x4_t; 4] {
    let bytes = load_16(bytes);
    let (left, right) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
    [
        vcvtq_f32_u32(vmovl_u16(vget_low_u16(left))),
        vcvtq_f32_u32(vmovl_high_u16(left)),
        vcvtq_f32_u32(vmovl_u16(vget_low_u16(right))),
        vcvtq_f32_u32(vmovl_high_u16(right)),
    ]
}

/// Returns 16 signed bytes as floats.
#[inline]
#[target_feature(enable = "neon")]
fn signed(bytes: &[u8; 16]) -> [float32x4_t; 4] {
    let bytes = vreinterpretq_s8_u8(load_16(bytes));
    let (left, right) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
    [
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(left))),
        vcvtq_f32_s32(vmovl_high_s16(left)),
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(right))),
        vcvtq_f32_s32(vmovl_high_s16(right)),
    ]
}

/// See [`crate::gemm::Kernel::unpack_int`]; the bytes of the chunk are signed.
#[target_feature(enable = "neon")]
pub(super) fn int(tile: &IntTile<'_>, chunk: &mut IntChunk, index: usize) {
    match tile.form.bits {
        4 => bytes_to_chunk::<4>(tile, &mut chunk.bytes[index]),
        5 => bytes_to_chunk::<5>(tile, &mut chunk.bytes[index]),
        6 => bytes_to_chunk::<6>(tile, &mut chunk.bytes[index]),
        _ => bytes_to_chunk::<8>(tile, &mut chunk.bytes[index]),
    }
    let (scales, mins) = (&mut chunk.scales[index], &mut chunk.mins[index]);
    match tile.form.scales {
        Scales::Plain => scales_to_chunk::<false, false>(tile, scales, mins),
        Scales::Min => scales_to_chunk::<false, true>(tile, scales, mins),
        Scales::SuperMin => scales_to_chunk::<true, true>(tile, scales, mins),
        Scales::SuperPlain => scales_to_chunk::<true, false>(tile, scales, mins),
    }
}

#[target_feature(enable = "neon")]
fn bytes_to_chunk<const BITS: u32>(tile: &IntTile<'_>, target: &mut [Line]) {
    let blocks = target.as_chunks_mut::<8>().0.iter_mut().take(tile.blocks_len());
    for (block, target) in blocks.enumerate() {
        let low = low_part::<BITS>(tile.low, block);
        let high = high_part::<BITS>(tile.high, block);
        unrolled!(GROUP in [0 1 2 3 4 5 6 7] {
            let bytes = group_bytes::<BITS>(low, high, GROUP);
            for (bytes, target) in bytes.into_iter().zip(target[GROUP].as_chunks_mut().0) {
                store(target, vreinterpretq_u8_s8(bytes));
            }
        });
    }
}

#[target_feature(enable = "neon")]
fn scales_to_chunk<const SUPER: bool, const MIN: bool>(
    tile: &IntTile<'_>,
    scales: &mut [Lanes],
    mins: &mut [Lanes],
) {
    let (size, step_cols) = tile.form.scales.step();
    let blocks = step_cols / BLOCK_LEN;
    let subs = step_cols / tile.form.scales.sub_len();
    for (i, step) in tile.scales.chunks_exact(size).enumerate() {
        let step = StepScales::read::<SUPER, MIN>(step);
        for (sub, lanes) in scales[i * subs..][..subs].iter_mut().enumerate() {
            store_lanes(lanes, step.scale::<SUPER, MIN>(sub));
        }
        if MIN {
            for (block, lanes) in mins[i * blocks..][..blocks].iter_mut().enumerate() {
                store_lanes(lanes, step.min::<SUPER>(block));
            }
        }
    }
}

/// See [`crate::gemm::Kernel::unpack_float`]; false if this form has no kernel here.
#[target_feature(enable = "neon")]
pub(super) fn float(tile: &TileCols<'_>, len: usize, chunk: &mut FloatChunk, index: usize) -> bool {
    let FloatChunk { weights, ints } = chunk;
    let target = &mut weights[index][..len];
    match *tile {
        TileCols::Int(tile) => {
            int(&tile, ints, 0);
            int_to_floats(&tile, ints, target);
        }
        TileCols::F16(bytes) => {
            for (bytes, target) in bytes.as_chunks().0.iter().zip(target) {
                store_lanes(target, halves(bytes));
            }
        }
        TileCols::Bf16(bytes) => {
            for (bytes, target) in bytes.as_chunks().0.iter().zip(target) {
                store_lanes(target, upper_halves(bytes));
            }
        }
        TileCols::F32(bytes) => {
            for (bytes, target) in bytes.as_chunks().0.iter().zip(target) {
                for (bytes, target) in load(bytes).into_iter().zip(target.as_chunks_mut().0) {
                    store_4(target, vreinterpretq_f32_u8(bytes));
                }
            }
        }
        TileCols::Rows(..) => return false,
    }
    true
}

#[target_feature(enable = "neon")]
fn int_to_floats(tile: &IntTile<'_>, ints: &IntChunk, target: &mut [Lanes]) {
    // The bytes of 8 bits have been moved by their zero.
    let zero = if tile.form.bits == 8 { 0 } else { i32::from(tile.form.zero) };
    let zero = vdupq_n_s32(zero);
    let has_min = tile.form.scales.has_min();
    let sub_groups = tile.form.scales.sub_len() / 4;
    for (group, target) in target.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let bytes = load(&ints.bytes[0][group]);
        let scale = load_lanes(&ints.scales[0][group / sub_groups]);
        let min = load_lanes(&ints.mins[0][group / 8]);
        for part in 0..4 {
            let bytes = vreinterpretq_s32_u8(bytes[part]);
            // Each byte of a lane goes to the top, and down with its sign.
            let columns = [
                vshlq_n_s32::<24>(bytes),
                vshlq_n_s32::<16>(bytes),
                vshlq_n_s32::<8>(bytes),
                bytes,
            ];
            for (column, target) in columns.into_iter().zip(&mut *target) {
                let steps = vcvtq_f32_s32(vsubq_s32(vshrq_n_s32::<24>(column), zero));
                let weight = vmulq_f32(scale[part], steps);
                let weight = if has_min { vaddq_f32(weight, min[part]) } else { weight };
                store_4(&mut target.as_chunks_mut().0[part], weight);
            }
        }
    }
}

/// Loads a line of bytes at any alignment.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load(line: &Line) -> [uint8x16_t; 4] {
    let parts = line.as_chunks().0;
    [load_16(&parts[0]), load_16(&parts[1]), load_16(&parts[2]), load_16(&parts[3])]
}

#[inline]
#[target_feature(enable = "neon")]
fn load_16(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: `bytes` is 16 readable bytes, and `vld1q` takes any alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(target: &mut [u8; 16], bytes: uint8x16_t) {
    // SAFETY: `target` is 16 writable bytes, and `vst1q` takes any alignment.
    unsafe { vst1q_u8(target.as_mut_ptr(), bytes) };
}

/// Loads 16 numbers of 16 bits as two vectors of eight.
#[inline]
#[target_feature(enable = "neon")]
fn load_words(bytes: &[u8; 32]) -> [uint16x8_t; 2] {
    let parts = bytes.as_chunks().0;
    [vreinterpretq_u16_u8(load_16(&parts[0])), vreinterpretq_u16_u8(load_16(&parts[1]))]
}

/// Widens 16 half floats.
#[inline]
#[target_feature(enable = "neon")]
fn halves(bytes: &[u8; 32]) -> [float32x4_t; 4] {
    let words = load_words(bytes);
    let (left, right) = (vreinterpretq_f16_u16(words[0]), vreinterpretq_f16_u16(words[1]));
    [
        vcvt_f32_f16(vget_low_f16(left)),
        vcvt_high_f32_f16(left),
        vcvt_f32_f16(vget_low_f16(right)),
        vcvt_high_f32_f16(right),
    ]
}

/// Widens 16 upper halves of floats.
#[inline]
#[target_feature(enable = "neon")]
fn upper_halves(bytes: &[u8; 32]) -> [float32x4_t; 4] {
    let [left, right] = load_words(bytes);
    [
        vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(left))),
        vreinterpretq_f32_u32(vshll_high_n_u16::<16>(left)),
        vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(right))),
        vreinterpretq_f32_u32(vshll_high_n_u16::<16>(right)),
    ]
}

/// Loads a value for each of 16 rows.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_lanes(lanes: &Lanes) -> [float32x4_t; 4] {
    let parts = lanes.as_chunks().0;
    [load_4(&parts[0]), load_4(&parts[1]), load_4(&parts[2]), load_4(&parts[3])]
}

/// Loads a value for each of 4 rows.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_4(lanes: &[f32; 4]) -> float32x4_t {
    // SAFETY: `lanes` is 4 readable floats, and `vld1q` takes any alignment.
    unsafe { vld1q_f32(lanes.as_ptr()) }
}

/// Stores a value for each of 16 rows.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_lanes(target: &mut Lanes, lanes: [float32x4_t; 4]) {
    for (target, lanes) in target.as_chunks_mut().0.iter_mut().zip(lanes) {
        store_4(target, lanes);
    }
}

/// Stores a value for each of 4 rows.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_4(target: &mut [f32; 4], lanes: float32x4_t) {
    // SAFETY: `target` is 4 writable floats, and `vst1q` takes any alignment.
    unsafe { vst1q_f32(target.as_mut_ptr(), lanes) };
}
