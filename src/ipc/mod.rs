//! The only way processes talk: bounded frames, exact codecs, a table of who may say what.
//!
//! ```text
//!              control (SOCK_SEQPACKET, one message a packet)
//!   gateway ───────────────────▶ supervisor ◀─────────────── worker, opener, loader, spawner
//!      └───────────── data (SOCK_STREAM, u32 length + body) ───────────▶ worker
//! ```
//!
//! Both ends are taken to be hostile: every length is checked before memory is taken, a
//! descriptor that a message does not announce is an error, trailing bytes are an error. No error
//! here carries a byte of a message.

pub mod channel;
pub mod codec;
pub mod frames;
pub mod message;
mod redacted;
mod sampling;
pub mod spawner;
mod wire;

use std::fmt;

pub use channel::{Channel, DESCRIPTORS_COUNT_MAX};
pub use codec::{Decode, Encode, Message, Reader, Writer};
pub use frames::{DataChannel, Event, FrameDecoder, FrameEncoder, data_pair};

/// Why a message was not sent or not understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The bytes end inside a field.
    Truncated,
    /// Bytes follow the message.
    Trailing {
        /// How many.
        count: usize,
    },
    /// A number stands for no variant.
    UnknownVariant {
        /// The type it was read for.
        what: &'static str,
        /// The number.
        value: u8,
    },
    /// A text, a list or a message is over its limit.
    TooLong {
        /// The field or the message.
        what: &'static str,
        /// Its length, in bytes or elements.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A text is not UTF-8.
    NotUtf8 {
        /// The field.
        what: &'static str,
    },
    /// A truth value is neither 0 nor 1.
    NotBool {
        /// The field.
        what: &'static str,
    },
    /// A frame without a body.
    EmptyFrame,
    /// A message came with more or fewer descriptors than it announces.
    DescriptorCount {
        /// How many it announces.
        want: usize,
        /// How many came.
        got: usize,
    },
    /// The packet or its descriptors did not fit: the kernel cut them.
    Cut,
    /// The other end is closed.
    Closed,
    /// The channel is full or empty, and the call does not wait.
    WouldBlock,
    /// A system call on the channel failed.
    Io {
        /// What was being done.
        action: &'static str,
        /// What the kernel said.
        errno: nix::errno::Errno,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => write!(f, "message is truncated"),
            Self::Trailing { count } => write!(f, "{count} bytes follow the message"),
            Self::UnknownVariant { what, value } => write!(f, "{what} has no variant {value}"),
            Self::TooLong { what, len, max } => write!(f, "{what} is {len} long, at most {max}"),
            Self::NotUtf8 { what } => write!(f, "{what} is not UTF-8"),
            Self::NotBool { what } => write!(f, "{what} is neither 0 nor 1"),
            Self::EmptyFrame => write!(f, "frame is empty"),
            Self::DescriptorCount { want, got } => {
                write!(f, "message comes with {got} descriptors and announces {want}")
            }
            Self::Cut => write!(f, "packet was cut by the kernel"),
            Self::Closed => write!(f, "the other end is closed"),
            Self::WouldBlock => write!(f, "channel is not ready"),
            Self::Io { action, errno } => write!(f, "{action} on a channel: {}", errno.desc()),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests;
