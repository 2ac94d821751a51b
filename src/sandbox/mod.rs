//! Giving up powers: landlock, seccomp, limits; any step that fails stops the start with its name.
//!
//! The spawner has a filter too, which every child inherits: what follows narrows it.
//!
//! A child of the spawner already has its own namespaces, user, root (empty, or with what the driver of a card
//! needs), empty capability sets and limits when it starts (`spawner/child.rs`). It goes on in this order:
//!
//! 1. `begin`: parent-death signal, and the parent is still there;
//! 2. `begin`: landlock, while there is one thread, since it binds the calling thread alone;
//! 3. the caller makes its threads and its large allocations;
//! 4. `seal`: no dump, no merging of equal pages, no further thread, no more memory than it needs, none of it
//!    swapped if so configured;
//! 5. `seal`: seccomp, on every thread;
//! 6. `narrow`: each thread adds the filter of its kind.
//!
//! `seal` returns the proof `Sandboxed`; what serves takes it by value, so it cannot serve earlier.

mod identity;
mod landlock;
mod limits;
mod memory;
mod root;
mod seccomp;

use std::fmt;
use std::os::fd::AsFd;
use std::panic;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;

pub use self::identity::{Ids, assume, reset_signals};
pub use self::landlock::{Access, Allow, LANDLOCK_ABI_FLOOR};
pub use self::limits::Limits;
pub use self::memory::Memory;
pub use self::root::{Placed, enter_empty, enter_with};
pub use self::seccomp::Thread;
use crate::ipc::Channel;
use crate::sys::memory::keep_heaps;
use crate::sys::process;

/// The code that a process ends with after a panic.
pub const PANIC_EXIT_CODE: i32 = 101;

/// Which process a sandbox is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Speaks with the network.
    Gateway,
    /// Runs the engine.
    Worker,
    /// Runs the engine, with layers on a card: NVIDIA's driver is in the process.
    WorkerGpu,
    /// Packs a model.
    Loader,
    /// Decrypts a model.
    Opener,
    /// Holds keys and the log.
    Supervisor,
    /// Starts children; never a child itself.
    Spawner,
    /// Starts workers that use a card; never a child itself.
    SpawnerGpu,
}

impl Role {
    /// The role's name: of its filter, its limits, its process.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Worker => "worker",
            Self::WorkerGpu => "worker-gpu",
            Self::Loader => "loader",
            Self::Opener => "opener",
            Self::Supervisor => "supervisor",
            Self::Spawner => "spawner",
            Self::SpawnerGpu => "spawner-gpu",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A step of giving up powers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The C library's heaps, which are not to shrink.
    Heaps,
    /// The parent-death signal.
    ParentDeathSignal,
    /// Is the parent still there?
    ParentCheck,
    /// The kernel's landlock ABI.
    LandlockAbi,
    /// Landlock's denial of UDP.
    LandlockUdp,
    /// Signals back to their defaults.
    Signals,
    /// Supplementary groups.
    Groups,
    /// The group.
    Group,
    /// The user.
    User,
    /// The bounding and ambient capability sets.
    BoundingCapabilities,
    /// The effective, permitted and inheritable capability sets.
    Capabilities,
    /// `no_new_privs`.
    NoNewPrivileges,
    /// A resource limit.
    Limit,
    /// The bound on memory.
    Memory,
    /// Memory that no swap device sees.
    Lock,
    /// No core dump, no ptrace by the same user.
    Dumpable,
    /// No merging of equal pages.
    PageMerging,
    /// The seccomp filter.
    Seccomp,
    /// The seccomp filter of one thread.
    ThreadSeccomp,
}

impl Step {
    /// The step in words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Heaps => "heaps that keep what they have grown to",
            Self::ParentDeathSignal => "parent-death signal",
            Self::ParentCheck => "check of the parent",
            Self::LandlockAbi => "landlock version",
            Self::LandlockUdp => "landlock without UDP",
            Self::Signals => "default signals",
            Self::Groups => "no supplementary groups",
            Self::Group => "own group",
            Self::User => "own user",
            Self::BoundingCapabilities => "empty bounding and ambient capabilities",
            Self::Capabilities => "empty capabilities",
            Self::NoNewPrivileges => "no new privileges",
            Self::Limit => "resource limits",
            Self::Memory => "bound on memory",
            Self::Lock => "locked memory",
            Self::Dumpable => "no dump",
            Self::PageMerging => "no merging of pages",
            Self::Seccomp => "seccomp filter",
            Self::ThreadSeccomp => "seccomp filter of a thread",
        }
    }
}

/// Why a process did not get into its sandbox.
#[derive(Debug)]
pub enum Error {
    /// A step failed.
    Step {
        /// Which.
        step: Step,
        /// What the kernel said.
        errno: Errno,
    },
    /// The kernel's landlock is older than the floor.
    LandlockTooOld {
        /// The kernel's ABI.
        abi: u32,
        /// The least.
        floor: u32,
    },
    /// The kernel has no landlock, or was booted without it.
    LandlockOff {
        /// Whether it is built in.
        is_built_in: bool,
    },
    /// Landlock refused the ruleset.
    Landlock(::landlock::RulesetError),
    /// A path that the supervisor needs cannot be opened.
    Path(::landlock::PathFdError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step { step, errno } => write!(f, "sandbox: {}: {}", step.name(), errno.desc()),
            Self::LandlockTooOld { abi, floor } => {
                write!(f, "sandbox: landlock ABI is {abi}, at least {floor} is needed")
            }
            Self::LandlockOff { is_built_in: true } => write!(
                f,
                "sandbox: landlock is switched off; add landlock to the kernel's lsm= parameter"
            ),
            Self::LandlockOff { is_built_in: false } => {
                write!(f, "sandbox: the kernel has no landlock; take Linux 5.19 or newer with it")
            }
            Self::Landlock(error) => write!(f, "sandbox: landlock: {error}"),
            Self::Path(error) => write!(f, "sandbox: landlock path: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Step { errno, .. } => Some(errno),
            Self::LandlockTooOld { .. } | Self::LandlockOff { .. } => None,
            Self::Landlock(error) => Some(error),
            Self::Path(error) => Some(error),
        }
    }
}

/// Names the step in a system call's error.
pub(crate) trait AtStep<T> {
    /// Turns the error into one of `step`.
    fn at(self, step: Step) -> Result<T, Error>;
}

impl<T> AtStep<T> for Result<T, Errno> {
    fn at(self, step: Step) -> Result<T, Error> {
        self.map_err(|errno| Error::Step { step, errno })
    }
}

/// A process under landlock, which may still make threads.
#[derive(Debug)]
#[must_use]
pub struct Begun {
    role: Role,
    facts: landlock::Facts,
}

/// Proof that the sandbox is closed.
#[derive(Debug)]
pub struct Sandboxed {
    /// Which filter is on.
    pub role: Role,
    /// The kernel's landlock ABI.
    pub landlock_abi: u32,
    /// Landlock denies TCP (ABI 4).
    pub landlock_denies_tcp: bool,
    /// Landlock denies UDP (ABI 10).
    pub landlock_denies_udp: bool,
    /// Landlock scopes signals and abstract sockets (ABI 6).
    pub landlock_scopes: bool,
}

/// Starts the sandbox of a child: steps 1 and 2. `control` leads to the supervisor.
///
/// # Errors
///
/// The first step that failed.
pub fn begin(role: Role, control: &Channel) -> Result<Begun, Error> {
    keep_heaps().at(Step::Heaps)?;
    prctl::set_pdeathsig(Signal::SIGKILL).at(Step::ParentDeathSignal)?;
    // The spawner set the signal too and looked for itself; in a process namespace of its own the
    // child cannot see its parent. A supervisor that is gone has closed the channel.
    let mut ends = [PollFd::new(control.as_fd(), PollFlags::empty())];
    poll(&mut ends, PollTimeout::ZERO).at(Step::ParentCheck)?;
    if ends[0].revents() != Some(PollFlags::empty()) {
        return Err(Error::Step { step: Step::ParentCheck, errno: Errno::EPIPE });
    }
    let facts = landlock::restrict(&landlock::kept_by(role))?;
    Ok(Begun { role, facts })
}

/// Starts the sandbox of the supervisor, which keeps the paths of its configuration.
///
/// # Errors
///
/// The first step that failed, or the first path that cannot be opened.
pub fn begin_supervisor(allowed: &[Allow<'_>]) -> Result<Begun, Error> {
    keep_heaps().at(Step::Heaps)?;
    let facts = landlock::restrict(allowed)?;
    Ok(Begun { role: Role::Supervisor, facts })
}

/// Puts the filter of a spawner (`Spawner`, `SpawnerGpu`) on it, which each of its children inherits and narrows:
/// what it lets through is what the spawner does, what a child does before it is sealed, and what their own
/// filters let through.
///
/// # Errors
///
/// What the kernel says.
pub fn confine_spawner(role: Role) -> Result<(), Error> {
    seccomp::install(role)
}

impl Begun {
    /// Closes the sandbox of a child, which may hold `memory`: steps 4 and 5.
    ///
    /// # Errors
    ///
    /// The first step that failed.
    pub fn seal(self, memory: Memory) -> Result<Sandboxed, Error> {
        memory::bound(memory, self.role)?;
        self.close()
    }

    /// Closes the sandbox of the supervisor, whose memory has no bound of its own, and may be locked.
    ///
    /// # Errors
    ///
    /// The first step that failed.
    pub fn seal_supervisor(self, locks_memory: bool) -> Result<Sandboxed, Error> {
        if locks_memory {
            memory::lock()?;
        }
        self.close()
    }

    fn close(self) -> Result<Sandboxed, Error> {
        prctl::set_dumpable(false).at(Step::Dumpable)?;
        process::disable_page_merging().at(Step::PageMerging)?;
        Limits::of(self.role).apply_at_seal()?;
        seccomp::install(self.role)?;
        Ok(Sandboxed {
            role: self.role,
            landlock_abi: self.facts.abi,
            landlock_denies_tcp: self.facts.denies_tcp,
            landlock_denies_udp: self.facts.denies_udp,
            landlock_scopes: self.facts.scopes,
        })
    }
}

impl Sandboxed {
    /// Step 6, on the calling thread: from here on it may do what its kind needs.
    ///
    /// # Errors
    ///
    /// What the kernel says; `EINVAL` for a thread of another process.
    pub fn narrow(&self, thread: Thread) -> Result<(), Error> {
        if !thread.is_of(self.role) {
            return Err(Error::Step { step: Step::ThreadSeccomp, errno: Errno::EINVAL });
        }
        seccomp::narrow(thread)
    }
}

/// The compiled filter of a role: `sock_filter`s, little-endian.
#[must_use]
pub fn filter(role: Role) -> &'static [u8] {
    seccomp::program(role)
}

/// The compiled filter that a thread adds to that of its role.
#[must_use]
pub fn thread_filter(thread: Thread) -> &'static [u8] {
    seccomp::thread_program(thread)
}

/// The compiled policy of every role, for its digest in the audit log.
#[must_use]
pub fn policy_bytes() -> Vec<u8> {
    let children = [Role::Gateway, Role::Worker, Role::WorkerGpu, Role::Loader, Role::Opener];
    let roles = children.into_iter().chain([Role::Supervisor, Role::Spawner, Role::SpawnerGpu]);
    let filters = roles.map(filter).chain(Thread::ALL.into_iter().map(thread_filter));
    filters.chain([limits::POLICY.as_bytes()]).flatten().copied().collect()
}

/// Ends the process on a panic after `report` was given file and line: never the text of the panic,
/// which can quote what it failed on. Nothing goes to stderr.
pub fn report_panics(report: impl Fn(&str, u32) + Send + Sync + 'static) {
    panic::set_hook(Box::new(move |info| {
        let location = info.location();
        report(location.map_or("", |at| at.file()), location.map_or(0, |at| at.line()));
        process::exit_now(PANIC_EXIT_CODE);
    }));
}
