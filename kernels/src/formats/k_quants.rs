//! The K formats: 256 weights a block, in sub-blocks of 16 or 32 with small integer scales.
//!
//! Source: ggml `ggml-quants.c`, `dequantize_row_q2_K` and the functions that follow it.

use super::f16_at;

/// Layout: 16 scales and minimums (4 bits each), 64 bytes of quants, scale and minimum (f16).
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scale, min) = (f16_at(block, 80), f16_at(block, 82));
    for (sub, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let sub_scale = scale * f32::from(block[sub] & 15);
        let sub_min = min * f32::from(block[sub] >> 4);
        for (value, byte) in out.iter_mut().zip(&block[16 + two_bit_start(sub)..]) {
            *value = sub_scale * f32::from(byte >> two_bit_shift(sub) & 3) - sub_min;
        }
    }
}

/// Layout: 32 bytes of third bits, 64 bytes of quants, 16 scales of 6 bits in 12 bytes, scale
/// (f16).
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let scale = f16_at(block, 108);
    let scales = &block[96..108];
    for (sub, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[sub % 8] >> (4 * (sub / 8)) & 15;
        let high = scales[8 + sub % 4] >> (2 * (sub / 4)) & 3;
        let sub_scale = scale * (f32::from(low | high << 4) - 32.0);
        let quants = &block[32 + two_bit_start(sub)..];
        let third_bits = &block[16 * (sub % 2)..];
        for ((value, byte), third) in out.iter_mut().zip(quants).zip(third_bits) {
            // The third bit is stored inverted: it is the absence of a minus four.
            let offset = if third >> (sub / 2) & 1 == 1 { 0.0 } else { 4.0 };
            *value = sub_scale * (f32::from(byte >> two_bit_shift(sub) & 3) - offset);
        }
    }
}

/// Where the two-bit quants of a sub-block of 16 start: 128 weights share 32 bytes.
fn two_bit_start(sub: usize) -> usize {
    32 * (sub / 8) + 16 * (sub % 2)
}

/// Which bits of these bytes they are.
fn two_bit_shift(sub: usize) -> usize {
    sub % 8 / 2 * 2
}

/// Layout: scale and minimum (f16), 8 scales and minimums of 6 bits in 12 bytes, 128 bytes of
/// quants.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    for (sub, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(block, sub);
        for (value, byte) in out.iter_mut().zip(&block[16 + sub / 2 * 32..]) {
            *value = scale * f32::from(byte >> (sub % 2 * 4) & 15) - min;
        }
    }
}

/// Layout: as Q4_K, with 32 bytes of fifth bits before the quants.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    for (sub, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(block, sub);
        let quants = &block[48 + sub / 2 * 32..];
        for ((value, byte), fifth) in out.iter_mut().zip(quants).zip(&block[16..48]) {
            let quant = byte >> (sub % 2 * 4) & 15 | (fifth >> sub & 1) << 4;
            *value = scale * f32::from(quant) - min;
        }
    }
}

/// Returns scale and minimum of a sub-block of Q4_K or Q5_K.
///
/// The first four scales and minimums are whole in bytes 0 to 7; of the last four, the low halves
/// are in bytes 8 to 11 and the upper two bits in the upper two bits of bytes 0 to 7.
fn scale_and_min(block: &[u8], sub: usize) -> (f32, f32) {
    let packed = &block[4..16];
    let (scale, min) = if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        let low = packed[sub + 4];
        (low & 15 | packed[sub - 4] >> 6 << 4, low >> 4 | packed[sub] >> 6 << 4)
    };
    (f16_at(block, 0) * f32::from(scale), f16_at(block, 2) * f32::from(min))
}

/// Layout: 128 bytes of low halves, 64 bytes of upper two bits, 16 scales (i8), scale (f16).
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = f16_at(block, 208);
    for (sub, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let sub_scale = scale * f32::from(block[192 + sub].cast_signed());
        // 128 weights share 64 bytes of low halves and 32 bytes of upper bits.
        let (half, rest) = (sub / 8, sub % 8);
        let low_halves = &block[64 * half + rest % 4 * 16..];
        let upper_bits = &block[128 + 32 * half + rest % 2 * 16..];
        for ((value, low), upper) in out.iter_mut().zip(low_halves).zip(upper_bits) {
            let quant = low >> (rest / 4 * 4) & 15 | (upper >> (rest / 2 * 2) & 3) << 4;
            *value = sub_scale * (f32::from(quant) - 32.0);
        }
    }
}
