//! What supervisor and spawner say to each other.

use std::fmt;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::codec::{fields, variants};
use super::{DESCRIPTORS_COUNT_MAX, Message};
use crate::sandbox::{Role, Step};

/// Longest message, in bytes.
const LEN_MAX_BYTES: usize = 64;

/// Names a child; chosen by the supervisor, not in use by a living one.
pub type ChildId = u32;

/// Supervisor to spawner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ToSpawner {
    /// Start a child. Answered by `Spawned` or `Failed`. Comes with the child's descriptors, which
    /// it finds from number 3 on; the first is its control channel.
    Spawn {
        /// Its name from now on.
        child: ChildId,
        /// Which program, user and limits.
        role: Role,
        /// Which of them: added to the role's user.
        index: u16,
        /// How many descriptors come along.
        descriptors: u16,
        /// The memory node that it keeps to, with the processors beside it.
        node: Option<u16>,
    },
    /// Kill a child; its `Exited` follows. A child that is not there is no error: it may just have
    /// ended.
    Kill {
        /// Its name.
        child: ChildId,
    },
}

/// Spawner to supervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FromSpawner {
    /// The child's program runs. Comes with its pidfd.
    Spawned {
        /// Its name.
        child: ChildId,
    },
    /// The child was not started.
    Failed {
        /// Its name.
        child: ChildId,
        /// What failed.
        failed: Failed,
    },
    /// The child is gone.
    Exited {
        /// Its name.
        child: ChildId,
        /// How it ended.
        exit: Exit,
    },
}

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal; 31 (`SIGSYS`) is a broken seccomp filter.
    Signal(i32),
}

impl Exit {
    /// The signal, if it is the one by which the kernel ends who breaks its filter.
    #[must_use]
    pub fn violation(self) -> Option<u32> {
        match self {
            Self::Signal(signal) if signal == Signal::SIGSYS as i32 => signal.try_into().ok(),
            _ => None,
        }
    }
}

/// Why a child was not started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failed {
    /// At which stage.
    pub stage: Stage,
    /// What the kernel said, as its number.
    pub errno: i32,
}

impl Failed {
    /// Notes that `stage` failed with `errno`.
    #[must_use]
    pub fn new(stage: Stage, errno: Errno) -> Self {
        Self { stage, errno: errno as i32 }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = Errno::from_raw(self.errno);
        write!(f, "start of a child: {}: {}", self.stage.name(), errno.desc())
    }
}

impl std::error::Error for Failed {}

/// A stage of a child's start, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The command: name taken, no such program, index over its limit, too many children.
    Command,
    /// A process in new namespaces.
    Namespaces,
    /// Its user and group, mapped into the user namespace.
    IdMap,
    /// A session of its own.
    Session,
    /// Its own view of the mounts.
    Mounts,
    /// The empty root.
    Root,
    /// A root with what the driver of a card needs.
    Files,
    /// A host name that says nothing.
    HostName,
    /// Its memory node and the processors beside it.
    Node,
    /// The descriptors at their numbers.
    Descriptors,
    /// Identity, capabilities, limits.
    Sandbox(Step),
    /// The program itself.
    Exec,
}

impl Stage {
    /// The stage in words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Namespaces => "new namespaces",
            Self::IdMap => "user and group map",
            Self::Session => "session",
            Self::Mounts => "private mounts",
            Self::Root => "empty root",
            Self::Files => "root with the driver's files",
            Self::HostName => "host name",
            Self::Node => "memory node",
            Self::Descriptors => "descriptors",
            Self::Sandbox(step) => step.name(),
            Self::Exec => "program",
        }
    }
}

variants!(Role {
    1 Gateway,
    2 Worker,
    3 Loader,
    4 Opener,
    5 Supervisor,
    6 Spawner,
    7 WorkerGpu,
    8 SpawnerGpu,
});

variants!(ToSpawner { 1 Spawn { child, role, index, descriptors, node }, 2 Kill { child } });

variants!(FromSpawner {
    1 Spawned { child },
    2 Failed { child, failed },
    3 Exited { child, exit },
});

variants!(Exit { 1 Code(code), 2 Signal(signal) });

fields!(Failed { stage, errno });

variants!(Stage {
    1 Command,
    2 Namespaces,
    3 IdMap,
    4 Session,
    5 Mounts,
    6 Root,
    7 HostName,
    8 Descriptors,
    9 Sandbox(step),
    10 Exec,
    11 Node,
    12 Files,
});

variants!(Step {
    1 ParentDeathSignal,
    2 ParentCheck,
    3 LandlockAbi,
    4 Signals,
    5 Groups,
    6 Group,
    7 User,
    8 BoundingCapabilities,
    9 Capabilities,
    10 NoNewPrivileges,
    11 Limit,
    12 Dumpable,
    13 PageMerging,
    14 Seccomp,
    15 ThreadSeccomp,
    16 Memory,
    17 LandlockUdp,
    18 Lock,
    19 Heaps,
});

impl Message for ToSpawner {
    const NAME: &'static str = "ToSpawner";
    const LEN_MAX_BYTES: usize = LEN_MAX_BYTES;

    fn descriptor_count(&self) -> usize {
        match self {
            Self::Spawn { descriptors, .. } => usize::from(*descriptors),
            Self::Kill { .. } => 0,
        }
    }
}

impl Message for FromSpawner {
    const NAME: &'static str = "FromSpawner";
    const LEN_MAX_BYTES: usize = LEN_MAX_BYTES;

    fn descriptor_count(&self) -> usize {
        usize::from(matches!(self, Self::Spawned { .. }))
    }
}

impl Message for Failed {
    const NAME: &'static str = "Failed";
    const LEN_MAX_BYTES: usize = LEN_MAX_BYTES;
}

const _: () = assert!(DESCRIPTORS_COUNT_MAX < 16);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::Error;

    #[test]
    fn messages_come_back_as_they_were() {
        let spawn =
            ToSpawner::Spawn { child: 7, role: Role::Worker, index: 2, descriptors: 3, node: None };
        assert_eq!(ToSpawner::decode(&spawn.encode().unwrap()), Ok(spawn));
        assert_eq!(spawn.descriptor_count(), 3);
        let kill = ToSpawner::Kill { child: 7 };
        assert_eq!(ToSpawner::decode(&kill.encode().unwrap()), Ok(kill));
        let failed = Failed::new(Stage::Sandbox(Step::User), Errno::EPERM);
        for message in [
            FromSpawner::Spawned { child: 1 },
            FromSpawner::Failed { child: 2, failed },
            FromSpawner::Exited { child: 3, exit: Exit::Code(-1) },
            FromSpawner::Exited { child: 4, exit: Exit::Signal(31) },
        ] {
            let bytes = message.encode().unwrap();
            assert_eq!(FromSpawner::decode(&bytes), Ok(message));
            for len in 0..bytes.len() {
                assert_eq!(FromSpawner::decode(&bytes[..len]), Err(Error::Truncated));
            }
        }
        assert_eq!(failed.to_string(), "start of a child: own user: Operation not permitted");
    }
}
