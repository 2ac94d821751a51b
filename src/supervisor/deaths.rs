//! The ends of children on the record: what the supervisor saw, and what the child said before.

use super::serve::Supervisor;
use crate::audit::Event;
use crate::audit::record::{DeathFacts, PanicFacts, ViolationFacts};
use crate::spawner::message::Exit;

impl Supervisor {
    /// Records the end of a child, or that it could not be started; while Cloister stops, only one that its
    /// filter killed.
    pub(super) fn record_death(
        &mut self,
        child: String,
        exit: Option<Exit>,
        cause: String,
        panic: Option<String>,
    ) {
        self.ledger.append_all(exit.and_then(|exit| violation(&child, exit)));
        if self.stop.is_some() {
            return;
        }
        super::say(&format!("{child}: {}", panic.as_ref().unwrap_or(&cause)));
        let declared = panic.map(|panic| PanicFacts { panic });
        self.ledger.append(Event::ChildDied { observed: DeathFacts { child, cause }, declared });
    }
}

/// The record of a child that the kernel killed for a system call which its filter does not allow.
pub(super) fn violation(child: &str, exit: Exit) -> Option<Event> {
    let child = child.to_owned();
    let event = |signal| Event::SandboxViolation { observed: ViolationFacts { child, signal } };
    exit.violation().map(event)
}
