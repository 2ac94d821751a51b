//! Sixteen lanes in the registers of NEON.

use core::arch::aarch64::{
    float32x4_t, int32x4_t, vcvt_f32_f16, vcvtq_f32_s32, vdupq_n_f32, vfmaq_f32, vget_high_s16,
    vget_low_s16, vld1_s8, vld1_u16, vld1q_f32, vmovl_s8, vmovl_s16, vmulq_f32,
    vreinterpret_f16_u16, vst1q_f32,
};

use half::f16;

use super::{LANES, Lanes, Vector};
use crate::isa;

/// NEON.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Neon(pub(in crate::ops) isa::Neon);

type Reg = [float32x4_t; 4];

impl Vector for Neon {
    const WIDE: bool = false;
    type Reg = Reg;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has NEON.
        unsafe { splat_128(value) }
    }

    #[inline(always)]
    fn load(self, lanes: &Lanes) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has NEON.
        unsafe { load_128(lanes) }
    }

    #[inline(always)]
    fn store(self, lanes: Self::Reg, target: &mut Lanes) {
        // SAFETY: the proof in `self` says that the CPU has NEON.
        unsafe { store_128(lanes, target) }
    }

    #[inline(always)]
    fn mul(self, a: Self::Reg, b: Self::Reg) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has NEON.
        unsafe { mul_128(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Reg, b: Self::Reg, c: Self::Reg) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has NEON.
        unsafe { mul_add_128(a, b, c) }
    }

    #[inline(always)]
    fn widen(self, source: &[f16; LANES]) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has NEON.
        unsafe { widen_128(source) }
    }

    #[inline(always)]
    fn widen_bytes(self, source: &[i8; LANES]) -> Self::Reg {
        // SAFETY: the proof in `self` says that the CPU has NEON.
        unsafe { widen_bytes_128(source) }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn splat_128(value: f32) -> Reg {
    [vdupq_n_f32(value); 4]
}

#[inline]
#[target_feature(enable = "neon")]
fn load_128(lanes: &Lanes) -> Reg {
    let quarters = quarters(lanes);
    core::array::from_fn(|i| load_4(&quarters[i]))
}

#[inline]
#[target_feature(enable = "neon")]
fn load_4(lanes: &[f32; 4]) -> float32x4_t {
    // SAFETY: `lanes` is 4 readable floats, and the load takes any alignment.
    unsafe { vld1q_f32(lanes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store_128(lanes: Reg, target: &mut Lanes) {
    for (target, lanes) in target.as_chunks_mut::<4>().0.iter_mut().zip(lanes) {
        // SAFETY: `target` is 4 floats, and the store takes any alignment.
        unsafe { vst1q_f32(target.as_mut_ptr(), lanes) };
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn mul_128(a: Reg, b: Reg) -> Reg {
    core::array::from_fn(|i| vmulq_f32(a[i], b[i]))
}

#[inline]
#[target_feature(enable = "neon")]
fn mul_add_128(a: Reg, b: Reg, c: Reg) -> Reg {
    core::array::from_fn(|i| vfmaq_f32(c[i], a[i], b[i]))
}

#[inline]
#[target_feature(enable = "neon")]
fn widen_128(source: &[f16; LANES]) -> Reg {
    let quarters = quarters(source);
    core::array::from_fn(|i| widen_4(&quarters[i]))
}

#[inline]
#[target_feature(enable = "neon")]
fn widen_4(source: &[f16; 4]) -> float32x4_t {
    // SAFETY: `source` is 8 readable bytes, and the load takes any alignment.
    let bits = unsafe { vld1_u16(source.as_ptr().cast::<u16>()) };
    vcvt_f32_f16(vreinterpret_f16_u16(bits))
}

#[inline]
#[target_feature(enable = "neon")]
fn widen_bytes_128(source: &[i8; LANES]) -> Reg {
    let (halves, _) = source.as_chunks::<8>();
    let ([a, b], [c, d]) = (widen_bytes_8(&halves[0]), widen_bytes_8(&halves[1]));
    [a, b, c, d].map(|integers| vcvtq_f32_s32(integers))
}

#[inline]
#[target_feature(enable = "neon")]
fn widen_bytes_8(source: &[i8; 8]) -> [int32x4_t; 2] {
    // SAFETY: `source` is 8 readable bytes, and the load takes any alignment.
    let words = vmovl_s8(unsafe { vld1_s8(source.as_ptr()) });
    [vmovl_s16(vget_low_s16(words)), vmovl_s16(vget_high_s16(words))]
}

/// Returns the four quarters.
#[inline(always)]
fn quarters<T>(lanes: &[T; LANES]) -> &[[T; 4]; 4] {
    lanes.as_chunks().0.try_into().expect("sixteen are four times four")
}
