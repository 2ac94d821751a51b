//! Plain floats, and the formats of 32 weights with one scale a block.
//!
//! Layout: scale (f16), for `_1` formats minimum (f16), for 5-bit formats the fifth bits (u32),
//! then the quants: weight `i` is in the low and weight `i + 16` in the high half of byte `i`.
//!
//! Source: ggml `ggml-quants.c`, `dequantize_row_q4_0` and the functions that follow it.

use half::bf16;

use super::f16_at;

pub(super) fn f32_(block: &[u8; 4], out: &mut [f32; 1]) {
    out[0] = f32::from_le_bytes(*block);
}

pub(super) fn f16_(block: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = f16_at(block, 0);
}

pub(super) fn bf16_(block: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = f32::from_bits(u32::from(bf16::from_le_bytes(*block).to_bits()) << 16);
}

pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for (i, byte) in block[2..].iter().enumerate() {
        out[i] = scale * (f32::from(byte & 15) - 8.0);
        out[i + 16] = scale * (f32::from(byte >> 4) - 8.0);
    }
}

pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, min) = (f16_at(block, 0), f16_at(block, 2));
    for (i, byte) in block[4..].iter().enumerate() {
        out[i] = scale * f32::from(byte & 15) + min;
        out[i + 16] = scale * f32::from(byte >> 4) + min;
    }
}

pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for (i, byte) in block[6..].iter().enumerate() {
        out[i] = scale * (f32::from(byte & 15 | fifth_bit(&block[2..6], i)) - 16.0);
        out[i + 16] = scale * (f32::from(byte >> 4 | fifth_bit(&block[2..6], i + 16)) - 16.0);
    }
}

pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, min) = (f16_at(block, 0), f16_at(block, 2));
    for (i, byte) in block[8..].iter().enumerate() {
        out[i] = scale * f32::from(byte & 15 | fifth_bit(&block[4..8], i)) + min;
        out[i + 16] = scale * f32::from(byte >> 4 | fifth_bit(&block[4..8], i + 16)) + min;
    }
}

/// Returns 16 if bit `i` of `bits` is set, else 0.
fn fifth_bit(bits: &[u8], i: usize) -> u8 {
    (bits[i / 8] >> (i % 8) & 1) << 4
}

pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for (value, byte) in out.iter_mut().zip(&block[2..]) {
        *value = scale * f32::from(byte.cast_signed());
    }
}
