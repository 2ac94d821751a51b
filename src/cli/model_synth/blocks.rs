//! Random weights, written as the blocks of their format: no float is quantised.
//!
//! Every bit that may be any is random; scales are such that weights lie around 0 with the standard
//! deviation that is asked for. What comes out is a valid block of its format whose values spread evenly,
//! where those of a trained model are near a bell.

use half::f16;
use kernels::TensorType;

use crate::engine::Random;

/// Fills whole blocks of a format that [`super::shape::Quant`] has.
///
/// # Panics
///
/// Panics if the format is another.
pub(super) fn fill(ty: TensorType, deviation: f32, random: &mut Random, blocks: &mut [u8]) {
    random.fill(blocks);
    let blocks = blocks.chunks_exact_mut(ty.block_size());
    match ty {
        TensorType::F16 => blocks.for_each(|block| float(deviation, block)),
        TensorType::Q8_0 => blocks.for_each(|block| q8_0(deviation, block)),
        TensorType::Q4_K => blocks.for_each(|block| with_minima(deviation, 15.0, block)),
        TensorType::Q5_K => blocks.for_each(|block| with_minima(deviation, 31.0, block)),
        TensorType::Q6_K => blocks.for_each(|block| q6_k(deviation, block)),
        _ => panic!("no mix has this format"),
    }
}

/// Fills 32-bit floats around 1.
pub(super) fn fill_factors(random: &mut Random, bytes: &mut [u8]) {
    for float in bytes.chunks_exact_mut(4) {
        #[expect(clippy::cast_possible_truncation, reason = "any number near 1 will do")]
        let factor = 0.75 + 0.5 * random.uniform() as f32;
        float.copy_from_slice(&factor.to_le_bytes());
    }
}

/// The standard deviation of the numbers 0 to `max`, each as often.
fn deviation_of(max: f32) -> f32 {
    (((max + 1.0).powi(2) - 1.0) / 12.0).sqrt()
}

fn set_f16(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

fn float(deviation: f32, block: &mut [u8]) {
    let unit = f32::from(u16::from_le_bytes([block[0], block[1]])) / 32_767.5 - 1.0;
    set_f16(block, 0, unit * deviation * 3.0_f32.sqrt());
}

/// 32 signed bytes; -128 stands in no file.
fn q8_0(deviation: f32, block: &mut [u8]) {
    for byte in block[2..].iter_mut().filter(|byte| **byte == 0x80) {
        *byte = 0;
    }
    set_f16(block, 0, deviation / deviation_of(255.0));
}

/// Eight scales of 32 to 63, each minimum as large as its scale, and halves of the sizes that put the
/// middle of the quants at 0.
fn with_minima(deviation: f32, max: f32, block: &mut [u8]) {
    let scale: [u8; 8] = std::array::from_fn(|i| 32 | block[4 + i] & 31);
    for i in 0..4 {
        let (first, second) = (scale[i], scale[i + 4]);
        block[4 + i] = first | second >> 4 << 6;
        block[8 + i] = first | second >> 4 << 6;
        block[12 + i] = second & 15 | (second & 15) << 4;
    }
    // The root of the mean square of 32 to 63.
    let d = deviation / deviation_of(max) / 48.39;
    set_f16(block, 0, d);
    set_f16(block, 2, d * max / 2.0);
}

/// Sixteen scales of 64 to 127 of either sign.
fn q6_k(deviation: f32, block: &mut [u8]) {
    for byte in &mut block[192..208] {
        let size = (64 | *byte & 63).cast_signed();
        *byte = if *byte & 0x80 == 0 { size } else { -size }.cast_unsigned();
    }
    // The root of the mean square of 64 to 127.
    set_f16(block, 208, deviation / deviation_of(63.0) / 97.27);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_every_format_have_the_deviation_that_is_asked_for() {
        use TensorType::{F16, Q4_K, Q5_K, Q6_K, Q8_0};
        for ty in [F16, Q8_0, Q4_K, Q5_K, Q6_K] {
            for deviation in [1.0 / 16.0, 0.02, 0.0059] {
                let mut blocks = vec![0; (1 << 18) / ty.block_len() * ty.block_size()];
                fill(ty, deviation, &mut Random::new(1), &mut blocks);
                let mut weights = vec![f32::NAN; 1 << 18];
                kernels::dequantize(ty, &blocks, &mut weights);
                let len = weights.len() as f64;
                let mean = weights.iter().map(|&w| f64::from(w)).sum::<f64>() / len;
                let square = weights.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / len;
                let ratio = square.sqrt() / f64::from(deviation);
                assert!((0.97..1.03).contains(&ratio), "{ty:?} {deviation}: {ratio}");
                assert!(mean.abs() < 0.01 * f64::from(deviation), "{ty:?} {deviation}: {mean}");
            }
        }
    }
}
