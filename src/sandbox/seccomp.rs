//! The seccomp filters that `build.rs` compiled from `policy/seccomp`.
//!
//! A process's filter is on all of its threads. On top of it, each thread puts the filter of its kind, which
//! lets less through and no further filter. The kernel takes the stricter of two answers.

use super::{AtStep, Error, Role, Step};
use crate::sys::process::install_filter;

/// A filter, as the build left it.
macro_rules! compiled {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".bpf"))
    };
}

/// A kind of thread, with a filter of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Thread {
    /// The worker's main thread: the scheduler, and a share of the arithmetic.
    WorkerEngine,
    /// The worker's other compute threads.
    WorkerCompute,
    /// The worker's thread that renders templates and tokenizes.
    WorkerText,
    /// The worker's thread that reads and writes its channels.
    WorkerLink,
    /// The main thread of a worker with layers on a card: the scheduler, and every call of the driver.
    WorkerGpuEngine,
    /// The loader's main thread.
    LoaderMain,
    /// The loader's threads that pack.
    LoaderCompute,
    /// The opener's main thread: talks, decrypts and fills segments.
    OpenerMain,
    /// The opener's other threads, which decrypt.
    OpenerDecrypt,
    /// The supervisor's only thread, once the models are open.
    SupervisorServing,
}

impl Thread {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::WorkerEngine,
        Self::WorkerCompute,
        Self::WorkerText,
        Self::WorkerLink,
        Self::WorkerGpuEngine,
        Self::LoaderMain,
        Self::LoaderCompute,
        Self::OpenerMain,
        Self::OpenerDecrypt,
        Self::SupervisorServing,
    ];

    /// Whose it is.
    #[must_use]
    pub const fn role(self) -> Role {
        match self {
            Self::WorkerEngine | Self::WorkerCompute | Self::WorkerText | Self::WorkerLink => {
                Role::Worker
            }
            Self::WorkerGpuEngine => Role::WorkerGpu,
            Self::LoaderMain | Self::LoaderCompute => Role::Loader,
            Self::OpenerMain | Self::OpenerDecrypt => Role::Opener,
            Self::SupervisorServing => Role::Supervisor,
        }
    }

    /// Whether a process of `role` has such threads: a worker with layers on a card has those of a worker, but
    /// for the one that calls the driver.
    #[must_use]
    pub fn is_of(self, role: Role) -> bool {
        let is_shared = matches!(self, Self::WorkerCompute | Self::WorkerText | Self::WorkerLink);
        self.role() == role || (is_shared && role == Role::WorkerGpu)
    }

    /// The name of its filter, behind that of its process.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WorkerEngine | Self::WorkerGpuEngine => "engine",
            Self::WorkerCompute | Self::LoaderCompute => "compute",
            Self::WorkerText => "text",
            Self::WorkerLink => "link",
            Self::LoaderMain | Self::OpenerMain => "main",
            Self::OpenerDecrypt => "decrypt",
            Self::SupervisorServing => "serving",
        }
    }
}

/// Puts the filter of `role` on every thread; what no rule allows kills the process.
pub(super) fn install(role: Role) -> Result<(), Error> {
    let threads: Option<&[u8]> = match role {
        Role::Supervisor => Some(compiled!("supervisor_threads")),
        Role::Spawner => Some(compiled!("spawner_threads")),
        Role::SpawnerGpu => Some(compiled!("spawner-gpu_threads")),
        _ => None,
    };
    // First, since it answers a call that the next one lets through.
    if let Some(threads) = threads {
        install_filter(threads, true).at(Step::Seccomp)?;
    }
    install_filter(program(role), true).at(Step::Seccomp)
}

/// Puts the filter of its kind on the calling thread.
pub(super) fn narrow(thread: Thread) -> Result<(), Error> {
    install_filter(thread_program(thread), false).at(Step::ThreadSeccomp)
}

pub(super) fn program(role: Role) -> &'static [u8] {
    match role {
        Role::Gateway => compiled!("gateway"),
        Role::Worker => compiled!("worker"),
        Role::WorkerGpu => compiled!("worker-gpu"),
        Role::Loader => compiled!("loader"),
        Role::Opener => compiled!("opener"),
        Role::Supervisor => compiled!("supervisor"),
        Role::Spawner => compiled!("spawner"),
        Role::SpawnerGpu => compiled!("spawner-gpu"),
    }
}

pub(super) fn thread_program(thread: Thread) -> &'static [u8] {
    match thread {
        Thread::WorkerEngine => compiled!("worker.engine"),
        Thread::WorkerCompute => compiled!("worker.compute"),
        Thread::WorkerText => compiled!("worker.text"),
        Thread::WorkerLink => compiled!("worker.link"),
        Thread::WorkerGpuEngine => compiled!("worker-gpu.engine"),
        Thread::LoaderMain => compiled!("loader.main"),
        Thread::LoaderCompute => compiled!("loader.compute"),
        Thread::OpenerMain => compiled!("opener.main"),
        Thread::OpenerDecrypt => compiled!("opener.decrypt"),
        Thread::SupervisorServing => compiled!("supervisor.serving"),
    }
}
