//! The log's writer: append, commit, recover.
//!
//! A commit makes its records durable in the journal with one sync, then publishes tiles and a
//! signed checkpoint. A record that was not acknowledged may be lost; one that was, never. No
//! checkpoint is signed over records that are not durable.
//!
//! Disk is kept for the end of every request that begins: a record that is no end is written only
//! while so much is left, so that a full disk stops new requests and takes the ends of old ones.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::Error;
use super::copies::{self, Batch, Copies, CopyState, Mode, Opened};
use super::disk::{Disk, Kernel};
use super::merkle::{Edge, Hash, TILE_WIDTH, perfect_root};
use super::note::{Signer, Verifier};
use super::record::{Event, KeyRole, Record, RetentionFacts, RotationFacts, StartFacts};
use super::rotation::Rotation;
use super::snapshot::Snapshot;
use super::tail::Tail;
use super::tiles::{self, RECORD_LEN_MAX_BYTES};

/// Records in the journal before whole bundles are settled.
const SETTLE_COUNT: u64 = 8192;

/// What [`Log::open`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Bytes of an unfinished write that were dropped.
    pub dropped_bytes: u64,
    /// Whether the last run stopped in order (or there was none).
    pub stopped_in_order: bool,
    /// Requests of the last run that began and never ended.
    pub open_requests: Vec<String>,
    /// Pseudonyms of principals that were erased.
    pub erased: BTreeSet<String>,
    /// What the last start recorded of itself.
    pub last_start: Option<StartFacts>,
    /// The TPM's counter at the last start that recorded one.
    pub last_tpm_counter: Option<u64>,
    /// The boot, wall and monotonic time of the last record, in seconds.
    pub last_moment: Option<(String, u64, u64)>,
}

/// How a log is written.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) settle_count: u64,
    /// Which copies must take a record.
    pub(super) mode: Mode,
    /// Keys that may have signed the log before.
    pub(super) retired: Option<Verifier>,
    /// Seconds since 1970.
    pub(super) now_s: fn() -> u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            disk: Arc::new(Kernel { is_durable: true }),
            settle_count: SETTLE_COUNT,
            mode: Mode::default(),
            retired: None,
            now_s: || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        }
    }
}

/// An audit log, open for writing.
#[derive(Debug)]
pub struct Log {
    signer: Signer,
    boot: String,
    tail: Tail,
    copies: Copies,
    now_s: fn() -> u64,
    opened: Instant,
    /// Time of the last record that was found, in seconds since 1970.
    newest_found_s: u64,
    /// What was appended and not committed.
    pending: Vec<Vec<u8>>,
    /// How many of them are begins, and how many are ends.
    pending_begins: u64,
    pending_ends: u64,
}

impl Log {
    /// Opens the log in `folder`, or starts one there.
    ///
    /// # Errors
    ///
    /// Refuses a log that is locked, damaged, rolled back, or signed by another key.
    pub fn open(folder: &Path, signer: Signer) -> Result<(Self, Found), Error> {
        Self::open_with(&[folder], signer, Options::default())
    }

    /// Opens the log whose copies are in `folders`, or starts them there; `retired` holds the keys that
    /// may have signed it before: from now on `signer` does.
    ///
    /// # Errors
    ///
    /// As [`Log::open`], for each of them; [`Error::CopiesDiffer`].
    pub fn open_copies(
        folders: &[&Path],
        mode: Mode,
        signer: Signer,
        retired: Option<Verifier>,
    ) -> Result<(Self, Found), Error> {
        Self::open_with(folders, signer, Options { mode, retired, ..Options::default() })
    }

    /// Opens a log that is thrown away afterwards, for measurements: nothing is synced, so that a power
    /// cut takes any of it.
    ///
    /// # Errors
    ///
    /// As [`Log::open`].
    pub fn open_to_throw_away(folder: &Path, signer: Signer) -> Result<Self, Error> {
        let options =
            Options { disk: Arc::new(Kernel { is_durable: false }), ..Options::default() };
        Ok(Self::open_with(&[folder], signer, options)?.0)
    }

    /// Does so with other files, another pace or another clock.
    pub(super) fn open_with(
        folders: &[&Path],
        signer: Signer,
        options: Options,
    ) -> Result<(Self, Found), Error> {
        let verifier = match &options.retired {
            Some(retired) => signer.verifier().after(retired)?,
            None => signer.verifier(),
        };
        let mut opened = copies::open(folders, &verifier, &options.disk)?;
        let others = opened.take_others();
        let Opened { tail, copies, dropped_bytes, is_checkpoint_lost, .. } = opened;
        let newest = copies.first().map(|copy| copy.folder().to_owned()).unwrap_or_default();
        let newest_found_s = tail.carried().last_moment.as_ref().map_or(0, |moment| moment.1);
        let mut log = Self {
            signer,
            boot: boot_id()?,
            tail,
            copies: Copies::new(copies, options.mode, options.settle_count),
            now_s: options.now_s,
            opened: Instant::now(),
            newest_found_s,
            pending: Vec::new(),
            pending_begins: 0,
            pending_ends: 0,
        };
        log.copies.begin(&log.tail, &log.signer)?;
        Opened::check_others(&others, &newest, &verifier)?;
        if options.mode == Mode::Both {
            log.copies.catch_up(&log.tail, &log.signer)?;
        }
        log.commit()?;
        let carried = log.tail.carried();
        let found = Found {
            dropped_bytes,
            stopped_in_order: carried.is_stopped && !is_checkpoint_lost,
            open_requests: carried.open.iter().cloned().collect(),
            erased: carried.tombstones.clone(),
            last_start: carried.last_start.clone(),
            last_tpm_counter: carried.tpm_counter,
            last_moment: carried.last_moment.clone(),
        };
        Ok((log, found))
    }

    /// Adds a record to the next commit; returns its index, should that commit succeed.
    ///
    /// # Errors
    ///
    /// [`Error::RecordTooLong`].
    pub fn append(&mut self, event: Event) -> Result<u64, Error> {
        let begins = u64::from(matches!(event, Event::Begin { .. }));
        let ends = u64::from(matches!(event, Event::End { .. } | Event::EndMissing { .. }));
        let record = Record::now((self.now_s)(), &self.boot, event);
        let bytes = serde_json::to_vec(&record).map_err(|_| Error::RecordTooLong)?;
        if bytes.len() > RECORD_LEN_MAX_BYTES {
            return Err(Error::RecordTooLong);
        }
        let index = self.tail.size() + self.pending.len() as u64;
        self.pending.push(bytes);
        self.pending_begins += begins;
        self.pending_ends += ends;
        Ok(index)
    }

    /// Makes all appended records durable and publishes a checkpoint over them.
    ///
    /// # Errors
    ///
    /// After an error those of the appended records count as written that [`Log::size`] counts: ends
    /// alone are written while there is reserved room for them, whatever else fails. The next commit
    /// first brings the files in order: what could not be synced is written anew and read back.
    pub fn commit(&mut self) -> Result<(), Error> {
        let records = std::mem::take(&mut self.pending);
        let begins = std::mem::take(&mut self.pending_begins);
        let ends = std::mem::take(&mut self.pending_ends);
        let batch = Batch { records, begins, ends };
        self.copies.commit(&mut self.tail, &self.signer, batch)
    }

    /// Ends the log in order: the whole bundles are settled, so that the next start has next to nothing to
    /// replay. A log that is dropped instead, or whose process is killed, replays what its journal holds.
    ///
    /// # Errors
    ///
    /// As [`Log::commit`]; the journal then holds all that was committed.
    pub fn close(mut self) -> Result<(), Error> {
        self.commit()?;
        self.copies.settle_all(&self.tail, &self.signer)
    }

    /// Removes the records of whole bundles that are older than `keep_s`, at most 65,536 at once, after
    /// it recorded that; returns how many, and whether there may be more.
    ///
    /// Now is no later than the time of the last run's last record and the time since then that this
    /// process has seen: a clock that was set ahead removes nothing too early.
    ///
    /// # Errors
    ///
    /// As [`Log::commit`]; then nothing was removed, or the rest is by the next call.
    pub fn prune(&mut self, keep_s: u64, is_forced: bool) -> Result<(u64, bool), Error> {
        let seen_s = self.newest_found_s.saturating_add(self.opened.elapsed().as_secs());
        let now_s = (self.now_s)().min(seen_s);
        let before_s = now_s.saturating_sub(keep_s);
        let (first, end, has_more) = self.copies.old_bundles(before_s)?;
        if end == first {
            return Ok((0, false));
        }
        let (first, before) = (first * TILE_WIDTH as u64, end * TILE_WIDTH as u64);
        let observed = RetentionFacts { before, older_than_s: keep_s, forced: is_forced };
        self.append(Event::RetentionRun { observed })?;
        self.commit()?;
        self.copies.remove_bundles(end)?;
        Ok((before - first, has_more))
    }

    /// Lets `next` sign from now on, as `uid` asked: on the record, and with a checkpoint over that which
    /// both keys sign. Returns how many records the key before signed for; `None` when `next` signs already.
    ///
    /// # Errors
    ///
    /// Refuses a key of another log, or one that was replaced. Otherwise as [`Log::commit`]: then the key
    /// before may still sign, or `next` does; asking again finishes it.
    pub fn rotate(&mut self, next: Signer, uid: u32) -> Result<Option<u64>, Error> {
        let (before, after) = (self.signer.verifier(), next.verifier());
        if after.name() != before.name() {
            return Err(Error::CheckpointOrigin);
        }
        if after == before {
            self.commit()?;
            return Ok(None);
        }
        let mut replaced = self.tail.changes().iter().filter(|it| it.before.is_newest_of(&after));
        if let Some(replaced) = replaced.next() {
            return Err(Error::KeyRetired { size: replaced.checkpoint.size });
        }
        let size = self.tail.size() + self.pending.len() as u64 + 1;
        let observed = RotationFacts {
            key: KeyRole::Audit,
            before: before.newest(),
            after: after.newest(),
            uid,
            size: Some(size),
            count: None,
        };
        self.append(Event::KeyRotated { observed })?;
        self.commit()?;
        let folder = self.copies.good_folder().ok_or(Error::Unavailable)?;
        let proof = Snapshot::open(folder, &before)?.proof(size - 1)?;
        self.tail.add_change(Rotation::new(proof, &next)?);
        self.signer = next;
        self.commit()?;
        Ok(Some(size))
    }

    /// Which start of the machine this is, in hex.
    #[must_use]
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// How each copy is.
    #[must_use]
    pub fn copies(&self) -> Vec<CopyState> {
        self.copies.states()
    }

    /// Waits until what settles beside the commits has settled.
    #[cfg(test)]
    pub(super) fn wait_until_settled(&mut self) -> Result<(), Error> {
        self.copies.wait(&self.tail)
    }

    /// Records in the log.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.tail.size()
    }
}

/// Rebuilds the right edge at `size`, a multiple of 256, from the full tiles alone.
pub(super) fn edge_of_full_tiles(folder: &Path, size: u64) -> Result<Edge, Error> {
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
