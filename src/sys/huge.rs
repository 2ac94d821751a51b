//! Mappings of memfds at addresses where huge pages may stand, and pages that become huge ones.
//!
//! A huge page needs one translation of an address where small ones need 512, and weights are read from end to
//! end for each token. Nothing fails for want of huge pages, and no byte changes.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::slice;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// The huge page of x86_64, and of aarch64 where a page is 4 KiB, in bytes.
const HUGE_LEN_BYTES: usize = 2 << 20;

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// A mapped memfd.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: NonZeroUsize,
    access: Access,
}

// SAFETY: a mapping is memory that no thread owns more than another.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference its bytes are read alone.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a memfd, at a multiple of a huge page's length where the kernel lets us.
    ///
    /// # Errors
    ///
    /// What the kernel says; `EINVAL` for no bytes.
    ///
    /// # Safety
    ///
    /// The memfd is at least `len` bytes long and stays so; while the mapping is there, nobody else writes it,
    /// and with [`Access::Write`] nobody else reads it either.
    pub(super) unsafe fn new(
        fd: BorrowedFd<'_>,
        len: usize,
        access: Access,
    ) -> Result<Self, Errno> {
        let len = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        let (protection, flags) = match access {
            // A private read-only mapping shares the same pages; a shared one of a sealed memfd is refused before
            // Linux 6.7.
            Access::Read => (ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE),
            Access::Write => (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED),
        };
        // SAFETY: the address is a wish, so that no other mapping is replaced.
        let start = unsafe { mmap(free_place(len), len, protection, flags, fd, 0)? };
        Ok(Self { start: start.cast(), len, access })
    }

    /// Keeps the mapping out of core dumps.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn hide_from_dumps(&self) -> Result<(), Errno> {
        // SAFETY: the range is this mapping, and the advice changes no byte of it.
        unsafe { madvise(self.start.cast(), self.len.get(), MmapAdvise::MADV_DONTDUMP) }
    }

    /// Makes the pages of `range`, and those beside them as far as a huge page reaches, huge ones where the kernel
    /// can: from Linux 6.1 on, whatever its settings for shared memory say. Returns whether they are.
    pub(super) fn collapse(&self, range: Range<usize>) -> bool {
        let start = range.start / HUGE_LEN_BYTES * HUGE_LEN_BYTES;
        let end = range.end.min(self.len.get()).next_multiple_of(HUGE_LEN_BYTES);
        // The last bytes are not a whole huge page.
        let end = end.min(self.len.get() / HUGE_LEN_BYTES * HUGE_LEN_BYTES);
        if start >= end {
            return false;
        }
        let pages = &self[start..end];
        for first in pages.iter().step_by(HUGE_LEN_BYTES) {
            // The kernel makes nothing of nothing: one page must be there.
            std::hint::black_box(*first);
        }
        let start = pages.as_ptr().cast_mut().cast();
        // SAFETY: the range is inside this mapping, and the advice changes no byte of it.
        unsafe { libc::madvise(start, pages.len(), libc::MADV_COLLAPSE) == 0 }
    }

    /// Returns the bytes, to be written.
    ///
    /// # Panics
    ///
    /// Panics unless it was mapped with [`Access::Write`].
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        assert_eq!(self.access, Access::Write, "a mapping is written that was made for it");
        // SAFETY: the mapping may be written, and `&mut self` is the only way to it.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len.get()) }
    }
}

impl std::ops::Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped and readable until the mapping is dropped.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len.get()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and no reference to it outlives the value.
        let unmapped = unsafe { munmap(self.start.cast(), self.len.get()) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can be unmapped");
    }
}

/// Returns an address, a multiple of a huge page's length, behind which `len` bytes are free now.
fn free_place(len: NonZeroUsize) -> Option<NonZeroUsize> {
    let room = len.checked_add(HUGE_LEN_BYTES)?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: the kernel picks the place, so that no other mapping is replaced.
    let place = unsafe { mmap_anonymous(None, room, ProtFlags::PROT_NONE, flags).ok()? };
    // SAFETY: it was mapped the line before, and nobody has its address.
    unsafe { munmap(place, room.get()).ok()? };
    NonZeroUsize::new(place.addr().get().next_multiple_of(HUGE_LEN_BYTES))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd as _, OwnedFd};

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    /// Some more than two huge pages.
    const LEN: usize = HUGE_LEN_BYTES * 2 + 100_000;

    fn memfd(len: usize) -> OwnedFd {
        let fd = memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&fd, len.try_into().unwrap()).unwrap();
        fd
    }

    #[test]
    fn pages_become_huge_and_keep_their_bytes() {
        let fd = memfd(LEN);
        // SAFETY: the memfd is this test's, and its length stays.
        let mut mapping = unsafe { Mapping::new(fd.as_fd(), LEN, Access::Write).unwrap() };
        assert_eq!(mapping.as_ptr().addr() % HUGE_LEN_BYTES, 0);
        mapping.bytes_mut()[HUGE_LEN_BYTES..].fill(7);
        mapping.collapse(100..HUGE_LEN_BYTES + 1);
        mapping.collapse(LEN - 1..LEN);
        mapping.collapse(0..LEN);
        assert!(mapping[..HUGE_LEN_BYTES].iter().all(|&byte| byte == 0));
        assert!(mapping[HUGE_LEN_BYTES..].iter().all(|&byte| byte == 7));
        drop(mapping);
        // SAFETY: the memfd is this test's, and its length stays.
        let mapping = unsafe { Mapping::new(fd.as_fd(), LEN, Access::Read).unwrap() };
        mapping.hide_from_dumps().unwrap();
        assert_eq!((mapping[0], mapping[HUGE_LEN_BYTES], mapping.len()), (0, 7, LEN));
        let field = |name: &str| {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let start = format!("{:x}-", mapping.as_ptr().addr());
            let mut fields = maps.lines().skip_while(|line| !line.starts_with(&start)).skip(1);
            fields.find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
        };
        assert!(field("VmFlags:").split(' ').any(|flag| flag == "dd"), "no core dump has it");
        // None where the kernel has none to give.
        let huge: usize = field("ShmemPmdMapped:").trim_end_matches(" kB").parse().unwrap();
        assert!(huge.is_multiple_of(2048) && huge <= 4096, "{huge} KiB");
    }

    #[test]
    #[should_panic(expected = "a mapping is written that was made for it")]
    fn a_mapping_to_read_is_not_written() {
        let fd = memfd(4096);
        // SAFETY: the memfd is this test's, and its length stays.
        let mut mapping = unsafe { Mapping::new(fd.as_fd(), 4096, Access::Read).unwrap() };
        mapping.bytes_mut()[0] = 1;
    }
}
