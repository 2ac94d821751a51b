//! The shapes of models, and the tensors that a model of a shape has, each in its format.
//!
//! Formats are those that llama.cpp gives the same tensors. Nothing here makes a weight.
//!
//! Source: llama.cpp `llama-quant.cpp` (`llama_tensor_get_type`) and `convert_hf_to_gguf.py` (Llama 3).

use clap::ValueEnum;
use kernels::TensorType;

/// The rope base of Llama 3.
pub(super) const ROPE_BASE: f32 = 500_000.0;
/// Positions that Llama 3 was first trained for.
const ROPE_CONTEXT_LEN: f64 = 8192.0;
/// Turns within those positions, below and above which a frequency is slow and fast.
const ROPE_TURNS: [f64; 2] = [1.0, 4.0];

/// Whose shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ShapeName {
    /// Two layers of width 256: to try the command.
    Tiny,
    /// Llama-3.2-1B.
    #[value(name = "1b")]
    B1,
    /// Llama-3.1-8B.
    #[value(name = "8b")]
    B8,
    /// Llama-3.1-70B.
    #[value(name = "70b")]
    B70,
}

/// Which formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Quant {
    /// Q4_K, with Q6_K and Q5_K where llama.cpp's Q4_K_M has them.
    #[value(name = "q4_k_m")]
    Q4KM,
    /// Q8_0.
    #[value(name = "q8_0")]
    Q8_0,
    /// 16-bit floats.
    F16,
}

impl Quant {
    /// Returns the number that llama.cpp gives the mix, `general.file_type`.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::Q4KM => 15,
            Self::Q8_0 => 7,
            Self::F16 => 1,
        }
    }
}

/// The sizes of a model of Llama's architecture.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) n_layers: usize,
    pub(super) embed_dim: usize,
    pub(super) ffn_dim: usize,
    pub(super) n_heads: usize,
    pub(super) n_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocab_size: usize,
    pub(super) context_len: usize,
    /// Whether the embedding is the output matrix too.
    is_tied: bool,
    /// By how much slow rotations are slowed down.
    rope_factor: f64,
    /// Whether values have 5 bits where others have 4: eight query heads share them.
    has_wide_values: bool,
}

impl Shape {
    /// Returns a shape, cut to fewer layers if asked.
    pub(super) fn new(name: ShapeName, n_layers: Option<usize>) -> Self {
        let llama = Self {
            n_layers: 16,
            embed_dim: 2048,
            ffn_dim: 8192,
            n_heads: 32,
            n_kv_heads: 8,
            head_dim: 64,
            vocab_size: 128_256,
            context_len: 131_072,
            is_tied: true,
            rope_factor: 32.0,
            has_wide_values: false,
        };
        let large = Self { head_dim: 128, is_tied: false, rope_factor: 8.0, ..llama.clone() };
        let mut shape = match name {
            ShapeName::Tiny => Self {
                n_layers: 2,
                embed_dim: 256,
                ffn_dim: 512,
                n_heads: 4,
                n_kv_heads: 2,
                vocab_size: 1280,
                context_len: 4096,
                is_tied: false,
                ..llama
            },
            ShapeName::B1 => llama,
            ShapeName::B8 => Self { n_layers: 32, embed_dim: 4096, ffn_dim: 14_336, ..large },
            ShapeName::B70 => Self {
                n_layers: 80,
                embed_dim: 8192,
                ffn_dim: 28_672,
                n_heads: 64,
                has_wide_values: true,
                ..large
            },
        };
        shape.n_layers = n_layers.unwrap_or(shape.n_layers);
        shape
    }

    /// Returns the tensors in the order of the file.
    pub(super) fn tensors(&self, quant: Quant) -> Vec<Tensor> {
        let (embed, ffn, vocab) = (self.embed_dim, self.ffn_dim, self.vocab_size);
        let (q, kv) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        let most = Part::Output.format(quant);
        let embed_type = if self.is_tied { most } else { Part::Plain.format(quant) };
        let mut tensors = vec![
            Tensor::given("rope_freqs.weight", self.rope_factors()),
            Tensor::matrix("token_embd.weight".to_owned(), embed, vocab, embed_type),
        ];
        for layer in 0..self.n_layers {
            let is_wide = has_more_bits(layer, self.n_layers);
            let values = match (is_wide, self.has_wide_values) {
                (true, _) => Part::Output,
                (false, true) => Part::WideValues,
                (false, false) => Part::Plain,
            };
            let down = if is_wide { Part::Output } else { Part::Plain };
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            let mut matrix = |part: &str, cols: usize, rows: usize, of: Part| {
                tensors.push(Tensor::matrix(name(part), cols, rows, of.format(quant)));
            };
            matrix("attn_q", embed, q, Part::Plain);
            matrix("attn_k", embed, kv, Part::Plain);
            matrix("attn_v", embed, kv, values);
            matrix("attn_output", q, embed, Part::Plain);
            matrix("ffn_gate", embed, ffn, Part::Plain);
            matrix("ffn_up", embed, ffn, Part::Plain);
            matrix("ffn_down", ffn, embed, down);
            tensors.extend(["attn_norm", "ffn_norm"].map(|part| Tensor::norm(name(part), embed)));
        }
        tensors.push(Tensor::norm("output_norm.weight".to_owned(), embed));
        if !self.is_tied {
            tensors.push(Tensor::matrix("output.weight".to_owned(), embed, vocab, most));
        }
        tensors
    }

    /// Returns by how much each pair of a head turns slower, as in Llama 3.1.
    fn rope_factors(&self) -> Vec<f32> {
        let [slow, fast] = ROPE_TURNS;
        let factor = |pair: usize| {
            let power = (2 * pair) as f64 / self.head_dim as f64;
            let turns =
                ROPE_CONTEXT_LEN / (std::f64::consts::TAU * f64::from(ROPE_BASE).powf(power));
            let smooth = ((turns - slow) / (fast - slow)).clamp(0.0, 1.0);
            1.0 / ((1.0 - smooth) / self.rope_factor + smooth)
        };
        #[expect(clippy::cast_possible_truncation, reason = "between 1 and 32")]
        (0..self.head_dim / 2).map(|pair| factor(pair) as f32).collect()
    }
}

/// What decides a matrix's format.
#[derive(Clone, Copy)]
enum Part {
    Plain,
    WideValues,
    /// The output matrix, and those of some layers that count most.
    Output,
}

impl Part {
    fn format(self, quant: Quant) -> TensorType {
        match (quant, self) {
            (Quant::Q4KM, Self::Plain) => TensorType::Q4_K,
            (Quant::Q4KM, Self::WideValues) => TensorType::Q5_K,
            (Quant::Q4KM, Self::Output) => TensorType::Q6_K,
            (Quant::Q8_0, _) => TensorType::Q8_0,
            (Quant::F16, _) => TensorType::F16,
        }
    }
}

/// Returns whether values and `ffn_down` of a layer have more bits: the first and last eighth, and a third
/// of those between.
fn has_more_bits(layer: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

/// What a tensor holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    /// Random weights around 0 with this standard deviation.
    Weights(f32),
    /// Random factors around 1.
    Factors,
    /// These numbers.
    Given(Vec<f32>),
}

/// A tensor of the file.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// In GGUF's order: the first is the length of a row.
    pub(super) shape: Vec<usize>,
    pub(super) ty: TensorType,
    pub(super) content: Content,
}

impl Tensor {
    /// A matrix whose products with inputs of size 1 have size 1.
    fn matrix(name: String, cols: usize, rows: usize, ty: TensorType) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a width is at most 28,672")]
        let deviation = 1.0 / (cols as f32).sqrt();
        Self { name, shape: vec![cols, rows], ty, content: Content::Weights(deviation) }
    }

    fn norm(name: String, len: usize) -> Self {
        Self { name, shape: vec![len], ty: TensorType::F32, content: Content::Factors }
    }

    fn given(name: &str, values: Vec<f32>) -> Self {
        let (name, shape) = (name.to_owned(), vec![values.len()]);
        Self { name, shape, ty: TensorType::F32, content: Content::Given(values) }
    }

    /// Returns the number of weights.
    pub(super) fn len(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }

    /// Returns the bytes that it takes.
    pub(super) fn size(&self) -> u64 {
        self.len() / self.ty.block_len() as u64 * self.ty.block_size() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(name: ShapeName, quant: Quant) -> u64 {
        Shape::new(name, None).tensors(quant).iter().map(Tensor::size).sum()
    }

    /// The sizes of published files, less their headers of some MB.
    #[test]
    fn files_are_as_large_as_those_of_the_real_models() {
        for (name, quant, published) in [
            (ShapeName::B1, Quant::Q4KM, 807_694_464_u64),
            (ShapeName::B1, Quant::Q8_0, 1_321_083_008),
            (ShapeName::B8, Quant::Q4KM, 4_920_739_232),
            (ShapeName::B8, Quant::Q8_0, 8_540_775_840),
            (ShapeName::B70, Quant::Q4KM, 42_520_395_584),
        ] {
            let header = published - size(name, quant);
            assert!((7_000_000..9_000_000).contains(&header), "{name:?} {quant:?}: {header}");
        }
    }

    #[test]
    fn layers_with_more_bits_are_those_of_llama_cpp() {
        let wide: Vec<_> = (0..32).filter(|layer| has_more_bits(*layer, 32)).collect();
        assert_eq!(wide, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        assert!((0..80).filter(|layer| has_more_bits(*layer, 80)).count() == 40);
    }

    #[test]
    fn fast_pairs_turn_as_before_and_slow_ones_by_the_factor_slower() {
        let factors = Shape::new(ShapeName::B8, None).rope_factors();
        assert_eq!(factors.len(), 64);
        assert_eq!((factors[0], factors[63]), (1.0, 8.0));
        assert!(factors.is_sorted() && factors.iter().any(|factor| (1.1..7.9).contains(factor)));
    }
}
