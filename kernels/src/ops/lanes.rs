//! Sixteen lanes: the array that every operation is written over, and what the CPUs do unlike.
//!
//! | fold | `a[i] + a[i + 8]`, then 4, 2, 1 apart |
//! |---|---|
//! | exp | `2^n * p(r)`, `n = round(x / ln 2)`, `p` of degree 7, below 2 ulp |

use half::f16;

/// Lanes of every sum.
pub(super) const LANES: usize = 16;
/// One value a lane.
pub(super) type Lanes = [f32; LANES];

/// Arguments of `exp` are held to this range, in which the result is a normal number; below it the
/// result is 0.
const EXP_MIN: f32 = -87.0;
const EXP_MAX: f32 = 88.0;
/// `ln 2` in two parts; the first has 9 significant bits, so `n * LN2_HIGH` is exact.
#[expect(clippy::excessive_precision, reason = "the digits are the exact value")]
const LN2_HIGH: f32 = 0.693_359_375;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// 1.5 × 2^23: adding it rounds to an integer.
const ROUND: f32 = 12_582_912.0;
/// `(e^r - 1 - r) / r²`, highest power first. Source: Cephes `expf.c`.
const EXP_POLYNOMIAL: [f32; 6] =
    [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// Returns `e^x`; 0 below -87, `e^88` above 88, NaN for NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let low = if x < EXP_MIN { EXP_MIN } else { x };
    let held = if low > EXP_MAX { EXP_MAX } else { low };
    let shifted = held.mul_add(core::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, held));
    let mut p = EXP_POLYNOMIAL[0];
    for coefficient in &EXP_POLYNOMIAL[1..] {
        p = p.mul_add(r, *coefficient);
    }
    let value = p.mul_add(r * r, r) + 1.0;
    // The low bits of `shifted` are `n`, which is in -126..=127.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000));
    let result = value * power;
    if x < EXP_MIN { 0.0 } else { result }
}

/// Returns the sum of the lanes, in the one order.
#[inline(always)]
pub(super) fn sum(lanes: Lanes) -> f32 {
    let (mut eight, mut four) = ([0.0; 8], [0.0; 4]);
    for i in 0..8 {
        eight[i] = lanes[i] + lanes[i + 8];
    }
    for i in 0..4 {
        four[i] = eight[i] + eight[i + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Returns the largest lane.
#[inline(always)]
pub(super) fn max(lanes: Lanes) -> f32 {
    let (mut eight, mut four) = ([0.0; 8], [0.0; 4]);
    for i in 0..8 {
        eight[i] = larger(lanes[i], lanes[i + 8]);
    }
    for i in 0..4 {
        four[i] = larger(eight[i], eight[i + 4]);
    }
    larger(larger(four[0], four[2]), larger(four[1], four[3]))
}

/// Returns the larger value, `b` if either is NaN; one instruction.
#[inline(always)]
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// What an instruction set has that plain Rust cannot say.
pub(super) trait Vector: Copy {
    /// Whether there are 32 vector registers of 16 lanes.
    const WIDE: bool;
    /// Whether it is more than plain Rust.
    const IS_FAST: bool = true;

    /// Returns the values of 16-bit floats, exactly.
    fn widen(self, source: &[f16; LANES]) -> Lanes;

    /// Returns the values of 8-bit integers.
    fn widen_bytes(self, source: &[i8; LANES]) -> Lanes;
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl Vector for Plain {
    const WIDE: bool = false;
    const IS_FAST: bool = false;

    #[inline(always)]
    fn widen(self, source: &[f16; LANES]) -> Lanes {
        source.map(f16::to_f32_const)
    }

    #[inline(always)]
    fn widen_bytes(self, source: &[i8; LANES]) -> Lanes {
        source.map(f32::from)
    }
}

#[cfg(target_arch = "aarch64")]
pub(super) use arm::Neon;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::{
        __m128i, __m256i, _mm_loadl_epi64, _mm_loadu_si128, _mm256_cvtepi8_epi32,
        _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_loadu_si256, _mm256_storeu_ps,
        _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_storeu_ps,
    };

    use half::f16;

    use super::{LANES, Lanes, Vector};
    use crate::isa::{Avx2Fma, Avx512Vnni};

    /// AVX2, FMA and F16C.
    #[derive(Clone, Copy)]
    pub(in crate::ops) struct Avx2(pub(in crate::ops) Avx2Fma);

    impl Vector for Avx2 {
        const WIDE: bool = false;

        #[inline(always)]
        fn widen(self, source: &[f16; LANES]) -> Lanes {
            // SAFETY: the proof in `self` says that the CPU has AVX and F16C.
            unsafe { widen_256(source) }
        }

        #[inline(always)]
        fn widen_bytes(self, source: &[i8; LANES]) -> Lanes {
            // SAFETY: the proof in `self` says that the CPU has AVX2.
            unsafe { widen_bytes_256(source) }
        }
    }

    #[inline]
    #[target_feature(enable = "avx,f16c")]
    fn widen_256(source: &[f16; LANES]) -> Lanes {
        let (halves, _) = source.as_chunks::<8>();
        let mut lanes = [0.0; LANES];
        for (source, target) in halves.iter().zip(lanes.chunks_exact_mut(8)) {
            // SAFETY: `source` is 16 readable bytes, and the load takes any alignment.
            let bits = unsafe { _mm_loadu_si128(source.as_ptr().cast::<__m128i>()) };
            let floats = _mm256_cvtph_ps(bits);
            // SAFETY: `target` is 8 floats, and the store takes any alignment.
            unsafe { _mm256_storeu_ps(target.as_mut_ptr(), floats) };
        }
        lanes
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn widen_bytes_256(source: &[i8; LANES]) -> Lanes {
        let (halves, _) = source.as_chunks::<8>();
        let mut lanes = [0.0; LANES];
        for (source, target) in halves.iter().zip(lanes.chunks_exact_mut(8)) {
            // SAFETY: `source` is 8 readable bytes, and the load takes any alignment.
            let bytes = unsafe { _mm_loadl_epi64(source.as_ptr().cast::<__m128i>()) };
            let floats = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
            // SAFETY: `target` is 8 floats, and the store takes any alignment.
            unsafe { _mm256_storeu_ps(target.as_mut_ptr(), floats) };
        }
        lanes
    }

    /// AVX-512 and all of AVX2.
    #[derive(Clone, Copy)]
    pub(in crate::ops) struct Avx512(pub(in crate::ops) Avx512Vnni);

    impl Vector for Avx512 {
        const WIDE: bool = true;

        #[inline(always)]
        fn widen(self, source: &[f16; LANES]) -> Lanes {
            // SAFETY: the proof in `self` says that the CPU has AVX-512 F.
            unsafe { widen_512(source) }
        }

        #[inline(always)]
        fn widen_bytes(self, source: &[i8; LANES]) -> Lanes {
            // SAFETY: the proof in `self` says that the CPU has AVX-512 F.
            unsafe { widen_bytes_512(source) }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn widen_512(source: &[f16; LANES]) -> Lanes {
        let mut lanes = [0.0; LANES];
        // SAFETY: `source` is 32 readable bytes, and the load takes any alignment.
        let bits = unsafe { _mm256_loadu_si256(source.as_ptr().cast::<__m256i>()) };
        let floats = _mm512_cvtph_ps(bits);
        // SAFETY: `lanes` is 16 floats, and the store takes any alignment.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), floats) };
        lanes
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn widen_bytes_512(source: &[i8; LANES]) -> Lanes {
        let mut lanes = [0.0; LANES];
        // SAFETY: `source` is 16 readable bytes, and the load takes any alignment.
        let bytes = unsafe { _mm_loadu_si128(source.as_ptr().cast::<__m128i>()) };
        let floats = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
        // SAFETY: `lanes` is 16 floats, and the store takes any alignment.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), floats) };
        lanes
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use core::arch::aarch64::{
        float32x4_t, vcvt_f32_f16, vcvtq_f32_s32, vget_high_s16, vget_low_s16, vld1_s8, vld1_u16,
        vmovl_s8, vmovl_s16, vreinterpret_f16_u16, vst1q_f32,
    };

    use half::f16;

    use super::{LANES, Lanes, Vector};
    use crate::isa;

    /// NEON.
    #[derive(Clone, Copy)]
    pub(in crate::ops) struct Neon(pub(in crate::ops) isa::Neon);

    impl Vector for Neon {
        const WIDE: bool = false;

        #[inline(always)]
        fn widen(self, source: &[f16; LANES]) -> Lanes {
            // SAFETY: the proof in `self` says that the CPU has NEON.
            unsafe { widen_128(source) }
        }

        #[inline(always)]
        fn widen_bytes(self, source: &[i8; LANES]) -> Lanes {
            // SAFETY: the proof in `self` says that the CPU has NEON.
            unsafe { widen_bytes_128(source) }
        }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn widen_128(source: &[f16; LANES]) -> Lanes {
        let (halves, _) = source.as_chunks::<4>();
        let mut lanes = [0.0; LANES];
        for (source, target) in halves.iter().zip(lanes.chunks_exact_mut(4)) {
            // SAFETY: `source` is 8 readable bytes, and the load takes any alignment.
            let bits = unsafe { vld1_u16(source.as_ptr().cast::<u16>()) };
            let floats: float32x4_t = vcvt_f32_f16(vreinterpret_f16_u16(bits));
            // SAFETY: `target` is 4 floats, and the store takes any alignment.
            unsafe { vst1q_f32(target.as_mut_ptr(), floats) };
        }
        lanes
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn widen_bytes_128(source: &[i8; LANES]) -> Lanes {
        let (halves, _) = source.as_chunks::<8>();
        let mut lanes = [0.0; LANES];
        for (source, target) in halves.iter().zip(lanes.chunks_exact_mut(8)) {
            // SAFETY: `source` is 8 readable bytes, and the load takes any alignment.
            let words = vmovl_s8(unsafe { vld1_s8(source.as_ptr()) });
            let low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
            let high = vcvtq_f32_s32(vmovl_s16(vget_high_s16(words)));
            let (first, second) = target.split_at_mut(4);
            // SAFETY: `first` is 4 floats, and the store takes any alignment.
            unsafe { vst1q_f32(first.as_mut_ptr(), low) };
            // SAFETY: `second` is 4 floats, and the store takes any alignment.
            unsafe { vst1q_f32(second.as_mut_ptr(), high) };
        }
        lanes
    }
}
