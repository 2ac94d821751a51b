//! The control channel: a pair of sequenced-packet sockets, one message a packet.
//!
//! A packet is whole or an error; the descriptors that a message announces come with it, close on
//! exec, and any other number of them is an error.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, send, sendmsg, socketpair,
};
use zeroize::Zeroizing;

use super::{Error, Message};
use crate::sys::socket::receive;

/// Most descriptors that travel with one message.
pub const DESCRIPTORS_COUNT_MAX: usize = 8;

/// One end of a control channel.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Makes a channel and returns both ends.
    ///
    /// # Errors
    ///
    /// `Io` when the process has no room for descriptors.
    pub fn pair() -> Result<(Self, Self), Error> {
        let kind = SockType::SeqPacket;
        let (one, other) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|errno| Error::Io { action: "make", errno })?;
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// Takes an inherited end.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Gives the descriptor away, to be inherited by a child.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.socket
    }

    /// Sends a message; waits while the channel is full.
    ///
    /// # Errors
    ///
    /// `Closed`, `TooLong`, `DescriptorCount`, `Io`.
    pub fn send<M: Message>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.send_with(message, fds, MsgFlags::empty())
    }

    /// Sends a message or says `WouldBlock`.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, and those of `send`.
    pub fn try_send<M: Message>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.send_with(message, fds, MsgFlags::MSG_DONTWAIT)
    }

    /// Receives a message; waits for it.
    ///
    /// # Errors
    ///
    /// `Closed` when the other end is gone and all it sent was received; every way of being wrong.
    pub fn recv<M: Message>(&self) -> Result<(M, Vec<OwnedFd>), Error> {
        self.recv_with(true)
    }

    /// Receives a message or says `WouldBlock`.
    ///
    /// # Errors
    ///
    /// `WouldBlock`, and those of `recv`.
    pub fn try_recv<M: Message>(&self) -> Result<(M, Vec<OwnedFd>), Error> {
        self.recv_with(false)
    }

    fn send_with<M: Message>(
        &self,
        message: &M,
        fds: &[BorrowedFd<'_>],
        flags: MsgFlags,
    ) -> Result<(), Error> {
        check_count(message, fds.len())?;
        let bytes = message.encode()?;
        let flags = flags | MsgFlags::MSG_NOSIGNAL;
        loop {
            match self.send_bytes(&bytes, fds, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Error::WouldBlock),
                Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => {
                    return Err(Error::Closed);
                }
                Err(errno) => return Err(Error::Io { action: "send", errno }),
            }
        }
    }

    /// Without descriptors by `send`, which can neither pass any nor name an address: most children may
    /// call no other.
    fn send_bytes(
        &self,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
        flags: MsgFlags,
    ) -> Result<usize, Errno> {
        let socket = self.socket.as_raw_fd();
        if fds.is_empty() {
            return send(socket, bytes, flags);
        }
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let (parts, rights) = ([IoSlice::new(bytes)], [ControlMessage::ScmRights(&raw)]);
        sendmsg::<()>(socket, &parts, &rights, flags, None)
    }

    fn recv_with<M: Message>(&self, wait: bool) -> Result<(M, Vec<OwnedFd>), Error> {
        let mut bytes = Zeroizing::new(vec![0; M::LEN_MAX_BYTES]);
        let mut was_reset = false;
        let packet = loop {
            match receive(self.socket.as_fd(), &mut bytes, wait) {
                Ok(packet) => break packet,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Error::WouldBlock),
                // Said once, and before what the other end sent: that it closed with messages unread.
                Err(Errno::ECONNRESET) if !was_reset => was_reset = true,
                Err(Errno::ECONNRESET | Errno::ENOTCONN) => return Err(Error::Closed),
                Err(errno) => return Err(Error::Io { action: "receive", errno }),
            }
        };
        if packet.cut {
            return Err(Error::Cut);
        }
        // An empty packet looks the same; who sends one is as good as gone.
        let received = bytes.get(..packet.len).filter(|received| !received.is_empty());
        let message = M::decode(received.ok_or(Error::Closed)?)?;
        check_count(&message, packet.descriptors.len())?;
        Ok((message, packet.descriptors))
    }
}

fn check_count<M: Message>(message: &M, got: usize) -> Result<(), Error> {
    match message.descriptor_count() {
        want if want == got && want <= DESCRIPTORS_COUNT_MAX => Ok(()),
        want => Err(Error::DescriptorCount { want, got }),
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
