//! What a pass over a model must compute and read at least, counted from its header.

use crate::engine::{Engine, Error, Model, ModelConfig, Options};
use crate::gguf::TensorInfo;

/// The work of a model.
#[derive(Clone, Debug)]
pub(super) struct Work {
    /// Multiply-adds of a token in the matrices of all layers.
    pub(super) layer_macs: u64,
    /// Multiply-adds of a token's logits.
    pub(super) output_macs: u64,
    /// Bytes of the file that a pass with logits reads whatever the tokens are.
    pub(super) weight_bytes: u64,
    /// Bytes of a token's row of the embedding.
    embed_row_bytes: u64,
    /// Bytes of a position's keys and values in one layer.
    kv_bytes: u64,
    config: ModelConfig,
}

impl Work {
    /// Counts the work of a model; `options` say how keys and values are kept.
    pub(super) fn new(model: &Model<'_>, options: &Options) -> Result<Self, Error> {
        let (header, config) = (model.header(), model.config().clone());
        let is_embed = |tensor: &TensorInfo| tensor.name == "token_embd.weight";
        let embed = header.tensors.iter().find(|tensor| is_embed(tensor));
        let output = header.tensor("output.weight").or(embed);
        let in_layers = |tensor: &&TensorInfo| tensor.name.starts_with("blk.");
        let is_matrix = |tensor: &&TensorInfo| tensor.shape.len() > 1;
        let layers = header.tensors.iter().filter(in_layers).filter(is_matrix);
        let is_tied = header.tensor("output.weight").is_none();
        let read = header.tensors.iter().filter(|tensor| is_tied || !is_embed(tensor));
        let cache_bytes = Engine::cache_size(&config, options)? as u64;
        Ok(Self {
            layer_macs: layers.map(TensorInfo::len).sum(),
            output_macs: output.map_or(0, TensorInfo::len),
            weight_bytes: read.map(|tensor| tensor.size).sum(),
            embed_row_bytes: embed.map_or(0, |tensor| tensor.size / tensor.rows().max(1)),
            kv_bytes: cache_bytes
                / options.cache_len.next_multiple_of(kernels::ops::PAGE_LEN) as u64
                / config.n_layers as u64,
            config,
        })
    }

    /// Returns the multiply-adds of a prompt's matrices, with the logits of its last token.
    pub(super) fn prefill_macs(&self, prompt: usize) -> f64 {
        self.layer_macs as f64 * prompt as f64 + self.output_macs as f64
    }

    /// Returns the mean bytes that a step of answers reads.
    pub(super) fn decode_bytes(&self, depth: usize, batch: usize, steps: usize) -> f64 {
        let kv: u64 = (0..steps).map(|step| self.kv_read_bytes(depth + step + 1)).sum();
        let a_sequence = self.embed_row_bytes as f64 + kv as f64 / steps.max(1) as f64;
        self.weight_bytes as f64 + batch as f64 * a_sequence
    }

    /// Returns the multiply-adds of a step of answers.
    pub(super) fn decode_macs(&self, batch: usize) -> f64 {
        (self.layer_macs + self.output_macs) as f64 * batch as f64
    }

    /// Returns the bytes of a position's keys and values in all layers.
    pub(super) fn kv_bytes_a_position(&self) -> u64 {
        self.kv_bytes * self.config.n_layers as u64
    }

    /// Returns the bytes of keys and values that the last of `positions` reads.
    fn kv_read_bytes(&self, positions: usize) -> u64 {
        let seen = |layer| match self.config.local_layer(layer) {
            Some(local) => local.window.min(positions) as u64,
            None => positions as u64,
        };
        (0..self.config.n_layers).map(seen).sum::<u64>() * self.kv_bytes
    }
}
