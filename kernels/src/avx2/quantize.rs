//! Activations to bytes with AVX2; see [`crate::quantize`].

use core::arch::x86_64::*;

use super::unpack::load_lanes;
use crate::isa::Avx2Fma;
use crate::packed::BLOCK_LEN;
use crate::quantize::{MAGIC, MAGIC_BITS, PanelMut, QuantBlock, scale_and_inverse, write_panel};

/// Quantises the tokens of a panel.
pub(crate) fn quantize_panel(_: Avx2Fma, x: &[f32], cols: usize, target: &mut PanelMut<'_>) {
    // SAFETY: `Avx2Fma` proves that the CPU has the features.
    unsafe { panel(x, cols, target) }
}

#[target_feature(enable = "avx2")]
fn panel(x: &[f32], cols: usize, target: &mut PanelMut<'_>) {
    write_panel(x, cols, target, |x| block(x));
}

#[inline]
#[target_feature(enable = "avx2")]
fn block(x: &[f32; BLOCK_LEN]) -> QuantBlock {
    let parts = x.as_chunks().0;
    let parts = [&parts[0], &parts[1], &parts[2], &parts[3]];
    let mut bits = _mm256_setzero_si256();
    for part in parts {
        let magnitudes =
            _mm256_and_si256(_mm256_castps_si256(load_lanes(part)), _mm256_set1_epi32(0x7FFF_FFFF));
        bits = _mm256_max_epu32(bits, magnitudes);
    }
    let (scale, inverse) = scale_and_inverse(largest(bits));
    let steps = [
        quantize(load_lanes(parts[0]), inverse),
        quantize(load_lanes(parts[1]), inverse),
        quantize(load_lanes(parts[2]), inverse),
        quantize(load_lanes(parts[3]), inverse),
    ];
    // Packing works on 128-bit halves; the permutation puts the quants back in order.
    let words = [_mm256_packs_epi32(steps[0], steps[1]), _mm256_packs_epi32(steps[2], steps[3])];
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words[0], words[1]), order);
    let mut quants = [0; BLOCK_LEN];
    store(&mut quants, bytes);
    let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    let left = sum(_mm256_castsi256_si128(fours));
    let right = sum(_mm256_extracti128_si256::<1>(fours));
    QuantBlock { scale, quants, sums: [left, right] }
}

/// Returns the largest of 8 numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn largest(bits: __m256i) -> u32 {
    let four = _mm_max_epu32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256::<1>(bits));
    let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    let one = _mm_max_epu32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
    _mm_cvtsi128_si32(one).cast_unsigned()
}

#[inline]
#[target_feature(enable = "avx2")]
fn quantize(x: __m256, inverse: f32) -> __m256i {
    let steps = _mm256_mul_ps(x, _mm256_set1_ps(inverse));
    let bits = _mm256_castps_si256(_mm256_add_ps(steps, _mm256_set1_ps(MAGIC)));
    _mm256_sub_epi32(bits, _mm256_set1_epi32(MAGIC_BITS))
}

/// Returns the sum of 4 numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn sum(fours: __m128i) -> i32 {
    let twos = _mm_add_epi32(fours, _mm_shuffle_epi32::<0b01_00_11_10>(fours));
    _mm_cvtsi128_si32(_mm_add_epi32(twos, _mm_shuffle_epi32::<0b10_11_00_01>(twos)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(target: &mut [i8; BLOCK_LEN], quants: __m256i) {
    // SAFETY: `target` is 32 writable bytes, and `storeu` takes any alignment.
    unsafe { _mm256_storeu_si256(target.as_mut_ptr().cast(), quants) };
}
