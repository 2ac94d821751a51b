//! Erasing a principal: who must agree, and what follows.
//!
//! An erasure destroys the principal's key, for ever. Where the configuration asks for several users,
//! each must ask for the same principal within [`CONFIRM_SPAN`]; the kernel says who asks.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::serve::{Supervisor, now};
use crate::audit::Event;
use crate::audit::record::ErasureAskedFacts;

/// Time within which all must ask.
const CONFIRM_SPAN: Duration = Duration::from_secs(3600);
/// Most erasures that wait.
const WAITING_COUNT_MAX: usize = 64;

/// Erasures that wait for more users.
pub(super) struct Erasures {
    needed: usize,
    waiting: HashMap<String, Waiting>,
}

struct Waiting {
    since: Instant,
    uids: BTreeSet<u32>,
}

/// What a user's asking led to.
#[derive(PartialEq, Eq, Debug)]
enum Asked {
    /// These have agreed; it may be done.
    Agreed(Vec<u32>),
    /// So many have, which is too few; whether this user is one more.
    Waits(usize, bool),
    /// Too many others wait.
    TooMany,
}

impl Erasures {
    /// Each needs so many users.
    pub(super) fn new(needed: u32) -> Self {
        Self { needed: needed as usize, waiting: HashMap::new() }
    }

    fn ask(&mut self, principal: &str, uid: u32, now: Instant) -> Asked {
        self.waiting.retain(|_, one| now.saturating_duration_since(one.since) < CONFIRM_SPAN);
        if !self.waiting.contains_key(principal) && self.waiting.len() >= WAITING_COUNT_MAX {
            return Asked::TooMany;
        }
        let fresh = || Waiting { since: now, uids: BTreeSet::new() };
        let one = self.waiting.entry(principal.to_owned()).or_insert_with(fresh);
        let is_new = one.uids.insert(uid);
        match one.uids.len() {
            count if count < self.needed => Asked::Waits(count, is_new),
            _ => {
                let agreed = self.waiting.remove(principal);
                Asked::Agreed(agreed.into_iter().flat_map(|one| one.uids).collect())
            }
        }
    }
}

impl Supervisor {
    /// Erases a principal, or notes that one more user asks for it.
    pub(super) fn erase(&mut self, principal: &str, uid: u32) -> Value {
        let refuse = |why: &str| json!({ "ok": false, "error": why });
        let Some(pseudonym) = self.ledger.known_pseudonym(principal) else {
            return refuse("no principal of this name has a key");
        };
        if self.ledger.is_failing() {
            return refuse("the audit log cannot be written, so nothing is erased");
        }
        let now = now();
        let by = match self.erasures.ask(principal, uid, now.instant) {
            Asked::Agreed(by) => by,
            Asked::TooMany => return refuse("too many erasures wait; see who asked for them"),
            Asked::Waits(count, is_new) => {
                let needed = self.config.erasure.confirmations;
                let confirmations = u32::try_from(count).unwrap_or(u32::MAX);
                let principal = pseudonym;
                let observed = ErasureAskedFacts { principal, uid, confirmations, needed };
                // Who asks again adds nothing, and cannot fill the log.
                let event = is_new.then_some(Event::ErasureAsked { observed });
                self.ledger.append_all(event);
                let span_s = CONFIRM_SPAN.as_secs();
                return json!({
                    "ok": true, "erased": false, "confirmations": confirmations,
                    "needed": needed, "within_s": span_s,
                });
            }
        };
        let erased = self.ledger.erase(principal, &by);
        if self.ledger.known_pseudonym(principal).is_none() {
            self.dispatch.end_principal(principal, &mut self.ledger, now);
        }
        match erased {
            Ok(_) => json!({ "ok": true, "erased": true, "pseudonym": pseudonym }),
            Err(error) => refuse(&error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_is_enough_where_one_is_asked_for() {
        let mut erasures = Erasures::new(1);
        assert_eq!(erasures.ask("anna", 0, Instant::now()), Asked::Agreed(vec![0]));
    }

    #[test]
    fn two_must_be_two_for_the_same_principal_within_the_time() {
        let (mut erasures, start) = (Erasures::new(2), Instant::now());
        assert_eq!(erasures.ask("anna", 1000, start), Asked::Waits(1, true));
        assert_eq!(
            erasures.ask("anna", 1000, start),
            Asked::Waits(1, false),
            "the same user again"
        );
        assert_eq!(erasures.ask("bert", 1001, start), Asked::Waits(1, true), "another principal");
        let late = start + CONFIRM_SPAN;
        assert_eq!(erasures.ask("anna", 1001, late), Asked::Waits(1, true), "too late");
        assert_eq!(erasures.ask("anna", 1000, late), Asked::Agreed(vec![1000, 1001]));
        assert_eq!(erasures.ask("anna", 1000, late), Asked::Waits(1, true), "it is used up");
    }

    #[test]
    fn what_waits_is_bounded() {
        let (mut erasures, now) = (Erasures::new(2), Instant::now());
        for n in 0..WAITING_COUNT_MAX {
            assert_eq!(erasures.ask(&n.to_string(), 1, now), Asked::Waits(1, true));
        }
        assert_eq!(erasures.ask("one more", 1, now), Asked::TooMany);
        assert_eq!(erasures.ask("0", 2, now), Asked::Agreed(vec![1, 2]));
        assert_eq!(erasures.ask("one more", 1, now), Asked::Waits(1, true));
    }
}
