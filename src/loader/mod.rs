//! The loader: keeps verified weights in private memory, parses GGUF only after `verified`, repacks, seals.
//!
//! 1. Receive the order: the pipe, and how much comes at most. Close the sandbox around so much memory.
//! 2. Keep what comes out of the pipe, as bytes that nobody looks at.
//! 3. Tell the supervisor how many came; wait for `Verified`.
//! 4. Parse the header, lay the image out, pack it on several threads, giving source pages back.
//! 5. Seal the image, hand it over, end.
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
use crate::ipc::message::{FromLoader, KvFormat, ToLoader};
use crate::ipc::{self, Channel};
use crate::sandbox::{self, Memory, Role, Sandboxed, Thread};
use crate::sys::memory::{EmptyMemory, PrivateMemory, UnsealedMemory};
use crate::sys::process::{exit_now, inherited_descriptor};

/// The number of the control channel.
const CONTROL_DESCRIPTOR: i32 = 3;
/// Longest text of a refusal, in bytes.
const REFUSAL_LEN_MAX_BYTES: usize = 256;
/// What `release` rounds to, so that a page between two tensors goes with the second.
const RELEASE_STEP_BYTES: usize = 64 << 10;
/// Source bytes after which progress is told.
const PROGRESS_STEP_BYTES: u64 = 32 << 20;
/// How much longer than the file its packed image may be, and by how many bytes more: narrow matrices are
/// packed as wide ones.
const IMAGE_LEN_FACTOR: u64 = 4;
/// See [`IMAGE_LEN_FACTOR`].
const IMAGE_LEN_MORE_BYTES: u64 = 64 << 20;
/// Memory for the parsed header and for packing, in bytes.
const PARSED_LEN_BYTES: u64 = 512 << 20;

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
    /// Its image would be longer than any model of this length needs.
    ImageTooLong,
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
            Self::ImageTooLong => {
                write!(f, "its packed image is too long for a file of this length")
            }
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
    let Ok(image) = EmptyMemory::new("cloister-model") else { return ExitCode::from(4) };
    let Ok(order) = Order::receive(&channel) else { return ExitCode::FAILURE };
    let Ok(sandboxed) = begun.seal(order.memory(pool.threads())) else { return ExitCode::from(4) };
    pool.on_each_worker(&|| narrow(&sandboxed, Thread::LoaderCompute));
    narrow(&sandboxed, Thread::LoaderMain);
    match serve(&sandboxed, (&channel, &pool), order, image) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Puts the filter of its kind on this thread; the process does not go on without.
fn narrow(sandboxed: &Sandboxed, thread: Thread) {
    if sandboxed.narrow(thread).is_err() {
        exit_now(4);
    }
}

/// Serves one order.
///
/// # Errors
///
/// When the supervisor is gone or broke protocol; a model that is refused is no error.
fn serve(
    _: &Sandboxed,
    (control, pool): (&Channel, &Pool),
    order: Order,
    image: EmptyMemory,
) -> Result<(), Error> {
    let refusal = match load((control, pool), order, image) {
        Ok(()) => return Ok(()),
        Err(End::Broken(error)) => return Err(error),
        Err(End::Refused(refusal)) => refusal,
    };
    // A name in the file may hold anything; the supervisor takes printable ASCII alone.
    let plain = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
    let check = refusal.to_string().chars().map(plain).take(REFUSAL_LEN_MAX_BYTES).collect();
    control.send(&FromLoader::Refused { check }, &[]).map_err(Error::Control)
}

/// What is to be loaded.
struct Order {
    pipe: OwnedFd,
    len_max_bytes: u64,
    kv: KvFormat,
}

impl Order {
    fn receive(control: &Channel) -> Result<Self, Error> {
        let (order, mut descriptors) = control.recv().map_err(Error::Control)?;
        match (order, descriptors.pop()) {
            (ToLoader::Load { len_max_bytes, kv }, Some(pipe)) => {
                Ok(Self { pipe, len_max_bytes, kv })
            }
            _ => Err(Error::Order),
        }
    }

    fn image_len_max_bytes(&self) -> u64 {
        let len = self.len_max_bytes.saturating_mul(IMAGE_LEN_FACTOR);
        len.saturating_add(IMAGE_LEN_MORE_BYTES)
    }

    /// The file, what is parsed of it, and its image.
    fn memory(&self, threads: usize) -> Memory {
        Memory {
            threads,
            mapped_len_bytes: self.image_len_max_bytes(),
            more_len_bytes: self.len_max_bytes.saturating_add(PARSED_LEN_BYTES),
            written_len_bytes: Some(self.image_len_max_bytes()),
        }
    }
}

fn load((control, pool): (&Channel, &Pool), order: Order, image: EmptyMemory) -> Result<(), End> {
    let (image_len_max, kv) = (order.image_len_max_bytes(), order.kv);
    let (mut source, len) = receive(order.pipe, order.len_max_bytes)?;
    let len_bytes = len as u64;
    control.send(&FromLoader::Received { len_bytes }, &[]).map_err(broken)?;
    let (ToLoader::Verified, _) = control.recv().map_err(broken)? else {
        return Err(End::Broken(Error::Order));
    };
    let header = gguf::parse(&source[..len], len_bytes).map_err(Refusal::Header)?;
    let layout = ImageLayout::new(&header).map_err(Refusal::Engine)?;
    KvType::from(kv).check(layout.config()).map_err(Refusal::Engine)?;
    if layout.total_len() as u64 > image_len_max {
        return Err(Refusal::ImageTooLong.into());
    }
    let image = image.grow(layout.total_len()).map_err(Refusal::Memory)?;
    let image = pack((control, pool), &mut source, image, (&header, &layout))?;
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
    mut image: UnsealedMemory,
    (header, layout): (&Header, &ImageLayout),
) -> Result<UnsealedMemory, End> {
    let header_len = layout.header_len();
    image[..header_len].copy_from_slice(&source[..header_len]);
    source.release(0..header_len).map_err(Refusal::Memory)?;
    let total_bytes: u64 = header.tensors.iter().map(|tensor| tensor.size).sum();
    let (mut done_bytes, mut told_bytes, mut released) = (0, 0, header_len);
    for group in layout.groups(header, pool.threads()) {
        image.collapse(ImageLayout::group_range(&group));
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
