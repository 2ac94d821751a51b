//! How fast a model came through opener, hash and loader, beside what this machine does at most.
//!
//! The limits are measured when a model is open, with the same file and libraries, if it was long enough for
//! the figure to mean something.

use std::fs::File;
use std::time::Duration;

use serde_json::{Value, json};

use super::opening::Opened;
use crate::package::opening_limits::{Effort, OpeningLimits};

/// Shortest model whose share is told, in bytes: a shorter one is there before all parts work at once.
const SHARE_LEN_MIN_BYTES: u64 = 256 << 20;

/// How fast a model was opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speed {
    len_bytes: u64,
    after: Duration,
    /// The most that this machine does, in bytes a second, where it was measured.
    limit: Option<f64>,
}

impl Speed {
    /// What `opened` took, which came from `file`.
    pub(super) fn of(opened: &Opened, file: &File, is_encrypted: bool) -> Self {
        let is_long = opened.len_bytes >= SHARE_LEN_MIN_BYTES;
        let limits = is_long.then(|| OpeningLimits::measure(file, is_encrypted, Effort::SHORT));
        // A figure that cannot be had is no reason not to serve.
        let limit = limits.and_then(Result::ok).map(|limits| limits.least());
        Self { len_bytes: opened.len_bytes, after: opened.hashed_after, limit }
    }

    /// For the operator, at the start.
    pub(super) fn line(&self) -> String {
        let share = self.share_percent();
        let share = share.map(|share| format!(": {share} % of what is possible"));
        format!(
            "opened {} bytes in {:.2} s, {:.2} GB/s{}",
            self.len_bytes,
            self.after.as_secs_f64(),
            self.rate() / 1e9,
            share.unwrap_or_default(),
        )
    }

    /// For `status`.
    pub(super) fn json(&self) -> Value {
        json!({
            "len_bytes": self.len_bytes,
            "ms": u64::try_from(self.after.as_millis()).unwrap_or(u64::MAX),
            "share_percent": self.share_percent(),
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    fn rate(&self) -> f64 {
        self.len_bytes as f64 / self.after.as_secs_f64().max(1e-9)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole percents of two rates, neither below 0"
    )]
    fn share_percent(&self) -> Option<u64> {
        self.limit.map(|limit| (self.rate() / limit * 100.0).round() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_the_limit_and_told_where_there_is_one() {
        let after = Duration::from_millis(500);
        let speed = |limit| Speed { len_bytes: 600_000_000, after, limit };
        assert_eq!(
            speed(Some(1.5e9)).line(),
            "opened 600000000 bytes in 0.50 s, 1.20 GB/s: 80 % of what is possible"
        );
        assert_eq!(speed(None).line(), "opened 600000000 bytes in 0.50 s, 1.20 GB/s");
        let told = json!({ "len_bytes": 600_000_000_u64, "ms": 500, "share_percent": 80 });
        assert_eq!(speed(Some(1.5e9)).json(), told);
        assert_eq!(speed(None).json()["share_percent"], Value::Null);
    }
}
