//! Arrays on the card and beside it, and the arguments of launches that name them.
//!
//! An array starts as zeros, so that what a kernel reads beyond what was written is a number.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;
use core::{ptr, slice};

use super::{Card, CudaError, Memory, Pinned};

mod sealed {
    pub trait Sealed {}
}

/// What arrays hold: numbers, and pairs of them, laid out alike on both sides.
pub trait Item: Copy + Default + sealed::Sealed {}

macro_rules! items {
    ($($ty:ty)*) => {
        $(
            impl sealed::Sealed for $ty {}
            impl Item for $ty {}
        )*
    };
}
items!(u8 i8 u16 u32 i32 f32 [u32; 2] [i32; 2] [f32; 2]);

/// An array on the card; zeroed and given back when dropped.
pub struct Buffer<'c, T> {
    memory: Memory<'c>,
    len: usize,
    items: PhantomData<T>,
}

impl<T> fmt::Debug for Buffer<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<'c, T: Item> Buffer<'c, T> {
    /// Allocates zeros.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfMemory`] with what is free.
    pub fn new(card: &'c Card<'c>, len: usize) -> Result<Self, CudaError> {
        let size = len.checked_mul(size_of::<T>()).ok_or(CudaError::OutOfBounds)?;
        let mut memory = card.allocate(size)?;
        memory.fill(0)?;
        Ok(Self { memory, len, items: PhantomData })
    }

    /// Allocates and copies values.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfMemory`] with what is free.
    pub fn of(card: &'c Card<'c>, values: &[T]) -> Result<Self, CudaError> {
        let memory = card.allocate(size_of_val(values))?;
        let mut buffer = Self { memory, len: values.len(), items: PhantomData };
        buffer.write(0, values)?;
        Ok(buffer)
    }

    /// Returns how many values it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies values to the card, from the index `at` on.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfBounds`] if they do not fit.
    pub fn write(&mut self, at: usize, values: &[T]) -> Result<(), CudaError> {
        // SAFETY: an `Item` is numbers without gaps, all of whose bytes may be read.
        let bytes =
            unsafe { slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        let at = at.checked_mul(size_of::<T>()).ok_or(CudaError::OutOfBounds)?;
        if bytes.is_empty() { Ok(()) } else { self.memory.write(at, bytes) }
    }

    /// Copies values from the card, from the index `at` on, after all that was asked for before.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfBounds`] if there are not so many.
    pub fn read(&self, at: usize, values: &mut [T]) -> Result<(), CudaError> {
        let (len, start) = (size_of_val(values), values.as_mut_ptr().cast::<u8>());
        // SAFETY: an `Item` is numbers without gaps, and any bytes are some of them.
        let bytes = unsafe { slice::from_raw_parts_mut(start, len) };
        let at = at.checked_mul(size_of::<T>()).ok_or(CudaError::OutOfBounds)?;
        if bytes.is_empty() { Ok(()) } else { self.memory.read(at, bytes) }
    }

    /// Starts a copy of the first values of `from` to the card; nobody waits for it.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfBounds`] if there are not so many on either side.
    pub fn start_write(&mut self, from: &HostSource<'_, T>, len: usize) -> Result<(), CudaError> {
        self.memory.card.refuse_while_recording()?;
        let size = len.checked_mul(size_of::<T>()).ok_or(CudaError::OutOfBounds)?;
        if size == 0 {
            return Ok(());
        }
        from.copy.set(from.card.copies.get() + 1);
        from.card.copies.set(from.copy.get());
        // SAFETY: `HostSource::values_mut` waits for this copy before anybody writes there.
        unsafe { self.memory.start_write(0, &from.memory, 0..size) }
    }

    /// Copies a part to the same part of `to`, after all that was asked for before, and waits for it.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfBounds`] if one of them has no such part.
    pub fn read_to(&self, to: &mut HostTarget<'_, T>, part: Range<usize>) -> Result<(), CudaError> {
        // SAFETY: `to` is borrowed until `finish` returns.
        unsafe { self.start_read_to(to, part) }?;
        self.memory.card.finish()
    }

    /// Starts such a copy.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfBounds`] if one of them has no such part.
    ///
    /// # Safety
    ///
    /// Until [`Card::finish`] returns, `to` is neither read nor written, and it is not forgotten.
    pub(super) unsafe fn start_read_to(
        &self,
        to: &mut HostTarget<'_, T>,
        part: Range<usize>,
    ) -> Result<(), CudaError> {
        let bytes = |index: usize| index.checked_mul(size_of::<T>()).ok_or(CudaError::OutOfBounds);
        let part = bytes(part.start)?..bytes(part.end)?;
        self.memory.card.refuse_while_recording()?;
        if part.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller vouches for the time of the copy.
        unsafe { self.memory.start_read(part.start, &to.memory, part) }
    }

    /// Zeroes it.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    pub fn erase(&mut self) -> Result<(), CudaError> {
        self.memory.fill(0)
    }

    /// Where it lies.
    pub(super) fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Where it lies, as an argument of a launch on this card.
    ///
    /// # Panics
    ///
    /// Panics if it lies on another card.
    pub(super) fn pointer(&self, card: &Card<'_>) -> [u8; 8] {
        self.pointer_at(card, 0)
    }

    /// Where the value at an index lies.
    ///
    /// # Panics
    ///
    /// Panics if it is beyond the end, or lies on another card.
    pub(super) fn pointer_at(&self, card: &Card<'_>, index: usize) -> [u8; 8] {
        assert!(index <= self.len, "the value lies in the buffer");
        assert!(ptr::addr_eq(card, self.memory.card), "the buffer lies on the card that is asked");
        (self.memory.address() + (index * size_of::<T>()) as u64).to_ne_bytes()
    }

    /// Panics if it is too short for what a launch reads or writes there.
    pub(super) fn has(&self, len: usize) {
        assert!(len <= self.len, "the buffer has room for {len} values");
    }
}

/// An array of the host that the card copies from by itself; zeroed and given back when dropped.
pub struct HostSource<'c, T> {
    card: &'c Card<'c>,
    memory: Pinned<'c>,
    len: usize,
    /// The last copy from here, as the card counts them.
    copy: Cell<u64>,
    items: PhantomData<T>,
}

impl<T> fmt::Debug for HostSource<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostSource").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<'c, T: Item> HostSource<'c, T> {
    /// Allocates zeros.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoPinnedMemory`] if the host has none.
    pub fn new(card: &'c Card<'c>, len: usize) -> Result<Self, CudaError> {
        let memory = pin::<T>(card, len)?;
        Ok(Self { card, memory, len, copy: Cell::new(0), items: PhantomData })
    }

    /// Waits for copies from here that are under way, and returns the values to be changed.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card failed.
    pub fn values_mut(&mut self) -> Result<&mut [T], CudaError> {
        if self.copy.get() > self.card.copies_over.get() {
            self.card.finish()?;
        }
        let start = self.memory.as_mut_ptr().cast();
        // SAFETY: pinned memory starts on a page, holds `len` items, and any bytes are some of them.
        Ok(unsafe { slice::from_raw_parts_mut(start, self.len) })
    }
}

/// An array of the host that the card copies to by itself; zeroed and given back when dropped.
pub struct HostTarget<'c, T> {
    memory: Pinned<'c>,
    len: usize,
    items: PhantomData<T>,
}

impl<T> fmt::Debug for HostTarget<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostTarget").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<'c, T: Item> HostTarget<'c, T> {
    /// Allocates zeros.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoPinnedMemory`] if the host has none.
    pub fn new(card: &'c Card<'c>, len: usize) -> Result<Self, CudaError> {
        Ok(Self { memory: pin::<T>(card, len)?, len, items: PhantomData })
    }

    /// Returns the values.
    #[must_use]
    pub fn values(&self) -> &[T] {
        let start = self.memory.as_ptr().cast();
        // SAFETY: pinned memory starts on a page, holds `len` items, and any bytes are some of them.
        unsafe { slice::from_raw_parts(start, self.len) }
    }

    /// Returns the values to be changed.
    #[must_use]
    pub fn values_mut(&mut self) -> &mut [T] {
        let start = self.memory.as_mut_ptr().cast();
        // SAFETY: as above.
        unsafe { slice::from_raw_parts_mut(start, self.len) }
    }
}

fn pin<'c, T: Item>(card: &'c Card<'c>, len: usize) -> Result<Pinned<'c>, CudaError> {
    card.pin(len.checked_mul(size_of::<T>()).ok_or(CudaError::OutOfBounds)?)
}

/// No buffer, as an argument.
pub(super) const NULL: [u8; 8] = [0; 8];

/// A buffer or none, as an argument.
pub(super) fn maybe<T: Item>(card: &Card<'_>, buffer: Option<&Buffer<'_, T>>) -> [u8; 8] {
    buffer.map_or(NULL, |buffer| buffer.pointer(card))
}

/// A count, as an argument of 32 bits.
///
/// # Panics
///
/// Panics if it has more.
pub(super) fn int(value: usize) -> [u8; 4] {
    i32::try_from(value).expect("counts of a launch have 32 bits").to_ne_bytes()
}

/// A size, as an argument of 64 bits.
pub(super) fn size(value: usize) -> [u8; 8] {
    (value as u64).to_ne_bytes()
}

/// A dimension of a grid.
///
/// # Panics
///
/// Panics if it has more than 32 bits.
pub(super) fn dim(value: usize) -> u32 {
    u32::try_from(value).expect("dimensions of a grid have 32 bits")
}

/// Most bytes of a struct: `Products`, `Heads`.
const STRUCT_MAX: usize = 104;

/// A struct as C lays it out: pointers first, then numbers of 32 bits, filled up to whole pointers.
pub(super) struct Struct {
    bytes: [u8; STRUCT_MAX],
    len: usize,
}

impl Struct {
    pub(super) fn new() -> Self {
        Self { bytes: [0; STRUCT_MAX], len: 0 }
    }

    /// Adds the bytes of a member.
    pub(super) fn with(mut self, member: &[u8]) -> Self {
        assert!(self.len.is_multiple_of(member.len().clamp(1, 8)), "members are aligned");
        self.bytes[self.len..][..member.len()].copy_from_slice(member);
        self.len += member.len();
        self
    }

    /// Returns the whole struct.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len.next_multiple_of(8)]
    }
}
