//! Text to tokens and back, from the model file's own vocabulary; linear in the text.
//!
//! Special tokens (control tokens and markup) are found in trusted text only: the template's own,
//! or where a caller says so. Text of any other origin never becomes one, by no way of merging.
//! Plain USER_DEFINED tokens (letters, numbers and white space only, as Gemma's runs of newlines)
//! are found in any text.

mod bpe;
mod error;
mod merge;
mod metadata;
mod pretokenize;
mod special;
mod spm;
mod vocab;

use std::ops::Range;

use bpe::Bpe;
pub(crate) use bpe::byte_char;
pub use error::Error;
use merge::Merger;
use special::SpecialTokens;
use spm::Spm;
use vocab::Vocab;

/// Most tokens of a vocabulary.
pub const TOKEN_COUNT_MAX: usize = 1 << 21;
/// Most merges.
pub const MERGE_COUNT_MAX: usize = 1 << 22;
/// Longest text of a token, in bytes.
pub const TOKEN_LEN_MAX_BYTES: usize = 2048;
/// Longest text that can be encoded, in bytes.
pub const TEXT_LEN_MAX_BYTES: usize = 1 << 30;

const TOKENS_FIELD: &str = "tokenizer.ggml.tokens";

/// Whether special tokens are found in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Markup {
    /// Never: a user's text.
    Plain,
    /// Everywhere: text that the caller trusts as a template's.
    Special,
}

/// A stretch of a prompt.
#[derive(Clone, PartialEq, Eq)]
pub struct Fragment {
    /// The text.
    pub text: String,
    /// Whether special tokens are found in it.
    pub trusted: bool,
}

impl std::fmt::Debug for Fragment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fragment({} bytes, trusted: {})", self.text.len(), self.trusted)
    }
}

enum Scheme {
    Bpe(Bpe),
    Spm(Spm),
}

/// A model's vocabulary and the way text is cut into it.
pub struct Tokenizer {
    vocab: Vocab,
    scheme: Scheme,
    special: SpecialTokens,
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
    adds_eos: bool,
    end_of_generation: Vec<u32>,
}

impl Tokenizer {
    /// Encodes a whole prompt of one origin, with BOS and EOS where the model asks for them.
    ///
    /// # Panics
    ///
    /// Panics if `text` is longer than [`TEXT_LEN_MAX_BYTES`].
    #[must_use]
    pub fn encode(&self, text: &str, markup: Markup) -> Vec<u32> {
        let trusted = Range { start: 0, end: text.len() };
        match markup {
            Markup::Plain => self.encode_spans(text, &[], &mut Merger::default()),
            Markup::Special => self.encode_spans(text, &[trusted], &mut Merger::default()),
        }
    }

    /// Encodes a whole prompt of several origins, with BOS and EOS where the model asks for them.
    ///
    /// The tokens are those of the joined text, but for special tokens: each lies wholly in text
    /// that is trusted.
    ///
    /// # Panics
    ///
    /// Panics if the text is longer than [`TEXT_LEN_MAX_BYTES`].
    #[must_use]
    pub fn encode_fragments(&self, fragments: &[Fragment]) -> Vec<u32> {
        let mut text = String::with_capacity(fragments.iter().map(|part| part.text.len()).sum());
        let mut trusted: Vec<Range<usize>> = Vec::new();
        for fragment in fragments {
            let start = text.len();
            text.push_str(&fragment.text);
            match trusted.last_mut() {
                _ if !fragment.trusted => {}
                Some(last) if last.end == start => last.end = text.len(),
                _ => trusted.push(start..text.len()),
            }
        }
        self.encode_spans(&text, &trusted, &mut Merger::default())
    }

    fn encode_spans(&self, text: &str, trusted: &[Range<usize>], merger: &mut Merger) -> Vec<u32> {
        assert!(text.len() <= TEXT_LEN_MAX_BYTES, "the text is too long");
        let mut tokens: Vec<u32> = self.bos.filter(|_| self.adds_bos).into_iter().collect();
        let mut trusted = trusted.iter().peekable();
        let (mut start, mut at, mut after_special) = (0, 0, true);
        while at < text.len() {
            while trusted.next_if(|span| span.end <= at).is_some() {}
            let trusted_end =
                trusted.peek().map_or(at, |span| if span.start <= at { span.end } else { at });
            let Some(found) = self.special.longest(text.as_bytes(), at, trusted_end) else {
                at += 1;
                continue;
            };
            self.encode_raw(&text[start..at], after_special, merger, &mut tokens);
            // A template that writes the BOS itself does not get a second one.
            let is_second_bos =
                at == 0 && self.adds_bos && Some(found.id) == self.bos && tokens.len() == 1;
            if !is_second_bos {
                tokens.push(found.id);
            }
            at += found.len;
            (start, after_special) = (at, true);
        }
        self.encode_raw(&text[start..], after_special, merger, &mut tokens);
        tokens.extend(self.eos.filter(|_| self.adds_eos));
        tokens
    }

    fn encode_raw(
        &self,
        text: &str,
        after_special: bool,
        merger: &mut Merger,
        tokens: &mut Vec<u32>,
    ) {
        match &self.scheme {
            Scheme::Bpe(bpe) => bpe.encode(&self.vocab, merger, text, tokens),
            Scheme::Spm(spm) => spm.encode(&self.vocab, merger, text, after_special, tokens),
        }
    }

    /// Returns the bytes that a token stands for: none for control tokens and unknown ids.
    ///
    /// A token may hold a part of a character.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocab.rendered(id).unwrap_or_default()
    }

    /// Returns a token's text as the file has it, control tokens too.
    #[must_use]
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocab.text(id)
    }

    /// Returns the number of tokens.
    #[must_use]
    pub fn vocab_len(&self) -> u32 {
        self.vocab.len()
    }

    /// Returns the token that starts a prompt.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Returns the token that the file names as the end of an answer.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Returns whether the model wants every prompt to start with BOS.
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Returns every token that ends an answer, by its id or its text, in ascending order.
    #[must_use]
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// Returns whether a token ends an answer.
    #[must_use]
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation.binary_search(&id).is_ok()
    }

    /// Returns whether a token is found in trusted text only.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab.kind(id).is_some_and(vocab::Kind::is_special)
    }
}
