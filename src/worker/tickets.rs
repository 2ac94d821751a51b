//! The tickets that the supervisor gave out: no ticket, no work, and each serves once.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ipc::message::{RequestId, Ticket};

/// Most unused tickets; the supervisor bounds its requests far below.
pub(super) const TICKETS_COUNT_MAX: usize = 4096;

/// Unused tickets, by request.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    unused: HashMap<RequestId, Right>,
    /// How many more there may be, if that is bounded.
    left: Option<usize>,
}

/// The right to have one request served until a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Right {
    /// The ticket as it came.
    pub(super) ticket: Ticket,
    /// When the request must have ended.
    pub(super) deadline: Instant,
}

impl Tickets {
    /// Keeps one ticket and never another.
    #[must_use]
    pub(super) fn one() -> Self {
        Self { left: Some(1), ..Self::default() }
    }

    /// Keeps a ticket that came at `now`; false when there are too many.
    #[must_use]
    pub(super) fn keep(&mut self, ticket: Ticket, now: Instant) -> bool {
        self.unused.retain(|_, right| right.deadline > now);
        if self.unused.len() >= TICKETS_COUNT_MAX || self.left == Some(0) {
            return false;
        }
        self.left = self.left.map(|left| left - 1);
        let deadline = now + Duration::from_millis(u64::from(ticket.deadline_ms));
        self.unused.insert(ticket.request, Right { ticket, deadline });
        true
    }

    /// Takes the ticket of `request`; `None` when there is none, it was used, or it is too old.
    #[must_use]
    pub(super) fn take(&mut self, request: RequestId, now: Instant) -> Option<Right> {
        self.unused.remove(&request).filter(|right| right.deadline > now)
    }

    /// Keeps the unused tickets of a cache domain from leaving anything in it.
    pub(super) fn forget(&mut self, cache_domain: [u8; 16]) {
        for right in self.unused.values_mut() {
            right.ticket.cache_domain.take_if(|domain| *domain == cache_domain);
        }
    }

    /// Voids the ticket of `request`, if it is unused.
    pub(super) fn void(&mut self, request: RequestId) {
        self.unused.remove(&request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(request: u8) -> Ticket {
        let request = RequestId([request; 16]);
        Ticket { request, cache_domain: None, max_tokens: 1, deadline_ms: 1000 }
    }

    #[test]
    fn a_ticket_serves_once_and_in_time() {
        let (mut tickets, now) = (Tickets::default(), Instant::now());
        assert!(tickets.take(RequestId([1; 16]), now).is_none());
        assert!(tickets.keep(ticket(1), now));
        assert!(tickets.take(RequestId([1; 16]), now).is_some());
        assert!(tickets.take(RequestId([1; 16]), now).is_none());
        assert!(tickets.keep(ticket(2), now));
        assert!(tickets.take(RequestId([2; 16]), now + Duration::from_secs(2)).is_none());
        assert!(tickets.keep(ticket(3), now));
        tickets.void(RequestId([3; 16]));
        assert!(tickets.take(RequestId([3; 16]), now).is_none());
    }

    #[test]
    fn one_ticket_is_one_even_after_it_was_used_or_voided() {
        let now = Instant::now();
        for is_used in [true, false] {
            let mut tickets = Tickets::one();
            assert!(tickets.keep(ticket(1), now));
            if is_used {
                assert!(tickets.take(RequestId([1; 16]), now).is_some());
            } else {
                tickets.void(RequestId([1; 16]));
            }
            assert!(!tickets.keep(ticket(2), now) && !tickets.keep(ticket(1), now));
            assert!(tickets.take(RequestId([2; 16]), now).is_none());
        }
    }

    #[test]
    fn a_forgotten_domain_is_taken_out_of_its_tickets() {
        let (mut tickets, now) = (Tickets::default(), Instant::now());
        for (request, domain) in [(1, 7), (2, 8)] {
            assert!(
                tickets.keep(Ticket { cache_domain: Some([domain; 16]), ..ticket(request) }, now)
            );
        }
        tickets.forget([7; 16]);
        let domain = |right: Option<Right>| right.unwrap().ticket.cache_domain;
        assert_eq!(domain(tickets.take(RequestId([1; 16]), now)), None);
        assert_eq!(domain(tickets.take(RequestId([2; 16]), now)), Some([8; 16]));
    }

    #[test]
    fn the_count_of_tickets_is_bounded() {
        let (mut tickets, now) = (Tickets::default(), Instant::now());
        for i in 0..TICKETS_COUNT_MAX {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(i as u64).to_le_bytes());
            assert!(tickets.keep(Ticket { request: RequestId(id), ..ticket(0) }, now));
        }
        assert!(!tickets.keep(ticket(255), now));
        assert!(tickets.keep(ticket(255), now + Duration::from_secs(2)));
    }
}
