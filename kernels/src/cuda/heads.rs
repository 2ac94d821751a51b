//! Heads on the card: norms and rotations, storing keys and values, attention over the cache.

use super::batch::{Batch, Span};
use super::buffer::{Buffer, Struct, dim, int, maybe};
use super::cache::{Cache, PageType};
use super::shape::{SPLIT_LEN, splits_of_window};
use super::{Card, CudaError};
use crate::ops::{AttentionShape, KV_BLOCK_LEN, RopePairs};

/// The longest head of the kernels.
pub const HEAD_DIM_MAX: usize = 256;
/// Values of a head that the kernels read together.
const HEAD_BLOCK_LEN: usize = 16;
/// Heads up to this length have runs of eight rows, longer ones of four.
const LONG_HEAD: usize = 128;
/// Bytes for parts of texts, unless one token's parts need more.
const PARTS_SIZE_MAX: usize = 256 << 20;

/// How the heads of a layer are prepared.
#[derive(Clone, Copy)]
pub struct Preparation<'a, 'c> {
    /// `[head_dim]`: the weights of the norms of queries and keys.
    pub norms: Option<(&'a Buffer<'c, f32>, &'a Buffer<'c, f32>)>,
    /// Added to the mean square under the root.
    pub epsilon: f32,
    /// Which values of a head turn together.
    pub pairs: RopePairs,
}

/// Queries, keys and values of a batch, and what attention makes of them.
#[derive(Debug)]
pub struct Heads<'c> {
    /// `[tokens][n_heads * head_dim]`
    pub q: Buffer<'c, f32>,
    /// `[tokens][n_kv_heads * head_dim]`
    pub k: Buffer<'c, f32>,
    /// `[tokens][n_kv_heads * head_dim]`
    pub v: Buffer<'c, f32>,
    /// `[tokens][n_heads * head_dim]`: what attention gives.
    pub out: Buffer<'c, f32>,
    /// `[tokens][n_heads][splits][head_dim + 2]`: attention to parts of the text.
    parts: Buffer<'c, f32>,
}

impl<'c> Heads<'c> {
    /// Allocates for so many tokens at a time, of texts of so many positions.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfMemory`] with what is free.
    pub fn new(
        card: &'c Card<'c>,
        shape: &AttentionShape,
        tokens: usize,
        context_len: usize,
    ) -> Result<Self, CudaError> {
        let rows = |heads: usize| Buffer::new(card, tokens * heads * shape.head_dim);
        Ok(Self {
            q: rows(shape.n_heads)?,
            k: rows(shape.n_kv_heads)?,
            v: rows(shape.n_kv_heads)?,
            out: rows(shape.n_heads)?,
            parts: Buffer::new(card, parts_len(shape, tokens, context_len))?,
        })
    }

    /// Returns the bytes that it takes.
    #[must_use]
    pub fn size(shape: &AttentionShape, tokens: usize, context_len: usize) -> usize {
        let rows = 2 * (shape.n_heads + shape.n_kv_heads) * shape.head_dim * tokens;
        (rows + parts_len(shape, tokens, context_len)) * size_of::<f32>()
    }

    /// Returns how many neighbours of a prompt a warp attends with at once.
    #[must_use]
    pub fn run_len(shape: &AttentionShape) -> usize {
        (run_rows(shape) / group(shape)).max(1)
    }

    /// Zeroes what it holds of the last batch.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    pub fn erase(&mut self) -> Result<(), CudaError> {
        let Self { q, k, v, out, parts } = self;
        [q, k, v, out, parts].into_iter().try_for_each(Buffer::erase)
    }

    /// Normalises and turns queries and keys, and stores keys and values in the cache.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    ///
    /// # Panics
    ///
    /// Panics if a shape does not fit.
    pub fn prepare(
        &mut self,
        card: &Card<'_>,
        batch: &Batch<'_>,
        shape: &AttentionShape,
        how: &Preparation<'_, '_>,
        (cache, layer): (&mut Cache<'_>, usize),
    ) -> Result<(), CudaError> {
        self.check(batch, shape, cache);
        let (q_norm, k_norm) = how.norms.unzip();
        [q_norm, k_norm].into_iter().flatten().for_each(|norm| norm.has(shape.head_dim));
        let (turns, pairs) = batch.turns(card, shape.window.is_some());
        assert!(2 * pairs <= shape.head_dim, "no more values turn than a head has");
        let [pages, scales] = cache.layer(card, layer);
        let heads = Struct::new()
            .with(&self.q.pointer(card))
            .with(&self.k.pointer(card))
            .with(&self.v.pointer(card))
            .with(&maybe(card, q_norm))
            .with(&maybe(card, k_norm))
            .with(&turns)
            .with(&cache.tables(card))
            .with(&batch.places_from(card, 0))
            .with(&pages)
            .with(&scales)
            .with(&int(shape.n_heads))
            .with(&int(shape.n_kv_heads))
            .with(&int(shape.head_dim))
            .with(&int(pairs))
            .with(&int(usize::from(how.pairs == RopePairs::Neighbours)))
            .with(&how.epsilon.to_ne_bytes());
        let name = match cache.shape().pages {
            PageType::F32 => "prepare_heads_f32",
            PageType::F16 => "prepare_heads_f16",
            PageType::Q8_0 => "prepare_heads_q8_0",
        };
        let blocks = (shape.n_heads + 2 * shape.n_kv_heads).div_ceil(4);
        let grid = [dim(blocks), dim(batch.rows()), 1];
        // SAFETY: `check` measured the buffers and the page lists, whose entries are pages.
        unsafe { card.launch(name, grid, 128, 0, &[heads.bytes()]) }
    }

    /// Lets every token attend to what the cache holds up to its position, and writes `out`.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    ///
    /// # Panics
    ///
    /// Panics if a shape does not fit.
    pub fn attend(
        &mut self,
        card: &Card<'_>,
        batch: &Batch<'_>,
        shape: &AttentionShape,
        (cache, layer): (&Cache<'_>, usize),
    ) -> Result<(), CudaError> {
        self.check(batch, shape, cache);
        let launch = Launch { card, batch, shape, cache, layer };
        for span in batch.singles() {
            let splits = span.splits.min(shape.window.map_or(usize::MAX, splits_of_window));
            let a_token = shape.n_heads * splits * (shape.head_dim + 2);
            let at_once = (self.parts.len() / a_token).max(1);
            for first in (span.first..span.first + span.len).step_by(at_once) {
                let len = at_once.min(span.first + span.len - first);
                self.decode(&launch, Span { first, len, splits })?;
            }
        }
        if batch.runs_len() > 0 { self.prompt(&launch) } else { Ok(()) }
    }

    /// Attends with single tokens: a block for each part of a text, then the parts together.
    fn decode(&self, on: &Launch<'_>, span: Span) -> Result<(), CudaError> {
        let (Launch { card, shape, .. }, splits) = (on, span.splits);
        self.parts.has(span.len * shape.n_heads * splits * (shape.head_dim + 2));
        let (rows, name) = decode_kernel(on.cache.shape().pages, group(shape));
        let parts = shape.n_kv_heads * group(shape).div_ceil(rows);
        let attention = self.argument(on, span.first, splits);
        let grid = [dim(splits), dim(parts), dim(span.len)];
        // SAFETY: `check` measured the buffers and the page lists, and `parts` has room for the splits.
        unsafe { card.launch(name, grid, 128, 0, &[attention.bytes()]) }?;
        let grid = [dim(shape.n_heads), dim(span.len), 1];
        // SAFETY: as above.
        unsafe { card.launch("attention_combine", grid, 128, 0, &[attention.bytes()]) }
    }

    /// Attends with prompts, run by run.
    fn prompt(&self, on: &Launch<'_>) -> Result<(), CudaError> {
        let Launch { card, batch, shape, .. } = on;
        let name = prompt_kernel(on.cache.shape().pages, shape.head_dim);
        let parts = shape.n_kv_heads * group(shape).div_ceil(run_rows(shape));
        let attention = self.argument(on, 0, 1);
        let grid = [dim(batch.runs_len().div_ceil(4)), dim(parts), 1];
        // SAFETY: `check` measured the buffers and the page lists; runs are neighbours of the batch.
        unsafe { card.launch(name, grid, 128, 0, &[attention.bytes()]) }
    }

    /// `Attention` of `attention.cu`, for the tokens from `first` on.
    fn argument(&self, on: &Launch<'_>, first: usize, splits: usize) -> Struct {
        let Launch { card, batch, shape, cache, layer } = *on;
        let row = first * shape.n_heads * shape.head_dim;
        let [pages, scales] = cache.layer(card, layer);
        Struct::new()
            .with(&self.q.pointer_at(card, row))
            .with(&self.out.pointer_at(card, row))
            .with(&pages)
            .with(&scales)
            .with(&cache.tables(card))
            .with(&batch.places_from(card, first))
            .with(&batch.runs(card))
            .with(&self.parts.pointer(card))
            .with(&int(shape.n_heads))
            .with(&int(shape.n_kv_heads))
            .with(&int(shape.head_dim))
            .with(&shape.scale.to_ne_bytes())
            .with(&int(shape.window.unwrap_or(0)))
            .with(&int(splits))
            .with(&int(batch.runs_len()))
    }

    /// Panics if a batch, a layer and a cache are not of one shape.
    fn check(&self, batch: &Batch<'_>, shape: &AttentionShape, cache: &Cache<'_>) {
        let held = cache.shape();
        assert_eq!(held.n_kv_heads, shape.n_kv_heads, "the cache is of these heads");
        assert_eq!(held.head_dim, shape.head_dim, "the cache is of these heads");
        let block_len = match held.pages {
            PageType::F32 | PageType::F16 => HEAD_BLOCK_LEN,
            PageType::Q8_0 => KV_BLOCK_LEN,
        };
        assert!(shape.head_dim <= HEAD_DIM_MAX, "short heads");
        assert!(shape.head_dim.is_multiple_of(block_len), "heads of whole blocks");
        assert!(shape.n_heads.is_multiple_of(shape.n_kv_heads), "heads come in whole groups");
        assert!(batch.run_len() <= Self::run_len(shape), "runs are as short as a warp's rows");
        assert_eq!(batch.tables_len(), held.tables_len, "places lie in the page lists");
        let (q_len, kv_len) = (shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
        self.q.has(batch.rows() * q_len);
        self.out.has(batch.rows() * q_len);
        self.k.has(batch.rows() * kv_len);
        self.v.has(batch.rows() * kv_len);
    }
}

/// What a launch of attention is of.
struct Launch<'a> {
    card: &'a Card<'a>,
    batch: &'a Batch<'a>,
    shape: &'a AttentionShape,
    cache: &'a Cache<'a>,
    layer: usize,
}

fn group(shape: &AttentionShape) -> usize {
    shape.n_heads / shape.n_kv_heads
}

/// Rows that a warp has of a prompt at once.
fn run_rows(shape: &AttentionShape) -> usize {
    if shape.head_dim > LONG_HEAD { 4 } else { 8 }
}

/// Numbers of the parts of texts: for every token as far as they fit, for one at least.
fn parts_len(shape: &AttentionShape, tokens: usize, context_len: usize) -> usize {
    let a_token = shape.n_heads * context_len.div_ceil(SPLIT_LEN).max(1) * (shape.head_dim + 2);
    let fitting = PARTS_SIZE_MAX / size_of::<f32>() / a_token.max(1);
    a_token * tokens.min(fitting).max(1)
}

/// The rows of a decode kernel, and its name.
fn decode_kernel(pages: PageType, group: usize) -> (usize, &'static str) {
    let names = match pages {
        PageType::F32 => [
            "attention_decode_f32_1",
            "attention_decode_f32_2",
            "attention_decode_f32_4",
            "attention_decode_f32_8",
        ],
        PageType::F16 => [
            "attention_decode_f16_1",
            "attention_decode_f16_2",
            "attention_decode_f16_4",
            "attention_decode_f16_8",
        ],
        PageType::Q8_0 => [
            "attention_decode_q8_0_1",
            "attention_decode_q8_0_2",
            "attention_decode_q8_0_4",
            "attention_decode_q8_0_8",
        ],
    };
    match group {
        1 => (1, names[0]),
        2 => (2, names[1]),
        3 | 4 => (4, names[2]),
        _ => (8, names[3]),
    }
}

fn prompt_kernel(pages: PageType, head_dim: usize) -> &'static str {
    let names = match pages {
        PageType::F32 => {
            ["attention_prompt_f32_64", "attention_prompt_f32_128", "attention_prompt_f32_256"]
        }
        PageType::F16 => {
            ["attention_prompt_f16_64", "attention_prompt_f16_128", "attention_prompt_f16_256"]
        }
        PageType::Q8_0 => {
            ["attention_prompt_q8_0_64", "attention_prompt_q8_0_128", "attention_prompt_q8_0_256"]
        }
    };
    names[usize::from(head_dim > 64) + usize::from(head_dim > LONG_HEAD)]
}
