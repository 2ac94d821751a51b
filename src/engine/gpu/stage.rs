//! What one card computes: some layers after each other, with their keys and values, on the first stage the
//! embedding too, on the last the output.

use core::ops::Range;

use kernels::cuda::{Cache, CacheShape, Card, CudaError, PageType, Step};

use super::buffers::{Buffers, End, Output};
use super::weights::Weights;
use crate::engine::kv_cache::{self, KvType};
use crate::engine::{Choice, Contents, Error, Model, ModelConfig, Options};

/// The layers of a model that one card computes.
pub(super) struct Stage<'m> {
    pub(super) card: &'m Card<'m>,
    pub(super) weights: Weights<'m>,
    /// The first of its layers.
    pub(super) first_layer: usize,
    pub(super) cache: Cache<'m>,
    /// Whether the page lists are those of the host.
    has_tables: bool,
    pub(super) buffers: Buffers<'m>,
    /// The launches of each shape of batches, if they are to be recorded.
    steps: Option<Vec<Step<'m>>>,
}

impl<'m> Stage<'m> {
    /// Copies the weights of some layers to a card and allocates all else.
    pub(super) fn new(
        card: &'m Card<'m>,
        model: &Model<'_>,
        layers: Range<usize>,
        options: &Options,
    ) -> Result<Self, Error> {
        let config = model.config();
        let shape = cache_shape(config, options, layers.len());
        let shape = shape.ok_or(Error::BadOption("cache_len"))?;
        let first_layer = layers.start;
        let weights = Weights::new(card, model, layers)?;
        let mut stage = Self {
            card,
            cache: Cache::new(card, shape)?,
            has_tables: false,
            buffers: Buffers::new(card, model, &weights, options, first_layer == 0)?,
            weights,
            first_layer,
            steps: options.gpu_graphs.then(Vec::new),
        };
        stage.record(config)?;
        Ok(stage)
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
                |stage| &mut stage.buffers.batch,
                |stage| stage.launch(config),
            )?;
            self.steps.get_or_insert_default().push(step);
        }
        Ok(())
    }

    /// Takes note that page lists have changed.
    pub(super) fn sequences_changed(&mut self) {
        self.has_tables = false;
    }

    /// Starts the stage's layers of a batch, and on the last stage the logits that are wanted.
    pub(super) fn forward(
        &mut self,
        config: &ModelConfig,
        batch: &Contents<'_>,
    ) -> Result<(), CudaError> {
        self.record(config)?;
        if !self.has_tables {
            self.cache.set_tables(batch.tables)?;
            self.has_tables = true;
        }
        self.set(batch)?;
        let shape = self.buffers.batch.shape();
        let mut steps = self.steps.iter().flatten();
        match steps.find(|step| Some(step.shape()) == shape) {
            Some(step) => step.launch(&self.buffers.batch),
            None => self.launch(config),
        }
    }

    /// Waits for what the stage's layers give of a batch's first rows, `[rows, embed_dim]`, which the next
    /// stage takes; the last stage gives nothing.
    pub(super) fn given(&mut self, rows: usize, embed_dim: usize) -> Result<&[f32], CudaError> {
        let Buffers { x, end: End::Host(host), .. } = &mut self.buffers else { return Ok(&[]) };
        let len = rows * embed_dim;
        x.read_to(host, 0..len)?;
        Ok(&host.values()[..len])
    }

    /// Chooses the tokens that are to be chosen, and copies all other logits to the host.
    pub(super) fn choose(
        &mut self,
        config: &ModelConfig,
        wanted: usize,
        choices: &[Option<Choice>],
    ) -> Result<(), CudaError> {
        let End::Output(output) = &mut self.buffers.end else { return Ok(()) };
        let Output { logits, host_logits, selection, chosen } = &mut **output;
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

    /// Zeroes what the last batches left in the buffers; the cache stays.
    pub(super) fn erase(&mut self) -> Result<(), CudaError> {
        self.buffers.erase()?;
        self.card.finish()
    }
}

/// How much the cache of so many layers is for.
pub(super) fn cache_shape(
    config: &ModelConfig,
    options: &Options,
    n_layers: usize,
) -> Option<CacheShape> {
    Some(CacheShape {
        pages: match options.kv {
            KvType::F32 => PageType::F32,
            KvType::F16 => PageType::F16,
            KvType::Q8_0 => PageType::Q8_0,
        },
        n_layers,
        n_pages: kv_cache::n_pages(options)?,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        tables_len: kv_cache::tables_len(options),
    })
}
