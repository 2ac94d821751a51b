//! A place for a child: the one that sits there, what waits to be sent to it, why it is killed, when
//! the next is started.
//!
//! A child that is being killed is neither heard nor spoken to any more.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;

use super::children::{Backoff, Outbox};
use super::error::Error;
use super::nursery::{Child, Nursery, exit_text};
use super::table::Fault;
use crate::ipc::{self, Message};
use crate::spawner::message::{ChildId, Exit};

/// Time a child has from its start to `Ready`.
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// A place for a child, filled or waiting.
pub(super) struct Seat<M> {
    pub(super) name: String,
    pub(super) child: Option<Running<M>>,
    backoff: Backoff,
    /// When to start the next one.
    due: Option<Instant>,
    /// Deaths, and ends of those that were replaced.
    pub(super) restarts_count: u64,
    pub(super) has_failed: bool,
    /// Nobody will sit here any more.
    is_retired: bool,
}

/// A child that was started and whose end is not known yet.
pub(super) struct Running<M> {
    pub(super) child: Child,
    outbox: Outbox<M>,
    since: Instant,
    /// Why it is being killed.
    doom: Option<Doom>,
}

/// Why a child is being killed.
pub(super) enum Doom {
    /// It did something wrong.
    Fault(String),
    /// It closed its channel: how it ends says why.
    HungUp,
    /// It did nothing wrong: a fresh one is started at once.
    Replaced(&'static str),
    /// It did something wrong by the word of another child.
    Accused(&'static str),
    /// Its work is done, and it is still there.
    Done,
}

impl From<Fault> for Doom {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault.to_string())
    }
}

impl<M: Message> Seat<M> {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            child: None,
            backoff: Backoff::default(),
            due: None,
            restarts_count: 0,
            has_failed: false,
            is_retired: false,
        }
    }

    /// Takes a child whose start began at `since`.
    pub(super) fn sit(&mut self, child: Child, since: Instant) {
        let running = Running { child, outbox: Outbox::new(), since, doom: None };
        self.child = Some(running);
        self.due = None;
    }

    /// The child, unless it is as good as dead.
    fn alive(&mut self) -> Option<&mut Running<M>> {
        self.child.as_mut().filter(|running| running.doom.is_none())
    }

    /// Whether this child sits here.
    pub(super) fn is(&self, id: ChildId) -> bool {
        self.child.as_ref().is_some_and(|running| running.child.id == id)
    }

    /// Whether the next child is to be started now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| now >= due)
    }

    /// Time since the child's start began.
    pub(super) fn age(&self, now: Instant) -> Option<Duration> {
        self.child.as_ref().map(|running| now.saturating_duration_since(running.since))
    }

    /// Kills the child.
    pub(super) fn doom(&mut self, doom: Doom, nursery: &Nursery) -> Result<(), Error> {
        match self.alive() {
            Some(running) => {
                running.doom = Some(doom);
                nursery.kill(running.child.id)
            }
            None => Ok(()),
        }
    }

    /// Kills the child, and starts none after it.
    pub(super) fn retire(&mut self, why: &'static str, nursery: &Nursery) -> Result<(), Error> {
        self.is_retired = true;
        self.due = None;
        self.doom(Doom::Replaced(why), nursery)
    }

    /// Kills a child that is not ready in time.
    pub(super) fn doom_if_late(
        &mut self,
        is_ready: bool,
        now: Instant,
        nursery: &Nursery,
    ) -> Result<(), Error> {
        if !is_ready && self.age(now).is_some_and(|age| age > READY_DEADLINE) {
            return self.doom(Doom::Fault("was not ready in time".to_owned()), nursery);
        }
        Ok(())
    }

    /// Sends what a child that lives must know.
    pub(super) fn send(
        &mut self,
        message: M,
        descriptors: Vec<OwnedFd>,
        nursery: &Nursery,
    ) -> Result<(), Error> {
        let Some(running) = self.alive() else { return Ok(()) };
        match running.outbox.send(&running.child.channel, message, descriptors) {
            // Its end will follow.
            Ok(()) | Err(ipc::Error::Closed) => Ok(()),
            Err(ipc::Error::WouldBlock) => self.doom(Fault::Stalled.into(), nursery),
            Err(error) => self.doom(Fault::Codec(error).into(), nursery),
        }
    }

    /// Sends what waited for room.
    pub(super) fn flush(&mut self, nursery: &Nursery) -> Result<(), Error> {
        let Some(running) = self.alive() else { return Ok(()) };
        match running.outbox.flush(&running.child.channel) {
            Ok(()) | Err(ipc::Error::Closed) => Ok(()),
            Err(error) => self.doom(Fault::Codec(error).into(), nursery),
        }
    }

    /// One frame, if there is one to be read.
    pub(super) fn receive<I: Message>(&mut self) -> Result<Option<I>, Doom> {
        let Some(running) = self.alive() else { return Ok(None) };
        match running.child.channel.try_recv() {
            Ok((message, _)) => Ok(Some(message)),
            Err(ipc::Error::WouldBlock) => Ok(None),
            Err(ipc::Error::Closed) => Err(Doom::HungUp),
            Err(error) => Err(Fault::Codec(error).into()),
        }
    }

    /// What to poll.
    pub(super) fn poll_fd(&self) -> Option<PollFd<'_>> {
        let running = self.child.as_ref().filter(|running| running.doom.is_none())?;
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, running.outbox.is_waiting());
        let fd: BorrowedFd<'_> = running.child.channel.as_fd();
        Some(PollFd::new(fd, flags))
    }

    /// Notes the end of its child, whose work `is_done` or not; returns why it died, `None` when it
    /// ended as it should.
    pub(super) fn leave(&mut self, exit: Exit, is_done: bool, now: Instant) -> Option<String> {
        let cause = self.leave_place(exit, is_done, now);
        if self.is_retired {
            (self.due, self.has_failed) = (None, false);
        }
        cause
    }

    fn leave_place(&mut self, exit: Exit, is_done: bool, now: Instant) -> Option<String> {
        let doom = self.child.take().and_then(|running| running.doom);
        let was_killed_here =
            matches!(doom, Some(Doom::Done | Doom::Replaced(_) | Doom::Accused(_)));
        if is_done && (exit == Exit::Code(0) || was_killed_here) {
            self.due = Some(now);
            return None;
        }
        self.restarts_count += 1;
        if let Some(Doom::Replaced(why)) = doom {
            self.due = Some(now);
            return Some(why.to_owned());
        }
        if let Some(Doom::Accused(why)) = doom {
            self.due = Some(self.backoff.accused(now));
            return Some(why.to_owned());
        }
        self.count_death(now);
        Some(match doom {
            Some(Doom::Fault(text)) => text,
            // Killed here for that, or by the system for want of memory.
            Some(Doom::HungUp) if exit == Exit::Signal(Signal::SIGKILL as i32) => {
                format!("closed its channel; {}", exit_text(exit))
            }
            _ => exit_text(exit),
        })
    }

    /// Notes that a child could not be started.
    pub(super) fn not_started(&mut self, now: Instant) {
        self.restarts_count += 1;
        self.count_death(now);
    }

    fn count_death(&mut self, now: Instant) {
        self.due = self.backoff.died(now);
        self.has_failed = self.due.is_none();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::Channel;
    use crate::ipc::message::ToWorkerControl;

    fn seat(doom: Option<Doom>) -> Seat<ToWorkerControl> {
        let mut seat = Seat::new("worker".to_owned());
        let (channel, _) = Channel::pair().unwrap();
        seat.sit(Child { id: 1, pid: None, channel }, Instant::now());
        seat.child.as_mut().unwrap().doom = doom;
        seat
    }

    #[test]
    fn an_end_after_the_work_is_no_death_and_is_followed_at_once() {
        let now = Instant::now();
        for _ in 0..20 {
            let mut seat = seat(None);
            assert_eq!(seat.leave(Exit::Code(0), true, now), None);
            assert!(seat.is_due(now) && !seat.has_failed && seat.restarts_count == 0);
        }
        let killed = Exit::Signal(Signal::SIGKILL as i32);
        assert_eq!(seat(Some(Doom::Done)).leave(killed, true, now), None);
        assert_eq!(seat(Some(Doom::Replaced("why"))).leave(killed, true, now), None);
        assert_eq!(seat(Some(Doom::Accused("why"))).leave(killed, true, now), None);
    }

    #[test]
    fn who_was_accused_is_followed_after_a_pause() {
        let (now, killed) = (Instant::now(), Exit::Signal(Signal::SIGKILL as i32));
        let mut seat = seat(Some(Doom::Accused("why")));
        assert_eq!(seat.leave(killed, false, now).as_deref(), Some("why"));
        assert!(!seat.is_due(now) && !seat.has_failed && seat.restarts_count == 1);
        assert!(seat.is_due(now + Duration::from_millis(100)));
    }

    #[test]
    fn every_other_end_is_a_death() {
        let now = Instant::now();
        let killed = Exit::Signal(Signal::SIGKILL as i32);
        let cases = [
            (seat(None), Exit::Code(0), false, "ended"),
            (seat(None), Exit::Code(3), true, "ended with code 3"),
            (seat(None), Exit::Signal(31), true, "broke its seccomp filter (signal 31)"),
            (seat(None), killed, true, "killed by signal 9"),
            (seat(Some(Doom::HungUp)), killed, true, "closed its channel; killed by signal 9"),
            (seat(Some(Fault::Stalled.into())), killed, true, "did not take its messages"),
        ];
        for (mut seat, exit, is_done, why) in cases {
            assert_eq!(seat.leave(exit, is_done, now).as_deref(), Some(why));
            assert!(!seat.is_due(now) && seat.restarts_count == 1);
        }
    }
}
