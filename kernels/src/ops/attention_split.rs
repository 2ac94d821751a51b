//! Attention of a few tokens over a long text, where threads are more than KV heads.
//!
//! First the scores, each task having some pages of a head; then weights and values, each task
//! having some dimensions of a head and all its pages in order. So every sum is the one that a
//! single task makes, bit for bit; only the weights are made again by each task of a head.

use core::ops::Range;

use super::attention::{AttentionShape, Place, Rows, Run, Task};
use super::attention_page::{add_page, score_page};
use super::kv_pages::{KV_BLOCK_LEN, PAGE_LEN, Source};
use super::lanes::Vector;
use crate::pool::{Disjoint, Pool};

/// Fewest pages that pay for a second parallel region.
const PAGES_MIN: usize = 16;

/// How the work is shared. Tasks of a region count the heads of a part, then the parts.
pub(super) struct Split {
    run: Run,
    pages: Range<usize>,
    n_kv_heads: usize,
    /// Of one KV head.
    rows: usize,
    /// Pages of a part.
    pages_each: usize,
    head_dim: usize,
    /// Dimensions of a part.
    dims_each: usize,
}

impl Split {
    /// Returns how to share the work; nothing if whole heads share it as well, or if `room` is too
    /// small for the scores.
    pub(super) fn plan(
        pool: &Pool,
        shape: &AttentionShape,
        places: &[Place],
        room: usize,
    ) -> Option<Self> {
        let (threads, n_kv_heads) = (pool.threads(), shape.n_kv_heads);
        if n_kv_heads.is_multiple_of(threads) || n_kv_heads >= 4 * threads {
            return None;
        }
        let run = Run::first_of(places, 0)?;
        if run.len < places.len() || run.len > shape.tokens_a_block() {
            return None;
        }
        let (pages, rows) = (run.pages(shape), run.len * shape.group());
        if pages.len() < PAGES_MIN || pages.len() * PAGE_LEN * rows * n_kv_heads > room {
            return None;
        }
        let parts = threads.div_ceil(n_kv_heads).max(2);
        Some(Self {
            run,
            n_kv_heads,
            rows,
            pages_each: pages.len().div_ceil(2 * parts),
            pages,
            head_dim: shape.head_dim,
            dims_each: shape.head_dim.div_ceil(parts).next_multiple_of(KV_BLOCK_LEN),
        })
    }

    /// Returns the tasks of the first region.
    pub(super) fn score_tasks(&self) -> usize {
        self.pages.len().div_ceil(self.pages_each) * self.n_kv_heads
    }

    /// Returns the tasks of the second region.
    pub(super) fn add_tasks(&self) -> usize {
        self.head_dim.div_ceil(self.dims_each) * self.n_kv_heads
    }

    /// Returns the KV head of a task.
    pub(super) fn head(&self, task: usize) -> usize {
        task % self.n_kv_heads
    }

    /// Returns where the scores of a page's row lie.
    fn scores_at(&self, task: usize, page: usize, row: usize) -> usize {
        let page = self.head(task) * self.pages.len() + page - self.pages.start;
        (page * self.rows + row) * PAGE_LEN
    }
}

/// Computes the scores of some pages.
#[inline(always)]
pub(super) fn score_part<V: Vector, S: Source>(
    vector: V,
    task: &Task<'_>,
    pages: S,
    split: &Split,
    index: usize,
    scores: &Disjoint<'_, f32>,
) {
    let (run, shape) = (&split.run, task.shape);
    let mut rows = Rows::of(task, run);
    let first = split.pages.start + index / split.n_kv_heads * split.pages_each;
    let end = split.pages.end.min(first + split.pages_each);
    for number in first..end {
        let page = run.page(task, pages, number);
        let next = (number + 1 < end).then(|| run.page(task, pages, number + 1));
        let keys = next.as_ref().map_or(&[][..], |next| &next.items()[..PAGE_LEN * shape.head_dim]);
        let active = run.rows_of(shape, number);
        score_page(vector, task, (page, keys), active.clone(), &mut rows);
        let found = rows.scores[active.clone()].as_flattened();
        // SAFETY: a page of a head belongs to one task.
        let room =
            unsafe { scores.part(split.scores_at(index, number, active.start), found.len()) };
        room.copy_from_slice(found);
    }
}

/// Computes some dimensions of the output.
#[inline(always)]
pub(super) fn add_part<V: Vector, S: Source>(
    vector: V,
    task: &Task<'_>,
    pages: S,
    split: &Split,
    index: usize,
    scores: &[f32],
) {
    let (run, shape) = (&split.run, task.shape);
    let mut rows = Rows::of(task, run);
    let first = index / split.n_kv_heads * split.dims_each;
    let dims = first..split.head_dim.min(first + split.dims_each);
    task.clear(&dims, &rows);
    for number in split.pages.clone() {
        let page = run.page(task, pages, number);
        let active = run.rows_of(shape, number);
        let known = rows.scores[active.clone()].as_flattened_mut();
        let at = split.scores_at(index, number, active.start);
        known.copy_from_slice(&scores[at..][..known.len()]);
        run.weigh(shape, number, active.clone(), &mut rows);
        add_page(vector, task, (page, None), active, &dims, &rows);
    }
    task.divide(&dims, &rows);
}
