//! The launches of one shape of batches, recorded once and repeated with one call.
//!
//! The launches are those of this module's safe callers, so that a repetition is sound as long as the batch
//! holds the shape that was recorded, and no memory was given back since. Copies are no part of a step.

use super::graph::Graph;
use super::shape::Shape;
use super::{Batch, Card, CudaError};

/// The launches of one shape of batches.
#[derive(Debug)]
pub struct Step<'c> {
    graph: Graph<'c>,
    card: &'c Card<'c>,
    /// Where the batch lies.
    batch: u64,
    shape: Shape,
    /// How often memory had been given back when the recording started.
    given_back: u64,
}

/// A recording of launches of one batch; another may start when this is dropped, whatever happened.
struct OfBatch<'c>(&'c Card<'c>);

impl Drop for OfBatch<'_> {
    fn drop(&mut self) {
        self.0.recorded.set(None);
    }
}

impl<'c> Step<'c> {
    /// Records what `launch` launches for batches of a shape. `state` is what it works on, in which
    /// `batch` finds the batch; that holds nothing afterwards.
    ///
    /// # Errors
    ///
    /// As [`Card::record`].
    ///
    /// # Panics
    ///
    /// Panics if batches have no such shape, or if another batch is asked for.
    pub fn record<S>(
        card: &'c Card<'c>,
        shape: Shape,
        state: &mut S,
        batch: impl FnOnce(&mut S) -> &mut Batch<'c>,
        launch: impl FnOnce(&mut S) -> Result<(), CudaError>,
    ) -> Result<Self, CudaError> {
        let batch = batch(state);
        batch.assume(shape)?;
        let (address, _) = batch.holds();
        let given_back = card.given_back.get();
        let recording = OfBatch(card);
        card.recorded.set(Some((address, shape)));
        let graph = card.record(|| launch(state))?;
        drop(recording);
        Ok(Self { graph, card, batch: address, shape, given_back })
    }

    /// Returns whether it can still be launched: whether all memory is there that was when it was recorded.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.given_back == self.card.given_back.get()
    }

    /// Returns the shape of the batches that it is for.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Launches everything for the batch, which it must have been recorded for.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfDate`] if memory was given back meanwhile; [`CudaError::Failed`] if the card does
    /// not take it.
    ///
    /// # Panics
    ///
    /// Panics if the batch is another, or of another shape.
    pub fn launch(&self, batch: &Batch<'c>) -> Result<(), CudaError> {
        assert_eq!(batch.holds(), (self.batch, Some(self.shape)), "the batch that was recorded");
        if !self.is_current() {
            return Err(CudaError::OutOfDate);
        }
        // SAFETY: every launch was measured when it was recorded, against memory that is still there; what
        // the kernels follow lies in the batch, which was checked against the same bounds.
        unsafe { self.graph.launch() }
    }
}
