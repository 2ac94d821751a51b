//! Memory that is shared by sealed memfds only, and that no core dump shows.

use std::cmp::Ordering;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::slice;

use memmap2::{Mmap, MmapOptions};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MlockAllFlags, ProtFlags, mlockall, mmap_anonymous, munmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use super::huge::{Access, Mapping};

/// What the length of a segment is a multiple of, in bytes: every CPU's page.
const SEGMENT_STEP_BYTES: usize = 64 << 10;
/// `MFD_NOEXEC_SEAL`, unknown before Linux 6.3.
const MFD_NOEXEC_SEAL: u32 = 0x8;

/// The seals without which a memfd of somebody else is not read.
fn seals_required() -> SealFlag {
    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// A memfd that nobody has mapped.
#[derive(Debug)]
pub struct EmptyMemory {
    fd: OwnedFd,
}

impl EmptyMemory {
    /// Makes one. `name` is seen in `/proc` alone.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn new(name: &str) -> Result<Self, Errno> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let noexec = MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL);
        let fd = match memfd_create(name, flags | noexec) {
            Err(Errno::EINVAL) => memfd_create(name, flags)?,
            made => made?,
        };
        Ok(Self { fd })
    }

    /// Gives it `len` zeroed bytes, to be written.
    ///
    /// # Errors
    ///
    /// What the kernel says; `EINVAL` for no bytes.
    pub fn grow(self, len: usize) -> Result<UnsealedMemory, Errno> {
        some_bytes(len)?;
        let fd = self.fd;
        ftruncate(&fd, len.try_into().map_err(|_| Errno::EFBIG)?)?;
        // SAFETY: the memfd was made here, so nothing else maps, writes or truncates it.
        let map = unsafe { Mapping::new(fd.as_fd(), len, Access::Write)? };
        Ok(UnsealedMemory { fd, map })
    }
}

/// A memfd being written; nobody else has it until it is sealed.
#[derive(Debug)]
pub struct UnsealedMemory {
    fd: OwnedFd,
    map: Mapping,
}

impl UnsealedMemory {
    /// Makes zeroed memory of `len` bytes. `name` is seen in `/proc` alone.
    ///
    /// # Errors
    ///
    /// What the kernel says; `EINVAL` for no bytes.
    pub fn new(name: &str, len: usize) -> Result<Self, Errno> {
        EmptyMemory::new(name)?.grow(len)
    }

    /// Takes huge pages for what will be written to `range`, where the kernel has some; returns whether it has.
    pub fn collapse(&self, range: Range<usize>) -> bool {
        self.map.collapse(range)
    }

    /// Unmaps and seals the memory: from here on nobody can change it.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn seal(self) -> Result<OwnedFd, Errno> {
        let len = self.map.len();
        self.seal_first(len)
    }

    /// Cuts the memory to its first `len` bytes, unmaps and seals it.
    ///
    /// # Errors
    ///
    /// What the kernel says; `EINVAL` for more bytes than there are.
    pub fn seal_first(self, len: usize) -> Result<OwnedFd, Errno> {
        match len.cmp(&self.map.len()) {
            Ordering::Less => ftruncate(&self.fd, len.try_into().map_err(|_| Errno::EFBIG)?)?,
            Ordering::Equal => {}
            Ordering::Greater => return Err(Errno::EINVAL),
        }
        drop(self.map);
        fcntl(&self.fd, FcntlArg::F_ADD_SEALS(seals_required()))?;
        Ok(self.fd)
    }
}

impl Deref for UnsealedMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl DerefMut for UnsealedMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.map.bytes_mut()
    }
}

impl AsMut<[u8]> for UnsealedMemory {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// A sealed memfd, mapped read-only.
#[derive(Debug)]
pub struct SealedMemory {
    map: Mapping,
}

impl SealedMemory {
    /// Checks the seals and maps the whole memfd.
    ///
    /// # Errors
    ///
    /// `EPERM` when a seal is missing, `EINVAL` when it is empty or no memfd.
    pub fn open(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let len = sealed_len(fd)?;
        // SAFETY: the seals checked above keep every process from writing or shrinking it.
        let map = unsafe { Mapping::new(fd, len, Access::Read)? };
        map.hide_from_dumps()?;
        Ok(Self { map })
    }
}

impl AsRef<[u8]> for SealedMemory {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Deref for SealedMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// A sealed memfd that is looked at once, from end to end: mapped as it lies, all pages at a time.
#[derive(Debug)]
pub struct SealedSegment {
    map: Mmap,
}

impl SealedSegment {
    /// Checks the seals and maps the whole memfd, if it is no longer than `len_max`: a hole in it takes memory
    /// as it is mapped.
    ///
    /// # Errors
    ///
    /// `EPERM` when a seal is missing, `EINVAL` when it is empty or no memfd, `EFBIG` when it is too long.
    pub fn open(fd: BorrowedFd<'_>, len_max: usize) -> Result<Self, Errno> {
        let len = sealed_len(fd)?;
        if len > len_max {
            return Err(Errno::EFBIG);
        }
        // SAFETY: the seals checked above keep every process from writing or shrinking it.
        let map =
            unsafe { MmapOptions::new().len(len).populate().map_copy_read_only(fd.as_raw_fd()) };
        let errno =
            |error: std::io::Error| error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw);
        Ok(Self { map: map.map_err(errno)? })
    }
}

impl Deref for SealedSegment {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// Sealed memfds, one behind the other in one range of addresses, read-only.
///
/// All but the last are of one length, so that a file that came in segments reads as one slice.
#[derive(Debug)]
pub struct SealedSegments {
    /// The first byte of the whole range, which reads as zeros where no segment is.
    start: NonNull<u8>,
    reserved_len: usize,
    segment_len: usize,
    len: usize,
    released: usize,
}

impl SealedSegments {
    /// Sets addresses aside for `len_max` bytes in segments of `segment_len`.
    ///
    /// # Errors
    ///
    /// What the kernel says; `EINVAL` for no bytes, or segments that are no whole pages.
    pub fn reserve(len_max: usize, segment_len: usize) -> Result<Self, Errno> {
        some_bytes(len_max)?;
        some_bytes(segment_len)?;
        if !segment_len.is_multiple_of(SEGMENT_STEP_BYTES) {
            return Err(Errno::EINVAL);
        }
        let reserved = len_max.checked_next_multiple_of(segment_len).ok_or(Errno::EFBIG)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: without an address, the kernel takes one where nothing is.
        let start = unsafe { libc::mmap(ptr::null_mut(), reserved, libc::PROT_READ, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let start = NonNull::new(start.cast()).ok_or(Errno::ENOMEM)?;
        Ok(Self { start, reserved_len: reserved, segment_len, len: 0, released: 0 })
    }

    /// Checks the seals of a memfd and maps it behind the last one.
    ///
    /// # Errors
    ///
    /// `EPERM` when a seal is missing; `EINVAL` when it is empty, too long, no memfd, or comes after one that
    /// was shorter than a segment; `EFBIG` when there is no room left.
    pub fn append(&mut self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let len = sealed_len(fd)?;
        if len > self.segment_len || !self.len.is_multiple_of(self.segment_len) {
            return Err(Errno::EINVAL);
        }
        if self.len == self.reserved_len {
            return Err(Errno::EFBIG);
        }
        self.replace(self.len, len, Some(fd))?;
        self.len += len;
        Ok(())
    }

    /// Gives the segments that end at or before `end` back to the kernel; they read as zeros afterwards.
    ///
    /// # Errors
    ///
    /// What the kernel says; `EINVAL` for an end outside.
    pub fn release_to(&mut self, end: usize) -> Result<(), Errno> {
        if end > self.len {
            return Err(Errno::EINVAL);
        }
        let end = if end == self.len { end } else { end / self.segment_len * self.segment_len };
        let released = end.next_multiple_of(self.segment_len);
        if released <= self.released {
            return Ok(());
        }
        self.replace(self.released, released - self.released, None)?;
        self.released = released;
        Ok(())
    }

    /// Puts a memfd of unchanging content, or zeros, in the place of a part of the range.
    fn replace(&mut self, at: usize, len: usize, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        if at.checked_add(len).is_none_or(|end| end > self.reserved_len) {
            return Err(Errno::EINVAL);
        }
        // SAFETY: `at` is inside the range that starts there (checked above).
        let place = unsafe { self.start.add(at) }.as_ptr().cast();
        let anonymous = if fd.is_none() { libc::MAP_ANONYMOUS } else { 0 };
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | anonymous;
        let raw = fd.map_or(-1, |fd| fd.as_raw_fd());
        // SAFETY: the part is inside the range (checked above), which this value owns, and `&mut self` says
        // that nobody holds a view of it.
        let mapped = unsafe { libc::mmap(place, len, libc::PROT_READ, flags, raw, 0) };
        if mapped == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
    }
}

impl Drop for SealedSegments {
    fn drop(&mut self) {
        // SAFETY: the range was mapped here as a whole, and its owner ends.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.reserved_len) };
    }
}

impl Deref for SealedSegments {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is mapped for reading while this value lives, up to `len` at least, and the seals
        // that `append` checks keep every process from changing it.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

/// Keeps every page of this process that is in memory there, and each further one from its first use on.
///
/// # Errors
///
/// `ENOMEM` when more is mapped than may be locked, `EPERM` when nothing may.
pub fn lock_all() -> Result<(), Errno> {
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE;
    mlockall(flags | MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT))
}

/// Has the C library keep what its heaps have grown to. Before it gives a part of a thread's heap back it
/// opens a file of `/proc`, which no filter of a sealed process lets through. What is large has a mapping of
/// its own and goes back all the same.
///
/// # Errors
///
/// `EINVAL` if the library does not know the setting.
pub fn keep_heaps() -> Result<(), Errno> {
    // SAFETY: the call takes two numbers.
    let is_set = unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX) } == 1;
    if is_set { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Returns how many bytes the C library's heap holds, in use or not.
#[must_use]
pub fn heap_len() -> u64 {
    // SAFETY: the call takes nothing and fills a structure of integers.
    let info = unsafe { libc::mallinfo2() };
    (info.arena as u64).saturating_add(info.hblkhd as u64)
}

/// Returns whether this process would be given one page more of private memory now; it keeps none.
///
/// # Errors
///
/// What the kernel says, other than that there is no more.
pub fn would_fit() -> Result<bool, Errno> {
    let len = NonZeroUsize::MIN;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at a place that the kernel chooses touches nothing of this program.
    let mapped = unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_PRIVATE) };
    match mapped {
        Ok(start) => {
            // SAFETY: the page was just mapped, and nobody else knows of it.
            unsafe { munmap(start, len.get()) }.map(|()| true)
        }
        Err(Errno::ENOMEM) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The length of a memfd that nobody can change any more.
fn sealed_len(fd: BorrowedFd<'_>) -> Result<usize, Errno> {
    let seals = SealFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GET_SEALS)?);
    if !seals.contains(seals_required()) {
        return Err(Errno::EPERM);
    }
    let len = usize::try_from(fstat(fd)?.st_size).map_err(|_| Errno::EINVAL)?;
    some_bytes(len)?;
    Ok(len)
}

/// The kernel maps no empty range.
fn some_bytes(len: usize) -> Result<(), Errno> {
    if len == 0 { Err(Errno::EINVAL) } else { Ok(()) }
}

/// Returns how many bytes a descriptor's file holds.
///
/// # Errors
///
/// What the kernel says.
pub fn file_len(fd: impl AsFd) -> Result<u64, Errno> {
    u64::try_from(fstat(fd)?.st_size).map_err(|_| Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use nix::unistd::write;

    use super::*;

    #[test]
    fn sealed_memory_reads_back_and_cannot_change() {
        let mut memory = UnsealedMemory::new("test", 200_000).unwrap();
        memory[199_999] = 7;
        let fd = memory.seal().unwrap();
        let sealed = SealedMemory::open(fd.as_fd()).unwrap();
        assert_eq!((sealed.len(), sealed[199_999]), (200_000, 7));
        assert_eq!(write(&fd, b"x").unwrap_err(), Errno::EPERM);
        assert_eq!(ftruncate(&fd, 1).unwrap_err(), Errno::EPERM);
    }

    #[test]
    fn unsealed_memory_and_plain_files_are_not_mapped() {
        let memory = UnsealedMemory::new("test", 4096).unwrap();
        assert_eq!(SealedMemory::open(memory.fd.as_fd()).unwrap_err(), Errno::EPERM);
        let file = std::fs::File::open("Cargo.toml").unwrap();
        assert_eq!(SealedMemory::open(file.as_fd()).unwrap_err(), Errno::EINVAL);
        assert_eq!(UnsealedMemory::new("test", 0).unwrap_err(), Errno::EINVAL);
        assert_eq!(memory.seal_first(4097).unwrap_err(), Errno::EINVAL);
    }

    /// The seal that lets a mapping go on writing is not enough, and the one that does not is refused beside one.
    #[test]
    fn memory_that_somebody_can_still_write_is_not_mapped() {
        let mut memory = UnsealedMemory::new("test", SEGMENT_STEP_BYTES).unwrap();
        assert_eq!(fcntl(&memory.fd, FcntlArg::F_ADD_SEALS(seals_required())), Err(Errno::EBUSY));
        let others = seals_required() - SealFlag::F_SEAL_WRITE;
        let seals = others | SealFlag::from_bits_retain(libc::F_SEAL_FUTURE_WRITE);
        fcntl(&memory.fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        memory[0] = 7;
        let fd = memory.fd.as_fd();
        assert_eq!(SealedMemory::open(fd).unwrap_err(), Errno::EPERM);
        assert_eq!(SealedSegment::open(fd, SEGMENT_STEP_BYTES).unwrap_err(), Errno::EPERM);
        let mut segments = SealedSegments::reserve(SEGMENT_STEP_BYTES, SEGMENT_STEP_BYTES).unwrap();
        assert_eq!(segments.append(fd), Err(Errno::EPERM));
        let memory = UnsealedMemory::new("test", SEGMENT_STEP_BYTES).unwrap();
        let sealed = memory.seal().unwrap();
        segments.append(sealed.as_fd()).unwrap();
    }

    #[test]
    fn a_segment_that_is_too_long_is_refused_before_it_takes_memory() {
        let len = 3 * SEGMENT_STEP_BYTES;
        let fd = UnsealedMemory::new("test", len).unwrap().seal().unwrap();
        let taken = || fstat(&fd).unwrap().st_blocks;
        assert_eq!(SealedSegment::open(fd.as_fd(), len - 1).unwrap_err(), Errno::EFBIG);
        assert_eq!(taken(), 0);
        assert_eq!(SealedSegment::open(fd.as_fd(), len).unwrap().len(), len);
        assert!(taken() > 0, "the control: its holes take memory where it is mapped");
    }

    #[test]
    fn segments_read_as_one_and_what_is_released_as_zeros() {
        let step = SEGMENT_STEP_BYTES;
        let segment = |len: usize, byte: u8| {
            let mut memory = UnsealedMemory::new("test", len + 1).unwrap();
            memory.fill(byte);
            memory.seal_first(len).unwrap()
        };
        let mut segments = SealedSegments::reserve(2 * step + 7, step).unwrap();
        let open = UnsealedMemory::new("test", step).unwrap();
        assert_eq!(segments.append(open.fd.as_fd()), Err(Errno::EPERM));
        assert_eq!(segments.append(segment(step + 1, 9).as_fd()), Err(Errno::EINVAL));
        for (len, byte) in [(step, 1), (step, 2), (7, 3)] {
            segments.append(segment(len, byte).as_fd()).unwrap();
        }
        // Behind a shorter one there is none, and here no room either.
        assert_eq!(segments.append(segment(7, 4).as_fd()), Err(Errno::EINVAL));
        assert_eq!(segments.len(), 2 * step + 7);
        let ends = |segments: &SealedSegments| {
            [0, step - 1, step, 2 * step, 2 * step + 6].map(|at| segments[at])
        };
        assert_eq!(ends(&segments), [1, 1, 2, 3, 3]);
        segments.release_to(2 * step - 1).unwrap();
        assert_eq!(ends(&segments), [0, 0, 2, 3, 3]);
        segments.release_to(2 * step + 7).unwrap();
        assert_eq!(ends(&segments), [0; 5]);
        assert_eq!(segments.release_to(2 * step + 8), Err(Errno::EINVAL));

        let mut full = SealedSegments::reserve(step, step).unwrap();
        full.append(segment(step, 1).as_fd()).unwrap();
        assert_eq!(full.append(segment(step, 1).as_fd()), Err(Errno::EFBIG));
        assert_eq!(SealedSegments::reserve(0, step).unwrap_err(), Errno::EINVAL);
        assert_eq!(SealedSegments::reserve(step, 4096).unwrap_err(), Errno::EINVAL);
    }
}
