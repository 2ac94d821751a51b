//! The loader: maps sealed segments of a model, parses GGUF only after `Verified`, repacks, seals.
//!
//! 1. Receive the order: how much comes at most. Close the sandbox around so much memory.
//! 2. Map the segments that come, one behind the other, as bytes that nobody looks at, until `Verified`.
//! 3. Parse the header, lay the image out, pack it on several threads, giving segments back.
//! 4. Seal the image, hand it over, end.
//!
//! The peak is the source and the image less what was given back: about one copy of the weights.
//! A refusal names the check and the field in this program's own words, never bytes of the file.

use std::fmt;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use kernels::Pool;
use nix::errno::Errno;

use crate::engine::{ImageLayout, KvType};
use crate::gguf::{self, Header};
use crate::ipc::message::{FromLoader, KvFormat, SEGMENT_LEN_BYTES, ToLoader};
use crate::ipc::{self, Channel};
use crate::sandbox::{self, Memory, Role, Sandboxed, Thread};
use crate::sys::memory::{EmptyMemory, SealedSegments, UnsealedMemory};
use crate::sys::process::{exit_now, inherited_descriptor};

/// The number of the control channel.
const CONTROL_DESCRIPTOR: i32 = 3;
/// Longest text of a refusal, in bytes.
const REFUSAL_LEN_MAX_BYTES: usize = 256;
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
    len_max_bytes: u64,
    kv: KvFormat,
}

impl Order {
    fn receive(control: &Channel) -> Result<Self, Error> {
        match control.recv().map_err(Error::Control)? {
            (ToLoader::Load { len_max_bytes, kv }, _) => Ok(Self { len_max_bytes, kv }),
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
            mapped_len_bytes: self
                .image_len_max_bytes()
                .saturating_add(self.len_max_bytes)
                .saturating_add(SEGMENT_LEN_BYTES as u64),
            more_len_bytes: PARSED_LEN_BYTES,
            written_len_bytes: Some(self.image_len_max_bytes()),
        }
    }
}

fn load((control, pool): (&Channel, &Pool), order: Order, image: EmptyMemory) -> Result<(), End> {
    let (image_len_max, kv) = (order.image_len_max_bytes(), order.kv);
    let mut source = receive(control, order.len_max_bytes)?;
    let header = gguf::parse(&source, source.len() as u64).map_err(Refusal::Header)?;
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

/// Maps the segments that come, and returns once the supervisor has verified them all.
fn receive(control: &Channel, len_max_bytes: u64) -> Result<SealedSegments, End> {
    let len_max = usize::try_from(len_max_bytes).map_err(|_| Refusal::Memory(Errno::EFBIG))?;
    let mut source = match SealedSegments::reserve(len_max, SEGMENT_LEN_BYTES) {
        Err(Errno::EINVAL) => return Err(Refusal::Empty.into()),
        reserved => reserved.map_err(Refusal::Memory)?,
    };
    loop {
        let (message, descriptors) = control.recv().map_err(broken)?;
        match (message, descriptors.first()) {
            (ToLoader::Segment, Some(segment)) => match source.append(segment.as_fd()) {
                Err(Errno::EFBIG) => return Err(Refusal::TooLong.into()),
                appended => appended.map_err(Refusal::Memory)?,
            },
            (ToLoader::Verified, _) if source.is_empty() => return Err(Refusal::Empty.into()),
            (ToLoader::Verified, _) => return Ok(source),
            _ => return Err(End::Broken(Error::Order)),
        }
        let len_bytes = source.len() as u64;
        control.send(&FromLoader::Received { len_bytes }, &[]).map_err(broken)?;
    }
}

/// Packs group by group, in the order of the file, giving the source's segments back.
fn pack(
    (control, pool): (&Channel, &Pool),
    source: &mut SealedSegments,
    mut image: UnsealedMemory,
    (header, layout): (&Header, &ImageLayout),
) -> Result<UnsealedMemory, End> {
    let header_len = layout.header_len();
    image[..header_len].copy_from_slice(&source[..header_len]);
    let total_bytes: u64 = header.tensors.iter().map(|tensor| tensor.size).sum();
    let (mut done_bytes, mut told_bytes) = (0, 0);
    for group in layout.groups(header, pool.threads()) {
        image.collapse(ImageLayout::group_range(&group));
        layout.pack_group(pool, header, &group, (&source[..], 0), &mut image);
        let end = group.iter().map(|part| part.source.end).max().unwrap_or(0);
        source.release_to(end).map_err(Refusal::Memory)?;
        done_bytes += group.iter().map(|part| part.source.len() as u64).sum::<u64>();
        if done_bytes - told_bytes >= PROGRESS_STEP_BYTES {
            told_bytes = done_bytes;
            let progress = FromLoader::Progress { done_bytes, total_bytes };
            control.send(&progress, &[]).map_err(broken)?;
        }
    }
    Ok(image)
}
