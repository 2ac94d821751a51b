//! Making, killing and reaping children, by the kernel: a copy in new namespaces, its ids mapped from here.

use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::child::{self, Setup};
use super::message::{Exit, Failed, Stage};
use super::serve::{Hands, Start};
use super::{Opened, Profile};
use crate::ipc::Message;
use crate::sandbox::{Ids, Placed};
use crate::sys::fork::fork_into;
use crate::sys::process;

/// The programs and what every child of them needs.
pub(super) struct Kernel<'a> {
    pub(super) profile: Profile,
    pub(super) programs: &'a [Opened],
    pub(super) null: &'a File,
    pub(super) locks_memory: bool,
    pub(super) root: &'a [Placed],
}

impl Hands for Kernel<'_> {
    fn start(&self, start: &Start<'_>, fds: &[OwnedFd]) -> Result<OwnedFd, Failed> {
        let program = self.programs.iter().find(|program| program.offer.role == start.role);
        let program = program.ok_or(Failed::new(Stage::Command, Errno::ENOENT))?;
        let no_pipe = |error: std::io::Error| {
            let errno = error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw);
            Failed::new(Stage::Namespaces, errno)
        };
        let (go_reader, go_writer) = pipe().map_err(no_pipe)?;
        let (report_reader, report_writer) = pipe().map_err(no_pipe)?;
        let setup = Setup {
            role: start.role,
            ids: start.ids,
            groups: self.profile == Profile::Full,
            nofile: program.nofile,
            locks_memory: self.locks_memory,
            node: start.node,
            program: program.file.as_fd(),
            root: self.root,
            null: self.null.as_fd(),
            go: go_reader.as_fd(),
            report: report_writer.as_fd(),
            descriptors: fds.iter().map(AsFd::as_fd).collect(),
        };
        let mut keep: Vec<BorrowedFd<'_>> = vec![setup.program, setup.null, setup.go, setup.report];
        keep.extend(&setup.descriptors);
        let (pid, pidfd) = fork_into(namespaces(), &keep, || child::run(&setup))
            .map_err(|errno| Failed::new(Stage::Namespaces, errno))?;
        drop((keep, setup));
        drop((go_reader, report_writer));
        match self.finish(pid, start.ids, go_writer, report_reader) {
            Ok(()) => Ok(pidfd),
            Err(failed) => {
                let _ = self.kill(&pidfd);
                self.bury(&pidfd);
                Err(failed)
            }
        }
    }

    fn kill(&self, child: &OwnedFd) -> Result<(), Errno> {
        match process::pidfd_send_signal(child.as_fd(), libc::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn reap(&self, child: &OwnedFd) -> Result<Option<Exit>, Errno> {
        match waitid(Id::PIDFd(child.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(Exit::Code(code))),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(Exit::Signal(signal as i32))),
            Ok(_) | Err(Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn bury(&self, child: &OwnedFd) {
        let _ = waitid(Id::PIDFd(child.as_fd()), WaitPidFlag::WEXITED);
    }
}

impl Kernel<'_> {
    /// Maps the child's ids, lets it go on and reads what it reports: nothing once it is its
    /// program, since the pipe closes on exec.
    fn finish(
        &self,
        pid: Pid,
        ids: Ids,
        mut go: PipeWriter,
        mut report: PipeReader,
    ) -> Result<(), Failed> {
        let no_map = |errno| Failed::new(Stage::IdMap, errno);
        self.map_ids(pid, ids).map_err(no_map)?;
        go.write_all(&[1]).map_err(|_| no_map(Errno::EPIPE))?;
        let mut bytes = Vec::new();
        let unread = Failed::new(Stage::Exec, Errno::EIO);
        report.by_ref().take(64).read_to_end(&mut bytes).map_err(|_| unread)?;
        if bytes.is_empty() { Ok(()) } else { Err(Failed::decode(&bytes).unwrap_or(unread)) }
    }

    fn map_ids(&self, pid: Pid, ids: Ids) -> Result<(), Errno> {
        let write = |file: &str, text: &str| {
            fs::write(format!("/proc/{pid}/{file}"), text)
                .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
        };
        if self.profile == Profile::Evaluation {
            // The kernel's condition for a plain user who maps a group.
            write("setgroups", "deny")?;
        }
        write("gid_map", &format!("{0} {0} 1", ids.gid))?;
        write("uid_map", &format!("{0} {0} 1", ids.uid))
    }
}

/// The namespaces of every child.
fn namespaces() -> CloneFlags {
    CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP
}
