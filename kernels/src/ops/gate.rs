//! The gates of feed-forward layers: `out = activation(gate) * up`.

use super::lanes::{self, Vector};
use super::per_isa;
use crate::isa::Isa;

/// Which activation a gate has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `x / (1 + e^-x)`: SwiGLU.
    Silu,
    /// `x / (1 + e^-2y)`, `y = √(2/π) (x + 0.044715 x³)`, which is `x (1 + tanh y) / 2`: GeGLU.
    GeluTanh,
}

/// `2 √(2/π)`.
const GELU_SCALE: f32 = 1.595_769;
const GELU_CUBE: f32 = 0.044_715;

/// Computes `gate = activation(gate) * up`.
///
/// # Panics
///
/// Panics if the lengths differ.
pub(crate) fn gate(isa: Isa, kind: Gate, up: &[f32], gate: &mut [f32]) {
    assert_eq!(up.len(), gate.len(), "both have the same shape");
    match kind {
        Gate::Silu => per_isa!(isa, silu, up: &[f32], gate: &mut [f32]),
        Gate::GeluTanh => per_isa!(isa, gelu, up: &[f32], gate: &mut [f32]),
    }
}

#[inline(always)]
fn silu<V: Vector>(_: V, up: &[f32], gate: &mut [f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        let x = *gate;
        *gate = x / (1.0 + lanes::exp(-x)) * up;
    }
}

#[inline(always)]
fn gelu<V: Vector>(_: V, up: &[f32], gate: &mut [f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        let x = *gate;
        let y = GELU_SCALE * (GELU_CUBE * x * x).mul_add(x, x);
        *gate = x / (1.0 + lanes::exp(-y)) * up;
    }
}
