//! Tries one forbidden thing, named by its argument, inside the real jail or outside of it.
//!
//! ```text
//! probe jail ROLE full|begun ATTEMPT      as a child of the real spawner; prints how it ended
//! probe free ATTEMPT                      in this process; prints the same
//! probe look ROLE                         a sealed child's status and descriptors, from outside
//! probe sweep ROLE                        every system call number, each in a child of its own
//! probe rules ROLE [THREAD]               the compiled filters alone, against their policy file
//! probe programs COUNT                    random filters, by the kernel and by the interpreter
//! probe orphan ROLE                       a sealed child whose spawner is then killed
//! probe trap NAME                         a trap of the start, in this process
//! ```
//!
//! `full` is the closed sandbox; `begun` is all but seccomp, to see that the other walls stand by
//! themselves. The same file is started by the spawner as the child (`cloister-ROLE ROLE`).

#![expect(unsafe_code, reason = "tries system calls as an attacker would")]
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

mod attempts;
mod bpf;
mod programs;
mod rules;
mod stack;
mod traps;

use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use cloister::ipc::message::FromLoader;
use cloister::ipc::{Channel, Error};
use cloister::sandbox::{self, Ids, Memory, Placed, Role, Thread};
use cloister::spawner::message::{FromSpawner, ToSpawner};
use cloister::spawner::{self, Config, Profile, Program, Started};
use cloister::sys::process::{inherited_descriptor, pidfd_send_signal};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Users of the test's children, as the installed service would have its own.
const FIRST_UID: u32 = 61_200;
/// More than the probe needs, fewer than would hide a leak.
const NOFILE: u64 = 24;
/// Room for the probe and its attempts, and for nothing like `take-memory`.
const MEMORY: Memory =
    Memory { threads: 3, mapped_len_bytes: 0, more_len_bytes: 16 << 20, written_len_bytes: None };
/// Past the last system call of this year's kernels.
const CALL_NUMBER_MAX: u32 = 480;
const ROLES: [Role; 5] = [Role::Gateway, Role::Worker, Role::Loader, Role::Opener, Role::WorkerGpu];
/// What the root of a worker with a card holds here: a library, a device that is everywhere, a text.
const PLACED: [&str; 3] = ["/lib/library", "/dev/null", "/proc/driver/nvidia/params"];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [name, role] if name == format!("cloister-{role}") => child(role_of(role)),
        [_, "jail", role, walls, attempt] => {
            println!("{}", Jail::build(role_of(role)).attempt(role_of(role), walls, attempt));
        }
        [_, "free", attempt] => println!("{}", free(attempt)),
        [_, "sweep", role] => sweep(role_of(role)),
        [_, "rules", role, ref thread @ ..] => {
            let others = [Role::Supervisor, Role::Spawner, Role::SpawnerGpu];
            let mut roles = ROLES.into_iter().chain(others);
            let role = roles.find(|it| it.name() == role).unwrap();
            let named = |it: &Thread| it.is_of(role) && thread == [it.name()];
            rules::check(role, Thread::ALL.into_iter().find(named));
        }
        [_, "programs", count] => programs::check(count.parse().unwrap()),
        [_, "look", role] => look(role_of(role)),
        [_, "orphan", role] => orphan(role_of(role)),
        [_, "trap", name] => traps::show(name),
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

fn role_of(name: &str) -> Role {
    ROLES.into_iter().find(|role| role.name() == name).unwrap()
}

/// The wire has no message for tests; this one carries a text in both directions.
fn text(check: impl Into<String>) -> FromLoader {
    FromLoader::Refused { check: check.into() }
}

fn receive(channel: &Channel) -> Result<String, Error> {
    match channel.recv()?.0 {
        FromLoader::Refused { check } => Ok(check),
        _ => panic!("not a text"),
    }
}

/// Enters the sandbox as the real children do, then tries what it is told.
fn child(role: Role) {
    sandbox::report_panics(|_, _| {});
    // As the spawner left it, before the sandbox sets its own.
    let death_signal = traps::own_death_signal();
    let entries = fs::read_dir("/").unwrap().count();
    let control = Channel::new(inherited_descriptor(3).unwrap());
    let begun = sandbox::begin(role, &control).unwrap();
    // Threads as of a worker: each must be under the filter too, and past its start, whose system
    // calls the filter does not know.
    let running = Arc::new(Barrier::new(3));
    for _ in 0..2 {
        let running = Arc::clone(&running);
        thread::spawn(move || {
            running.wait();
            loop {
                thread::park();
            }
        });
    }
    running.wait();
    let walls = receive(&control).unwrap();
    // The driver of a card may have written files until here.
    let written_len_bytes = (role == Role::WorkerGpu).then_some(0);
    let memory = Memory { written_len_bytes, ..MEMORY };
    let sandboxed = (walls == "full").then(|| begun.seal(memory).unwrap());
    let abi = sandboxed.as_ref().map_or(0, |sandboxed| sandboxed.landlock_abi);
    let found = format!("death signal {death_signal}, root of {entries} entries");
    let ready = format!("landlock {abi}, {found}");
    control.send(&text(ready), &[]).unwrap();
    let attempt = receive(&control).unwrap();
    let outcome = attempts::run(&attempt);
    control.send(&text(outcome), &[]).unwrap();
}

/// A spawner, and what it is to keep its children away from.
struct Jail {
    started: Started,
    folder: Folder,
}

fn placed(library: &std::path::Path) -> Vec<Placed> {
    let [at, device, text] = PLACED.map(PathBuf::from);
    let (from, said) = (library.to_owned(), b"ModifyDeviceFiles: 0\n".to_vec());
    vec![
        Placed::Library { from, at },
        Placed::Device(device),
        Placed::Text { at: text, text: said },
    ]
}

/// A child of the spawner.
struct Inmate {
    control: Channel,
    pid: i32,
    /// What it said of itself when its walls stood.
    ready: String,
}

/// The supervisor's folder, with sockets that would answer.
struct Folder {
    path: PathBuf,
    _listeners: [UnixListener; 2],
}

impl Folder {
    fn make() -> Self {
        let name = format!("cloister-probe-{}", std::process::id());
        let path = env::temp_dir().join(&name);
        fs::create_dir(&path).unwrap();
        let by_path = UnixListener::bind(path.join("control.sock")).unwrap();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let abstract_one = UnixListener::bind_addr(&address).unwrap();
        Self { path, _listeners: [by_path, abstract_one] }
    }

    /// Fills in what an attempt aims at: `SOCKET`, `ABSTRACT`, `PID`, `OWN`.
    fn aim(&self, attempt: &str, pid: u32, own: &str) -> String {
        attempt
            .replace("SOCKET", self.path.join("control.sock").to_str().unwrap())
            .replace("ABSTRACT", self.path.file_name().unwrap().to_str().unwrap())
            .replace("PID", &pid.to_string())
            .replace("OWN", own)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Jail {
    /// The spawner of such a child.
    fn build(of: Role) -> Self {
        let path = env::current_exe().unwrap();
        let program = |(index, role): (usize, Role)| {
            let uid = FIRST_UID + 10 * u32::try_from(index).unwrap();
            let ids = Ids { uid, gid: uid };
            Program { role, path: path.clone(), ids, count: 2, nofile: NOFILE }
        };
        let has_card = |role: Role| role == Role::WorkerGpu;
        let offered = ROLES.into_iter().enumerate();
        let offered = offered.filter(|(_, role)| has_card(*role) == has_card(of));
        let programs = offered.map(program).collect();
        let root = if has_card(of) { placed(&path) } else { Vec::new() };
        let profile = Profile::of_caller();
        let started =
            spawner::start(&Config { profile, programs, locks_memory: false, root }).unwrap();
        Self { started, folder: Folder::make() }
    }

    /// Starts a child behind `walls` and waits until they stand.
    fn admit(&self, role: Role, walls: &str) -> Inmate {
        let (control, theirs) = Channel::pair().unwrap();
        let spawn = ToSpawner::Spawn { child: 1, role, index: 1, descriptors: 1, node: None };
        self.started.channel.send(&spawn, &[theirs.as_fd()]).unwrap();
        drop(theirs);
        let (answer, fds) = self.started.channel.recv::<FromSpawner>().unwrap();
        assert_eq!(answer, FromSpawner::Spawned { child: 1 });
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fds[0].as_raw_fd()));
        let info = info.unwrap();
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap();
        let pid = pid.trim().parse().unwrap();
        control.send(&text(walls), &[]).unwrap();
        let ready = receive(&control).unwrap_or_else(|_| format!("died: {}", self.exit()));
        assert!(ready.starts_with("landlock"), "{ready}");
        Inmate { control, pid, ready }
    }

    fn exit(&self) -> String {
        match self.started.channel.recv().unwrap().0 {
            FromSpawner::Exited { exit, .. } => format!("{exit:?}"),
            other => format!("{other:?}"),
        }
    }

    /// Has a new child try `attempt`; the child is gone afterwards.
    fn attempt(&self, role: Role, walls: &str, attempt: &str) -> String {
        let inmate = self.admit(role, walls);
        let attempt = self.folder.aim(attempt, std::process::id(), "3");
        inmate.control.send(&text(attempt), &[]).unwrap();
        let outcome = receive(&inmate.control);
        let exit = self.exit();
        outcome.unwrap_or(exit)
    }
}

/// Tries it here, where nothing forbids it.
fn free(attempt: &str) -> String {
    if attempt.ends_with("exec") {
        // May not come back to clean up.
        return attempts::run(attempt);
    }
    let folder = Folder::make();
    if attempt.ends_with("mount") {
        // A view of the mounts of its own, so that the host's stay as they are.
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    }
    let mut victim = Command::new("sleep").arg("60").spawn().unwrap();
    let attempt = folder.aim(attempt, victim.id(), "new");
    let outcome = attempts::run(&attempt);
    victim.kill().unwrap();
    victim.wait().unwrap();
    outcome
}

/// Prints the number of every system call that does not kill a sealed child at once.
fn sweep(role: Role) {
    let jail = Jail::build(role);
    // `exit` ends one thread, and the others would keep the child for ever.
    for number in (0..=CALL_NUMBER_MAX).filter(|&number| i64::from(number) != libc::SYS_exit) {
        let outcome = jail.attempt(role, "full", &format!("call:{number}"));
        if outcome != "Signal(31)" {
            println!("{number} {outcome}");
        }
    }
}

/// Prints what the kernel says of every thread of a sealed child, and its descriptors.
fn look(role: Role) {
    let jail = Jail::build(role);
    let inmate = jail.admit(role, "full");
    let process = format!("/proc/{}", inmate.pid);
    println!("ready {}", inmate.ready);
    // Root's, whoever runs it, if it cannot be dumped.
    println!("owner {}", fs::metadata(format!("{process}/mem")).unwrap().uid());
    for task in fs::read_dir(format!("{process}/task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        println!("thread");
        status.lines().for_each(|line| println!("{line}"));
    }
    match fs::read_dir(format!("{process}/fd")) {
        Ok(descriptors) => {
            for descriptor in descriptors {
                let path = descriptor.unwrap().path();
                let target = fs::read_link(&path).unwrap();
                println!("fd {} {}", path.file_name().unwrap().to_str().unwrap(), target.display());
            }
        }
        Err(error) => println!("fd hidden: {error}"),
    }
    let limits = fs::read_to_string(format!("{process}/limits")).unwrap();
    limits.lines().for_each(|line| println!("limit {line}"));
    let environment = fs::read(format!("{process}/environ"));
    println!("environment {:?}", environment.map(|bytes| bytes.len()).ok());
    for name in ["user", "mnt", "pid_for_children", "net", "ipc", "uts", "cgroup"] {
        let own = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let theirs = fs::read_link(format!("{process}/ns/{name}"));
        println!("namespace {name} own {}", theirs.is_ok_and(|theirs| theirs != own));
    }
}

/// Kills the spawner and waits for the child's end.
fn orphan(role: Role) {
    let jail = Jail::build(role);
    let inmate = jail.admit(role, "full");
    pidfd_send_signal(jail.started.pidfd.as_fd(), 9).unwrap();
    println!("control {:?}", receive(&inmate.control));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        let Ok(status) = fs::read_to_string(format!("/proc/{}/status", inmate.pid)) else {
            println!("child gone");
            return;
        };
        if status.contains("State:\tZ") {
            println!("child gone");
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    println!("child lives");
}
