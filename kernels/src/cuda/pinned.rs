//! Memory of the host that stays in its place, so that the card copies from it and to it by itself.
//!
//! Such copies can be recorded, and nobody waits for them. The memory is zeroed before it is given back.

use core::ops::{Deref, DerefMut, Range};
use core::{fmt, ptr, slice};

use super::driver::{OUT_OF_MEMORY, check};
use super::{Card, CudaError, Memory};

/// Memory of the host; zeroed and given back when dropped.
pub struct Pinned<'c> {
    card: &'c Card<'c>,
    start: ptr::NonNull<u8>,
    size: usize,
}

impl fmt::Debug for Pinned<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Card<'_> {
    /// Allocates memory of the host that the card can reach, all zeros.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoPinnedMemory`] if the host has none.
    pub fn pin(&self, size: usize) -> Result<Pinned<'_>, CudaError> {
        self.refuse_while_recording()?;
        let mut start = ptr::null_mut();
        // SAFETY: `start` may be written; without flags, the memory is of the host's usual kind.
        let code = unsafe { (self.functions().host_alloc)(&raw mut start, size.max(1), 0) };
        if code == OUT_OF_MEMORY {
            return Err(CudaError::NoPinnedMemory { wanted: size });
        }
        check("cuMemHostAlloc", code)?;
        let start = ptr::NonNull::new(start.cast::<u8>());
        let start = start.ok_or(CudaError::NoPinnedMemory { wanted: size })?;
        // SAFETY: the driver gave so many bytes, and nobody else has them.
        unsafe { start.write_bytes(0, size.max(1)) };
        Ok(Pinned { card: self, start, size })
    }

    /// Gives back what was dropped while a graph was recorded.
    pub(super) fn give_back_pinned(&self) {
        for (start, size) in self.left_pinned.take() {
            drop(Pinned { card: self, start, size });
        }
    }
}

impl Deref for Pinned<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the allocation has `size` bytes, all set, and copies to it are over (`start_read`).
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }
}

impl DerefMut for Pinned<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and copies from it are over too (`start_write`).
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }
}

impl Pinned<'_> {
    /// Returns where a part of it starts, for a copy by this card's stream: no other's is waited for.
    fn part(&self, card: &Card<'_>, part: &Range<usize>) -> Result<*mut u8, CudaError> {
        if !ptr::addr_eq(card, self.card) {
            return Err(CudaError::OtherCard);
        }
        if part.start > part.end || part.end > self.size {
            return Err(CudaError::OutOfBounds);
        }
        // SAFETY: the part lies in the allocation.
        Ok(unsafe { self.start.as_ptr().add(part.start) })
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        if self.card.is_recording.get() {
            self.card.left_pinned.borrow_mut().push((self.start, self.size));
            return;
        }
        // A copy may be under way. A card that failed copies nothing any more.
        let _ = self.card.finish();
        // SAFETY: the allocation has so many bytes, and nobody reads or writes them now.
        unsafe { self.start.write_bytes(0, self.size.max(1)) };
        // SAFETY: the allocation is this value's.
        let _ = unsafe { (self.card.functions().host_free)(self.start.as_ptr().cast()) };
    }
}

impl Memory<'_> {
    /// Starts a copy to the card, after all that was asked for before; a graph may record it.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfBounds`] if there are not so many bytes on either side, [`CudaError::OtherCard`] if
    /// another card pinned the host's.
    ///
    /// # Safety
    ///
    /// Until [`Card::finish`] returns, the part of `from` is not written, and `from` is not forgotten.
    pub unsafe fn start_write(
        &self,
        at: usize,
        from: &Pinned<'_>,
        part: Range<usize>,
    ) -> Result<(), CudaError> {
        let (to, from, len) =
            (self.part(at, part.len())?, from.part(self.card, &part)?, part.len());
        let copy = self.card.functions().copy_to_device;
        // SAFETY: both sides have so many bytes; the caller vouches for the time of the copy.
        let code = unsafe { copy(to, from.cast_const().cast(), len, self.card.stream) };
        check("cuMemcpyHtoDAsync", code)
    }

    /// Starts a copy from the card, after all that was asked for before; a graph may record it.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfBounds`] if there are not so many bytes on either side, [`CudaError::OtherCard`] if
    /// another card pinned the host's.
    ///
    /// # Safety
    ///
    /// Until [`Card::finish`] returns, the part of `to` is neither read nor written, and `to` is not
    /// forgotten.
    pub unsafe fn start_read(
        &self,
        at: usize,
        to: &Pinned<'_>,
        part: Range<usize>,
    ) -> Result<(), CudaError> {
        let (from, to, len) = (self.part(at, part.len())?, to.part(self.card, &part)?, part.len());
        let copy = self.card.functions().copy_to_host;
        // SAFETY: both sides have so many bytes; the caller vouches for the time of the copy.
        let code = unsafe { copy(to.cast(), from, len, self.card.stream) };
        check("cuMemcpyDtoHAsync", code)
    }
}
