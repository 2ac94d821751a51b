//! Between fork and exec: the child builds its own jail, in the order of design part 1.
//!
//! The process is the first of its process namespace, holds every capability of its own user
//! namespace and none of the host's, and gives those up before it becomes its program.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{execveat, read, sethostname, setsid, write};

use super::message::{Failed, Stage};
use crate::ipc::Message;
use crate::sandbox::{self, Ids, Limits, Placed, Role, Step, assume, reset_signals};
use crate::sys::fork::ExitStatus;
use crate::sys::numa::{self, Node};
use crate::sys::process::{close_on_exec_from, duplicate_from, place_descriptor};
use crate::sys::processors;

/// The first descriptor of a child after the three standard ones: its control channel.
const DESCRIPTOR_FIRST: RawFd = 3;
/// Where sources are moved out of the way of their targets; above every target.
const DESCRIPTOR_ASIDE: RawFd = 64;
/// What the driver of a card is told: where its libraries are, to load all code at once, to keep none on a disk.
const DRIVER_ENVIRONMENT: [&CStr; 3] =
    [c"LD_LIBRARY_PATH=/lib", c"CUDA_MODULE_LOADING=EAGER", c"CUDA_CACHE_DISABLE=1"];

/// What a child needs to become its program.
pub(super) struct Setup<'a> {
    pub(super) role: Role,
    pub(super) ids: Ids,
    /// Whether supplementary groups can be dropped.
    pub(super) groups: bool,
    pub(super) nofile: u64,
    /// Whether it locks its memory.
    pub(super) locks_memory: bool,
    /// Where it runs and takes its memory; everywhere if none is named.
    pub(super) node: Option<&'a Node>,
    pub(super) program: BorrowedFd<'a>,
    /// What its root holds.
    pub(super) root: &'a [Placed],
    pub(super) null: BorrowedFd<'a>,
    /// Brings one byte when the ids are mapped; hangs up when the spawner is gone.
    pub(super) go: BorrowedFd<'a>,
    /// Takes a `Failed`; closes on exec.
    pub(super) report: BorrowedFd<'a>,
    /// For the program, from number 3 on.
    pub(super) descriptors: Vec<BorrowedFd<'a>>,
}

/// Becomes the program; comes back only to end.
pub(super) fn run(setup: &Setup<'_>) -> ExitStatus {
    // Out of the way of the program's descriptors, which may take its number.
    let Ok(report) = duplicate_from(setup.report, DESCRIPTOR_ASIDE) else {
        return ExitStatus::FAILURE;
    };
    let Err(failed) = become_program(setup);
    if let Ok(bytes) = failed.encode() {
        // Nobody is left to hear of a failure here; the exit code says it too.
        let _ = write(&report, &bytes);
    }
    ExitStatus::FAILURE
}

/// Names the stage in a system call's error.
trait AtStage<T> {
    fn at(self, stage: Stage) -> Result<T, Failed>;
}

impl<T> AtStage<T> for Result<T, Errno> {
    fn at(self, stage: Stage) -> Result<T, Failed> {
        self.map_err(|errno| Failed::new(stage, errno))
    }
}

fn in_sandbox(error: sandbox::Error) -> Failed {
    match error {
        sandbox::Error::Step { step, errno } => Failed::new(Stage::Sandbox(step), errno),
        // Landlock comes after exec.
        _ => Failed::new(Stage::Sandbox(Step::LandlockAbi), Errno::EPROTO),
    }
}

fn become_program(setup: &Setup<'_>) -> Result<Infallible, Failed> {
    let mut byte = [0];
    match read(setup.go, &mut byte).at(Stage::IdMap)? {
        1 => {}
        _ => return Err(Failed::new(Stage::IdMap, Errno::EPIPE)),
    }
    setsid().at(Stage::Session)?;
    umask(Mode::from_bits_truncate(0o777));
    reset_signals().map_err(in_sandbox)?;
    if let Some(node) = setup.node {
        keep_to(node).at(Stage::Node)?;
    }
    enter_root(setup)?;
    sethostname("cloister").at(Stage::HostName)?;
    let (program, go) = place_descriptors(setup).at(Stage::Descriptors)?;
    let limits = Limits::of(setup.role);
    limits.apply_before_exec(setup.nofile, setup.locks_memory).map_err(in_sandbox)?;
    assume(setup.ids, setup.groups).map_err(in_sandbox)?;
    die_with_the_spawner(go.as_fd())?;
    let role = setup.role.name();
    let name = CString::new(format!("cloister-{role}")).map_err(|_| Errno::EINVAL);
    let argument = CString::new(role).map_err(|_| Errno::EINVAL);
    let arguments = [name.at(Stage::Exec)?, argument.at(Stage::Exec)?];
    let environment: &[&CStr] = if setup.root.is_empty() { &[] } else { &DRIVER_ENVIRONMENT };
    execveat(program, c"", &arguments, environment, AtFlags::AT_EMPTY_PATH).at(Stage::Exec)
}

/// Runs beside one memory node and takes all memory from it, the program's too.
fn keep_to(node: &Node) -> Result<(), Errno> {
    processors::run_on(&node.processors)?;
    numa::bind_memory(node.number)
}

/// Leaves the host's root for one of its own.
fn enter_root(setup: &Setup<'_>) -> Result<(), Failed> {
    let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    mount(none, "/", none, private, none).at(Stage::Mounts)?;
    match setup.root {
        [] => sandbox::enter_empty().at(Stage::Root),
        placed => sandbox::enter_with(placed, setup.ids).at(Stage::Files),
    }
}

/// Puts `/dev/null` at 0, 1 and 2 and the program's descriptors from 3 on; all others close on exec.
/// Returns those that are still needed before exec.
fn place_descriptors(setup: &Setup<'_>) -> Result<(OwnedFd, OwnedFd), Errno> {
    let aside = |fd: BorrowedFd<'_>| duplicate_from(fd, DESCRIPTOR_ASIDE);
    let (program, go, null) = (aside(setup.program)?, aside(setup.go)?, aside(setup.null)?);
    let descriptors: Vec<OwnedFd> =
        setup.descriptors.iter().map(|&fd| aside(fd)).collect::<Result<_, _>>()?;
    for target in 0..DESCRIPTOR_FIRST {
        place_descriptor(null.as_fd(), target)?;
    }
    let mut target = DESCRIPTOR_FIRST;
    for descriptor in &descriptors {
        place_descriptor(descriptor.as_fd(), target)?;
        target += 1;
    }
    close_on_exec_from(target.cast_unsigned())?;
    Ok((program, go))
}

/// Asks to be killed with the spawner, then looks whether it is too late for that. Comes after the
/// change of user, which clears the signal.
fn die_with_the_spawner(go: BorrowedFd<'_>) -> Result<(), Failed> {
    let stage = Stage::Sandbox(Step::ParentDeathSignal);
    prctl::set_pdeathsig(Signal::SIGKILL).at(stage)?;
    let mut ends = [PollFd::new(go, PollFlags::empty())];
    let stage = Stage::Sandbox(Step::ParentCheck);
    poll(&mut ends, PollTimeout::ZERO).at(stage)?;
    match ends[0].revents() {
        Some(events) if events.is_empty() => Ok(()),
        _ => Err(Failed::new(stage, Errno::EPIPE)),
    }
}
