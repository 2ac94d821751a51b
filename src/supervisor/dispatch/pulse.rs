//! Whether a child still works: it is asked now and then, and answers in time or is killed.
//!
//! A worker's answer passes through each of its threads, so that one which hangs is noticed even
//! while the others talk.

use std::time::{Duration, Instant};

use super::{Dispatch, Effect, Fault, Kind, Now};
use crate::ipc::message::{ToGateway, ToWorkerControl, WorkerIndex};

/// Longest time between an answer and the next question.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A child's pulse, from the moment that it serves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pulse {
    /// Time in which it must answer.
    limit: Duration,
    /// When it was asked, until it has answered.
    asked: Option<Instant>,
    /// When it is asked next.
    next: Instant,
}

/// What is to be done about a child now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Beat {
    /// Nothing.
    Wait,
    /// Ask it.
    Ask,
    /// It did not answer in time.
    Lost,
}

impl Pulse {
    /// A child that serves since `now`, and must answer within `limit`.
    pub(super) fn new(limit: Duration, now: Instant) -> Self {
        Self { limit, asked: None, next: now }
    }

    /// What is to be done; a question counts as asked.
    pub(super) fn check(&mut self, now: Instant) -> Beat {
        match self.asked {
            Some(asked) if now.saturating_duration_since(asked) >= self.limit => Beat::Lost,
            None if now >= self.next => {
                self.asked = Some(now);
                Beat::Ask
            }
            _ => Beat::Wait,
        }
    }

    /// Notes an answer. Returns whether there was a question.
    pub(super) fn heard(&mut self, now: Instant) -> bool {
        self.next = now + PAUSE_MAX.min(self.limit / 4);
        self.asked.take().is_some()
    }
}

impl Dispatch {
    /// Asks the children whether they work, and gives up those that did not answer.
    pub(in crate::supervisor) fn feel_pulses(&mut self, now: Now) {
        let check = |pulse: &mut Option<Pulse>| {
            let beat = pulse.as_mut().map_or(Beat::Wait, |pulse| pulse.check(now.instant));
            if beat == Beat::Lost {
                // Once; its end follows.
                *pulse = None;
            }
            beat
        };
        let why = "does not answer: it hangs";
        match check(&mut self.gateway_pulse) {
            Beat::Wait => {}
            Beat::Ask => self.effects.push(Effect::Gateway(ToGateway::AreYouThere)),
            Beat::Lost => self.effects.push(Effect::GatewayStuck(why)),
        }
        for (index, worker) in (0..).map(WorkerIndex).zip(&mut self.workers) {
            match check(&mut worker.pulse) {
                Beat::Wait => {}
                Beat::Ask => {
                    self.effects.push(Effect::Worker(index, ToWorkerControl::AreYouThere));
                }
                Beat::Lost => self.effects.push(Effect::WorkerStuck(index, why)),
            }
        }
    }
}

/// Notes a child's answer to a question that it was asked.
pub(super) fn alive(pulse: &mut Option<Pulse>, kind: Kind, now: Now) -> Result<(), Fault> {
    match pulse.as_mut().map(|pulse| pulse.heard(now.instant)) {
        Some(false) => Err(Fault::Moment(kind)),
        // Without a pulse it is as good as dead.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_asked_answers_and_is_asked_again() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(Duration::from_secs(20), start);
        assert!(!pulse.heard(start), "an answer to no question");
        assert_eq!(pulse.check(after(4)), Beat::Wait);
        assert_eq!(pulse.check(after(5)), Beat::Ask);
        assert_eq!(pulse.check(after(24)), Beat::Wait);
        assert!(pulse.heard(after(24)));
        assert!(!pulse.heard(after(24)));
        assert_eq!(pulse.check(after(29)), Beat::Ask);
        assert_eq!(pulse.check(after(49)), Beat::Lost);
        let mut patient = Pulse::new(Duration::from_secs(3600), start);
        assert_eq!(patient.check(start), Beat::Ask);
        assert!(patient.heard(start));
        assert_eq!(patient.check(after(10)), Beat::Ask);
    }
}
