//! What can be wrong with a model file's vocabulary.

use std::fmt;

use crate::gguf;
use crate::gguf::Name;

/// Why a vocabulary was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// A metadata value has the wrong type or is broken.
    Metadata(gguf::Error),
    /// The file lacks this metadata entry.
    Missing {
        /// The entry.
        field: &'static str,
    },
    /// The kind of tokenizer is not one that Cloister has.
    UnsupportedModel(Name),
    /// The pre-tokenizer is not one that Cloister has.
    UnsupportedPreTokenizer(Name),
    /// An array is empty or above its limit.
    BadCount {
        /// The array.
        field: &'static str,
        /// Its length.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// Two arrays that must be of one length are not.
    LengthMismatch {
        /// The array.
        field: &'static str,
        /// Its length.
        count: usize,
        /// The number of tokens.
        expected: usize,
    },
    /// The text of a token is above [`super::TOKEN_LEN_MAX_BYTES`].
    TokenTooLong {
        /// The token.
        id: u32,
        /// Its length in bytes.
        len_bytes: usize,
    },
    /// A token type is not one of ggml's.
    BadTokenType {
        /// The token.
        id: u32,
        /// What the file says.
        token_type: i32,
    },
    /// The score of a token is not a number.
    BadScore {
        /// The token.
        id: u32,
    },
    /// A byte token is not of the form `<0xNN>`.
    BadByteToken {
        /// The token.
        id: u32,
    },
    /// A merge is not two parts, or a part or the whole is no token.
    BadMerge {
        /// The merge.
        index: u32,
    },
    /// A token id is not below the number of tokens.
    IdOutOfRange {
        /// The entry.
        field: &'static str,
        /// What the file says.
        id: u32,
        /// The number of tokens.
        count: u32,
    },
    /// Characters outside the vocabulary have neither byte tokens nor an unknown token.
    NoFallback,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Metadata(error) => write!(f, "{error}"),
            Self::Missing { field } => write!(f, "`{field}` is missing"),
            Self::UnsupportedModel(name) => {
                write!(f, "`tokenizer.ggml.model` is {name}; `gpt2` and `llama` are supported")
            }
            Self::UnsupportedPreTokenizer(name) => write!(
                f,
                "`tokenizer.ggml.pre` is {name}; `smollm`, `qwen2`, `gpt-2` and `llama-bpe` are supported"
            ),
            Self::BadCount { field, count, max } => {
                write!(f, "`{field}` has {count} elements; 1 to {max} are allowed")
            }
            Self::LengthMismatch { field, count, expected } => {
                write!(f, "`{field}` has {count} elements for {expected} tokens")
            }
            Self::TokenTooLong { id, len_bytes } => {
                write!(f, "`tokenizer.ggml.tokens`: token {id} is {len_bytes} bytes long")
            }
            Self::BadTokenType { id, token_type } => {
                write!(
                    f,
                    "`tokenizer.ggml.token_type`: token {id} has the unknown type {token_type}"
                )
            }
            Self::BadScore { id } => {
                write!(f, "`tokenizer.ggml.scores`: the score of token {id} is not a number")
            }
            Self::BadByteToken { id } => {
                write!(f, "`tokenizer.ggml.tokens`: byte token {id} is not of the form `<0xNN>`")
            }
            Self::BadMerge { index } => {
                write!(
                    f,
                    "`tokenizer.ggml.merges`: merge {index} does not join two tokens to a third"
                )
            }
            Self::IdOutOfRange { field, id, count } => {
                write!(f, "`{field}` is {id}, but there are {count} tokens")
            }
            Self::NoFallback => {
                write!(
                    f,
                    "`tokenizer.ggml.tokens` has neither all byte tokens nor an unknown token"
                )
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<gguf::Error> for Error {
    fn from(error: gguf::Error) -> Self {
        Self::Metadata(error)
    }
}
