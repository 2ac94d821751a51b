//! The header of a GGUF file, written: metadata, the table of tensors, padding.

use super::shape::{Quant, ROPE_BASE, Shape, Tensor};
use super::vocabulary::{TEMPLATE, Vocabulary};
use crate::gguf::ALIGNMENT_DEFAULT;
use crate::gguf::ValueType;

/// Returns the bytes after which tensor data starts; `name` is what the file calls the model.
pub(super) fn write(shape: &Shape, quant: Quant, tensors: &[Tensor], name: &str) -> Vec<u8> {
    let mut entries = Entries::default();
    entries.string("general.architecture", "llama");
    entries.string("general.type", "model");
    entries.string("general.name", name);
    entries.string("general.description", "random weights, for timing: knows nothing");
    entries.count("general.file_type", quant.file_type() as usize);
    entries.count("general.quantization_version", 2);
    entries.count("llama.block_count", shape.n_layers);
    entries.count("llama.context_length", shape.context_len);
    entries.count("llama.embedding_length", shape.embed_dim);
    entries.count("llama.feed_forward_length", shape.ffn_dim);
    entries.count("llama.attention.head_count", shape.n_heads);
    entries.count("llama.attention.head_count_kv", shape.n_kv_heads);
    entries.count("llama.attention.key_length", shape.head_dim);
    entries.count("llama.attention.value_length", shape.head_dim);
    entries.number("llama.attention.layer_norm_rms_epsilon", 1e-5);
    entries.count("llama.rope.dimension_count", shape.head_dim);
    entries.number("llama.rope.freq_base", ROPE_BASE);
    entries.count("llama.vocab_size", shape.vocab_size);
    let vocabulary = Vocabulary::new(shape.vocab_size);
    entries.string("tokenizer.ggml.model", "gpt2");
    entries.string("tokenizer.ggml.pre", "llama-bpe");
    entries.strings("tokenizer.ggml.tokens", &vocabulary.tokens);
    entries.numbers("tokenizer.ggml.token_type", &vocabulary.types);
    entries.strings("tokenizer.ggml.merges", &vocabulary.merges);
    entries.count("tokenizer.ggml.bos_token_id", vocabulary.bos);
    entries.count("tokenizer.ggml.eos_token_id", vocabulary.eos);
    entries.string("tokenizer.chat_template", TEMPLATE);

    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(entries.count.to_le_bytes());
    bytes.append(&mut entries.bytes);
    let mut offset = 0_u64;
    for tensor in tensors {
        put_text(&mut bytes, &tensor.name);
        put_count(&mut bytes, tensor.shape.len());
        tensor.shape.iter().for_each(|&dim| bytes.extend((dim as u64).to_le_bytes()));
        bytes.extend(tensor.ty.id().to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offset += padded(tensor.size());
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT_DEFAULT as usize), 0);
    bytes
}

/// Returns the bytes that a tensor takes with the zeros after it.
pub(super) fn padded(size: u64) -> u64 {
    size.next_multiple_of(u64::from(ALIGNMENT_DEFAULT))
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Puts a number as `u32`: all counts here are constants far below its bounds.
fn put_count(bytes: &mut Vec<u8>, count: usize) {
    bytes.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

/// Metadata entries, one after another.
#[derive(Default)]
struct Entries {
    bytes: Vec<u8>,
    count: u64,
}

impl Entries {
    fn start(&mut self, key: &str, ty: ValueType) {
        self.count += 1;
        put_text(&mut self.bytes, key);
        self.bytes.extend((ty as u32).to_le_bytes());
    }

    fn start_array(&mut self, key: &str, element: ValueType, len: usize) {
        self.start(key, ValueType::Array);
        self.bytes.extend((element as u32).to_le_bytes());
        self.bytes.extend((len as u64).to_le_bytes());
    }

    fn string(&mut self, key: &str, text: &str) {
        self.start(key, ValueType::String);
        put_text(&mut self.bytes, text);
    }

    fn count(&mut self, key: &str, value: usize) {
        self.start(key, ValueType::U32);
        put_count(&mut self.bytes, value);
    }

    fn number(&mut self, key: &str, value: f32) {
        self.start(key, ValueType::F32);
        self.bytes.extend(value.to_le_bytes());
    }

    fn strings(&mut self, key: &str, texts: &[String]) {
        self.start_array(key, ValueType::String, texts.len());
        texts.iter().for_each(|text| put_text(&mut self.bytes, text));
    }

    fn numbers(&mut self, key: &str, numbers: &[i32]) {
        self.start_array(key, ValueType::I32, numbers.len());
        numbers.iter().for_each(|number| self.bytes.extend(number.to_le_bytes()));
    }
}
