//! The spawner's loop: one command after the other, and the ends of children.
//!
//! It decides; what a decision does to processes is behind [`Hands`]. So a fuzzer can drive it without a
//! child being made (`tests/fuzz/targets/spawner.rs`).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Profile;
use super::message::{ChildId, Exit, Failed, FromSpawner, Stage, ToSpawner};
use crate::ipc::{self, Channel};
use crate::sandbox::{Ids, Role};
use crate::sys::numa::Node;

/// Most children at once.
pub const CHILDREN_COUNT_MAX: usize = 64;

/// Makes, kills and reaps children: the kernel's way (`hands.rs`), or a stand-in.
pub trait Hands {
    /// Starts a child and waits until its program runs. What is returned can be read from when the child
    /// has ended.
    ///
    /// # Errors
    ///
    /// The stage that failed; nothing is left of the child then.
    fn start(&self, start: &Start<'_>, fds: &[OwnedFd]) -> Result<OwnedFd, Failed>;

    /// Kills a child; one that has just ended is no error.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn kill(&self, child: &OwnedFd) -> Result<(), Errno>;

    /// How a child ended; `None` if it has not.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn reap(&self, child: &OwnedFd) -> Result<Option<Exit>, Errno>;

    /// Waits until a killed child is gone.
    fn bury(&self, child: &OwnedFd);
}

/// A child that may be started.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// Its program.
    pub role: Role,
    /// Its user and group, never root's.
    pub ids: Ids,
    /// Where it keeps to, if anywhere.
    pub node: Option<&'a Node>,
}

/// What may be started: a role has one offer.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Its program.
    pub role: Role,
    /// User and group of the first such child.
    pub ids: Ids,
    /// How many there are: each index is below.
    pub count: u16,
}

/// What the spawner has for as long as it runs.
pub struct Spawner<'a, H> {
    hands: H,
    profile: Profile,
    offers: Vec<Offer>,
    nodes: Vec<Node>,
    channel: &'a Channel,
    children: BTreeMap<ChildId, OwnedFd>,
}

impl<'a, H: Hands> Spawner<'a, H> {
    /// Has no child yet; `nodes` are those that a child can be kept to.
    pub fn new(
        hands: H,
        (profile, offers): (Profile, Vec<Offer>),
        nodes: Vec<Node>,
        channel: &'a Channel,
    ) -> Self {
        Self { hands, profile, offers, nodes, channel, children: BTreeMap::new() }
    }

    /// Serves until the supervisor's end closes or says something wrong, then kills all children.
    pub fn run(mut self) {
        while self.turn().is_ok() {}
        self.end();
    }

    /// Kills all children and waits until they are gone.
    pub fn end(self) {
        for child in self.children.values() {
            // One that just ended is as good as killed.
            let _ = self.hands.kill(child);
        }
        self.children.values().for_each(|child| self.hands.bury(child));
    }

    /// Waits for a command or an end and answers it.
    ///
    /// # Errors
    ///
    /// That the supervisor is gone, or said something wrong: the loop ends.
    pub fn turn(&mut self) -> Result<(), ipc::Error> {
        let mut ends = vec![PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
        let children = self.children.values();
        ends.extend(children.map(|child| PollFd::new(child.as_fd(), PollFlags::POLLIN)));
        match poll(&mut ends, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(ipc::Error::Io { action: "wait", errno }),
        }
        let is_ready = |end: &PollFd<'_>| end.any().unwrap_or(true);
        let is_commanded = is_ready(&ends[0]);
        let ended: Vec<ChildId> = self
            .children
            .keys()
            .zip(&ends[1..])
            .filter(|(_, end)| is_ready(end))
            .map(|(&child, _)| child)
            .collect();
        for child in ended {
            self.reap(child)?;
        }
        if is_commanded {
            let (command, fds) = self.channel.recv()?;
            self.obey(command, &fds)?;
        }
        Ok(())
    }

    fn reap(&mut self, child: ChildId) -> Result<(), ipc::Error> {
        let Some(ended) = self.children.get(&child) else { return Ok(()) };
        match self.hands.reap(ended) {
            Ok(None) => Ok(()),
            Ok(Some(exit)) => {
                self.children.remove(&child);
                self.channel.send(&FromSpawner::Exited { child, exit }, &[])
            }
            Err(errno) => Err(ipc::Error::Io { action: "reap", errno }),
        }
    }

    fn obey(&mut self, command: ToSpawner, fds: &[OwnedFd]) -> Result<(), ipc::Error> {
        match command {
            ToSpawner::Spawn { child, role, index, node, .. } => {
                let started = self.judge(child, (role, index), node);
                match started.and_then(|start| self.hands.start(&start, fds)) {
                    Ok(started) => {
                        self.channel.send(&FromSpawner::Spawned { child }, &[started.as_fd()])?;
                        self.children.insert(child, started);
                        Ok(())
                    }
                    Err(failed) => self.channel.send(&FromSpawner::Failed { child, failed }, &[]),
                }
            }
            ToSpawner::Kill { child } => match self.children.get(&child) {
                Some(child) => {
                    self.hands.kill(child).map_err(|errno| ipc::Error::Io { action: "kill", errno })
                }
                None => Ok(()),
            },
        }
    }

    /// Whether such a child may be started now, and as whom.
    fn judge(
        &self,
        child: ChildId,
        (role, index): (Role, u16),
        node: Option<u16>,
    ) -> Result<Start<'_>, Failed> {
        let refused = |errno| Failed::new(Stage::Command, errno);
        if self.children.contains_key(&child) {
            return Err(refused(Errno::EEXIST));
        }
        if self.children.len() >= CHILDREN_COUNT_MAX {
            return Err(refused(Errno::EAGAIN));
        }
        let offer = self.offers.iter().find(|offer| offer.role == role);
        let offer = offer.ok_or(refused(Errno::ENOENT))?;
        if index >= offer.count {
            return Err(refused(Errno::ERANGE));
        }
        let uid = match self.profile {
            Profile::Full => offer.ids.uid.checked_add(u32::from(index)),
            Profile::Evaluation => Some(offer.ids.uid),
        };
        // To the kernel, the last number means to stay who one is.
        let uid = uid.filter(|uid| ![0, u32::MAX].contains(uid)).ok_or(refused(Errno::ERANGE))?;
        let ids = Ids { uid, gid: offer.ids.gid };
        let node = match node {
            None => None,
            Some(number) => {
                let node = self.nodes.iter().find(|node| node.number == number);
                Some(node.ok_or(refused(Errno::ENODEV))?)
            }
        };
        Ok(Start { role, ids, node })
    }
}
