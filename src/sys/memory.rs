//! Memory that is shared by sealed memfds only, and private memory that no core dump shows.

use std::ops::{Deref, DerefMut, Range};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use memmap2::{Advice, MmapMut};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use super::huge::{Access, Mapping};

/// The page size that ranges are released by, in bytes; a multiple of every CPU's page.
const RELEASE_STEP_BYTES: usize = 64 << 10;
/// `MADV_DONTNEED` of memory that may be locked.
const MADV_DONTNEED_LOCKED: i32 = 24;
/// `MFD_NOEXEC_SEAL`, unknown before Linux 6.3.
const MFD_NOEXEC_SEAL: u32 = 0x8;

/// The seals without which a memfd of somebody else is not read.
fn seals_required() -> SealFlag {
    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// A memfd without a byte.
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

    /// Takes huge pages for what will be written to `range`, where the kernel has some.
    pub fn collapse(&self, range: Range<usize>) {
        self.map.collapse(range);
    }

    /// Unmaps and seals the memory: from here on nobody can change it.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn seal(self) -> Result<OwnedFd, Errno> {
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
        let seals = SealFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GET_SEALS)?);
        if !seals.contains(seals_required()) {
            return Err(Errno::EPERM);
        }
        let len = usize::try_from(fstat(fd)?.st_size).map_err(|_| Errno::EINVAL)?;
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

/// Zeroed anonymous memory that no core dump and no child shows.
#[derive(Debug)]
pub struct PrivateMemory {
    map: MmapMut,
}

impl PrivateMemory {
    /// Reserves `len` bytes; pages are taken when they are first written.
    ///
    /// # Errors
    ///
    /// What the kernel says; `EINVAL` for no bytes.
    pub fn new(len: usize) -> Result<Self, Errno> {
        some_bytes(len)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let map = MmapMut::map_anon(len).map_err(|error| errno(&error))?;
        map.advise(Advice::DontDump).map_err(|error| errno(&error))?;
        map.advise(Advice::DontFork).map_err(|error| errno(&error))?;
        Ok(Self { map })
    }

    /// Gives the whole pages inside `range` back to the kernel; they read as zeros afterwards.
    ///
    /// # Errors
    ///
    /// What the kernel says; `EINVAL` for a range outside.
    pub fn release(&mut self, range: Range<usize>) -> Result<(), Errno> {
        if range.end > self.map.len() {
            return Err(Errno::EINVAL);
        }
        let start = range.start.next_multiple_of(RELEASE_STEP_BYTES);
        let end = match range.end {
            end if end == self.map.len() => end,
            end => end / RELEASE_STEP_BYTES * RELEASE_STEP_BYTES,
        };
        if start >= end {
            return Ok(());
        }
        let (at, len) = (self.map[start..end].as_mut_ptr(), end - start);
        // SAFETY: `&mut self` says that nobody holds a view of these bytes, and anonymous memory
        // given back reads as zeros, which are bytes.
        let released = unsafe { libc::madvise(at.cast(), len, MADV_DONTNEED_LOCKED) };
        Errno::result(released).map(drop)
    }
}

impl Deref for PrivateMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl DerefMut for PrivateMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map
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

/// Returns how many bytes the C library's heap holds, in use or not.
#[must_use]
pub fn heap_len() -> u64 {
    // SAFETY: the call takes nothing and fills a structure of integers.
    let info = unsafe { libc::mallinfo2() };
    (info.arena as u64).saturating_add(info.hblkhd as u64)
}

/// The kernel maps no empty range; memmap2 would hide that by a page of its own.
fn some_bytes(len: usize) -> Result<(), Errno> {
    if len == 0 { Err(Errno::EINVAL) } else { Ok(()) }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
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
    use super::*;

    #[test]
    fn sealed_memory_reads_back_and_cannot_change() {
        let mut memory = UnsealedMemory::new("test", 200_000).unwrap();
        memory[199_999] = 7;
        let fd = memory.seal().unwrap();
        let sealed = SealedMemory::open(fd.as_fd()).unwrap();
        assert_eq!((sealed.len(), sealed[199_999]), (200_000, 7));
        assert_eq!(nix::unistd::write(&fd, b"x").unwrap_err(), Errno::EPERM);
        assert_eq!(ftruncate(&fd, 1).unwrap_err(), Errno::EPERM);
    }

    #[test]
    fn unsealed_memory_and_plain_files_are_not_mapped() {
        let memory = UnsealedMemory::new("test", 4096).unwrap();
        assert_eq!(SealedMemory::open(memory.fd.as_fd()).unwrap_err(), Errno::EPERM);
        let file = std::fs::File::open("Cargo.toml").unwrap();
        assert_eq!(SealedMemory::open(file.as_fd()).unwrap_err(), Errno::EINVAL);
        assert_eq!(UnsealedMemory::new("test", 0).unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn released_pages_read_as_zeros_and_others_stay() {
        let mut memory = PrivateMemory::new(300_000).unwrap();
        memory.fill(1);
        memory.release(10..150_000).unwrap();
        assert_eq!((memory[10], memory[65_535]), (1, 1));
        assert_eq!((memory[65_536], memory[131_071]), (0, 0));
        assert_eq!((memory[131_072], memory[299_999]), (1, 1));
        memory.release(200_000..300_000).unwrap();
        assert_eq!((memory[200_000], memory[299_999]), (1, 0));
        assert_eq!(memory.release(0..300_001).unwrap_err(), Errno::EINVAL);
    }
}
