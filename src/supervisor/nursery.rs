//! The supervisor's side of the spawners: start, kill, and word of every end.
//!
//! One starts all children but the workers that use a card; those of each card have another, which lets them do what
//! its driver needs.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::signal::Signal;

use super::cards::{Cards, WORKER_GPU};
use super::config::{Config, Devices, Profile, Swap};
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
/// Descriptors of a worker for each card that it uses: the driver opens its devices many times.
const CARD_DESCRIPTORS_COUNT: u64 = 512;

/// A started child.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) id: ChildId,
    /// Its number, if `/proc` tells.
    pub(super) pid: Option<i32>,
    pub(super) channel: Channel,
}

/// A spawner, as seen from here.
struct Line {
    /// The cards of its workers; none for that of all other children.
    cards: Option<Devices>,
    channel: Channel,
    pidfd: OwnedFd,
    /// It ended, and its children with it.
    is_gone: bool,
}

/// The spawners, as seen from here.
pub(super) struct Nursery {
    /// The first is that of all children but those that use a card.
    lines: Vec<Line>,
    /// Which of them started a child, if not the first.
    on_cards: BTreeMap<ChildId, usize>,
    next: ChildId,
    ends: VecDeque<(ChildId, Exit)>,
}

impl Nursery {
    /// Forks the spawners; before any key is read and any thread is made. Cards whose own does not start are
    /// [lost](Cards::lose).
    pub(super) fn start(config: &Config, cards: &mut Cards) -> Result<Self, Error> {
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
            program(Role::Opener, own.clone(), users.opener, 1, few),
        ];
        let profile = spawner_profile(config.profile);
        let locks_memory = config.sandbox.swap == Swap::Lock;
        let start = |cards, programs, root| {
            let asked = spawner::Config { profile, programs, locks_memory, root };
            let started = spawner::start(&asked).map_err(Error::Spawner)?;
            let spawner::Started { channel, pidfd } = started;
            Ok(Line { cards, channel, pidfd, is_gone: false })
        };
        let mut lines = vec![start(None, programs, Vec::new())?];
        let mut lost = Vec::new();
        for (together, root) in cards.roots() {
            let (path, uid) = (beside(WORKER_GPU), users.worker_first);
            let many = CARD_DESCRIPTORS_COUNT * u64::from(together.count());
            let worker = program(Role::WorkerGpu, path, uid, workers_count, many);
            match start(Some(together.clone()), vec![worker], root.clone()) {
                Ok(line) => lines.push(line),
                Err(error) => lost.push((together.clone(), error.to_string())),
            }
        }
        lost.iter().try_for_each(|(lost, why)| cards.lose(config, lost, why))?;
        Ok(Self { lines, on_cards: BTreeMap::new(), next: 1, ends: VecDeque::new() })
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
        self.order(0, (role, index, node), signals)
    }

    /// Starts a worker that uses cards; `None` if their spawner is [gone](Nursery::gone).
    pub(super) fn spawn_on(
        &mut self,
        cards: &Devices,
        index: u16,
        node: Option<u16>,
    ) -> Result<Option<Child>, Error> {
        let is_its = |line: &Line| line.cards.as_ref() == Some(cards);
        let Some(at) = self.lines.iter().position(|line| is_its(line) && !line.is_gone) else {
            return Ok(None);
        };
        match self.order(at, (Role::WorkerGpu, index, node), None) {
            Ok(child) => {
                self.on_cards.insert(child.id, at);
                Ok(Some(child))
            }
            Err(Error::Channel(ipc::Error::Closed)) => {
                self.lose(at);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes note that a spawner of cards is gone, whose end killed all its children.
    fn lose(&mut self, at: usize) {
        self.lines[at].is_gone = true;
        let its = self.on_cards.iter().filter(|(_, line)| **line == at).map(|(&child, _)| child);
        let killed = its.filter(|child| self.ends.iter().all(|(ended, _)| ended != child));
        let killed: Vec<ChildId> = killed.collect();
        let exit = Exit::Signal(Signal::SIGKILL as i32);
        self.ends.extend(killed.into_iter().map(|child| (child, exit)));
    }

    /// The cards whose spawner is gone.
    pub(super) fn gone(&self) -> impl Iterator<Item = &Devices> {
        self.lines.iter().filter(|line| line.is_gone).filter_map(|line| line.cards.as_ref())
    }

    fn order(
        &mut self,
        at: usize,
        (role, index, node): (Role, u16, Option<u16>),
        signals: Option<BorrowedFd<'_>>,
    ) -> Result<Child, Error> {
        let (ours, theirs) = Channel::pair().map_err(Error::Channel)?;
        let id = self.next;
        self.next += 1;
        let order = ToSpawner::Spawn { child: id, role, index, descriptors: 1, node };
        let spawner = &self.lines[at].channel;
        spawner.try_send(&order, &[theirs.as_fd()]).map_err(Error::Channel)?;
        drop(theirs);
        let deadline = Instant::now() + SPAWN_DEADLINE;
        loop {
            match wait(spawner.as_fd(), PollFlags::POLLIN, signals, deadline) {
                Ok(Wake::Ready) => {}
                Ok(Wake::Stop) => return Err(Error::Stopped),
                Ok(Wake::Late) => return Err(Error::NotReady("spawner")),
                Err(errno) => return Err(Error::System("wait for the spawner", errno)),
            }
            match spawner.try_recv().map_err(Error::Channel)? {
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
        let at = self.on_cards.get(&id).copied().unwrap_or_default();
        let line = &self.lines[at];
        match line.channel.try_send(&ToSpawner::Kill { child: id }, &[]) {
            // It died with its spawner.
            Err(ipc::Error::Closed) if line.cards.is_some() => Ok(()),
            sent => sent.map_err(Error::Channel),
        }
    }

    /// Kills children that use no card and waits for their ends; `None` for one whose end does not come in time.
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
            match wait(self.lines[0].channel.as_fd(), PollFlags::POLLIN, None, deadline) {
                Ok(Wake::Ready) => {}
                Ok(_) => return Ok(exits),
                Err(errno) => return Err(Error::System("wait for the spawner", errno)),
            }
        }
    }

    /// The children that ended since the last call.
    pub(super) fn ends(&mut self) -> Result<Vec<(ChildId, Exit)>, Error> {
        for at in 0..self.lines.len() {
            while !self.lines[at].is_gone {
                match self.lines[at].channel.try_recv() {
                    Ok((FromSpawner::Exited { child, exit }, _)) => {
                        self.ends.push_back((child, exit));
                    }
                    Ok(_) => return Err(Error::NotReady("spawner")),
                    Err(ipc::Error::WouldBlock) => break,
                    Err(ipc::Error::Closed) if self.lines[at].cards.is_some() => self.lose(at),
                    Err(error) => return Err(Error::Channel(error)),
                }
            }
        }
        for (child, _) in &self.ends {
            self.on_cards.remove(child);
        }
        Ok(self.ends.drain(..).collect())
    }

    /// What to poll: of each spawner the channel, and its own end.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let there = self.lines.iter().filter(|line| !line.is_gone);
        there.flat_map(|line| [line.channel.as_fd(), line.pidfd.as_fd()])
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
