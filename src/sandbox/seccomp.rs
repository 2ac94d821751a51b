//! The seccomp filters that `build.rs` compiled from `policy/seccomp`.

use super::{AtStep, Error, Role, Step};
use crate::sys::process::install_filter;

/// Puts the filter of `role` on every thread; what no rule allows kills the process.
pub(super) fn install(role: Role) -> Result<(), Error> {
    if role == Role::Supervisor {
        // First, since the filter itself allows no further one.
        let threads = include_bytes!(concat!(env!("OUT_DIR"), "/supervisor_threads.bpf"));
        install_filter(threads).at(Step::Seccomp)?;
    }
    install_filter(program(role)).at(Step::Seccomp)
}

pub(super) fn program(role: Role) -> &'static [u8] {
    match role {
        Role::Gateway => include_bytes!(concat!(env!("OUT_DIR"), "/gateway.bpf")),
        Role::Worker => include_bytes!(concat!(env!("OUT_DIR"), "/worker.bpf")),
        Role::Loader => include_bytes!(concat!(env!("OUT_DIR"), "/loader.bpf")),
        Role::Opener => include_bytes!(concat!(env!("OUT_DIR"), "/opener.bpf")),
        Role::Supervisor => include_bytes!(concat!(env!("OUT_DIR"), "/supervisor.bpf")),
    }
}
