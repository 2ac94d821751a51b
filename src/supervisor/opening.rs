//! Opening a model: opener, hash, loader, joined by sealed segments; nothing is parsed before `Verified`.
//!
//! 1. The signature over the model is verified: which digest must come is known.
//! 2. The opener gets the file; it asks for one stanza to be unwrapped.
//! 3. It sends the plaintext as sealed memfds of one length. Each is mapped and hashed here once its seals are
//!    checked, and that memfd, which nobody can change any more, goes on to the loader: no byte is copied.
//! 4. The digest is held against the signed one; only then is the loader told `Verified`.
//! 5. The loader hands the packed image back; its seals are checked.
//!
//! Both children are hostile: each conversation is a straight line, each step of it has a deadline, and so
//! has the whole, so that no child holds the start up by always being about to go on.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ring::digest::{Context, SHA256};

use super::intake::Intake;
use super::records::is_plain;
use crate::ipc::message::{
    Digest, FromLoader, FromOpener, KvFormat, OpenCheck, SEGMENT_LEN_BYTES, SEGMENTS_COUNT_MAX,
    ToLoader, ToOpener,
};
use crate::ipc::{self, Channel, Message};
use crate::package::keys::Identity;
use crate::package::signature::Verified;
use crate::package::statement::Statement;
use crate::sys::memory::{SealedMemory, SealedSegment, file_len};

/// Most stanzas that an opener may have unwrapped: as many as an age header may hold.
const UNWRAPS_COUNT_MAX: usize = 128;
/// Time in which a child must do its next step, or the next bytes must come.
const STEP_DEADLINE: Duration = Duration::from_secs(60);
/// Time in which a model must be opened, beside what its length takes.
const OPENING_DEADLINE: Duration = Duration::from_secs(600);
/// Slowest that a model is read, decrypted, packed and handed over, in bytes a second.
const RATE_MIN_BYTES_S: u64 = 1 << 20;
/// Bytes of a whole segment.
const SEGMENT_LEN: u64 = SEGMENT_LEN_BYTES as u64;
/// Bytes that may be on their way to the loader.
const SEGMENTS_LEN_MAX_BYTES: u64 = SEGMENT_LEN * SEGMENTS_COUNT_MAX as u64;

/// What is to be opened.
pub(super) struct Job<'a> {
    /// The file, open and checked.
    pub(super) file: &'a File,
    /// Whether it is an age file.
    pub(super) is_encrypted: bool,
    /// What the signature states; `None` when the operator serves it unsigned.
    pub(super) statement: Option<&'a Verified<Statement>>,
    /// What an unsigned model's digest is held against.
    pub(super) intake: &'a Intake,
    /// The identity that opens age files.
    pub(super) identity: Option<&'a Identity>,
    /// How its worker will keep keys and values.
    pub(super) kv: KvFormat,
}

/// An opened model.
#[derive(Debug)]
pub(super) struct Opened {
    /// The sealed image.
    pub(super) image: OwnedFd,
    /// SHA-256 of the plaintext file.
    pub(super) digest: Digest,
    /// Bytes of the plaintext file.
    pub(super) len_bytes: u64,
    /// From the order to the opener to the last byte's hash.
    pub(super) hashed_after: Duration,
}

/// Why a model is refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The opener's check.
    Opener(OpenCheck),
    /// The bytes are not the signed ones.
    Digest,
    /// The model is revoked, or not on the list of allowed ones.
    Listed(crate::package::Error),
    /// The loader's check, in its words.
    Loader(String),
    /// The image is not sealed, or not of the length that was said.
    Seals,
    /// A segment of the opener is not sealed, or not of its length.
    Segment,
    /// An age file, but no identity.
    NoIdentity,
    /// A child said what it may not say now.
    Protocol(&'static str),
    /// A child's message is none, or it is gone.
    Channel(&'static str, ipc::Error),
    /// A child took too long.
    Deadline(&'static str),
    /// The kernel killed a child for a system call that its filter does not allow.
    Violation(&'static str),
    /// A system call failed.
    System(&'static str, nix::errno::Errno),
    /// Cloister was told to stop meanwhile.
    Stopped,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opener(check) => f.write_str(match check {
                OpenCheck::AgeHeader => "the age header is wrong",
                OpenCheck::NoMatchingIdentity => "the identity does not open the age file",
                OpenCheck::HeaderMac => "the age header's MAC is wrong",
                OpenCheck::Chunk => "a chunk of the age file does not authenticate",
                OpenCheck::Truncated => "the age file ends too early or goes on after its end",
                OpenCheck::Io => "the file cannot be read",
            }),
            Self::Digest => write!(f, "the model is not the one that was signed (SHA-256 differs)"),
            Self::Listed(error) => write!(f, "{error}"),
            Self::Loader(check) => write!(f, "{check}"),
            Self::Seals => write!(f, "the loader's image is not sealed"),
            Self::Segment => {
                write!(f, "a segment of the opener is not sealed, or not of its length")
            }
            Self::NoIdentity => write!(f, "the file is sealed, and keys.identity is not there"),
            Self::Protocol(child) => write!(f, "the {child} broke protocol"),
            Self::Channel(child, error) => write!(f, "the {child} failed: {error}"),
            Self::Deadline(child) => write!(f, "the {child} took too long"),
            Self::Violation(child) => write!(f, "the {child} broke its seccomp filter"),
            Self::System(action, errno) => write!(f, "{action}: {}", errno.desc()),
            Self::Stopped => write!(f, "stopped while loading"),
        }
    }
}

/// How far an opening is, for the operator's terminal.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Bytes that were read and hashed, of about so many.
    Reading(u64, u64),
    /// Bytes that were packed, of so many.
    Packing(u64, u64),
}

/// A running opening.
pub(super) struct Opening<'a> {
    pub(super) opener: &'a Channel,
    pub(super) loader: &'a Channel,
    /// Readable when Cloister is told to stop.
    pub(super) signals: BorrowedFd<'a>,
    pub(super) progress: &'a dyn Fn(Step),
    /// How often the identity was used.
    pub(super) unwraps_count: Cell<usize>,
    /// When it must be done.
    pub(super) deadline: Instant,
}

/// When a model of so many bytes must be opened, if its opening begins now.
pub(super) fn deadline(len_bytes: u64) -> Instant {
    Instant::now() + OPENING_DEADLINE + Duration::from_secs(len_bytes / RATE_MIN_BYTES_S)
}

impl Opening<'_> {
    /// Opens the model of `job`.
    ///
    /// # Errors
    ///
    /// [`Refusal`] names the check.
    pub(super) fn run(&self, job: &Job<'_>) -> Result<Opened, Refusal> {
        let len_max_bytes =
            file_len(job.file).map_err(|errno| Refusal::System("look at the model", errno))?;
        let start = Instant::now();
        let order = if job.is_encrypted { ToOpener::OpenAge } else { ToOpener::OpenPlain };
        send(self.opener, "opener", &order, &[job.file.as_fd()])?;
        self.tell_loader(&ToLoader::Load { len_max_bytes, kv: job.kv }, &[])?;
        if job.is_encrypted {
            self.unwrap_key(job.identity)?;
        }
        let (digest, len_bytes) = self.pass(len_max_bytes)?;
        let hashed_after = start.elapsed();
        match job.statement {
            Some(statement) => statement.check(&digest).map_err(|_| Refusal::Digest)?,
            None => job.intake.check(&digest).map_err(Refusal::Listed)?,
        }
        self.tell_loader(&ToLoader::Verified, &[])?;
        let image = self.image()?;
        Ok(Opened { image, digest, len_bytes, hashed_after })
    }

    /// Answers the opener until it has its file key.
    fn unwrap_key(&self, identity: Option<&Identity>) -> Result<(), Refusal> {
        for count in 1..=UNWRAPS_COUNT_MAX {
            let (ephemeral, body) = match self.hear_opener()? {
                (FromOpener::Unwrap { ephemeral, body }, _) => (ephemeral, body),
                (FromOpener::Refused { check }, _) => return Err(Refusal::Opener(check)),
                _ => return Err(Refusal::Protocol("opener")),
            };
            let identity = identity.ok_or(Refusal::NoIdentity)?;
            self.unwraps_count.set(count);
            if let Some(key) = identity.unwrap_stanza(&ephemeral, &body) {
                let key = zeroize::Zeroizing::new(*key.expose());
                send(self.opener, "opener", &ToOpener::FileKey(key), &[])?;
                return Ok(());
            }
            send(self.opener, "opener", &ToOpener::NoMatch, &[])?;
        }
        match self.hear_opener()? {
            (FromOpener::Refused { check }, _) => Err(Refusal::Opener(check)),
            _ => Err(Refusal::Protocol("opener")),
        }
    }

    /// Hashes the plaintext on its way to the loader; returns its length too.
    fn pass(&self, len_max_bytes: u64) -> Result<(Digest, u64), Refusal> {
        let mut hash = Context::new(&SHA256);
        let (mut passed, mut received) = (0, 0);
        loop {
            let segment = match self.hear_opener()? {
                (FromOpener::Segment, mut descriptors) => descriptors.pop(),
                (FromOpener::Finished { len_bytes }, _) if len_bytes == passed => break,
                (FromOpener::Refused { check }, _) => return Err(Refusal::Opener(check)),
                _ => None,
            };
            let segment = segment.ok_or(Refusal::Protocol("opener"))?;
            self.await_loader(&mut received, passed, SEGMENTS_LEN_MAX_BYTES - SEGMENT_LEN)?;
            passed += self.take(&segment, passed, &mut hash)?;
            if passed > len_max_bytes {
                // More plaintext than the file has bytes.
                return Err(Refusal::Protocol("opener"));
            }
            self.tell_loader(&ToLoader::Segment, &[segment.as_fd()])?;
            (self.progress)(Step::Reading(passed, len_max_bytes));
        }
        self.await_loader(&mut received, passed, 0)?;
        let digest = hash.finish().as_ref().try_into().expect("SHA-256 is 32 bytes");
        Ok((Digest(digest), passed))
    }

    /// Hashes a segment that comes after so many bytes, and tells the opener so; returns its length.
    fn take(&self, segment: &OwnedFd, passed: u64, hash: &mut Context) -> Result<u64, Refusal> {
        // All but the last are whole.
        if !passed.is_multiple_of(SEGMENT_LEN) {
            return Err(Refusal::Segment);
        }
        let bytes = SealedSegment::open(segment.as_fd(), SEGMENT_LEN_BYTES);
        let bytes = bytes.map_err(|_| Refusal::Segment)?;
        hash.update(&bytes);
        let len = bytes.len() as u64;
        match self.opener.try_send(&ToOpener::Taken, &[]) {
            // It need not wait for what becomes of its last ones.
            Ok(()) | Err(ipc::Error::Closed) => Ok(len),
            Err(error) => Err(Refusal::Channel("opener", error)),
        }
    }

    /// Waits until the loader lacks at most `lacking_max` of the bytes that were passed on.
    fn await_loader(
        &self,
        received: &mut u64,
        passed: u64,
        lacking_max: u64,
    ) -> Result<(), Refusal> {
        while passed - *received > lacking_max {
            match self.hear_loader()? {
                (FromLoader::Received { len_bytes }, _)
                    if (*received + 1..=passed).contains(&len_bytes) =>
                {
                    *received = len_bytes;
                }
                (FromLoader::Refused { check }, _) => return Err(Refusal::Loader(check)),
                _ => return Err(Refusal::Protocol("loader")),
            }
        }
        Ok(())
    }

    /// Tells the loader something, once there is room in its channel.
    fn tell_loader(&self, message: &ToLoader, fds: &[BorrowedFd<'_>]) -> Result<(), Refusal> {
        loop {
            match self.loader.try_send(message, fds) {
                Ok(()) => return Ok(()),
                Err(ipc::Error::WouldBlock) => {}
                Err(error) => return Err(self.blame(error)),
            }
            self.wait(self.loader.as_fd(), PollFlags::POLLOUT, "loader")?;
        }
    }

    /// When the loader is gone, it may have said why.
    fn blame(&self, error: ipc::Error) -> Refusal {
        match self.loader.try_recv() {
            Ok((FromLoader::Refused { check }, _)) if is_plain(&check) => Refusal::Loader(check),
            _ => Refusal::Channel("loader", error),
        }
    }

    /// Waits for the sealed image.
    fn image(&self) -> Result<OwnedFd, Refusal> {
        let mut before = 0;
        loop {
            match self.hear_loader()? {
                (FromLoader::Progress { done_bytes, total_bytes }, _) if done_bytes > before => {
                    before = done_bytes;
                    (self.progress)(Step::Packing(done_bytes, total_bytes));
                }
                // None is made.
                (FromLoader::Progress { .. }, _) => return Err(Refusal::Protocol("loader")),
                (FromLoader::Sealed { len_bytes }, mut descriptors) => {
                    let image = descriptors.pop().ok_or(Refusal::Protocol("loader"))?;
                    let sealed = SealedMemory::open(image.as_fd()).map_err(|_| Refusal::Seals)?;
                    if sealed.len() as u64 != len_bytes {
                        return Err(Refusal::Seals);
                    }
                    return Ok(image);
                }
                (FromLoader::Refused { check }, _) => return Err(Refusal::Loader(check)),
                (FromLoader::Received { .. }, _) => return Err(Refusal::Protocol("loader")),
            }
        }
    }

    fn hear_opener(&self) -> Result<(FromOpener, Vec<OwnedFd>), Refusal> {
        self.receive(self.opener, "opener")
    }

    fn hear_loader(&self) -> Result<(FromLoader, Vec<OwnedFd>), Refusal> {
        match self.receive(self.loader, "loader")? {
            // It will stand in the log and on the operator's terminal.
            (FromLoader::Refused { check }, _) if !is_plain(&check) => {
                Err(Refusal::Protocol("loader"))
            }
            heard => Ok(heard),
        }
    }

    fn receive<M: Message>(
        &self,
        channel: &Channel,
        child: &'static str,
    ) -> Result<(M, Vec<OwnedFd>), Refusal> {
        self.wait(channel.as_fd(), PollFlags::POLLIN, child)?;
        channel.try_recv().map_err(|error| Refusal::Channel(child, error))
    }

    fn wait(
        &self,
        fd: BorrowedFd<'_>,
        flags: PollFlags,
        child: &'static str,
    ) -> Result<(), Refusal> {
        let step = Instant::now() + STEP_DEADLINE;
        match wait(fd, flags, Some(self.signals), step.min(self.deadline)) {
            Ok(Wake::Ready) => Ok(()),
            Ok(Wake::Late) => Err(Refusal::Deadline(child)),
            Ok(Wake::Stop) => Err(Refusal::Stopped),
            Err(errno) => Err(Refusal::System("wait", errno)),
        }
    }
}

/// Why a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wake {
    /// The descriptor is ready.
    Ready,
    /// The deadline passed.
    Late,
    /// Cloister is told to stop.
    Stop,
}

/// Waits until `fd` is ready, `signals` is readable, or the deadline.
pub(super) fn wait(
    fd: BorrowedFd<'_>,
    flags: PollFlags,
    signals: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> nix::Result<Wake> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Wake::Late);
        }
        let mut fds = vec![PollFd::new(fd, flags)];
        fds.extend(signals.map(|signals| PollFd::new(signals, PollFlags::POLLIN)));
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => continue,
            result => result?,
        };
        if fds.get(1).is_some_and(|signals| signals.any() == Some(true)) {
            return Ok(Wake::Stop);
        }
        if fds[0].any() == Some(true) {
            return Ok(Wake::Ready);
        }
    }
}

fn send<M: Message>(
    channel: &Channel,
    child: &'static str,
    message: &M,
    fds: &[BorrowedFd<'_>],
) -> Result<(), Refusal> {
    // Straight conversations of a few small messages: a full channel is a fault.
    channel.try_send(message, fds).map_err(|error| Refusal::Channel(child, error))
}

#[cfg(test)]
mod tests;
