//! A vocabulary for models that know no language: bytes, pairs and triples of bytes, Llama 3's markup.
//!
//! Any text can be encoded, into about a token for each two letters.

use crate::tokenizer::byte_char;

/// Markup tokens, at the end of the vocabulary.
const MARKUP_COUNT: usize = 256;
/// Those of them that have a meaning, by their place.
const MARKUP: &[(usize, &str)] = &[
    (BOS, "<|begin_of_text|>"),
    (1, "<|end_of_text|>"),
    (6, "<|start_header_id|>"),
    (7, "<|end_header_id|>"),
    (8, "<|eom_id|>"),
    (EOT, "<|eot_id|>"),
    (10, "<|python_tag|>"),
];
const BOS: usize = 0;
const EOT: usize = 9;

/// The template that the markup is for.
pub(super) const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
    <|start_header_id|>{{ message.role }}<|end_header_id|>\n\n\
    {{ message.content | trim }}<|eot_id|>{% endfor %}\
    {% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";

/// The tokens of a model and the merges that make them.
pub(super) struct Vocabulary {
    pub(super) tokens: Vec<String>,
    /// ggml's types: 1 normal, 3 control.
    pub(super) types: Vec<i32>,
    pub(super) merges: Vec<String>,
    pub(super) bos: usize,
    pub(super) eos: usize,
}

impl Vocabulary {
    /// Makes a vocabulary of this size, at least of all bytes, merges and markup.
    pub(super) fn new(size: usize) -> Self {
        let normal = size - MARKUP_COUNT;
        let pair = |a: u8, b: u8| [byte_char(a), byte_char(b)];
        let letters = || b'a'..=b'z';
        let starts = || std::iter::once(b' ').chain(letters());
        let merged: Vec<_> = starts().flat_map(|a| letters().map(move |b| pair(a, b))).collect();
        let merges = merged.iter().map(|[a, b]| format!("{a} {b}")).collect();
        let is_merged =
            |a: u8, b: u8| (a == b' ' || a.is_ascii_lowercase()) && b.is_ascii_lowercase();
        let bytes = || 0..=u8::MAX;
        let pairs = || bytes().flat_map(move |a| bytes().map(move |b| (a, b)));
        let others = pairs().filter(|&(a, b)| !is_merged(a, b)).map(|(a, b)| pair(a, b));
        let triples = bytes().flat_map(|a| pairs().map(move |(b, c)| [a, b, c].map(byte_char)));
        let mut tokens: Vec<String> = bytes().map(|byte| byte_char(byte).to_string()).collect();
        tokens.extend(merged.iter().map(String::from_iter));
        tokens.extend(others.map(String::from_iter));
        tokens.extend(triples.map(String::from_iter).take(normal.saturating_sub(tokens.len())));
        tokens.truncate(normal);
        let mut types = vec![1; normal];
        for place in 0..MARKUP_COUNT {
            let known = MARKUP.iter().find(|(of, _)| *of == place);
            let reserved = || format!("<|reserved_special_token_{place}|>");
            tokens.push(known.map_or_else(reserved, |(_, text)| (*text).to_owned()));
            types.push(3);
        }
        Self { tokens, types, merges, bos: normal + BOS, eos: normal + EOT }
    }
}
