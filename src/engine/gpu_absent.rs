//! What stands in for `gpu` in a program without it: a card that never is.

use std::convert::Infallible;
use std::marker::PhantomData;

use super::{Contents, Error, ModelConfig};

/// The layers of a model that a card computes: none.
pub(super) struct Gpu<'m>(Infallible, PhantomData<&'m ()>);

impl Gpu<'_> {
    pub(super) fn sequences_changed(&mut self) {
        match self.0 {}
    }

    pub(super) fn zero(&mut self, _: &[u32]) -> Result<(), Error> {
        match self.0 {}
    }

    pub(super) fn forward(&mut self, _: &ModelConfig, _: &Contents<'_>) -> Result<(), Error> {
        match self.0 {}
    }

    pub(super) fn chosen(&self, _: usize) -> Option<u32> {
        match self.0 {}
    }

    pub(super) fn logits(&self) -> &[f32] {
        match self.0 {}
    }

    pub(super) fn logits_mut(&mut self) -> &mut [f32] {
        match self.0 {}
    }

    pub(super) fn erase(&mut self) -> Result<(), Error> {
        match self.0 {}
    }
}
