//! Weights on a card: the bytes of the image, a tensor an allocation.

use core::ops::Range;

use kernels::cuda::{Buffer, Card, CudaError, Forms, Matrix};

use crate::engine::Model;
use crate::engine::weights as host;

/// One layer; its tensors are those of the layer of the host.
pub(super) struct Layer<'m> {
    pub(super) attn_norm: Buffer<'m, f32>,
    pub(super) q: Matrix<'m>,
    pub(super) k: Matrix<'m>,
    pub(super) v: Matrix<'m>,
    /// The norms of queries and keys.
    pub(super) head_norms: Option<(Buffer<'m, f32>, Buffer<'m, f32>)>,
    pub(super) attn_output: Matrix<'m>,
    pub(super) post_attention_norm: Option<Buffer<'m, f32>>,
    pub(super) ffn_norm: Buffer<'m, f32>,
    pub(super) gate: Matrix<'m>,
    pub(super) up: Matrix<'m>,
    pub(super) down: Matrix<'m>,
    pub(super) post_ffw_norm: Option<Buffer<'m, f32>>,
}

impl<'m> Layer<'m> {
    fn new(card: &'m Card<'m>, layer: &host::Layer<'_>) -> Result<Self, CudaError> {
        let vector = |values: &Vec<f32>| Buffer::of(card, values);
        let optional = |values: &Option<Vec<f32>>| values.as_ref().map(vector).transpose();
        let linear =
            |linear: &host::Linear<'_>| Matrix::new(card, &linear.weights, linear.bias.as_deref());
        let head_norms = match (&layer.q_norm, &layer.k_norm) {
            (Some(q_norm), Some(k_norm)) => Some((vector(q_norm)?, vector(k_norm)?)),
            _ => None,
        };
        Ok(Self {
            attn_norm: vector(&layer.attn_norm)?,
            q: linear(&layer.q)?,
            k: linear(&layer.k)?,
            v: linear(&layer.v)?,
            head_norms,
            attn_output: linear(&layer.attn_output)?,
            post_attention_norm: optional(&layer.post_attention_norm)?,
            ffn_norm: vector(&layer.ffn_norm)?,
            gate: Matrix::new(card, &layer.gate, None)?,
            up: Matrix::new(card, &layer.up, None)?,
            down: Matrix::new(card, &layer.down, None)?,
            post_ffw_norm: optional(&layer.post_ffw_norm)?,
        })
    }

    /// What the products with queries, keys and values read.
    pub(super) fn attn_forms(&self) -> Forms {
        Forms::of(&[&self.q, &self.k, &self.v])
    }

    /// What the first products of the feed-forward half read.
    pub(super) fn ffn_forms(&self) -> Forms {
        Forms::of(&[&self.gate, &self.up])
    }
}

/// The weights of a stage.
pub(super) struct Weights<'m> {
    /// The embedding, on the first stage of all layers, unless the output is there and is the same matrix.
    embedding: Option<Matrix<'m>>,
    pub(super) layers: Vec<Layer<'m>>,
    /// The output and its norm, on the last stage.
    pub(super) output: Option<(Buffer<'m, f32>, Matrix<'m>)>,
}

impl<'m> Weights<'m> {
    /// Copies the weights of some layers, and what comes before the first and after the last of a model.
    pub(super) fn new(
        card: &'m Card<'m>,
        model: &Model<'_>,
        layers: Range<usize>,
    ) -> Result<Self, CudaError> {
        let weights = &model.weights;
        let has_output = layers.end == weights.layers.len();
        let has_embedding = layers.start == 0 && !(has_output && weights.is_tied());
        let table = has_embedding.then(|| Matrix::new(card, &weights.token_embd, None));
        let output = || -> Result<_, CudaError> {
            let norm = Buffer::of(card, &weights.output_norm)?;
            Ok((norm, Matrix::new(card, &weights.output, None)?))
        };
        let layers = weights.layers[layers].iter().map(|layer| Layer::new(card, layer));
        Ok(Self {
            embedding: table.transpose()?,
            layers: layers.collect::<Result<_, _>>()?,
            output: has_output.then(output).transpose()?,
        })
    }

    /// Returns the table of embeddings, where it is, or may be, the output's matrix.
    pub(super) fn table(&self) -> Option<&Matrix<'m>> {
        self.embedding.as_ref().or(self.output.as_ref().map(|(_, matrix)| matrix))
    }
}
