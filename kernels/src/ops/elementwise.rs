//! Sums and scalings, value by value; memory is their only limit.

use super::over_rows;
use crate::pool::Pool;

/// Adds: `out += x`.
///
/// # Panics
///
/// Panics if the lengths differ.
pub fn add(pool: &Pool, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "both have the same shape");
    over_rows(pool, out, 1, &|first, out| {
        for (out, x) in out.iter_mut().zip(&x[first..]) {
            *out += x;
        }
    });
}

/// Adds a bias to each row: `out[r] += bias`.
///
/// Shapes: `out: [n, bias.len()]`.
///
/// # Panics
///
/// Panics if `out` is not whole rows.
pub fn add_bias(pool: &Pool, bias: &[f32], out: &mut [f32]) {
    over_rows(pool, out, bias.len(), &|_, out| {
        for row in out.chunks_exact_mut(bias.len()) {
            for (out, bias) in row.iter_mut().zip(bias) {
                *out += bias;
            }
        }
    });
}

/// Scales: `out *= factor`.
pub fn scale(pool: &Pool, factor: f32, out: &mut [f32]) {
    over_rows(pool, out, 1, &|_, out| out.iter_mut().for_each(|out| *out *= factor));
}
