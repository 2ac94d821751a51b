//! New records of a log as they come, each proven, each checkpoint held against the one before.

use std::path::PathBuf;

use super::source::Log;
use crate::audit::proof::is_consistent;
use crate::audit::{Checkpoint, Error, Snapshot, Verifier};

/// Records of a bundle.
const WIDTH: u64 = crate::audit::merkle::TILE_WIDTH as u64;

/// A place in a growing log.
pub(super) struct Tail {
    folder: PathBuf,
    verifier: Verifier,
    /// The newest checkpoint that was seen.
    pub(super) seen: Checkpoint,
    /// Index of the next record to give out.
    pub(super) next: u64,
}

impl Tail {
    /// Starts at `next` of a log that was last seen at `seen`.
    pub(super) fn new(log: &Log, verifier: Verifier, seen: Checkpoint, next: u64) -> Self {
        Self { folder: log.folder.clone(), verifier, seen, next }
    }

    /// Gives the records of one bundle that came since, if any, to `visit`.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`] or [`Error::RootMismatch`] when the log is not the one that was seen, and
    /// what a record's proof says.
    pub(super) fn turn(&mut self, visit: &mut dyn FnMut(u64, &[u8])) -> Result<u64, Error> {
        let mut reader = Snapshot::open(&self.folder, &self.verifier)?;
        let path = reader.consistency(self.seen.size)?;
        let signed = reader.checkpoint().clone();
        if !is_consistent((self.seen.size, self.seen.root), (signed.size, signed.root), &path) {
            return Err(Error::RootMismatch { size: self.seen.size });
        }
        self.seen = signed;
        if self.next >= self.seen.size {
            return Ok(0);
        }
        let bundle = self.next / WIDTH;
        let first = bundle * WIDTH;
        let mut count = 0;
        for (index, entry) in
            (first..).zip(reader.entries(bundle)?).skip_while(|one| one.0 < self.next)
        {
            visit(index, &entry);
            count += 1;
        }
        self.next += count;
        Ok(count)
    }
}
