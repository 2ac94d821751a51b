//! The hyperparameters of a model, checked once.
//!
//! Nothing is assumed: a metadata key of the architecture that is not in [`KNOWN`], or one of
//! [`NEUTRAL`] with a value that changes something, is refused by its name.
//!
//! Source: llama.cpp `llama-model.cpp` (`load_hparams`) and `llama-arch.cpp` (names of keys).

use kernels::ops::{AttentionShape, Gate, RopePairs};

use super::Error;
use crate::gguf::{Header, Metadata, Name, ValueRef, required};

/// Most layers; the deepest models of today have 126.
const LAYERS_MAX: u32 = 1024;
/// Most values of a token between two layers, and of a feed-forward layer.
const WIDTH_MAX: u32 = 1 << 20;
/// Most heads of a layer.
const HEADS_MAX: u32 = 4096;
/// Most values of a head.
const HEAD_DIM_MAX: u32 = 4096;
/// Largest vocabulary.
const VOCAB_MAX: u64 = 1 << 24;
/// Longest context, in positions.
const CONTEXT_MAX: u32 = 1 << 24;

/// Rope base of Gemma 3's local layers, which files do not hold.
const GEMMA3_LOCAL_ROPE_BASE: f32 = 10_000.0;
/// Of so many layers of Gemma 3 the last is global.
const GEMMA3_PERIOD: usize = 6;
/// Gemma 3 with so many layers (27B) scales queries by the embedding's share of a head.
const GEMMA3_27B_LAYERS: usize = 62;

/// Keys that are read here, or that describe and do not change the mathematics.
const KNOWN: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
    "vocab_size",
];

/// Keys of Gemma 3 alone.
const KNOWN_GEMMA3: &[&str] =
    &["attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"];

/// The value of a key that changes nothing.
enum NeutralValue {
    Text(&'static str),
    Flag(bool),
    /// 0, or this number.
    Number(f64),
}

/// Keys that are not implemented but may say so themselves.
const NEUTRAL: &[(&str, NeutralValue, &str)] = &[
    ("attention.causal", NeutralValue::Flag(true), "only true"),
    ("attention.clamp_kqv", NeutralValue::Number(0.0), "only 0"),
    ("attention.max_alibi_bias", NeutralValue::Number(0.0), "only 0"),
    ("attn_logit_softcapping", NeutralValue::Number(0.0), "only 0"),
    ("expert_count", NeutralValue::Number(0.0), "only 0"),
    ("expert_used_count", NeutralValue::Number(0.0), "only 0"),
    ("final_logit_softcapping", NeutralValue::Number(0.0), "only 0"),
    ("logit_scale", NeutralValue::Number(0.0), "only 0"),
    ("rope.scale_linear", NeutralValue::Number(1.0), "only 1"),
    ("rope.scaling.factor", NeutralValue::Number(1.0), "only 1"),
    ("rope.scaling.type", NeutralValue::Text("none"), "only `none`"),
    ("use_parallel_residual", NeutralValue::Flag(false), "only false"),
];

/// A family of models with one forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama and its descendants.
    Llama,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Gemma 3, text.
    Gemma3,
}

/// Layers that see a window only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LocalLayers {
    /// Positions that a token sees, itself included.
    pub window: usize,
    /// The rope base of these layers.
    pub rope_base: f32,
    /// Of so many layers the last is global.
    pub period: usize,
}

/// The hyperparameters of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which forward pass.
    pub architecture: Architecture,
    /// Layers.
    pub n_layers: usize,
    /// Values of a token between layers.
    pub embed_dim: usize,
    /// Values of a token inside a feed-forward layer.
    pub ffn_dim: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Positions that the model was trained for.
    pub context_len: usize,
    /// Added to the mean square under the root.
    pub norm_epsilon: f32,
    /// Which values of a head turn together.
    pub rope_pairs: RopePairs,
    /// Values of a head that turn.
    pub rope_dims: usize,
    /// The rope base; of the global layers where there are local ones.
    pub rope_base: f32,
    /// Layers that see a window only.
    pub local: Option<LocalLayers>,
    /// What embeddings are multiplied by.
    pub embed_scale: Option<f32>,
    /// What scores are multiplied by.
    pub query_scale: f32,
    /// The activation of the feed-forward layers.
    pub gate: Gate,
    /// Whether queries and keys are normalised, and outputs of both halves of a layer.
    pub extra_norms: bool,
}

impl ModelConfig {
    /// Reads the hyperparameters from a header.
    ///
    /// # Errors
    ///
    /// Names the first key that is missing, out of bounds, or not implemented.
    pub fn from_header(header: &Header) -> Result<Self, Error> {
        let metadata = &header.metadata;
        let name = required("general.architecture", metadata.string("general.architecture"))?;
        let architecture = match name {
            "llama" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            "gemma3" => Architecture::Gemma3,
            _ => return Err(Error::UnsupportedArchitecture(Name::from(name))),
        };
        check_general(metadata)?;
        let keys = Keys { metadata, prefix: name };
        keys.check(architecture)?;
        let config = keys.read(architecture, vocab_size(header)?)?;
        config.check(&keys)?;
        Ok(config)
    }

    fn check(&self, keys: &Keys<'_>) -> Result<(), Error> {
        let refuse =
            |key: &str, supported| Err(Error::UnsupportedValue { key: keys.name(key), supported });
        let step = AttentionShape::HEAD_DIM_STEP;
        if !self.n_heads.is_multiple_of(self.n_kv_heads)
            || self.n_heads / self.n_kv_heads > AttentionShape::GROUP_MAX
        {
            return refuse("attention.head_count_kv", "a divisor of the head count, 1/64 at least");
        }
        if !self.head_dim.is_multiple_of(step) {
            return refuse("attention.key_length", "multiples of 16");
        }
        if !self.rope_dims.is_multiple_of(2) || self.rope_dims > self.head_dim {
            return refuse("rope.dimension_count", "even numbers up to the key length");
        }
        Ok(())
    }

    /// Returns the attention of a layer.
    pub fn attention(&self, layer: usize) -> AttentionShape {
        AttentionShape {
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            scale: self.query_scale,
            window: self.local_layer(layer).map(|local| local.window),
        }
    }

    /// Returns the window of a layer, if it has one.
    pub fn local_layer(&self, layer: usize) -> Option<&LocalLayers> {
        self.local.as_ref().filter(|local| layer % local.period < local.period - 1)
    }

    /// Returns the values of a token's queries.
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Returns the values of a token's keys, and of its values.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}

/// Refuses files that are no whole model.
fn check_general(metadata: &Metadata) -> Result<(), Error> {
    if metadata.string("general.type")?.is_some_and(|kind| kind != "model") {
        let key = Name::from("general.type");
        return Err(Error::UnsupportedValue { key, supported: "only `model`" });
    }
    if metadata.u64("split.count")?.is_some_and(|count| count > 1) {
        let key = Name::from("split.count");
        return Err(Error::UnsupportedValue { key, supported: "only whole files" });
    }
    Ok(())
}

/// Returns the number of rows of the embedding, which the vocabulary must have too.
fn vocab_size(header: &Header) -> Result<usize, Error> {
    let name = "token_embd.weight";
    let tensor = header.tensor(name).ok_or_else(|| Error::MissingTensor(Name::from(name)))?;
    let tokens = header.metadata.strings("tokenizer.ggml.tokens")?;
    if tokens.is_some_and(|tokens| tokens.len() as u64 != tensor.rows()) {
        let key = Name::from("tokenizer.ggml.tokens");
        return Err(Error::UnsupportedValue { key, supported: "a token for each embedding" });
    }
    let bounded = usize::try_from(tensor.rows()).ok().filter(|_| tensor.rows() <= VOCAB_MAX);
    let key = || Name::from("tokenizer.ggml.tokens");
    bounded.ok_or_else(|| Error::OutOfBounds { key: key(), min: 1, max: VOCAB_MAX })
}

/// The keys of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    prefix: &'a str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn name(&self, key: &str) -> Name {
        Name::from(self.full(key).as_str())
    }

    /// Refuses what is not implemented.
    fn check(&self, architecture: Architecture) -> Result<(), Error> {
        let own = if architecture == Architecture::Gemma3 { KNOWN_GEMMA3 } else { &[] };
        for (full, value) in self.metadata.iter() {
            let rest = full.strip_prefix(self.prefix).and_then(|rest| rest.strip_prefix('.'));
            let Some(key) = rest else { continue };
            if KNOWN.contains(&key) || own.contains(&key) {
                continue;
            }
            let Some((_, neutral, supported)) = NEUTRAL.iter().find(|entry| entry.0 == key) else {
                return Err(Error::UnsupportedKey(Name::from(full)));
            };
            if !is_neutral(neutral, &value) {
                return Err(Error::UnsupportedValue { key: Name::from(full), supported });
            }
        }
        Ok(())
    }

    fn count(&self, key: &str, max: u32) -> Result<usize, Error> {
        let full = self.full(key);
        let value = required(&full, self.metadata.u32(&full))?;
        self.bounded(key, value, max)
    }

    fn optional_count(&self, key: &str, max: u32) -> Result<Option<usize>, Error> {
        let value = self.metadata.u32(&self.full(key))?;
        value.map(|value| self.bounded(key, value, max)).transpose()
    }

    fn bounded(&self, key: &str, value: u32, max: u32) -> Result<usize, Error> {
        if value == 0 || value > max {
            return Err(Error::OutOfBounds { key: self.name(key), min: 1, max: u64::from(max) });
        }
        Ok(value as usize)
    }

    fn positive(&self, key: &str, value: Option<f32>, default: f32) -> Result<f32, Error> {
        let value = value.unwrap_or(default);
        if value.is_finite() && value > 0.0 {
            Ok(value)
        } else {
            let supported = "positive numbers";
            Err(Error::UnsupportedValue { key: self.name(key), supported })
        }
    }

    fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        Ok(self.metadata.f32(&self.full(key))?)
    }

    fn read(&self, architecture: Architecture, vocab_size: usize) -> Result<ModelConfig, Error> {
        let n_layers = self.count("block_count", LAYERS_MAX)?;
        let embed_dim = self.count("embedding_length", WIDTH_MAX)?;
        let n_heads = self.count("attention.head_count", HEADS_MAX)?;
        let n_kv_heads = self.optional_count("attention.head_count_kv", HEADS_MAX)?;
        let head_dim = self.head_dim(embed_dim, n_heads)?;
        let epsilon = "attention.layer_norm_rms_epsilon";
        let norm_epsilon = required(&self.full(epsilon), self.metadata.f32(&self.full(epsilon)))?;
        let rope_base = self.positive("rope.freq_base", self.f32("rope.freq_base")?, 10_000.0)?;
        if let Some(rows) = self.optional_count("vocab_size", u32::MAX)?
            && rows != vocab_size
        {
            let supported = "the number of embeddings";
            return Err(Error::UnsupportedValue { key: self.name("vocab_size"), supported });
        }
        let is_gemma = architecture == Architecture::Gemma3;
        let is_llama = architecture == Architecture::Llama;
        let heads_share =
            if is_gemma && n_layers == GEMMA3_27B_LAYERS { embed_dim / n_heads } else { head_dim };
        Ok(ModelConfig {
            architecture,
            n_layers,
            embed_dim,
            ffn_dim: self.count("feed_forward_length", WIDTH_MAX)?,
            n_heads,
            n_kv_heads: n_kv_heads.unwrap_or(n_heads),
            head_dim,
            vocab_size,
            context_len: self.count("context_length", CONTEXT_MAX)?,
            norm_epsilon: self.positive(epsilon, Some(norm_epsilon), 0.0)?,
            rope_pairs: if is_llama { RopePairs::Neighbours } else { RopePairs::Halves },
            rope_dims: self
                .optional_count("rope.dimension_count", HEAD_DIM_MAX)?
                .unwrap_or(head_dim),
            rope_base,
            local: if is_gemma { Some(self.local_layers()?) } else { None },
            embed_scale: is_gemma.then(|| real(embed_dim).sqrt()),
            query_scale: 1.0 / real(heads_share).sqrt(),
            gate: if is_gemma { Gate::GeluTanh } else { Gate::Silu },
            extra_norms: is_gemma,
        })
    }

    fn head_dim(&self, embed_dim: usize, n_heads: usize) -> Result<usize, Error> {
        let key_len = self.optional_count("attention.key_length", HEAD_DIM_MAX)?;
        let value_len = self.optional_count("attention.value_length", HEAD_DIM_MAX)?;
        let head_dim = key_len.unwrap_or(embed_dim / n_heads);
        if key_len.is_none() && !embed_dim.is_multiple_of(n_heads) {
            let key = self.name("attention.head_count");
            return Err(Error::UnsupportedValue { key, supported: "a divisor of the embedding" });
        }
        if value_len.unwrap_or(embed_dim / n_heads) != head_dim {
            let key = self.name("attention.value_length");
            return Err(Error::UnsupportedValue { key, supported: "the key length" });
        }
        Ok(head_dim)
    }

    fn local_layers(&self) -> Result<LocalLayers, Error> {
        let pattern = "attention.sliding_window_pattern";
        if self.optional_count(pattern, LAYERS_MAX)?.is_some_and(|n| n != GEMMA3_PERIOD) {
            return Err(Error::UnsupportedValue { key: self.name(pattern), supported: "only 6" });
        }
        let base = "rope.freq_base_swa";
        Ok(LocalLayers {
            window: self.count("attention.sliding_window", CONTEXT_MAX)?,
            rope_base: self.positive(base, self.f32(base)?, GEMMA3_LOCAL_ROPE_BASE)?,
            period: GEMMA3_PERIOD,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "widths are at most 2^20")]
fn real(width: usize) -> f32 {
    width as f32
}

fn is_neutral(neutral: &NeutralValue, value: &ValueRef<'_>) -> bool {
    let number = match *value {
        ValueRef::U8(number) => f64::from(number),
        ValueRef::U16(number) => f64::from(number),
        ValueRef::U32(number) => f64::from(number),
        ValueRef::I32(number) => f64::from(number),
        ValueRef::F32(number) => f64::from(number),
        ValueRef::F64(number) => number,
        _ => f64::NAN,
    };
    match neutral {
        NeutralValue::Text(text) => matches!(value, ValueRef::String(found) if found == text),
        NeutralValue::Flag(flag) => matches!(value, ValueRef::Bool(found) if found == flag),
        NeutralValue::Number(neutral) => number == 0.0 || number == *neutral,
    }
}
