//! Weights on the card: the bytes of the image, a tensor an allocation.

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

/// The weights of the card's layers.
pub(super) struct Weights<'m> {
    /// The embedding, if the card's layers are all there are and the output has its own matrix.
    embedding: Option<Matrix<'m>>,
    pub(super) layers: Vec<Layer<'m>>,
    pub(super) output_norm: Buffer<'m, f32>,
    pub(super) output: Matrix<'m>,
}

impl<'m> Weights<'m> {
    /// Copies the weights of the layers from `first_layer` on.
    pub(super) fn new(
        card: &'m Card<'m>,
        model: &Model<'_>,
        first_layer: usize,
    ) -> Result<Self, CudaError> {
        let weights = &model.weights;
        let has_embedding = first_layer == 0 && !weights.is_tied();
        let table = has_embedding.then_some(&weights.token_embd);
        let layers = weights.layers[first_layer..].iter().map(|layer| Layer::new(card, layer));
        Ok(Self {
            embedding: table.map(|table| Matrix::new(card, table, None)).transpose()?,
            layers: layers.collect::<Result<_, _>>()?,
            output_norm: Buffer::of(card, &weights.output_norm)?,
            output: Matrix::new(card, &weights.output, None)?,
        })
    }

    /// Returns the table of embeddings.
    pub(super) fn table(&self) -> &Matrix<'m> {
        self.embedding.as_ref().unwrap_or(&self.output)
    }
}
