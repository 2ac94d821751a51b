//! The layers of a model that cards compute: the last ones, and the output.
//!
//! A card computes a stage: some layers, one after the other, with their keys and values. What a stage gives is
//! copied to the next by way of the host; with one card there is one stage. Everything is allocated when the
//! engine is made: weights as the loader packed them, keys and values, buffers for the largest batch. Where all
//! layers are on cards, so is the embedding, which is scanned whole, so that no address depends on a token; else
//! what the layers before computed is copied over. The launches of every shape of steps are recorded then too, as
//! graphs. Nothing is known here of requests.

mod buffers;
mod error;
mod layers;
mod plan;
mod stage;
mod weights;

use core::ops::Range;
use core::slice;

use kernels::cuda::{self, Card, reads_bytes};
use kernels::{Pool, Precision};

pub use self::error::CardError;
pub use self::plan::{CardPart, GpuLayers, Needs, Plan};

use self::stage::Stage;
use super::{Contents, Engine, Error, Model, ModelConfig, Options};

/// The layers of a model that cards compute.
pub(super) struct Gpu<'m> {
    /// In the order of the layers; one at least.
    stages: Vec<Stage<'m>>,
}

impl<'m> Gpu<'m> {
    /// Copies the weights of the last `options.gpu_layers` layers to cards, each those of its part, and
    /// allocates all else.
    fn new(
        cards: &'m [Card<'m>],
        model: &Model<'_>,
        options: &Options,
        parts: &[Range<usize>],
    ) -> Result<Self, Error> {
        check(model, options)?;
        let mut parts: Vec<_> =
            cards.iter().zip(parts).filter(|(_, layers)| !layers.is_empty()).collect();
        parts.sort_by_key(|(_, layers)| layers.start);
        let n_layers = model.config().n_layers;
        let starts = parts.iter().map(|(_, layers)| layers.start).skip(1).chain([n_layers]);
        let first = parts.first().map_or(n_layers, |(_, layers)| layers.start);
        let is_whole = parts.iter().map(|(_, layers)| layers.end).eq(starts);
        if !is_whole || n_layers - first != options.gpu_layers {
            return Err(Error::BadOption("gpu_layers"));
        }
        let stage =
            |(card, layers): (_, &Range<usize>)| Stage::new(card, model, layers.clone(), options);
        Ok(Self { stages: parts.into_iter().map(stage).collect::<Result<_, _>>()? })
    }

    /// Takes note that page lists have changed.
    pub(super) fn sequences_changed(&mut self) {
        self.stages.iter_mut().for_each(Stage::sequences_changed);
    }

    /// Zeroes pages in every layer of the cards.
    pub(super) fn zero(&mut self, pages: &[u32]) -> Result<(), Error> {
        Ok(self.stages.iter_mut().try_for_each(|stage| stage.cache.zero(pages))?)
    }

    /// Computes the cards' layers of a batch, and the logits that are wanted.
    pub(super) fn forward(
        &mut self,
        config: &ModelConfig,
        batch: &Contents<'_>,
    ) -> Result<(), Error> {
        if batch.tokens.is_empty() {
            return Ok(());
        }
        let mut x = batch.x;
        for stage in &mut self.stages {
            stage.forward(config, &Contents { x, ..*batch })?;
            x = stage.given(batch.tokens.len(), config.embed_dim)?;
        }
        Ok(self.last_mut().choose(config, batch.wanted.len(), batch.choices)?)
    }

    fn last(&self) -> &Stage<'m> {
        self.stages.last().expect("there is a stage")
    }

    fn last_mut(&mut self) -> &mut Stage<'m> {
        self.stages.last_mut().expect("there is a stage")
    }

    /// Returns the token that was chosen of the last batch's logits.
    pub(super) fn chosen(&self, index: usize) -> Option<u32> {
        self.last().buffers.output().chosen.get(index).copied().flatten()
    }

    /// Returns the logits of the last batch, `[wanted, vocab_size]`, and what there is room for.
    pub(super) fn logits(&self) -> &[f32] {
        self.last().buffers.output().host_logits.values()
    }

    /// Returns the same to be changed.
    pub(super) fn logits_mut(&mut self) -> &mut [f32] {
        self.last_mut().buffers.output_mut().host_logits.values_mut()
    }

    /// Zeroes what the last batches left in the buffers; the caches stay.
    pub(super) fn erase(&mut self) -> Result<(), Error> {
        Ok(self.stages.iter_mut().try_for_each(Stage::erase)?)
    }
}

impl<'m> Engine<'m> {
    /// As [`Engine::on`], with the last `options.gpu_layers` layers and the output on a card.
    ///
    /// # Errors
    ///
    /// As [`Engine::on`]; [`Error::Card`] if the card is too small or has no kernel for the model.
    pub fn on_card(
        pool: Pool,
        model: &'m Model<'m>,
        options: Options,
        card: &'m Card<'m>,
    ) -> Result<Self, Error> {
        let n_layers = model.config().n_layers;
        let layers = n_layers.saturating_sub(options.gpu_layers)..n_layers;
        Self::on_cards(pool, model, options, slice::from_ref(card), &[layers])
    }

    /// As [`Engine::on`], with the last `options.gpu_layers` layers and the output on cards, of which each
    /// has some: `parts`, as [`Plan::layers`] gives them.
    ///
    /// # Errors
    ///
    /// As [`Engine::on_card`]; [`Error::BadOption`] if the parts are not those layers, each once.
    pub fn on_cards(
        pool: Pool,
        model: &'m Model<'m>,
        options: Options,
        cards: &'m [Card<'m>],
        parts: &[Range<usize>],
    ) -> Result<Self, Error> {
        options.check(model.config())?;
        let gpu = (options.gpu_layers > 0).then(|| Gpu::new(cards, model, &options, parts));
        Self::with(pool, model, options, gpu.transpose()?)
    }

    /// Reads all keys and values of the cards back, and returns whether they are zero.
    ///
    /// # Errors
    ///
    /// [`Error::Card`] if a card fails.
    pub fn card_cache_is_zero(&self) -> Result<bool, Error> {
        for stage in self.gpu.iter().flat_map(|gpu| &gpu.stages) {
            if !stage.cache.is_zero()? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Refuses what the kernels cannot compute.
fn check(model: &Model<'_>, options: &Options) -> Result<(), CardError> {
    let config = model.config();
    if config.head_dim > cuda::HEAD_DIM_MAX {
        return Err(CardError::Unsupported("heads of more than 256 values"));
    }
    let weights = &model.weights;
    let layers = weights.layers.iter().flat_map(|layer| {
        let linear = [&layer.q, &layer.k, &layer.v, &layer.attn_output];
        linear.map(|linear| linear.weights).into_iter().chain([layer.gate, layer.up, layer.down])
    });
    let has_integers = layers.chain([weights.output]).any(|matrix| reads_bytes(matrix.ty()));
    if options.precision == Precision::F32 && has_integers {
        return Err(CardError::Unsupported("the exact mode with weights of 4 to 8 bits"));
    }
    Ok(())
}
