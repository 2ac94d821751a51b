//! What a worker said about one request and its client has not been sent yet.
//!
//! Bounded in bytes. Text that waits is joined, so a slow client costs memory for text alone and
//! never holds up the worker's channel.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use super::error::ApiError;
use super::locked;
use super::reply::Usage;
use crate::ipc::message::Finish;

/// Most text that waits for one client, in bytes; more than most answers in full.
pub(super) const QUEUE_LEN_MAX_BYTES: usize = 1 << 20;

/// A step of an answer.
#[derive(PartialEq, Eq)]
pub(super) enum Event {
    Started,
    Text(String),
    Done { finish: Finish, usage: Usage },
    Failed(ApiError),
}

impl Event {
    /// Whether nothing follows.
    pub(super) fn is_last(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Failed(_))
    }
}

/// The queue is full: the client does not keep up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Default)]
pub(super) struct Queue(Mutex<State>);

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    text_len_bytes: usize,
    reader: Option<Waker>,
}

impl Queue {
    /// Appends an event.
    pub(super) fn push(&self, event: Event) -> Result<(), Full> {
        let mut state = locked(&self.0);
        match event {
            Event::Text(text) => {
                if text.len() > QUEUE_LEN_MAX_BYTES - state.text_len_bytes {
                    return Err(Full);
                }
                state.text_len_bytes += text.len();
                match state.events.back_mut() {
                    Some(Event::Text(waiting)) => waiting.push_str(&text),
                    _ => state.events.push_back(Event::Text(text)),
                }
            }
            // Once only, whatever a worker repeats.
            Event::Started if !state.events.is_empty() => {}
            other => state.events.push_back(other),
        }
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    /// Takes the next event, or has the task woken for it.
    pub(super) fn poll_event(&self, context: &mut Context<'_>) -> Poll<Event> {
        let mut state = locked(&self.0);
        match state.events.pop_front() {
            Some(event) => {
                if let Event::Text(text) = &event {
                    state.text_len_bytes -= text.len();
                }
                Poll::Ready(event)
            }
            None => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(queue: &Queue) -> Option<Event> {
        match queue.poll_event(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => Some(event),
            Poll::Pending => None,
        }
    }

    #[test]
    fn joins_text_that_waits() {
        let queue = Queue::default();
        queue.push(Event::Started).unwrap();
        queue.push(Event::Text("a".to_owned())).unwrap();
        queue.push(Event::Text("b".to_owned())).unwrap();
        assert!(next(&queue) == Some(Event::Started));
        assert!(next(&queue) == Some(Event::Text("ab".to_owned())));
        assert!(next(&queue).is_none());
    }

    #[test]
    fn refuses_more_text_than_its_bound_and_takes_it_again_when_read() {
        let queue = Queue::default();
        queue.push(Event::Text("x".repeat(QUEUE_LEN_MAX_BYTES))).unwrap();
        assert_eq!(queue.push(Event::Text("x".to_owned())), Err(Full));
        assert!(next(&queue).is_some());
        queue.push(Event::Text("x".to_owned())).unwrap();
    }
}
