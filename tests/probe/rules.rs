//! Holds a compiled filter against its policy file: every call number, every rule, every argument.
//!
//! What the policy says decides what is expected; what the kernel does under the compiled filter is
//! what is seen. Each call is made by a process of its own, which does nothing else. The interpreter
//! (`bpf`), which runs the filters of other CPUs in `tests/it/filters.rs`, must see the same.

use std::collections::BTreeMap;

use cloister::cli::doctor::policy::{Filter, Rule, filters};
use cloister::sandbox::{Role, Thread, filter, thread_filter};
use cloister::sys::process::install_filter;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::bpf::{self, Call, Instruction};
use super::stack;

/// Numbers past the last that are tried.
const NUMBERS_PAST: i64 = 32;
/// The bit that asks for the x32 form of a call.
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;
/// Calls that every process may make, whatever a filter says: `uretprobe` and `uprobe` of recent
/// kernels, which fail outside of a probe that root has placed.
#[cfg(target_arch = "x86_64")]
const UNFILTERED: [i64; 2] = [335, 336];
#[cfg(not(target_arch = "x86_64"))]
const UNFILTERED: [i64; 0] = [];

/// `AUDIT_ARCH_*` of this CPU.
#[cfg(target_arch = "x86_64")]
pub(crate) const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(crate) const ARCHITECTURE: u32 = 0xc000_00b7;

type Arguments = [u64; 6];

/// The filters that lie on each other, of a process or of a kind of its threads.
struct Stack {
    policies: Vec<Filter>,
    compiled: Vec<&'static [u8]>,
    interpreted: Vec<Vec<Instruction>>,
    numbers: BTreeMap<String, i64>,
}

impl Stack {
    fn new(role: Role, thread: Option<Thread>) -> Self {
        let is_its = |filter: &Filter| stack::is_in(filter, role, thread);
        let policies: Vec<Filter> = filters().unwrap().into_iter().filter(is_its).collect();
        let compiled: Vec<_> =
            [filter(role)].into_iter().chain(thread.map(thread_filter)).collect();
        assert_eq!(policies.len(), compiled.len(), "a filter without a policy");
        let interpreted = compiled.iter().map(|bytes| program(bytes)).collect();
        let numbers = policies.iter().flat_map(numbers).collect();
        Self { policies, compiled, interpreted, numbers }
    }

    /// Whether every policy of the stack lets a call through.
    fn says(&self, number: i64, arguments: &Arguments) -> bool {
        let of_call = |rule: &&Rule| self.numbers[&rule.syscall] == number;
        let lets = |policy: &Filter| {
            policy.rules.iter().filter(of_call).any(|rule| matches(rule, arguments))
        };
        self.policies.iter().all(lets)
    }
}

/// Prints each difference, then what was tried: numbers, rules, changed arguments. On top of the filter of the
/// process lies that of a kind of its threads, if one is named.
pub(crate) fn check(role: Role, thread: Option<Thread>) {
    let stack = Stack::new(role, thread);
    let mut tried = [0; 3];
    let last = SYSCALLS.iter().map(|&(_, number)| number).max().unwrap();
    for number in 0..=last + NUMBERS_PAST {
        for arguments in [[0; 6], [u64::MAX; 6]] {
            tried[0] += 1;
            compare(&stack, number, arguments);
        }
        #[cfg(target_arch = "x86_64")]
        compare(&stack, number | X32, [0; 6]);
    }
    for rule in stack.policies.iter().flat_map(|policy| &policy.rules) {
        let number = stack.numbers[&rule.syscall];
        let mut arguments = [0; 6];
        for condition in &rule.args {
            arguments[condition.index] |= condition.val;
        }
        assert!(matches(rule, &arguments), "{rule:?} contradicts itself");
        tried[1] += 1;
        compare(&stack, number, arguments);
        for condition in &rule.args {
            for bit in 0..64 {
                let mut changed = arguments;
                changed[condition.index] ^= 1 << bit;
                tried[2] += 1;
                compare(&stack, number, changed);
            }
        }
    }
    println!("numbers {} rules {} changed {}", tried[0], tried[1], tried[2]);
}

fn compare(stack: &Stack, number: i64, arguments: Arguments) {
    if UNFILTERED.contains(&number) {
        return;
    }
    let want = stack.says(number, &arguments);
    let seen = survives(stack, number, arguments);
    let call =
        Call { number: u32::try_from(number).unwrap(), architecture: ARCHITECTURE, arguments };
    let run = bpf::verdict(&stack.interpreted, &call) == Ok(bpf::ALLOW);
    if want != seen || run != seen {
        let said = format!("the policy says {want}, the kernel {seen}, the interpreter {run}");
        println!("{number} {arguments:x?}: {said}");
    }
}

/// Whether the arguments are what a rule wants.
fn matches(rule: &Rule, arguments: &Arguments) -> bool {
    rule.args.iter().all(|condition| {
        let mask = condition.mask();
        arguments[condition.index] & mask == condition.val & mask
    })
}

/// Has a process under the filter make a call, and returns whether the filter let it.
fn survives(stack: &Stack, number: i64, arguments: Arguments) -> bool {
    // SAFETY: the probe has one thread, so the copy is whole.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            set_no_new_privs().unwrap();
            // Nothing is left that a call could change: number 0 as a descriptor is none.
            // SAFETY: the copy ends without using a descriptor.
            unsafe { libc::close_range(0, libc::c_uint::MAX, 0) };
            for filter in &stack.compiled {
                install_filter(filter, false).unwrap();
            }
            let [a, b, c, d, e, f] = arguments;
            // SAFETY: pointers are null or past all memory, so nothing of this process is written;
            // what else the call does ends with the process, which does nothing after it.
            unsafe { libc::syscall(number, a, b, c, d, e, f) };
            // SAFETY: ends the copy.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            !matches!(waitpid(child, None).unwrap(), WaitStatus::Signaled(_, Signal::SIGSYS, _))
        }
    }
}

/// Reads a compiled filter: eight bytes a step, little-endian.
fn program(bytes: &[u8]) -> Vec<Instruction> {
    let (steps, []) = bytes.as_chunks::<8>() else { panic!("{} bytes", bytes.len()) };
    let read = |&[a, b, jump_true, jump_false, k0, k1, k2, k3]: &[u8; 8]| Instruction {
        code: u16::from_le_bytes([a, b]),
        jump_true,
        jump_false,
        k: u32::from_le_bytes([k0, k1, k2, k3]),
    };
    steps.iter().map(read).collect()
}

/// The numbers of the calls that a policy names.
fn numbers(policy: &Filter) -> Vec<(String, i64)> {
    let number = |rule: &Rule| {
        let found = SYSCALLS.iter().find(|(name, _)| *name == rule.syscall);
        found.unwrap_or_else(|| panic!("{}: add it to SYSCALLS", rule.syscall)).1
    };
    policy.rules.iter().map(|rule| (rule.syscall.clone(), number(rule))).collect()
}

macro_rules! syscalls {
    ($($name:ident $number:ident,)*) => {
        /// The numbers of the calls that the policies name, and the last one that libc knows.
        const SYSCALLS: &[(&str, i64)] = &[$((stringify!($name), libc::$number),)*];
    };
}

syscalls! {
    accept4 SYS_accept4,
    brk SYS_brk,
    clock_gettime SYS_clock_gettime,
    access SYS_access,
    clock_nanosleep SYS_clock_nanosleep,
    clone SYS_clone,
    clone3 SYS_clone3,
    close SYS_close,
    epoll_ctl SYS_epoll_ctl,
    epoll_wait SYS_epoll_wait,
    exit SYS_exit,
    exit_group SYS_exit_group,
    clock_adjtime SYS_clock_adjtime,
    fallocate SYS_fallocate,
    fchmod SYS_fchmod,
    fcntl SYS_fcntl,
    fdatasync SYS_fdatasync,
    flock SYS_flock,
    fstat SYS_fstat,
    fstatfs SYS_fstatfs,
    fsync SYS_fsync,
    ftruncate SYS_ftruncate,
    futex SYS_futex,
    getcwd SYS_getcwd,
    getdents64 SYS_getdents64,
    get_mempolicy SYS_get_mempolicy,
    getegid SYS_getegid,
    geteuid SYS_geteuid,
    getgid SYS_getgid,
    getpeername SYS_getpeername,
    getpid SYS_getpid,
    getppid SYS_getppid,
    getrandom SYS_getrandom,
    getsockname SYS_getsockname,
    getsockopt SYS_getsockopt,
    gettid SYS_gettid,
    getuid SYS_getuid,
    ioctl SYS_ioctl,
    kill SYS_kill,
    lseek SYS_lseek,
    madvise SYS_madvise,
    mbind SYS_mbind,
    membarrier SYS_membarrier,
    memfd_create SYS_memfd_create,
    mkdir SYS_mkdir,
    mmap SYS_mmap,
    mprotect SYS_mprotect,
    mremap SYS_mremap,
    munmap SYS_munmap,
    newfstatat SYS_newfstatat,
    openat SYS_openat,
    pipe2 SYS_pipe2,
    poll SYS_poll,
    prctl SYS_prctl,
    pread64 SYS_pread64,
    pwrite64 SYS_pwrite64,
    read SYS_read,
    readlink SYS_readlink,
    recvfrom SYS_recvfrom,
    recvmsg SYS_recvmsg,
    rename SYS_rename,
    restart_syscall SYS_restart_syscall,
    rmdir SYS_rmdir,
    rseq SYS_rseq,
    rt_sigaction SYS_rt_sigaction,
    rt_sigprocmask SYS_rt_sigprocmask,
    rt_sigreturn SYS_rt_sigreturn,
    sched_get_priority_max SYS_sched_get_priority_max,
    sched_get_priority_min SYS_sched_get_priority_min,
    sched_getaffinity SYS_sched_getaffinity,
    sched_yield SYS_sched_yield,
    seccomp SYS_seccomp,
    sendmsg SYS_sendmsg,
    sendto SYS_sendto,
    set_robust_list SYS_set_robust_list,
    setsockopt SYS_setsockopt,
    shutdown SYS_shutdown,
    sigaltstack SYS_sigaltstack,
    socket SYS_socket,
    socketpair SYS_socketpair,
    statfs SYS_statfs,
    statx SYS_statx,
    sysinfo SYS_sysinfo,
    tgkill SYS_tgkill,
    timerfd_settime SYS_timerfd_settime,
    uname SYS_uname,
    unlink SYS_unlink,
    write SYS_write,
    writev SYS_writev,
    arch_prctl SYS_arch_prctl,
    capset SYS_capset,
    chdir SYS_chdir,
    close_range SYS_close_range,
    dup2 SYS_dup2,
    epoll_create1 SYS_epoll_create1,
    eventfd2 SYS_eventfd2,
    execveat SYS_execveat,
    landlock_add_rule SYS_landlock_add_rule,
    landlock_create_ruleset SYS_landlock_create_ruleset,
    mlockall SYS_mlockall,
    mount SYS_mount,
    pidfd_send_signal SYS_pidfd_send_signal,
    pivot_root SYS_pivot_root,
    prlimit64 SYS_prlimit64,
    sched_setaffinity SYS_sched_setaffinity,
    set_mempolicy SYS_set_mempolicy,
    set_tid_address SYS_set_tid_address,
    setgroups SYS_setgroups,
    sethostname SYS_sethostname,
    setresgid SYS_setresgid,
    setresuid SYS_setresuid,
    setsid SYS_setsid,
    umask SYS_umask,
    umount2 SYS_umount2,
    waitid SYS_waitid,
    landlock_restrict_self SYS_landlock_restrict_self,
}
