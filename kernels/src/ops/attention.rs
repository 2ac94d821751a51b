//! Grouped-query attention over a paged cache.
//!
//! A row (one token, one head) meets the pages of its positions in order; keys and values lie as
//! `kv_pages` says:
//!
//! ```text
//! s[p] = scale * Σ_d q[d] K[d][p]                       d in order
//! m'   = max(m, s);  c = exp(m - m');  e[p] = exp(s[p] - m');  m = m'
//! sum  = sum * c + fold(e);  out[d] = out[d] * c + Σ_p e[p] V[p][d]      p in order
//! ```
//!
//! and `out / sum` at the end. Where a block `b` of 32 dimensions has scales `k`, `v`, the integers
//! are summed up first:
//!
//! ```text
//! s[p] = scale * Σ_b k[b][p] (Σ_d q[d] K[d][p])         out[d] = out[d] * c + Σ_p (e[p] v[b][p]) V[p][d]
//! ```
//!
//! Pages start at multiples of 32 of the position, so a row's result
//! does not depend on its neighbours in the batch, on chunks or on threads.

use half::f16;

use super::attention_page::{add_page, score_page, weigh_row};
use super::kv_pages::{KvPages, PAGE_LEN, Quantized, Source, page_of};
use super::lanes::{LANES, Vector};
use super::per_isa;
use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};

/// Rows that one task works on: what is read of a page serves them all.
pub(super) const ROWS_MAX: usize = 64;
/// The scores of one row in one page.
pub(super) type Scores = [f32; PAGE_LEN];

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
pub(super) struct Task<'a> {
    pub(super) shape: &'a AttentionShape,
    tables: &'a [u32],
    places: &'a [Place],
    pub(super) q: &'a [f32],
    out: &'a Disjoint<'a, f32>,
    head: usize,
}

impl Task<'_> {
    /// Returns where the values of a token's row start in `q` and `out`.
    #[inline(always)]
    fn row_at(&self, token: usize, member: usize) -> usize {
        (token * self.shape.n_heads + self.head * self.shape.group() + member) * self.shape.head_dim
    }

    /// Returns where rows of a run of tokens start in `q` and `out`, `row` being the first.
    #[inline(always)]
    pub(super) fn rows_at<const R: usize>(&self, start: usize, row: usize) -> [usize; R] {
        let group = self.shape.group();
        let mut at = [0; R];
        for (i, at) in at.iter_mut().enumerate() {
            *at = self.row_at(start + (row + i) / group, (row + i) % group);
        }
        at
    }

    /// Returns a part of the output of one row, which starts at `at`.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "each part is handed out once at a time")]
    pub(super) fn out_part(&self, at: usize, len: usize) -> &mut [f32] {
        // SAFETY: a token's heads of one group belong to one task, which drops each part before it
        // asks for the next.
        unsafe { self.out.part(at, len) }
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
pub(super) struct Rows {
    pub(super) scores: [Scores; ROWS_MAX],
    pub(super) largest: [f32; ROWS_MAX],
    pub(super) total: [f32; ROWS_MAX],
    pub(super) correction: [f32; ROWS_MAX],
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
        let [at] = task.rows_at(start, row);
        task.out_part(at, shape.head_dim).fill(0.0);
    }
    let last_position = place.position + len - 1;
    let head = |page| {
        let head = page_of(shape, task.tables, place.table, page) + task.head;
        pages.head(head, shape.head_dim)
    };
    let last = last_position / PAGE_LEN;
    for number in shape.start(place.position) / PAGE_LEN..=last {
        let from = number * PAGE_LEN;
        // Tokens before `active` end before this page; the windows of those after it start later.
        let sees = |i: &usize| shape.start(place.position + i) < from + PAGE_LEN;
        let active_start = from.saturating_sub(place.position);
        let active_end = active_start + (active_start..len).take_while(sees).count();
        let (page, next) = (head(number), (number < last).then(|| head(number + 1)));
        let active = active_start * group..active_end * group;
        score_page(vector, task, page, start, active.clone(), &mut rows);
        for row in active.clone() {
            let position = place.position + row / group;
            let low = shape.start(position).saturating_sub(from);
            let high = (position + 1 - from).min(PAGE_LEN);
            weigh_row(shape.scale, low, high, row, &mut rows);
        }
        add_page(vector, task, (page, next), start, active, &rows);
    }
    for row in 0..len * group {
        let total = rows.total[row];
        let [at] = task.rows_at(start, row);
        task.out_part(at, shape.head_dim).iter_mut().for_each(|out| *out /= total);
    }
}
