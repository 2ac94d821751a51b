//! Four-bit formats whose sixteen quants stand for uneven values.
//!
//! Source: ggml `ggml-quants.c`, `dequantize_row_iq4_nl`, `_iq4_xs`, `_mxfp4`, `_nvfp4`; the
//! microscaling formats of the Open Compute Project, version 1.0.

use super::f16_at;

/// What the quants of IQ4_NL and IQ4_XS stand for.
const NON_LINEAR: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// Twice what the quants of E2M1 stand for; the scales are halved instead.
const E2M1_DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// Writes `scale * values[quant]`: the low halves of all bytes first, then the high halves.
fn look_up(scale: f32, values: &[f32; 16], bytes: &[u8], out: &mut [f32]) {
    let (low, high) = out.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = scale * values[usize::from(byte & 15)];
        *high = scale * values[usize::from(byte >> 4)];
    }
}

/// Layout: scale (f16), 16 bytes of quants.
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    look_up(f16_at(block, 0), &NON_LINEAR, &block[2..], out);
}

/// Layout: scale (f16), upper two bits of 8 scales (u16), low halves of 8 scales, 128 bytes of
/// quants.
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let scale = f16_at(block, 0);
    let scales_high = u16::from_le_bytes([block[2], block[3]]);
    for (sub, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = u16::from(block[4 + sub / 2] >> (sub % 2 * 4) & 15);
        let high = scales_high >> (2 * sub) & 3;
        let sub_scale = scale * (f32::from(low | high << 4) - 32.0);
        look_up(sub_scale, &NON_LINEAR, &block[8 + 16 * sub..][..16], out);
    }
}

/// Layout: scale (E8M0), 16 bytes of quants.
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let exponent = u32::from(block[0]);
    // Half of two to the power of `exponent - 127`; the smallest two are subnormal.
    let bits = if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 };
    look_up(f32::from_bits(bits), &E2M1_DOUBLED, &block[1..], out);
}

/// Layout: 4 scales (E4M3 without sign), 4 times 8 bytes of quants.
pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    for (sub, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = half_of_e4m3(block[sub]);
        look_up(scale, &E2M1_DOUBLED, &block[4 + 8 * sub..][..8], out);
    }
}

/// Returns half the value of an 8-bit float; not-a-number counts as zero, the sign is ignored.
fn half_of_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(byte >> 3 & 15), f32::from(byte & 7));
    match (byte, exponent) {
        (0x7F, _) => 0.0,
        (_, 0) => mantissa / 1024.0,
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((exponent + 127 - 8) << 23),
    }
}
