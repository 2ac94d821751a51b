//! The audit log as the supervisor uses it: batches, one commit a turn, nothing lost on failure.
//!
//! A begin that could not be written never happened: its request is denied. Every other event is
//! kept and written with the next commit that succeeds.

use std::collections::VecDeque;

use crate::audit::record::{KeyedDigest, MissingCause};
use crate::audit::{Error, Event, Log, PrincipalKeys};
use crate::ipc::message::{Digest, RequestId};

/// Most events that wait for a log that cannot be written; ends of requests are always kept, and
/// those are bounded by the requests that began.
const BACKLOG_COUNT_MAX: usize = 4096;

/// The log and the principals' keys.
pub(super) struct Ledger {
    log: Log,
    keys: PrincipalKeys,
    batch: VecDeque<Event>,
    /// Why the last commit failed.
    failure: Option<String>,
}

impl Ledger {
    /// Uses an open log.
    pub(super) fn new(log: Log, keys: PrincipalKeys) -> Self {
        Self { log, keys, batch: VecDeque::new(), failure: None }
    }

    /// Adds an event to the next commit.
    pub(super) fn append(&mut self, event: Event) {
        let is_end = matches!(event, Event::End { .. } | Event::EndMissing { .. });
        if is_end || self.batch.len() < BACKLOG_COUNT_MAX {
            self.batch.push_back(event);
        }
    }

    /// Whether a commit has anything to do.
    pub(super) fn is_pending(&self) -> bool {
        !self.batch.is_empty()
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
    /// What the log says; then no begin of this batch counts, and all else waits.
    pub(super) fn commit(&mut self) -> Result<(), Error> {
        let before = self.log.size();
        let written = self.write();
        self.failure = written.as_ref().err().map(ToString::to_string);
        if written.is_ok() {
            self.batch.clear();
            return written;
        }
        // A failure may come after the first records, or all, became durable.
        let durable_count = usize::try_from(self.log.size() - before).unwrap_or(usize::MAX);
        let rest = self.batch.split_off(durable_count.min(self.batch.len()));
        for event in std::mem::replace(&mut self.batch, rest) {
            if let Event::Begin { request, .. } = event {
                let cause = MissingCause::LogUnavailable;
                self.batch.push_front(Event::EndMissing { request, cause });
            }
        }
        self.batch.retain(|event| !matches!(event, Event::Begin { .. }));
        written
    }

    fn write(&mut self) -> Result<(), Error> {
        for event in &self.batch {
            self.log.append(event.clone())?;
        }
        self.log.commit()
    }

    /// Records in the log.
    pub(super) fn size(&self) -> u64 {
        self.log.size()
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

/// A request's name in the log.
pub(super) fn request_name(request: RequestId) -> String {
    crate::audit::principal_keys::hex(&request.0)
}
