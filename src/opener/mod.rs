//! The opener: parses the age file and decrypts it in parallel; holds one file key, never an identity.
//!
//! It lives for one file. Its powers: read the file that came with the order, make memfds of one length,
//! ask the supervisor to unwrap a stanza of fixed size. Its life:
//!
//! 1. Take one order, `OpenAge` or `OpenPlain`, with the file.
//! 2. `OpenAge`: parse the header, have stanzas unwrapped until one is ours, check the MAC,
//!    decrypt. `OpenPlain`: copy. Either way into segments, each sealed and sent.
//! 3. Say `Finished`, or `Refused` with the check that failed.
//!
//! What it sent before a refusal is authentic but not whole: nothing of it is looked into.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use crate::ipc::message::{FromOpener, OpenCheck, SEGMENT_LEN_BYTES, SEGMENTS_COUNT_MAX, ToOpener};
use crate::ipc::{self, Channel};
use crate::package;
use crate::package::age_header::X25519Stanza;
use crate::package::age_stream::Decryptor;
use crate::package::keys::FileKey;
use crate::package::open::{Unwrap, copy_plain, open_age};
use crate::package::pieces::Sink;
use crate::sys::memory::UnsealedMemory;

/// Time that the kernel may take to find a segment's huge pages. Where it has to move others' memory for them,
/// small ones are there sooner.
const HUGE_PAGES_DEADLINE: Duration = Duration::from_millis(20);

/// Segments that may be under way for each thread: one is decrypted, the other waits.
pub const SEGMENTS_PER_THREAD: usize = 2;

/// Why an opener ends without a report.
#[derive(Debug)]
pub enum Error {
    /// The control channel broke.
    Control(ipc::Error),
    /// The supervisor said what it may not say now.
    Order,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control(error) => write!(f, "opener: control channel: {error}"),
            Self::Order => write!(f, "opener: an answer came in place of an order"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Control(error) => Some(error),
            Self::Order => None,
        }
    }
}

/// Serves one order and reports how it ended.
///
/// # Errors
///
/// When the supervisor is gone or broke protocol; a file that is refused is no error.
pub fn serve(control: &Channel, decryptor: &mut Decryptor<UnsealedMemory>) -> Result<(), Error> {
    let (order, descriptors) = control.recv::<ToOpener>().map_err(Error::Control)?;
    let mut segments = Segments { control, under_way_count: 0, takes_huge_pages: true };
    let opened = match (&order, <[OwnedFd; 1]>::try_from(descriptors)) {
        (ToOpener::OpenAge, Ok([file])) => {
            let mut holder = Supervisor { control };
            open_age(File::from(file), &mut holder, decryptor, &mut segments, &mut |_| {})
        }
        (ToOpener::OpenPlain, Ok([file])) => copy_plain(&File::from(file), &mut segments),
        _ => return Err(Error::Order),
    };
    let report = match opened {
        Ok(len_bytes) => FromOpener::Finished { len_bytes },
        Err(error) => FromOpener::Refused { check: failed_check(&error) },
    };
    control.send(&report, &[]).map_err(Error::Control)
}

/// The supervisor, as the holder of the identity.
struct Supervisor<'c> {
    control: &'c Channel,
}

impl Unwrap for Supervisor<'_> {
    fn unwrap_stanza(&mut self, stanza: &X25519Stanza) -> Result<Option<FileKey>, package::Error> {
        let broken = |error: io::Error| package::Error::Stream {
            action: "ask the supervisor for the file key",
            source: error,
        };
        let question = FromOpener::Unwrap { ephemeral: stanza.ephemeral, body: stanza.body };
        self.control.send(&question, &[]).map_err(|error| broken(io::Error::other(error)))?;
        let answer = self.control.recv::<ToOpener>();
        match answer.map_err(|error| broken(io::Error::other(error)))? {
            (ToOpener::FileKey(key), _) => Ok(Some(FileKey::new(key))),
            (ToOpener::NoMatch, _) => Ok(None),
            _ => Err(broken(io::ErrorKind::InvalidData.into())),
        }
    }
}

/// The plaintext on its way to the supervisor: a sealed memfd after the other, a few at a time.
struct Segments<'c> {
    control: &'c Channel,
    /// Those that were sent and not yet taken.
    under_way_count: usize,
    /// Whether the kernel has huge pages for them, as far as is known.
    takes_huge_pages: bool,
}

impl Sink for Segments<'_> {
    type Piece = UnsealedMemory;

    fn piece_len_bytes(&self) -> usize {
        SEGMENT_LEN_BYTES
    }

    fn pieces_per_thread(&self) -> usize {
        SEGMENTS_PER_THREAD
    }

    fn piece(&mut self) -> io::Result<UnsealedMemory> {
        let segment = UnsealedMemory::new("cloister-segment", SEGMENT_LEN_BYTES)?;
        if self.takes_huge_pages {
            let start = Instant::now();
            let taken = segment.collapse(0..SEGMENT_LEN_BYTES);
            self.takes_huge_pages = taken && start.elapsed() < HUGE_PAGES_DEADLINE;
        }
        Ok(segment)
    }

    /// Sends a segment, once there is room for it.
    fn put(&mut self, segment: UnsealedMemory, len: usize) -> io::Result<()> {
        let sealed = segment.seal_first(len)?;
        while self.under_way_count == SEGMENTS_COUNT_MAX {
            match self.control.recv::<ToOpener>().map_err(io::Error::other)? {
                (ToOpener::Taken, _) => self.under_way_count -= 1,
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        self.control.send(&FromOpener::Segment, &[sealed.as_fd()]).map_err(io::Error::other)?;
        self.under_way_count += 1;
        Ok(())
    }
}

/// What the supervisor is told of an error: the check, nothing of the file.
fn failed_check(error: &package::Error) -> OpenCheck {
    match error {
        package::Error::AgeHeader(_) => OpenCheck::AgeHeader,
        package::Error::NoMatchingIdentity { .. } => OpenCheck::NoMatchingIdentity,
        package::Error::HeaderMac => OpenCheck::HeaderMac,
        package::Error::Chunk { .. } => OpenCheck::Chunk,
        package::Error::Truncated | package::Error::TrailingData => OpenCheck::Truncated,
        _ => OpenCheck::Io,
    }
}
