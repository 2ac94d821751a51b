//! The traps of a start: what goes wrong when its steps come in another order, shown in this process.
//!
//! Each prints what the wrong order leaves; where the right order can be shown in one process too, that follows.
//! What our children really have is read from outside (`probe look`).

use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::sync::mpsc::channel;
use std::{env, fs, thread};

use cloister::sandbox::{self, Access, Allow, Ids};
use cloister::sys::process::keep_capabilities;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, sendto, socket};
use nix::unistd::{ForkResult, Gid, Uid, fork, geteuid, setresgid, setresuid, setuid};

/// A user without privileges, who is not the one that the test started as.
const OTHER: Ids = Ids { uid: 61_290, gid: 61_290 };
/// A second one.
const THIRD: Ids = Ids { uid: 61_291, gid: 61_291 };
/// `CAP_SETGID`, `CAP_SETUID`, `CAP_SETPCAP`: what a service manager may leave to a plain user.
const AMBIENT: [i32; 3] = [6, 7, 8];

/// Shows a trap by its name.
pub(crate) fn show(name: &str) {
    match name {
        "death-signal" => death_signal(),
        "dumpable-exec" => {
            prctl::set_dumpable(false).unwrap();
            println!("set {}", u8::from(prctl::get_dumpable().unwrap()));
            // Comes back only if it failed.
            let failed = std::process::Command::new(env::current_exe().unwrap())
                .args(["trap", "dumpable-now"])
                .exec();
            println!("{failed}");
        }
        "dumpable-now" => println!("now {}", dumpable()),
        "dumpable-user" => {
            prctl::set_dumpable(true).unwrap();
            println!("set {}", dumpable());
            become_user(OTHER).unwrap();
            println!("now {}", dumpable());
        }
        "one-thread" => one_thread(),
        "landlock-mount" => landlock_mount(),
        "landlock-sockets" => landlock_sockets(),
        "ambient-kept" => {
            leave_ambient();
            become_user(THIRD).unwrap();
            println!("setuid {:?}", setuid(Uid::from_raw(0)));
        }
        "ambient-dropped" => {
            leave_ambient();
            sandbox::assume(THIRD, true).unwrap();
            println!("setuid {:?}", setuid(Uid::from_raw(0)));
            println!("{}", capabilities("/proc/self/status"));
        }
        "core" => core(),
        _ => panic!("no such trap: {name}"),
    }
}

/// The parent-death signal of this process, 0 for none.
pub(crate) fn own_death_signal() -> i32 {
    prctl::get_pdeathsig().unwrap().map_or(0, |signal| signal as i32)
}

fn dumpable() -> i64 {
    // SAFETY: the option takes no further argument and returns 0, 1 or 2; nix knows of no 2.
    i64::from(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) })
}

fn become_user(ids: Ids) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

fn death_signal() {
    prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    println!("set {}", own_death_signal());
    become_user(OTHER).unwrap();
    println!("after the change of user {}", own_death_signal());
    prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    println!("set again {}", own_death_signal());
}

/// Has this process all capabilities, as root has, or as the first of a user namespace.
fn with_powers(flags: CloneFlags) {
    let user = if geteuid().is_root() { CloneFlags::empty() } else { CloneFlags::CLONE_NEWUSER };
    unshare(user | flags).unwrap();
}

/// One thread gives its powers up; what has another, which was there before?
fn one_thread() {
    with_powers(CloneFlags::empty());
    let (go, wait) = channel::<()>();
    let other = thread::spawn(move || {
        wait.recv().unwrap();
        println!("other {}", capabilities("/proc/thread-self/status"));
    });
    keep_capabilities(&[]).unwrap();
    prctl::set_no_new_privs().unwrap();
    println!("own {}", capabilities("/proc/thread-self/status"));
    go.send(()).unwrap();
    other.join().unwrap();
}

/// The five sets and `no_new_privs`, on one line.
fn capabilities(status: &str) -> String {
    let status = fs::read_to_string(status).unwrap();
    let wanted = |line: &&str| line.starts_with("Cap") || line.starts_with("NoNewPrivs");
    let words: Vec<String> =
        status.lines().filter(wanted).map(|line| line.replace('\t', "")).collect();
    words.join(" ")
}

fn landlock_mount() {
    with_powers(CloneFlags::CLONE_NEWNS);
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let empty_root = || mount(Some("empty"), "/proc", Some("tmpfs"), MsFlags::empty(), none);
    println!("before {:?}", empty_root());
    let all = Allow { path: "/".as_ref(), access: Access::Write };
    let _begun = sandbox::begin_supervisor(&[all]).unwrap();
    println!("after {:?}", empty_root());
}

/// Sockets by their path and UDP, before and after landlock with a folder that may be written.
fn landlock_sockets() {
    let folder = env::temp_dir().join(format!("cloister-probe-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let path = folder.join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let attempts = || {
        let failed = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap());
        let by_path = UnixStream::connect(&path).map(drop).map_err(failed);
        let bound = UdpSocket::bind("127.0.0.1:0").map(drop).map_err(failed);
        let unbound = || {
            let flags = SockFlag::empty();
            let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
            let there = SockaddrIn::new(127, 0, 0, 1, 9);
            sendto(fd.as_raw_fd(), b"x", &there, MsgFlags::empty()).map(drop)
        };
        format!("path {by_path:?} bind {bound:?} send {:?}", unbound())
    };
    println!("before {}", attempts());
    // It binds one thread, so that the other can clean up.
    thread::scope(|scope| {
        scope.spawn(|| {
            let own = Allow { path: &folder, access: Access::Write };
            let _begun = sandbox::begin_supervisor(&[own]).unwrap();
            println!("after {}", attempts());
        });
    });
    fs::remove_dir_all(&folder).unwrap();
}

/// Becomes a plain user who has ambient capabilities, as systemd's `AmbientCapabilities=` leaves one.
fn leave_ambient() {
    prctl::set_keepcaps(true).unwrap();
    become_user(OTHER).unwrap();
    prctl::set_keepcaps(false).unwrap();
    let bits = AMBIENT.iter().fold(0_u32, |bits, capability| bits | 1 << capability);
    // Version 3: effective, permitted, inheritable, twice.
    let (header, sets) = ([0x2008_0522_u32, 0], [bits, bits, bits, 0, 0, 0]);
    let (header, sets) = (header.as_ptr(), sets.as_ptr());
    // SAFETY: version 3 reads a header of two words and six words of sets.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header, sets) }).unwrap();
    for capability in AMBIENT {
        let (ambient, raise) = (libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE);
        // SAFETY: the option takes integers alone.
        Errno::result(unsafe { libc::prctl(ambient, raise, capability, 0, 0) }).unwrap();
    }
}

/// Crashes with no core allowed by the limit, which is all that stands in a dump's way.
fn core() {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    // SAFETY: the probe has one thread, so the copy is whole; it only ends.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => std::process::abort(),
        ForkResult::Parent { child } => {
            println!("{child} {:?}", nix::sys::wait::waitpid(child, None).unwrap());
        }
    }
}
