//! The buffers of a forward pass, allocated once.

use kernels::ops::{PAGE_LEN, Place, Rope};
use kernels::{Activations as Quantized, Hidden};

use super::{Model, ModelConfig, Options};

/// Values of a buffer that are looked at together when it is erased: a page of memory.
const ERASED_LEN: usize = 1024;

/// The buffers of a forward pass; `tokens` is up to `tokens_max`.
pub(super) struct Activations {
    /// `[tokens, embed_dim]`: what the layers add to.
    pub(super) x: Vec<f32>,
    /// `[tokens, embed_dim]`: normalised `x`.
    pub(super) normed: Vec<f32>,
    /// `[tokens, embed_dim]`: what a half of a layer adds.
    pub(super) delta: Vec<f32>,
    /// `[tokens, q_dim]`
    pub(super) q: Vec<f32>,
    /// `[tokens, kv_dim]`
    pub(super) k: Vec<f32>,
    /// `[tokens, kv_dim]`
    pub(super) v: Vec<f32>,
    /// `[tokens, q_dim]`: what attention gives; normalised queries before that.
    pub(super) heads: Vec<f32>,
    /// `[heads, positions]` of a token: the scores of a long text that threads share.
    pub(super) scores: Vec<f32>,
    /// `[tokens, kv_dim]`: normalised keys.
    pub(super) k_normed: Vec<f32>,
    /// What lies inside a feed-forward half.
    pub(super) hidden: Hidden,
    /// `[logits_max, vocab_size]`, unless a card gives them.
    pub(super) logits: Vec<f32>,
    /// Where each token stands.
    pub(super) places: Vec<Place>,
    /// Which tokens' logits are wanted.
    pub(super) wanted: Vec<usize>,
    /// The rotations of global layers.
    pub(super) rope: Rope,
    /// The rotations of local layers, if there are any.
    pub(super) local_rope: Option<Rope>,
    /// Inputs of matrix products as bytes.
    pub(super) quantized: Quantized,
}

impl Activations {
    pub(super) fn new(model: &Model<'_>, options: &Options) -> Self {
        let config = model.config();
        let tokens = options.tokens_max;
        let buffer = |len: usize| vec![0.0; tokens * len];
        let rope =
            |base, factors| Rope::new(config.rope_pairs, config.rope_dims, base, factors, tokens);
        let logits_max = if options.gpu_layers > 0 { 0 } else { options.logits_max };
        let downs = model.weights.layers.iter().map(|layer| layer.down);
        Self {
            x: buffer(config.embed_dim),
            normed: buffer(config.embed_dim),
            delta: buffer(config.embed_dim),
            q: buffer(config.q_dim()),
            k: buffer(config.kv_dim()),
            v: buffer(config.kv_dim()),
            heads: buffer(config.q_dim()),
            scores: vec![0.0; config.n_heads * options.context_len.next_multiple_of(PAGE_LEN)],
            k_normed: buffer(if config.extra_norms { config.kv_dim() } else { 0 }),
            hidden: Hidden::new(options.precision, downs, tokens),
            logits: vec![0.0; logits_max * config.vocab_size],
            places: Vec::with_capacity(tokens),
            wanted: Vec::with_capacity(options.logits_max),
            rope: rope(config.rope_base, model.weights.rope_freqs.as_deref()),
            local_rope: config.local.map(|local| rope(local.rope_base, None)),
            quantized: Quantized::new(widest_input(config), tokens),
        }
    }

    /// Zeroes all that depends on what was computed.
    pub(super) fn erase(&mut self) {
        let Self { x, normed, delta, q, k, v, heads, scores, k_normed, logits, .. } = self;
        for buffer in [x, normed, delta, q, k, v, heads, scores, k_normed, logits] {
            erase(buffer);
        }
        self.hidden.erase();
        self.quantized.erase();
        self.wanted.clear();
    }

    #[cfg(test)]
    pub(super) fn is_zero(&self) -> bool {
        let Self { x, normed, delta, q, k, v, heads, scores, k_normed, logits, .. } = self;
        let mut buffers = [x, normed, delta, q, k, v, heads, scores, k_normed, logits].into_iter();
        buffers.all(|buffer| buffer.iter().all(|&value| value == 0.0))
    }
}

/// Zeroes a buffer, but writes to no part that is zero already: memory that was never used stays
/// unused.
fn erase(buffer: &mut [f32]) {
    let parts = buffer.chunks_mut(ERASED_LEN);
    parts.filter(|part| part.iter().any(|&value| value != 0.0)).for_each(|part| part.fill(0.0));
}

/// Returns the columns of the widest matrix, but for the last of a feed-forward half.
fn widest_input(config: &ModelConfig) -> usize {
    config.embed_dim.max(config.q_dim())
}
