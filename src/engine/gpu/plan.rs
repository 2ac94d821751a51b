//! How many layers go to a card: computed from sizes alone, before anything is allocated.

use std::fmt;
use std::str::FromStr;

use kernels::cuda::CudaError;

use super::buffers::Buffers;
use super::{cache_shape, check};
use crate::engine::weights::{Layer, Linear};
use crate::engine::{CardError, Error, Model, Options};

/// What is left free when the number of layers is chosen: allocations are rounded up, and the driver
/// takes some memory as kernels run.
const RESERVE: usize = 256 << 20;
/// What the size of an allocation is rounded up to.
const GRANULE: usize = 512;

/// How many layers are asked for: `gpu_layers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuLayers {
    /// As many as the card has room for; none without a card.
    Auto,
    /// All of them: `-1`.
    All,
    /// The last so many.
    Count(usize),
}

impl FromStr for GpuLayers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "-1" => Ok(Self::All),
            _ => text
                .parse()
                .map(Self::Count)
                .map_err(|_| "gpu_layers is a number of layers, -1 for all, or `auto`".to_owned()),
        }
    }
}

/// Bytes that the parts of a model take on a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Weights of each layer.
    pub layers: Vec<usize>,
    /// Keys and values of a layer.
    pub cache_a_layer: usize,
    /// The output's weights.
    pub output: usize,
    /// The table of embeddings, where it is not the output's.
    pub embedding: usize,
    /// Buffers of a batch, and page lists.
    pub buffers: usize,
    /// More of them where the card finds the embeddings.
    pub embedding_buffers: usize,
}

impl Needs {
    /// Returns what a model takes with these options, whatever their `gpu_layers`.
    ///
    /// # Errors
    ///
    /// [`Error::Card`] if there is no kernel for the model, [`Error::BadOption`] if an option is out of
    /// bounds.
    pub fn of(model: &Model<'_>, options: &Options) -> Result<Self, Error> {
        let config = model.config();
        let with = |gpu_layers| Options { gpu_layers, ..*options };
        with(0).check(config)?;
        check(model, options)?;
        let cache_size = |gpu_layers: usize| {
            let shape = cache_shape(config, &with(gpu_layers));
            shape.and_then(|shape| shape.size()).ok_or(Error::BadOption("cache_len"))
        };
        let weights = &model.weights;
        let table = if weights.is_tied() { 0 } else { granules(weights.token_embd.bytes().len()) };
        let norm = granules(weights.output_norm.len() * 4);
        let buffers = Buffers::size(model, &with(0));
        Ok(Self {
            layers: weights.layers.iter().map(layer_size).collect(),
            cache_a_layer: cache_size(1)? - cache_size(0)?,
            output: granules(weights.output.bytes().len()) + norm,
            embedding: table,
            buffers: buffers + cache_size(0)?,
            embedding_buffers: Buffers::size(model, &with(config.n_layers)) - buffers,
        })
    }

    /// Returns what the last so many layers take, the output, and all that they need.
    #[must_use]
    pub fn total(&self, gpu_layers: usize) -> usize {
        if gpu_layers == 0 {
            return 0;
        }
        let last = &self.layers[self.layers.len() - gpu_layers..];
        let embedding = match gpu_layers == self.layers.len() {
            true => self.embedding + self.embedding_buffers,
            false => 0,
        };
        let layers: usize = last.iter().map(|layer| layer + self.cache_a_layer).sum();
        layers + self.output + self.buffers + embedding
    }

    /// Decides how many layers go to a card with so much free memory.
    ///
    /// # Errors
    ///
    /// [`Error::BadOption`] if there are not as many as asked for; [`Error::Card`] with both numbers
    /// if they do not fit. `Auto` takes as many as fit, and leaves some memory free.
    pub fn plan(&self, asked: GpuLayers, free: usize) -> Result<Plan, Error> {
        let n_layers = self.layers.len();
        let gpu_layers = match asked {
            GpuLayers::All => n_layers,
            GpuLayers::Count(count) if count <= n_layers => count,
            GpuLayers::Count(_) => return Err(Error::BadOption("gpu_layers")),
            GpuLayers::Auto => {
                let fits = |count: &usize| self.total(*count).saturating_add(RESERVE) <= free;
                (1..=n_layers).rev().find(fits).unwrap_or(0)
            }
        };
        let wanted = self.total(gpu_layers);
        if wanted > free {
            return Err(CardError::Cuda(CudaError::OutOfMemory { wanted, free }).into());
        }
        let cache = gpu_layers * self.cache_a_layer;
        Ok(Plan { gpu_layers, n_layers, total: wanted, cache, free })
    }
}

/// What goes where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Layers on the card: the last ones, and then the output too.
    pub gpu_layers: usize,
    /// Layers in all.
    pub n_layers: usize,
    /// Bytes that they take there.
    pub total: usize,
    /// Those of keys and values.
    pub cache: usize,
    /// Bytes that were free.
    pub free: usize,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gpu_layers, n_layers, total, cache, free } = *self;
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        let what = match gpu_layers {
            0 => {
                return write!(
                    f,
                    "no layer on the card, of whose memory {} MiB are free",
                    mib(free)
                );
            }
            _ if gpu_layers == n_layers => "all layers, embedding and output".to_owned(),
            _ => format!("layers {} to {n_layers} and the output", n_layers - gpu_layers + 1),
        };
        write!(
            f,
            "{what} on the card: {} MiB of {} MiB that are free, {} MiB of them keys and values",
            mib(total),
            mib(free),
            mib(cache)
        )
    }
}

fn granules(size: usize) -> usize {
    size.next_multiple_of(GRANULE)
}

fn layer_size(layer: &Layer<'_>) -> usize {
    let floats = |len: usize| granules(len * size_of::<f32>());
    let vector = |values: &Option<Vec<f32>>| values.as_ref().map_or(0, |it| floats(it.len()));
    let linear = |it: &Linear<'_>| granules(it.weights.bytes().len()) + vector(&it.bias);
    let matrices = [layer.gate, layer.up, layer.down];
    [&layer.q, &layer.k, &layer.v, &layer.attn_output].into_iter().map(linear).sum::<usize>()
        + matrices.iter().map(|matrix| granules(matrix.bytes().len())).sum::<usize>()
        + [&layer.q_norm, &layer.k_norm, &layer.post_attention_norm, &layer.post_ffw_norm]
            .into_iter()
            .map(vector)
            .sum::<usize>()
        + floats(layer.attn_norm.len())
        + floats(layer.ffn_norm.len())
}
