//! Activations to bytes with AVX-512; see [`crate::quantize`].

use core::arch::x86_64::*;

use super::unpack::load_lanes;
use crate::isa::Avx512Vnni;
use crate::packed::BLOCK_LEN;
use crate::quantize::{MAGIC, PanelMut, QuantBlock, scale_and_inverse, write_panel};
use crate::quantize_tiles::TileWriter;

/// Quantises the tokens of a panel.
pub(crate) fn quantize_panel(_: Avx512Vnni, x: &[f32], cols: usize, target: &mut PanelMut<'_>) {
    // SAFETY: `Avx512Vnni` proves that the CPU has the features.
    unsafe { panel(x, cols, target) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn panel(x: &[f32], cols: usize, target: &mut PanelMut<'_>) {
    write_panel(x, cols, target, |x| block(x));
}

/// Quantises blocks of a token for tiles.
///
/// # Safety
///
/// As of [`TileWriter::write_token`].
pub(crate) unsafe fn quantize_token(
    _: Avx512Vnni,
    writer: &TileWriter<'_>,
    token: usize,
    first_block: usize,
    x: &[f32],
) {
    // SAFETY: `Avx512Vnni` proves that the CPU has the features; the caller's word is passed on.
    unsafe { row(writer, token, first_block, x) }
}

/// # Safety
///
/// As of [`quantize_token`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn row(writer: &TileWriter<'_>, token: usize, first_block: usize, x: &[f32]) {
    let quantize = |x: &[f32; BLOCK_LEN]| block(x);
    // SAFETY: the caller's word is passed on.
    unsafe { writer.write_token(token, first_block, x, quantize) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn block(x: &[f32; BLOCK_LEN]) -> QuantBlock {
    let [left, right] = [load_lanes(&x.as_chunks().0[0]), load_lanes(&x.as_chunks().0[1])];
    let bits = _mm512_max_epu32(magnitudes(left), magnitudes(right));
    let (scale, inverse) = scale_and_inverse(_mm512_reduce_max_epu32(bits));
    let (left, right) = (quantize(left, inverse), quantize(right, inverse));
    let mut quants = [0; BLOCK_LEN];
    store(&mut quants.as_chunks_mut().0[0], left);
    store(&mut quants.as_chunks_mut().0[1], right);
    QuantBlock { scale, quants, sums: [sum(left), sum(right)] }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn magnitudes(x: __m512) -> __m512i {
    _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFF_FFFF))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn quantize(x: __m512, inverse: f32) -> __m128i {
    let steps = _mm512_mul_ps(x, _mm512_set1_ps(inverse));
    _mm512_cvtepi32_epi8(_mm512_castps_si512(_mm512_add_ps(steps, _mm512_set1_ps(MAGIC))))
}

/// Returns the sum of 16 quants.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512vnni")]
fn sum(quants: __m128i) -> i32 {
    let fours = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), quants);
    let twos = _mm_add_epi32(fours, _mm_shuffle_epi32::<0b01_00_11_10>(fours));
    _mm_cvtsi128_si32(_mm_add_epi32(twos, _mm_shuffle_epi32::<0b10_11_00_01>(twos)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(target: &mut [i8; 16], quants: __m128i) {
    // SAFETY: `target` is 16 writable bytes, and `storeu` takes any alignment.
    unsafe { _mm_storeu_si128(target.as_mut_ptr().cast(), quants) };
}
