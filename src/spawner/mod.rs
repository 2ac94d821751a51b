//! The root stub: one thread, a handful of fixed commands, no parsing of anything a client sent.
//!
//! It is forked from the supervisor before that has read a key or made a thread. It keeps three
//! capabilities (the ids of children, and killing them), the programs it may start as open
//! descriptors, and one channel. When the channel closes it kills every child and ends; when it is
//! killed itself, the kernel kills the children (parent-death signal).
//!
//! Its filter lets through what its two commands need, and, since a child inherits it, what a child does until
//! it narrows it.
//!
//! Workers whose model has layers on a card have a spawner of their own, one for each card, with the wider filter that
//! the driver needs before they are sealed: that of all other children stays as it is.
//!
//! Every child gets its own user, mount, process, network, IPC, host-name and cgroup namespaces.
//! The user namespace maps the child's own id alone, so that no other user, root above all, exists
//! inside it; its root is built with the namespace's powers, not with root's.

mod child;
mod hands;
pub mod serve;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::{fmt, io};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::unistd::{getegid, geteuid, setsid};

use self::hands::Kernel;
use self::serve::{Offer, Spawner};
pub use crate::ipc::spawner as message;
use crate::ipc::{self, Channel};
use crate::sandbox::{Ids, Placed, Role, confine_spawner};
use crate::sys::fork::{ExitStatus, fork_into};
use crate::sys::{numa, process};

/// What the spawner of a root supervisor keeps: `CAP_KILL`, `CAP_SETGID`, `CAP_SETUID`.
const CAPABILITIES_KEPT: [i32; 3] = [5, 6, 7];
/// Signals that a terminal or a service manager sends to all; the supervisor alone decides.
const SIGNALS_IGNORED: [i32; 3] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM];

/// Which protections there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Profile {
    /// Started as root: every child has its own user.
    Full,
    /// Started as a plain user: all processes are that user.
    Evaluation,
}

/// A protection that a profile lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Missing {
    /// A short name, for logs.
    pub name: &'static str,
    /// What that means, for people.
    pub sentence: &'static str,
}

const MISSING: &[Missing] = &[
    Missing {
        name: "own users",
        sentence: "Supervisor, spawner and all children run as one user: what runs outside as \
                   this user can read their memory and kill them.",
    },
    Missing {
        name: "supplementary groups",
        sentence: "The user's supplementary groups stay with the children; their root holds \
                   nothing that a group could open, but for the devices of a card.",
    },
    Missing {
        name: "files of the supervisor",
        sentence: "Keys, tokens and the audit log belong to the user who started Cloister: any \
                   program of that user can read and replace them.",
    },
    Missing {
        name: "limits across processes",
        sentence: "The number of processes and the use of memory are counted together with \
                   everything else that the user runs.",
    },
];

impl Profile {
    /// The protections that this profile lacks, to be listed at start and in `status`.
    #[must_use]
    pub fn missing(self) -> &'static [Missing] {
        match self {
            Self::Full => &[],
            Self::Evaluation => MISSING,
        }
    }

    /// The profile that the caller's user allows.
    #[must_use]
    pub fn of_caller() -> Self {
        if geteuid().is_root() { Self::Full } else { Self::Evaluation }
    }
}

/// One program that may be started.
#[derive(Clone, Debug)]
pub struct Program {
    /// For which children.
    pub role: Role,
    /// The file; opened once, at start. It is started as `cloister-<role> <role>`.
    pub path: PathBuf,
    /// User and group of the first such child; the user's number grows with the index. Not used
    /// under `Evaluation`.
    pub ids: Ids,
    /// How many there are: each index is below.
    pub count: u16,
    /// Exactly how many descriptors such a child may have.
    pub nofile: u64,
}

/// What the spawner is told before it is on its own.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which protections there are.
    pub profile: Profile,
    /// What may be started; a role has one program.
    pub programs: Vec<Program>,
    /// Whether children lock their memory: the limit on that is left to them.
    pub locks_memory: bool,
    /// What the children's root holds; nothing, but for those that use a card.
    pub root: Vec<Placed>,
}

/// The running spawner.
#[derive(Debug)]
pub struct Started {
    /// For `ToSpawner` and `FromSpawner`.
    pub channel: Channel,
    /// Readable when the spawner has ended, and with it every child.
    pub pidfd: OwnedFd,
}

/// Why there is no spawner.
#[derive(Debug)]
pub enum Error {
    /// `Full` needs root, `Evaluation` refuses it.
    WrongUser {
        /// What was asked for.
        profile: Profile,
    },
    /// A child would be root.
    RootChild {
        /// Which.
        role: Role,
    },
    /// A program cannot be opened.
    Program {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `/dev/null` cannot be opened.
    Null(io::Error),
    /// No channel.
    Channel(ipc::Error),
    /// No process.
    Fork(Errno),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongUser { profile: Profile::Full } => {
                write!(f, "the full profile needs root")
            }
            Self::WrongUser { profile: Profile::Evaluation } => {
                write!(f, "the evaluation profile is for a plain user, not for root")
            }
            Self::RootChild { role } => write!(f, "the {role} must not run as root"),
            Self::Program { path, source } => write!(f, "open {}: {source}", path.display()),
            Self::Null(source) => write!(f, "open /dev/null: {source}"),
            Self::Channel(error) => write!(f, "{error}"),
            Self::Fork(Errno::EDEADLK) => {
                write!(f, "the spawner must be started before the first thread")
            }
            Self::Fork(errno) => write!(f, "fork the spawner: {}", errno.desc()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::WrongUser { .. } | Self::RootChild { .. } => None,
            Self::Program { source, .. } | Self::Null(source) => Some(source),
            Self::Channel(error) => Some(error),
            Self::Fork(errno) => Some(errno),
        }
    }
}

/// A program, opened.
struct Opened {
    offer: Offer,
    file: File,
    nofile: u64,
}

/// Forks the spawner; to be called before the first key is read and the first thread is made.
///
/// # Errors
///
/// What kept it from starting.
pub fn start(config: &Config) -> Result<Started, Error> {
    let profile = config.profile;
    if profile != Profile::of_caller() {
        return Err(Error::WrongUser { profile });
    }
    let programs: Vec<Opened> =
        config.programs.iter().map(|program| open(program, profile)).collect::<Result<_, _>>()?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(Error::Null)?;
    let (ours, theirs) = Channel::pair().map_err(Error::Channel)?;
    let mut keep: Vec<BorrowedFd<'_>> = vec![null.as_fd(), theirs.as_fd()];
    keep.extend(programs.iter().map(|program| program.file.as_fd()));
    let role = if config.root.is_empty() { Role::Spawner } else { Role::SpawnerGpu };
    let spawner = || match confine(profile, role) {
        Ok(()) => {
            let offers = programs.iter().map(|program| program.offer).collect();
            let (locks_memory, root) = (config.locks_memory, config.root.as_slice());
            let kernel = Kernel { profile, programs: &programs, null: &null, locks_memory, root };
            Spawner::new(kernel, (profile, offers), numa::nodes(), &theirs).run();
            ExitStatus::SUCCESS
        }
        Err(_) => ExitStatus::FAILURE,
    };
    let (_, pidfd) = fork_into(CloneFlags::empty(), &keep, spawner).map_err(Error::Fork)?;
    drop(keep);
    Ok(Started { channel: ours, pidfd })
}

fn open(program: &Program, profile: Profile) -> Result<Opened, Error> {
    let &Program { role, ids, count, nofile, .. } = program;
    let ids = match profile {
        Profile::Full => ids,
        Profile::Evaluation => Ids { uid: geteuid().as_raw(), gid: getegid().as_raw() },
    };
    // To the kernel, the last number means to stay who one is.
    if [0, u32::MAX].contains(&ids.uid) || [0, u32::MAX].contains(&ids.gid) {
        return Err(Error::RootChild { role });
    }
    let path = &program.path;
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path);
    let file = file.map_err(|source| Error::Program { path: path.clone(), source })?;
    Ok(Opened { offer: Offer { role, ids, count }, file, nofile })
}

/// Gives up what the spawner does not need.
fn confine(profile: Profile, role: Role) -> Result<(), Errno> {
    setsid()?;
    SIGNALS_IGNORED.into_iter().try_for_each(process::ignore_signal)?;
    prctl::set_name(c"spawner")?;
    if profile == Profile::Full {
        process::drop_bounding_capabilities(&CAPABILITIES_KEPT)?;
        process::keep_capabilities(&CAPABILITIES_KEPT)?;
        // As a plain user it would lose the id maps of its children, which are files in `/proc`.
        prctl::set_dumpable(false)?;
    }
    prctl::set_no_new_privs()?;
    confine_spawner(role).map_err(|_| Errno::EPERM)
}
