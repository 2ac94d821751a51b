//! A request on its way through a worker, from begin to the last event.
//!
//! Where each request has a worker of its own, it may have to wait for one: its text then waits here, and
//! goes with whoever waits for the answer.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::control::{Service, Turn, Unsent};
use super::error::ApiError;
use super::link::{Link, Workers};
use super::queue::{Event, Queue};
use crate::ipc::message::{Generate, RequestId, WorkerIndex};

/// Longest time in which nothing is heard of a request.
const SILENCE_DEADLINE: Duration = Duration::from_secs(600);

/// A request that has begun. Dropped before its end, it is cancelled.
pub(super) struct Generation {
    request: RequestId,
    stage: Stage,
    silence: Pin<Box<Sleep>>,
    ended: bool,
    workers: Arc<Workers>,
}

enum Stage {
    /// No worker has it.
    Waiting { turn: Turn, work: Box<Generate>, unsent: Unsent },
    /// This one does.
    Served { link: Arc<Link>, queue: Arc<Queue> },
    /// None will have it.
    Unserved,
}

impl Generation {
    /// Sends a request to its worker, or has it wait for one.
    ///
    /// # Errors
    ///
    /// What keeps it from being sent; it is abandoned then.
    pub(super) fn begin(
        unsent: Unsent,
        service: Service,
        work: Generate,
        workers: Arc<Workers>,
    ) -> Result<Self, ApiError> {
        let request = work.request;
        let stage = match service {
            Service::Later(turn) => Stage::Waiting { turn, work: Box::new(work), unsent },
            Service::Worker(worker) => send(unsent, worker, work, &workers)?,
        };
        let silence = Box::pin(tokio::time::sleep(SILENCE_DEADLINE));
        Ok(Self { request, stage, silence, ended: false, workers })
    }

    /// Waits for the next event; none may be asked for after the last.
    pub(super) async fn next_event(&mut self) -> Event {
        poll_fn(|context| self.poll_event(context)).await
    }

    /// As `next_event`.
    pub(super) fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        let event = match self.poll_turn(context) {
            Poll::Ready(Ok(queue)) => queue.poll_event(context),
            Poll::Ready(Err(error)) => Poll::Ready(Event::Failed(error)),
            Poll::Pending => Poll::Pending,
        };
        if let Poll::Ready(event) = event {
            self.ended = event.is_last();
            self.silence.as_mut().reset(Instant::now() + SILENCE_DEADLINE);
            return Poll::Ready(event);
        }
        if self.silence.as_mut().poll(context).is_ready() {
            self.give_up();
            return Poll::Ready(Event::Failed(ApiError::WorkerTimeout));
        }
        Poll::Pending
    }

    /// Waits for a worker, if none has it yet; then what that says comes from the queue.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<Result<Arc<Queue>, ApiError>> {
        if let Stage::Waiting { turn, .. } = &mut self.stage {
            let worker = match Pin::new(turn).poll(context) {
                Poll::Ready(worker) => worker.ok().flatten(),
                Poll::Pending => return Poll::Pending,
            };
            let stage = std::mem::replace(&mut self.stage, Stage::Unserved);
            match (worker, stage) {
                (Some(worker), Stage::Waiting { work, unsent, .. }) => {
                    match send(unsent, worker, *work, &self.workers) {
                        Ok(stage) => self.stage = stage,
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
                // The supervisor has ended it.
                (_, Stage::Waiting { unsent, .. }) => unsent.sent(),
                _ => {}
            }
        }
        Poll::Ready(match &self.stage {
            Stage::Served { queue, .. } => Ok(Arc::clone(queue)),
            _ => Err(ApiError::WorkerUnavailable),
        })
    }

    fn give_up(&mut self) {
        self.ended = true;
        // One that waits is abandoned as it is dropped.
        if let Stage::Served { link, .. } = std::mem::replace(&mut self.stage, Stage::Unserved) {
            link.cancel(self.request);
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.ended {
            self.give_up();
        }
    }
}

/// Sends a request to a worker; one that cannot be sent is abandoned.
fn send(
    unsent: Unsent,
    worker: WorkerIndex,
    work: Generate,
    workers: &Workers,
) -> Result<Stage, ApiError> {
    let link = workers.link(worker).ok_or(ApiError::WorkerUnavailable)?;
    let queue = link.generate(work)?;
    unsent.sent();
    Ok(Stage::Served { link, queue })
}
