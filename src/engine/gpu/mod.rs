//! The layers of a model that a card computes: the last ones, and the output.
//!
//! Everything is allocated when the engine is made: weights as the loader packed them, keys and values,
//! buffers for the largest batch. Where all layers are the card's, so is the embedding, which is scanned
//! whole, so that no address depends on a token; else what the layers before computed is copied over.
//! The launches of every shape of steps are recorded then too, as graphs. Nothing is known here of requests.

mod buffers;
mod error;
mod layers;
mod plan;
mod weights;

use kernels::cuda::{self, Cache, CacheShape, Card, CudaError, PageType, Step, reads_bytes};
use kernels::{Pool, Precision};

pub use self::error::CardError;
pub use self::plan::{GpuLayers, Needs, Plan};

use self::buffers::Buffers;
use self::weights::Weights;
use super::kv_cache::{self, KvType};
use super::{Choice, Contents, Engine, Error, Model, ModelConfig, Options};

/// The layers of a model that a card computes.
pub(super) struct Gpu<'m> {
    card: &'m Card<'m>,
    weights: Weights<'m>,
    /// The first layer that is the card's.
    first_layer: usize,
    cache: Cache<'m>,
    /// Whether the page lists are those of the host.
    has_tables: bool,
    buffers: Buffers<'m>,
    /// The launches of each shape of batches, if they are to be recorded.
    steps: Option<Vec<Step<'m>>>,
}

impl<'m> Gpu<'m> {
    /// Copies the weights of the last `options.gpu_layers` layers to a card and allocates all else.
    pub(super) fn new(
        card: &'m Card<'m>,
        model: &Model<'_>,
        options: &Options,
    ) -> Result<Self, Error> {
        check(model, options)?;
        let config = model.config();
        let first_layer = config.n_layers - options.gpu_layers;
        let shape = cache_shape(config, options).ok_or(Error::BadOption("cache_len"))?;
        let weights = Weights::new(card, model, first_layer)?;
        let table = (first_layer == 0).then(|| weights.table());
        let mut gpu = Self {
            card,
            cache: Cache::new(card, shape)?,
            has_tables: false,
            buffers: Buffers::new(card, model, table, options)?,
            weights,
            first_layer,
            steps: options.gpu_graphs.then(Vec::new),
        };
        gpu.record(config)?;
        Ok(gpu)
    }

    /// Records the launches of every shape of batches, unless those that are there can be launched: they
    /// cannot when another engine on the card has ended.
    fn record(&mut self, config: &ModelConfig) -> Result<(), CudaError> {
        let Some(steps) = &mut self.steps else { return Ok(()) };
        if !steps.is_empty() && steps.iter().all(Step::is_current) {
            return Ok(());
        }
        steps.clear();
        for shape in self.buffers.batch.shapes() {
            let step = Step::record(
                self.card,
                shape,
                self,
                |gpu| &mut gpu.buffers.batch,
                |gpu| gpu.launch(config),
            )?;
            self.steps.get_or_insert_default().push(step);
        }
        Ok(())
    }

    /// Takes note that page lists have changed.
    pub(super) fn sequences_changed(&mut self) {
        self.has_tables = false;
    }

    /// Zeroes pages in every layer of the card.
    pub(super) fn zero(&mut self, pages: &[u32]) -> Result<(), Error> {
        Ok(self.cache.zero(pages)?)
    }

    /// Computes the card's layers of a batch, and the logits that are wanted.
    pub(super) fn forward(
        &mut self,
        config: &ModelConfig,
        batch: &Contents<'_>,
    ) -> Result<(), Error> {
        if batch.tokens.is_empty() {
            return Ok(());
        }
        self.record(config)?;
        if !self.has_tables {
            self.cache.set_tables(batch.tables)?;
            self.has_tables = true;
        }
        self.set(batch)?;
        let shape = self.buffers.batch.shape();
        let mut steps = self.steps.iter().flatten();
        match steps.find(|step| Some(step.shape()) == shape) {
            Some(step) => step.launch(&self.buffers.batch)?,
            None => self.launch(config)?,
        }
        Ok(self.choose(config, batch.wanted.len(), batch.choices)?)
    }

    /// Chooses the tokens that are to be chosen, and copies all other logits to the host.
    fn choose(
        &mut self,
        config: &ModelConfig,
        wanted: usize,
        choices: &[Option<Choice>],
    ) -> Result<(), CudaError> {
        let Buffers { logits, host_logits, selection, chosen, .. } = &mut self.buffers;
        let vocab_size = config.vocab_size;
        chosen.clear();
        if choices.iter().all(Option::is_none) {
            return logits.read_to(host_logits, 0..wanted * vocab_size);
        }
        assert_eq!(choices.len(), wanted, "a choice for each token that wants logits");
        let tokens = selection.choose(choices, logits, host_logits)?;
        chosen.extend(choices.iter().zip(tokens).map(|(choice, token)| choice.map(|_| *token)));
        Ok(())
    }

    /// Returns the token that was chosen of the last batch's logits.
    pub(super) fn chosen(&self, index: usize) -> Option<u32> {
        self.buffers.chosen.get(index).copied().flatten()
    }

    /// Returns the logits of the last batch, `[wanted, vocab_size]`, and what there is room for.
    pub(super) fn logits(&self) -> &[f32] {
        self.buffers.host_logits.values()
    }

    /// Returns the same to be changed.
    pub(super) fn logits_mut(&mut self) -> &mut [f32] {
        self.buffers.host_logits.values_mut()
    }

    /// Zeroes what the last batches left in the buffers; the cache stays.
    pub(super) fn erase(&mut self) -> Result<(), Error> {
        self.buffers.erase()?;
        Ok(self.card.finish()?)
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
        options.check(model.config())?;
        let gpu = (options.gpu_layers > 0).then(|| Gpu::new(card, model, &options)).transpose()?;
        Self::with(pool, model, options, gpu)
    }

    /// Reads all keys and values of the card back, and returns whether they are zero.
    ///
    /// # Errors
    ///
    /// [`Error::Card`] if the card fails.
    pub fn card_cache_is_zero(&self) -> Result<bool, Error> {
        match &self.gpu {
            Some(gpu) => Ok(gpu.cache.is_zero()?),
            None => Ok(true),
        }
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

/// How much the cache of the card's layers is for.
fn cache_shape(config: &ModelConfig, options: &Options) -> Option<CacheShape> {
    Some(CacheShape {
        pages: match options.kv {
            KvType::F32 => PageType::F32,
            KvType::F16 => PageType::F16,
            KvType::Q8_0 => PageType::Q8_0,
        },
        n_layers: options.gpu_layers,
        n_pages: kv_cache::n_pages(options)?,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        tables_len: kv_cache::tables_len(options),
    })
}
