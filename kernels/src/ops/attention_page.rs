//! What attention does with one page: scores, weights, and the weighted sum of its values.
//!
//! Few rows (an answer's next token) read the page straight into registers; many (a prompt) share
//! what was made 32-bit floats once. Both take the same steps for each lane, so their bits agree.

use core::ops::Range;

use super::attention::{ROWS_MAX, Rows, Scores, Task};
use super::kv_pages::{KV_BLOCK_LEN, PAGE_LEN, Source};
use super::lanes::{self, LANES, Vector};
use crate::prefetch::Ahead;

/// Positions whose values are added between two looks ahead.
const POSITIONS_A_STEP: usize = 8;

/// Calls `$body::<R, _, _>(args.., row)` for all rows, as many at a time as there are registers for:
/// `$narrow` where these are few.
macro_rules! in_groups {
    ($wide:expr, $narrow:literal, $rows:expr, $body:ident($($arg:expr),*)) => {{
        let mut row = $rows.start;
        while row < $rows.end {
            let left = $rows.end - row;
            if $wide && left >= 6 {
                $body::<6, _, _>($($arg,)* row);
                row += 6;
            } else if $wide && left >= 3 {
                $body::<3, _, _>($($arg,)* row);
                row += 3;
            } else if !$wide && left >= $narrow {
                $body::<$narrow, _, _>($($arg,)* row);
                row += $narrow;
            } else if left >= 2 {
                $body::<2, _, _>($($arg,)* row);
                row += 2;
            } else {
                $body::<1, _, _>($($arg,)* row);
                row += 1;
            }
        }
    }};
}

/// Calls `$body::<_, _, R, $h>` for so many rows; returns whether they are that few.
macro_rules! at_once {
    ($rows:expr, $h:literal, $($r:literal)*, $body:ident $args:tt) => {
        match $rows.len() {
            $($r => $body::<_, _, $r, $h> $args,)*
            _ => false,
        }
    };
}

/// Calls `$body::<_, _, R, H>` for rows so few that one pass over the page, `H` times
/// 16 lanes wide, serves them all from registers. Returns whether they are. Pages of 32-bit
/// floats have nothing to widen, and gain nothing; plain Rust is the reference.
macro_rules! few {
    ($vector:ty, $source:ty, $rows:expr, $body:ident $args:tt) => {
        if !<$source>::IS_NARROW || !<$vector>::IS_FAST {
            false
        } else if <$vector>::WIDE {
            at_once!($rows, 2, 1 2 3 4 5 6 7 8, $body $args)
        } else {
            at_once!($rows, 1, 1 2 3 4 5 6, $body $args)
        }
    };
}

/// Computes the scores of the rows, not yet times `scale`; asks for what is read `next`.
#[inline(always)]
pub(super) fn score_page<V: Vector, S: Source>(
    vector: V,
    task: &Task<'_>,
    (page, next): (S, &[S::Item]),
    active: Range<usize>,
    rows: &mut Rows,
) {
    let (row, at, scores) = (active.start, &rows.at, &mut rows.scores);
    if few!(V, S, active, score_few(vector, task, page, next, at, scores, row)) {
        return;
    }
    scores[active.clone()].fill([0.0; PAGE_LEN]);
    if S::IS_SCALED {
        score_many::<V, S, KV_BLOCK_LEN>(vector, task, page, at, active, scores);
    } else {
        score_many::<V, S, LANES>(vector, task, page, at, active, scores);
    }
}

/// Computes the scores of `R` rows straight from the page, of `H` times 16 positions at a time,
/// and asks for what is read `next`.
#[inline(always)]
fn score_few<V: Vector, S: Source, const R: usize, const H: usize>(
    vector: V,
    task: &Task<'_>,
    page: S,
    next: &[S::Item],
    at: &[usize; ROWS_MAX],
    scores: &mut [Scores; ROWS_MAX],
    row: usize,
) -> bool {
    let dim_len = task.shape.head_dim;
    let at: &[usize; R] = at[row..].first_chunk().expect("the rows are in the task");
    let keys = &page.items().as_chunks::<PAGE_LEN>().0[..dim_len];
    let block_len = if S::IS_SCALED { KV_BLOCK_LEN } else { LANES };
    let mut next = Ahead::new(next, dim_len / block_len * (2 / H));
    for half in (0..2).step_by(H) {
        let mut sums = [[vector.splat(0.0); H]; R];
        for (block, keys) in keys.chunks_exact(block_len).enumerate() {
            let mut q: [&[f32]; R] = [&[]; R];
            for r in 0..R {
                q[r] = &task.q[at[r] + block * block_len..][..block_len];
            }
            let mut parts = if S::IS_SCALED { [[vector.splat(0.0); H]; R] } else { sums };
            next.step();
            for d in 0..block_len {
                let keys = keys[d].as_chunks::<LANES>().0;
                for h in 0..H {
                    let key = S::widen(vector, &keys[half + h]);
                    for r in 0..R {
                        parts[r][h] = vector.mul_add(vector.splat(q[r][d]), key, parts[r][h]);
                    }
                }
            }
            let scales = page.scales(vector, block);
            for r in 0..R {
                for h in 0..H {
                    let part = parts[r][h];
                    sums[r][h] = if S::IS_SCALED {
                        vector.mul_add(part, scales[half + h], sums[r][h])
                    } else {
                        part
                    };
                }
            }
        }
        for r in 0..R {
            let scores = &mut scores[row + r].as_chunks_mut().0[half..];
            for h in 0..H {
                vector.store(sums[r][h], &mut scores[h]);
            }
        }
    }
    true
}

/// Adds the scores of any number of rows, `D` dimensions at a time, widened once for all of them.
#[inline(always)]
fn score_many<V: Vector, S: Source, const D: usize>(
    vector: V,
    task: &Task<'_>,
    page: S,
    at: &[usize; ROWS_MAX],
    active: Range<usize>,
    scores: &mut [Scores; ROWS_MAX],
) {
    let mut wide = [[vector.splat(0.0); 2]; D];
    let keys = &page.items().as_chunks::<PAGE_LEN>().0[..task.shape.head_dim];
    for (block, keys) in keys.chunks_exact(D).enumerate() {
        for (wide, keys) in wide.iter_mut().zip(keys) {
            let keys = keys.as_chunks::<LANES>().0;
            *wide = [S::widen(vector, &keys[0]), S::widen(vector, &keys[1])];
        }
        let scales = S::IS_SCALED.then(|| page.scales(vector, block));
        let (dim, wide, scores) = (block * D, &wide, &mut *scores);
        in_groups!(V::WIDE, 2, active, score_strip(vector, task, at, dim, wide, scales, scores));
    }
}

/// Adds `D` dimensions of the keys of a page to the scores of `R` rows.
#[expect(clippy::too_many_arguments, reason = "a strip of one page for some rows")]
#[inline(always)]
fn score_strip<const R: usize, V: Vector, const D: usize>(
    vector: V,
    task: &Task<'_>,
    at: &[usize; ROWS_MAX],
    dim: usize,
    keys: &[[V::Reg; 2]; D],
    scales: Option<[V::Reg; 2]>,
    scores: &mut [Scores; ROWS_MAX],
    row: usize,
) {
    let at: &[usize; R] = at[row..].first_chunk().expect("the rows are in the task");
    let mut q = [&[0.0; D]; R];
    for (q, at) in q.iter_mut().zip(at) {
        *q = task.q[at + dim..].first_chunk().expect("a head has whole strips");
    }
    let scores: &mut [Scores; R] =
        scores[row..].first_chunk_mut().expect("the rows are in the task");
    let mut before = [[vector.splat(0.0); 2]; R];
    for r in 0..R {
        let scores = scores[r].as_chunks::<LANES>().0;
        before[r] = [vector.load(&scores[0]), vector.load(&scores[1])];
    }
    let mut sums = if scales.is_some() { [[vector.splat(0.0); 2]; R] } else { before };
    for d in 0..D {
        for r in 0..R {
            let q = vector.splat(q[r][d]);
            for h in 0..2 {
                sums[r][h] = vector.mul_add(q, keys[d][h], sums[r][h]);
            }
        }
    }
    for r in 0..R {
        for (h, target) in scores[r].as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let sum = match scales {
                Some(scales) => vector.mul_add(sums[r][h], scales[h], before[r][h]),
                None => sums[r][h],
            };
            vector.store(sum, target);
        }
    }
}

/// Turns the scores of a row into weights, of which those outside `low..high` are 0.
#[inline(always)]
pub(super) fn weigh_row(scale: f32, low: usize, high: usize, row: usize, rows: &mut Rows) {
    let scores = &mut rows.scores[row];
    for (i, score) in scores.iter_mut().enumerate() {
        *score = if low <= i && i < high { *score * scale } else { f32::NEG_INFINITY };
    }
    let before = rows.largest[row];
    let mut folded = [0.0; LANES];
    for i in 0..LANES {
        folded[i] = lanes::larger(scores[i], scores[i + LANES]);
    }
    let largest = lanes::larger(before, lanes::max(folded));
    for score in scores.iter_mut() {
        *score = lanes::exp(*score - largest);
    }
    let correction = lanes::exp(before - largest);
    for i in 0..LANES {
        folded[i] = scores[i] + scores[i + LANES];
    }
    let total = lanes::sum(folded);
    rows.total[row] = rows.total[row].mul_add(correction, total);
    rows.largest[row] = largest;
    rows.correction[row] = correction;
}

/// Adds some dimensions of the weighted values of a page to the outputs; asks for the keys of the
/// `next`.
#[inline(always)]
pub(super) fn add_page<V: Vector, S: Source>(
    vector: V,
    task: &Task<'_>,
    (page, next): (S, Option<S>),
    active: Range<usize>,
    dims: &Range<usize>,
    rows: &Rows,
) {
    let row = active.start;
    if few!(V, S, active, add_few(vector, task, (page, next), dims, rows, row)) {
        return;
    }
    let mut dim = dims.start;
    while V::WIDE && dim + 2 * LANES <= dims.end {
        add_many::<V, S, 2>(vector, task, page, active.clone(), dim, rows);
        dim += 2 * LANES;
    }
    while dim < dims.end {
        add_many::<V, S, 1>(vector, task, page, active.clone(), dim, rows);
        dim += LANES;
    }
}

/// Adds `H` times 16 dimensions of the weighted values of a page to the outputs of any number of rows, widened once
/// for all of them.
#[inline(always)]
fn add_many<V: Vector, S: Source, const H: usize>(
    vector: V,
    task: &Task<'_>,
    page: S,
    active: Range<usize>,
    dim: usize,
    rows: &Rows,
) {
    let dim_len = task.shape.head_dim;
    let values = &page.items()[PAGE_LEN * dim_len..];
    let mut wide = [[vector.splat(0.0); H]; PAGE_LEN];
    for (wide, values) in wide.iter_mut().zip(values.chunks_exact(dim_len)) {
        let values = values[dim..][..H * LANES].as_chunks::<LANES>().0;
        for h in 0..H {
            wide[h] = S::widen(vector, &values[h]);
        }
    }
    let scales = S::IS_SCALED.then(|| page.scales(vector, (dim_len + dim) / KV_BLOCK_LEN));
    let wide = &wide;
    in_groups!(V::WIDE, 6, active, add_strip(vector, task, dim, wide, scales, rows));
}

/// Adds some dimensions of the weighted values of a page to the outputs of `R` rows, straight from
/// the page, and asks for the keys of the next.
#[inline(always)]
fn add_few<V: Vector, S: Source, const R: usize, const H: usize>(
    vector: V,
    task: &Task<'_>,
    (page, next): (S, Option<S>),
    dims: &Range<usize>,
    rows: &Rows,
    row: usize,
) -> bool {
    let dim_len = task.shape.head_dim;
    if let Some(next) = next {
        next.ask_for_scales();
    }
    let keys = next.as_ref().map_or(&[][..], |next| &next.items()[..PAGE_LEN * dim_len]);
    let mut next = Ahead::new(keys, dims.len() / LANES / H * (PAGE_LEN / POSITIONS_A_STEP));
    let mut dim = dims.start;
    while dim + H * LANES <= dims.end {
        add_few_strip::<V, S, R, H>(vector, task, (page, &mut next), dim, rows, row);
        dim += H * LANES;
    }
    if dim < dims.end {
        add_few_strip::<V, S, R, 1>(vector, task, (page, &mut next), dim, rows, row);
    }
    true
}

/// Adds `H` times 16 dimensions of the weighted values of a page to the outputs of `R` rows.
#[inline(always)]
fn add_few_strip<V: Vector, S: Source, const R: usize, const H: usize>(
    vector: V,
    task: &Task<'_>,
    (page, next): (S, &mut Ahead<'_, S::Item>),
    dim: usize,
    rows: &Rows,
    row: usize,
) {
    let dim_len = task.shape.head_dim;
    let values = &page.items()[PAGE_LEN * dim_len..];
    let scales = S::IS_SCALED.then(|| page.scales(vector, (dim_len + dim) / KV_BLOCK_LEN));
    let weights = weights::<R, V>(vector, rows, row, scales);
    let mut sums = corrected::<R, V, H>(vector, task, dim, rows, row);
    for (p, values) in (0..PAGE_LEN).zip(values.chunks_exact(dim_len)) {
        if p % POSITIONS_A_STEP == 0 {
            next.step();
        }
        let values = values[dim..][..H * LANES].as_chunks::<LANES>().0;
        for h in 0..H {
            let value = S::widen(vector, &values[h]);
            for r in 0..R {
                sums[r][h] = vector.mul_add(vector.splat(weights[r][p]), value, sums[r][h]);
            }
        }
    }
    put(vector, task, dim, rows, row, sums);
}

/// Returns the weights of `R` rows, times the scales of the values if there are any.
#[inline(always)]
fn weights<const R: usize, V: Vector>(
    vector: V,
    rows: &Rows,
    row: usize,
    scales: Option<[V::Reg; 2]>,
) -> [Scores; R] {
    let mut weights: [Scores; R] =
        *rows.scores[row..].first_chunk().expect("the rows are in the task");
    if let Some(scales) = scales {
        for weights in weights.as_flattened_mut().as_chunks_mut::<PAGE_LEN>().0 {
            for (weights, scale) in weights.as_chunks_mut::<LANES>().0.iter_mut().zip(scales) {
                let scaled = vector.mul(vector.load(weights), scale);
                vector.store(scaled, weights);
            }
        }
    }
    weights
}

/// Returns `H` times 16 dimensions of the outputs of `R` rows, as they count beside a new largest score.
#[inline(always)]
fn corrected<const R: usize, V: Vector, const H: usize>(
    vector: V,
    task: &Task<'_>,
    dim: usize,
    rows: &Rows,
    row: usize,
) -> [[V::Reg; H]; R] {
    let mut sums = [[vector.splat(0.0); H]; R];
    for (r, sums) in sums.iter_mut().enumerate() {
        let out = task.out_part(rows.at[row + r] + dim, H * LANES).as_chunks::<LANES>().0;
        let correction = vector.splat(rows.correction[row + r]);
        for h in 0..H {
            sums[h] = vector.mul(vector.load(&out[h]), correction);
        }
    }
    sums
}

/// Writes `H` times 16 dimensions of the outputs of `R` rows.
#[inline(always)]
fn put<const R: usize, V: Vector, const H: usize>(
    vector: V,
    task: &Task<'_>,
    dim: usize,
    rows: &Rows,
    row: usize,
    sums: [[V::Reg; H]; R],
) {
    for (r, sums) in sums.into_iter().enumerate() {
        let out = task.out_part(rows.at[row + r] + dim, H * LANES).as_chunks_mut::<LANES>().0;
        for (sum, out) in sums.into_iter().zip(out) {
            vector.store(sum, out);
        }
    }
}

/// Adds `H` times 16 dimensions of the weighted values of a page to the outputs of `R` rows.
#[inline(always)]
fn add_strip<const R: usize, V: Vector, const H: usize>(
    vector: V,
    task: &Task<'_>,
    dim: usize,
    values: &[[V::Reg; H]; PAGE_LEN],
    scales: Option<[V::Reg; 2]>,
    rows: &Rows,
    row: usize,
) {
    let weights = weights::<R, V>(vector, rows, row, scales);
    let mut sums = corrected::<R, V, H>(vector, task, dim, rows, row);
    for p in 0..PAGE_LEN {
        for r in 0..R {
            let weight = vector.splat(weights[r][p]);
            for h in 0..H {
                sums[r][h] = vector.mul_add(weight, values[p][h], sums[r][h]);
            }
        }
    }
    put(vector, task, dim, rows, row, sums);
}
