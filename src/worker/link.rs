//! The thread that talks: tickets and work in, text deltas and reports out.
//!
//! It reads the control channel before it judges a request, so a ticket that was sent before
//! the request is always seen before it. It never touches the engine, and a reader that stalls
//! never stalls the engine: what waits to be written is bounded, and over the bound the
//! gateway counts as gone.

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zeroize::Zeroize as _;

use super::scheduler::Heard;
use super::tickets::{Right, Tickets};
use crate::engine::CacheDomain;
use crate::ipc::message::{
    Failure, FromWorker, Generate, NO_TICKETS_COUNT_MAX, RequestId, ToWorker, ToWorkerControl,
    WorkerReport,
};
use crate::ipc::{Channel, DataChannel, Error, Event};

/// Frames of the gateway that are read before its answers are written.
const FRAMES_PER_TURN: usize = 64;
/// Most bytes of answers that wait for the gateway to read them.
const UNREAD_LEN_MAX_BYTES: usize = 16 << 20;

/// What the engine's side has to say.
#[derive(Debug)]
pub(super) enum Said {
    /// To the gateway.
    Gateway(FromWorker),
    /// To the supervisor.
    Supervisor(WorkerReport),
}

/// What the thread that renders and tokenizes is told.
#[derive(Debug)]
pub(super) enum Admitted {
    /// A request with its ticket.
    Request(Box<Generate>, Right),
    /// A question whether all threads work, to be passed on.
    AreYouThere,
}

/// Most texts that are kept to be used again.
const SPARE_COUNT_MAX: usize = 1024;

/// What was said and not sent yet. Grows to the most that ever waited; then saying something
/// allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Sayings {
    said: Mutex<VecDeque<Said>>,
    /// Texts that were sent: empty and erased.
    spare: Mutex<Vec<String>>,
}

impl Sayings {
    /// The next to be sent.
    #[must_use]
    pub(super) fn take(&self) -> Option<Said> {
        locked(&self.said).pop_front()
    }

    fn give_back(&self, mut text: String) {
        text.zeroize();
        let mut spare = locked(&self.spare);
        if spare.len() < SPARE_COUNT_MAX {
            spare.push(text);
        }
    }
}

/// Whoever panicked under the lock takes the process with it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes the link's poll; written by whoever queued something to say.
#[derive(Debug)]
pub(super) struct Mouth {
    queue: Arc<Sayings>,
    wake: Arc<OwnedFd>,
}

impl Mouth {
    /// Joins the queue and the pipe that wakes its reader.
    #[must_use]
    pub(super) fn new(queue: Arc<Sayings>, wake: Arc<OwnedFd>) -> Self {
        Self { queue, wake }
    }

    /// Queues a message. After the link is gone it goes nowhere: the process is ending.
    pub(super) fn say(&self, said: Said) {
        locked(&self.queue.said).push_back(said);
        // A full pipe wakes as well as one more byte.
        let _ = nix::unistd::write(&self.wake, &[1]);
    }

    /// An empty text to be filled and said, or given back.
    #[must_use]
    pub(super) fn blank(&self) -> String {
        locked(&self.queue.spare).pop().unwrap_or_default()
    }

    /// Takes a text back that was not said.
    pub(super) fn give_back(&self, text: String) {
        self.queue.give_back(text);
    }
}

/// Why the link ended; the process ends with it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The supervisor or the gateway closed its end.
    Closed,
    /// A channel broke or the other side broke protocol.
    Broken(Error),
    /// The supervisor gave more tickets than there may be.
    TooManyTickets,
    /// The gateway does not read its answers.
    Unread,
    /// The one request was served, and all of its answer was handed over.
    Served,
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        if error == Error::Closed { Self::Closed } else { Self::Broken(error) }
    }
}

/// The link's ends.
pub(super) struct Link {
    /// To the supervisor.
    pub(super) control: Arc<Channel>,
    /// To the gateway.
    pub(super) data: DataChannel<FromWorker, ToWorker>,
    /// What the engine's side says.
    pub(super) said: Arc<Sayings>,
    /// Readable when something was said.
    pub(super) woken: OwnedFd,
    /// Requests, to the thread that renders and tokenizes them.
    pub(super) admitted: Sender<Admitted>,
    /// Everything else, to the engine's thread.
    pub(super) heard: Sender<Heard>,
    /// There is one ticket, ever; after its request the link ends.
    pub(super) one_request: bool,
}

impl Link {
    /// Talks until a channel ends; returns why.
    pub(super) fn run(mut self) -> Ended {
        let tickets = if self.one_request { Tickets::one() } else { Tickets::default() };
        let mut state = State { tickets, ..State::default() };
        loop {
            if let Err(ended) = self.turn(&mut state) {
                return ended;
            }
        }
    }

    fn turn(&mut self, state: &mut State) -> Result<(), Ended> {
        let mut data_events = PollFlags::POLLIN;
        data_events.set(PollFlags::POLLOUT, self.data.pending_len() > 0);
        let mut fds = [
            PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.data.as_fd(), data_events),
            PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(Ended::Broken(Error::Io { action: "poll", errno })),
        }
        self.hear_supervisor(state)?;
        self.hear_gateway(state)?;
        self.speak(state)?;
        let is_handed_over = state.is_reported && state.is_answered && self.data.pending_len() == 0;
        if self.one_request && is_handed_over { Err(Ended::Served) } else { Ok(()) }
    }

    fn hear_supervisor(&self, state: &mut State) -> Result<(), Ended> {
        loop {
            match self.control.try_recv::<ToWorkerControl>() {
                Ok((ToWorkerControl::Ticket(ticket), _)) => {
                    if !state.tickets.keep(ticket, Instant::now()) {
                        return Err(Ended::TooManyTickets);
                    }
                }
                Ok((ToWorkerControl::Revoke { request }, _)) if state.open.contains(&request) => {
                    self.pass_on(Heard::Cancel(request))?;
                }
                Ok((ToWorkerControl::Revoke { request }, _)) => {
                    state.tickets.void(request);
                    self.control.send(&WorkerReport::Unused { request }, &[])?;
                }
                Ok((ToWorkerControl::Forget { cache_domain }, _)) => {
                    state.tickets.forget(cache_domain);
                    self.pass_on(Heard::Forget(CacheDomain(cache_domain)))?;
                }
                Ok((ToWorkerControl::AreYouThere, _)) => {
                    self.admitted.send(Admitted::AreYouThere).map_err(|_| Ended::Closed)?;
                }
                Ok((ToWorkerControl::Drain, _)) => self.pass_on(Heard::Drain)?,
                // A configuration comes once, before the link runs.
                Ok((ToWorkerControl::Config(_), _)) => {
                    let what = "configuration";
                    return Err(Ended::Broken(Error::UnknownVariant { what, value: 0 }));
                }
                Err(Error::WouldBlock) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes some frames; for more it comes back after it has spoken.
    fn hear_gateway(&mut self, state: &mut State) -> Result<(), Ended> {
        for _ in 0..FRAMES_PER_TURN {
            match self.data.read()? {
                Event::Message(ToWorker::Generate(generate)) => self.judge(generate, state)?,
                Event::Message(ToWorker::Cancel { request }) if state.open.contains(&request) => {
                    self.pass_on(Heard::Cancel(request))?;
                }
                // It ended, or never was: nothing is kept of it, whoever asks how often.
                Event::Message(ToWorker::Cancel { .. }) => {}
                Event::Empty => return Ok(()),
                Event::Closed => return Err(Ended::Closed),
            }
        }
        Ok(())
    }

    /// Passes a request on if it has a ticket; refuses and reports it otherwise.
    fn judge(&mut self, generate: Box<Generate>, state: &mut State) -> Result<(), Ended> {
        self.hear_supervisor(state)?;
        let request = generate.request;
        if let Some(right) = state.tickets.take(request, Instant::now()) {
            state.open.insert(request);
            let request = Admitted::Request(generate, right);
            return self.admitted.send(request).map_err(|_| Ended::Closed);
        }
        // Told once per request: a gateway that asks again learns nothing and costs no record.
        if state.told.len() < NO_TICKETS_COUNT_MAX && state.told.insert(request) {
            self.control.send(&WorkerReport::NoTicket { request }, &[])?;
        }
        self.data.push(&FromWorker::Failed { request, failure: Failure::NoTicket })?;
        Ok(())
    }

    fn pass_on(&self, heard: Heard) -> Result<(), Ended> {
        self.heard.send(heard).map_err(|_| Ended::Closed)
    }

    fn speak(&mut self, state: &mut State) -> Result<(), Ended> {
        let mut bytes = [0; 64];
        // Only empties the pipe; what was said stands in the queue.
        let _ = nix::unistd::read(&self.woken, &mut bytes);
        while let Some(said) = self.said.take() {
            match said {
                Said::Gateway(message) => {
                    self.data.push(&message)?;
                    state.is_answered |=
                        matches!(message, FromWorker::Done { .. } | FromWorker::Failed { .. });
                    if let FromWorker::Delta { text, .. } = message {
                        self.said.give_back(text);
                    }
                }
                Said::Supervisor(report) => {
                    self.control.send(&report, &[])?;
                    if let WorkerReport::End(report) = report {
                        state.open.remove(&report.request);
                        state.is_reported = true;
                    }
                }
            }
        }
        self.data.flush()?;
        if self.data.pending_len() > UNREAD_LEN_MAX_BYTES {
            return Err(Ended::Unread);
        }
        Ok(())
    }
}

#[derive(Default)]
struct State {
    tickets: Tickets,
    /// Requests that had their ticket and whose end the supervisor has not been told.
    open: HashSet<RequestId>,
    told: HashSet<RequestId>,
    /// The supervisor has the end of a request.
    is_reported: bool,
    /// The gateway was told of the end of a request.
    is_answered: bool,
}
