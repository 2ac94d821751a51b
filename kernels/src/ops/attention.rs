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
//! Pages start at multiples of 32 of the position, so a row's result does not depend on its
//! neighbours in the batch, on chunks or on threads; `attention_split` shares a head among
//! threads, and keeps these orders.

use core::ops::Range;

use half::f16;

use super::attention_page::{add_page, score_page, weigh_row};
use super::attention_split::{Split, add_part, score_part};
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

    pub(super) fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Returns the most tokens that one task works on.
    pub(super) fn tokens_a_block(&self) -> usize {
        (ROWS_MAX / self.group()).min(8)
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
/// Shapes: `q, out: [places, n_heads, head_dim]`; `tables` holds page numbers. With room for
/// `n_heads * positions` or more in `scores`, threads that are more than KV heads share a long
/// text; the result is the same without.
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
    scores: &mut [f32],
    out: &mut [f32],
) {
    shape.check();
    let row_len = shape.n_heads * shape.head_dim;
    assert_eq!(q.len(), places.len() * row_len, "queries of every place");
    assert_eq!(out.len(), q.len(), "an output for every query");
    let out = Disjoint::new(out);
    let task = |head| Task { shape, tables, places, q, out: &out, head };
    if let Some(split) = Split::plan(pool, shape, places, scores.len()) {
        let room = Disjoint::new(scores);
        pool.run(split.score_tasks(), &|index| {
            run_task(isa, &task(split.head(index)), pages, Work::Scores(&split, index, &room));
        });
        pool.run(split.add_tasks(), &|index| {
            run_task(isa, &task(split.head(index)), pages, Work::Values(&split, index, scores));
        });
        return;
    }
    let tokens_a_block = shape.tokens_a_block();
    let n_blocks = places.len().div_ceil(tokens_a_block);
    // The last tokens of a prompt see the most pages: each thread begins with its longest, so that what
    // another takes over from it at the end is short.
    pool.run(n_blocks * shape.n_kv_heads, &|index| {
        let first = (n_blocks - 1 - index / shape.n_kv_heads) * tokens_a_block;
        let tokens = first..places.len().min(first + tokens_a_block);
        run_task(isa, &task(index % shape.n_kv_heads), pages, Work::Tokens(tokens));
    });
}

/// What a task does.
enum Work<'a> {
    /// All of these tokens.
    Tokens(Range<usize>),
    /// The scores of some pages: task, where they go.
    Scores(&'a Split, usize, &'a Disjoint<'a, f32>),
    /// Some dimensions of the output: task, the scores of all pages.
    Values(&'a Split, usize, &'a [f32]),
}

fn run_task(isa: Isa, task: &Task<'_>, pages: KvPages<'_>, work: Work<'_>) {
    match pages {
        KvPages::F32(pages) => {
            per_isa!(isa, work_f32, task: &Task<'_>, pages: &[f32], work: Work<'_>);
        }
        KvPages::F16(pages) => {
            per_isa!(isa, work_f16, task: &Task<'_>, pages: &[f16], work: Work<'_>);
        }
        KvPages::Q8_0(quants, scales) => {
            let pages = Quantized { quants, scales };
            per_isa!(isa, work_q8_0, task: &Task<'_>, pages: Quantized<'_>, work: Work<'_>);
        }
    }
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

    /// Returns a part of the output of one row, which starts at `at`.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "each part is handed out once at a time")]
    pub(super) fn out_part(&self, at: usize, len: usize) -> &mut [f32] {
        // SAFETY: a token's heads of one group, or some dimensions of them, belong to one task,
        // which drops each part before it asks for the next.
        unsafe { self.out.part(at, len) }
    }

    /// Sets some dimensions of the rows' outputs to zero.
    #[inline(always)]
    pub(super) fn clear(&self, dims: &Range<usize>, rows: &Rows) {
        for at in &rows.at[..rows.len] {
            self.out_part(at + dims.start, dims.len()).fill(0.0);
        }
    }

    /// Divides some dimensions of the rows' outputs by the sums of their weights.
    #[inline(always)]
    pub(super) fn divide(&self, dims: &Range<usize>, rows: &Rows) {
        for (at, total) in rows.at[..rows.len].iter().zip(&rows.total) {
            let out = self.out_part(at + dims.start, dims.len());
            out.iter_mut().for_each(|out| *out /= total);
        }
    }
}

#[inline(always)]
fn work_f32<V: Vector>(vector: V, task: &Task<'_>, pages: &[f32], work: Work<'_>) {
    work_on(vector, task, pages, work);
}

#[inline(always)]
fn work_f16<V: Vector>(vector: V, task: &Task<'_>, pages: &[f16], work: Work<'_>) {
    work_on(vector, task, pages, work);
}

#[inline(always)]
fn work_q8_0<V: Vector>(vector: V, task: &Task<'_>, pages: Quantized<'_>, work: Work<'_>) {
    work_on(vector, task, pages, work);
}

#[inline(always)]
fn work_on<V: Vector, S: Source>(vector: V, task: &Task<'_>, pages: S, work: Work<'_>) {
    match work {
        Work::Tokens(mut tokens) => {
            while let Some(run) = Run::first_of(&task.places[..tokens.end], tokens.start) {
                run_of_tokens(vector, task, pages, &run);
                tokens.start += run.len;
            }
        }
        Work::Scores(split, index, room) => score_part(vector, task, pages, split, index, room),
        Work::Values(split, index, scores) => add_part(vector, task, pages, split, index, scores),
    }
}

/// Neighbours in one sequence.
pub(super) struct Run {
    /// The first of them in the batch.
    pub(super) start: usize,
    pub(super) len: usize,
    place: Place,
}

impl Run {
    /// Returns the run that starts at `start`, or nothing if there is no token.
    #[inline(always)]
    pub(super) fn first_of(places: &[Place], start: usize) -> Option<Self> {
        let place = *places.get(start)?;
        let follows = |(i, other): (usize, &Place)| {
            other.table == place.table && other.position == place.position + i
        };
        let run = places[start..].iter().enumerate();
        let len = run.take_while(|&(i, other)| follows((i, other))).count();
        Some(Self { start, len, place })
    }

    /// Returns the pages that any of the tokens sees, counted from the start of the sequence.
    #[inline(always)]
    pub(super) fn pages(&self, shape: &AttentionShape) -> Range<usize> {
        let last_position = self.place.position + self.len - 1;
        shape.start(self.place.position) / PAGE_LEN..last_position / PAGE_LEN + 1
    }

    /// Returns the rows of the tokens that see a page.
    #[inline(always)]
    pub(super) fn rows_of(&self, shape: &AttentionShape, page: usize) -> Range<usize> {
        // Tokens before `start` end before this page; the windows of those after it start later.
        let from = page * PAGE_LEN;
        let sees = |i: &usize| shape.start(self.place.position + i) < from + PAGE_LEN;
        let start = from.saturating_sub(self.place.position);
        let end = start + (start..self.len).take_while(sees).count();
        start * shape.group()..end * shape.group()
    }

    /// Turns the scores of a page's rows into weights.
    #[inline(always)]
    pub(super) fn weigh(
        &self,
        shape: &AttentionShape,
        page: usize,
        active: Range<usize>,
        rows: &mut Rows,
    ) {
        let from = page * PAGE_LEN;
        for row in active {
            let position = self.place.position + row / shape.group();
            let low = shape.start(position).saturating_sub(from);
            let high = (position + 1 - from).min(PAGE_LEN);
            weigh_row(shape.scale, low, high, row, rows);
        }
    }

    /// Returns what the cache holds of a page for the task's head.
    #[inline(always)]
    pub(super) fn page<S: Source>(&self, task: &Task<'_>, pages: S, page: usize) -> S {
        let head = page_of(task.shape, task.tables, self.place.table, page) + task.head;
        pages.head(head, task.shape.head_dim)
    }
}

/// What the rows of a task know so far.
pub(super) struct Rows {
    /// Where each starts in `q` and `out`.
    pub(super) at: [usize; ROWS_MAX],
    len: usize,
    pub(super) scores: [Scores; ROWS_MAX],
    pub(super) largest: [f32; ROWS_MAX],
    pub(super) total: [f32; ROWS_MAX],
    pub(super) correction: [f32; ROWS_MAX],
}

impl Rows {
    /// Returns the rows of a run.
    #[inline(always)]
    pub(super) fn of(task: &Task<'_>, run: &Run) -> Self {
        let (group, mut at) = (task.shape.group(), [0; ROWS_MAX]);
        let len = run.len * group;
        for (row, at) in at[..len].iter_mut().enumerate() {
            *at = task.row_at(run.start + row / group, row % group);
        }
        Self {
            at,
            len,
            scores: [[0.0; PAGE_LEN]; ROWS_MAX],
            largest: [f32::NEG_INFINITY; ROWS_MAX],
            total: [0.0; ROWS_MAX],
            correction: [0.0; ROWS_MAX],
        }
    }
}

#[inline(always)]
fn run_of_tokens<V: Vector, S: Source>(vector: V, task: &Task<'_>, pages: S, run: &Run) {
    let shape = task.shape;
    let mut rows = Rows::of(task, run);
    let dims = 0..shape.head_dim;
    task.clear(&dims, &rows);
    let numbers = run.pages(shape);
    for number in numbers.clone() {
        let page = run.page(task, pages, number);
        let next = (number + 1 < numbers.end).then(|| run.page(task, pages, number + 1));
        let active = run.rows_of(shape, number);
        let values = &page.items()[PAGE_LEN * shape.head_dim..];
        score_page(vector, task, (page, values), active.clone(), &mut rows);
        run.weigh(shape, number, active.clone(), &mut rows);
        add_page(vector, task, (page, next), active, &dims, &rows);
    }
    task.divide(&dims, &rows);
}
