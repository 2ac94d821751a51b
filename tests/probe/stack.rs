//! Which filters lie on each other: those of a process, and on top of them that of a kind of its threads.
//!
//! The probe compiles and runs them, the tests hold what it tried against the policy: both by this one rule.

use cloister::cli::doctor::policy::Filter;
use cloister::sandbox::{Role, Thread};

/// Whether a filter is in the stack of a process, or of a kind of its threads if one is named.
pub(crate) fn is_in(filter: &Filter, role: Role, thread: Option<Thread>) -> bool {
    match (&filter.thread, thread) {
        (None, _) => filter.process == role.name(),
        (Some(kind), Some(thread)) => {
            filter.process == thread.role().name() && kind == thread.name()
        }
        (Some(_), None) => false,
    }
}
