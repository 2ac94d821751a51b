//! The spawner's loop: one command after the other, and the ends of children.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::child::{self, Setup};
use super::message::{ChildId, Exit, Failed, FromSpawner, Stage, ToSpawner};
use super::{Opened, Profile};
use crate::ipc::{self, Channel, Message};
use crate::sandbox::{Ids, Role};
use crate::sys::fork::fork_into;
use crate::sys::numa::{self, Node};
use crate::sys::process;

/// Most children at once.
const CHILDREN_COUNT_MAX: usize = 64;

/// What the spawner has for as long as it runs.
pub(super) struct Spawner<'a> {
    profile: Profile,
    programs: &'a [Opened],
    null: &'a File,
    channel: &'a Channel,
    nodes: Vec<Node>,
    children: BTreeMap<ChildId, OwnedFd>,
}

impl<'a> Spawner<'a> {
    pub(super) fn new(
        profile: Profile,
        programs: &'a [Opened],
        null: &'a File,
        channel: &'a Channel,
    ) -> Self {
        Self { profile, programs, null, channel, nodes: numa::nodes(), children: BTreeMap::new() }
    }

    /// Serves until the supervisor's end closes or says something wrong, then kills all children.
    pub(super) fn run(mut self) {
        while self.turn().is_ok() {}
        for pidfd in self.children.values() {
            // One that just ended is as good as killed.
            let _ = process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
        for pidfd in self.children.values() {
            let _ = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED);
        }
    }

    /// Waits for a command or an end and answers it.
    fn turn(&mut self) -> Result<(), ipc::Error> {
        let mut ends = vec![PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
        let pidfds = self.children.values();
        ends.extend(pidfds.map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)));
        match poll(&mut ends, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(ipc::Error::Io { action: "wait", errno }),
        }
        let is_ready = |end: &PollFd<'_>| end.any().unwrap_or(true);
        let commanded = is_ready(&ends[0]);
        let ended: Vec<ChildId> = self
            .children
            .keys()
            .zip(&ends[1..])
            .filter(|(_, end)| is_ready(end))
            .map(|(&child, _)| child)
            .collect();
        for child in ended {
            self.reap(child)?;
        }
        if commanded {
            let (command, fds) = self.channel.recv()?;
            self.obey(command, &fds)?;
        }
        Ok(())
    }

    fn reap(&mut self, child: ChildId) -> Result<(), ipc::Error> {
        let Some(pidfd) = self.children.get(&child) else { return Ok(()) };
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        let exit = match waitid(Id::PIDFd(pidfd.as_fd()), flags) {
            Ok(WaitStatus::Exited(_, code)) => Exit::Code(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => Exit::Signal(signal as i32),
            Ok(_) | Err(Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(ipc::Error::Io { action: "reap", errno }),
        };
        self.children.remove(&child);
        self.channel.send(&FromSpawner::Exited { child, exit }, &[])
    }

    fn obey(&mut self, command: ToSpawner, fds: &[OwnedFd]) -> Result<(), ipc::Error> {
        match command {
            ToSpawner::Spawn { child, role, index, node, .. } => {
                match self.spawn(child, (role, index), node, fds) {
                    Ok(pidfd) => {
                        self.channel.send(&FromSpawner::Spawned { child }, &[pidfd.as_fd()])?;
                        self.children.insert(child, pidfd);
                        Ok(())
                    }
                    Err(failed) => self.channel.send(&FromSpawner::Failed { child, failed }, &[]),
                }
            }
            ToSpawner::Kill { child } => {
                if let Some(pidfd) = self.children.get(&child) {
                    match process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
                        Ok(()) | Err(Errno::ESRCH) => {}
                        Err(errno) => return Err(ipc::Error::Io { action: "kill", errno }),
                    }
                }
                Ok(())
            }
        }
    }

    /// Starts a child and waits until its program runs.
    fn spawn(
        &self,
        child: ChildId,
        (role, index): (Role, u16),
        node: Option<u16>,
        fds: &[OwnedFd],
    ) -> Result<OwnedFd, Failed> {
        let refused = |errno| Failed::new(Stage::Command, errno);
        if self.children.contains_key(&child) {
            return Err(refused(Errno::EEXIST));
        }
        if self.children.len() >= CHILDREN_COUNT_MAX {
            return Err(refused(Errno::EAGAIN));
        }
        let program = self.programs.iter().find(|program| program.role == role);
        let program = program.ok_or(refused(Errno::ENOENT))?;
        if index >= program.count {
            return Err(refused(Errno::ERANGE));
        }
        let uid = match self.profile {
            Profile::Full => program.ids.uid.checked_add(u32::from(index)),
            Profile::Evaluation => Some(program.ids.uid),
        };
        let ids = Ids { uid: uid.ok_or(refused(Errno::ERANGE))?, gid: program.ids.gid };
        let node = match node {
            None => None,
            Some(number) => {
                let node = self.nodes.iter().find(|node| node.number == number);
                Some(node.ok_or(refused(Errno::ENODEV))?)
            }
        };
        self.start(program, ids, node, fds)
    }

    fn start(
        &self,
        program: &Opened,
        ids: Ids,
        node: Option<&Node>,
        fds: &[OwnedFd],
    ) -> Result<OwnedFd, Failed> {
        let no_pipe = |error: std::io::Error| {
            let errno = error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw);
            Failed::new(Stage::Namespaces, errno)
        };
        let (go_reader, go_writer) = pipe().map_err(no_pipe)?;
        let (report_reader, report_writer) = pipe().map_err(no_pipe)?;
        let setup = Setup {
            role: program.role,
            ids,
            groups: self.profile == Profile::Full,
            nofile: program.nofile,
            node,
            program: program.file.as_fd(),
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
        match self.finish(pid, ids, go_writer, report_reader) {
            Ok(()) => Ok(pidfd),
            Err(failed) => {
                let _ = process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
                let _ = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED);
                Err(failed)
            }
        }
    }

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
