//! The poll loop: messages in, one commit a turn, effects out, the dead replaced.
//!
//! A turn never waits for a child: what a child does not take waits in its outbox, what it says
//! is read a bounded number of frames a turn. A child that breaks protocol is killed through the
//! spawner; nothing it says afterwards is read.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use super::cards::Cards;
use super::clock::Clocks;
use super::compute::Place;
use super::config::Config;
use super::control::ControlSocket;
use super::dispatch::{Dispatch, Effect, Now};
use super::erasure::Erasures;
use super::error::Error;
use super::intake::Intake;
use super::ledger::Ledger;
use super::manager::Manager;
use super::nursery::Nursery;
use super::readings::{ReadersSocket, Readings};
use super::seat::{Doom, Seat};
use super::workers::{Served, WorkerSeat};
use crate::audit::Event;
use crate::audit::record::ChildFacts;
use crate::ipc::message::{FromGateway, GatewayConfig, ListenerKind, ToGateway, ToWorkerControl};
use crate::sandbox::Role;
use crate::spawner::message::Exit;

/// Most frames of one child in one turn.
const FRAMES_PER_TURN: usize = 256;
/// Most frames that are read of a child that has ended: somebody else may hold its channel and go on.
const LAST_WORDS_COUNT_MAX: usize = 4096;
/// Longest sleep, so that deadlines and pauses are seen.
const TICK: Duration = Duration::from_millis(250);
/// Time for running requests after an order to stop.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);
/// Time between two attempts to write a log that could not be written.
const LOG_RETRY: Duration = Duration::from_secs(1);

/// How far a stop is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// The gateway finishes what runs.
    Gateway(Instant),
    /// The workers end.
    Workers(Instant),
}

/// Everything that serves.
pub(super) struct Supervisor {
    pub(super) config: Config,
    pub(super) nursery: Nursery,
    pub(super) dispatch: Dispatch,
    pub(super) ledger: Ledger,
    pub(super) control: ControlSocket,
    /// The auditors', where there are any.
    pub(super) readers: Option<ReadersSocket>,
    pub(super) readings: Readings,
    pub(super) signals: SignalFd,
    pub(super) listeners: Vec<(ListenerKind, OwnedFd)>,
    pub(super) certificates: Vec<Vec<u8>>,
    pub(super) gateway: Seat<ToGateway>,
    pub(super) models: Vec<Served>,
    pub(super) intake: Intake,
    pub(super) workers: Vec<WorkerSeat>,
    /// Where each model is computed.
    pub(super) places: Vec<Place>,
    /// Which models use a card.
    pub(super) cards: Cards,
    pub(super) manager: Manager,
    /// Protections that are missing with or without a card, in sentences.
    pub(super) missing: Vec<String>,
    pub(super) started: Instant,
    pub(super) stop: Option<Stop>,
    /// Why the start is refused, once a stop is complete.
    pub(super) refused: Option<Error>,
    pub(super) is_announced: bool,
    /// The state that the service manager knows.
    pub(super) told_state: &'static str,
    pub(super) log_retry: Option<Instant>,
    /// The system's clock against the monotonic one, when last seen to step.
    pub(super) clocks: Clocks,
    pub(super) erasures: Erasures,
}

/// The moment now.
pub(super) fn now() -> Now {
    let wall_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Now { wall_s, instant: Instant::now() }
}

/// A seat for the gateway.
pub(super) fn gateway_seat() -> Seat<ToGateway> {
    Seat::new("gateway".to_owned())
}

impl Supervisor {
    /// Serves until told to stop, or until the spawner is gone.
    pub(super) fn serve(mut self) -> Result<(), Error> {
        for at in 0..self.workers.len() {
            // A start that was refused for what a worker's card lacks is a stop already.
            if self.stop.is_none() {
                self.start_worker(at)?;
            }
        }
        if self.stop.is_none() {
            self.start_gateway()?;
        }
        loop {
            self.sleep()?;
            self.read_signals();
            self.read_gateway(FRAMES_PER_TURN)?;
            for at in 0..self.workers.len() {
                self.read_worker(at, FRAMES_PER_TURN)?;
            }
            self.bury()?;
            self.watch_clock();
            let now = now();
            self.dispatch.expire(&mut self.ledger, now);
            self.dispatch.feel_pulses(now);
            self.commit(now);
            self.act()?;
            self.answer_operators();
            self.hear_readers();
            self.announce();
            self.manager.alive();
            if self.replace()? {
                return self.finish();
            }
        }
    }

    /// Waits for anything to read, for room in a full channel, or for a tick.
    fn sleep(&self) -> Result<(), Error> {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let spawners = self.nursery.descriptors();
        fds.extend(spawners.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        fds.extend(self.control.descriptors().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let readers = self.readers.iter().flat_map(ReadersSocket::descriptors);
        fds.extend(readers.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        fds.extend(self.gateway.poll_fd());
        fds.extend(self.workers.iter().filter_map(|worker| worker.seat.poll_fd()));
        let tick = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, tick) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Error::System("wait", errno)),
        }
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok());
            match signal {
                Some(Signal::SIGHUP) => self.reload_from_file(),
                _ => self.begin_stop(),
            }
        }
    }

    /// First order: finish what runs. Second order: end now.
    pub(super) fn begin_stop(&mut self) {
        let now = Instant::now();
        if self.stop.is_some() {
            self.stop = Some(Stop::Workers(now));
            return;
        }
        super::say("stopping");
        self.manager.stopping();
        self.dispatch.stop();
        self.stop = Some(Stop::Gateway(now + DRAIN_DEADLINE));
        // A gateway that is gone needs no word; its seat stays empty from now on.
        let _ = self.gateway.send(ToGateway::Drain, Vec::new(), &self.nursery);
    }

    fn read_gateway(&mut self, frames_max: usize) -> Result<(), Error> {
        for _ in 0..frames_max {
            let done = match self.gateway.receive::<FromGateway>() {
                Ok(Some(message)) => {
                    self.dispatch.hear_gateway(message, &mut self.ledger, now()).map_err(Doom::from)
                }
                Ok(None) => return Ok(()),
                Err(doom) => Err(doom),
            };
            if let Err(doom) = done {
                return self.gateway.doom(doom, &self.nursery);
            }
        }
        Ok(())
    }

    /// Records the ends of children, after their last words were read.
    fn bury(&mut self) -> Result<(), Error> {
        let ends = self.nursery.ends()?;
        self.lose_cards()?;
        for (id, exit) in ends {
            if self.gateway.is(id) {
                self.read_gateway(LAST_WORDS_COUNT_MAX)?;
                self.gateway_gone(exit)?;
            } else if let Some(at) = self.workers.iter().position(|worker| worker.seat.is(id)) {
                self.read_worker(at, LAST_WORDS_COUNT_MAX)?;
                self.worker_gone(at, exit);
            }
        }
        Ok(())
    }

    fn gateway_gone(&mut self, exit: Exit) -> Result<(), Error> {
        let cause = self.gateway.leave(exit, false, Instant::now());
        self.dispatch.gateway_gone(&mut self.ledger);
        self.record_death("gateway".to_owned(), Some(exit), cause.unwrap_or_default(), None);
        self.replace_introduced_workers()
    }

    /// One commit a turn; a log that fails is tried again after a pause.
    fn commit(&mut self, now: Now) {
        let has_begins = self.dispatch.has_beginning();
        let is_early = self.log_retry.is_some_and(|at| now.instant < at);
        if is_early && !has_begins {
            self.ledger.shed();
            return;
        }
        let was_failing = self.ledger.is_failing();
        let is_durable = self.dispatch.commit(&mut self.ledger, now);
        self.log_retry = (!is_durable).then(|| now.instant + LOG_RETRY);
        if was_failing == is_durable {
            match (is_durable, self.ledger.failure()) {
                (true, _) => super::say("the audit log can be written again"),
                (false, why) => {
                    super::say(&format!("no requests until the audit log can be written: {why}"))
                }
            }
        }
    }

    fn act(&mut self) -> Result<(), Error> {
        for effect in self.dispatch.take_effects() {
            match effect {
                Effect::Gateway(message) => {
                    self.gateway.send(message, Vec::new(), &self.nursery)?
                }
                Effect::Worker(index, message) => {
                    if let Some(worker) = self.workers.get_mut(usize::from(index.0)) {
                        worker.seat.send(message, Vec::new(), &self.nursery)?;
                    }
                }
                Effect::GatewayReady => self.introduce_all()?,
                Effect::ModelReady(index) => {
                    self.say_plan(index);
                    self.show_model(index)?;
                }
                Effect::WorkerReady(index) => self.worker_ready(index)?,
                Effect::NoCard(index, why) => self.no_card(index, why)?,
                Effect::WorkerStuck(index, why) => {
                    self.doom_worker(index, Doom::Fault(why.to_owned()))?;
                }
                Effect::WorkerBroken(index, why) => {
                    self.doom_worker(index, Doom::Accused(why))?;
                }
                Effect::WorkerDone(index) => self.doom_worker(index, Doom::Done)?,
                Effect::GatewayStuck(why) => {
                    self.gateway.doom(Doom::Fault(why.to_owned()), &self.nursery)?;
                }
            }
        }
        self.flush()
    }

    /// Sends what waited for room.
    fn flush(&mut self) -> Result<(), Error> {
        self.gateway.flush(&self.nursery)?;
        self.workers.iter_mut().try_for_each(|worker| worker.seat.flush(&self.nursery))
    }

    /// Starts what is due, kills what is late. Returns whether a stop is complete.
    fn replace(&mut self) -> Result<bool, Error> {
        let now = Instant::now();
        if let Some(stop) = self.stop {
            return self.continue_stop(stop, now);
        }
        if self.gateway.is_due(now) {
            self.start_gateway()?;
        }
        self.replace_workers(now)?;
        self.gateway.doom_if_late(self.dispatch.is_gateway_serving(), now, &self.nursery)?;
        Ok(false)
    }

    fn continue_stop(&mut self, stop: Stop, now: Instant) -> Result<bool, Error> {
        match stop {
            Stop::Gateway(_) if self.gateway.child.is_none() => {
                self.stop = Some(Stop::Workers(now + Duration::from_secs(5)));
                self.drop_data_channels();
                for worker in &mut self.workers {
                    worker.seat.send(ToWorkerControl::Drain, Vec::new(), &self.nursery)?;
                }
            }
            Stop::Gateway(deadline) if now >= deadline => {
                self.gateway.doom(Doom::Fault("did not drain".to_owned()), &self.nursery)?;
            }
            // What has begun still gets the workers that it waits for.
            Stop::Gateway(_) if self.dispatch.waiting_count() > 0 => self.replace_workers(now)?,
            Stop::Gateway(_) => {}
            Stop::Workers(deadline) => {
                if now >= deadline {
                    self.gateway.doom(Doom::Replaced("stopped"), &self.nursery)?;
                    for worker in &mut self.workers {
                        worker.seat.doom(Doom::Replaced("stopped"), &self.nursery)?;
                    }
                }
                let is_empty = self.workers.iter().all(|worker| worker.seat.child.is_none());
                return Ok(is_empty && self.gateway.child.is_none());
            }
        }
        Ok(false)
    }

    /// The last record. Children are gone; the spawner ends when its channel closes.
    fn finish(mut self) -> Result<(), Error> {
        self.dispatch.flush_counts(&mut self.ledger);
        self.ledger.append_all(self.readings.all());
        self.ledger.append(Event::Stop {});
        let path = self.config.audit_folder.clone();
        self.ledger.commit().map_err(|error| Error::Audit(path, error))?;
        if let Err(error) = self.ledger.close() {
            super::say(&format!(
                "the audit log is whole, but its next start takes longer: {error}"
            ));
        }
        // The folder may be root's; whoever starts next replaces the socket.
        let _ = std::fs::remove_file(&self.config.control_socket);
        self.readers.iter().for_each(ReadersSocket::remove);
        super::say("stopped");
        self.refused.map_or(Ok(()), Err)
    }

    fn start_gateway(&mut self) -> Result<(), Error> {
        let since = Instant::now();
        let child = self.nursery.spawn(Role::Gateway, 0, None, None)?;
        self.gateway.sit(child, since);
        self.dispatch.gateway_started();
        let limits = self.config.limits;
        let tls_scheme =
            if self.certificates.is_empty() { 0 } else { super::tls::ECDSA_P256_SHA256 };
        let config = GatewayConfig {
            listeners: self.listeners.iter().map(|(kind, _)| *kind).collect(),
            certificates: self.certificates.clone(),
            tls_scheme,
            body_len_max_bytes: limits.body_len_max_bytes,
            read_deadline_ms: limits.read_deadline_ms,
            write_deadline_ms: limits.write_deadline_ms,
            connections_max: limits.connections_max,
            connections_per_peer_max: limits.connections_per_peer_max,
            requests_max: limits.requests_max,
        };
        let copies: Result<Vec<_>, _> =
            self.listeners.iter().map(|(_, fd)| fd.try_clone()).collect();
        let copies = copies.map_err(|_| Error::System("copy a listener", Errno::EMFILE))?;
        let observed = ChildFacts { child: self.gateway.name.clone() };
        self.ledger.append(Event::ChildStarted { observed });
        self.gateway.send(ToGateway::Config(config), copies, &self.nursery)
    }
}
