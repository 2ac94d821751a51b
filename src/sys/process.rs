//! What a process may do: signals by pidfd, capabilities, filters, descriptors, processors.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

/// `prctl` numbers that libc lacks.
const PR_SET_MEMORY_MERGE: i32 = 67;
/// `LANDLOCK_CREATE_RULESET_VERSION`.
const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
/// Rights of a landlock ruleset over the network, from ABI 10 on.
const LANDLOCK_ACCESS_NET_BIND_UDP: u64 = 1 << 2;
/// See [`LANDLOCK_ACCESS_NET_BIND_UDP`].
const LANDLOCK_ACCESS_NET_CONNECT_SEND_UDP: u64 = 1 << 3;
/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// Highest capability number that the kernel's format has room for.
const CAPABILITY_MAX: i32 = 63;

/// Opens a child as a descriptor: poll says when it ended.
///
/// # Errors
///
/// `ESRCH` and what else `pidfd_open` says.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes integers alone.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let raw = RawFd::try_from(Errno::result(raw)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just made this descriptor for us, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Sends a signal to the process behind `pidfd`, never to another that got its number.
///
/// # Errors
///
/// What `pidfd_send_signal` says.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let (number, none) = (libc::SYS_pidfd_send_signal, std::ptr::null::<libc::siginfo_t>());
    // SAFETY: a null `siginfo` is allowed and means that of `kill`.
    let code = unsafe { libc::syscall(number, pidfd.as_raw_fd(), signal, none, 0) };
    Errno::result(code).map(drop)
}

/// Marks every descriptor from `first` on as close-on-exec.
///
/// # Errors
///
/// What `close_range` says.
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    let (number, flags) = (libc::SYS_close_range, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: the flag closes nothing now, so no owned descriptor is closed behind its owner.
    let code = unsafe { libc::syscall(number, first, u32::MAX, flags) };
    Errno::result(code).map(drop)
}

/// Copies `source` to the descriptor number `target`, which survives exec.
///
/// # Errors
///
/// What `dup2` says; `EINVAL` when they are the same.
pub fn place_descriptor(source: BorrowedFd<'_>, target: RawFd) -> Result<(), Errno> {
    if source.as_raw_fd() == target {
        return Err(Errno::EINVAL);
    }
    // SAFETY: called between fork and exec, where every number below the copies' is ours to fill.
    let code = unsafe { libc::dup2(source.as_raw_fd(), target) };
    Errno::result(code).map(drop)
}

/// Takes an inherited descriptor by its number and marks it close-on-exec.
///
/// # Errors
///
/// `EBADF` when it is not open, or is one of the three standard ones.
pub fn inherited_descriptor(number: RawFd) -> Result<OwnedFd, Errno> {
    if number <= libc::STDERR_FILENO {
        return Err(Errno::EBADF);
    }
    // SAFETY: the call takes integers alone.
    let flags = Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    if flags & libc::FD_CLOEXEC != 0 {
        // Opened by this program, or taken before: it has an owner.
        return Err(Errno::EBADF);
    }
    // SAFETY: the call takes integers alone.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it came through exec and was not taken before, since taking marks it; std opens
    // every descriptor close-on-exec, so nothing in this program owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn prctl(option: i32, two: i32, three: i32) -> Result<i32, Errno> {
    // SAFETY: the options used below take integers alone; `prctl` wants unused ones as zero.
    Errno::result(unsafe {
        libc::prctl(
            option,
            libc::c_long::from(two),
            libc::c_long::from(three),
            libc::c_long::from(0),
            libc::c_long::from(0),
        )
    })
}

/// Empties the bounding and the ambient capability sets; needs `CAP_SETPCAP`.
///
/// # Errors
///
/// `EPERM` without it.
pub fn drop_bounding_capabilities(keep: &[i32]) -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    for capability in (0..=CAPABILITY_MAX).filter(|capability| !keep.contains(capability)) {
        match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            // Past the last one that this kernel knows.
            Err(Errno::EINVAL) if capability > 0 => return Ok(()),
            result => result?,
        };
    }
    Ok(())
}

/// Keeps only `keep` in the effective and permitted sets of this thread, nothing in the inheritable.
///
/// # Errors
///
/// What `capset` says.
pub fn keep_capabilities(keep: &[i32]) -> Result<(), Errno> {
    let bits = keep.iter().fold(0_u64, |bits, capability| bits | 1 << capability);
    let low = u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
    let high = u32::try_from(bits >> 32).unwrap_or_default();
    let header = [CAPABILITY_VERSION, 0];
    // Effective, permitted, inheritable; twice.
    let sets = [low, low, 0, high, high, 0];
    let (header, sets) = (header.as_ptr(), sets.as_ptr());
    // SAFETY: version 3 reads a header of two words and six words of sets.
    let code = unsafe { libc::syscall(libc::SYS_capset, header, sets) };
    Errno::result(code).map(drop)
}

/// Takes this process out of the kernel's merging of equal pages, which could tell of its content.
///
/// # Errors
///
/// What `prctl` says; a kernel without merging is none.
pub fn disable_page_merging() -> Result<(), Errno> {
    match prctl(PR_SET_MEMORY_MERGE, 0, 0) {
        Err(Errno::EINVAL) => Ok(()),
        result => result.map(drop),
    }
}

/// Returns the kernel's landlock ABI.
///
/// # Errors
///
/// `ENOSYS` when it is not built in, `EOPNOTSUPP` when it is switched off.
pub fn landlock_abi() -> Result<u32, Errno> {
    let (number, none) = (libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>());
    // SAFETY: no attribute of length 0 with this flag asks for the version and reads nothing.
    let abi = unsafe { libc::syscall(number, none, 0, LANDLOCK_CREATE_RULESET_VERSION) };
    u32::try_from(Errno::result(abi)?).map_err(|_| Errno::ENOSYS)
}

/// Denies this thread, and those it will make, all of UDP by landlock, which needs ABI 10 and `no_new_privs`.
/// The crate's rulesets know of no such right yet; this one lies on top of theirs.
///
/// # Errors
///
/// What the kernel says.
pub fn deny_udp() -> Result<(), Errno> {
    // `landlock_ruleset_attr`: no right of files, those of UDP.
    let handled = [0, LANDLOCK_ACCESS_NET_BIND_UDP | LANDLOCK_ACCESS_NET_CONNECT_SEND_UDP];
    let (number, len) = (libc::SYS_landlock_create_ruleset, size_of_val(&handled));
    // SAFETY: the kernel reads `len` bytes of `handled`, which has so many.
    let raw = unsafe { libc::syscall(number, handled.as_ptr(), len, 0) };
    let raw = RawFd::try_from(Errno::result(raw)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just made this descriptor for us, close-on-exec.
    let ruleset = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: the call takes integers alone.
    let code = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    Errno::result(code).map(drop)
}

/// Puts a seccomp filter on the calling thread, or on every thread of the process.
///
/// `program` is a list of `sock_filter`: code (u16), true and false jumps (u8 each), k (u32).
///
/// # Errors
///
/// What `seccomp` says; `EBUSY` when a thread could not be brought under it, `EINVAL` for a program
/// that is none.
pub fn install_filter(program: &[u8], on_all_threads: bool) -> Result<(), Errno> {
    let (instructions, []) = program.as_chunks::<8>() else { return Err(Errno::EINVAL) };
    let mut filter: Vec<libc::sock_filter> = instructions
        .iter()
        .map(|&[code_low, code_high, jt, jf, k0, k1, k2, k3]| libc::sock_filter {
            code: u16::from_le_bytes([code_low, code_high]),
            jt,
            jf,
            k: u32::from_le_bytes([k0, k1, k2, k3]),
        })
        .collect();
    let len = u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    let operation = libc::SECCOMP_SET_MODE_FILTER;
    let flags = if on_all_threads { libc::SECCOMP_FILTER_FLAG_TSYNC } else { 0 };
    // SAFETY: `program` points to `filter`, which lives past the call, and states its length.
    let code = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) };
    match Errno::result(code)? {
        0 => Ok(()),
        // The number of a thread that has another filter: then none was changed.
        _ => Err(Errno::EBUSY),
    }
}

/// Returns how many threads this process has.
///
/// # Errors
///
/// `EIO` when `/proc` does not say.
pub fn thread_count() -> Result<usize, Errno> {
    let tasks = std::fs::read_dir("/proc/self/task").map_err(|_| Errno::EIO)?;
    Ok(tasks.count())
}

/// Ends the process at once: no destructors, no exit hooks.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes an integer and does not return; what is left undone is the kernel's to free.
    unsafe { libc::_exit(code) }
}

/// Copies a descriptor to the lowest free number from `least` on, close-on-exec.
///
/// # Errors
///
/// What `fcntl` says.
pub fn duplicate_from(source: BorrowedFd<'_>, least: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes integers alone.
    let raw = unsafe { libc::fcntl(source.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) };
    let raw = Errno::result(raw)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Ignores a signal, also in what this process starts.
///
/// # Errors
///
/// What `sigaction` says.
pub fn ignore_signal(signal: i32) -> Result<(), Errno> {
    // SAFETY: `SIG_IGN` runs no code of this program.
    let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
    if before == libc::SIG_ERR { Err(Errno::last()) } else { Ok(()) }
}
