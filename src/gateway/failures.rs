//! Requests without a key, or with what cannot be one: counted, and told to the supervisor at most once
//! every [`INTERVAL`], so that nobody can flood it. Nothing of what was presented is kept.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::control::Control;
use super::locked;

/// Time between two words to the supervisor.
const INTERVAL: Duration = Duration::from_secs(1);

/// Keys that were refused here.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    count: u32,
    told: Option<Instant>,
    /// Whether a task waits to tell the rest.
    is_waiting: bool,
}

impl Failures {
    /// Counts one. The first is told at once, those that follow together.
    pub(super) fn note(self: &Arc<Self>, control: &Arc<Control>) {
        let due = {
            let mut state = locked(&self.0);
            state.count = state.count.saturating_add(1);
            if state.is_waiting {
                return;
            }
            let due = state.told.map(|told| told + INTERVAL).filter(|due| *due > Instant::now());
            state.is_waiting = due.is_some();
            due
        };
        let Some(due) = due else { return self.tell(control) };
        let (this, control) = (Arc::clone(self), Arc::clone(control));
        tokio::spawn(async move {
            tokio::time::sleep_until(due.into()).await;
            this.tell(&control);
        });
    }

    /// Tells what was counted, if anything was.
    pub(super) fn tell(&self, control: &Arc<Control>) {
        let count = {
            let mut state = locked(&self.0);
            (state.told, state.is_waiting) = (Some(Instant::now()), false);
            std::mem::take(&mut state.count)
        };
        if count > 0 {
            control.keys_malformed(count);
        }
    }
}
