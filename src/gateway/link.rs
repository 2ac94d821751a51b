//! The data channels to the workers: one task each, requests told apart by their id.
//!
//! A worker is not trusted: a frame that cannot be read, or an answer over its bound, ends what it
//! concerns. Nothing here waits for a client.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::control::Control;
use super::error::{ApiError, Error};
use super::locked;
use super::queue::{Event, Queue};
use super::reply::Usage;
use crate::ipc::message::{
    DATA_FRAME_LEN_MAX_BYTES, Failure, FromWorker, Generate, ModelIndex, ModelInfo, RequestId,
    ToWorker, WorkerIndex,
};
use crate::ipc::{FrameDecoder, FrameEncoder};

/// Most bytes that wait for a worker; beyond, requests are refused as too many.
const OUTBOX_LEN_MAX_BYTES: usize = 4 * DATA_FRAME_LEN_MAX_BYTES;

/// Frames read in one go before other tasks have their turn.
const FRAMES_PER_TURN: usize = 64;

/// The models that are served and the workers that are up.
#[derive(Default)]
pub(super) struct Workers(Mutex<Table>);

#[derive(Default)]
struct Table {
    models: BTreeMap<u16, ModelInfo>,
    links: HashMap<WorkerIndex, Arc<Link>>,
}

impl Workers {
    /// Requests for a model are taken.
    pub(super) fn model_up(&self, model: ModelIndex, info: ModelInfo) {
        locked(&self.0).models.insert(model.0, info);
    }

    /// Requests for a model are not taken any more.
    pub(super) fn model_down(&self, model: ModelIndex) {
        locked(&self.0).models.remove(&model.0);
    }

    /// A worker serves; one that had the same place before is gone, and the end of its channel says so.
    pub(super) fn up(
        self: &Arc<Self>,
        worker: WorkerIndex,
        data: OwnedFd,
        control: &Arc<Control>,
    ) -> Result<(), Error> {
        let stream = UnixStream::from_std(data.into())
            .map_err(|source| Error::Io { action: "watch a data channel", source })?;
        let link = Arc::new(Link::default());
        locked(&self.0).links.insert(worker, Arc::clone(&link));
        let (workers, control) = (Arc::clone(self), Arc::clone(control));
        tokio::spawn(async move {
            // Its requests fail. A worker that is gone the supervisor has seen; broken frames not.
            let ended = link.carry(&stream).await;
            if ended.is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
                control.worker_broken(worker);
            }
            link.close();
            let links = &mut locked(&workers.0).links;
            if links.get(&worker).is_some_and(|current| Arc::ptr_eq(current, &link)) {
                links.remove(&worker);
            }
        });
        Ok(())
    }

    /// A worker, if it is up.
    pub(super) fn link(&self, worker: WorkerIndex) -> Option<Arc<Link>> {
        locked(&self.0).links.get(&worker).cloned()
    }

    /// What the API shows, in the configuration's order.
    pub(super) fn models(&self) -> Vec<ModelInfo> {
        locked(&self.0).models.values().cloned().collect()
    }

    /// The name of a model that is served.
    pub(super) fn model_name(&self, model: ModelIndex) -> Option<String> {
        locked(&self.0).models.get(&model.0).map(|info| info.name.clone())
    }

    /// Whether requests for any model are taken.
    pub(super) fn any(&self) -> bool {
        !locked(&self.0).models.is_empty()
    }
}

/// The channel to one worker.
#[derive(Default)]
pub(super) struct Link {
    outbox: Mutex<FrameEncoder>,
    requests: Mutex<HashMap<RequestId, Arc<Queue>>>,
    /// Something is in the outbox, or the link was closed.
    changed: Notify,
    closed: AtomicBool,
}

impl Link {
    /// Sends a request to the worker.
    pub(super) fn generate(&self, generate: Generate) -> Result<Arc<Queue>, ApiError> {
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
        Ok(queue)
    }

    /// Has the worker stop a request; what it still says about it is ignored.
    pub(super) fn cancel(&self, request: RequestId) {
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
