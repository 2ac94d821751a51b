//! Selections among logits without a branch or an address that depends on them.
//!
//! A threshold is found by bisection over the bits of order-preserving integer keys: 32 passes
//! over all values, whatever they are.

use super::lanes::{self, LANES, Lanes, Vector};
use super::per_isa;
use crate::isa::Isa;

/// Returns a key that orders as the float does; NaN is above or below all.
#[inline(always)]
fn key(x: f32) -> u32 {
    let bits = x.to_bits();
    let is_negative = 0_u32.wrapping_sub(bits >> 31);
    bits ^ (is_negative | 0x8000_0000)
}

/// Returns the float of a key.
fn value(key: u32) -> f32 {
    let is_negative = (key >> 31).wrapping_sub(1);
    f32::from_bits(key ^ (is_negative | 0x8000_0000))
}

/// Returns the `n`-th largest value; the smallest if there are fewer. `n` is at least 1.
///
/// # Panics
///
/// Panics if `n` is 0 or `x` is empty.
#[must_use]
pub fn nth_largest(isa: Isa, x: &[f32], n: usize) -> f32 {
    assert!(n > 0 && !x.is_empty(), "there is an n-th value");
    let n = n.min(x.len());
    bisect(|candidate| {
        let mut count = 0;
        let out = &mut count;
        per_isa!(isa, count_from, x: &[f32], candidate: u32, out: &mut usize);
        count >= n
    })
}

/// Returns the largest value whose weight, with that of all larger ones, is at least `target`;
/// the smallest float if all together weigh less.
///
/// # Panics
///
/// Panics if the lengths differ.
#[must_use]
pub fn threshold_of_weight(isa: Isa, x: &[f32], weights: &[f32], target: f32) -> f32 {
    assert_eq!(x.len(), weights.len(), "each value has a weight");
    bisect(|candidate| {
        let mut weight = 0.0;
        let out = &mut weight;
        per_isa!(isa, weight_from, x: &[f32], weights: &[f32], candidate: u32, out: &mut f32);
        weight >= target
    })
}

/// Computes `e^((x - largest) * factor)` where `x >= floor`, and 0 elsewhere; returns the sum.
///
/// # Panics
///
/// Panics if the lengths differ.
pub fn weigh(
    isa: Isa,
    x: &[f32],
    floor: f32,
    largest: f32,
    factor: f32,
    weights: &mut [f32],
) -> f32 {
    assert_eq!(x.len(), weights.len(), "each value has a weight");
    let mut sum = 0.0;
    let (out, offset) = (&mut sum, [floor, largest, factor]);
    per_isa!(isa, weigh_all, x: &[f32], offset: [f32; 3], weights: &mut [f32], out: &mut f32);
    sum
}

/// Returns the largest key for which `is_enough`, which is so up to some key and no further.
fn bisect(is_enough: impl Fn(u32) -> bool) -> f32 {
    let mut found = 0_u32;
    for bit in (0..u32::BITS).rev() {
        let candidate = found | 1 << bit;
        let is_enough = u32::from(is_enough(candidate));
        found |= is_enough << bit;
    }
    value(found)
}

#[inline(always)]
fn count_from<V: Vector>(_: V, x: &[f32], from: u32, count: &mut usize) {
    let mut counts = [0_u32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (count, x) in counts.iter_mut().zip(chunk) {
            *count += u32::from(key(*x) >= from);
        }
    }
    for (count, x) in counts.iter_mut().zip(rest) {
        *count += u32::from(key(*x) >= from);
    }
    *count = counts.iter().map(|count| *count as usize).sum();
}

#[inline(always)]
fn weight_from<V: Vector>(_: V, x: &[f32], weights: &[f32], from: u32, weight: &mut f32) {
    let mut sums: Lanes = [0.0; LANES];
    let add = |sum: &mut f32, x: f32, weight: f32| {
        let mask = 0_u32.wrapping_sub(u32::from(key(x) >= from));
        *sum += f32::from_bits(weight.to_bits() & mask);
    };
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (weight_chunks, weight_rest) = weights.as_chunks::<LANES>();
    for (x, weights) in chunks.iter().zip(weight_chunks) {
        for i in 0..LANES {
            add(&mut sums[i], x[i], weights[i]);
        }
    }
    for (i, (x, weight)) in rest.iter().zip(weight_rest).enumerate() {
        add(&mut sums[i], *x, *weight);
    }
    *weight = lanes::sum(sums);
}

#[inline(always)]
fn weigh_all<V: Vector>(_: V, x: &[f32], offset: [f32; 3], weights: &mut [f32], sum: &mut f32) {
    let [floor, largest, factor] = offset;
    let weigh = |x: f32| {
        let weight = lanes::exp((x - largest) * factor);
        if x >= floor { weight } else { 0.0 }
    };
    let mut sums: Lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (weight_chunks, weight_rest) = weights.as_chunks_mut::<LANES>();
    for (x, weights) in chunks.iter().zip(weight_chunks) {
        for i in 0..LANES {
            weights[i] = weigh(x[i]);
            sums[i] += weights[i];
        }
    }
    for (i, (x, weight)) in rest.iter().zip(weight_rest).enumerate() {
        *weight = weigh(*x);
        sums[i] += *weight;
    }
    *sum = lanes::sum(sums);
}
