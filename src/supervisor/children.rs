//! The children: what is sent to them, when a dead one is started again, and when no more.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::ipc::{self, Channel, Message};

/// Deaths within [`CRASH_LOOP_SPAN`] that end the attempts.
const CRASH_LOOP_COUNT: usize = 5;
/// See [`CRASH_LOOP_COUNT`].
const CRASH_LOOP_SPAN: Duration = Duration::from_secs(60);
/// Pause after the first death; it doubles with each further one of the span.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Most messages that wait for a child to take them.
const OUTBOX_COUNT_MAX: usize = 4096;

/// When a child that died is started again.
#[derive(Default, Debug)]
pub(super) struct Backoff {
    deaths: VecDeque<Instant>,
    /// Ends by another child's word.
    accusations: VecDeque<Instant>,
}

impl Backoff {
    /// Notes a death at `now`; returns when to start again, `None` when it has died too often.
    pub(super) fn died(&mut self, now: Instant) -> Option<Instant> {
        pause(&mut self.deaths, now).map(|pause| now + pause)
    }

    /// Notes an end at `now` by another child's word; returns when to start again. Nobody is given up for
    /// what another says, and nobody starts processes at the rate of its words.
    pub(super) fn accused(&mut self, now: Instant) -> Instant {
        now + pause(&mut self.accusations, now).unwrap_or(CRASH_LOOP_SPAN)
    }
}

/// Notes an end; returns the pause after it, `None` after too many.
fn pause(ends: &mut VecDeque<Instant>, now: Instant) -> Option<Duration> {
    while let Some(&oldest) = ends.front()
        && now.saturating_duration_since(oldest) >= CRASH_LOOP_SPAN
    {
        ends.pop_front();
    }
    ends.push_back(now);
    if ends.len() >= CRASH_LOOP_COUNT {
        return None;
    }
    let doublings = u32::try_from(ends.len() - 1).unwrap_or(u32::MAX);
    Some(PAUSE_FIRST.saturating_mul(2_u32.saturating_pow(doublings)))
}

/// Messages on their way to a child, with their descriptors.
pub(super) struct Outbox<M> {
    waiting: VecDeque<(M, Vec<OwnedFd>)>,
}

impl<M: Message> Outbox<M> {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new() }
    }

    /// Whether anything waits for room in the channel.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends in order; what does not fit now waits.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when too much waits already; the channel's errors.
    pub(super) fn send(
        &mut self,
        channel: &Channel,
        message: M,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), ipc::Error> {
        if self.waiting.len() >= OUTBOX_COUNT_MAX {
            return Err(ipc::Error::WouldBlock);
        }
        self.waiting.push_back((message, descriptors));
        self.flush(channel)
    }

    /// Sends what waits, as far as there is room.
    ///
    /// # Errors
    ///
    /// The channel's errors but `WouldBlock`.
    pub(super) fn flush(&mut self, channel: &Channel) -> Result<(), ipc::Error> {
        while let Some((message, descriptors)) = self.waiting.front() {
            let fds: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            match channel.try_send(message, &fds) {
                Ok(()) => self.waiting.pop_front(),
                Err(ipc::Error::WouldBlock) => return Ok(()),
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::message::{ModelIndex, ToGateway};

    #[test]
    fn pauses_double_and_five_deaths_in_a_minute_end_it() {
        let start = Instant::now();
        let mut backoff = Backoff::default();
        let mut now = start;
        for pause_ms in [100, 200, 400, 800] {
            assert_eq!(backoff.died(now), Some(now + Duration::from_millis(pause_ms)));
            now += Duration::from_secs(10);
        }
        assert_eq!(backoff.died(now), None);
    }

    #[test]
    fn who_is_accused_again_and_again_is_started_ever_more_slowly_and_never_given_up() {
        let start = Instant::now();
        let (mut backoff, mut now) = (Backoff::default(), start);
        // Accused as soon as it is there, for an hour.
        let mut starts = 0;
        while now < start + Duration::from_secs(3600) {
            now = backoff.accused(now);
            starts += 1;
        }
        assert!((60..=6 * 60).contains(&starts), "{starts} starts in an hour");
        assert!(backoff.died(now).is_some(), "no accusation counts as a death");
    }

    #[test]
    fn deaths_far_apart_do_not_count_together() {
        let mut backoff = Backoff::default();
        let mut now = Instant::now();
        for _ in 0..20 {
            assert_eq!(backoff.died(now), Some(now + Duration::from_millis(100)));
            now += CRASH_LOOP_SPAN;
        }
    }

    #[test]
    fn what_a_slow_child_does_not_take_waits_in_order() {
        let (near, far) = Channel::pair().unwrap();
        let mut outbox = Outbox::new();
        let message = |n: u16| ToGateway::ModelDown { model: ModelIndex(n) };
        for n in 0..2000 {
            outbox.send(&near, message(n), Vec::new()).unwrap();
        }
        assert!(outbox.is_waiting());
        for n in 0..2000 {
            let received = loop {
                match far.try_recv::<ToGateway>() {
                    Ok((received, _)) => break received,
                    Err(_) => outbox.flush(&near).unwrap(),
                }
            };
            assert!(
                matches!(received, ToGateway::ModelDown { model: ModelIndex(got) } if got == n)
            );
        }
        for n in 0..u16::MAX {
            if outbox.send(&near, message(n), Vec::new()).is_err() {
                return;
            }
        }
        panic!("the outbox has no bound");
    }
}
