//! The layer loop on the card: launches after each other, with no word from the host between them.
//!
//! It computes what `forward.rs` does. A half of a layer is added to `x` by the norm that follows it.

use kernels::cuda::{
    self, CudaError, Delta, Forms, Preparation, Product, Rows, add_norm, gate, multiply, quantize,
};

use super::buffers::{End, Start};
use super::stage::Stage;
use crate::engine::{Contents, ModelConfig};

impl Stage<'_> {
    /// Starts the copies of a batch, and of `x` where it comes from the host.
    pub(super) fn set(&mut self, batch: &Contents<'_>) -> Result<(), CudaError> {
        let b = &mut self.buffers;
        b.tokens.clear();
        b.tokens.extend(batch.tokens.iter().map(|token| token.token));
        b.batch.set(&cuda::Contents {
            tokens: &b.tokens,
            places: batch.places,
            wanted: batch.wanted,
            rope: batch.rope,
            local_rope: batch.local_rope,
        })?;
        if let Start::Host(host) = &mut b.start {
            let (len, embed_dim) = (batch.x.len(), batch.x.len() / batch.tokens.len());
            let all = b.batch.rows() * embed_dim;
            let rows = host.values_mut()?;
            rows[..len].copy_from_slice(batch.x);
            // What fills the batch up leaves nothing of others in the cache.
            rows[len..all].fill(0.0);
            b.x.start_write(host, all)?;
        }
        Ok(())
    }

    /// Launches everything for a batch that is set: its logits are in `logits`, or what the next stage takes
    /// in `x`.
    pub(super) fn launch(&mut self, config: &ModelConfig) -> Result<(), CudaError> {
        let Self { card, weights, buffers: b, .. } = self;
        if let (Start::Embedding(embedding), Some(table)) = (&mut b.start, weights.table()) {
            let scale = config.embed_scale.unwrap_or(1.0);
            embedding.rows(card, table, &b.batch, scale, &mut b.x)?;
        }
        for index in 0..self.weights.layers.len() {
            self.attend(config, index)?;
            self.feed_forward(config, index)?;
        }
        match self.buffers.end {
            End::Output(_) => self.output(config),
            End::Host(_) => self.leave(config),
        }
    }

    /// Computes what a layer's attention adds to `x`: `delta`.
    fn attend(&mut self, config: &ModelConfig, index: usize) -> Result<(), CudaError> {
        let Self { card, weights, cache, buffers: b, first_layer, .. } = self;
        let (layer, before) = (&weights.layers[index], index.checked_sub(1));
        let shape = config.attention(*first_layer + index);
        let (n, epsilon) = (b.batch.rows(), config.norm_epsilon);
        let delta: Option<Delta<'_, '_>> =
            before.map(|before| (&b.delta, weights.layers[before].post_ffw_norm.as_ref()));
        let input = (&mut b.input, layer.attn_forms());
        add_norm(card, &b.batch, Rows::All, &mut b.x, delta, (&layer.attn_norm, epsilon), input)?;
        let heads = &mut b.heads;
        let products: &mut [Product<'_, '_>] =
            &mut [(&layer.q, &mut heads.q), (&layer.k, &mut heads.k), (&layer.v, &mut heads.v)];
        multiply(card, &b.input, n, products)?;
        let how = Preparation {
            norms: layer.head_norms.as_ref().map(|(q_norm, k_norm)| (q_norm, k_norm)),
            epsilon,
            pairs: config.rope_pairs,
        };
        heads.prepare(card, &b.batch, &shape, &how, (cache, index))?;
        heads.attend(card, &b.batch, &shape, (cache, index))?;
        let forms = Forms::of(&[&layer.attn_output]);
        quantize(card, (n, config.q_dim()), &heads.out, (&mut b.input, forms))?;
        multiply(card, &b.input, n, &mut [(&layer.attn_output, &mut b.delta)])
    }

    /// Adds `delta` to `x` and computes what the feed-forward half adds then: `delta` again.
    fn feed_forward(&mut self, config: &ModelConfig, index: usize) -> Result<(), CudaError> {
        let Self { card, weights, buffers: b, .. } = self;
        let layer = &weights.layers[index];
        let (n, epsilon) = (b.batch.rows(), config.norm_epsilon);
        let delta: Delta<'_, '_> = (&b.delta, layer.post_attention_norm.as_ref());
        let (norm, input) = ((&layer.ffn_norm, epsilon), (&mut b.input, layer.ffn_forms()));
        add_norm(card, &b.batch, Rows::All, &mut b.x, Some(delta), norm, input)?;
        let products: &mut [Product<'_, '_>] =
            &mut [(&layer.gate, &mut b.gates), (&layer.up, &mut b.ups)];
        multiply(card, &b.input, n, products)?;
        let forms = Forms::of(&[&layer.down]);
        let hidden = (&b.gates, &b.ups, config.gate);
        gate(card, (n, config.ffn_dim), hidden, (&mut b.input, forms))?;
        multiply(card, &b.input, n, &mut [(&layer.down, &mut b.delta)])
    }

    /// Adds what the last layer's feed-forward half gives to `x`; nothing reads its norm.
    fn leave(&mut self, config: &ModelConfig) -> Result<(), CudaError> {
        let Self { card, weights, buffers: b, .. } = self;
        let Some(layer) = weights.layers.last() else { return Ok(()) };
        let delta: Delta<'_, '_> = (&b.delta, layer.post_ffw_norm.as_ref());
        let norm = (&layer.ffn_norm, config.norm_epsilon);
        let input = (&mut b.input, Forms::of(&[]));
        add_norm(card, &b.batch, Rows::All, &mut b.x, Some(delta), norm, input)
    }

    /// Computes the logits of the wanted tokens.
    fn output(&mut self, config: &ModelConfig) -> Result<(), CudaError> {
        let Self { card, weights, buffers: b, .. } = self;
        let wanted = b.batch.wanted_len();
        let (End::Output(output), Some((norm, matrix))) = (&mut b.end, &weights.output) else {
            return Ok(());
        };
        if wanted == 0 {
            return Ok(());
        }
        let post_norm = weights.layers.last().and_then(|layer| layer.post_ffw_norm.as_ref());
        let norm = (norm, config.norm_epsilon);
        let (delta, input) = (Some((&b.delta, post_norm)), (&mut b.input, Forms::of(&[matrix])));
        add_norm(card, &b.batch, Rows::Wanted, &mut b.x, delta, norm, input)?;
        multiply(card, &b.input, wanted, &mut [(matrix, &mut output.logits)])
    }
}
