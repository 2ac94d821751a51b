//! The audit log as the supervisor uses it: batches, one commit a turn, nothing lost on failure.
//!
//! A begin that could not be written never happened: its request is denied. Every other event is
//! kept and written with the next commit that succeeds; where they become too many, the newest are
//! dropped, and how many is on the record.

use std::collections::VecDeque;
use std::time::Instant;

use crate::audit::record::{
    BeginFacts, DroppedFacts, ErasedFacts, KeyFacts, KeyRole, KeyedDigest, MissingCause,
    RotationFacts, StartFacts,
};
use crate::audit::{CopyState, Error, Event, Log, PrincipalKeys, Signer, WrappingKey};
use crate::ipc::message::{Digest, RequestId};

/// Most events that wait for a log that cannot be written; ends of requests and erasures are always kept,
/// and those are bounded by the requests that began and by who asks.
const BACKLOG_COUNT_MAX: usize = 4096;

/// Whose a request is: the token's name, and the name in the log when it began.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Principal {
    pub(super) name: String,
    pub(super) pseudonym: String,
}

/// The log and the principals' keys.
pub(super) struct Ledger {
    log: Log,
    keys: PrincipalKeys,
    /// Digests of policy and programs, which stand in every begin.
    policy_digest: String,
    build_digest: String,
    batch: VecDeque<Event>,
    /// Events that were dropped and are not on the record.
    dropped_count: u64,
    /// Why the last commit failed.
    failure: Option<String>,
    /// When old records are looked for next.
    pub(super) pruning_due: Option<Instant>,
}

impl Ledger {
    /// Uses an open log; what starts goes into each begin.
    pub(super) fn new(log: Log, keys: PrincipalKeys, start: &StartFacts) -> Self {
        Self {
            log,
            keys,
            policy_digest: start.policy_digest.clone(),
            build_digest: start.build_digest.clone(),
            batch: VecDeque::new(),
            dropped_count: 0,
            failure: None,
            pruning_due: None,
        }
    }

    /// Adds an event to the next commit.
    pub(super) fn append(&mut self, event: Event) {
        self.batch.push_back(event);
    }

    /// Drops the newest of what waits for a log that cannot be written, where it is too much. Never before
    /// a commit, which whoever appended something may rely on.
    pub(super) fn shed(&mut self) {
        if !self.is_failing() {
            return;
        }
        let (before, mut left) = (self.batch.len(), BACKLOG_COUNT_MAX);
        self.batch.retain(|event| {
            let is_kept = is_end(event) || matches!(event, Event::Erased { .. }) || left > 0;
            left = left.saturating_sub(1);
            is_kept
        });
        self.dropped_count += (before - self.batch.len()) as u64;
    }

    /// Adds events to the next commit.
    pub(super) fn append_all(&mut self, events: impl IntoIterator<Item = Event>) {
        events.into_iter().for_each(|event| self.append(event));
    }

    /// Which start of the machine this is.
    pub(super) fn boot(&self) -> &str {
        self.log.boot()
    }

    /// Whether a commit has anything to do: also whether it works again.
    pub(super) fn is_pending(&self) -> bool {
        !self.batch.is_empty() || self.is_failing()
    }

    /// Whether the last commit failed.
    pub(super) fn is_failing(&self) -> bool {
        self.failure.is_some()
    }

    /// Why the last commit failed.
    pub(super) fn failure(&self) -> &str {
        self.failure.as_deref().unwrap_or_default()
    }

    /// Makes all appended events durable.
    ///
    /// # Errors
    ///
    /// What the log says; then no begin of this batch counts, and all else waits, but for ends: the log
    /// has room for the end of every request that began, also on a full disk.
    pub(super) fn commit(&mut self) -> Result<(), Error> {
        let count = std::mem::take(&mut self.dropped_count);
        if count > 0 {
            self.append(Event::EventsDropped { observed: DroppedFacts { count } });
        }
        let written = self.write(|_| true);
        self.failure = written.as_ref().err().map(ToString::to_string);
        if written.is_err() {
            self.batch.retain(|event| match event {
                // There may be more by the next commit.
                Event::EventsDropped { observed } => {
                    self.dropped_count += observed.count;
                    false
                }
                event => !matches!(event, Event::Begin { .. }),
            });
            if self.batch.iter().any(is_end) {
                let _ = self.write(is_end);
            }
            self.shed();
        }
        written
    }

    /// Writes the events of a kind and forgets those that became durable. A begin that did although
    /// the commit failed is followed by its end.
    fn write(&mut self, is_it: impl Fn(&Event) -> bool) -> Result<(), Error> {
        let before = self.log.size();
        for event in self.batch.iter().filter(|event| is_it(event)) {
            self.log.append(event.clone())?;
        }
        let written = self.log.commit();
        let mut durable_count = self.log.size() - before;
        for event in std::mem::take(&mut self.batch) {
            if durable_count == 0 || !is_it(&event) {
                self.batch.push_back(event);
                continue;
            }
            durable_count -= 1;
            if let (Err(_), Event::Begin { request, .. }) = (&written, event) {
                let missing = Event::end_missing(request, MissingCause::LogUnavailable);
                self.batch.push_front(missing);
            }
        }
        written
    }

    /// Ends the log in order, so that the next start is quick; nothing that was committed depends on it.
    pub(super) fn close(self) -> Result<(), Error> {
        self.log.close()
    }

    /// Records in the log.
    pub(super) fn size(&self) -> u64 {
        self.log.size()
    }

    /// Removes records that are older than `keep_s`; returns how many, and whether there may be more.
    pub(super) fn prune(&mut self, keep_s: u64, is_forced: bool) -> Result<(u64, bool), Error> {
        self.log.prune(keep_s, is_forced)
    }

    /// How each copy of the log is.
    pub(super) fn copies(&self) -> Vec<CopyState> {
        self.log.copies()
    }

    /// What the supervisor itself knows of a request that begins.
    pub(super) fn begin_facts(
        &mut self,
        principal: &str,
        role: &str,
        (model, model_digest): (&str, &str),
    ) -> Result<BeginFacts, Error> {
        Ok(BeginFacts {
            principal: self.pseudonym(principal)?,
            role: role.to_owned(),
            model: model.to_owned(),
            model_digest: model_digest.to_owned(),
            policy_digest: self.policy_digest.clone(),
            build_digest: self.build_digest.clone(),
        })
    }

    /// The principal's name in the log; made with its key at its first use.
    pub(super) fn pseudonym(&mut self, principal: &str) -> Result<String, Error> {
        let pseudonym = self.keys.of(principal).map(|key| key.pseudonym().to_owned());
        self.record_returned();
        for id in self.keys.take_created() {
            self.key_created(KeyRole::Principal, id);
        }
        pseudonym
    }

    /// The principal's name in the log, if it has one.
    pub(super) fn known_pseudonym(&mut self, principal: &str) -> Option<String> {
        let found = self.keys.find(principal).ok().flatten();
        let pseudonym = found.map(|key| key.pseudonym().to_owned());
        self.record_returned();
        pseudonym
    }

    /// `HMAC-SHA-256(K_principal, nonce || digest)` under a fresh nonce, with the key that goes with the
    /// pseudonym: one that was made after an erasure says nothing of what was before it.
    pub(super) fn keyed(&mut self, who: &Principal, digest: &Digest) -> Result<KeyedDigest, Error> {
        let key = self.keys.find(&who.name)?.filter(|key| key.pseudonym() == who.pseudonym);
        key.ok_or(Error::PrincipalKeyGone)?.keyed(&digest.0)
    }

    /// Records that a key was made.
    pub(super) fn key_created(&mut self, key: KeyRole, id: String) {
        self.append(Event::KeyCreated { observed: KeyFacts { key, id } });
    }

    /// Destroys the key of a principal, whose tombstone is durable before; returns its pseudonym, or
    /// `None` when it has no key.
    pub(super) fn erase(&mut self, name: &str, by: &[u32]) -> Result<Option<String>, Error> {
        let Some(principal) = self.keys.begin_erasure(name)? else { return Ok(None) };
        let observed = ErasedFacts { principal: principal.clone(), by: by.to_vec() };
        let tombstone = Event::Erased { observed };
        self.append(tombstone.clone());
        if let Err(error) = self.commit() {
            // A commit may fail after its records became durable; then the erasure goes on.
            let waiting = self.batch.len();
            self.batch.retain(|event| *event != tombstone);
            if self.batch.len() < waiting {
                self.keys.undo_erasure(name)?;
                return Err(error);
            }
        }
        self.destroy(vec![principal.clone()])?;
        Ok(Some(principal))
    }

    /// Finishes erasures between whose steps the last run ended.
    pub(super) fn finish_erasures(&mut self) -> Result<(), Error> {
        let left = self.keys.unfinished_erasures()?;
        for principal in left.iter().cloned() {
            self.append(Event::Erased { observed: ErasedFacts { principal, by: Vec::new() } });
        }
        self.commit()?;
        self.destroy(left)
    }

    /// Destroys erased keys that came back with a copy of their files, on the record.
    pub(super) fn destroy_returned(&mut self) -> Result<(), Error> {
        let destroyed = self.keys.destroy_returned();
        self.record_returned();
        destroyed
    }

    /// Records that erased keys were there again and were destroyed again.
    fn record_returned(&mut self) {
        for id in self.keys.take_returned() {
            super::say(&format!(
                "the key of {id} was erased and is there again, from a copy: destroyed again; \
                 `cloister audit rotate-wrapping-key` makes all older copies useless"
            ));
            self.key_destroyed(id);
        }
    }

    fn destroy(&mut self, pseudonyms: Vec<String>) -> Result<(), Error> {
        self.keys.finish_erasures(&pseudonyms)?;
        pseudonyms.into_iter().for_each(|id| self.key_destroyed(id));
        Ok(())
    }

    fn key_destroyed(&mut self, id: String) {
        self.append(Event::KeyDestroyed { observed: KeyFacts { key: KeyRole::Principal, id } });
    }

    /// Wraps the principals' keys under `next`; returns how many, or `None` when they are already.
    pub(super) fn rotate_wrapping(
        &mut self,
        next: WrappingKey,
        uid: u32,
    ) -> Result<Option<u64>, Error> {
        let (before, after) = (self.keys.wrapping_id().to_owned(), next.id().to_owned());
        if before == after {
            return Ok(None);
        }
        let count = self.keys.rotate(next)?;
        let (key, size) = (KeyRole::Wrapping, None);
        let observed = RotationFacts { key, before, after, uid, size, count: Some(count) };
        self.append(Event::KeyRotated { observed });
        Ok(Some(count))
    }

    /// Lets `next` sign the log; returns how many records the key before signed for, or `None` when `next`
    /// signs already.
    pub(super) fn rotate_audit(&mut self, next: Signer, uid: u32) -> Result<Option<u64>, Error> {
        self.commit()?;
        let rotated = self.log.rotate(next, uid);
        if let Err(error @ Error::Io { .. }) = &rotated {
            self.failure = Some(error.to_string());
        }
        rotated
    }
}

fn is_end(event: &Event) -> bool {
    matches!(event, Event::End { .. } | Event::EndMissing { .. })
}

/// A request's name in the log.
pub(super) fn request_name(request: RequestId) -> String {
    crate::audit::principal_keys::hex(&request.0)
}
