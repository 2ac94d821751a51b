//! The tensors of a model: which there must be, of which shape, and views of them.

use std::collections::HashMap;
use std::ops::Range;

use kernels::ops::Gate;
use kernels::{FeedForward, Packed, TensorType};

use super::config::Architecture;
use super::{Error, ModelConfig};
use crate::gguf::{Header, Name, TensorInfo};

/// A tensor that an architecture knows.
struct Expected {
    /// In GGUF's order: the first is the length of a row.
    shape: Vec<usize>,
    is_needed: bool,
}

/// The names and shapes that a model of this configuration may have.
struct Table(HashMap<String, Expected>);

impl Table {
    fn new(config: &ModelConfig) -> Self {
        let mut table = Self(HashMap::new());
        let (embed, vocab) = (config.embed_dim, config.vocab_size);
        table.add("token_embd.weight", &[embed, vocab], true);
        table.add("output_norm.weight", &[embed], true);
        table.add("output.weight", &[embed, vocab], false);
        if config.architecture == Architecture::Llama {
            table.add("rope_freqs.weight", &[config.rope_dims / 2], false);
        }
        for layer in 0..config.n_layers {
            table.add_layer(config, layer);
        }
        table
    }

    fn add_layer(&mut self, config: &ModelConfig, layer: usize) {
        let (embed, ffn) = (config.embed_dim, config.ffn_dim);
        let (q, kv) = (config.q_dim(), config.kv_dim());
        let mut add = |name: &str, shape: &[usize], is_needed| {
            self.add(&format!("blk.{layer}.{name}"), shape, is_needed);
        };
        add("attn_norm.weight", &[embed], true);
        add("attn_q.weight", &[embed, q], true);
        add("attn_k.weight", &[embed, kv], true);
        add("attn_v.weight", &[embed, kv], true);
        add("attn_output.weight", &[q, embed], true);
        add("ffn_norm.weight", &[embed], true);
        add("ffn_gate.weight", &[embed, ffn], true);
        add("ffn_up.weight", &[embed, ffn], true);
        add("ffn_down.weight", &[ffn, embed], true);
        if config.architecture != Architecture::Gemma3 {
            let is_needed = config.architecture == Architecture::Qwen2;
            add("attn_q.bias", &[q], is_needed);
            add("attn_k.bias", &[kv], is_needed);
            add("attn_v.bias", &[kv], is_needed);
            add("attn_output.bias", &[embed], false);
        }
        if config.extra_norms {
            add("attn_q_norm.weight", &[config.head_dim], true);
            add("attn_k_norm.weight", &[config.head_dim], true);
            add("post_attention_norm.weight", &[embed], true);
            add("post_ffw_norm.weight", &[embed], true);
        }
    }

    fn add(&mut self, name: &str, shape: &[usize], is_needed: bool) {
        self.0.insert(name.to_owned(), Expected { shape: shape.to_vec(), is_needed });
    }
}

/// Checks that the model has every tensor that it needs, none that is unknown, each of its shape.
pub(super) fn check(config: &ModelConfig, header: &Header) -> Result<(), Error> {
    let mut table = Table::new(config);
    for tensor in &header.tensors {
        let name = || Name::from(tensor.name.as_str());
        let expected =
            table.0.remove(&tensor.name).ok_or_else(|| Error::UnexpectedTensor(name()))?;
        let shape: Vec<u64> = expected.shape.iter().map(|&dim| dim as u64).collect();
        // Writers may leave out or add dimensions of 1 at the end.
        let trim = |shape: &[u64]| {
            let ones = shape.iter().skip(1).rev().take_while(|&&dim| dim == 1).count();
            shape[..shape.len() - ones].to_vec()
        };
        if trim(&tensor.shape) != trim(&shape) {
            let found = tensor.shape.clone();
            return Err(Error::WrongShape { tensor: name(), expected: shape, found });
        }
    }
    let mut missing: Vec<_> = table.0.iter().filter(|(_, expected)| expected.is_needed).collect();
    missing.sort_by_key(|(name, _)| name.as_str());
    match missing.first() {
        Some((name, _)) => Err(Error::MissingTensor(Name::from(name.as_str()))),
        None => Ok(()),
    }
}

/// Returns whether a tensor is a matrix, which is packed; others are kept as they are.
pub(super) fn is_matrix(tensor: &TensorInfo) -> bool {
    tensor.shape.len() > 1
}

/// A matrix with its bias.
pub(super) struct Linear<'m> {
    /// `[outputs, inputs]`
    pub(super) weights: Packed<'m>,
    /// `[outputs]`
    pub(super) bias: Option<Vec<f32>>,
}

/// One layer.
pub(super) struct Layer<'m> {
    /// `[embed_dim]`
    pub(super) attn_norm: Vec<f32>,
    /// `[q_dim, embed_dim]`
    pub(super) q: Linear<'m>,
    /// `[kv_dim, embed_dim]`
    pub(super) k: Linear<'m>,
    /// `[kv_dim, embed_dim]`
    pub(super) v: Linear<'m>,
    /// `[head_dim]`
    pub(super) q_norm: Option<Vec<f32>>,
    /// `[head_dim]`
    pub(super) k_norm: Option<Vec<f32>>,
    /// `[embed_dim, q_dim]`
    pub(super) attn_output: Linear<'m>,
    /// `[embed_dim]`
    pub(super) post_attention_norm: Option<Vec<f32>>,
    /// `[embed_dim]`
    pub(super) ffn_norm: Vec<f32>,
    /// `[ffn_dim, embed_dim]`
    pub(super) gate: Packed<'m>,
    /// `[ffn_dim, embed_dim]`
    pub(super) up: Packed<'m>,
    /// `[embed_dim, ffn_dim]`
    pub(super) down: Packed<'m>,
    /// `[embed_dim]`
    pub(super) post_ffw_norm: Option<Vec<f32>>,
}

impl Layer<'_> {
    /// Returns the matrices of the feed-forward half.
    pub(super) fn feed_forward(&self, kind: Gate) -> FeedForward<'_> {
        FeedForward { kind, gate: self.gate, up: self.up, down: self.down }
    }
}

/// The weights of a model.
pub(super) struct Weights<'m> {
    /// `[vocab_size, embed_dim]`
    pub(super) token_embd: Packed<'m>,
    /// `[rope_dims / 2]`
    pub(super) rope_freqs: Option<Vec<f32>>,
    pub(super) layers: Vec<Layer<'m>>,
    /// `[embed_dim]`
    pub(super) output_norm: Vec<f32>,
    /// `[vocab_size, embed_dim]`; the embedding where the model has no other.
    pub(super) output: Packed<'m>,
}

impl Weights<'_> {
    /// Returns whether the output is the embedding.
    #[cfg(feature = "cuda")]
    pub(super) fn is_tied(&self) -> bool {
        std::ptr::eq(self.output.bytes(), self.token_embd.bytes())
    }
}

/// The tensors of an image by name.
pub(super) struct Views<'a, 'm> {
    pub(super) tensors: HashMap<&'a str, (&'a TensorInfo, Range<usize>)>,
    pub(super) image: &'m [u8],
}

impl<'m> Views<'_, 'm> {
    /// Returns the weights; the header was [`check`]ed.
    pub(super) fn weights(&self, config: &ModelConfig) -> Result<Weights<'m>, Error> {
        let token_embd = self.matrix("token_embd.weight")?;
        let layers = (0..config.n_layers).map(|layer| self.layer(layer));
        Ok(Weights {
            token_embd,
            rope_freqs: self.optional_vector("rope_freqs.weight"),
            layers: layers.collect::<Result<_, _>>()?,
            output_norm: self.vector("output_norm.weight")?,
            output: self.optional_matrix("output.weight").unwrap_or(token_embd),
        })
    }

    fn layer(&self, layer: usize) -> Result<Layer<'m>, Error> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let linear = |part: &str| -> Result<Linear<'m>, Error> {
            let weights = self.matrix(&name(&format!("{part}.weight")))?;
            Ok(Linear { weights, bias: self.optional_vector(&name(&format!("{part}.bias"))) })
        };
        Ok(Layer {
            attn_norm: self.vector(&name("attn_norm.weight"))?,
            q: linear("attn_q")?,
            k: linear("attn_k")?,
            v: linear("attn_v")?,
            q_norm: self.optional_vector(&name("attn_q_norm.weight")),
            k_norm: self.optional_vector(&name("attn_k_norm.weight")),
            attn_output: linear("attn_output")?,
            post_attention_norm: self.optional_vector(&name("post_attention_norm.weight")),
            ffn_norm: self.vector(&name("ffn_norm.weight"))?,
            gate: self.matrix(&name("ffn_gate.weight"))?,
            up: self.matrix(&name("ffn_up.weight"))?,
            down: self.matrix(&name("ffn_down.weight"))?,
            post_ffw_norm: self.optional_vector(&name("post_ffw_norm.weight")),
        })
    }

    fn matrix(&self, name: &str) -> Result<Packed<'m>, Error> {
        self.optional_matrix(name).ok_or_else(|| Error::MissingTensor(Name::from(name)))
    }

    fn optional_matrix(&self, name: &str) -> Option<Packed<'m>> {
        let (tensor, range) = self.tensors.get(name)?;
        let (rows, cols) = (usize::try_from(tensor.rows()), usize::try_from(tensor.cols()));
        Packed::new(tensor.ty, rows.ok()?, cols.ok()?, &self.image[range.clone()])
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>, Error> {
        self.optional_vector(name).ok_or_else(|| Error::MissingTensor(Name::from(name)))
    }

    fn optional_vector(&self, name: &str) -> Option<Vec<f32>> {
        let (tensor, range) = self.tensors.get(name)?;
        let size = usize::try_from(tensor.size).ok()?;
        let mut values = vec![0.0; usize::try_from(tensor.len()).ok()?];
        let ty: TensorType = tensor.ty;
        kernels::dequantize(ty, &self.image[range.clone()][..size], &mut values);
        Some(values)
    }
}
