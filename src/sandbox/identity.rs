//! Another user for good: no groups, no capabilities, no way back.
//!
//! Order matters: the bounding set can be emptied only with a capability, and the user is changed
//! while there is one to do it with. The parent-death signal is cleared by it, so it comes after.

use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::{AtStep, Error, Step};
use crate::sys::process;

/// A user and a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ids {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

/// Becomes `ids` without any capability; `groups` says whether the supplementary groups can be
/// dropped (an unprivileged user namespace forbids it).
///
/// # Errors
///
/// The first step that failed.
pub fn assume(ids: Ids, groups: bool) -> Result<(), Error> {
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    if groups {
        setgroups(&[]).at(Step::Groups)?;
    }
    setresgid(gid, gid, gid).at(Step::Group)?;
    process::drop_bounding_capabilities(&[]).at(Step::BoundingCapabilities)?;
    setresuid(uid, uid, uid).at(Step::User)?;
    process::keep_capabilities(&[]).at(Step::Capabilities)?;
    prctl::set_no_new_privs().at(Step::NoNewPrivileges)
}

/// Unblocks every signal.
///
/// # Errors
///
/// What the kernel says.
pub fn reset_signals() -> Result<(), Error> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).at(Step::Signals)
}
