//! Which layers go to which card: computed from sizes alone, before anything is allocated.

use core::ops::Range;
use std::fmt;
use std::str::FromStr;

use kernels::cuda::{CudaError, Embedding};

use super::buffers::{Buffers, Output};
use super::check;
use super::stage::cache_shape;
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
    /// As many as there is room for; none without a card.
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

/// Bytes that the parts of a model take on cards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Weights of each layer.
    pub layers: Vec<usize>,
    /// Keys and values of a layer.
    pub cache_a_layer: usize,
    /// The output's weights and buffers, on the card of the last layer.
    pub output: usize,
    /// The table of embeddings, on the card of the first layer where all layers are on cards.
    pub embedding: usize,
    /// Whether the output's weights are the table.
    pub is_tied: bool,
    /// Buffers of a batch, and page lists, on each card.
    pub buffers: usize,
    /// More of them where embeddings are found.
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
        Options { gpu_layers: 0, ..*options }.check(config)?;
        check(model, options)?;
        let cache_size = |n_layers: usize| {
            let shape = cache_shape(config, options, n_layers);
            shape.and_then(|shape| shape.size()).ok_or(Error::BadOption("cache_len"))
        };
        let weights = &model.weights;
        let norm = granules(weights.output_norm.len() * 4);
        Ok(Self {
            layers: weights.layers.iter().map(layer_size).collect(),
            cache_a_layer: cache_size(1)? - cache_size(0)?,
            output: granules(weights.output.bytes().len()) + norm + Output::size(config, options),
            embedding: granules(weights.token_embd.bytes().len()),
            is_tied: weights.is_tied(),
            buffers: Buffers::size(model, options) + cache_size(0)?,
            embedding_buffers: Embedding::size(&weights.token_embd, options.tokens_max),
        })
    }

    /// Returns what some layers take on one card, with what comes before the first and after the last of the
    /// model, and all that they need; nothing for none.
    #[must_use]
    pub fn total(&self, layers: Range<usize>) -> usize {
        if layers.is_empty() {
            return 0;
        }
        let has_output = layers.end == self.layers.len();
        let output = if has_output { self.output } else { 0 };
        let embedding = match layers.start {
            0 if has_output && self.is_tied => self.embedding_buffers,
            0 => self.embedding + self.embedding_buffers,
            _ => 0,
        };
        let own = self.layers[layers].iter().map(|layer| layer + self.cache_a_layer);
        own.sum::<usize>() + output + embedding + self.buffers
    }

    /// Decides which layers go to cards with so much free memory each.
    ///
    /// The first card takes the output and as many of the last layers as it has room for, the next what comes
    /// before them, and so on: the fewer cards there are, the less is copied between them.
    ///
    /// # Errors
    ///
    /// [`Error::Card`] if there are not as many as asked for, or they do not fit. `Auto` takes as many as fit, and
    /// leaves some memory free.
    pub fn plan(&self, asked: GpuLayers, free: &[usize]) -> Result<Plan, Error> {
        let n_layers = self.layers.len();
        let layers = match asked {
            GpuLayers::All => self.place(n_layers, free, 0),
            GpuLayers::Count(count) if count <= n_layers => self.place(count, free, 0),
            GpuLayers::Count(asked) => Err(CardError::TooManyLayers { asked, layers: n_layers }),
            GpuLayers::Auto => {
                let most =
                    (0..=n_layers).rev().find_map(|count| self.place(count, free, RESERVE).ok());
                Ok(most.unwrap_or_else(|| vec![n_layers..n_layers; free.len()]))
            }
        };
        let part = |(layers, free): (Range<usize>, &usize)| CardPart {
            total: self.total(layers.clone()),
            cache: layers.len() * self.cache_a_layer,
            free: *free,
            layers,
        };
        Ok(Plan { n_layers, parts: layers?.into_iter().zip(free).map(part).collect() })
    }

    /// Gives the last so many layers to cards, each as many as it has room for beside a reserve.
    fn place(
        &self,
        count: usize,
        free: &[usize],
        reserve: usize,
    ) -> Result<Vec<Range<usize>>, CardError> {
        let n_layers = self.layers.len();
        let first = n_layers - count;
        let mut end = n_layers;
        let parts = free.iter().map(|free| {
            let fits = |start: &usize| self.total(*start..end).saturating_add(reserve) <= *free;
            let start = (first..end).find(fits).unwrap_or(end);
            let part = start..end;
            end = start;
            part
        });
        let parts = parts.collect();
        match free {
            _ if end == first => Ok(parts),
            [free] => {
                let wanted = self.total(first..n_layers);
                Err(CardError::Cuda(CudaError::OutOfMemory { wanted, free: *free }))
            }
            _ => Err(CardError::NoRoom { layers: end - first, cards: free.len() }),
        }
    }
}

/// What goes where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Layers in all.
    pub n_layers: usize,
    /// What goes to each card.
    pub parts: Vec<CardPart>,
}

/// What goes to a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardPart {
    /// Its layers, counted from 0.
    pub layers: Range<usize>,
    /// Bytes that they take there.
    pub total: usize,
    /// Those of keys and values.
    pub cache: usize,
    /// Bytes that were free.
    pub free: usize,
}

impl Plan {
    /// Returns how many layers go to cards: the last ones, and then the output too.
    #[must_use]
    pub fn gpu_layers(&self) -> usize {
        self.parts.iter().map(|part| part.layers.len()).sum()
    }

    /// Returns the layers of each card.
    #[must_use]
    pub fn layers(&self) -> Vec<Range<usize>> {
        self.parts.iter().map(|part| part.layers.clone()).collect()
    }

    /// What a card has, as text.
    fn what(&self, layers: &Range<usize>) -> String {
        let (first, end) = (layers.start, layers.end);
        match (first == 0, end == self.n_layers) {
            _ if layers.is_empty() => "nothing".to_owned(),
            (true, true) => "all layers, embedding and output".to_owned(),
            (true, false) => format!("the embedding and layers 1 to {end}"),
            (false, true) => format!("layers {} to {end} and the output", first + 1),
            (false, false) => format!("layers {} to {end}", first + 1),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        let free = mib(self.parts.iter().map(|part| part.free).sum());
        match &self.parts[..] {
            [_] if self.gpu_layers() == 0 => {
                write!(f, "no layer on the card, of whose memory {free} MiB are free")
            }
            [part] => write!(
                f,
                "{} on the card: {} MiB of {free} MiB that are free, {} MiB of them keys and values",
                self.what(&part.layers),
                mib(part.total),
                mib(part.cache)
            ),
            _ if self.gpu_layers() == 0 => {
                write!(f, "no layer on the cards, of whose memory {free} MiB are free")
            }
            parts => {
                for (index, part) in parts.iter().enumerate() {
                    let (between, what) =
                        (if index > 0 { "; " } else { "" }, self.what(&part.layers));
                    let (total, free) = (mib(part.total), mib(part.free));
                    let (nth, all) = (index + 1, parts.len());
                    write!(f, "{between}{what} on card {nth} of {all}: {total} of {free} MiB")?;
                }
                Ok(())
            }
        }
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
