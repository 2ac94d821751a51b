//! For how long records are kept: once a day, and when an operator asks.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::serve::Supervisor;
use crate::audit::retention::RETENTION_FLOOR_S;

/// Time between two looks for old records.
const INTERVAL: Duration = Duration::from_secs(86_400);

impl Supervisor {
    /// Removes what is older than `audit.retention_max`, at the start and once a day, some at a time.
    pub(super) fn keep_retention(&mut self, now: Instant) {
        let Some(keep_s) = self.config.audit_retention.max_s else { return };
        if self.ledger.pruning_due.is_some_and(|due| now < due) || self.ledger.is_failing() {
            return;
        }
        let pruned = self.ledger.prune(keep_s, false);
        if let Err(error) = &pruned {
            super::say(&format!("old records cannot be removed: {error}"));
        }
        let has_more = pruned.is_ok_and(|(_, has_more)| has_more);
        self.ledger.pruning_due = (!has_more).then(|| now + INTERVAL);
    }

    /// Removes what is older than the operator says.
    pub(super) fn prune(&mut self, keep_s: u64, is_forced: bool) -> Value {
        let min_s = self.config.audit_retention.min_s;
        if keep_s < RETENTION_FLOOR_S && !is_forced {
            return json!({ "error": "less than six months needs --force" });
        }
        if keep_s < min_s && !is_forced {
            return json!({ "error": format!(
                "records are kept for {} days at least (audit.retention_min); lower that, or use --force",
                min_s / 86_400
            ) });
        }
        match self.ledger.prune(keep_s, is_forced) {
            Ok((removed, has_more)) => json!({ "removed": removed, "has_more": has_more }),
            Err(error) => json!({ "error": error.to_string() }),
        }
    }
}
