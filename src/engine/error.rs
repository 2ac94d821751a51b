//! What the engine refuses, and why.

use std::fmt;

use crate::gguf::{self, Name};

/// Why a model cannot be loaded or a request cannot be computed.
///
/// Names come from the model file; no variant carries a token or a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The header of the model does not parse.
    Gguf(gguf::Error),
    /// No forward pass for this architecture.
    UnsupportedArchitecture(Name),
    /// This metadata key may change the mathematics and is not implemented.
    UnsupportedKey(Name),
    /// This metadata key has a value that is not implemented.
    UnsupportedValue {
        /// The key.
        key: Name,
        /// What is implemented.
        supported: &'static str,
    },
    /// The value of this metadata key is outside its bounds.
    OutOfBounds {
        /// The key.
        key: Name,
        /// The smallest value.
        min: u64,
        /// The largest value.
        max: u64,
    },
    /// The model lacks this tensor.
    MissingTensor(Name),
    /// The forward pass does not know this tensor.
    UnexpectedTensor(Name),
    /// The tensor has another shape than the metadata ask for, slowest axis last.
    WrongShape {
        /// The tensor.
        tensor: Name,
        /// The shape that is asked for.
        expected: Vec<u64>,
        /// The shape in the file.
        found: Vec<u64>,
    },
    /// The packed image would not fit the address space.
    ImageTooLarge,
    /// The image has fewer bytes than its header asks for.
    ImageTruncated {
        /// Bytes that the header asks for.
        expected: usize,
        /// Bytes of the image.
        found: usize,
    },
    /// Prompt and answer do not fit the window.
    ContextExceeded {
        /// Tokens of the prompt.
        prompt_len: usize,
        /// Tokens that the answer may have.
        answer_len_max: usize,
        /// Positions of the window.
        context_len: usize,
    },
    /// An option of the engine is outside its bounds.
    BadOption(&'static str),
    /// A head's keys and values are no whole number of 8-bit blocks.
    KvBlocks {
        /// Values of a head.
        head_dim: usize,
    },
    /// A card cannot compute this, or failed.
    #[cfg(feature = "cuda")]
    Card(super::CardError),
    /// As many sequences run as the engine was made for.
    NoFreeSequence,
    /// The cache has too few free pages for the sequence.
    NoFreePages {
        /// Pages that the sequence needs.
        needed: usize,
        /// Pages that are free.
        free: usize,
    },
    /// The sequence has ended or never was.
    UnknownSequence,
    /// The sequence has no position left of those that it asked for.
    SequenceFull,
    /// The position was there when the sequence started, and is not its own.
    NoSuchPosition,
    /// A token is not in the vocabulary.
    TokenOutOfRange,
    /// A batch has more tokens, or asks for more logits, than the engine was made for.
    BatchTooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The most there may be.
        max: usize,
    },
}

impl From<gguf::Error> for Error {
    fn from(error: gguf::Error) -> Self {
        Self::Gguf(error)
    }
}

impl Error {
    /// Returns whether the engine computes nothing any more: a card has failed.
    #[must_use]
    pub fn is_final(&self) -> bool {
        #[cfg(feature = "cuda")]
        return matches!(self, Self::Card(_));
        #[cfg(not(feature = "cuda"))]
        false
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gguf(error) => write!(f, "{error}"),
            Self::UnsupportedArchitecture(name) => {
                write!(f, "architecture {name} is not implemented (llama, qwen2, gemma3 are)")
            }
            Self::UnsupportedKey(key) => {
                write!(f, "metadata key {key} may change the mathematics and is not implemented")
            }
            Self::UnsupportedValue { key, supported } => {
                write!(f, "metadata key {key} has a value that is not implemented: {supported}")
            }
            Self::OutOfBounds { key, min, max } => {
                write!(f, "metadata key {key} must be from {min} to {max}")
            }
            Self::MissingTensor(tensor) => write!(f, "tensor {tensor} is missing"),
            Self::UnexpectedTensor(tensor) => {
                write!(f, "tensor {tensor} has no place in this architecture")
            }
            Self::WrongShape { tensor, expected, found } => {
                write!(f, "tensor {tensor} has the shape {found:?}, not {expected:?}")
            }
            Self::ImageTooLarge => write!(f, "the packed model is too large"),
            Self::ImageTruncated { expected, found } => {
                write!(f, "the packed model has {found} bytes, not {expected}")
            }
            Self::ContextExceeded { prompt_len, answer_len_max, context_len } => {
                let asked = prompt_len.saturating_add(*answer_len_max);
                write!(
                    f,
                    "{asked} tokens were asked for ({prompt_len} of the prompt, {answer_len_max} \
                     of the answer), but the context holds {context_len}"
                )
            }
            Self::BadOption(name) => write!(f, "engine option {name} is out of bounds"),
            Self::KvBlocks { head_dim } => write!(
                f,
                "a cache in q8_0 takes heads of whole blocks of 32 values, and this model's have \
                 {head_dim}; keep it in f16 (worker.kv = \"f16\", --kv f16)"
            ),
            #[cfg(feature = "cuda")]
            Self::Card(error) => write!(f, "{error}"),
            Self::NoFreeSequence => write!(f, "every sequence slot is taken"),
            Self::NoFreePages { needed, free } => {
                write!(f, "the cache has {free} free pages of the {needed} that are needed")
            }
            Self::UnknownSequence => write!(f, "the sequence has ended"),
            Self::SequenceFull => write!(f, "the sequence has used all its positions"),
            Self::NoSuchPosition => write!(f, "the position is not the sequence's own"),
            Self::TokenOutOfRange => write!(f, "a token is not in the vocabulary"),
            Self::BatchTooLarge { what, max } => write!(f, "a batch has more than {max} {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Gguf(error) => Some(error),
            _ => None,
        }
    }
}
