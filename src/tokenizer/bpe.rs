//! Byte-level BPE (`tokenizer.ggml.model = gpt2`).

use std::collections::HashMap;

use super::error::Error;
use super::merge::{Merger, NO_TOKEN, Rules};
use super::pretokenize::PreTokenizer;
use super::vocab::Vocab;

/// Ranked merges over the byte-level alphabet.
pub(super) struct Bpe {
    pre: PreTokenizer,
    /// The token of each byte. Bytes without one (rare control characters in some models) are
    /// skipped, as in every other engine.
    byte_ids: Box<[u32; 256]>,
    /// Rank and result of each pair.
    merges: HashMap<(u32, u32), (u32, u32)>,
    /// Whole pieces that are tokens are taken before any merge.
    takes_whole_pieces: bool,
}

/// Returns the character that stands for `byte` in the texts of byte-level tokens.
pub(crate) fn byte_char(byte: u8) -> char {
    let shown = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if shown(byte) {
        return char::from(byte);
    }
    let hidden_before = (0..byte).filter(|&other| !shown(other)).count();
    let code = 0x100 + u32::try_from(hidden_before).expect("a byte has 256 values");
    char::from_u32(code).expect("codes from 256 to 323 are characters")
}

/// Turns the texts of byte-level tokens into the bytes they stand for.
pub(super) struct Alphabet(HashMap<char, u8>);

impl Alphabet {
    pub(super) fn new() -> Self {
        Self((0..=u8::MAX).map(|byte| (byte_char(byte), byte)).collect())
    }

    /// Returns the bytes of `text`; characters outside the alphabet stand for themselves.
    pub(super) fn bytes(&self, text: &str) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(text.len());
        for c in text.chars() {
            match self.0.get(&c) {
                Some(&byte) => bytes.push(byte),
                None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        bytes
    }
}

impl Bpe {
    /// Reads the merges, in the order of their rank.
    pub(super) fn new<'a>(
        pre: PreTokenizer,
        vocab: &Vocab,
        merges: impl ExactSizeIterator<Item = &'a str>,
    ) -> Result<Self, Error> {
        let byte_id = |byte: usize| {
            let text = byte_char(u8::try_from(byte).expect("a byte")).to_string();
            vocab.find(text.as_bytes()).unwrap_or(NO_TOKEN)
        };
        let mut ranked = HashMap::with_capacity(merges.len());
        let specials = special_texts(vocab);
        for (merge, rank) in merges.zip(0..) {
            let bad = Error::BadMerge { index: rank };
            let (left, right) = split_merge(merge).ok_or_else(|| bad.clone())?;
            let whole = [left, right].concat();
            let known = |text: &str| vocab.find(text.as_bytes());
            // A part or a whole that is markup is no error, but text never merges to it.
            if [left, right, &whole].iter().any(|text| specials.contains_key(*text)) {
                continue;
            }
            let (Some(left), Some(right), Some(id)) = (known(left), known(right), known(&whole))
            else {
                return Err(bad);
            };
            ranked.entry((left, right)).or_insert((rank, id));
        }
        Ok(Self {
            pre,
            byte_ids: Box::new(std::array::from_fn(byte_id)),
            merges: ranked,
            takes_whole_pieces: pre == PreTokenizer::LlamaBpe,
        })
    }

    /// Appends the tokens of `text`, which holds no special token to be found.
    pub(super) fn encode(
        &self,
        vocab: &Vocab,
        merger: &mut Merger,
        text: &str,
        tokens: &mut Vec<u32>,
    ) {
        for piece in self.pre.pieces(text) {
            if self.takes_whole_pieces
                && let Some(id) = whole_piece(vocab, piece)
            {
                tokens.push(id);
                continue;
            }
            merger.merge(self, piece.as_bytes(), &mut |id, _| {
                if id != NO_TOKEN {
                    tokens.push(id);
                }
            });
        }
    }
}

impl Rules for Bpe {
    fn unit(&self, text: &[u8]) -> (usize, u32) {
        (1, text.first().map_or(NO_TOKEN, |&byte| self.byte_ids[byte as usize]))
    }

    fn join(&self, left: u32, right: u32, _: &[u8]) -> Option<(u32, u32)> {
        self.merges.get(&(left, right)).copied()
    }
}

fn whole_piece(vocab: &Vocab, piece: &str) -> Option<u32> {
    if piece.len() > super::TOKEN_LEN_MAX_BYTES {
        return None;
    }
    let text: String = piece.bytes().map(byte_char).collect();
    vocab.find(text.as_bytes())
}

fn special_texts(vocab: &Vocab) -> HashMap<&str, u32> {
    let specials = vocab.kinds().filter(|(_, kind)| kind.is_special());
    specials.filter_map(|(id, _)| Some((vocab.text(id)?, id))).collect()
}

/// Splits a merge at the space between its parts; a part may itself start with a space.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let (first_len, _) = merge.char_indices().nth(1)?;
    let space = first_len + merge[first_len..].find(' ')?;
    let (left, right) = (&merge[..space], &merge[space + 1..]);
    (!right.is_empty()).then_some((left, right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection() {
        let alphabet = Alphabet::new();
        assert_eq!(alphabet.0.len(), 256);
        assert_eq!(byte_char(b' '), 'Ġ');
        assert_eq!(byte_char(b'\n'), 'Ċ');
        assert_eq!(byte_char(0xAD), '\u{143}');
        assert_eq!(alphabet.bytes("Ġa"), b" a");
    }

    #[test]
    fn merges_split_at_the_space_between_their_parts() {
        assert_eq!(split_merge("a b"), Some(("a", "b")));
        assert_eq!(split_merge("Ġ the"), Some(("Ġ", "the")));
        assert_eq!(split_merge("ab"), None);
        assert_eq!(split_merge("a "), None);
        assert_eq!(split_merge(""), None);
    }
}
