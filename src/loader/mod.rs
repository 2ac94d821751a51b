//! The loader: keeps verified weights in private memory, parses GGUF only after `verified`, repacks, seals.
//!
//! 1. Receive the pipe; keep what comes out of it, as bytes that nobody looks at.
//! 2. Tell the supervisor how many came; wait for `Verified`.
//! 3. Parse the header, lay the image out, pack it on several threads, giving source pages back.
//! 4. Seal the image, hand it over, end.
//!
//! The peak is the source and the image less what was given back: about one copy of the weights.
//! A refusal names the check and the field in this program's own words, never bytes of the file.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;

use kernels::Pool;
use nix::errno::Errno;

use crate::engine::{ImageLayout, KvType};
use crate::gguf::{self, Header};
use crate::ipc::message::{FromLoader, ToLoader};
use crate::ipc::{self, Channel};
use crate::sandbox::{self, Role, Sandboxed};
use crate::sys::memory::{PrivateMemory, UnsealedMemory};
use crate::sys::process::inherited_descriptor;

/// The number of the control channel.
const CONTROL_DESCRIPTOR: i32 = 3;
/// Longest text of a refusal, in bytes.
const REFUSAL_LEN_MAX_BYTES: usize = 256;
/// What `release` rounds to, so that a page between two tensors goes with the second.
const RELEASE_STEP_BYTES: usize = 64 << 10;
/// Source bytes after which progress is told.
const PROGRESS_STEP_BYTES: u64 = 32 << 20;

/// Why a loader ends without an image.
#[derive(Debug)]
pub enum Error {
    /// The control channel broke, or the supervisor ended it.
    Control(ipc::Error),
    /// The supervisor said what it may not say now.
    Order,
}

/// Which check refused the model.
#[derive(Debug)]
enum Refusal {
    /// More bytes came than were announced.
    TooLong,
    /// No byte came.
    Empty,
    /// The pipe cannot be read.
    Read(io::Error),
    /// No memory.
    Memory(Errno),
    /// The header.
    Header(gguf::Error),
    /// The engine cannot compute it.
    Engine(crate::engine::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "more bytes came than the file holds"),
            Self::Empty => write!(f, "the file is empty"),
            Self::Read(error) => write!(f, "read the model: {}", error.kind()),
            Self::Memory(errno) => write!(f, "memory for the model: {}", errno.desc()),
            Self::Header(error) => write!(f, "{error}"),
            Self::Engine(error) => write!(f, "{error}"),
        }
    }
}

/// How an attempt ended early.
enum End {
    Refused(Refusal),
    Broken(Error),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Runs the program as the loader; the spawner started it under that name.
pub fn main() -> ExitCode {
    sandbox::report_panics(|_, _| {});
    let Ok(channel) = inherited_descriptor(CONTROL_DESCRIPTOR) else { return ExitCode::from(2) };
    let channel = Channel::new(channel);
    let Ok(begun) = sandbox::begin(Role::Loader, &channel) else { return ExitCode::from(3) };
    let pool = ImageLayout::pack_pool();
    let Ok(sandboxed) = begun.seal() else { return ExitCode::from(4) };
    match serve(&sandboxed, &channel, &pool) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Serves one order.
///
/// # Errors
///
/// When the supervisor is gone or broke protocol; a model that is refused is no error.
fn serve(_: &Sandboxed, control: &Channel, pool: &Pool) -> Result<(), Error> {
    let refusal = match load(control, pool) {
        Ok(()) => return Ok(()),
        Err(End::Broken(error)) => return Err(error),
        Err(End::Refused(refusal)) => refusal,
    };
    // A name in the file may hold anything; the supervisor takes printable ASCII alone.
    let plain = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
    let check = refusal.to_string().chars().map(plain).take(REFUSAL_LEN_MAX_BYTES).collect();
    control.send(&FromLoader::Refused { check }, &[]).map_err(Error::Control)
}

fn load(control: &Channel, pool: &Pool) -> Result<(), End> {
    let (order, mut descriptors) = control.recv().map_err(broken)?;
    let (ToLoader::Load { len_max_bytes, kv }, Some(pipe)) = (order, descriptors.pop()) else {
        return Err(End::Broken(Error::Order));
    };
    let (mut source, len) = receive(pipe, len_max_bytes)?;
    let len_bytes = len as u64;
    control.send(&FromLoader::Received { len_bytes }, &[]).map_err(broken)?;
    let (ToLoader::Verified, _) = control.recv().map_err(broken)? else {
        return Err(End::Broken(Error::Order));
    };
    let header = gguf::parse(&source[..len], len_bytes).map_err(Refusal::Header)?;
    let layout = ImageLayout::new(&header).map_err(Refusal::Engine)?;
    KvType::from(kv).check(layout.config()).map_err(Refusal::Engine)?;
    let image = pack((control, pool), &mut source, &header, &layout)?;
    let len_bytes = image.len() as u64;
    let image = image.seal().map_err(Refusal::Memory)?;
    control.send(&FromLoader::Sealed { len_bytes }, &[image.as_fd()]).map_err(broken)
}

fn broken(error: ipc::Error) -> End {
    End::Broken(Error::Control(error))
}

/// Keeps what comes out of the pipe; returns how many bytes that was.
fn receive(pipe: OwnedFd, len_max_bytes: u64) -> Result<(PrivateMemory, usize), Refusal> {
    let len_max = usize::try_from(len_max_bytes).map_err(|_| Refusal::Memory(Errno::EFBIG))?;
    // One byte more, so that a pipe that brings too much is seen.
    let reserved = len_max.checked_add(1).ok_or(Refusal::Memory(Errno::EFBIG))?;
    let mut memory = PrivateMemory::new(reserved).map_err(Refusal::Memory)?;
    let mut pipe = File::from(pipe);
    let mut len = 0;
    loop {
        if len > len_max {
            return Err(Refusal::TooLong);
        }
        match pipe.read(&mut memory[len..]) {
            Ok(0) if len == 0 => return Err(Refusal::Empty),
            Ok(0) => return Ok((memory, len)),
            Ok(count) => len += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Refusal::Read(error)),
        }
    }
}

/// Packs group by group, in the order of the file, giving the source's pages back.
fn pack(
    (control, pool): (&Channel, &Pool),
    source: &mut PrivateMemory,
    header: &Header,
    layout: &ImageLayout,
) -> Result<UnsealedMemory, End> {
    let mut image =
        UnsealedMemory::new("cloister-model", layout.total_len()).map_err(Refusal::Memory)?;
    let header_len = layout.header_len();
    image[..header_len].copy_from_slice(&source[..header_len]);
    source.release(0..header_len).map_err(Refusal::Memory)?;
    let total_bytes: u64 = header.tensors.iter().map(|tensor| tensor.size).sum();
    let (mut done_bytes, mut told_bytes, mut released) = (0, 0, header_len);
    for group in layout.groups(header, pool.threads()) {
        layout.pack_group(pool, header, &group, (&source[..], 0), &mut image);
        let end = group.iter().map(|part| part.source.end).max().unwrap_or(released);
        // From where the last one ended, so that the page between two groups goes too.
        source.release(released..end).map_err(Refusal::Memory)?;
        released = end / RELEASE_STEP_BYTES * RELEASE_STEP_BYTES;
        done_bytes += group.iter().map(|part| part.source.len() as u64).sum::<u64>();
        if done_bytes - told_bytes >= PROGRESS_STEP_BYTES {
            told_bytes = done_bytes;
            let progress = FromLoader::Progress { done_bytes, total_bytes };
            control.send(&progress, &[]).map_err(broken)?;
        }
    }
    Ok(image)
}
