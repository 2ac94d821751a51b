//! Grouped-query attention over a paged cache.
//!
//! A row (one token, one head) meets the pages of its positions in order (`K` and `V` as in
//! `kv_pages`, as 32-bit floats):
//!
//! ```text
//! s[p] = scale * Σ_d q[d] K[d][p]                       d in order
//! m'   = max(m, s);  c = exp(m - m');  e[p] = exp(s[p] - m');  m = m'
//! sum  = sum * c + fold(e);  out[d] = out[d] * c + Σ_p e[p] V[p][d]      p in order
//! ```
//!
//! and `out / sum` at the end. Pages start at multiples of 32 of the position, so a row's result
//! does not depend on its neighbours in the batch, on chunks or on threads.

use half::f16;

use super::kv_pages::{KvPages, PAGE_LEN, Quantized, Source, page_of};
use super::lanes::{self, LANES, Lanes, Vector};
use super::per_isa;
use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};

/// Rows that one task works on: what is read of a page serves them all.
const ROWS_MAX: usize = 64;
/// The scores of one row in one page.
type Scores = [f32; PAGE_LEN];

/// The heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; each serves `n_heads / n_kv_heads` query heads, at most 64.
    pub n_kv_heads: usize,
    /// Values of a head, a multiple of 16.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// How many positions a token sees, itself included; all before it if nothing.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// The most query heads that may share a KV head.
    pub const GROUP_MAX: usize = ROWS_MAX;
    /// What `head_dim` must be a multiple of.
    pub const HEAD_DIM_STEP: usize = LANES;

    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    fn check(&self) {
        assert!(self.n_heads.is_multiple_of(self.n_kv_heads), "heads come in whole groups");
        assert!(self.group() <= Self::GROUP_MAX, "a group has at most 64 heads");
        assert!(self.head_dim.is_multiple_of(LANES), "a head has a multiple of 16 values");
    }

    /// Returns the first position that a token at `position` sees.
    fn start(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Where a token of the batch stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Where in the tables the page list of its sequence starts.
    pub table: usize,
    /// Its position in the sequence.
    pub position: usize,
}

/// Lets every token of a batch attend to what the cache holds up to its position.
///
/// Shapes: `q, out: [places, n_heads, head_dim]`; `tables` holds page numbers.
///
/// # Panics
///
/// Panics if a shape does not fit or a page does not exist.
#[expect(clippy::too_many_arguments, reason = "a batch is places, tables and queries")]
pub fn attention(
    pool: &Pool,
    isa: Isa,
    shape: &AttentionShape,
    pages: KvPages<'_>,
    tables: &[u32],
    places: &[Place],
    q: &[f32],
    out: &mut [f32],
) {
    shape.check();
    let row_len = shape.n_heads * shape.head_dim;
    assert_eq!(q.len(), places.len() * row_len, "queries of every place");
    assert_eq!(out.len(), q.len(), "an output for every query");
    let tokens_a_block = (ROWS_MAX / shape.group()).min(8);
    let n_blocks = places.len().div_ceil(tokens_a_block);
    let out = Disjoint::new(out);
    // The last tokens of a prompt see the most pages: they go first.
    pool.run(n_blocks * shape.n_kv_heads, &|index| {
        let block = n_blocks - 1 - index / shape.n_kv_heads;
        let first = block * tokens_a_block;
        let end = (first + tokens_a_block).min(places.len());
        let head = index % shape.n_kv_heads;
        let task = &Task { shape, tables, places, q, out: &out, head };
        match pages {
            KvPages::F32(pages) => {
                per_isa!(isa, block_f32, task: &Task<'_>, pages: &[f32], first: usize, end: usize);
            }
            KvPages::F16(pages) => {
                per_isa!(isa, block_f16, task: &Task<'_>, pages: &[f16], first: usize, end: usize);
            }
            KvPages::Q8_0(quants, scales) => {
                let pages = Quantized { quants, scales };
                per_isa!(
                    isa, block_q8_0, task: &Task<'_>, pages: Quantized<'_>, first: usize, end: usize
                );
            }
        }
    });
}

/// One KV head and the query heads that it serves.
struct Task<'a> {
    shape: &'a AttentionShape,
    tables: &'a [u32],
    places: &'a [Place],
    q: &'a [f32],
    out: &'a Disjoint<'a, f32>,
    head: usize,
}

impl Task<'_> {
    /// Returns where the values of a token's row start in `q` and `out`.
    #[inline(always)]
    fn row_at(&self, token: usize, member: usize) -> usize {
        (token * self.shape.n_heads + self.head * self.shape.group() + member) * self.shape.head_dim
    }

    /// Returns the output of a row.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "each row is handed out once at a time")]
    fn out_row(&self, token: usize, member: usize) -> &mut [f32] {
        // SAFETY: a token's heads of one group belong to one task, which drops each row before it
        // asks for the next.
        unsafe { self.out.part(self.row_at(token, member), self.shape.head_dim) }
    }
}

#[inline(always)]
fn block_f32<V: Vector>(vector: V, task: &Task<'_>, pages: &[f32], first: usize, end: usize) {
    block(vector, task, pages, first, end);
}

#[inline(always)]
fn block_f16<V: Vector>(vector: V, task: &Task<'_>, pages: &[f16], first: usize, end: usize) {
    block(vector, task, pages, first, end);
}

#[inline(always)]
fn block_q8_0<V: Vector>(
    vector: V,
    task: &Task<'_>,
    pages: Quantized<'_>,
    first: usize,
    end: usize,
) {
    block(vector, task, pages, first, end);
}

/// Works on the tokens `first..end`: runs of neighbours in one sequence, one after another.
#[inline(always)]
fn block<V: Vector, S: Source>(vector: V, task: &Task<'_>, pages: S, first: usize, end: usize) {
    let mut start = first;
    while start < end {
        let place = task.places[start];
        let follows = |(i, other): (usize, &Place)| {
            other.table == place.table && other.position == place.position + i
        };
        let run = task.places[start..end].iter().enumerate();
        let len = run.take_while(|&(i, other)| follows((i, other))).count();
        run_of_tokens(vector, task, pages, start, len);
        start += len;
    }
}

/// What the rows of a task know so far.
struct Rows {
    scores: [Scores; ROWS_MAX],
    largest: [f32; ROWS_MAX],
    total: [f32; ROWS_MAX],
    correction: [f32; ROWS_MAX],
}

#[inline(always)]
fn run_of_tokens<V: Vector, S: Source>(
    vector: V,
    task: &Task<'_>,
    pages: S,
    start: usize,
    len: usize,
) {
    let (shape, group) = (task.shape, task.shape.group());
    let place = task.places[start];
    let mut rows = Rows {
        scores: [[0.0; PAGE_LEN]; ROWS_MAX],
        largest: [f32::NEG_INFINITY; ROWS_MAX],
        total: [0.0; ROWS_MAX],
        correction: [0.0; ROWS_MAX],
    };
    for row in 0..len * group {
        task.out_row(start + row / group, row % group).fill(0.0);
    }
    let last_position = place.position + len - 1;
    for page in shape.start(place.position) / PAGE_LEN..=last_position / PAGE_LEN {
        let from = page * PAGE_LEN;
        // Tokens before `active` end before this page; the windows of those after it start later.
        let sees = |i: &usize| shape.start(place.position + i) < from + PAGE_LEN;
        let active_start = from.saturating_sub(place.position);
        let active_end = active_start + (active_start..len).take_while(sees).count();
        let head = page_of(shape, task.tables, place.table, page) + task.head;
        let page = pages.head(head, shape.head_dim);
        let active = active_start * group..active_end * group;
        score_page(vector, task, page, start, active.clone(), &mut rows);
        for row in active.clone() {
            let position = place.position + row / group;
            let low = shape.start(position).saturating_sub(from);
            let high = (position + 1 - from).min(PAGE_LEN);
            weigh_row(shape.scale, low, high, row, &mut rows);
        }
        add_page(vector, task, page, start, active, &rows);
    }
    for row in 0..len * group {
        let total = rows.total[row];
        let out = task.out_row(start + row / group, row % group);
        out.iter_mut().for_each(|out| *out /= total);
    }
}

/// Calls `$many::<R>(args.., row)` for all rows, as many at a time as there are registers for.
macro_rules! in_groups {
    ($wide:expr, $rows:expr, $body:ident($($arg:expr),*)) => {{
        let mut row = $rows.start;
        while row < $rows.end {
            let left = $rows.end - row;
            if $wide && left >= 6 {
                $body::<6>($($arg,)* row);
                row += 6;
            } else if $wide && left >= 3 {
                $body::<3>($($arg,)* row);
                row += 3;
            } else if left >= 2 {
                $body::<2>($($arg,)* row);
                row += 2;
            } else {
                $body::<1>($($arg,)* row);
                row += 1;
            }
        }
    }};
}

/// Computes `Σ_d q[d] K[d][p]` for the rows, 16 dimensions at a time.
#[inline(always)]
fn score_page<V: Vector, S: Source>(
    vector: V,
    task: &Task<'_>,
    page: S,
    start: usize,
    active: core::ops::Range<usize>,
    rows: &mut Rows,
) {
    rows.scores[active.clone()].fill([0.0; PAGE_LEN]);
    let mut wide = [[[0.0; LANES]; 2]; LANES];
    for dim in (0..task.shape.head_dim).step_by(LANES) {
        let scales = page.key_scales(vector, dim);
        for (i, wide) in wide.iter_mut().enumerate() {
            *wide = page.keys(vector, dim + i, &scales);
        }
        let (wide, scores) = (&wide, &mut rows.scores);
        in_groups!(V::WIDE, active, score_strip(task, start, dim, wide, scores));
    }
}

/// Adds 16 dimensions of the keys of a page to the scores of `R` rows.
#[inline(always)]
fn score_strip<const R: usize>(
    task: &Task<'_>,
    start: usize,
    dim: usize,
    keys: &[[Lanes; 2]; LANES],
    scores: &mut [Scores; ROWS_MAX],
    row: usize,
) {
    let group = task.shape.group();
    let mut q = [&[0.0; LANES]; R];
    for (i, q) in q.iter_mut().enumerate() {
        let at = task.row_at(start + (row + i) / group, (row + i) % group) + dim;
        *q = task.q[at..].first_chunk().expect("a head has whole strips");
    }
    let mut sums: [Scores; R] = *scores[row..].first_chunk().expect("the rows are in the task");
    for d in 0..LANES {
        for r in 0..R {
            let (low, high) = sums[r].split_at_mut(LANES);
            for (sum, key) in low.iter_mut().zip(&keys[d][0]) {
                *sum = q[r][d].mul_add(*key, *sum);
            }
            for (sum, key) in high.iter_mut().zip(&keys[d][1]) {
                *sum = q[r][d].mul_add(*key, *sum);
            }
        }
    }
    scores[row..][..R].copy_from_slice(&sums);
}

/// Turns the scores of a row into weights, of which those outside `low..high` are 0.
#[inline(always)]
fn weigh_row(scale: f32, low: usize, high: usize, row: usize, rows: &mut Rows) {
    let scores = &mut rows.scores[row];
    for (i, score) in scores.iter_mut().enumerate() {
        *score = if low <= i && i < high { *score * scale } else { f32::NEG_INFINITY };
    }
    let fold = |scores: &Scores, pick: fn(f32, f32) -> f32| -> Lanes {
        core::array::from_fn(|i| pick(scores[i], scores[i + LANES]))
    };
    let before = rows.largest[row];
    let largest = lanes::larger(before, lanes::max(fold(scores, lanes::larger)));
    for score in scores.iter_mut() {
        *score = lanes::exp(*score - largest);
    }
    let correction = lanes::exp(before - largest);
    let total = lanes::sum(fold(scores, |a, b| a + b));
    rows.total[row] = rows.total[row].mul_add(correction, total);
    rows.largest[row] = largest;
    rows.correction[row] = correction;
}

/// Adds the weighted values of a page to the outputs, 16 dimensions at a time.
#[inline(always)]
fn add_page<V: Vector, S: Source>(
    vector: V,
    task: &Task<'_>,
    page: S,
    start: usize,
    active: core::ops::Range<usize>,
    rows: &Rows,
) {
    let dim_len = task.shape.head_dim;
    let mut wide = [[0.0; LANES]; PAGE_LEN];
    for dim in (0..dim_len).step_by(LANES) {
        let scales = page.value_scales(vector, dim, dim_len);
        for (position, wide) in wide.iter_mut().enumerate() {
            *wide = page.values(vector, position, dim, dim_len, &scales);
        }
        let wide = &wide;
        in_groups!(V::WIDE, active, add_strip(task, start, dim, wide, rows));
    }
}

/// Adds 16 dimensions of the weighted values of a page to the outputs of `R` rows.
#[inline(always)]
fn add_strip<const R: usize>(
    task: &Task<'_>,
    start: usize,
    dim: usize,
    values: &[Lanes; PAGE_LEN],
    rows: &Rows,
    row: usize,
) {
    let group = task.shape.group();
    let strip = |i: usize| {
        let out = task.out_row(start + (row + i) / group, (row + i) % group);
        out[dim..].first_chunk_mut::<LANES>().expect("a head has whole strips")
    };
    let mut sums = [[0.0; LANES]; R];
    for (i, sums) in sums.iter_mut().enumerate() {
        *sums = strip(i).map(|out| out * rows.correction[row + i]);
    }
    let weights: &[Scores; R] = rows.scores[row..].first_chunk().expect("the rows are in the task");
    for (p, values) in values.iter().enumerate() {
        for r in 0..R {
            for (sum, value) in sums[r].iter_mut().zip(values) {
                *sum = weights[r][p].mul_add(*value, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        *strip(i) = *sums;
    }
}
