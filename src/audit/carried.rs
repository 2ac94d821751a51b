//! What a journal must know of all records before it, so that no start searches the tree: its right
//! edge, requests that began and have no end, who was erased, how the last run started and stopped, and when.
//!
//! The edge is a shortcut: a start believes it only if it leads to the signed root, and reads the
//! tiles otherwise.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Error;
use super::merkle::{Edge, FullTile, leaf_hash};
use super::record::{Event, Record, StartFacts};

/// The state behind a number of records.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Carried {
    /// Requests that began and have no end.
    pub(super) open: BTreeSet<String>,
    /// Pseudonyms of principals whose keys were destroyed.
    #[serde(default)]
    pub(super) tombstones: BTreeSet<String>,
    /// Whether the last record is a stop, or there is none.
    pub(super) is_stopped: bool,
    /// What the last start recorded of itself.
    pub(super) last_start: Option<StartFacts>,
    /// The TPM's counter at the last start that recorded one.
    #[serde(default)]
    pub(super) tpm_counter: Option<u64>,
    /// The boot, wall and monotonic time of the last record, in seconds.
    pub(super) last_moment: Option<(String, u64, u64)>,
    /// The tree's right edge; the empty one where it is not known.
    #[serde(with = "edge_text", default)]
    pub(super) edge: Edge,
}

impl Default for Carried {
    fn default() -> Self {
        Self {
            open: BTreeSet::new(),
            tombstones: BTreeSet::new(),
            is_stopped: true,
            last_start: None,
            tpm_counter: None,
            last_moment: None,
            edge: Edge::default(),
        }
    }
}

impl Carried {
    /// Takes the next record into account; returns the tiles that it completed.
    pub(super) fn note(&mut self, bytes: &[u8]) -> Result<Vec<FullTile>, Error> {
        let index = self.edge.size();
        let record = serde_json::from_slice(bytes).map_err(|_| Error::RecordMalformed { index })?;
        self.note_record(&record);
        Ok(self.edge.push(leaf_hash(bytes)))
    }

    /// Takes the next record into account, but for the edge.
    pub(super) fn note_record(&mut self, record: &Record) {
        let (boot, time_s, monotonic_s) = self.last_moment.get_or_insert_default();
        boot.clone_from(&record.boot);
        (*time_s, *monotonic_s) = (record.time_s, record.monotonic_s);
        self.is_stopped = matches!(record.event, Event::Stop {});
        match &record.event {
            Event::Begin { request, .. } => {
                self.open.insert(request.clone());
            }
            Event::End { request, .. } | Event::EndMissing { request, .. } => {
                self.open.remove(request);
            }
            Event::Erased { observed } => {
                self.tombstones.insert(observed.principal.clone());
            }
            Event::Start { observed } => {
                self.tpm_counter = observed.tpm_counter.or(self.tpm_counter);
                self.last_start = Some(observed.clone());
            }
            _ => {}
        }
    }

    /// Whether a journal's head may say this where a walk has `seen` that: the same, but for the edge, which no
    /// start believes unproven. Behind pruned records the head knows more than was seen.
    pub(super) fn agrees_with(&self, seen: &Self, is_pruned: bool) -> bool {
        let Self { open, tombstones, is_stopped, last_start, tpm_counter, last_moment, edge: _ } =
            self;
        let has = |known: &BTreeSet<String>, seen: &BTreeSet<String>| {
            known == seen || is_pruned && seen.is_subset(known)
        };
        has(open, &seen.open)
            && has(tombstones, &seen.tombstones)
            && *is_stopped == seen.is_stopped
            && (*last_start == seen.last_start || is_pruned && seen.last_start.is_none())
            && (*tpm_counter == seen.tpm_counter || is_pruned && seen.tpm_counter.is_none())
            && *last_moment == seen.last_moment
    }
}

/// An edge in JSON: its size, and a line of base64 for each level.
mod edge_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::super::merkle::Edge;

    pub(super) fn serialize<S: Serializer>(edge: &Edge, to: S) -> Result<S::Ok, S::Error> {
        let levels = edge.open_tiles().iter().map(|level| STANDARD.encode(level.as_flattened()));
        (edge.size(), levels.collect::<Vec<String>>()).serialize(to)
    }

    /// An edge that is none is as good as one that is not known.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Edge, D::Error> {
        let (size, levels) = <(u64, Vec<String>)>::deserialize(from)?;
        let level = |text: &String| {
            let bytes = STANDARD.decode(text).ok()?;
            let (hashes, rest) = bytes.as_chunks::<32>();
            rest.is_empty().then(|| hashes.to_vec())
        };
        let levels: Option<Vec<_>> = levels.iter().map(level).collect();
        Ok(levels.and_then(|levels| Edge::of_open_tiles(size, levels)).unwrap_or_default())
    }
}
