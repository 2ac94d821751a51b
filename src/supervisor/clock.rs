//! The system's clock against the machine's monotonic one: a step of it is put on the record.
//!
//! Both are slewed alike when a time service corrects the rate, so only a step moves one against
//! the other. Steps below [`STEP_MIN_S`] are not seen, and those made between a crash and the next
//! boot of the machine only when they lead back.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use super::serve::Supervisor;
use crate::audit::record::{ClockDirection, ClockFacts, bucket};
use crate::audit::{Event, Found};

/// Least step that is recorded, in seconds.
const STEP_MIN_S: i64 = 2;
/// Largest step that is told apart, in seconds.
const STEP_MAX_S: u64 = 1 << 32;

/// How far the system's clock is from the monotonic one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    /// Wall time less monotonic time, in milliseconds.
    offset_ms: i64,
}

impl Clocks {
    /// Looks at both clocks.
    pub(super) fn now() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let monotonic_ms = clock_gettime(ClockId::CLOCK_BOOTTIME)
            .map_or(0, |time| time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000);
        let wall_ms = i64::try_from(wall.as_millis()).unwrap_or(i64::MAX);
        Self { offset_ms: wall_ms.saturating_sub(monotonic_ms) }
    }

    /// The step from `self` to a later look, if there was one.
    fn step_to(self, later: Self) -> Option<ClockFacts> {
        // A record's whole seconds are off by less than one, which this drops.
        facts(later.offset_ms.saturating_sub(self.offset_ms) / 1000)
    }
}

fn facts(by_s: i64) -> Option<ClockFacts> {
    let direction = match by_s {
        STEP_MIN_S.. => ClockDirection::Forward,
        _ if by_s <= -STEP_MIN_S => ClockDirection::Back,
        _ => return None,
    };
    Some(ClockFacts { direction, by_s_max: bucket(by_s.unsigned_abs()).min(STEP_MAX_S) })
}

/// The step between the last record of the log and this start, which is of the boot `boot`.
pub(super) fn step_since(found: &Found, boot: &str, now: Clocks) -> Option<ClockFacts> {
    let (last_boot, time_s, monotonic_s) = found.last_moment.as_ref()?;
    let seconds = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    if last_boot == boot {
        let last = seconds(*time_s).saturating_sub(seconds(*monotonic_s)).saturating_mul(1000);
        return Clocks { offset_ms: last }.step_to(now);
    }
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    facts(seconds(wall.as_secs()).saturating_sub(seconds(*time_s)).min(0))
}

impl Supervisor {
    /// Records a step of the system's clock since the last turn.
    pub(super) fn watch_clock(&mut self) {
        let now = Clocks::now();
        if let Some(observed) = self.clocks.step_to(now) {
            super::say("the system's clock was set");
            self.ledger.append(Event::ClockJump { observed });
            self.clocks = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(from_ms: i64, to_ms: i64) -> Option<(ClockDirection, u64)> {
        let found = Clocks { offset_ms: from_ms }.step_to(Clocks { offset_ms: to_ms });
        found.map(|facts| (facts.direction, facts.by_s_max))
    }

    #[test]
    fn steps_are_told_both_ways_and_bucketed() {
        assert_eq!(step(0, 1_999), None);
        assert_eq!(step(0, -1_999), None);
        assert_eq!(step(0, 2_000), Some((ClockDirection::Forward, 2)));
        assert_eq!(step(7_000, 1_000), Some((ClockDirection::Back, 8)));
        assert_eq!(step(0, i64::MAX), Some((ClockDirection::Forward, STEP_MAX_S)));
        assert_eq!(step(i64::MAX, i64::MIN), Some((ClockDirection::Back, STEP_MAX_S)));
    }

    #[test]
    fn a_clock_that_nobody_touches_makes_no_step() {
        let first = Clocks::now();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(first.step_to(Clocks::now()).is_none());
    }

    #[test]
    fn a_start_is_held_against_the_last_record() {
        let wall_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let step = |boot: &str, time_s, monotonic_s, now_ms| {
            let last_moment = Some(("aa".to_owned(), time_s, monotonic_s));
            let found = Found { last_moment, ..Found::default() };
            step_since(&found, boot, Clocks { offset_ms: now_ms }).map(|facts| facts.direction)
        };
        assert_eq!(step("aa", 1000, 10, 990_500), None);
        assert_eq!(step("aa", 1000, 10, 995_000), Some(ClockDirection::Forward));
        assert_eq!(step("aa", 1000, 10, 980_000), Some(ClockDirection::Back));
        // After another boot the monotonic clock says nothing; what leads back is seen.
        assert_eq!(step("bb", wall_s - 100, 10, 0), None);
        assert_eq!(step("bb", wall_s + 100, 10, 0), Some(ClockDirection::Back));
        assert!(step_since(&Found::default(), "aa", Clocks::now()).is_none());
    }
}
