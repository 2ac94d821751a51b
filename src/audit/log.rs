//! The log's writer: append, commit, recover.
//!
//! A commit makes its records durable in the journal with one `fdatasync`, then publishes
//! tiles and a signed checkpoint. Full tiles are synced before the journal lets go of their
//! records, so nothing but the journal is needed to recover. A record that was not
//! acknowledged may be lost; one that was, never. No checkpoint is signed over records that
//! are not durable.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use nix::time::{ClockId, clock_gettime};

use super::Error;
use super::journal::{Content, Journal};
use super::merkle::{Edge, FullTile, Hash, TILE_WIDTH, leaf_hash, perfect_root};
use super::note::{Checkpoint, NOTE_LEN_MAX_BYTES, Signer};
use super::record::{Event, Record, SCHEMA_VERSION};
use super::tiles::{
    self, Kind, RECORD_LEN_MAX_BYTES, encode_entries, read_bounded, tile_path, write_file,
};

/// Most bundles that are searched for requests that never ended.
const OPEN_SEARCH_BUNDLES_MAX: u64 = 4096;

/// What [`Log::open`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Bytes of an unfinished write that were dropped.
    pub dropped_bytes: u64,
    /// Whether the last run stopped in order (or there was none).
    pub stopped_in_order: bool,
    /// Requests of the last run that began and never ended.
    pub open_requests: Vec<String>,
}

/// An audit log, open for writing.
#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    signer: Signer,
    boot: String,
    edge: Edge,
    /// Durable records of the open bundle.
    bundle: Vec<Vec<u8>>,
    /// Full tiles that are not yet synced; their records are still in the journal.
    full: Vec<FullTile>,
    /// Records that were appended and not committed.
    pending: Vec<Vec<u8>>,
    /// `None` after a failed write: the next commit writes it anew.
    journal: Option<Journal>,
    published: u64,
    _lock: Flock<File>,
}

impl Log {
    /// Opens the log in `folder`, or starts one there.
    ///
    /// # Errors
    ///
    /// Refuses a log that is locked, damaged, rolled back, or signed by another key.
    pub fn open(folder: &Path, signer: Signer) -> Result<(Self, Found), Error> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let lock = lock(folder)?;
        let journal_path = folder.join("journal");
        let checkpoint = read_checkpoint(folder, &signer)?;
        let content = match Journal::read(&journal_path)? {
            Some(content) => content,
            None if checkpoint.is_none() => Content::default(),
            None => return Err(Error::JournalMalformed),
        };
        let mut log = Self {
            folder: folder.to_owned(),
            signer,
            boot: boot_id()?,
            edge: edge_of_full_tiles(folder, content.base)?,
            bundle: Vec::new(),
            full: Vec::new(),
            pending: Vec::new(),
            journal: None,
            published: 0,
            _lock: lock,
        };
        log.replay(content.records, checkpoint.as_ref())?;
        log.journal = Some(Journal::rewrite(&journal_path, content.base, &log.bundle)?);
        log.settle()?;
        log.publish()?;
        let mut found = log.find_open_requests()?;
        found.dropped_bytes = content.dropped_bytes;
        Ok((log, found))
    }

    fn replay(&mut self, records: Vec<Vec<u8>>, signed: Option<&Checkpoint>) -> Result<(), Error> {
        let base = self.edge.size();
        let mut seen = false;
        if let Some(signed) = signed {
            if signed.size < base {
                return Err(Error::CheckpointOlder { signed: signed.size, settled: base });
            }
            seen = self.matches(signed)?;
        } else if base > 0 {
            return Err(Error::TileMissing { path: self.folder.join("checkpoint") });
        }
        for record in records {
            self.push(record);
            if let Some(signed) = signed {
                seen |= self.matches(signed)?;
            }
        }
        match signed {
            Some(signed) if !seen => {
                Err(Error::Truncated { signed: signed.size, found: self.edge.size() })
            }
            _ => Ok(()),
        }
    }

    /// Whether the tree is now as large as the checkpoint's; then it must be the same.
    fn matches(&self, signed: &Checkpoint) -> Result<bool, Error> {
        if signed.size != self.edge.size() {
            return Ok(false);
        }
        if signed.root != self.edge.root() {
            return Err(Error::RootMismatch { size: signed.size });
        }
        Ok(true)
    }

    fn push(&mut self, record: Vec<u8>) {
        self.full.extend(self.edge.push(leaf_hash(&record)));
        self.bundle.push(record);
    }

    /// Adds a record to the next commit; returns its index, should that commit succeed.
    ///
    /// # Errors
    ///
    /// [`Error::RecordTooLong`].
    pub fn append(&mut self, event: Event) -> Result<u64, Error> {
        let record = Record {
            v: SCHEMA_VERSION,
            time_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            monotonic_s: monotonic_s(),
            boot: self.boot.clone(),
            event,
        };
        let bytes = serde_json::to_vec(&record).map_err(|_| Error::RecordTooLong)?;
        if bytes.len() > RECORD_LEN_MAX_BYTES {
            return Err(Error::RecordTooLong);
        }
        let index = self.edge.size() + self.pending.len() as u64;
        self.pending.push(bytes);
        Ok(index)
    }

    /// Makes all appended records durable and publishes a checkpoint over them.
    ///
    /// # Errors
    ///
    /// After an error none of the appended records counts as written; the records of earlier
    /// commits stand. The next commit first writes the journal anew and reads it back.
    pub fn commit(&mut self) -> Result<(), Error> {
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        self.repair()?;
        while !rest.is_empty() {
            let room = TILE_WIDTH - self.bundle.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.append_durably(now)?;
            rest = later;
            self.settle()?;
        }
        self.publish()
    }

    /// Brings journal and tiles in order after a failed write.
    fn repair(&mut self) -> Result<(), Error> {
        if self.journal.is_none() {
            let base = self.edge.size() - self.bundle.len() as u64;
            let path = self.folder.join("journal");
            self.journal = Some(Journal::rewrite(&path, base, &self.bundle)?);
        }
        self.settle()
    }

    fn append_durably(&mut self, records: &[Vec<u8>]) -> Result<(), Error> {
        let mut journal = self.journal.take().ok_or(Error::Unavailable)?;
        journal.append(self.edge.size(), records)?;
        self.journal = Some(journal);
        for record in records {
            self.push(record.clone());
        }
        Ok(())
    }

    /// Writes full tiles durably, then lets the journal begin the next bundle.
    fn settle(&mut self) -> Result<(), Error> {
        if self.bundle.len() < TILE_WIDTH {
            return Ok(());
        }
        let size = self.edge.size();
        let index = size / TILE_WIDTH as u64 - 1;
        let entries = tile_path(&self.folder, Kind::Entries, index, TILE_WIDTH);
        write_file(&entries, &encode_entries(&self.bundle), Some(&self.folder))?;
        for tile in &self.full {
            let path = tile_path(&self.folder, Kind::Hashes(tile.level), tile.index, TILE_WIDTH);
            write_file(&path, tile.hashes.as_flattened(), Some(&self.folder))?;
        }
        self.write_open_tiles()?;
        write_file(&self.folder.join("checkpoint"), self.sign().as_bytes(), Some(&self.folder))?;
        self.published = size;
        self.journal = None;
        self.journal = Some(Journal::rewrite(&self.folder.join("journal"), size, &[])?);
        self.bundle.clear();
        self.full.clear();
        Ok(())
    }

    /// Writes the open tiles and a checkpoint over all durable records.
    fn publish(&mut self) -> Result<(), Error> {
        if self.published == self.edge.size() && self.published > 0 {
            return Ok(());
        }
        self.write_open_tiles()?;
        write_file(&self.folder.join("checkpoint"), self.sign().as_bytes(), None)?;
        self.published = self.edge.size();
        self.remove_narrower_tiles()
    }

    fn sign(&self) -> String {
        let origin = self.signer.verifier().name().to_owned();
        let (size, root) = (self.edge.size(), self.edge.root());
        self.signer.sign(&Checkpoint { origin, size, root }.to_text())
    }

    fn write_open_tiles(&self) -> Result<(), Error> {
        let size = self.edge.size();
        if !self.bundle.is_empty() && self.bundle.len() < TILE_WIDTH {
            let index = size / TILE_WIDTH as u64;
            self.write_partial(
                Kind::Entries,
                index,
                self.bundle.len(),
                &encode_entries(&self.bundle),
            )?;
        }
        let mut count = size;
        for (level, hashes) in (0_u8..).zip(self.edge.open_tiles()) {
            let index = count / TILE_WIDTH as u64;
            if !hashes.is_empty() {
                let bytes = hashes.as_flattened();
                self.write_partial(Kind::Hashes(level), index, hashes.len(), bytes)?;
            }
            count = index;
        }
        Ok(())
    }

    /// Writes a partial tile. Narrower ones of the same tile stay: the checkpoint that readers
    /// see is still theirs.
    fn write_partial(
        &self,
        kind: Kind,
        index: u64,
        width: usize,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let path = tile_path(&self.folder, kind, index, width);
        if path.exists() && kind != Kind::Entries && kind != Kind::Hashes(0) {
            return Ok(());
        }
        write_file(&path, bytes, None)
    }

    /// Removes the narrower tiles beside the open ones, which the published checkpoint needs no
    /// longer.
    fn remove_narrower_tiles(&self) -> Result<(), Error> {
        let mut count = self.edge.size();
        let hashes = (0_u8..).zip(self.edge.open_tiles());
        let mut open = vec![(Kind::Entries, count / TILE_WIDTH as u64, self.bundle.len())];
        for (level, hashes) in hashes {
            count /= TILE_WIDTH as u64;
            open.push((Kind::Hashes(level), count, hashes.len()));
        }
        for (kind, index, width) in open {
            let path = tile_path(&self.folder, kind, index, width);
            if width == 0 || width == TILE_WIDTH || !path.exists() {
                continue;
            }
            let Some(folder) = path.parent() else { continue };
            for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
                let other = entry.map_err(Error::io("read", folder))?.path();
                if other != path {
                    fs::remove_file(&other).map_err(Error::io("remove", &other))?;
                }
            }
        }
        Ok(())
    }

    /// Stops between the open tiles and their checkpoint, as a crash may.
    #[cfg(test)]
    pub(super) fn write_tiles_alone(&self) {
        self.write_open_tiles().unwrap();
    }

    /// Makes the next commit write the journal anew, as after a failed write.
    #[cfg(test)]
    pub(super) fn break_journal(&mut self) {
        self.journal = None;
    }

    /// Records in the log.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.edge.size()
    }

    /// Looks back to the last start for requests that began and never ended.
    fn find_open_requests(&self) -> Result<Found, Error> {
        let mut open = std::collections::HashSet::new();
        let mut ended = std::collections::HashSet::new();
        let mut found = Found { stopped_in_order: self.edge.size() == 0, ..Found::default() };
        let mut newest = true;
        let bundles = self.edge.size() / TILE_WIDTH as u64;
        let mut scan = |entries: &[Vec<u8>], first: u64| -> Result<bool, Error> {
            for (i, entry) in entries.iter().enumerate().rev() {
                let index = first + i as u64;
                let record: Record =
                    serde_json::from_slice(entry).map_err(|_| Error::RecordMalformed { index })?;
                if std::mem::take(&mut newest) {
                    found.stopped_in_order = matches!(record.event, Event::Stop {});
                }
                match record.event {
                    Event::End { request, .. } | Event::EndMissing { request, .. } => {
                        ended.insert(request);
                    }
                    Event::Begin { request, .. } if !ended.contains(&request) => {
                        open.insert(request);
                    }
                    Event::Start { .. } => return Ok(true),
                    _ => {}
                }
            }
            Ok(false)
        };
        let mut done = scan(&self.bundle, bundles * TILE_WIDTH as u64)?;
        let oldest = bundles.saturating_sub(OPEN_SEARCH_BUNDLES_MAX);
        for index in (oldest..bundles).rev() {
            if done {
                break;
            }
            let entries = tiles::read_entries(&self.folder, index, TILE_WIDTH)?;
            done = scan(&entries, index * TILE_WIDTH as u64)?;
        }
        found.open_requests = open.into_iter().collect();
        found.open_requests.sort();
        Ok(found)
    }
}

/// Takes the writer's lock, which ends with the process.
fn lock(folder: &Path) -> Result<Flock<File>, Error> {
    let path = folder.join("lock");
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::Locked)
}

fn read_checkpoint(folder: &Path, signer: &Signer) -> Result<Option<Checkpoint>, Error> {
    let path = folder.join("checkpoint");
    if !path.exists() {
        return Ok(None);
    }
    let note = read_bounded(&path, NOTE_LEN_MAX_BYTES)?;
    let verifier = signer.verifier();
    let checkpoint = Checkpoint::parse(verifier.open(&note)?)?;
    if checkpoint.origin != verifier.name() {
        return Err(Error::CheckpointOrigin);
    }
    Ok(Some(checkpoint))
}

/// Rebuilds the right edge at `size`, a multiple of 256, from the full tiles alone.
fn edge_of_full_tiles(folder: &Path, size: u64) -> Result<Edge, Error> {
    let mut upper = Vec::new();
    let mut count = size / TILE_WIDTH as u64;
    for level in 0_u8..8 {
        if count == 0 {
            break;
        }
        let open = count % TILE_WIDTH as u64;
        let hashes: Result<Vec<Hash>, Error> = (count - open..count)
            .map(|index| Ok(perfect_root(&tiles::read_hashes(folder, level, index, TILE_WIDTH)?)))
            .collect();
        upper.push(hashes?);
        count /= TILE_WIDTH as u64;
    }
    Ok(Edge::of_full_tiles(size, upper))
}

fn boot_id() -> Result<String, Error> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(text.trim().replace('-', ""))
}

fn monotonic_s() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .ok()
        .and_then(|time| u64::try_from(time.tv_sec()).ok())
        .unwrap_or(0)
}
