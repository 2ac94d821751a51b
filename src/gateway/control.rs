//! The control channel to the supervisor: questions with a number, answers to it, and notices.
//!
//! One reader task takes messages in turn. A TLS signature is the exception: rustls asks for it in
//! the middle of a handshake and cannot wait for a task, so `sign` exchanges it right there, with a
//! deadline, and leaves all other messages it meets for the reader, in order.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};

use super::error::{ApiError, Error};
use super::locked;
use crate::ipc::message::{
    Denial, Digest, Endpoint, FromGateway, ModelIndex, ModelInfo, RequestId, ToGateway, WorkerIndex,
};
use crate::ipc::{self, Channel};

/// Longest wait for an answer of the supervisor; the begin record's fsync is in it.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Longest wait for a signature. Nothing else runs meanwhile.
const SIGN_DEADLINE: Duration = Duration::from_millis(1000);

/// How long handshakes fail at once after a signature was late, so that streams go on.
const SIGN_PAUSE: Duration = Duration::from_secs(5);

/// What the supervisor says without being asked.
pub(super) enum Notice {
    ModelUp { model: ModelIndex, info: ModelInfo },
    ModelDown { model: ModelIndex },
    WorkerUp { worker: WorkerIndex, data: OwnedFd },
    Certificates { certificates: Vec<Vec<u8>>, tls_scheme: u16 },
    Drain,
}

/// What the supervisor answers.
pub(super) enum Answer {
    Begun(Begun),
    Authorized,
    Denied(Denial),
}

/// A request that has begun.
pub(super) struct Begun {
    pub(super) unsent: Unsent,
    pub(super) model: ModelIndex,
    pub(super) service: Service,
}

/// A request that has begun and that no worker was sent: if its client leaves, wherever it is then, the
/// supervisor hears of it.
pub(super) struct Unsent {
    request: RequestId,
    control: Arc<Control>,
    is_sent: bool,
}

impl Unsent {
    fn new(request: RequestId, control: &Arc<Control>) -> Self {
        Self { request, control: Arc::clone(control), is_sent: false }
    }

    pub(super) fn request(&self) -> RequestId {
        self.request
    }

    /// A worker has it, or the supervisor knows that none will.
    pub(super) fn sent(mut self) {
        self.is_sent = true;
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        if !self.is_sent {
            self.control.abandon(self.request);
        }
    }
}

/// Who serves a request.
pub(super) enum Service {
    /// This worker.
    Worker(WorkerIndex),
    /// One that is named later, or none.
    Later(Turn),
}

/// Brings the worker whose turn it is to serve a request; `None` when there will be none.
pub(super) type Turn = oneshot::Receiver<Option<WorkerIndex>>;

/// What `Begin` asks, beside its number.
pub(super) struct Begin {
    pub(super) key: Digest,
    pub(super) endpoint: Endpoint,
    pub(super) model: String,
    pub(super) max_tokens: u32,
    pub(super) stream: bool,
}

/// No signature came.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotSigned;

pub(super) struct Control {
    channel: AsyncFd<Channel>,
    state: Mutex<State>,
    /// Wakes the reader for messages that `sign` met.
    left_over: Notify,
}

#[derive(Default)]
struct State {
    next_correlation: u64,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    /// Requests that wait for a worker.
    turns: HashMap<RequestId, oneshot::Sender<Option<WorkerIndex>>>,
    left_over: VecDeque<(ToGateway, Vec<OwnedFd>)>,
    signing_paused_until: Option<Instant>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Control")
    }
}

impl Control {
    /// Takes the channel; the runtime must be entered.
    pub(super) fn new(channel: Channel) -> Result<Self, Error> {
        #[expect(
            deprecated,
            reason = "the newer `register` asks that the descriptor stays open and the same: \
                      `Channel` owns it and never changes it"
        )]
        let channel = AsyncFd::new(channel)
            .map_err(|source| Error::Io { action: "watch the control channel", source })?;
        Ok(Self { channel, state: Mutex::default(), left_over: Notify::new() })
    }

    /// Asks whether a key is valid.
    pub(super) async fn authorize(self: &Arc<Self>, key: Digest) -> Result<(), ApiError> {
        match self.ask(|correlation| FromGateway::Authorize { correlation, key }).await? {
            Answer::Authorized => Ok(()),
            Answer::Denied(denial) => Err(ApiError::Denied(denial)),
            Answer::Begun(_) => Err(ApiError::Internal),
        }
    }

    /// Asks for the begin record and the ticket.
    pub(super) async fn begin(self: &Arc<Self>, begin: Begin) -> Result<Begun, ApiError> {
        let Begin { key, endpoint, model, max_tokens, stream } = begin;
        let ask = |correlation| FromGateway::Begin {
            correlation,
            key,
            endpoint,
            model,
            max_tokens,
            stream,
        };
        match self.ask(ask).await? {
            Answer::Begun(begun) => Ok(begun),
            Answer::Denied(denial) => Err(ApiError::Denied(denial)),
            Answer::Authorized => Err(ApiError::Internal),
        }
    }

    async fn ask(
        self: &Arc<Self>,
        question: impl FnOnce(u64) -> FromGateway,
    ) -> Result<Answer, ApiError> {
        let (sender, receiver) = oneshot::channel();
        let correlation = self.next_correlation();
        locked(&self.state).waiting.insert(correlation, sender);
        if self.send(&question(correlation)).await.is_err() {
            locked(&self.state).waiting.remove(&correlation);
            return Err(ApiError::Internal);
        }
        match tokio::time::timeout(ANSWER_DEADLINE, receiver).await {
            Ok(Ok(answer)) => Ok(answer),
            // An answer that comes too late finds nobody; see `settle`.
            Ok(Err(_)) | Err(_) => Err(ApiError::Internal),
        }
    }

    fn next_correlation(&self) -> u64 {
        let mut state = locked(&self.state);
        state.next_correlation += 1;
        state.next_correlation
    }

    /// Says that a request which has begun will not be sent to the worker.
    fn abandon(self: &Arc<Self>, request: RequestId) {
        locked(&self.state).turns.remove(&request);
        self.send_soon(FromGateway::Abandoned { request });
    }

    /// Says that a worker sent what is no frame.
    pub(super) fn worker_broken(self: &Arc<Self>, worker: WorkerIndex) {
        self.send_soon(FromGateway::WorkerBroken { worker });
    }

    /// Says how many requests came without a key, or with what cannot be one.
    pub(super) fn keys_malformed(self: &Arc<Self>, count: u32) {
        self.send_soon(FromGateway::KeysMalformed { count });
    }

    /// Sends a message now, or as soon as there is room.
    fn send_soon(self: &Arc<Self>, message: FromGateway) {
        if let Err(ipc::Error::WouldBlock) = self.channel.get_ref().try_send(&message, &[])
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let control = Arc::clone(self);
            // A channel that failed ends the reader, and with it the process.
            runtime.spawn(async move { control.send(&message).await.ok() });
        }
    }

    /// Sends a message, waiting for room without holding up the process.
    pub(super) async fn send(&self, message: &FromGateway) -> Result<(), Error> {
        loop {
            match self.channel.get_ref().try_send(message, &[]) {
                Err(ipc::Error::WouldBlock) => {}
                other => return other.map_err(Error::Control),
            }
            let mut ready = self
                .channel
                .writable()
                .await
                .map_err(|source| Error::Io { action: "wait for the control channel", source })?;
            match self.channel.get_ref().try_send(message, &[]) {
                Err(ipc::Error::WouldBlock) => ready.clear_ready(),
                other => return other.map_err(Error::Control),
            }
        }
    }

    /// Receives up to the next notice; answers reach those who asked.
    pub(super) async fn next_notice(self: &Arc<Self>) -> Result<Notice, Error> {
        loop {
            let left_over = locked(&self.state).left_over.pop_front();
            let (message, descriptors) = match left_over {
                Some(message) => message,
                None => match self.receive().await? {
                    Some(message) => message,
                    None => continue,
                },
            };
            if let Some(notice) = self.settle(message, descriptors)? {
                return Ok(notice);
            }
        }
    }

    /// Receives one message; `None` when `sign` left some to be taken first.
    async fn receive(&self) -> Result<Option<(ToGateway, Vec<OwnedFd>)>, Error> {
        let mut ready = tokio::select! {
            ready = self.channel.readable() => ready
                .map_err(|source| Error::Io { action: "wait for the control channel", source })?,
            () = self.left_over.notified() => return Ok(None),
        };
        match self.channel.get_ref().try_recv::<ToGateway>() {
            Ok(message) => Ok(Some(message)),
            Err(ipc::Error::WouldBlock) => {
                ready.clear_ready();
                Ok(None)
            }
            Err(ipc::Error::Closed) => Err(Error::SupervisorGone),
            Err(error) => Err(Error::Control(error)),
        }
    }

    /// Gives an answer to its asker, or returns a notice.
    fn settle(
        self: &Arc<Self>,
        message: ToGateway,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<Notice>, Error> {
        let (correlation, answer) = match message {
            ToGateway::Begun { correlation, request, model, worker } => {
                let service = match worker {
                    Some(worker) => Service::Worker(worker),
                    None => Service::Later(self.turn_of(request)),
                };
                let unsent = Unsent::new(request, self);
                (correlation, Answer::Begun(Begun { unsent, model, service }))
            }
            ToGateway::Authorized { correlation } => (correlation, Answer::Authorized),
            ToGateway::Denied { correlation, reason } => (correlation, Answer::Denied(reason)),
            // Came after its deadline.
            ToGateway::Signature { .. } => return Ok(None),
            ToGateway::Config(_) => return Err(Error::Protocol("a second configuration")),
            ToGateway::WorkerUp { worker } => {
                let data = descriptors.into_iter().next();
                let data = data.ok_or(Error::Protocol("a worker without a data channel"))?;
                return Ok(Some(Notice::WorkerUp { worker, data }));
            }
            ToGateway::ModelUp { model, info } => {
                return Ok(Some(Notice::ModelUp { model, info }));
            }
            ToGateway::ModelDown { model } => return Ok(Some(Notice::ModelDown { model })),
            ToGateway::Turn { request, worker } => {
                // Nobody waits any more for a request that was just given up.
                if let Some(waiting) = locked(&self.state).turns.remove(&request) {
                    waiting.send(worker).ok();
                }
                return Ok(None);
            }
            ToGateway::AreYouThere => {
                self.send_soon(FromGateway::Alive);
                return Ok(None);
            }
            ToGateway::Certificates { certificates, tls_scheme } => {
                return Ok(Some(Notice::Certificates { certificates, tls_scheme }));
            }
            ToGateway::Drain => return Ok(Some(Notice::Drain)),
        };
        let asker = locked(&self.state).waiting.remove(&correlation);
        let asker = asker.ok_or(Error::Protocol("an answer that nobody asked for"))?;
        // If the client left meanwhile, a request that has begun is abandoned with the answer.
        drop(asker.send(answer));
        Ok(None)
    }

    /// Notes that a request waits for its turn, before the next message can bring it.
    fn turn_of(&self, request: RequestId) -> Turn {
        let (sender, turn) = oneshot::channel();
        locked(&self.state).turns.insert(request, sender);
        turn
    }

    /// Has the supervisor sign a TLS handshake message; waits for it, `SIGN_DEADLINE` at most.
    pub(super) fn sign(&self, scheme: u16, message: &[u8]) -> Result<Vec<u8>, NotSigned> {
        let started = Instant::now();
        if locked(&self.state).signing_paused_until.is_some_and(|until| started < until) {
            return Err(NotSigned);
        }
        let signature = self.exchange_signature(scheme, message, started + SIGN_DEADLINE);
        if signature.is_none() && started.elapsed() >= SIGN_DEADLINE {
            locked(&self.state).signing_paused_until = Some(Instant::now() + SIGN_PAUSE);
        }
        // An empty signature is the supervisor's refusal.
        signature.filter(|signature| !signature.is_empty()).ok_or(NotSigned)
    }

    fn exchange_signature(
        &self,
        scheme: u16,
        message: &[u8],
        deadline: Instant,
    ) -> Option<Vec<u8>> {
        let channel = self.channel.get_ref();
        let asked = self.next_correlation();
        let question = FromGateway::Sign { correlation: asked, scheme, message: message.to_vec() };
        while let Err(error) = channel.try_send(&question, &[]) {
            if error != ipc::Error::WouldBlock || !wait_for(channel, PollFlags::POLLOUT, deadline) {
                return None;
            }
        }
        loop {
            match channel.try_recv::<ToGateway>() {
                Ok((ToGateway::Signature { correlation, signature }, _)) => {
                    if correlation == asked {
                        return Some(signature);
                    }
                }
                Ok(other) => {
                    locked(&self.state).left_over.push_back(other);
                    self.left_over.notify_one();
                }
                Err(ipc::Error::WouldBlock) => {
                    if !wait_for(channel, PollFlags::POLLIN, deadline) {
                        return None;
                    }
                }
                // The reader meets the same error and ends the process.
                Err(_) => return None,
            }
        }
    }
}

/// Waits until the channel is ready or the deadline has passed.
fn wait_for(channel: &Channel, events: PollFlags, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return false;
    }
    // Rounded up, so that the last millisecond does not spin.
    let timeout =
        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    let mut watched = [PollFd::new(channel.as_fd(), events)];
    match poll(&mut watched, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => true,
        Err(_) => false,
    }
}
