//! How long a domain's prefixes outlive its last request. When, never what: that is the engine's.

use std::time::{Duration, Instant};

use crate::engine::CacheDomain;

/// Time between two looks when nothing is kept.
const IDLE: Duration = Duration::from_secs(3600);

/// The domains of which something may be kept.
#[derive(Debug)]
pub(super) struct Prefixes {
    /// Time that prefixes are kept after a domain's last request.
    keep: Duration,
    last: Vec<(CacheDomain, Instant)>,
}

impl Prefixes {
    /// Keeps prefixes for this time.
    #[must_use]
    pub(super) fn new(keep: Duration) -> Self {
        Self { keep, last: Vec::new() }
    }

    /// A domain has a request at `now`.
    pub(super) fn used(&mut self, domain: CacheDomain, now: Instant) {
        match self.last.iter_mut().find(|(one, _)| *one == domain) {
            Some((_, last)) => *last = now,
            None => self.last.push((domain, now)),
        }
    }

    /// A domain is no longer of interest.
    pub(super) fn forget(&mut self, domain: CacheDomain) {
        self.last.retain(|(one, _)| *one != domain);
    }

    /// Takes a domain whose time is over.
    #[must_use]
    pub(super) fn take_old(&mut self, now: Instant) -> Option<CacheDomain> {
        let is_old = |last: &Instant| now.saturating_duration_since(*last) >= self.keep;
        let at = self.last.iter().position(|(_, last)| is_old(last))?;
        Some(self.last.swap_remove(at).0)
    }

    /// How long nothing will be old.
    #[must_use]
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let left = self
            .last
            .iter()
            .map(|(_, last)| self.keep.saturating_sub(now.saturating_duration_since(*last)));
        left.min().unwrap_or(IDLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_kept_from_its_last_request_on() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let [one, other] = [CacheDomain([1; 16]), CacheDomain([2; 16])];
        let mut prefixes = Prefixes::new(10 * second);
        assert_eq!(prefixes.wait(start), IDLE);
        prefixes.used(one, start);
        prefixes.used(other, start + second);
        assert_eq!(prefixes.wait(start + 2 * second), 8 * second);
        prefixes.used(one, start + 5 * second);
        assert_eq!(prefixes.take_old(start + 10 * second), None);
        assert_eq!(prefixes.take_old(start + 11 * second), Some(other));
        assert_eq!(prefixes.take_old(start + 11 * second), None);
        assert_eq!(prefixes.wait(start + 20 * second), Duration::ZERO);
        prefixes.forget(one);
        assert_eq!(prefixes.wait(start + 20 * second), IDLE);
    }
}
