//! The journal: records that are durable and not yet in durable tiles.
//!
//! | size | field |
//! |---|---|
//! | 8 | `CLOISTJ2` |
//! | 8 | index of the first record, little endian; a multiple of 256 |
//! | 4 | length of the carried state, little endian |
//! | 8 | check of index and state |
//! | | the carried state, JSON |
//! | | frames: length (4, little endian), check (8), record |
//! | | zeros: room that is already on the disk |
//!
//! A check is the first 8 bytes of SHA-256(index || bytes): it tells a torn write from a whole one.
//! Tampering is what the tree tells, not the journal. Records are written into room that was taken
//! from the disk before: that needs no new block, so that it works on a full disk and costs one
//! flush.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use super::Error;
use super::carried::Carried;
use super::disk::{Disk, Durable};
use super::merkle::TILE_WIDTH;
use super::tiles::{RECORD_LEN_MAX_BYTES, open_file};

const MAGIC: &[u8; 8] = b"CLOISTJ2";
const HEAD_LEN: usize = 28;
const FRAME_HEAD_LEN: usize = 12;
/// Longest frame, in bytes.
pub(super) const FRAME_LEN_MAX_BYTES: u64 = (FRAME_HEAD_LEN + RECORD_LEN_MAX_BYTES) as u64;
/// Longest journal, in bytes: twice the ends of as many requests as can be open.
const JOURNAL_LEN_MAX_BYTES: u64 = 512 << 20;
/// Unit in which the kernel counts what a file has of the disk, in bytes.
const BLOCK_LEN_BYTES: u64 = 512;
/// Room is taken in steps of this, in bytes.
const ROOM_STEP_BYTES: u64 = 1 << 20;

/// What a journal held when it was opened.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// Index of the first record.
    pub(super) base: u64,
    /// The state before the first record.
    pub(super) carried: Carried,
    /// Whole records.
    pub(super) records: Vec<Vec<u8>>,
    /// Bytes of the file up to their end.
    pub(super) used: u64,
    /// Bytes of an unfinished write behind them.
    pub(super) dropped_bytes: u64,
}

/// A file of zeros that a journal can be started in.
#[derive(Debug)]
pub(super) struct Blank {
    path: PathBuf,
    file: File,
    capacity: u64,
}

/// The open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes that hold something.
    used: u64,
    /// Bytes that the disk has given.
    capacity: u64,
}

impl Journal {
    /// Reads a journal; `None` when there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Content>, Error> {
        let file = match open_file(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::io("open", path))?,
        };
        let mut bytes = Vec::new();
        file.take(JOURNAL_LEN_MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(Error::io("read", path))?;
        parse(&bytes).map(Some).ok_or(Error::JournalMalformed)
    }

    /// Goes on with the journal at `path`, whose first `used` bytes are known to be durable and whose others
    /// are zeros; `None` when the disk has not given all of it.
    pub(super) fn go_on(disk: &dyn Disk, path: &Path, used: u64) -> Option<Self> {
        let file = disk.open(path).ok()?;
        let facts = file.metadata().ok()?;
        let capacity = facts.len();
        // A copy of the file may be one of holes.
        let is_given = facts.blocks().saturating_mul(BLOCK_LEN_BYTES) >= capacity;
        (is_given && used <= capacity).then(|| Self { path: path.to_owned(), file, used, capacity })
    }

    /// Takes `capacity` bytes from the disk, at `path`, for a journal to come.
    pub(super) fn prepare(
        disk: &dyn Disk,
        path: PathBuf,
        capacity: u64,
        durable: Durable,
    ) -> Result<Blank, Error> {
        let file = disk.create(&path).map_err(Error::io("create", &path))?;
        write_zeros(disk, &file, &path, 0, capacity)?;
        if durable == Durable::Yes {
            disk.sync(&file, &path).map_err(Error::io("sync", &path))?;
        }
        Ok(Blank { path, file, capacity })
    }

    /// Starts a journal that holds `records` from `base` on, reads it back, and lets it take the
    /// place of the one at `path`.
    pub(super) fn start(
        disk: &dyn Disk,
        blank: Blank,
        path: &Path,
        (base, carried): (u64, &Carried),
        records: &[Vec<u8>],
    ) -> Result<Self, Error> {
        let Blank { path: fresh, mut file, capacity } = blank;
        let state = serde_json::to_vec(carried).map_err(|_| Error::Unavailable)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&base.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(state.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&check(base, &state));
        bytes.extend_from_slice(&state);
        for (index, record) in (base..).zip(records) {
            push_frame(&mut bytes, index, record);
        }
        disk.write_at(&file, &fresh, 0, &bytes).map_err(Error::io("write", &fresh))?;
        disk.sync(&file, &fresh).map_err(Error::io("sync", &fresh))?;
        file.seek(SeekFrom::Start(0)).map_err(Error::io("read", &fresh))?;
        let mut back = vec![0; bytes.len()];
        file.read_exact(&mut back).map_err(Error::io("read", &fresh))?;
        if back != bytes {
            return Err(Error::Unavailable);
        }
        disk.rename(&fresh, path).map_err(Error::io("rename", path))?;
        if let Some(folder) = path.parent() {
            disk.sync_folder(folder).map_err(Error::io("sync", folder))?;
        }
        let used = bytes.len() as u64;
        Ok(Self { path: path.to_owned(), file, used, capacity: capacity.max(used) })
    }

    /// Makes sure that `room` more bytes can be written without a new block of the disk.
    ///
    /// After an error the journal is as before.
    pub(super) fn take_room(&mut self, disk: &dyn Disk, room: u64) -> Result<(), Error> {
        let needed = self.used + room;
        if needed <= self.capacity {
            return Ok(());
        }
        let capacity = needed.next_multiple_of(ROOM_STEP_BYTES);
        if capacity > JOURNAL_LEN_MAX_BYTES {
            return Err(Error::Unavailable);
        }
        write_zeros(disk, &self.file, &self.path, self.capacity, capacity)?;
        disk.sync(&self.file, &self.path).map_err(Error::io("sync", &self.path))?;
        self.capacity = capacity;
        Ok(())
    }

    /// Bytes that can be written without a new block.
    pub(super) fn room(&self) -> u64 {
        self.capacity - self.used
    }

    /// Appends records; they are durable on return. After an error nobody knows what the file holds.
    pub(super) fn append(
        &mut self,
        disk: &dyn Disk,
        first: u64,
        records: &[Vec<u8>],
    ) -> Result<(), Error> {
        let mut bytes = Vec::new();
        for (index, record) in (first..).zip(records) {
            push_frame(&mut bytes, index, record);
        }
        disk.write_at(&self.file, &self.path, self.used, &bytes)
            .map_err(Error::io("write", &self.path))?;
        disk.sync(&self.file, &self.path).map_err(Error::io("sync", &self.path))?;
        self.used += bytes.len() as u64;
        self.capacity = self.capacity.max(self.used);
        Ok(())
    }
}

/// Bytes that `records` take in a journal.
pub(super) fn frames_len(records: &[Vec<u8>]) -> u64 {
    records.iter().map(|record| (FRAME_HEAD_LEN + record.len()) as u64).sum()
}

fn write_zeros(disk: &dyn Disk, file: &File, path: &Path, from: u64, to: u64) -> Result<(), Error> {
    let zeros = vec![0; usize::try_from(to.saturating_sub(from)).unwrap_or(0)];
    disk.write_at(file, path, from, &zeros).map_err(Error::io("write", path))
}

fn parse(bytes: &[u8]) -> Option<Content> {
    let (head, rest) = bytes.split_at_checked(HEAD_LEN)?;
    let (magic, head) = head.split_first_chunk::<8>()?;
    let (base, head) = head.split_first_chunk::<8>()?;
    let (state_len, want) = head.split_first_chunk::<4>()?;
    let base = u64::from_le_bytes(*base);
    let state_len = usize::try_from(u32::from_le_bytes(*state_len)).ok()?;
    let (state, mut rest) = rest.split_at_checked(state_len)?;
    let is_whole = magic == MAGIC && want == check(base, state);
    if !is_whole || !base.is_multiple_of(TILE_WIDTH as u64) {
        return None;
    }
    let carried: Carried = serde_json::from_slice(state).ok()?;
    // Before the first record of all there is nothing to say.
    if base == 0 && carried != Carried::default() {
        return None;
    }
    let mut records = Vec::new();
    while let Some((record, tail)) = split_frame(rest, base + records.len() as u64) {
        records.push(record.to_vec());
        rest = tail;
    }
    let used = (bytes.len() - rest.len()) as u64;
    let dropped_bytes = written_len(rest);
    Some(Content { base, carried, records, used, dropped_bytes })
}

/// Bytes before the zeros at the end: a page at a time, as there are millions.
fn written_len(bytes: &[u8]) -> u64 {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut rest = bytes;
    while let Some((before, _)) = rest.split_last_chunk().filter(|(_, page)| **page == ZEROS) {
        rest = before;
    }
    rest.iter().rposition(|&byte| byte != 0).map_or(0, |at| at as u64 + 1)
}

fn push_frame(bytes: &mut Vec<u8>, index: u64, record: &[u8]) {
    let len = u32::try_from(record.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&check(index, record));
    bytes.extend_from_slice(record);
}

fn split_frame(bytes: &[u8], index: u64) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (want, rest) = rest.split_first_chunk::<8>()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    let (record, rest) = rest.split_at_checked(len)?;
    (check(index, record) == *want).then_some((record, rest))
}

fn check(index: u64, bytes: &[u8]) -> [u8; 8] {
    let mut context = Context::new(&SHA256);
    context.update(&index.to_le_bytes());
    context.update(bytes);
    let mut out = [0; 8];
    out.copy_from_slice(&context.finish().as_ref()[..8]);
    out
}
