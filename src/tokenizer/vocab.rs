//! The tokens: their texts, what they are, what bytes they stand for, and the way back from text.

use std::hash::{BuildHasher, RandomState};

use super::error::Error;
use super::special;
use super::{TOKEN_LEN_MAX_BYTES, TOKENS_FIELD};

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Comes from text.
    Normal,
    /// Stands for text outside the vocabulary; renders as nothing.
    Unknown,
    /// Steers the model; trusted text only; renders as nothing.
    Control,
    /// USER_DEFINED, found in trusted text only.
    Markup,
    /// USER_DEFINED and plain, found in any text before all else.
    Plain,
    /// A place without a text; renders as nothing.
    Unused,
    /// One byte, for characters outside the vocabulary.
    Byte,
}

impl Kind {
    /// Returns what ggml's token type means; a token that ends answers is always a control token.
    pub(super) fn new(token_type: i32, text: &str) -> Option<Self> {
        let kind = match token_type {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 if special::is_plain(text) => Self::Plain,
            4 => Self::Markup,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        };
        Some(if special::ends_generation(text) { Self::Control } else { kind })
    }

    /// Returns whether the token is found in trusted text only, and never made by merging.
    pub(super) fn is_special(self) -> bool {
        matches!(self, Self::Unknown | Self::Control | Self::Markup)
    }

    /// Returns whether merging may make the token.
    fn is_mergeable(self) -> bool {
        matches!(self, Self::Normal | Self::Plain | Self::Unused)
    }

    fn is_rendered(self) -> bool {
        matches!(self, Self::Normal | Self::Markup | Self::Plain | Self::Byte)
    }
}

/// Byte strings one after another.
#[derive(Default)]
struct Arena {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Arena {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let end = u32::try_from(self.bytes.len()).expect("limits of count and length hold");
        self.ends.push(end);
    }

    fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(&self.bytes[start..end])
    }
}

/// The tokens of a model.
pub(super) struct Vocab {
    texts: Arena,
    rendered: Arena,
    kinds: Vec<Kind>,
    index: Vec<Option<u32>>,
    hasher: RandomState,
}

impl Vocab {
    /// Collects tokens; `render` gives the bytes of a token that comes from text.
    pub(super) fn new<'a>(
        texts: impl Iterator<Item = &'a str>,
        types: &[i32],
        render: impl Fn(u32, &str, Kind) -> Result<Vec<u8>, Error>,
    ) -> Result<Self, Error> {
        let mut vocab = Self {
            texts: Arena::default(),
            rendered: Arena::default(),
            kinds: Vec::with_capacity(types.len()),
            index: vec![None; (types.len() * 2).next_power_of_two()],
            hasher: RandomState::new(),
        };
        for ((text, &token_type), id) in texts.zip(types).zip(0..) {
            if text.len() > TOKEN_LEN_MAX_BYTES {
                return Err(Error::TokenTooLong { id, len_bytes: text.len() });
            }
            let kind = Kind::new(token_type, text).ok_or(Error::BadTokenType { id, token_type })?;
            vocab.texts.push(text.as_bytes());
            let rendered = if kind.is_rendered() { render(id, text, kind)? } else { Vec::new() };
            vocab.rendered.push(&rendered);
            vocab.kinds.push(kind);
            if kind.is_mergeable() {
                vocab.enter(text.as_bytes(), id);
            }
        }
        if vocab.kinds.len() != types.len() {
            let (count, expected) = (types.len(), vocab.kinds.len());
            return Err(Error::LengthMismatch { field: TOKENS_FIELD, count, expected });
        }
        Ok(vocab)
    }

    /// Enters a text into the index; the first of equal texts stays.
    fn enter(&mut self, text: &[u8], id: u32) {
        let place = self.place(text);
        self.index[place].get_or_insert(id);
    }

    /// Returns where in the index `text` is or would be.
    fn place(&self, text: &[u8]) -> usize {
        let mask = self.index.len() - 1;
        #[expect(clippy::cast_possible_truncation, reason = "any part of the hash will do")]
        let mut place = self.hasher.hash_one(text) as usize & mask;
        while let Some(id) = self.index[place] {
            if self.texts.get(id as usize) == Some(text) {
                break;
            }
            place = (place + 1) & mask;
        }
        place
    }

    /// Returns the token of this text that merging may make.
    pub(super) fn find(&self, text: &[u8]) -> Option<u32> {
        self.index[self.place(text)]
    }

    /// Returns the number of tokens.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.kinds.len()).expect("the count is checked")
    }

    /// Returns the token's text as the file has it.
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        std::str::from_utf8(self.texts.get(id as usize)?).ok()
    }

    /// Returns the bytes that the token stands for.
    pub(super) fn rendered(&self, id: u32) -> Option<&[u8]> {
        self.rendered.get(id as usize)
    }

    /// Returns what a token is.
    pub(super) fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    /// Returns the tokens and what they are.
    pub(super) fn kinds(&self) -> impl Iterator<Item = (u32, Kind)> {
        (0..).zip(self.kinds.iter().copied())
    }
}
