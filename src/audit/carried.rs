//! What a journal must know of all records before it, so that no start searches the tree: requests
//! that began and have no end, how the last run started and stopped, and when.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Error;
use super::record::{Event, Record, StartFacts};

/// The state behind a number of records.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Carried {
    /// Requests that began and have no end.
    pub(super) open: BTreeSet<String>,
    /// Whether the last record is a stop, or there is none.
    pub(super) is_stopped: bool,
    /// What the last start recorded of itself.
    pub(super) last_start: Option<StartFacts>,
    /// The boot, wall and monotonic time of the last record, in seconds.
    pub(super) last_moment: Option<(String, u64, u64)>,
}

impl Default for Carried {
    fn default() -> Self {
        Self { open: BTreeSet::new(), is_stopped: true, last_start: None, last_moment: None }
    }
}

impl Carried {
    /// Takes the record at `index` into account.
    pub(super) fn note(&mut self, index: u64, record: &[u8]) -> Result<(), Error> {
        let record: Record =
            serde_json::from_slice(record).map_err(|_| Error::RecordMalformed { index })?;
        self.last_moment = Some((record.boot, record.time_s, record.monotonic_s));
        self.is_stopped = matches!(record.event, Event::Stop {});
        match record.event {
            Event::Begin { request, .. } => {
                self.open.insert(request);
            }
            Event::End { request, .. } | Event::EndMissing { request, .. } => {
                self.open.remove(&request);
            }
            Event::Start { observed } => self.last_start = Some(observed),
            _ => {}
        }
        Ok(())
    }
}
