//! The audit log as the supervisor uses it: batches, one commit a turn, nothing lost on failure.
//!
//! A begin that could not be written never happened: its request is denied. Every other event is
//! kept and written with the next commit that succeeds.

use std::collections::VecDeque;
use std::time::Instant;

use crate::audit::record::{BeginFacts, KeyedDigest, MissingCause, StartFacts};
use crate::audit::{CopyState, Error, Event, Log, PrincipalKeys};
use crate::ipc::message::{Digest, RequestId};

/// Most events that wait for a log that cannot be written; ends of requests are always kept, and
/// those are bounded by the requests that began.
const BACKLOG_COUNT_MAX: usize = 4096;

/// The log and the principals' keys.
pub(super) struct Ledger {
    log: Log,
    keys: PrincipalKeys,
    /// Digests of policy and programs, which stand in every begin.
    policy_digest: String,
    build_digest: String,
    batch: VecDeque<Event>,
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
            failure: None,
            pruning_due: None,
        }
    }

    /// Adds an event to the next commit.
    pub(super) fn append(&mut self, event: Event) {
        if is_end(&event) || self.batch.len() < BACKLOG_COUNT_MAX {
            self.batch.push_back(event);
        }
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
        let written = self.write(|_| true);
        self.failure = written.as_ref().err().map(ToString::to_string);
        if written.is_err() {
            self.batch.retain(|event| !matches!(event, Event::Begin { .. }));
            if self.batch.iter().any(is_end) {
                let _ = self.write(is_end);
            }
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

    /// The principal's name in the log.
    pub(super) fn pseudonym(&mut self, principal: &str) -> Result<String, Error> {
        Ok(self.keys.of(principal)?.pseudonym().to_owned())
    }

    /// `HMAC-SHA-256(K_principal, nonce || digest)` under a fresh nonce.
    pub(super) fn keyed(&mut self, principal: &str, digest: &Digest) -> Result<KeyedDigest, Error> {
        self.keys.of(principal)?.keyed(&digest.0)
    }
}

fn is_end(event: &Event) -> bool {
    matches!(event, Event::End { .. } | Event::EndMissing { .. })
}

/// A request's name in the log.
pub(super) fn request_name(request: RequestId) -> String {
    crate::audit::principal_keys::hex(&request.0)
}
