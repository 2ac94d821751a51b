//! How long the card itself took for what it was asked: for measurements, never in a worker's path.

use core::{fmt, ptr};

use super::driver::{Handle, check};
use super::{Card, CudaError};

/// Two marks in a card's stream.
pub struct Timer<'c> {
    card: &'c Card<'c>,
    /// Start and end.
    marks: [Handle; 2],
}

impl fmt::Debug for Timer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").finish_non_exhaustive()
    }
}

impl Card<'_> {
    /// Makes a timer.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the driver makes none.
    pub fn timer(&self) -> Result<Timer<'_>, CudaError> {
        self.refuse_while_recording()?;
        let mut timer = Timer { card: self, marks: [ptr::null_mut(); 2] };
        for mark in &mut timer.marks {
            // SAFETY: the mark may be written.
            let code = unsafe { (self.functions().event_create)(&raw mut *mark, 0) };
            check("cuEventCreate", code)?;
        }
        Ok(timer)
    }
}

impl Timer<'_> {
    /// Marks the start, after all that was asked for before.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    pub fn start(&self) -> Result<(), CudaError> {
        self.mark(self.marks[0])
    }

    /// Marks the end.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    pub fn stop(&self) -> Result<(), CudaError> {
        self.mark(self.marks[1])
    }

    fn mark(&self, mark: Handle) -> Result<(), CudaError> {
        self.card.refuse_while_recording()?;
        // SAFETY: the mark was made here, and the stream is of the same card.
        let code = unsafe { (self.card.functions().event_record)(mark, self.card.stream) };
        check("cuEventRecord", code)
    }

    /// Waits for the end, and returns the seconds from start to end.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if one of them was not marked, or the card fails.
    pub fn seconds(&self) -> Result<f64, CudaError> {
        self.card.refuse_while_recording()?;
        let functions = self.card.functions();
        let [start, end] = self.marks;
        // SAFETY: the mark was made here.
        let code = unsafe { (functions.event_synchronize)(end) };
        check("cuEventSynchronize", code)?;
        let mut milliseconds = 0.0;
        // SAFETY: the number may be written, and both marks were made here.
        let code = unsafe { (functions.event_elapsed)(&raw mut milliseconds, start, end) };
        check("cuEventElapsedTime", code)?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        for mark in self.marks.into_iter().filter(|mark| !mark.is_null()) {
            // SAFETY: the mark was made here; one that is under way is destroyed when it is done.
            let _ = unsafe { (self.card.functions().event_destroy)(mark) };
        }
    }
}
