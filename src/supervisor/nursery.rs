//! The supervisor's side of the spawner: start, kill, and word of every end.

use std::collections::VecDeque;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::config::{Config, Profile, Swap};
use super::error::Error;
use super::opening::{Wake, wait};
use crate::ipc::{self, Channel};
use crate::sandbox::{Ids, Role};
use crate::spawner;
use crate::spawner::message::{ChildId, Exit, FromSpawner, ToSpawner};

/// Time in which the spawner builds a child's jail.
const SPAWN_DEADLINE: Duration = Duration::from_secs(20);
/// Time in which a killed child is gone.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// Descriptors of a gateway beside one for each connection: channels, listeners, the runtime's.
const GATEWAY_DESCRIPTORS_COUNT: u64 = 64;
/// Descriptors of a worker, loader or opener: channels, image, segments, threads' event counters.
const CHILD_DESCRIPTORS_COUNT: u64 = 64;

/// A started child.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) id: ChildId,
    /// Its number, if `/proc` tells.
    pub(super) pid: Option<i32>,
    pub(super) channel: Channel,
}

/// The spawner, as seen from here.
pub(super) struct Nursery {
    channel: Channel,
    pidfd: OwnedFd,
    next: ChildId,
    ends: VecDeque<(ChildId, Exit)>,
}

impl Nursery {
    /// Forks the spawner; before any key is read and any thread is made.
    pub(super) fn start(config: &Config) -> Result<Self, Error> {
        let own = std::env::current_exe()
            .map_err(|source| Error::Folder("/proc/self/exe".into(), source))?;
        let beside = |name: &str| own.with_file_name(name);
        let users = config.users;
        let program = |role, path, uid, count, nofile| spawner::Program {
            role,
            path,
            ids: Ids { uid, gid: uid },
            count,
            nofile,
        };
        let workers_count = config.models.len() * usize::from(config.worker.count());
        let workers_count = u16::try_from(workers_count).unwrap_or(u16::MAX);
        let gateway_nofile = GATEWAY_DESCRIPTORS_COUNT + u64::from(config.limits.connections_max);
        let (worker, few) = (beside("cloister-worker"), CHILD_DESCRIPTORS_COUNT);
        let gateway = beside("cloister-gateway");
        let programs = vec![
            program(Role::Gateway, gateway, users.gateway, 1, gateway_nofile),
            program(Role::Worker, worker.clone(), users.worker_first, workers_count, few),
            program(Role::Loader, worker, users.loader, 1, few),
            program(Role::Opener, own, users.opener, 1, few),
        ];
        let profile = spawner_profile(config.profile);
        let locks_memory = config.sandbox.swap == Swap::Lock;
        let started = spawner::start(&spawner::Config { profile, programs, locks_memory });
        let spawner::Started { channel, pidfd } = started.map_err(Error::Spawner)?;
        Ok(Self { channel, pidfd, next: 1, ends: VecDeque::new() })
    }

    /// Starts a child and waits until its program runs; it keeps to `node`, if one is named.
    /// A signal ends the wait, if `signals` are watched; while Cloister serves, they are read later.
    pub(super) fn spawn(
        &mut self,
        role: Role,
        index: u16,
        node: Option<u16>,
        signals: Option<BorrowedFd<'_>>,
    ) -> Result<Child, Error> {
        let (ours, theirs) = Channel::pair().map_err(Error::Channel)?;
        let id = self.next;
        self.next += 1;
        let order = ToSpawner::Spawn { child: id, role, index, descriptors: 1, node };
        self.channel.try_send(&order, &[theirs.as_fd()]).map_err(Error::Channel)?;
        drop(theirs);
        let deadline = Instant::now() + SPAWN_DEADLINE;
        loop {
            match wait(self.channel.as_fd(), PollFlags::POLLIN, signals, deadline) {
                Ok(Wake::Ready) => {}
                Ok(Wake::Stop) => return Err(Error::Stopped),
                Ok(Wake::Late) => return Err(Error::NotReady("spawner")),
                Err(errno) => return Err(Error::System("wait for the spawner", errno)),
            }
            match self.channel.try_recv().map_err(Error::Channel)? {
                (FromSpawner::Spawned { child }, mut pidfds) if child == id => {
                    let pid = pidfds.pop().and_then(|pidfd| pid_of(&pidfd));
                    return Ok(Child { id, pid, channel: ours });
                }
                (FromSpawner::Failed { child, failed }, _) if child == id => {
                    return Err(Error::Spawn(role, failed));
                }
                (FromSpawner::Exited { child, exit }, _) => self.ends.push_back((child, exit)),
                _ => return Err(Error::NotReady("spawner")),
            }
        }
    }

    /// Kills a child; its end will follow.
    pub(super) fn kill(&self, id: ChildId) -> Result<(), Error> {
        self.channel.try_send(&ToSpawner::Kill { child: id }, &[]).map_err(Error::Channel)
    }

    /// Kills children and waits for their ends; `None` for one whose end does not come in time.
    pub(super) fn end<const N: usize>(
        &mut self,
        ids: [ChildId; N],
    ) -> Result<[Option<Exit>; N], Error> {
        ids.iter().try_for_each(|&id| self.kill(id))?;
        let deadline = Instant::now() + END_DEADLINE;
        let mut exits = [None; N];
        loop {
            for (child, exit) in self.ends()? {
                match ids.iter().position(|&id| id == child) {
                    Some(at) => exits[at] = Some(exit),
                    None => self.ends.push_back((child, exit)),
                }
            }
            if !exits.contains(&None) {
                return Ok(exits);
            }
            match wait(self.channel.as_fd(), PollFlags::POLLIN, None, deadline) {
                Ok(Wake::Ready) => {}
                Ok(_) => return Ok(exits),
                Err(errno) => return Err(Error::System("wait for the spawner", errno)),
            }
        }
    }

    /// The children that ended since the last call.
    pub(super) fn ends(&mut self) -> Result<Vec<(ChildId, Exit)>, Error> {
        loop {
            match self.channel.try_recv() {
                Ok((FromSpawner::Exited { child, exit }, _)) => self.ends.push_back((child, exit)),
                Ok(_) => return Err(Error::NotReady("spawner")),
                Err(ipc::Error::WouldBlock) => return Ok(self.ends.drain(..).collect()),
                Err(error) => return Err(Error::Channel(error)),
            }
        }
    }

    /// What to poll: the channel, and the spawner's own end.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.channel.as_fd(), self.pidfd.as_fd()]
    }
}

/// The profile in the spawner's words.
pub(super) fn spawner_profile(profile: Profile) -> spawner::Profile {
    match profile {
        Profile::Full => spawner::Profile::Full,
        Profile::Evaluation => spawner::Profile::Evaluation,
    }
}

/// The number of the process behind a pidfd.
fn pid_of(pidfd: &OwnedFd) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
}

/// How a child ended, in words.
pub(super) fn exit_text(exit: Exit) -> String {
    match exit {
        Exit::Code(0) => "ended".to_owned(),
        Exit::Code(code) => format!("ended with code {code}"),
        Exit::Signal(31) => "broke its seccomp filter (signal 31)".to_owned(),
        Exit::Signal(signal) => format!("killed by signal {signal}"),
    }
}
