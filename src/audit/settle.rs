//! What is written durably beside the commits: whole tiles that a journal may let go of, and those that
//! a copy which was left behind lacks.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::Error;
use super::carried::Carried;
use super::disk::{Disk, Durable, put, sync_names};
use super::journal::{Blank, FRAME_LEN_MAX_BYTES, Journal};
use super::merkle::{TILE_WIDTH, leaf_hash};
use super::tiles::{Kind, encode_entries, read_entries, read_hashes, tile_path};

/// Bytes of room in a journal that was made beside the commits, beside what is reserved: for the records
/// until it is settled.
const JOURNAL_ROOM_BYTES: u64 = 6 << 20;
/// Bytes of room in a journal that somebody waits for, beside what is reserved and what it begins with.
const FIRST_ROOM_BYTES: u64 = 256 << 10;
/// Open requests whose ends a fresh journal has room for, beside those that are open already.
const OPEN_MORE_COUNT: u64 = 8;
/// Bundles that are caught up with between two syncs of names.
const CATCH_UP_COUNT: usize = 256;

/// The room that the ends of `open` requests may need, in bytes.
pub(super) fn reserve_bytes(open: u64) -> u64 {
    open.saturating_mul(FRAME_LEN_MAX_BYTES)
}

/// The size of a fresh journal while `open` requests are open.
fn journal_bytes(open: u64) -> u64 {
    JOURNAL_ROOM_BYTES + reserve_bytes(open + OPEN_MORE_COUNT)
}

/// The size of one that begins with `used` bytes and is wanted at once.
pub(super) fn first_journal_bytes(used: u64, open: u64) -> u64 {
    used + FIRST_ROOM_BYTES + reserve_bytes(open + OPEN_MORE_COUNT)
}

/// What was written.
#[derive(Debug)]
pub(super) struct Settled {
    /// Records that durable tiles hold now.
    pub(super) base: u64,
    /// The state behind them.
    pub(super) carried: Carried,
    /// Where the journal that follows can be started.
    pub(super) blank: Blank,
}

/// A job of the thread.
type Job = Box<dyn FnOnce() -> Result<Settled, Error> + Send>;

/// A thread that does one job at a time. It is made when the log is opened: later no thread may be.
#[derive(Debug)]
pub(super) struct Beside {
    /// `None` at the end alone.
    jobs: Option<Sender<Job>>,
    done: Receiver<Result<Settled, Error>>,
    is_busy: bool,
    thread: Option<JoinHandle<()>>,
}

impl Beside {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, to_do) = channel::<Job>();
        let (sender, done) = channel();
        let run = move || {
            while let Ok(job) = to_do.recv() {
                if sender.send(job()).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("audit-settle".to_owned()).spawn(run)?;
        Ok(Self { jobs: Some(jobs), done, is_busy: false, thread: Some(thread) })
    }

    /// Whether a job runs, or its result was not taken.
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Runs a job, unless one runs.
    pub(super) fn run(&mut self, job: impl FnOnce() -> Result<Settled, Error> + Send + 'static) {
        if let (false, Some(jobs)) = (self.is_busy, &self.jobs) {
            self.is_busy = jobs.send(Box::new(job)).is_ok();
        }
    }

    /// The result of a job that ended.
    pub(super) fn done(&mut self) -> Option<Result<Settled, Error>> {
        let done = self.done.try_recv().ok()?;
        self.is_busy = false;
        Some(done)
    }

    /// Waits for the job that runs, if one does.
    pub(super) fn wait(&mut self) -> Option<Result<Settled, Error>> {
        let is_busy = std::mem::take(&mut self.is_busy);
        is_busy.then(|| self.done.recv().unwrap_or(Err(Error::Unavailable)))
    }
}

impl Drop for Beside {
    /// Nothing is written after the log's lock is gone.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whole tiles to write.
pub(super) struct Settle {
    pub(super) folder: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    /// Index of the first record.
    pub(super) from: u64,
    /// Records of whole bundles.
    pub(super) records: Vec<Vec<u8>>,
    /// Hash tiles.
    pub(super) tiles: Vec<(PathBuf, Vec<u8>)>,
    /// A checkpoint over these records at least.
    pub(super) note: String,
    /// The state before the first record.
    pub(super) carried: Carried,
}

impl Settle {
    /// Writes the tiles and a checkpoint durably, and prepares the journal that follows.
    pub(super) fn run(mut self) -> Result<Settled, Error> {
        let disk = self.disk.as_ref();
        for (index, bundle) in
            (self.from / TILE_WIDTH as u64..).zip(self.records.chunks_exact(TILE_WIDTH))
        {
            let path = tile_path(&self.folder, Kind::Entries, index, TILE_WIDTH);
            self.tiles.push((path, encode_entries(bundle)));
        }
        for (path, bytes) in &self.tiles {
            put(disk, path, bytes, Durable::Yes)?;
        }
        let settled = self.folder.join("checkpoint.settled");
        put(disk, &settled, self.note.as_bytes(), Durable::Yes)?;
        let paths = self.tiles.iter().map(|(path, _)| path.as_path());
        sync_names(disk, &self.folder, paths.chain([settled.as_path()]))?;
        for record in &self.records {
            self.carried.note(record)?;
        }
        let capacity = journal_bytes(self.carried.open.len() as u64);
        let blank =
            Journal::prepare(disk, self.folder.join("journal.next"), capacity, Durable::Yes)?;
        let base = self.from + self.records.len() as u64;
        Ok(Settled { base, carried: self.carried, blank })
    }
}

/// Tiles that another copy has.
pub(super) struct CatchUp {
    pub(super) other: PathBuf,
    pub(super) folder: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    /// The first record that is missing.
    pub(super) from: u64,
    /// The first that the journal will hold.
    pub(super) to: u64,
    /// The state before that.
    pub(super) carried: Carried,
}

impl CatchUp {
    /// Takes the tiles over, each record held against its hash.
    pub(super) fn run(self) -> Result<Settled, Error> {
        let disk = self.disk.as_ref();
        let bundles: Vec<u64> =
            (self.from / TILE_WIDTH as u64..self.to / TILE_WIDTH as u64).collect();
        for some in bundles.chunks(CATCH_UP_COUNT) {
            let mut written = Vec::new();
            for &index in some {
                written.push(self.copy_hashes(0, index)?);
                written.extend(self.copy_entries(index)?);
            }
            sync_names(disk, &self.folder, written.iter().map(PathBuf::as_path))?;
        }
        let mut written = Vec::new();
        for level in 1..7_u8 {
            let full = |size: u64| size >> (8 * (u32::from(level) + 1));
            for index in full(self.from)..full(self.to) {
                written.push(self.copy_hashes(level, index)?);
            }
        }
        let note = super::tiles::read_bounded(
            &self.other.join("checkpoint.settled"),
            super::note::NOTE_LEN_MAX_BYTES,
        )?;
        let settled = self.folder.join("checkpoint.settled");
        put(disk, &settled, &note, Durable::Yes)?;
        written.push(settled);
        sync_names(disk, &self.folder, written.iter().map(PathBuf::as_path))?;
        let capacity = journal_bytes(self.carried.open.len() as u64);
        let blank =
            Journal::prepare(disk, self.folder.join("journal.next"), capacity, Durable::Yes)?;
        Ok(Settled { base: self.to, carried: self.carried, blank })
    }

    fn copy_hashes(&self, level: u8, index: u64) -> Result<PathBuf, Error> {
        let hashes = read_hashes(&self.other, level, index, TILE_WIDTH)?;
        let path = tile_path(&self.folder, Kind::Hashes(level), index, TILE_WIDTH);
        put(self.disk.as_ref(), &path, hashes.as_flattened(), Durable::Yes)?;
        Ok(path)
    }

    /// Copies a bundle, unless it was pruned.
    fn copy_entries(&self, index: u64) -> Result<Option<PathBuf>, Error> {
        let entries = match read_entries(&self.other, index, TILE_WIDTH) {
            Err(Error::TileMissing { .. }) => return Ok(None),
            entries => entries?,
        };
        let hashes = read_hashes(&self.other, 0, index, TILE_WIDTH)?;
        let differs = |(entry, hash): (&Vec<u8>, &[u8; 32])| leaf_hash(entry) != *hash;
        if let Some(at) = entries.iter().zip(&hashes).position(differs) {
            let index = index * TILE_WIDTH as u64 + at as u64;
            return Err(Error::TileMismatch { level: 0, index });
        }
        let path = tile_path(&self.folder, Kind::Entries, index, TILE_WIDTH);
        put(self.disk.as_ref(), &path, &encode_entries(&entries), Durable::Yes)?;
        Ok(Some(path))
    }
}
