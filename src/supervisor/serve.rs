//! The poll loop: messages in, one commit a turn, effects out, the dead replaced.
//!
//! A turn never waits for a child: what a child does not take waits in its outbox, what it says
//! is read a bounded number of frames a turn. A child that breaks protocol is killed through the
//! spawner; nothing it says afterwards is read.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use super::children::{Backoff, Outbox};
use super::compute::Place;
use super::config::Config;
use super::control::ControlSocket;
use super::dispatch::{Dispatch, Effect, Now};
use super::error::Error;
use super::ledger::Ledger;
use super::manager::Manager;
use super::nursery::{Child, Nursery, exit_text};
use super::table::Fault;
use crate::audit::Event;
use crate::audit::record::ModelFacts;
use crate::ipc::message::{
    FromGateway, GatewayConfig, ListenerKind, ModelIndex, ModelInfo, ToGateway, ToWorkerControl,
    WorkerConfig, WorkerReport,
};
use crate::ipc::{self, Message, data_pair};
use crate::sandbox::Role;
use crate::spawner::message::{ChildId, Exit};

/// Most frames of one child in one turn.
const FRAMES_PER_TURN: usize = 256;
/// Most frames that are read of a child that has ended: somebody else may hold its channel and go on.
const LAST_WORDS_COUNT_MAX: usize = 4096;
/// Longest sleep, so that deadlines and pauses are seen.
const TICK: Duration = Duration::from_millis(250);
/// Time a child has from its start to `Ready`.
const READY_DEADLINE: Duration = Duration::from_secs(120);
/// Time for running requests after an order to stop.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);
/// Time between two attempts to write a log that could not be written.
const LOG_RETRY: Duration = Duration::from_secs(1);

/// A place for a child, filled or waiting.
pub(super) struct Seat<M> {
    pub(super) name: String,
    pub(super) child: Option<Running<M>>,
    backoff: Backoff,
    /// When to start the next one.
    due: Option<Instant>,
    pub(super) restarts_count: u64,
    pub(super) has_failed: bool,
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
enum Doom {
    /// It did something wrong.
    Fault(String),
    /// It closed its channel: how it ends says why.
    HungUp,
    /// It did nothing wrong: a fresh one is started at once.
    Replaced(&'static str),
}

impl<M: Message> Seat<M> {
    fn new(name: String) -> Self {
        Self {
            name,
            child: None,
            backoff: Backoff::default(),
            due: None,
            restarts_count: 0,
            has_failed: false,
        }
    }

    fn sit(&mut self, child: Child, now: Instant) {
        let running = Running { child, outbox: Outbox::new(), since: now, doom: None };
        self.child = Some(running);
        self.due = None;
    }

    /// The child, unless it is as good as dead.
    fn alive(&mut self) -> Option<&mut Running<M>> {
        self.child.as_mut().filter(|running| running.doom.is_none())
    }

    fn doom(&mut self, doom: Doom, nursery: &Nursery) -> Result<(), Error> {
        match self.alive() {
            Some(running) => {
                running.doom = Some(doom);
                nursery.kill(running.child.id)
            }
            None => Ok(()),
        }
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
            Err(ipc::Error::WouldBlock) => self.doom(fault(Fault::Stalled), nursery),
            Err(error) => self.doom(fault(Fault::Codec(error)), nursery),
        }
    }

    /// One frame, if there is one to be read.
    fn receive<I: Message>(&mut self) -> Result<Option<I>, Doom> {
        let Some(running) = self.alive() else { return Ok(None) };
        match running.child.channel.try_recv() {
            Ok((message, _)) => Ok(Some(message)),
            Err(ipc::Error::WouldBlock) => Ok(None),
            Err(ipc::Error::Closed) => Err(Doom::HungUp),
            Err(error) => Err(fault(Fault::Codec(error))),
        }
    }

    /// Notes the end of its child; returns why it ended.
    fn leave(&mut self, exit: Exit, now: Instant) -> String {
        let doom = self.child.take().and_then(|running| running.doom);
        self.restarts_count += 1;
        if let Some(Doom::Replaced(why)) = doom {
            self.due = Some(now);
            return why.to_owned();
        }
        self.due = self.backoff.died(now);
        self.has_failed = self.due.is_none();
        match doom {
            Some(Doom::Fault(text)) => text,
            // Killed here for that, or by the system for want of memory.
            Some(Doom::HungUp) if exit == Exit::Signal(Signal::SIGKILL as i32) => {
                format!("closed its channel; {}", exit_text(exit))
            }
            _ => exit_text(exit),
        }
    }
}

fn fault(fault: Fault) -> Doom {
    Doom::Fault(fault.to_string())
}

/// A model that is served.
pub(super) struct Served {
    pub(super) index: ModelIndex,
    pub(super) facts: ModelFacts,
    /// The sealed image that every worker of it maps.
    pub(super) image: OwnedFd,
    pub(super) loaded_s: u64,
    pub(super) seat: Seat<ToWorkerControl>,
    /// The gateway's end of its worker's data channel, until the gateway has it.
    data: Option<OwnedFd>,
}

impl Served {
    pub(super) fn new(index: ModelIndex, facts: ModelFacts, image: OwnedFd, loaded_s: u64) -> Self {
        let seat = Seat::new(format!("worker {}", facts.model));
        Self { index, facts, image, loaded_s, seat, data: None }
    }
}

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
    pub(super) signals: SignalFd,
    pub(super) listeners: Vec<(ListenerKind, OwnedFd)>,
    pub(super) certificates: Vec<Vec<u8>>,
    pub(super) gateway: Seat<ToGateway>,
    pub(super) models: Vec<Served>,
    /// Where each model is computed.
    pub(super) places: Vec<Place>,
    pub(super) manager: Manager,
    /// Protections that are missing, in sentences.
    pub(super) missing: Vec<String>,
    pub(super) started: Instant,
    pub(super) stop: Option<Stop>,
    pub(super) is_announced: bool,
    /// The state that the service manager knows.
    pub(super) told_state: &'static str,
    pub(super) log_retry: Option<Instant>,
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
        for index in 0..self.models.len() {
            self.start_worker(index)?;
        }
        self.start_gateway()?;
        loop {
            self.sleep()?;
            self.read_signals();
            self.read_gateway(FRAMES_PER_TURN)?;
            for index in 0..self.models.len() {
                self.read_worker(index, FRAMES_PER_TURN)?;
            }
            self.bury()?;
            let now = now();
            self.dispatch.expire(&mut self.ledger, now);
            self.dispatch.feel_pulses(now);
            self.commit(now);
            self.act()?;
            self.answer_operators();
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
        fds.extend(self.nursery.descriptors().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        fds.extend(self.control.descriptors().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        fds.extend(poll_fd(self.gateway.child.as_ref()));
        fds.extend(self.models.iter().filter_map(|model| poll_fd(model.seat.child.as_ref())));
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
                    self.dispatch.hear_gateway(message, &mut self.ledger, now()).map_err(fault)
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

    fn read_worker(&mut self, index: usize, frames_max: usize) -> Result<(), Error> {
        let model = &mut self.models[index];
        for _ in 0..frames_max {
            let done = match model.seat.receive::<WorkerReport>() {
                Ok(Some(report)) => self
                    .dispatch
                    .hear_worker(model.index, report, &mut self.ledger, now())
                    .map_err(fault),
                Ok(None) => return Ok(()),
                Err(doom) => Err(doom),
            };
            if let Err(doom) = done {
                return model.seat.doom(doom, &self.nursery);
            }
        }
        Ok(())
    }

    /// Records the ends of children, after their last words were read.
    fn bury(&mut self) -> Result<(), Error> {
        for (id, exit) in self.nursery.ends()? {
            if self.gateway.child.as_ref().is_some_and(|running| running.child.id == id) {
                self.read_gateway(LAST_WORDS_COUNT_MAX)?;
                self.gateway_gone(exit)?;
            } else if let Some(index) = self.models.iter().position(|model| model.is(id)) {
                self.read_worker(index, LAST_WORDS_COUNT_MAX)?;
                self.worker_gone(index, exit);
            }
        }
        Ok(())
    }

    fn gateway_gone(&mut self, exit: Exit) -> Result<(), Error> {
        let cause = self.gateway.leave(exit, Instant::now());
        self.dispatch.gateway_gone(&mut self.ledger);
        if self.stop.is_none() {
            self.record_death("gateway".to_owned(), cause);
        }
        // Their data channels ended with it; a fresh worker maps the same image.
        for model in &mut self.models {
            if model.data.is_none() {
                let doom = Doom::Replaced("started again for a fresh gateway");
                model.seat.doom(doom, &self.nursery)?;
            }
        }
        Ok(())
    }

    fn worker_gone(&mut self, index: usize, exit: Exit) {
        let model = &mut self.models[index];
        model.data = None;
        let cause = model.seat.leave(exit, Instant::now());
        let name = model.seat.name.clone();
        let panic = self.dispatch.worker_gone(model.index, &mut self.ledger);
        if self.stop.is_none() {
            self.record_death(name, panic.unwrap_or(cause));
        }
    }

    fn record_death(&mut self, child: String, cause: String) {
        super::say(&format!("{child}: {cause}"));
        self.ledger.append(Event::ChildDied { child, cause });
    }

    /// One commit a turn; a log that fails is tried again after a pause.
    fn commit(&mut self, now: Now) {
        let has_begins = self.dispatch.has_waiting();
        let is_early = self.log_retry.is_some_and(|at| now.instant < at);
        if is_early && !has_begins {
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
                    if let Some(model) = self.models.get_mut(usize::from(index.0)) {
                        model.seat.send(message, Vec::new(), &self.nursery)?;
                    }
                }
                Effect::GatewayReady => {
                    for index in 0..self.models.len() {
                        self.introduce(index)?;
                    }
                }
                Effect::WorkerReady(index) => self.introduce(usize::from(index.0))?,
                Effect::WorkerStuck(index, why) => {
                    if let Some(model) = self.models.get_mut(usize::from(index.0)) {
                        model.seat.doom(Doom::Fault(why.to_owned()), &self.nursery)?;
                    }
                }
                Effect::WorkerBroken(index, why) => {
                    if let Some(model) = self.models.get_mut(usize::from(index.0)) {
                        model.seat.doom(Doom::Replaced(why), &self.nursery)?;
                    }
                }
                Effect::GatewayStuck(why) => {
                    self.gateway.doom(Doom::Fault(why.to_owned()), &self.nursery)?;
                }
            }
        }
        self.flush()
    }

    /// Sends what waited for room.
    fn flush(&mut self) -> Result<(), Error> {
        flush(&mut self.gateway, &self.nursery)?;
        self.models.iter_mut().try_for_each(|model| flush(&mut model.seat, &self.nursery))
    }

    /// Brings gateway and worker together, once both serve.
    fn introduce(&mut self, index: usize) -> Result<(), Error> {
        let Some(model) = self.models.get_mut(index) else { return Ok(()) };
        let context = self.dispatch.context_len_tokens(model.index);
        let (true, Some(context_len_tokens)) = (self.dispatch.is_gateway_serving(), context) else {
            return Ok(());
        };
        let Some(data) = model.data.take() else { return Ok(()) };
        let info = ModelInfo {
            name: model.facts.model.clone(),
            context_len_tokens,
            created_s: model.loaded_s,
        };
        let message = ToGateway::WorkerUp { model: model.index, info };
        self.gateway.send(message, vec![data], &self.nursery)
    }

    /// Starts what is due, kills what is late. Returns whether a stop is complete.
    fn replace(&mut self) -> Result<bool, Error> {
        let now = Instant::now();
        if let Some(stop) = self.stop {
            return self.continue_stop(stop, now);
        }
        if self.gateway.due.is_some_and(|due| now >= due) {
            self.start_gateway()?;
        }
        for index in 0..self.models.len() {
            if self.models[index].seat.due.is_some_and(|due| now >= due) {
                self.start_worker(index)?;
            }
            let is_serving = self.dispatch.engine(self.models[index].index).is_some();
            late(&mut self.models[index].seat, is_serving, now, &self.nursery)?;
        }
        late(&mut self.gateway, self.dispatch.is_gateway_serving(), now, &self.nursery)?;
        Ok(false)
    }

    fn continue_stop(&mut self, stop: Stop, now: Instant) -> Result<bool, Error> {
        match stop {
            Stop::Gateway(_) if self.gateway.child.is_none() => {
                self.stop = Some(Stop::Workers(now + Duration::from_secs(5)));
                for model in &mut self.models {
                    model.seat.send(ToWorkerControl::Drain, Vec::new(), &self.nursery)?;
                }
            }
            Stop::Gateway(deadline) if now >= deadline => {
                self.gateway.doom(Doom::Fault("did not drain".to_owned()), &self.nursery)?;
            }
            Stop::Gateway(_) => {}
            Stop::Workers(deadline) => {
                if now >= deadline {
                    self.gateway.doom(Doom::Replaced("stopped"), &self.nursery)?;
                    for model in &mut self.models {
                        model.seat.doom(Doom::Replaced("stopped"), &self.nursery)?;
                    }
                }
                let is_empty = self.models.iter().all(|model| model.seat.child.is_none());
                return Ok(is_empty && self.gateway.child.is_none());
            }
        }
        Ok(false)
    }

    /// The last record. Children are gone; the spawner ends when its channel closes.
    fn finish(mut self) -> Result<(), Error> {
        self.dispatch.flush_counts(&mut self.ledger);
        self.ledger.append(Event::Stop {});
        let path = self.config.audit_folder.clone();
        self.ledger.commit().map_err(|error| Error::Audit(path, error))?;
        // The folder may be root's; whoever starts next replaces the socket.
        let _ = std::fs::remove_file(&self.config.control_socket);
        super::say("stopped");
        Ok(())
    }

    fn start_gateway(&mut self) -> Result<(), Error> {
        let child = self.nursery.spawn(Role::Gateway, 0, None, None)?;
        self.gateway.sit(child, Instant::now());
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
            requests_max: limits.requests_max,
        };
        let copies: Result<Vec<_>, _> =
            self.listeners.iter().map(|(_, fd)| fd.try_clone()).collect();
        let copies = copies.map_err(|_| Error::System("copy a listener", Errno::EMFILE))?;
        self.ledger.append(Event::ChildStarted { child: self.gateway.name.clone() });
        self.gateway.send(ToGateway::Config(config), copies, &self.nursery)
    }

    fn start_worker(&mut self, index: usize) -> Result<(), Error> {
        let model = &mut self.models[index];
        let place = &self.places[index];
        let child = self.nursery.spawn(Role::Worker, model.index.0, place.node, None)?;
        model.seat.sit(child, Instant::now());
        self.dispatch.worker_started(model.index);
        let (near, far) = data_pair().map_err(Error::Channel)?;
        model.data = Some(near);
        let worker = self.config.worker;
        let config = WorkerConfig {
            threads: place.threads,
            processors: place.processors.clone(),
            exact: worker.activations == super::config::Activations::F32,
            kv: worker.kv.format(),
            context_len_tokens: worker.context,
            sequences_max: worker.sequences,
            prefix_domains: worker.prefix_principals,
            prefix_len_tokens: worker.prefix_tokens,
            prefix_keep_s: worker.prefix_keep_s,
            guess_tokens: worker.guess_tokens,
            texts_len_max_bytes: self.config.limits.texts_len_max_bytes(),
        };
        let image = model.image.try_clone();
        let image = image.map_err(|_| Error::System("copy the image", Errno::EMFILE))?;
        self.ledger.append(Event::ChildStarted { child: model.seat.name.clone() });
        model.seat.send(ToWorkerControl::Config(config), vec![image, far], &self.nursery)
    }
}

impl Served {
    fn is(&self, id: ChildId) -> bool {
        self.seat.child.as_ref().is_some_and(|running| running.child.id == id)
    }
}

fn poll_fd<M: Message>(running: Option<&Running<M>>) -> Option<PollFd<'_>> {
    let running = running.filter(|running| running.doom.is_none())?;
    let mut flags = PollFlags::POLLIN;
    flags.set(PollFlags::POLLOUT, running.outbox.is_waiting());
    let fd: BorrowedFd<'_> = running.child.channel.as_fd();
    Some(PollFd::new(fd, flags))
}

fn flush<M: Message>(seat: &mut Seat<M>, nursery: &Nursery) -> Result<(), Error> {
    let Some(running) = seat.alive() else { return Ok(()) };
    match running.outbox.flush(&running.child.channel) {
        Ok(()) | Err(ipc::Error::Closed) => Ok(()),
        Err(error) => seat.doom(fault(Fault::Codec(error)), nursery),
    }
}

/// Kills a child that is not ready in time.
fn late<M: Message>(
    seat: &mut Seat<M>,
    is_ready: bool,
    now: Instant,
    nursery: &Nursery,
) -> Result<(), Error> {
    let is_late = seat
        .alive()
        .is_some_and(|running| now.saturating_duration_since(running.since) > READY_DEADLINE);
    if is_late && !is_ready {
        return seat.doom(Doom::Fault("was not ready in time".to_owned()), nursery);
    }
    Ok(())
}
