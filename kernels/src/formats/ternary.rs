//! The ternary formats: weights of -1, 0 and 1 times one scale a block.
//!
//! Source: ggml `ggml-quants.c`, `dequantize_row_tq1_0` and `dequantize_row_tq2_0`.

use super::f16_at;

/// Layout: 48 bytes of five weights each, 4 bytes of four weights each, scale (f16).
///
/// A byte is a fixed-point fraction whose digits to the base of three are its weights. The first
/// 32 bytes hold weights 0 to 159, the next 16 hold 160 to 239, the last 4 the rest; among them,
/// first digits come first.
pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let scale = f16_at(block, 52);
    let (first, rest) = out.split_at_mut(160);
    let (second, third) = rest.split_at_mut(80);
    for (bytes, out) in [(&block[..32], first), (&block[32..48], second), (&block[48..52], third)] {
        let mut power = 1_u8;
        for out in out.chunks_mut(bytes.len()) {
            for (value, byte) in out.iter_mut().zip(bytes) {
                let digit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
                *value = scale * (f32::from(digit) - 1.0);
            }
            power = power.wrapping_mul(3);
        }
    }
}

/// Layout: 64 bytes of four weights each, scale (f16).
pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let scale = f16_at(block, 64);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (value, byte) in out.iter_mut().zip(&block[32 * (group / 4)..]) {
            *value = scale * (f32::from(byte >> (2 * (group % 4)) & 3) - 1.0);
        }
    }
}
