//! Events that strangers can cause at will, counted, so that they cannot fill the log.
//!
//! The first of a kind is recorded at once; those that follow are summed and recorded at most
//! every [`INTERVAL`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::ledger::Ledger;
use crate::audit::Event;
use crate::audit::record::{
    AuthenticationCause, AuthenticationFacts, KeyRole, KeyUseFacts, RefusalReason, RefusedFacts,
    TicketFacts, TicketRequestFacts, UnaskedCause, UnaskedFacts,
};

/// Time between two records of one kind.
const INTERVAL: Duration = Duration::from_secs(10);
/// Most refused tickets that are recorded one by one in an interval.
const TICKETS_COUNT_MAX: usize = 64;

/// Counts since the last records.
#[derive(Default)]
pub(super) struct Refusals {
    counts: HashMap<(RefusalReason, Option<String>), u64>,
    failures: HashMap<(AuthenticationCause, Option<String>), u64>,
    /// Keys that the gateway asked nobody about, by its own word.
    unasked_count: u64,
    key_uses: HashMap<KeyRole, u64>,
    tickets: Vec<Event>,
    flushed: Option<Instant>,
}

impl Refusals {
    /// Counts a denied request; `principal` is its name, never its key.
    pub(super) fn refused(&mut self, reason: RefusalReason, principal: Option<String>) {
        *self.counts.entry((reason, principal)).or_default() += 1;
    }

    /// Counts a key that opens nothing; `principal` is whose it was.
    pub(super) fn key_rejected(&mut self, cause: AuthenticationCause, principal: Option<String>) {
        *self.failures.entry((cause, principal)).or_default() += 1;
    }

    /// Counts keys that the gateway says it was shown and that cannot be keys.
    pub(super) fn keys_malformed(&mut self, count: u32) {
        self.unasked_count = self.unasked_count.saturating_add(count.into());
    }

    /// Counts a use of a long-term key.
    pub(super) fn key_used(&mut self, key: KeyRole) {
        *self.key_uses.entry(key).or_default() += 1;
    }

    /// Notes that a worker refused a request without a ticket.
    pub(super) fn ticket_missing(&mut self, model: &str, request: &str) {
        if self.tickets.len() < TICKETS_COUNT_MAX {
            self.tickets.push(Event::TicketMissing {
                observed: TicketFacts { model: model.to_owned() },
                declared: TicketRequestFacts { request: request.to_owned() },
            });
        }
    }

    /// Appends the records that are due.
    pub(super) fn flush(&mut self, ledger: &mut Ledger, now: Instant) {
        let is_empty = self.counts.is_empty()
            && self.failures.is_empty()
            && self.unasked_count == 0
            && self.key_uses.is_empty()
            && self.tickets.is_empty();
        let is_early =
            self.flushed.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL);
        if is_empty || is_early {
            return;
        }
        self.flush_now(ledger);
        self.flushed = Some(now);
    }

    /// Appends all records.
    pub(super) fn flush_now(&mut self, ledger: &mut Ledger) {
        for ((reason, principal), count) in self.counts.drain() {
            let principal = principal.and_then(|name| ledger.pseudonym(&name).ok());
            ledger.append(Event::Refused { observed: RefusedFacts { reason, count, principal } });
        }
        for ((cause, principal), count) in self.failures.drain() {
            let principal = principal.and_then(|name| ledger.known_pseudonym(&name));
            let observed = Some(AuthenticationFacts { cause, count, principal });
            ledger.append(Event::AuthenticationFailed { observed, declared: None });
        }
        let count = std::mem::take(&mut self.unasked_count);
        if count > 0 {
            let declared = Some(UnaskedFacts { cause: UnaskedCause::Malformed, count });
            ledger.append(Event::AuthenticationFailed { observed: None, declared });
        }
        for (key, count) in self.key_uses.drain() {
            ledger.append(Event::KeyUsed { observed: KeyUseFacts { key, count } });
        }
        for event in self.tickets.drain(..) {
            ledger.append(event);
        }
    }
}
