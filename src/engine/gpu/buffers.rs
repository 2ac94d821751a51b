//! The buffers of a forward pass on the card, allocated once.

use kernels::cuda::{
    Batch, BatchLimits, Buffer, Card, CudaError, Embedding, Heads, HostSource, HostTarget, Input,
    Selection,
};
use zeroize::Zeroize as _;

use crate::engine::{Model, ModelConfig, Options, kv_cache};

/// The buffers of a forward pass; `tokens` is up to `tokens_max`.
pub(super) struct Buffers<'m> {
    /// The batch's tokens.
    pub(super) tokens: Vec<u32>,
    pub(super) batch: Batch<'m>,
    pub(super) start: Start<'m>,
    /// `[tokens, embed_dim]`: what the layers add to.
    pub(super) x: Buffer<'m, f32>,
    /// `[tokens, embed_dim]`: what a half of a layer adds.
    pub(super) delta: Buffer<'m, f32>,
    /// What products read.
    pub(super) input: Input<'m>,
    pub(super) heads: Heads<'m>,
    /// `[tokens, ffn_dim]`
    pub(super) gates: Buffer<'m, f32>,
    /// `[tokens, ffn_dim]`
    pub(super) ups: Buffer<'m, f32>,
    /// `[logits_max, vocab_size]`
    pub(super) logits: Buffer<'m, f32>,
    /// The same on the host.
    pub(super) host_logits: HostTarget<'m, f32>,
    pub(super) selection: Selection<'m>,
    /// The tokens that were chosen of the last batch's logits.
    pub(super) chosen: Vec<Option<u32>>,
}

/// Where `x` comes from.
pub(super) enum Start<'m> {
    /// All layers are the card's, which finds the embeddings.
    Embedding(Embedding<'m>),
    /// `[tokens, embed_dim]`: the layers before give it.
    Host(HostSource<'m, f32>),
}

impl<'m> Buffers<'m> {
    pub(super) fn new(
        card: &'m Card<'m>,
        model: &Model<'_>,
        table: Option<&kernels::cuda::Matrix<'_>>,
        options: &Options,
    ) -> Result<Self, CudaError> {
        let config = model.config();
        let (tokens, shape) = (options.tokens_max, config.attention(0));
        Ok(Self {
            tokens: Vec::with_capacity(tokens),
            batch: Batch::new(card, batch_limits(config, options))?,
            start: match table {
                Some(table) => Start::Embedding(Embedding::new(card, table, tokens)?),
                None => Start::Host(HostSource::new(card, tokens * config.embed_dim)?),
            },
            x: Buffer::new(card, tokens * config.embed_dim)?,
            delta: Buffer::new(card, tokens * config.embed_dim)?,
            input: Input::new(card, tokens, widest_input(config))?,
            heads: Heads::new(card, &shape, tokens, options.context_len)?,
            gates: Buffer::new(card, tokens * config.ffn_dim)?,
            ups: Buffer::new(card, tokens * config.ffn_dim)?,
            logits: Buffer::new(card, options.logits_max * config.vocab_size)?,
            host_logits: HostTarget::new(card, options.logits_max * config.vocab_size)?,
            selection: Selection::new(card, options.logits_max, config.vocab_size)?,
            chosen: Vec::with_capacity(options.logits_max),
        })
    }

    /// Returns the bytes that they take on the card.
    pub(super) fn size(model: &Model<'_>, options: &Options) -> usize {
        let config = model.config();
        let (tokens, shape) = (options.tokens_max, config.attention(0));
        let table = match options.gpu_layers == config.n_layers {
            true => Embedding::size(&model.weights.token_embd, tokens),
            false => 0,
        };
        let floats = tokens * 2 * (config.embed_dim + config.ffn_dim)
            + options.logits_max * config.vocab_size;
        Batch::size(&batch_limits(config, options))
            + table
            + floats * size_of::<f32>()
            + Input::size(tokens, widest_input(config))
            + Heads::size(&shape, tokens, options.context_len)
            + Selection::size(options.logits_max, config.vocab_size)
    }

    /// Zeroes all that depends on what was computed.
    pub(super) fn erase(&mut self) -> Result<(), CudaError> {
        // The last batch was shorter than others, which left theirs behind its end.
        self.tokens.zeroize();
        self.chosen.zeroize();
        self.host_logits.values_mut().fill(0.0);
        self.selection.erase()?;
        let Self { x, delta, gates, ups, logits, .. } = self;
        for buffer in [x, delta, gates, ups, logits] {
            buffer.erase()?;
        }
        match &mut self.start {
            Start::Embedding(embedding) => embedding.erase()?,
            Start::Host(x) => x.values_mut()?.fill(0.0),
        }
        self.batch.erase()?;
        self.input.erase()?;
        self.heads.erase()
    }
}

fn batch_limits(config: &ModelConfig, options: &Options) -> BatchLimits {
    let pairs = config.rope_dims / 2;
    BatchLimits {
        tokens: options.tokens_max,
        logits: options.logits_max,
        positions: options.context_len,
        tables_len: kv_cache::tables_len(options),
        pairs: [pairs, config.local.map_or(0, |_| pairs)],
        run_len: Heads::run_len(&config.attention(0)),
    }
}

/// Returns the columns of the widest matrix.
fn widest_input(config: &ModelConfig) -> usize {
    config.embed_dim.max(config.q_dim()).max(config.ffn_dim)
}
