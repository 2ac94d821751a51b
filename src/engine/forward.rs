//! The layer loop: one pass over the weights for all tokens of a batch.
//!
//! ```text
//! x = embedding * scale
//! each layer:   x += post(Wo attention(rope(norm(Wq n)), rope(norm(Wk n)), Wv n)),  n = norm(x)
//!               x += post(Wd (activation(Wg n) * (Wu n))),                          n = norm(x)
//! logits = W norm(x)
//! ```
//!
//! `norm` of queries and keys, `post` and `scale` exist in some families only.

use kernels::ops::{self, Rope};
use kernels::{Packed, Product, Write, gemm};

use super::activations::Activations;
use super::kv_cache::KvCache;
use super::weights::{Layer, Linear};
use super::{BatchToken, Choice, Engine, Error, Options};

/// What an operation runs with.
struct Run<'a> {
    pool: &'a kernels::Pool,
    options: &'a Options,
    epsilon: f32,
    tokens: usize,
}

/// What a card is told of a batch.
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "there is no card to be told"))]
pub(super) struct Contents<'a> {
    pub(super) tokens: &'a [BatchToken],
    /// Where each token stands.
    pub(super) places: &'a [ops::Place],
    /// The page numbers of all sequences.
    pub(super) tables: &'a [u32],
    /// Which tokens' logits are wanted.
    pub(super) wanted: &'a [usize],
    pub(super) rope: &'a Rope,
    pub(super) local_rope: Option<&'a Rope>,
    /// `[tokens, embed_dim]`: what the layers before the card's give.
    pub(super) x: &'a [f32],
    /// How tokens are chosen: one for each that is wanted, or none at all.
    pub(super) choices: &'a [Option<Choice>],
}

impl Engine<'_> {
    /// Computes a batch whose places are known: fills the cache and the wanted logits.
    pub(super) fn compute(
        &mut self,
        batch: &[BatchToken],
        choices: &[Option<Choice>],
    ) -> Result<(), Error> {
        self.is_erased = false;
        let Engine { model, options, pool, cache, activations: a, gpu, .. } = self;
        let (config, weights) = (model.config(), &model.weights);
        let tokens = batch.len();
        let run = Run { pool, options, epsilon: config.norm_epsilon, tokens };
        for rope in [Some(&mut a.rope), a.local_rope.as_mut()].into_iter().flatten() {
            rope.set_positions(a.places.iter().map(|place| place.position));
        }
        let here = &weights.layers[..weights.layers.len() - options.gpu_layers];
        if !here.is_empty() {
            for (token, row) in batch.iter().zip(a.x.chunks_exact_mut(config.embed_dim)) {
                weights.token_embd.unpack_row(token.token as usize, row);
            }
            if let Some(scale) = config.embed_scale {
                ops::scale(pool, scale, &mut a.x[..tokens * config.embed_dim]);
            }
        }
        for (index, layer) in here.iter().enumerate() {
            run.attend(a, cache, layer, index, &config.attention(index));
            run.feed_forward(a, layer, config.gate);
        }
        let Some(gpu) = gpu else {
            run.logits(a, &weights.output_norm, &weights.output);
            return Ok(());
        };
        let contents = Contents {
            tokens: batch,
            places: &a.places,
            tables: cache.tables(),
            wanted: &a.wanted,
            rope: &a.rope,
            local_rope: a.local_rope.as_ref(),
            x: &a.x[..tokens * config.embed_dim],
            choices,
        };
        gpu.forward(config, &contents)
    }
}

impl Run<'_> {
    /// Adds a layer's attention to `x`.
    fn attend(
        &self,
        a: &mut Activations,
        cache: &mut KvCache,
        layer: &Layer<'_>,
        index: usize,
        shape: &ops::AttentionShape,
    ) {
        let n = self.tokens;
        let isa = self.options.isa;
        let (q_dim, kv_dim) = (layer.q.weights.rows(), layer.k.weights.rows());
        let (embed, head_dim) = (layer.attn_norm.len(), shape.head_dim);
        let (q, k, v) = (&mut a.q[..n * q_dim], &mut a.k[..n * kv_dim], &mut a.v[..n * kv_dim]);
        let heads = &mut a.heads[..n * q_dim];
        self.norm(&a.x, &layer.attn_norm, &mut a.normed);
        gemm(
            self.pool,
            isa,
            self.options.precision,
            &mut a.quantized,
            &a.normed[..n * embed],
            n,
            &mut [
                Product { weights: layer.q.weights, out: q, write: Write::Over },
                Product { weights: layer.k.weights, out: k, write: Write::Over },
                Product { weights: layer.v.weights, out: v, write: Write::Over },
            ],
        );
        self.add_bias(&layer.q, q);
        self.add_bias(&layer.k, k);
        self.add_bias(&layer.v, v);
        let (mut q, mut k) = (&mut *q, &mut *k);
        let rope: &Rope = match (&a.local_rope, shape.window) {
            (Some(local), Some(_)) => local,
            _ => &a.rope,
        };
        if let (Some(q_norm), Some(k_norm)) = (&layer.q_norm, &layer.k_norm) {
            let normed = &mut a.k_normed[..n * kv_dim];
            ops::rms_norm(self.pool, isa, q, q_norm, self.epsilon, heads);
            ops::rms_norm(self.pool, isa, k, k_norm, self.epsilon, normed);
            q.copy_from_slice(heads);
            k = normed;
        }
        rope.apply(self.pool, shape.n_heads, head_dim, q);
        rope.apply(self.pool, shape.n_kv_heads, head_dim, k);
        let (pages, tables) = cache.layer_mut(index);
        ops::store_kv(isa, shape, pages, tables, &a.places, k, v);
        q = &mut *q;
        let (pages, tables) = (cache.layer(index), cache.tables());
        let scores = &mut a.scores;
        ops::attention(self.pool, isa, shape, pages, tables, &a.places, q, scores, heads);
        let Linear { weights, bias } = &layer.attn_output;
        let post_norm = layer.post_attention_norm.as_deref();
        if bias.is_none() && post_norm.is_none() {
            let x = &mut a.x[..n * embed];
            self.multiply(&mut a.quantized, weights, heads, x, Write::Onto);
            return;
        }
        let delta = &mut a.delta[..n * embed];
        self.multiply(&mut a.quantized, weights, heads, delta, Write::Over);
        self.add_bias(&layer.attn_output, delta);
        self.add_delta(post_norm, a);
    }

    /// Adds a layer's feed-forward half to `x`.
    fn feed_forward(&self, a: &mut Activations, layer: &Layer<'_>, kind: ops::Gate) {
        let (n, isa) = (self.tokens, self.options.isa);
        let embed = layer.ffn_norm.len();
        let post_norm = layer.post_ffw_norm.as_deref();
        self.norm(&a.x, &layer.ffn_norm, &mut a.normed);
        let (out, write) = match post_norm {
            None => (&mut a.x, Write::Onto),
            Some(_) => (&mut a.delta, Write::Over),
        };
        kernels::feed_forward(
            self.pool,
            isa,
            self.options.precision,
            &mut a.quantized,
            &mut a.hidden,
            &layer.feed_forward(kind),
            &a.normed[..n * embed],
            n,
            &mut out[..n * embed],
            write,
        );
        if post_norm.is_some() {
            self.add_delta(post_norm, a);
        }
    }

    /// Computes the logits of the wanted tokens.
    fn logits(&self, a: &mut Activations, norm: &[f32], output: &Packed<'_>) {
        let embed = norm.len();
        for (i, &token) in a.wanted.iter().enumerate() {
            let x = &a.x[token * embed..][..embed];
            a.delta[i * embed..][..embed].copy_from_slice(x);
        }
        let n = a.wanted.len();
        let (x, normed) = (&a.delta[..n * embed], &mut a.normed[..n * embed]);
        ops::rms_norm(self.pool, self.options.isa, x, norm, self.epsilon, normed);
        let out = &mut a.logits[..n * output.rows()];
        let products = &mut [Product { weights: *output, out, write: Write::Over }];
        let Options { isa, precision, .. } = *self.options;
        gemm(self.pool, isa, precision, &mut a.quantized, normed, n, products);
    }

    /// Normalises the tokens of `x` into `out`.
    fn norm(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let len = self.tokens * weight.len();
        let (x, out) = (&x[..len], &mut out[..len]);
        ops::rms_norm(self.pool, self.options.isa, x, weight, self.epsilon, out);
    }

    fn multiply(
        &self,
        quantized: &mut kernels::Activations,
        weights: &Packed<'_>,
        x: &[f32],
        out: &mut [f32],
        write: Write,
    ) {
        let products = &mut [Product { weights: *weights, out, write }];
        let Options { isa, precision, .. } = *self.options;
        gemm(self.pool, isa, precision, quantized, x, self.tokens, products);
    }

    fn add_bias(&self, linear: &Linear<'_>, out: &mut [f32]) {
        if let Some(bias) = &linear.bias {
            ops::add_bias(self.pool, bias, out);
        }
    }

    /// Adds `delta` to `x`, normalised first where the family does so.
    fn add_delta(&self, post_norm: Option<&[f32]>, a: &mut Activations) {
        let len = a.x.len() / self.options.tokens_max * self.tokens;
        let (x, mut delta) = (&mut a.x[..len], &a.delta[..len]);
        if let Some(weight) = post_norm {
            let normed = &mut a.normed[..len];
            ops::rms_norm(self.pool, self.options.isa, delta, weight, self.epsilon, normed);
            delta = normed;
        }
        ops::add(self.pool, delta, x);
    }
}
