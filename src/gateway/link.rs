//! The data channels to the workers: one task each, requests told apart by their id.
//!
//! A worker is not trusted: a frame that cannot be read, or an answer over its bound, ends what it
//! concerns. Nothing here waits for a client.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::control::Control;
use super::error::{ApiError, Error};
use super::locked;
use super::queue::{Event, Queue};
use super::reply::Usage;
use crate::ipc::message::{
    DATA_FRAME_LEN_MAX_BYTES, Failure, FromWorker, Generate, ModelIndex, ModelInfo, RequestId,
    ToWorker,
};
use crate::ipc::{FrameDecoder, FrameEncoder};

/// Most bytes that wait for a worker; beyond, requests are refused as too many.
const OUTBOX_LEN_MAX_BYTES: usize = 4 * DATA_FRAME_LEN_MAX_BYTES;

/// Longest time in which a worker says nothing about a request.
const SILENCE_DEADLINE: Duration = Duration::from_secs(600);

/// Frames read in one go before other tasks have their turn.
const FRAMES_PER_TURN: usize = 64;

/// The workers that are up.
#[derive(Default)]
pub(super) struct Workers(Mutex<HashMap<ModelIndex, Arc<Link>>>);

impl Workers {
    /// A worker serves; one that served the same model before is gone.
    pub(super) fn up(
        self: &Arc<Self>,
        model: ModelIndex,
        info: ModelInfo,
        data: OwnedFd,
        control: &Arc<Control>,
    ) -> Result<(), Error> {
        let stream = UnixStream::from_std(data.into())
            .map_err(|source| Error::Io { action: "watch a data channel", source })?;
        let link = Arc::new(Link::new(info));
        if let Some(old) = locked(&self.0).insert(model, Arc::clone(&link)) {
            old.close();
        }
        let (workers, control) = (Arc::clone(self), Arc::clone(control));
        tokio::spawn(async move {
            // Its requests fail. A worker that is gone the supervisor has seen; broken frames not.
            let ended = link.carry(&stream).await;
            if ended.is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
                control.worker_broken(model);
            }
            link.close();
            let mut links = locked(&workers.0);
            if links.get(&model).is_some_and(|current| Arc::ptr_eq(current, &link)) {
                links.remove(&model);
            }
        });
        Ok(())
    }

    /// A worker is gone.
    pub(super) fn down(&self, model: ModelIndex) {
        if let Some(link) = locked(&self.0).remove(&model) {
            link.close();
        }
    }

    /// The worker of a model, if it is up.
    pub(super) fn link(&self, model: ModelIndex) -> Option<Arc<Link>> {
        locked(&self.0).get(&model).cloned()
    }

    /// What the API shows, in the configuration's order.
    pub(super) fn models(&self) -> Vec<ModelInfo> {
        let links = locked(&self.0);
        let mut models: Vec<_> = links.iter().map(|(index, link)| (index.0, &link.info)).collect();
        models.sort_by_key(|(index, _)| *index);
        models.into_iter().map(|(_, info)| info.clone()).collect()
    }

    /// Whether any worker serves.
    pub(super) fn any(&self) -> bool {
        !locked(&self.0).is_empty()
    }
}

/// The channel to one worker.
pub(super) struct Link {
    pub(super) info: ModelInfo,
    outbox: Mutex<FrameEncoder>,
    requests: Mutex<HashMap<RequestId, Arc<Queue>>>,
    /// Something is in the outbox, or the link was closed.
    changed: Notify,
    closed: AtomicBool,
}

impl Link {
    fn new(info: ModelInfo) -> Self {
        Self {
            info,
            outbox: Mutex::default(),
            requests: Mutex::default(),
            changed: Notify::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Sends a request to the worker.
    pub(super) fn generate(self: &Arc<Self>, generate: Generate) -> Result<Generation, ApiError> {
        let request = generate.request;
        if self.closed.load(Ordering::Relaxed) {
            return Err(ApiError::WorkerUnavailable);
        }
        let mut outbox = locked(&self.outbox);
        if outbox.pending_len() > OUTBOX_LEN_MAX_BYTES {
            return Err(ApiError::TooManyRequests);
        }
        outbox
            .push(&ToWorker::Generate(Box::new(generate)))
            .map_err(|_| ApiError::BodyTooLong { max_bytes: DATA_FRAME_LEN_MAX_BYTES })?;
        let queue = Arc::new(Queue::default());
        locked(&self.requests).insert(request, Arc::clone(&queue));
        self.changed.notify_one();
        let silence = Box::pin(tokio::time::sleep(SILENCE_DEADLINE));
        Ok(Generation { link: Arc::clone(self), request, queue, silence, ended: false })
    }

    /// Has the worker stop a request; what it still says about it is ignored.
    fn cancel(&self, request: RequestId) {
        if locked(&self.requests).remove(&request).is_some() {
            // A cancel is a few bytes, and there is one per request at most.
            locked(&self.outbox).push(&ToWorker::Cancel { request }).ok();
            self.changed.notify_one();
        }
    }

    /// Fails all requests and ends the task.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        for (_, queue) in locked(&self.requests).drain() {
            queue.push(Event::Failed(ApiError::WorkerUnavailable)).ok();
        }
        self.changed.notify_one();
    }

    /// Moves frames both ways until either side closes.
    async fn carry(&self, stream: &UnixStream) -> io::Result<()> {
        let mut decoder = FrameDecoder::<FromWorker>::default();
        loop {
            if self.closed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let interest = if self.write_out(stream)? {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            tokio::select! {
                ready = stream.ready(interest) => {
                    if !ready?.is_readable() {
                        continue;
                    }
                }
                () = self.changed.notified() => continue,
            }
            self.read_in(stream, &mut decoder)?;
            tokio::task::yield_now().await;
        }
    }

    /// Writes what the socket takes; whether that was all.
    fn write_out(&self, stream: &UnixStream) -> io::Result<bool> {
        let mut outbox = locked(&self.outbox);
        while !outbox.pending().is_empty() {
            match stream.try_write(outbox.pending()) {
                Ok(count) => outbox.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Reads what is there, up to a turn's worth.
    fn read_in(
        &self,
        stream: &UnixStream,
        decoder: &mut FrameDecoder<FromWorker>,
    ) -> io::Result<()> {
        let mut frames = 0;
        while frames < FRAMES_PER_TURN {
            let count = match stream.try_read(decoder.space()) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let message = decoder.advance(count);
            if let Some(message) = message.map_err(|_| io::ErrorKind::InvalidData)? {
                self.deliver(message);
                frames += 1;
            }
        }
        Ok(())
    }

    /// Hands a frame to its request; one that nobody waits for was cancelled.
    fn deliver(&self, message: FromWorker) {
        let (request, event) = match message {
            FromWorker::Started { request, .. } => (request, Event::Started),
            FromWorker::Delta { request, text } => (request, Event::Text(text)),
            FromWorker::Done {
                request,
                finish,
                prompt_tokens,
                completion_tokens,
                cached_tokens,
            } => {
                let usage = Usage::new(prompt_tokens, completion_tokens, cached_tokens);
                (request, Event::Done { finish, usage })
            }
            FromWorker::Failed { request, failure } => (request, Event::Failed(failure.into())),
        };
        let queue = {
            let mut requests = locked(&self.requests);
            if event.is_last() {
                requests.remove(&request)
            } else {
                requests.get(&request).cloned()
            }
        };
        let Some(queue) = queue else { return };
        if queue.push(event).is_err() {
            self.cancel(request);
            queue.push(Event::Failed(ApiError::ClientTooSlow)).ok();
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// A request that the worker has. Dropped before its end, it is cancelled.
pub(super) struct Generation {
    link: Arc<Link>,
    request: RequestId,
    queue: Arc<Queue>,
    silence: Pin<Box<Sleep>>,
    ended: bool,
}

impl Generation {
    /// Waits for the next event; none may be asked for after the last.
    pub(super) async fn next_event(&mut self) -> Event {
        poll_fn(|context| self.poll_event(context)).await
    }

    /// As `next_event`.
    pub(super) fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        if let Poll::Ready(event) = self.queue.poll_event(context) {
            self.ended = event.is_last();
            self.silence.as_mut().reset(Instant::now() + SILENCE_DEADLINE);
            return Poll::Ready(event);
        }
        if self.silence.as_mut().poll(context).is_ready() {
            self.link.cancel(self.request);
            self.ended = true;
            return Poll::Ready(Event::Failed(ApiError::WorkerTimeout));
        }
        Poll::Pending
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.ended {
            self.link.cancel(self.request);
        }
    }
}
