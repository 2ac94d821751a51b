//! The buffers of a stage of the forward pass on a card, allocated once.

use kernels::cuda::{
    Batch, BatchLimits, Buffer, Card, CudaError, Embedding, Heads, HostSource, HostTarget, Input,
    Selection,
};
use zeroize::Zeroize as _;

use super::weights::Weights;
use crate::engine::{Model, ModelConfig, Options, kv_cache};

/// The buffers of a stage; `tokens` is up to `tokens_max`.
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
    pub(super) end: End<'m>,
}

/// Where `x` comes from.
pub(super) enum Start<'m> {
    /// All layers are on cards, the first here, where the embeddings are found.
    Embedding(Embedding<'m>),
    /// `[tokens, embed_dim]`: the layers before give it.
    Host(HostSource<'m, f32>),
}

/// What the stage gives.
pub(super) enum End<'m> {
    /// `[tokens, embed_dim]`: what the next stage takes.
    Host(HostTarget<'m, f32>),
    /// Logits, or tokens that are chosen of them.
    Output(Box<Output<'m>>),
}

/// What the last stage gives.
pub(super) struct Output<'m> {
    /// `[logits_max, vocab_size]`
    pub(super) logits: Buffer<'m, f32>,
    /// The same on the host.
    pub(super) host_logits: HostTarget<'m, f32>,
    pub(super) selection: Selection<'m>,
    /// The tokens that were chosen of the last batch's logits.
    pub(super) chosen: Vec<Option<u32>>,
}

impl<'m> Output<'m> {
    fn new(card: &'m Card<'m>, config: &ModelConfig, options: &Options) -> Result<Self, CudaError> {
        let (rows, vocab_size) = (options.logits_max, config.vocab_size);
        Ok(Self {
            logits: Buffer::new(card, rows * vocab_size)?,
            host_logits: HostTarget::new(card, rows * vocab_size)?,
            selection: Selection::new(card, rows, vocab_size)?,
            chosen: Vec::with_capacity(rows),
        })
    }

    /// Returns the bytes that it takes on the card.
    pub(super) fn size(config: &ModelConfig, options: &Options) -> usize {
        let (rows, vocab_size) = (options.logits_max, config.vocab_size);
        rows * vocab_size * size_of::<f32>() + Selection::size(rows, vocab_size)
    }

    fn erase(&mut self) -> Result<(), CudaError> {
        self.host_logits.values_mut().fill(0.0);
        self.chosen.zeroize();
        self.selection.erase()?;
        self.logits.erase()
    }
}

impl<'m> Buffers<'m> {
    pub(super) fn new(
        card: &'m Card<'m>,
        model: &Model<'_>,
        weights: &Weights<'_>,
        options: &Options,
        is_first: bool,
    ) -> Result<Self, CudaError> {
        let config = model.config();
        let (tokens, shape) = (options.tokens_max, config.attention(0));
        let x_len = tokens * config.embed_dim;
        Ok(Self {
            tokens: Vec::with_capacity(tokens),
            batch: Batch::new(card, batch_limits(config, options))?,
            start: match weights.table().filter(|_| is_first) {
                Some(table) => Start::Embedding(Embedding::new(card, table, tokens)?),
                None => Start::Host(HostSource::new(card, x_len)?),
            },
            x: Buffer::new(card, x_len)?,
            delta: Buffer::new(card, x_len)?,
            input: Input::new(card, tokens, widest_input(config))?,
            heads: Heads::new(card, &shape, tokens, options.context_len)?,
            gates: Buffer::new(card, tokens * config.ffn_dim)?,
            ups: Buffer::new(card, tokens * config.ffn_dim)?,
            end: match weights.output {
                Some(_) => End::Output(Box::new(Output::new(card, config, options)?)),
                None => End::Host(HostTarget::new(card, x_len)?),
            },
        })
    }

    /// Returns the bytes that they take on the card, but for the embeddings' and the output's.
    pub(super) fn size(model: &Model<'_>, options: &Options) -> usize {
        let config = model.config();
        let (tokens, shape) = (options.tokens_max, config.attention(0));
        let floats = tokens * 2 * (config.embed_dim + config.ffn_dim);
        Batch::size(&batch_limits(config, options))
            + floats * size_of::<f32>()
            + Input::size(tokens, widest_input(config))
            + Heads::size(&shape, tokens, options.context_len)
    }

    /// Returns the last stage's output.
    ///
    /// # Panics
    ///
    /// Panics on another stage.
    pub(super) fn output(&self) -> &Output<'m> {
        match &self.end {
            End::Output(output) => output,
            End::Host(_) => panic!("the last stage has the output"),
        }
    }

    /// Returns the same to be changed.
    pub(super) fn output_mut(&mut self) -> &mut Output<'m> {
        match &mut self.end {
            End::Output(output) => output,
            End::Host(_) => panic!("the last stage has the output"),
        }
    }

    /// Zeroes all that depends on what was computed.
    pub(super) fn erase(&mut self) -> Result<(), CudaError> {
        // The last batch was shorter than others, which left theirs behind its end.
        self.tokens.zeroize();
        let Self { x, delta, gates, ups, .. } = self;
        for buffer in [x, delta, gates, ups] {
            buffer.erase()?;
        }
        match &mut self.start {
            Start::Embedding(embedding) => embedding.erase()?,
            Start::Host(x) => x.values_mut()?.fill(0.0),
        }
        match &mut self.end {
            End::Output(output) => output.erase()?,
            End::Host(x) => x.values_mut().fill(0.0),
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
