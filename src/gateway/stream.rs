//! Bodies of responses: whole ones, and answers as server-sent events.
//!
//! A stream that is dropped, because its client is gone, drops its `Generation`, which cancels it.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

use super::api::StreamOptions;
use super::error::ApiError;
use super::generation::Generation;
use super::queue::Event;
use super::reply::{Head, Step, Usage, finish_reason, obfuscate, sse, sse_error};
use crate::ipc::message::{Endpoint, Finish};

/// A comment is sent after this long without anything else, so that no proxy or client gives up.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(15);

/// What a response carries.
pub(super) enum ResponseBody {
    Whole(Option<Bytes>),
    Events(Box<EventStream>),
}

impl ResponseBody {
    pub(super) fn whole(text: String) -> Self {
        Self::Whole(Some(Bytes::from(text)))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take()),
            Self::Events(events) => events.poll_data(context),
        };
        data.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// An answer as server-sent events.
pub(super) struct EventStream {
    head: Head,
    options: StreamOptions,
    generation: Generation,
    /// The first event, when it was waited for before the response began.
    first: Option<Event>,
    role_sent: bool,
    ended: bool,
    ping: Pin<Box<Sleep>>,
    /// Counts among the requests at once until the last byte is handed over.
    _permit: OwnedSemaphorePermit,
}

impl EventStream {
    pub(super) fn new(
        head: Head,
        options: StreamOptions,
        generation: Generation,
        first: Option<Event>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let role_sent = head.endpoint == Endpoint::Completion;
        let ping = Box::pin(tokio::time::sleep(PING_INTERVAL));
        Self { head, options, generation, first, role_sent, ended: false, ping, _permit: permit }
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let text = loop {
            let event = match self.first.take() {
                Some(event) => Poll::Ready(event),
                None => self.generation.poll_event(context),
            };
            match event {
                Poll::Ready(event) => match self.show(event) {
                    text if text.is_empty() => {}
                    text => break text,
                },
                Poll::Pending if self.ping.as_mut().poll(context).is_ready() => {
                    break ": ping\n\n".to_owned();
                }
                Poll::Pending => return Poll::Pending,
            }
        };
        self.ping.as_mut().reset(Instant::now() + PING_INTERVAL);
        Poll::Ready(Some(Bytes::from(text)))
    }

    /// Turns an event into the bytes of one or more server-sent events.
    fn show(&mut self, event: Event) -> String {
        match event {
            Event::Started => self.role(),
            Event::Text(text) => self.role() + &self.step(Step::Text(&text)),
            Event::Done { finish, usage } => {
                self.ended = true;
                self.end(finish, usage)
            }
            Event::Failed(error) => {
                self.ended = true;
                sse_error(&error)
            }
        }
    }

    fn end(&mut self, finish: Finish, usage: Usage) -> String {
        let Some(reason) = finish_reason(finish) else { return sse_error(&ApiError::Cancelled) };
        let mut text = self.role() + &self.step(Step::Finish(reason));
        if self.options.include_usage {
            text += &self.step(Step::Usage(usage));
        }
        text + &sse("[DONE]")
    }

    /// The chunk that begins a chat, once.
    fn role(&mut self) -> String {
        if std::mem::replace(&mut self.role_sent, true) {
            return String::new();
        }
        self.step(Step::Role)
    }

    fn step(&self, step: Step<'_>) -> String {
        let chunk = self.head.chunk(step, self.options.include_usage);
        sse(&if self.options.include_obfuscation { obfuscate(chunk) } else { chunk })
    }
}
