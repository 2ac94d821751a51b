//! How much memory a sealed process may hold: a bound that Cloister sets, whatever the machine allows.
//!
//! `RLIMIT_DATA` counts private memory that can be written, touched or not; shared memory, stacks that grow
//! and memfds, which it does not count, no filter lets a sealed process make (the loader's one memfd has its
//! own bound, `fsize`). `RLIMIT_AS` counts every address, so that page tables cannot grow without end either:
//! they take at most a 512th of it. It is the bound that always holds: the kernel lets reserved addresses
//! become data although there is too much of that, where their number is near its own bound. What is over
//! the bounds is refused, and a process that is refused memory ends and is started again.
//!
//! Where swap is to see none of it, a process locks its memory before it has a text: what it holds, and each
//! page that it takes later. Locked is what a page holds from when it is first touched, so that nothing is
//! taken ahead of its use; the kernel counts all addresses, so the limit on locked memory is that on those.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{AtStep, Error, Step};
use crate::sys::memory::{heap_len, lock_all};

/// Stack of a thread, with what the C library keeps beside it, in bytes.
const STACK_LEN_BYTES: u64 = 3 << 20;
/// Addresses that the C library sets aside for a thread's own heap, in bytes: twice, to align them.
const ARENA_LEN_BYTES: u64 = 128 << 20;
/// The program's own data, and the heap's gaps, in bytes.
const SLACK_LEN_BYTES: u64 = 32 << 20;

/// What a process holds and is going to hold.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Threads that exist, the first one included.
    pub threads: usize,
    /// Bytes of files and memfds that are mapped, or will be.
    pub mapped_len_bytes: u64,
    /// Bytes that it takes from here on, at most, beside what is on its heap now.
    pub more_len_bytes: u64,
    /// Bytes of the memfd that it writes; none for a process that writes no file at all.
    pub written_len_bytes: Option<u64>,
}

/// Bounds the memory of this process.
pub(super) fn bound(memory: Memory) -> Result<(), Error> {
    let Memory { mapped_len_bytes, more_len_bytes, written_len_bytes, .. } = memory;
    let threads = memory.threads as u64;
    let data = heap_len()
        .saturating_add(threads.saturating_mul(STACK_LEN_BYTES))
        .saturating_add(more_len_bytes)
        .saturating_add(SLACK_LEN_BYTES);
    let addresses = data
        .saturating_add(mapped_len_bytes)
        .saturating_add(threads.saturating_mul(ARENA_LEN_BYTES))
        .saturating_add(SLACK_LEN_BYTES);
    if let Some(len) = written_len_bytes {
        lower(Resource::RLIMIT_FSIZE, len)?;
    }
    lower(Resource::RLIMIT_DATA, data)?;
    lower(Resource::RLIMIT_AS, addresses)?;
    // The spawner leaves a limit to those that are to lock, and to no other.
    let (_, lockable) = getrlimit(Resource::RLIMIT_MEMLOCK).at(Step::Lock)?;
    if lockable == 0 {
        return Ok(());
    }
    lower(Resource::RLIMIT_MEMLOCK, addresses)?;
    lock()
}

/// Locks this process's memory, now and from here on.
pub(super) fn lock() -> Result<(), Error> {
    lock_all().at(Step::Lock)
}

/// Sets a limit, unless a lower one is set already.
fn lower(resource: Resource, value: u64) -> Result<(), Error> {
    let (_, hard) = getrlimit(resource).at(Step::Memory)?;
    let value = value.min(hard);
    setrlimit(resource, value, value).at(Step::Memory)
}
