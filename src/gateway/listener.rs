//! Connections: accepted up to a limit, with deadlines for reading and writing, drained at the end.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{io, net, os::unix::net as unix};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;

use super::error::Error;
use super::http::{HEADERS_COUNT_MAX, Shared, answer};
use super::locked;
use super::peers::{Counted, Peer, Peers};
use crate::ipc::message::ListenerKind;

/// Bytes of a connection that hyper keeps; a request's head must fit.
const CONNECTION_BUFFER_LEN_BYTES: usize = 64 << 10;

/// Longest TLS handshake, if reading takes longer by configuration.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Pause after a failed `accept`, such as one without a descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Seconds of silence before the kernel asks whether a TCP client is still there.
const KEEPALIVE_IDLE_S: u32 = 60;

/// What every connection needs.
pub(super) struct Connections {
    pub(super) shared: Arc<Shared>,
    /// Replaced when the certificate is; running connections keep theirs.
    pub(super) tls: Mutex<Option<TlsAcceptor>>,
    /// Connections at once.
    pub(super) room: Arc<Semaphore>,
    /// How many those are.
    pub(super) connections_max: u32,
    /// Connections of each peer at once.
    pub(super) peers: Arc<Peers>,
    pub(super) write_deadline: Duration,
    /// Turns true when the gateway stops.
    pub(super) draining: watch::Receiver<bool>,
}

/// A listener that the supervisor bound.
pub(super) enum Listener {
    Tls(TcpListener),
    Plain(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Takes an inherited listener. Connections inherit its options.
    pub(super) fn new(kind: ListenerKind, fd: OwnedFd) -> Result<Self, Error> {
        let at = |action| move |source| Error::Io { action, source };
        if kind == ListenerKind::Unix {
            let listener = unix::UnixListener::from(fd);
            listener.set_nonblocking(true).map_err(at("prepare a listener"))?;
            let listener = UnixListener::from_std(listener).map_err(at("watch a listener"))?;
            return Ok(Self::Unix(listener));
        }
        let options = || {
            setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
            setsockopt(&fd, sockopt::KeepAlive, &true)?;
            setsockopt(&fd, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)
        };
        options().map_err(io::Error::from).map_err(at("prepare a listener"))?;
        let listener = net::TcpListener::from(fd);
        listener.set_nonblocking(true).map_err(at("prepare a listener"))?;
        let listener = TcpListener::from_std(listener).map_err(at("watch a listener"))?;
        Ok(if kind == ListenerKind::Tls { Self::Tls(listener) } else { Self::Plain(listener) })
    }

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<(Accepted, Peer)>> {
        match self {
            Self::Tls(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, from)| (Accepted::Tls(stream), from.ip().into())),
            Self::Plain(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, from)| (Accepted::Plain(stream), from.ip().into())),
            Self::Unix(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, _)| (Accepted::Unix(stream), Peer::Unix)),
        }
    }
}

/// A connection just accepted.
enum Accepted {
    Tls(TcpStream),
    Plain(TcpStream),
    Unix(UnixStream),
}

/// What a connection holds until it ends.
struct Place {
    _room: OwnedSemaphorePermit,
    _counted: Counted,
}

/// Accepts on all listeners until the gateway stops.
pub(super) async fn accept(listeners: Vec<Listener>, connections: Arc<Connections>) {
    let mut first = 0;
    loop {
        // With no room left, clients wait in the kernel's queue.
        let Ok(room) = Arc::clone(&connections.room).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = accept_any(&listeners, first) => accepted,
            () = told_to_stop(connections.draining.clone()) => return,
        };
        // No listener goes first every time.
        first = (first + 1) % listeners.len().max(1);
        match accepted {
            Ok((accepted, peer)) => {
                // One over its peer's share is closed unread, before a handshake.
                if let Some(counted) = connections.peers.admit(peer) {
                    connections.start(accepted, Place { _room: room, _counted: counted });
                }
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn accept_any(listeners: &[Listener], first: usize) -> io::Result<(Accepted, Peer)> {
    poll_fn(|context| {
        let (before, after) = listeners.split_at(first);
        for listener in after.iter().chain(before) {
            if let Poll::Ready(accepted) = listener.poll_accept(context) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    })
    .await
}

async fn told_to_stop(mut draining: watch::Receiver<bool>) {
    // The sender lives as long as the runtime.
    draining.wait_for(|stop| *stop).await.ok();
}

impl Connections {
    /// Waits until the gateway stops and the last connection has ended.
    pub(super) async fn drained(&self) {
        told_to_stop(self.draining.clone()).await;
        // The semaphore is never closed.
        self.room.acquire_many(self.connections_max).await.ok();
    }

    fn start(self: &Arc<Self>, accepted: Accepted, place: Place) {
        let (connections, deadline) = (Arc::clone(self), self.write_deadline);
        match accepted {
            Accepted::Tls(stream) => {
                tokio::spawn(connections.serve_tls(Impatient::new(stream, deadline), place))
            }
            Accepted::Plain(stream) => {
                tokio::spawn(connections.serve(Impatient::new(stream, deadline), place))
            }
            Accepted::Unix(stream) => {
                tokio::spawn(connections.serve(Impatient::new(stream, deadline), place))
            }
        };
    }

    async fn serve_tls<S>(self: Arc<Self>, stream: S, place: Place)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(tls) = locked(&self.tls).clone() else { return };
        let deadline = self.shared.read_deadline.min(HANDSHAKE_DEADLINE);
        if let Ok(Ok(stream)) = tokio::time::timeout(deadline, tls.accept(stream)).await {
            self.serve(stream, place).await;
        }
    }

    /// Serves one connection to its end. How it ended is the client's affair alone.
    async fn serve<S>(self: Arc<Self>, stream: S, place: Place)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let service = service_fn(move |request| answer(Arc::clone(&shared), request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.shared.read_deadline)
            .max_buf_size(CONNECTION_BUFFER_LEN_BYTES)
            // One more than `answer` takes, which can say what is wrong.
            .max_headers(2 * HEADERS_COUNT_MAX)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => {}
            () = told_to_stop(self.draining.clone()) => {
                connection.as_mut().graceful_shutdown();
                connection.await.ok();
            }
        }
        drop(place);
    }
}

/// A stream whose writes fail when its peer has taken nothing for too long.
struct Impatient<S> {
    stream: S,
    deadline: Duration,
    /// Runs while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn new(stream: S, deadline: Duration) -> Self {
        Self { stream, deadline, stalled: None }
    }

    /// Passes a result on; one that is pending for too long becomes an error.
    fn bounded<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let deadline = self.deadline;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(deadline)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.bounded(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // Below, nothing waits on the peer: the stream is a bare socket.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
