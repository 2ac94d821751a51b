//! SentencePiece BPE (`tokenizer.ggml.model = llama`): scores, `▁` for spaces, byte fallback.

use super::TOKEN_LEN_MAX_BYTES;
use super::error::Error;
use super::merge::{Merger, NO_TOKEN, Rules};
use super::vocab::{Kind, Vocab};

/// What stands for a space in the texts of tokens.
const SPACE: char = '\u{2581}';

/// Scores and the fallback of characters outside the vocabulary.
pub(super) struct Spm {
    /// Smaller is joined earlier: the scores, in descending order.
    priorities: Vec<u32>,
    /// The token of each byte, or the unknown token.
    byte_ids: Box<[u32; 256]>,
    adds_space_prefix: bool,
}

/// Returns the byte of a token of the form `<0xNN>`.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_hex { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Returns the bytes that a token stands for.
pub(super) fn render(id: u32, text: &str, kind: Kind) -> Result<Vec<u8>, Error> {
    match kind {
        Kind::Byte => Ok(vec![byte_of(text).ok_or(Error::BadByteToken { id })?]),
        _ => Ok(text.replace(SPACE, " ").into_bytes()),
    }
}

impl Spm {
    /// Takes a score for each token of `vocab`.
    pub(super) fn new(
        vocab: &Vocab,
        scores: &[f32],
        unknown: Option<u32>,
        adds_space_prefix: bool,
    ) -> Result<Self, Error> {
        if let Some((_, id)) = scores.iter().zip(0..).find(|(score, _)| score.is_nan()) {
            return Err(Error::BadScore { id });
        }
        let mut byte_ids = [None; 256];
        for (id, _) in vocab.kinds().filter(|&(_, kind)| kind == Kind::Byte) {
            let byte = vocab.text(id).and_then(byte_of).ok_or(Error::BadByteToken { id })?;
            byte_ids[byte as usize].get_or_insert(id);
        }
        let byte_ids: Option<Vec<u32>> = byte_ids.iter().map(|id| id.or(unknown)).collect();
        let byte_ids: Box<[u32]> = byte_ids.ok_or(Error::NoFallback)?.into();
        let byte_ids = byte_ids.try_into().map_err(|_| Error::NoFallback)?;
        let priorities = scores.iter().map(|&score| !ordered_bits(score)).collect();
        Ok(Self { priorities, byte_ids, adds_space_prefix })
    }

    /// Appends the tokens of `text`, which holds no special token to be found.
    pub(super) fn encode(
        &self,
        vocab: &Vocab,
        merger: &mut Merger,
        text: &str,
        after_special: bool,
        tokens: &mut Vec<u32>,
    ) {
        if text.is_empty() {
            return;
        }
        let mut spaced = String::with_capacity(text.len() + text.len() / 2);
        if self.adds_space_prefix && after_special {
            spaced.push(SPACE);
        }
        spaced.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        let rules = Scored { spm: self, vocab };
        merger.merge(&rules, spaced.as_bytes(), &mut |id, bytes| {
            if id == NO_TOKEN {
                tokens.extend(bytes.iter().map(|&byte| self.byte_ids[byte as usize]));
            } else {
                tokens.push(id);
            }
        });
    }
}

/// Returns bits that compare as the scores do; both zeros are equal.
fn ordered_bits(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

struct Scored<'a> {
    spm: &'a Spm,
    vocab: &'a Vocab,
}

impl Rules for Scored<'_> {
    fn unit(&self, text: &[u8]) -> (usize, u32) {
        let len = match text.first() {
            None | Some(0..=0x7F) => 1,
            Some(0x80..=0xDF) => 2,
            Some(0xE0..=0xEF) => 3,
            Some(0xF0..) => 4,
        };
        (len, self.vocab.find(&text[..len]).unwrap_or(NO_TOKEN))
    }

    fn join(&self, _: u32, _: u32, both: &[u8]) -> Option<(u32, u32)> {
        if both.len() > TOKEN_LEN_MAX_BYTES {
            return None;
        }
        let id = self.vocab.find(both)?;
        Some((self.spm.priorities[id as usize], id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_ordered_as_scores() {
        let scores = [f32::NEG_INFINITY, -1000.5, -1.0, -0.0, 0.5, 3.0, f32::INFINITY];
        assert!(scores.windows(2).all(|pair| ordered_bits(pair[0]) < ordered_bits(pair[1])));
        assert_eq!(ordered_bits(-0.0), ordered_bits(0.0));
    }

    #[test]
    fn byte_tokens_have_one_form() {
        assert_eq!(byte_of("<0x0A>"), Some(10));
        for wrong in ["<0x0A", "<0x+A>", "<0x100>", "0x0A", "<0xé>"] {
            assert_eq!(byte_of(wrong), None, "{wrong}");
        }
    }
}
