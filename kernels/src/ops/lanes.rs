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
    /// Sixteen lanes in registers. Loops over many sums need it: the compiler leaves arrays of arrays in memory.
    type Reg: Copy;

    /// Returns `value` in every lane.
    fn splat(self, value: f32) -> Self::Reg;

    /// Reads lanes.
    fn load(self, lanes: &Lanes) -> Self::Reg;

    /// Writes lanes.
    fn store(self, lanes: Self::Reg, target: &mut Lanes);

    /// Returns `a * b`.
    fn mul(self, a: Self::Reg, b: Self::Reg) -> Self::Reg;

    /// Returns `a * b + c`, rounded once.
    fn mul_add(self, a: Self::Reg, b: Self::Reg, c: Self::Reg) -> Self::Reg;

    /// Returns the values of 16-bit floats, exactly.
    fn widen(self, source: &[f16; LANES]) -> Self::Reg;

    /// Returns the values of 8-bit integers.
    fn widen_bytes(self, source: &[i8; LANES]) -> Self::Reg;
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl Vector for Plain {
    const WIDE: bool = false;
    const IS_FAST: bool = false;
    type Reg = Lanes;

    #[inline(always)]
    fn splat(self, value: f32) -> Lanes {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, lanes: &Lanes) -> Lanes {
        *lanes
    }

    #[inline(always)]
    fn store(self, lanes: Lanes, target: &mut Lanes) {
        *target = lanes;
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        core::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        core::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

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
#[path = "lanes_aarch64.rs"]
mod arm;
#[cfg(target_arch = "x86_64")]
#[path = "lanes_x86_64.rs"]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(super) use arm::Neon;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};
