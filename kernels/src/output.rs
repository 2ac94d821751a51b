//! Where products are written, over what stands there or onto it. Nothing is multiplied here.

use crate::gemm::{Sums, UNIT_ROWS};
use crate::pool::Disjoint;
use crate::quantize::PANEL_TOKENS;

/// Up to so many tokens, what is written after a panel's sums is soon those of the next unit.
pub(crate) const NEAR_TOKENS: usize = 48;

/// What a product does to the values where it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It replaces them.
    Over,
    /// It is added to them: `out += product`.
    Onto,
}

/// Writes the sums of some tokens of a unit to `out: [tokens, rows]`, without the rows that fill up
/// the last tile.
pub(crate) fn store(
    out: &Disjoint<'_, f32>,
    rows: usize,
    unit: usize,
    first_token: usize,
    sums: &[Sums],
    write: Write,
) {
    let first_row = unit * UNIT_ROWS;
    let len = UNIT_ROWS.min(rows - first_row);
    let goes_on = out.len() > rows * NEAR_TOKENS && (first_token + sums.len()) * rows < out.len();
    for (i, sums) in sums.iter().enumerate() {
        // What is written next lies far from this, a token from the other: it would be waited for piece by
        // piece.
        let (token, row) = if goes_on {
            (first_token + i + PANEL_TOKENS, first_row)
        } else {
            (first_token + i, first_row + UNIT_ROWS)
        };
        out.ask(token * rows + row, len);
        // SAFETY: a unit is the work of one task, and these are the outputs of its rows alone.
        let out = unsafe { out.part((first_token + i) * rows + first_row, len) };
        match (out.first_chunk_mut::<UNIT_ROWS>(), write) {
            (Some(out), Write::Over) => *out = *sums,
            (None, Write::Over) => out.copy_from_slice(&sums[..len]),
            (Some(out), Write::Onto) => add(sums, out),
            (None, Write::Onto) => add(sums, out),
        }
    }
}

#[inline(always)]
fn add(sums: &Sums, out: &mut [f32]) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out += sum;
    }
}

/// Writes products that have no columns: zeros.
pub(crate) fn clear(out: &mut [f32], write: Write) {
    match write {
        Write::Over => out.fill(0.0),
        Write::Onto => {}
    }
}
