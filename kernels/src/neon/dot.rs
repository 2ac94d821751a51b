//! Dot products of signed bytes: four rows, four columns at a time.

use core::arch::{aarch64::*, asm};

use crate::isa::{Neon, NeonDotprod};

/// How bytes are multiplied. A value is the proof that the CPU can.
pub(crate) trait Dot: Copy {
    /// Sums under way, of four rows.
    type Sums: Copy;

    /// Returns how many groups [`Dot::add`] may add before [`Dot::end`], given the weights' bits;
    /// 4 or 2.
    fn groups(bits: u32) -> usize;

    /// Starts from integer sums.
    fn begin(self, dots: int32x4_t) -> Self::Sums;

    /// Adds a group: `weights: [row][4]` times the four bytes of a lane of `quants`.
    fn add<const LANE: i32>(
        self,
        sums: Self::Sums,
        weights: int8x16_t,
        quants: int8x16_t,
    ) -> Self::Sums;

    /// Returns the integer sums; `dots` is what [`Dot::begin`] was given.
    fn end(self, dots: int32x4_t, sums: Self::Sums) -> int32x4_t;
}

impl Dot for NeonDotprod {
    type Sums = int32x4_t;

    #[inline(always)]
    fn groups(_: u32) -> usize {
        4
    }

    #[inline(always)]
    fn begin(self, dots: int32x4_t) -> int32x4_t {
        dots
    }

    /// `vdotq_laneq_s32`, which the standard library does not offer yet.
    #[inline(always)]
    fn add<const LANE: i32>(
        self,
        mut sums: int32x4_t,
        weights: int8x16_t,
        quants: int8x16_t,
    ) -> int32x4_t {
        // SAFETY: the proof says that the CPU has `sdot`, which reads and writes registers alone.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sums:v}.4s, {weights:v}.16b, {quants:v}.4b[{lane}]",
                sums = inout(vreg) sums,
                weights = in(vreg) weights,
                quants = in(vreg) quants,
                lane = const LANE,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }

    #[inline(always)]
    fn end(self, _: int32x4_t, sums: int32x4_t) -> int32x4_t {
        sums
    }
}

impl Dot for Neon {
    /// In 16 bits: columns 0 to 3 of rows 0 and 1, and of rows 2 and 3.
    type Sums = [int16x8_t; 2];

    /// `groups * 128 * 127 < 2^15` with 8 bits, which are signed, else
    /// `groups * 127 * (2^bits - 1) < 2^15`.
    #[inline(always)]
    fn groups(bits: u32) -> usize {
        if bits == 8 { 2 } else { 4 }
    }

    #[inline(always)]
    fn begin(self, _: int32x4_t) -> Self::Sums {
        // SAFETY: the proof says that the CPU has NEON.
        [unsafe { vdupq_n_s16(0) }; 2]
    }

    #[inline(always)]
    fn add<const LANE: i32>(
        self,
        sums: Self::Sums,
        weights: int8x16_t,
        quants: int8x16_t,
    ) -> Self::Sums {
        // SAFETY: the proof says that the CPU has NEON.
        unsafe { add_in_16_bits::<LANE>(sums, weights, quants) }
    }

    #[inline(always)]
    fn end(self, dots: int32x4_t, sums: Self::Sums) -> int32x4_t {
        // SAFETY: the proof says that the CPU has NEON.
        unsafe { add_pairs(dots, sums) }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn add_in_16_bits<const LANE: i32>(
    sums: [int16x8_t; 2],
    weights: int8x16_t,
    quants: int8x16_t,
) -> [int16x8_t; 2] {
    let quants = vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(quants));
    let quants = vreinterpretq_s8_s32(quants);
    [
        vmlal_s8(sums[0], vget_low_s8(weights), vget_low_s8(quants)),
        vmlal_high_s8(sums[1], weights, quants),
    ]
}

#[inline]
#[target_feature(enable = "neon")]
fn add_pairs(dots: int32x4_t, sums: [int16x8_t; 2]) -> int32x4_t {
    vaddq_s32(dots, vpaddq_s32(vpaddlq_s16(sums[0]), vpaddlq_s16(sums[1])))
}
