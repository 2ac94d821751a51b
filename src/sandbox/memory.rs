//! How much memory a sealed process may hold: a bound that Cloister sets, whatever the machine allows.
//!
//! `RLIMIT_DATA` counts private memory that can be written, touched or not; anonymous shared memory and
//! stacks that grow, which it does not count, no filter lets a sealed process make. Nor does it count memfds:
//! the loader has one and the opener makes some, each of `fsize` at most, no more than it has descriptors,
//! and what of them is mapped counts as addresses. `RLIMIT_AS` counts every address, so that page tables
//! cannot grow without end either: they take at most a 512th of it. It is the bound that always holds: the
//! kernel lets reserved addresses become data although there is too much of that, where their number is near
//! its own bound. What is over the bounds is refused, and a process that is refused memory ends and is
//! started again.
//!
//! A driver holds memory that nobody here has counted, and addresses by the terabyte. So the bounds of a worker with
//! layers on a card are what the process holds when it is sealed, and what may come.
//!
//! Where swap is to see none of it, a process locks its memory before it has a text: what it holds, and each
//! page that it takes later. Locked is what a page holds from when it is first touched, so that nothing is
//! taken ahead of its use; the kernel counts all addresses, so the limit on locked memory is that on those.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{AtStep, Error, Role, Step};
use crate::sys::memory::{heap_len, lock_all, would_fit};

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
pub(super) fn bound(memory: Memory, role: Role) -> Result<(), Error> {
    let Memory { mapped_len_bytes, more_len_bytes, written_len_bytes, .. } = memory;
    let threads = memory.threads as u64;
    let more = more_len_bytes.saturating_add(SLACK_LEN_BYTES);
    let arenas = threads.saturating_mul(ARENA_LEN_BYTES).saturating_add(SLACK_LEN_BYTES);
    let (data, addresses) = if role == Role::WorkerGpu {
        let (data, addresses) = (held(Resource::RLIMIT_DATA)?, held(Resource::RLIMIT_AS)?);
        (data.saturating_add(more), addresses.saturating_add(more).saturating_add(arenas))
    } else {
        let stacks = threads.saturating_mul(STACK_LEN_BYTES);
        let data = heap_len().saturating_add(stacks).saturating_add(more);
        (data, data.saturating_add(mapped_len_bytes).saturating_add(arenas))
    };
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

/// Returns how much the kernel counts against a limit: the least limit under which one page more is let through.
/// There is no file in which this process could read it. Other threads must not take memory meanwhile.
fn held(resource: Resource) -> Result<u64, Error> {
    let (soft, hard) = getrlimit(resource).at(Step::Memory)?;
    let (mut low, mut high) = (0_u64, 1 << 47);
    while low < high {
        let middle = low + (high - low) / 2;
        setrlimit(resource, middle.min(hard), hard).at(Step::Memory)?;
        if would_fit().at(Step::Memory)? { high = middle } else { low = middle + 1 }
    }
    setrlimit(resource, soft, hard).at(Step::Memory)?;
    Ok(low)
}

/// Sets a limit, unless a lower one is set already.
fn lower(resource: Resource, value: u64) -> Result<(), Error> {
    let (_, hard) = getrlimit(resource).at(Step::Memory)?;
    let value = value.min(hard);
    setrlimit(resource, value, value).at(Step::Memory)
}
