//! The data channel: a stream of frames, each a `u32` length (little-endian) and a message.
//!
//! Encoder and decoder do no I/O of their own, so that the worker's poll loop and the gateway's
//! tokio use the same; `DataChannel` joins them to a nonblocking socket for the poll loop. Memory
//! is taken after the length was checked, and erased when a frame is done with.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use zeroize::Zeroizing;

use super::{Error, Message};

/// Bytes of a frame before its body.
const HEAD_LEN_BYTES: usize = 4;
/// Most memory that a frame takes before its bytes arrive.
const STEP_LEN_BYTES: usize = 64 << 10;

/// Turns messages into bytes to write.
#[derive(Default)]
pub struct FrameEncoder {
    frames: VecDeque<Zeroizing<Vec<u8>>>,
    /// How much of the first frame is written.
    written: usize,
    /// Bytes of all frames that are not written yet.
    pending_len: usize,
}

impl FrameEncoder {
    /// Appends a message.
    ///
    /// # Errors
    ///
    /// `TooLong`; then nothing is appended.
    pub fn push<M: Message>(&mut self, message: &M) -> Result<(), Error> {
        let mut bytes = message.encode_after(&[0; HEAD_LEN_BYTES])?;
        let len = bytes.len() - HEAD_LEN_BYTES;
        let too_long = Error::TooLong { what: M::NAME, len, max: M::LEN_MAX_BYTES };
        let head = u32::try_from(len).map_err(|_| too_long)?.to_le_bytes();
        bytes[..HEAD_LEN_BYTES].copy_from_slice(&head);
        self.pending_len += bytes.len();
        self.frames.push_back(bytes);
        Ok(())
    }

    /// Returns the next bytes to write; empty when all are written.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        self.frames.front().map_or(&[], |frame| &frame[self.written..])
    }

    /// Returns how many bytes wait, so that a caller can bound them.
    #[must_use]
    pub fn pending_len(&self) -> usize {
        self.pending_len
    }

    /// Notes that the first `count` of the pending bytes are written.
    ///
    /// # Panics
    ///
    /// Panics if fewer were pending.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.pending().len(), "more bytes written than were pending");
        self.written += count;
        self.pending_len -= count;
        if self.pending().is_empty() {
            self.frames.pop_front();
            self.written = 0;
        }
    }
}

/// Turns bytes that were read into messages.
pub struct FrameDecoder<M> {
    head: [u8; HEAD_LEN_BYTES],
    /// The body as far as it arrived, and room for the next step.
    body: Zeroizing<Vec<u8>>,
    /// The body's whole length; 0 while the head is incomplete.
    body_len: usize,
    /// Bytes that arrived, of the head or of the body.
    filled: usize,
    message: PhantomData<fn() -> M>,
}

impl<M: Message> Default for FrameDecoder<M> {
    fn default() -> Self {
        let body = Zeroizing::new(Vec::new());
        Self { head: [0; HEAD_LEN_BYTES], body, body_len: 0, filled: 0, message: PhantomData }
    }
}

impl<M: Message> FrameDecoder<M> {
    /// Returns where the next bytes belong; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        if self.body_len == 0 {
            return &mut self.head[self.filled..];
        }
        if self.filled == self.body.len() {
            let wider_len = (self.filled * 2).max(STEP_LEN_BYTES).min(self.body_len);
            // Growing in place would leave an unerased copy behind.
            let mut wider = Zeroizing::new(vec![0; wider_len]);
            wider[..self.filled].copy_from_slice(&self.body);
            self.body = wider;
        }
        &mut self.body[self.filled..]
    }

    /// Notes that the first `count` bytes of the space are filled; returns the message they end.
    ///
    /// # Errors
    ///
    /// Every way of being wrong; the channel is of no use afterwards.
    ///
    /// # Panics
    ///
    /// Panics if the space was smaller.
    pub fn advance(&mut self, count: usize) -> Result<Option<M>, Error> {
        assert!(count <= self.space().len(), "more bytes filled than there was space");
        self.filled += count;
        if self.body_len == 0 {
            if self.filled == HEAD_LEN_BYTES {
                let (len, max) = (u32::from_le_bytes(self.head) as usize, M::LEN_MAX_BYTES);
                if len > max {
                    return Err(Error::TooLong { what: M::NAME, len, max });
                }
                if len == 0 {
                    return Err(Error::EmptyFrame);
                }
                (self.body_len, self.filled) = (len, 0);
            }
            return Ok(None);
        }
        if self.filled < self.body_len {
            return Ok(None);
        }
        let frame = std::mem::take(self);
        M::decode(&frame.body).map(Some)
    }

    /// Whether the other end may close now: no frame is half read.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.body_len == 0 && self.filled == 0
    }
}

/// What reading a data channel brought.
#[derive(Debug)]
pub enum Event<M> {
    /// A message.
    Message(M),
    /// Nothing more for now.
    Empty,
    /// The other end is closed, between two frames.
    Closed,
}

/// One end of a data channel in a poll loop; sends `Out`, receives `In`.
pub struct DataChannel<Out, In> {
    socket: OwnedFd,
    encoder: FrameEncoder,
    decoder: FrameDecoder<In>,
    out: PhantomData<fn(Out)>,
}

/// Makes a data channel and returns both nonblocking ends.
///
/// # Errors
///
/// `Io` when the process has no room for descriptors.
pub fn data_pair() -> Result<(OwnedFd, OwnedFd), Error> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socketpair(AddressFamily::Unix, SockType::Stream, None, flags)
        .map_err(|errno| Error::Io { action: "make", errno })
}

impl<Out: Message, In: Message> DataChannel<Out, In> {
    /// Takes an end that `data_pair` made.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        let (encoder, decoder) = (FrameEncoder::default(), FrameDecoder::default());
        Self { socket, encoder, decoder, out: PhantomData }
    }

    /// Appends a message to what waits to be written.
    ///
    /// # Errors
    ///
    /// `TooLong`; then nothing is appended.
    pub fn push(&mut self, message: &Out) -> Result<(), Error> {
        self.encoder.push(message)
    }

    /// Returns how many bytes wait to be written: ask `poll` for room while it is not 0.
    #[must_use]
    pub fn pending_len(&self) -> usize {
        self.encoder.pending_len()
    }

    /// Writes as much as the socket takes without waiting.
    ///
    /// # Errors
    ///
    /// `Closed`, `Io`.
    pub fn flush(&mut self) -> Result<(), Error> {
        use nix::sys::socket::{MsgFlags, send};
        use std::os::fd::AsRawFd;
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        while !self.encoder.pending().is_empty() {
            match send(self.socket.as_raw_fd(), self.encoder.pending(), flags) {
                Ok(count) => self.encoder.advance(count),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(Error::Closed),
                Err(errno) => return Err(Error::Io { action: "write", errno }),
            }
        }
        Ok(())
    }

    /// Reads up to the end of the next message without waiting; call again until `Empty`.
    ///
    /// # Errors
    ///
    /// Every way of being wrong, `Truncated` for an end inside a frame.
    pub fn read(&mut self) -> Result<Event<In>, Error> {
        loop {
            match nix::unistd::read(&self.socket, self.decoder.space()) {
                Ok(0) if self.decoder.is_between_frames() => return Ok(Event::Closed),
                Ok(0) => return Err(Error::Truncated),
                Ok(count) => {
                    if let Some(message) = self.decoder.advance(count)? {
                        return Ok(Event::Message(message));
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(Event::Empty),
                Err(Errno::ECONNRESET) => return Ok(Event::Closed),
                Err(errno) => return Err(Error::Io { action: "read", errno }),
            }
        }
    }
}

impl<Out, In> AsFd for DataChannel<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
