//! Landlock: no file for a child, its own folders for the supervisor; never best effort. A worker with layers on a
//! card keeps what the spawner put into its root (`root.rs`), until its filter closes.
//!
//! All rights that kernel and crate know are handled, so that what no rule grants is denied: TCP from
//! ABI 4 on, scopes from 6, sockets by their path from 9. UDP, from 10, is a ruleset of its own, since the
//! crate ends at 9. The network namespace and seccomp deny the same on older kernels, and `Sandboxed` says
//! what landlock added.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
};

use nix::errno::Errno;

use super::{AtStep, Error, Role, Step};
use crate::sys::process::{deny_udp, landlock_abi};

/// The oldest ABI that is served under (Linux 5.19): files cannot be moved between folders.
pub const LANDLOCK_ABI_FLOOR: u32 = 2;

/// The first ABI that knows of UDP.
const LANDLOCK_ABI_UDP: u32 = 10;

/// What may be done below a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read files and folders.
    Read,
    /// Read, write, make and remove files, folders and sockets.
    Write,
    /// Read and write files that are there, and control devices.
    Control,
}

/// One path that is kept.
#[derive(Clone, Copy, Debug)]
pub struct Allow<'a> {
    /// A folder, with all below it, or a file.
    pub path: &'a Path,
    /// What for.
    pub access: Access,
}

/// What landlock does here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) abi: u32,
    pub(super) denies_tcp: bool,
    pub(super) denies_udp: bool,
    pub(super) scopes: bool,
}

/// What a child keeps: nothing, but for the driver of a card its libraries and texts, its devices, and what the
/// kernel says of the process itself, which it reads, and until it is sealed writes below its own `/proc/self/task`.
pub(super) fn kept_by(role: Role) -> Vec<Allow<'static>> {
    let allow = |path, access| Allow { path: Path::new(path), access };
    let kept = match role {
        Role::WorkerGpu => vec![
            allow("/", Access::Read),
            allow("/dev", Access::Control),
            allow("/proc/self/task", Access::Control),
        ],
        _ => Vec::new(),
    };
    // What was not put there needs no right.
    kept.into_iter().filter(|allow| allow.path.exists()).collect()
}

/// Restricts this thread, and those it will make, to `allowed`.
pub(super) fn restrict(allowed: &[Allow<'_>]) -> Result<Facts, Error> {
    let kernel_abi = landlock_abi().map_err(|errno| match errno {
        Errno::EOPNOTSUPP => Error::LandlockOff { is_built_in: true },
        Errno::ENOSYS => Error::LandlockOff { is_built_in: false },
        errno => Error::Step { step: Step::LandlockAbi, errno },
    })?;
    if kernel_abi < LANDLOCK_ABI_FLOOR {
        return Err(Error::LandlockTooOld { abi: kernel_abi, floor: LANDLOCK_ABI_FLOOR });
    }
    let abi = known_abi(kernel_abi);
    let facts = Facts {
        abi: kernel_abi,
        denies_tcp: abi >= ABI::V4,
        denies_udp: kernel_abi >= LANDLOCK_ABI_UDP,
        scopes: abi >= ABI::V6,
    };
    let handled = AccessFs::from_all(abi);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(handled)
        .map_err(Error::Landlock)?;
    if facts.denies_tcp {
        ruleset = ruleset.handle_access(AccessNet::from_all(abi)).map_err(Error::Landlock)?;
    }
    if facts.scopes {
        ruleset = ruleset.scope(Scope::from_all(abi)).map_err(Error::Landlock)?;
    }
    let mut created = ruleset.create().map_err(Error::Landlock)?;
    for allow in allowed {
        let path = PathFd::new(allow.path).map_err(Error::Path)?;
        let mut rights = rights(allow.access) & handled;
        if !allow.path.is_dir() {
            rights &= AccessFs::from_file(abi);
        }
        created = created.add_rule(PathBeneath::new(path, rights)).map_err(Error::Landlock)?;
    }
    // Also sets `no_new_privs`.
    created.restrict_self().map_err(Error::Landlock)?;
    if facts.denies_udp {
        deny_udp().at(Step::LandlockUdp)?;
    }
    Ok(facts)
}

fn known_abi(kernel_abi: u32) -> ABI {
    match kernel_abi {
        0 | 1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        6 => ABI::V6,
        7 => ABI::V7,
        8 => ABI::V8,
        _ => ABI::V9,
    }
}

fn rights(access: Access) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    match access {
        Access::Read => read,
        Access::Control => read | AccessFs::WriteFile | AccessFs::IoctlDev,
        Access::Write => {
            read | AccessFs::WriteFile
                | AccessFs::Truncate
                | AccessFs::MakeReg
                | AccessFs::MakeDir
                | AccessFs::MakeSock
                | AccessFs::RemoveFile
                | AccessFs::RemoveDir
                | AccessFs::Refer
        }
    }
}
