//! Root-mean-square normalisation.

use super::lanes::{self, LANES, Vector};
use super::{over_rows, per_isa};
use crate::isa::Isa;
use crate::pool::Pool;

/// Normalises rows: `out = x / sqrt(mean(x²) + epsilon) * weight`.
///
/// Shapes: `x, out: [n, weight.len()]`.
///
/// # Panics
///
/// Panics if a shape does not fit.
pub fn rms_norm(pool: &Pool, isa: Isa, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "input and output have the same shape");
    over_rows(pool, out, weight.len(), &|first, out| {
        let x = &x[first * weight.len()..][..out.len()];
        per_isa!(isa, rows, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]);
    });
}

/// Normalises rows, one after another.
#[inline(always)]
fn rows<V: Vector>(_: V, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let scale = inverse_root(x, epsilon);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

/// Returns `1 / sqrt(mean(x²) + epsilon)`; value `i` is summed in lane `i % 16`.
#[inline(always)]
fn inverse_root(x: &[f32], epsilon: f32) -> f32 {
    let mut squares = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (square, x) in squares.iter_mut().zip(chunk) {
            *square = x.mul_add(*x, *square);
        }
    }
    for (square, x) in squares.iter_mut().zip(rest) {
        *square = x.mul_add(*x, *square);
    }
    #[expect(clippy::cast_precision_loss, reason = "rows are far shorter than 2^24")]
    let mean = lanes::sum(squares) / x.len() as f32;
    1.0 / (mean + epsilon).sqrt()
}
