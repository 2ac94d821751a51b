//! Launches that are recorded once and repeated with one call: a CUDA graph.
//!
//! A graph is fixed: its kernels, grids, arguments and copies. What differs from one time to the next
//! (tokens, positions, page lists) lies in memory that the arguments point to. Nothing runs while it is
//! recorded.

use core::ffi::c_uint;
use core::{fmt, ptr};

use super::driver::{Handle, check};
use super::{Card, CudaError};

/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: what other threads do with the driver is theirs.
const THREAD_LOCAL: c_uint = 1;

/// Launches and copies of a card's stream that can be repeated.
pub struct Graph<'c> {
    card: &'c Card<'c>,
    handle: Handle,
}

impl fmt::Debug for Graph<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").finish_non_exhaustive()
    }
}

impl Card<'_> {
    /// Records what `work` asks for instead of doing it.
    ///
    /// # Errors
    ///
    /// That of `work`; [`CudaError::WhileRecording`] inside of another recording, or after `work` asked
    /// for something that cannot be recorded.
    pub fn record(
        &self,
        work: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Graph<'_>, CudaError> {
        let recording = Recording::start(self)?;
        let done = work();
        let recorded = recording.end();
        done?;
        let recorded = recorded?;
        let functions = self.functions();
        let mut graph = Graph { card: self, handle: ptr::null_mut() };
        // SAFETY: the handle may be written, and the recorded graph is whole.
        let code =
            unsafe { (functions.graph_instantiate)(&raw mut graph.handle, recorded.handle, 0) };
        check("cuGraphInstantiate", code)?;
        // SAFETY: the graph was just made for this card.
        let code = unsafe { (functions.graph_upload)(graph.handle, self.stream) };
        check("cuGraphUpload", code)?;
        self.finish()?;
        Ok(graph)
    }
}

impl Graph<'_> {
    /// Does all that was recorded, after all that was asked for before.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card does not take it.
    ///
    /// # Safety
    ///
    /// For each recorded launch, copy and filling, what its own contract asks for holds again: the memory that
    /// it points to lives, and is not read or written otherwise, until [`Card::finish`] returns.
    pub unsafe fn launch(&self) -> Result<(), CudaError> {
        let launch = self.card.functions().graph_launch;
        // SAFETY: graph and stream are of one card; the caller vouches for the memory.
        let code = unsafe { launch(self.handle, self.card.stream) };
        check("cuGraphLaunch", code)
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: the graph was made here; one that still runs is destroyed when it has ended.
            let _ = unsafe { (self.card.functions().graph_exec_destroy)(self.handle) };
        }
    }
}

/// A graph that cannot be launched yet.
struct Recorded<'c> {
    card: &'c Card<'c>,
    handle: Handle,
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: the graph is this value's alone.
            let _ = unsafe { (self.card.functions().graph_destroy)(self.handle) };
        }
    }
}

/// A stream that records; it runs again when this is dropped, whatever happened.
struct Recording<'c> {
    card: &'c Card<'c>,
}

impl<'c> Recording<'c> {
    fn start(card: &'c Card<'c>) -> Result<Self, CudaError> {
        card.refuse_while_recording()?;
        // SAFETY: the stream is the card's, and not the default one, which cannot record.
        let code = unsafe { (card.functions().stream_begin_capture)(card.stream, THREAD_LOCAL) };
        check("cuStreamBeginCapture", code)?;
        card.is_recording.set(true);
        Ok(Self { card })
    }

    fn end(self) -> Result<Recorded<'c>, CudaError> {
        self.stop()
    }

    fn stop(&self) -> Result<Recorded<'c>, CudaError> {
        let card = self.card;
        let mut recorded = Recorded { card, handle: ptr::null_mut() };
        // SAFETY: the handle may be written; this thread started the recording.
        let code =
            unsafe { (card.functions().stream_end_capture)(card.stream, &raw mut recorded.handle) };
        card.is_recording.set(false);
        card.give_back_left();
        check("cuStreamEndCapture", code)?;
        Ok(recorded)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if self.card.is_recording.get() {
            let _ = self.stop();
        }
    }
}
