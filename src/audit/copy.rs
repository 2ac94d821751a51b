//! One copy of a log on disk: its journal, its tiles, its checkpoint, and how far each of them is.
//!
//! Tiles and checkpoint are published unsynced at each commit, for readers. A thread beside the
//! commits writes whole tiles again, durably; only then does the journal let go of their records.
//! So nothing but the journal and durable tiles is ever needed to recover. A copy that was left behind
//! takes the tiles that it lacks from another, in the same way.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};

use super::Error;
use super::carried::Carried;
use super::disk::{Disk, Durable, put, put_if_other, put_new, sync_names};
use super::journal::{Blank, Journal, frames_len};
use super::merkle::TILE_WIDTH;
use super::proof_file::PROOF_FILE_LEN_MAX_BYTES;
use super::retention;
use super::settle::{Beside, CatchUp, Settle, Settled, first_journal_bytes};
use super::tail::Tail;
use super::tiles::{Kind, encode_entries, read_bounded, tile_path};

/// A tile that is not full: which, and how wide.
type OpenTile = (Kind, u64, usize);

/// One copy, held by its lock.
#[derive(Debug)]
pub(super) struct Copy {
    folder: PathBuf,
    disk: Arc<dyn Disk>,
    /// Records that durable tiles hold.
    base: u64,
    /// The state behind them.
    carried: Carried,
    /// `None` after a failed write: it is written anew before anything else.
    journal: Option<Journal>,
    /// Records under the last checkpoint; `None` before the first of this run.
    published: Option<u64>,
    /// Changes of the log's key before it.
    published_changes: usize,
    /// Changes of the log's key that are durable here, as far as this run knows.
    changes_count: usize,
    /// Records whose whole bundles were published.
    whole: u64,
    open_tiles: Vec<OpenTile>,
    beside: Beside,
    /// Whether the last attempt to settle failed.
    must_settle: bool,
    _lock: Flock<File>,
}

/// Takes the writer's lock on `folder`, which ends with the process.
pub(super) fn lock(folder: &Path) -> Result<Flock<File>, Error> {
    let path = folder.join("lock");
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::Locked)
}

impl Copy {
    /// A copy whose durable tiles hold `base` records; nothing of it was written yet in this run. Without a
    /// `journal` that it can go on with, one is written before anything else.
    pub(super) fn new(
        folder: &Path,
        disk: Arc<dyn Disk>,
        (base, carried): (u64, Carried),
        journal: Option<Journal>,
        lock: Flock<File>,
    ) -> Result<Self, Error> {
        let beside = Beside::start().map_err(Error::io("start a thread for", folder))?;
        Ok(Self {
            folder: folder.to_owned(),
            disk,
            base,
            carried,
            journal,
            published: None,
            published_changes: 0,
            changes_count: 0,
            whole: base,
            open_tiles: Vec::new(),
            beside,
            must_settle: false,
            _lock: lock,
        })
    }

    /// Records that durable tiles hold.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Brings the copy in order after a failed write, and takes what was settled meanwhile. `sign`
    /// gives a checkpoint over the tail, `other` is the folder of a copy that was not left behind.
    pub(super) fn repair(
        &mut self,
        tail: &Tail,
        sign: &dyn Fn() -> String,
        other: Option<&Path>,
    ) -> Result<(), Error> {
        self.write_changes(tail)?;
        if let Some(settled) = self.beside.done() {
            match self.finish(settled, tail) {
                // The disk may work again: below it is all written anew, and there a failure counts.
                Err(_) if self.must_settle => {}
                finished => finished?,
            }
        }
        let (first, carried) = tail.first();
        if self.base < first {
            let other = other.ok_or(Error::Unavailable)?.to_owned();
            let disk = Arc::clone(&self.disk);
            let job = CatchUp {
                other,
                folder: self.folder.clone(),
                disk,
                from: self.base,
                to: first,
                carried: carried.clone(),
            };
            self.beside.run(move || job.run());
            return Err(Error::CopyBehind { path: self.folder.clone() });
        }
        if self.journal.is_none() {
            let blank = self.prepare(tail)?;
            self.start_journal(blank, tail)?;
        }
        if self.must_settle {
            let settled = self.job(tail, sign()).run()?;
            self.take_settled(settled, tail)?;
        }
        if self.published.is_some_and(|published| published < tail.size()) {
            self.publish(tail, &sign())?;
        }
        Ok(())
    }

    /// Makes the changes of the log's key durable, before anything that the newest key signs.
    fn write_changes(&mut self, tail: &Tail) -> Result<(), Error> {
        let changes = tail.changes();
        if self.changes_count == changes.len() {
            return Ok(());
        }
        let disk = self.disk.as_ref();
        let paths: Vec<_> = changes.iter().map(|change| change.path(&self.folder)).collect();
        for (change, path) in changes.iter().zip(&paths) {
            let text = change.text().as_bytes();
            if read_bounded(path, PROOF_FILE_LEN_MAX_BYTES).is_ok_and(|found| found == text) {
                continue;
            }
            put(disk, path, text, Durable::Yes)?;
        }
        sync_names(disk, &self.folder, paths.iter().map(PathBuf::as_path))?;
        self.changes_count = changes.len();
        Ok(())
    }

    /// Room for a journal that is started at once, and synced then.
    fn prepare(&self, tail: &Tail) -> Result<Blank, Error> {
        let used = frames_len(tail.records(self.base, tail.size()));
        let capacity = first_journal_bytes(used, tail.carried().open.len() as u64);
        let path = self.folder.join("journal.new");
        Journal::prepare(self.disk.as_ref(), path, capacity, Durable::No)
    }

    fn start_journal(&mut self, blank: Blank, tail: &Tail) -> Result<(), Error> {
        let path = self.folder.join("journal");
        let records = tail.records(self.base, tail.size());
        let disk = self.disk.as_ref();
        self.journal = None;
        self.journal =
            Some(Journal::start(disk, blank, &path, (self.base, &self.carried), records)?);
        Ok(())
    }

    /// Takes `room` bytes from the disk, so that they can be written on a full one.
    pub(super) fn take_room(&mut self, room: u64) -> Result<(), Error> {
        let journal = self.journal.as_mut().ok_or(Error::Unavailable)?;
        journal.take_room(self.disk.as_ref(), room)
    }

    /// Bytes that can be written on a full disk.
    pub(super) fn room(&self) -> u64 {
        self.journal.as_ref().map_or(0, Journal::room)
    }

    /// Appends records; they are durable in this copy on return.
    pub(super) fn append(&mut self, first: u64, records: &[Vec<u8>]) -> Result<(), Error> {
        let mut journal = self.journal.take().ok_or(Error::Unavailable)?;
        journal.append(self.disk.as_ref(), first, records)?;
        self.journal = Some(journal);
        Ok(())
    }

    /// Writes the tiles that changed and `note`, a checkpoint over the tail, for readers.
    pub(super) fn publish(&mut self, tail: &Tail, note: &str) -> Result<(), Error> {
        let changes_count = tail.changes().len();
        if self.published == Some(tail.size()) && self.published_changes == changes_count {
            return Ok(());
        }
        let is_first = self.published.is_none();
        let disk = Arc::clone(&self.disk);
        let write = |path: &Path, bytes: &[u8]| match is_first {
            true => put_if_other(disk.as_ref(), path, bytes),
            false => put(disk.as_ref(), path, bytes, Durable::No),
        };
        for (path, bytes) in tiles_between(&self.folder, tail, self.whole, tail.whole()) {
            write(&path, &bytes)?;
        }
        let open = self.write_open_tiles(tail)?;
        let checkpoint = self.folder.join("checkpoint");
        write(&checkpoint, note.as_bytes())?;
        (self.published, self.published_changes) = (Some(tail.size()), changes_count);
        self.whole = tail.whole();
        let before = std::mem::replace(&mut self.open_tiles, open);
        self.remove_narrower(&before, is_first)
    }

    fn write_open_tiles(&self, tail: &Tail) -> Result<Vec<OpenTile>, Error> {
        let size = tail.size();
        let mut open = Vec::new();
        let entries = tail.records(tail.whole(), size);
        if !entries.is_empty() {
            let tile = (Kind::Entries, size / TILE_WIDTH as u64, entries.len());
            self.write_open_tile(tile, || encode_entries(entries))?;
            open.push(tile);
        }
        let mut index = size;
        for (level, hashes) in (0_u8..).zip(tail.edge().open_tiles()) {
            index /= TILE_WIDTH as u64;
            if !hashes.is_empty() {
                let tile = (Kind::Hashes(level), index, hashes.len());
                self.write_open_tile(tile, || hashes.as_flattened().to_vec())?;
                open.push(tile);
            }
        }
        Ok(open)
    }

    /// Writes a tile that is not full, unless this run has. Narrower ones of the same tile stay: the
    /// checkpoint that readers see is still theirs.
    fn write_open_tile(&self, tile: OpenTile, bytes: impl Fn() -> Vec<u8>) -> Result<(), Error> {
        if self.open_tiles.contains(&tile) {
            return Ok(());
        }
        let path = tile_path(&self.folder, tile.0, tile.1, tile.2);
        // A checkpoint of the last run may name it, none of this run does.
        match self.published {
            None => put_if_other(self.disk.as_ref(), &path, &bytes()),
            Some(_) => put_new(self.disk.as_ref(), &path, &bytes()).map(drop),
        }
    }

    /// Removes the narrower tiles that the published checkpoint needs no longer; at the first time
    /// those that earlier runs left.
    fn remove_narrower(&self, before: &[OpenTile], is_first: bool) -> Result<(), Error> {
        for &tile in before.iter().filter(|tile| !self.open_tiles.contains(tile)) {
            let path = tile_path(&self.folder, tile.0, tile.1, tile.2);
            gone(self.disk.remove(&path)).map_err(Error::io("remove", &path))?;
            let is_full = !self.open_tiles.iter().any(|one| (one.0, one.1) == (tile.0, tile.1));
            if let Some(folder) = path.parent().filter(|_| is_full) {
                gone(self.disk.remove_folder(folder)).map_err(Error::io("remove", folder))?;
            }
        }
        for &(kind, index, width) in self.open_tiles.iter().filter(|_| is_first) {
            let path = tile_path(&self.folder, kind, index, width);
            let Some(folder) = path.parent() else { continue };
            for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
                let other = entry.map_err(Error::io("read", folder))?.path();
                if other != path {
                    self.disk.remove(&other).map_err(Error::io("remove", &other))?;
                }
            }
        }
        Ok(())
    }

    /// Starts to settle the whole bundles of the tail, when there are `count` records to settle and
    /// nothing settles yet. Where what settles is so slow that the journal holds twice as many, it is
    /// waited for: a journal is as long as its replay at the next start.
    pub(super) fn settle(
        &mut self,
        tail: &Tail,
        sign: &dyn Fn() -> String,
        count: u64,
    ) -> Result<(), Error> {
        if self.beside.is_busy() && tail.size() - self.base >= count.saturating_mul(2) {
            self.finish_settling(tail)?;
        }
        if !self.beside.is_busy() && tail.whole() - self.base >= count {
            let job = self.job(tail, sign());
            self.beside.run(move || job.run());
        }
        Ok(())
    }

    /// Settles all whole bundles of the tail, so that the journal holds less than one.
    pub(super) fn settle_all(
        &mut self,
        tail: &Tail,
        sign: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        self.finish_settling(tail)?;
        self.settle(tail, sign, 1)?;
        self.finish_settling(tail)
    }

    /// Waits for what settles.
    pub(super) fn finish_settling(&mut self, tail: &Tail) -> Result<(), Error> {
        match self.beside.wait() {
            Some(settled) => self.finish(settled, tail),
            None => Ok(()),
        }
    }

    fn finish(&mut self, settled: Result<Settled, Error>, tail: &Tail) -> Result<(), Error> {
        self.must_settle = self.base >= tail.first().0;
        self.take_settled(settled?, tail)
    }

    fn take_settled(&mut self, settled: Settled, tail: &Tail) -> Result<(), Error> {
        let Settled { base, carried, blank } = settled;
        (self.base, self.carried) = (base, carried);
        self.whole = self.whole.max(base);
        self.must_settle = false;
        // Otherwise the others went on meanwhile.
        if base >= tail.first().0 { self.start_journal(blank, tail) } else { Ok(()) }
    }

    /// Removes the records of durable bundles up to `end`.
    pub(super) fn remove_bundles(&self, end: u64) -> Result<(), Error> {
        let count = self.base / TILE_WIDTH as u64;
        retention::remove(self.disk.as_ref(), &self.folder, count, end.min(count))
    }

    /// Gives its journal up: it holds records that the other copies do not.
    pub(super) fn take_back(&mut self) {
        self.journal = None;
    }

    /// The copy's folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The state behind the records that durable tiles hold.
    pub(super) fn carried(&self) -> &Carried {
        &self.carried
    }

    fn job(&self, tail: &Tail, note: String) -> Settle {
        let (from, to) = (self.base, tail.whole());
        let tiles = tail.full_tiles(from, to).map(|tile| {
            let kind = Kind::Hashes(tile.level);
            let path = tile_path(&self.folder, kind, tile.index, TILE_WIDTH);
            (path, tile.hashes.as_flattened().to_vec())
        });
        Settle {
            folder: self.folder.clone(),
            disk: Arc::clone(&self.disk),
            from,
            records: tail.records(from, to).to_vec(),
            tiles: tiles.collect(),
            note,
            carried: self.carried.clone(),
        }
    }
}

/// Takes it as removed what is not there, or what holds something that an earlier run left.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) =>
        {
            Ok(())
        }
        removed => removed,
    }
}

/// The full tiles that the records from `from` to `to`, multiples of 256, completed.
fn tiles_between(folder: &Path, tail: &Tail, from: u64, to: u64) -> Vec<(PathBuf, Vec<u8>)> {
    let bundles = tail.records(from, to).chunks_exact(TILE_WIDTH);
    let entries = (from / TILE_WIDTH as u64..).zip(bundles).map(|(index, bundle)| {
        (tile_path(folder, Kind::Entries, index, TILE_WIDTH), encode_entries(bundle))
    });
    let hashes = tail.full_tiles(from, to).map(|tile| {
        let path = tile_path(folder, Kind::Hashes(tile.level), tile.index, TILE_WIDTH);
        (path, tile.hashes.as_flattened().to_vec())
    });
    entries.chain(hashes).collect()
}
