//! The journal: the records of the open bundle, durable at each commit.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | `CLOISTJ1` |
//! | 8 | 8 | index of the first record, little endian; a multiple of 256 |
//! | 16 | | frames: length (4, little endian), check (8), record |
//!
//! The check is the first 8 bytes of SHA-256(index || record): it tells a torn write from a
//! whole one. Tampering is what the tree tells, not the journal.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use super::Error;
use super::merkle::TILE_WIDTH;
use super::tiles::RECORD_LEN_MAX_BYTES;

const MAGIC: &[u8; 8] = b"CLOISTJ1";
const HEAD_LEN: usize = 16;
const FRAME_HEAD_LEN: usize = 12;
/// Longest journal: a full bundle of the longest records.
const JOURNAL_LEN_MAX: usize = HEAD_LEN + TILE_WIDTH * (FRAME_HEAD_LEN + RECORD_LEN_MAX_BYTES);

/// What a journal held when it was opened.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// Index of the first record.
    pub(super) base: u64,
    /// Whole records.
    pub(super) records: Vec<Vec<u8>>,
    /// Bytes of an unfinished write behind them.
    pub(super) dropped_bytes: u64,
}

/// The open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Reads the journal at `path`; `None` when there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Content>, Error> {
        let file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::io("open", path))?,
        };
        let mut bytes = Vec::new();
        let limit = JOURNAL_LEN_MAX as u64;
        file.take(limit).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        let (head, mut rest) =
            bytes.split_first_chunk::<HEAD_LEN>().ok_or(Error::JournalMalformed)?;
        let (magic, base) = head.split_at(8);
        let base = base.try_into().map_or(0, u64::from_le_bytes);
        if magic != MAGIC || !base.is_multiple_of(TILE_WIDTH as u64) {
            return Err(Error::JournalMalformed);
        }
        let mut records = Vec::new();
        while let Some((record, tail)) = split_frame(rest, base + records.len() as u64) {
            records.push(record.to_vec());
            rest = tail;
        }
        Ok(Some(Content { base, records, dropped_bytes: rest.len() as u64 }))
    }

    /// Writes a new journal that holds `records` from `base` on, and reads it back.
    pub(super) fn rewrite(path: &Path, base: u64, records: &[Vec<u8>]) -> Result<Self, Error> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&base.to_le_bytes());
        for (index, record) in (base..).zip(records) {
            push_frame(&mut bytes, index, record);
        }
        let fresh = path.with_extension("new");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&fresh)
            .map_err(Error::io("create", &fresh))?;
        file.write_all(&bytes).map_err(Error::io("write", &fresh))?;
        file.sync_all().map_err(Error::io("sync", &fresh))?;
        file.seek(SeekFrom::Start(0)).map_err(Error::io("read", &fresh))?;
        let mut back = Vec::with_capacity(bytes.len());
        file.read_to_end(&mut back).map_err(Error::io("read", &fresh))?;
        if back != bytes {
            return Err(Error::Unavailable);
        }
        fs::rename(&fresh, path).map_err(Error::io("rename", path))?;
        if let Some(folder) = path.parent() {
            let opened = File::open(folder).map_err(Error::io("open", folder))?;
            opened.sync_all().map_err(Error::io("sync", folder))?;
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends records; they are durable on return.
    pub(super) fn append(&mut self, first: u64, records: &[Vec<u8>]) -> Result<(), Error> {
        let mut bytes = Vec::new();
        for (index, record) in (first..).zip(records) {
            push_frame(&mut bytes, index, record);
        }
        self.file.write_all(&bytes).map_err(Error::io("write", &self.path))?;
        self.file.sync_data().map_err(Error::io("sync", &self.path))
    }
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

fn check(index: u64, record: &[u8]) -> [u8; 8] {
    let mut context = Context::new(&SHA256);
    context.update(&index.to_le_bytes());
    context.update(record);
    let mut out = [0; 8];
    out.copy_from_slice(&context.finish().as_ref()[..8]);
    out
}
