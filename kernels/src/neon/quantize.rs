//! Activations to bytes with NEON; see [`crate::quantize`].

use core::arch::aarch64::*;

use super::unpack::load_lanes;
use crate::isa::Neon;
use crate::packed::BLOCK_LEN;
use crate::quantize::{MAGIC, PanelMut, QuantBlock, scale_and_inverse, write_panel};

/// Quantises the tokens of a panel.
pub(crate) fn quantize_panel(_: Neon, x: &[f32], cols: usize, target: &mut PanelMut<'_>) {
    // SAFETY: `Neon` proves that the CPU has the features.
    unsafe { panel(x, cols, target) }
}

#[target_feature(enable = "neon")]
fn panel(x: &[f32], cols: usize, target: &mut PanelMut<'_>) {
    write_panel(x, cols, target, |x| block(x));
}

#[inline]
#[target_feature(enable = "neon")]
fn block(x: &[f32; BLOCK_LEN]) -> QuantBlock {
    let halves = x.as_chunks().0;
    let [left, right] = [load_lanes(&halves[0]), load_lanes(&halves[1])];
    let mut bits = vdupq_n_u32(0);
    for part in left.into_iter().chain(right) {
        bits = vmaxq_u32(bits, vreinterpretq_u32_f32(vabsq_f32(part)));
    }
    let (scale, inverse) = scale_and_inverse(vmaxvq_u32(bits));
    let (left, right) = (quantize(left, inverse), quantize(right, inverse));
    let mut quants = [0; BLOCK_LEN];
    store(&mut quants.as_chunks_mut().0[0], left);
    store(&mut quants.as_chunks_mut().0[1], right);
    let sums = [vaddlvq_s8(left), vaddlvq_s8(right)].map(i32::from);
    QuantBlock { scale, quants, sums }
}

/// Quantises 16 values; of a sum's bits, the low byte stays.
#[inline]
#[target_feature(enable = "neon")]
fn quantize(x: [float32x4_t; 4], inverse: f32) -> int8x16_t {
    let mut steps = [vdupq_n_s32(0); 4];
    for (steps, x) in steps.iter_mut().zip(x) {
        let shifted = vaddq_f32(vmulq_n_f32(x, inverse), vdupq_n_f32(MAGIC));
        *steps = vreinterpretq_s32_f32(shifted);
    }
    let left = vmovn_high_s32(vmovn_s32(steps[0]), steps[1]);
    let right = vmovn_high_s32(vmovn_s32(steps[2]), steps[3]);
    vmovn_high_s16(vmovn_s16(left), right)
}

#[inline]
#[target_feature(enable = "neon")]
fn store(target: &mut [i8; 16], quants: int8x16_t) {
    // SAFETY: `target` is 16 writable bytes, and `vst1q` takes any alignment.
    unsafe { vst1q_s8(target.as_mut_ptr(), quants) };
}
