//! Copies of this process, while it has one thread: a lock that another thread holds would stay
//! locked in the copy for ever.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Pid;

use super::process::{exit_now, thread_count};

/// Runs `child` in a copy of this process inside new namespaces; returns its number and pidfd.
///
/// The copy has the standard descriptors and those of `keep`, no other. It ends with the code that
/// `child` returns and never comes back into the caller.
///
/// # Errors
///
/// `EDEADLK` when this process has more than one thread; what `clone` says.
pub fn fork_into(
    namespaces: CloneFlags,
    keep: &[BorrowedFd<'_>],
    child: impl FnOnce() -> ExitStatus,
) -> Result<(Pid, OwnedFd), Errno> {
    if thread_count()? != 1 {
        return Err(Errno::EDEADLK);
    }
    let mut pidfd: RawFd = -1;
    // Not `clone3`, whose flags no filter sees.
    let flags = libc::c_long::from(namespaces.bits() | libc::CLONE_PIDFD | libc::SIGCHLD);
    // SAFETY: without `CLONE_VM` the child has its own copy of all memory, this process has one
    // thread (checked above), and `pidfd` outlives the call.
    let code = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    let pid = i32::try_from(Errno::result(code)?).map_err(|_| Errno::EOVERFLOW)?;
    if pid == 0 {
        let guard = NeverBack;
        let ExitStatus(code) = match close_all_but(keep) {
            Ok(()) => child(),
            Err(_) => ExitStatus::FAILURE,
        };
        std::mem::forget(guard);
        exit_now(code);
    }
    // SAFETY: the kernel just made this descriptor for us, close-on-exec.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((Pid::from_raw(pid), pidfd))
}

/// Closes what the copy has no use for; the copies of its owners never run.
fn close_all_but(keep: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut first = libc::STDERR_FILENO.cast_unsigned() + 1;
    for number in kept.into_iter().filter(|&number| number > 2) {
        if number > first {
            close_range(first, number - 1)?;
        }
        first = number + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: only in the copy, whose child closure uses the kept descriptors alone, by borrow.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Ends the copy should it unwind: it must never come back into the original's callers.
struct NeverBack;

impl Drop for NeverBack {
    fn drop(&mut self) {
        exit_now(ExitStatus::FAILURE.0);
    }
}

/// How a copy ends.
#[derive(Clone, Copy, Debug)]
pub struct ExitStatus(i32);

impl ExitStatus {
    /// All went well.
    pub const SUCCESS: Self = Self(0);
    /// It did not.
    pub const FAILURE: Self = Self(1);
}
