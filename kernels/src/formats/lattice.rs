//! The IQ formats of one to three bits: groups of weights are points of a lattice.
//!
//! An index picks a point of [`super::grids`]; in IQ2 and IQ3 a bit a weight holds its sign, in
//! IQ1 the whole point is shifted by an eighth. Scales belong to groups of 16 or 32 weights.
//!
//! Source: ggml `ggml-quants.c`, `dequantize_row_iq2_xxs` and the functions that follow it.

use super::{f16_at, grids};

/// What the coordinates of the IQ2 lattices stand for; the last is never used.
const IQ2_VALUES: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
/// What the coordinates of the IQ3_XXS lattice stand for.
const IQ3_XXS_VALUES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
/// What the coordinates of the IQ3_S lattice stand for.
const IQ3_S_VALUES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
/// How far IQ1 shifts a point.
const IQ1_DELTA: f32 = 0.125;

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from(u16_at(block, at)) | u32::from(u16_at(block, at + 2)) << 16
}

/// Returns the `i`-th half byte, low halves first.
fn half_byte(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (i % 2 * 4) & 15
}

/// Returns eight signs from the seven that are stored: their number is even.
fn eight_signs(seven: u32) -> u8 {
    let seven = seven.to_le_bytes()[0] & 127;
    seven | (seven.count_ones() & 1).to_le_bytes()[0] << 7
}

fn signed(value: f32, signs: u8, i: usize) -> f32 {
    if signs >> i & 1 == 1 { -value } else { value }
}

/// Writes the eight weights of an IQ2 point.
fn iq2_point(scale: f32, point: u16, signs: u8, out: &mut [f32; 8]) {
    for (i, value) in out.iter_mut().enumerate() {
        let coordinate = usize::from(point >> (2 * i) & 3);
        *value = signed(scale * IQ2_VALUES[coordinate], signs, i);
    }
}

/// Writes the eight weights of two IQ3 points.
fn iq3_points(scale: f32, values: &[f32; 8], points: [u16; 2], signs: u8, out: &mut [f32; 8]) {
    for (i, value) in out.iter_mut().enumerate() {
        let coordinate = usize::from(points[i / 4] >> (i % 4 * 4) & 7);
        *value = signed(scale * values[coordinate], signs, i);
    }
}

/// Layout: scale (f16), then for 32 weights each: 4 indices (u8), and a u32 of 4 times 7 signs and
/// the group's scale.
pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let scale = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let group = 2 + 8 * (i / 4);
        let packed = u32_at(block, group + 4);
        let group_scale = scale * (0.5 + small(packed >> 28)) * 0.25;
        let point = grids::IQ2_XXS[usize::from(block[group + i % 4])];
        iq2_point(group_scale, point, eight_signs(packed >> (i % 4 * 7)), out);
    }
}

/// Layout: scale (f16), 32 times 9 bits of index and 7 signs (u16), 16 scales of 4 bits.
pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let scale = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let packed = u16_at(block, 2 + 2 * i);
        let group_scale = scale * (0.5 + f32::from(half_byte(&block[66..], i / 2))) * 0.25;
        let point = grids::IQ2_XS[usize::from(packed & 511)];
        iq2_point(group_scale, point, eight_signs(u32::from(packed >> 9)), out);
    }
}

/// Layout: scale (f16), 32 low bytes of indices, 32 bytes of signs, 32 times the upper 2 bits of
/// indices, 16 scales of 4 bits.
pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let scale = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let upper = block[66 + i / 4] >> (i % 4 * 2) & 3;
        let group_scale = scale * (0.5 + f32::from(half_byte(&block[74..], i / 2))) * 0.25;
        let point = grids::IQ2_S[usize::from(block[2 + i]) | usize::from(upper) << 8];
        iq2_point(group_scale, point, block[34 + i], out);
    }
}

/// Layout: scale (f16), 64 indices (u8), then for 32 weights each a u32 of 4 times 7 signs and the
/// group's scale.
pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let scale = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let packed = u32_at(block, 66 + i / 4 * 4);
        let group_scale = scale * (0.5 + small(packed >> 28)) * 0.5;
        let points = [0, 1].map(|side| grids::IQ3_XXS[usize::from(block[2 + 2 * i + side])]);
        let signs = eight_signs(packed >> (i % 4 * 7));
        iq3_points(group_scale, &IQ3_XXS_VALUES, points, signs, out);
    }
}

/// Layout: scale (f16), 64 low bytes of indices, 64 upper bits of indices, 32 bytes of signs,
/// 8 scales of 4 bits.
pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let scale = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let group_scale = scale * f32::from(1 + 2 * half_byte(&block[106..], i / 4));
        let points = [0, 1].map(|side| {
            let at = 2 * i + side;
            let upper = block[66 + at / 8] >> (at % 8) & 1;
            grids::IQ3_S[usize::from(block[2 + at]) | usize::from(upper) << 8]
        });
        iq3_points(group_scale, &IQ3_S_VALUES, points, block[74 + i], out);
    }
}

/// Writes the eight weights of an IQ1 point; its coordinates 0, 1, 2 stand for -1, 0, 1.
fn iq1_point(scale: f32, index: usize, shift_down: bool, out: &mut [f32; 8]) {
    let delta = if shift_down { -IQ1_DELTA } else { IQ1_DELTA };
    let point = grids::IQ1[index];
    for (i, value) in out.iter_mut().enumerate() {
        *value = scale * (f32::from(point >> (2 * i) & 3) - 1.0 + delta);
    }
}

/// Layout: scale (f16), 32 low bytes of indices, then for 32 weights each a u16 of 4 times 3 upper
/// bits of indices, the group's scale (3 bits) and whether it is shifted down.
pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let scale = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let packed = u16_at(block, 34 + i / 4 * 2);
        let group_scale = scale * f32::from(2 * (packed >> 12 & 7) + 1);
        let index = usize::from(block[2 + i]) | usize::from(packed >> (i % 4 * 3) & 7) << 8;
        iq1_point(group_scale, index, packed >> 15 == 1, out);
    }
}

/// Layout: 32 low bytes of indices, 32 times 3 upper bits and whether the point is shifted down,
/// then four u16 of 4 times 3 bits of scale and 4 bits of the block's scale (f16).
pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let scales = [48, 50, 52, 54].map(|at| u16_at(block, at));
    let bits = scales.iter().rev().fold(0, |bits, packed| bits << 4 | packed >> 12);
    let scale = half::f16::from_bits(bits).to_f32();
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let group = i / 2;
        let group_scale = scale * f32::from(2 * (scales[group / 4] >> (group % 4 * 3) & 7) + 1);
        let upper = half_byte(&block[32..], i);
        let index = usize::from(block[i]) | usize::from(upper & 7) << 8;
        iq1_point(group_scale, index, upper & 8 != 0, out);
    }
}

/// Returns a number below 16 as a float.
fn small(bits: u32) -> f32 {
    f32::from(bits.to_le_bytes()[0])
}
