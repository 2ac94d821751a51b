//! Why a card cannot compute a model.

use std::fmt;

use kernels::cuda::CudaError;

use crate::engine::Error;

/// Why a card cannot compute a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CardError {
    /// The driver or the card.
    Cuda(CudaError),
    /// There is no kernel for this.
    Unsupported(&'static str),
    /// More layers are asked for than the model has.
    TooManyLayers {
        /// Layers that are asked for.
        asked: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// Several cards have no room together.
    NoRoom {
        /// Layers that are left over.
        layers: usize,
        /// Cards that there are.
        cards: usize,
    },
}

impl fmt::Display for CardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cuda(error) => write!(f, "{error}"),
            Self::Unsupported(what) => {
                write!(f, "no card computes {what}: set gpu_layers = 0")
            }
            Self::TooManyLayers { asked, layers } => write!(
                f,
                "{asked} layers are asked for, and the model has {layers}: set gpu_layers = {layers} or less, or -1 for all"
            ),
            Self::NoRoom { layers, cards } => write!(
                f,
                "the {cards} cards have no room for {layers} of the layers: lower gpu_layers or context_len"
            ),
        }
    }
}

impl From<CudaError> for Error {
    fn from(error: CudaError) -> Self {
        Self::Card(CardError::Cuda(error))
    }
}

impl From<CardError> for Error {
    fn from(error: CardError) -> Self {
        Self::Card(error)
    }
}
