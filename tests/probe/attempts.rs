//! The forbidden things, one function each; `ok` when it worked.

use std::ffi::CStr;
use std::io::IoSlice;
use std::mem;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, SockaddrIn, UnixAddr,
    bind, connect, send, sendmsg, sendto, shutdown, socket,
};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, chdir, execve, ftruncate, setgid, setuid};

/// `MSG_FASTOPEN`: send, and connect on the way.
const FAST_OPEN: MsgFlags = MsgFlags::from_bits_retain(0x2000_0000);

/// Tries what `attempt` names (`name` or `name:argument`) and says how it went.
pub(crate) fn run(attempt: &str) -> String {
    let (name, argument) = attempt.split_once(':').unwrap_or((attempt, ""));
    if name == "tell-root" {
        return tell_root();
    }
    match by_name(name, argument) {
        Ok(()) => "ok".to_owned(),
        Err(errno) => format!("{errno:?}"),
    }
}

fn by_name(name: &str, argument: &str) -> Result<(), Errno> {
    let pid = || Pid::from_raw(argument.parse().unwrap());
    match name {
        "nothing" => Ok(()),
        "open-file" => open(argument, OFlag::O_RDONLY, Mode::empty()).map(drop),
        "write-file" => open(argument, OFlag::O_WRONLY, Mode::empty()).map(drop),
        "make-file" => {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
            open("/made-by-the-probe", flags, Mode::S_IRWXU).map(drop)?;
            nix::unistd::unlink("/made-by-the-probe")
        }
        "list-root" => list_root(),
        // Of standard input, which is `/dev/null`: it knows of none.
        "ioctl" => call(libc::SYS_ioctl, [0, i64::from_str_radix(argument, 16).unwrap(), 0, 0]),
        "inet-socket" => family(AddressFamily::Inet),
        "inet-connect" => inet_connect(),
        "inet-bind" => inet_bind(),
        "udp-bind" => udp_bind(),
        "udp-send" => udp_send(),
        "netlink-socket" => family(AddressFamily::Netlink),
        "packet-socket" => family(AddressFamily::Packet),
        "vsock-socket" => family(AddressFamily::Vsock),
        "unix-socket" => family(AddressFamily::Unix),
        "connect-path" => unix_connect(UnixAddr::new(argument)?),
        "connect-abstract" => unix_connect(UnixAddr::new_abstract(argument.as_bytes())?),
        "exec" => execve::<&CStr, &CStr>(c"/bin/true", &[c"true"], &[]).map(drop),
        "fork" => fork(),
        "thread" => std::thread::Builder::new().spawn(|| {}).map_or_else(from_io, |_| Ok(())),
        // PTRACE_SEIZE
        "ptrace" => call(libc::SYS_ptrace, [0x4206, argument.parse().unwrap(), 0, 0]),
        "read-memory" => {
            open(&*format!("/proc/{argument}/mem"), OFlag::O_RDONLY, Mode::empty()).map(drop)
        }
        "kill" => kill(pid(), Signal::SIGCONT),
        "kill-all" => kill(Pid::from_raw(-1), Signal::SIGCONT),
        "setuid" => setuid(0.into()),
        "setgid" => setgid(0.into()),
        "mount" => mount(Some("x"), "/", Some("tmpfs"), MsFlags::empty(), None::<&str>),
        "remount" => {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
            mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        }
        "unshare-user" => unshare(CloneFlags::CLONE_NEWUSER),
        "unshare-net" => unshare(CloneFlags::CLONE_NEWNET),
        "fast-open" => fast_open(argument),
        "fast-send" => fast_send(argument),
        "stop-listening" => stop_listening(argument),
        "pass-descriptor" => pass_descriptor(argument),
        "take-memory" => take_memory(argument),
        "leave-root" => chdir("..").and_then(|()| list_root()),
        "panic" => panic!("{argument}"),
        "abort" => std::process::abort(),
        _ => by_number(name, argument),
    }
}

/// System calls without a wrapper that would do.
fn by_number(name: &str, argument: &str) -> Result<(), Errno> {
    let zeros = [0_u64; 32];
    let zeros = zeros.as_ptr();
    match name {
        "io-uring" => call(libc::SYS_io_uring_setup, [1, zeros as i64, 0, 0]),
        // BPF_MAP_CREATE of an array: type 2, key 4, value 4, one entry.
        "bpf" => {
            let attributes = [2_u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            call(libc::SYS_bpf, [0, attributes.as_ptr() as i64, 48, 0])
        }
        "userfaultfd" => call(libc::SYS_userfaultfd, [0, 0, 0, 0]),
        "keyctl" => call(libc::SYS_keyctl, [0, -3, 1, 0]),
        "perf" => perf(),
        "memfd-exec" => memfd_exec(),
        "mmap-exec" => map_executable(),
        "mprotect-exec" => protect_executable(),
        "prctl-dumpable" => call(libc::SYS_prctl, [4, 1, 0, 0]),
        "set-namespace" => set_namespace(argument),
        "change-root" => call(libc::SYS_chroot, [c"/".as_ptr() as i64, 0, 0, 0]),
        "make-device" => make_device(),
        "host-name" => set_host_name(),
        "take-descriptor" => take_descriptor(argument.parse().unwrap()),
        "thread-kill" => {
            let pid: i64 = argument.parse().unwrap();
            call(libc::SYS_tgkill, [pid, pid, libc::SIGCONT.into(), 0])
        }
        "read-limits" => {
            let pid: i64 = argument.parse().unwrap();
            call(libc::SYS_prlimit64, [pid, libc::RLIMIT_NOFILE.into(), 0, room().as_ptr() as i64])
        }
        "shared-memory" => shared_memory(),
        "watch-files" => call(libc::SYS_inotify_init1, [0, 0, 0, 0]),
        "machine-facts" => call(libc::SYS_sysinfo, [room().as_ptr() as i64, 0, 0, 0]),
        "machine-name" => call(libc::SYS_uname, [room().as_ptr() as i64, 0, 0, 0]),
        "processors" => {
            let all = [u64::MAX; 16];
            call(libc::SYS_sched_setaffinity, [0, 128, all.as_ptr() as i64, 0])
        }
        "priority" => call(libc::SYS_setpriority, [0, 0, 19, 0]),
        "socket-pair" => {
            let stream = libc::SOCK_STREAM.into();
            call(libc::SYS_socketpair, [libc::AF_UNIX.into(), stream, 0, room().as_ptr() as i64])
        }
        #[cfg(target_arch = "x86_64")]
        "int80" => old_call(),
        "ioctl-tiocsti" => call(libc::SYS_ioctl, [0, 0x5412, zeros as i64, 0]),
        "personality" => call(libc::SYS_personality, [0xffff_ffff, 0, 0, 0]),
        "process-vm-readv" => {
            let pid: i64 = argument.parse().unwrap();
            call(libc::SYS_process_vm_readv, [pid, 0, 0, 0])
        }
        // getpid by its x32 number.
        "x32" => call(0x4000_0000 | libc::SYS_getpid, [0, 0, 0, 0]),
        // Any call by its number, all arguments 0.
        "call" => call(argument.parse().unwrap(), [0, 0, 0, 0]),
        _ => panic!("no such attempt: {name}"),
    }
}

/// More than a child of the probe may hold, less than any machine has.
const MUCH_LEN_BYTES: usize = 600 << 20;

/// Takes memory in one of several ways, and writes to each page of it; or, as `WAY/COUNT`, to one page of so
/// many, for an emulated machine, which takes its time for each.
fn take_memory(argument: &str) -> Result<(), Errno> {
    let (way, one_of) = argument.split_once('/').unwrap_or((argument, "1"));
    let one_of = one_of.parse().unwrap();
    let touch = |at, len| touch(at, len, one_of);
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let write = libc::PROT_READ | libc::PROT_WRITE;
    match way {
        "at-once" => touch(map_pages(MUCH_LEN_BYTES, write, anonymous)?, MUCH_LEN_BYTES),
        "bit-by-bit" => {
            for _ in 0..150 {
                let len = MUCH_LEN_BYTES / 150;
                touch(map_pages(len, write, anonymous)?, len)?;
            }
            Ok(())
        }
        "reserved" => {
            let at = map_pages(MUCH_LEN_BYTES, libc::PROT_NONE, anonymous)?;
            // SAFETY: the pages were just mapped and nobody else knows of them.
            Errno::result(unsafe { libc::mprotect(at, MUCH_LEN_BYTES, write) })?;
            touch(at, MUCH_LEN_BYTES)
        }
        "break" => {
            // SAFETY: 0 asks where the break is.
            let at = unsafe { libc::sbrk(0) };
            // SAFETY: the allocator asks for its place each time; nothing above the old break is in use.
            let end = unsafe { libc::brk(at.wrapping_byte_add(MUCH_LEN_BYTES)) };
            Errno::result(end)?;
            touch(at, MUCH_LEN_BYTES)
        }
        // What the bound does not count, so that it must not be had.
        "shared" => {
            let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            touch(map_pages(MUCH_LEN_BYTES, write, shared)?, MUCH_LEN_BYTES)
        }
        "memfds" => (0..150).try_for_each(|_| take_memfd(MUCH_LEN_BYTES / 150, &touch)),
        "stack" => map_pages(MUCH_LEN_BYTES, write, anonymous | libc::MAP_GROWSDOWN).map(drop),
        // Addresses alone: each pair of MiB that is read takes a page of the kernel's tables.
        "addresses" => map_pages(64 << 30, libc::PROT_READ, anonymous).map(drop),
        _ => panic!("no such way: {way}"),
    }
}

/// Takes a memfd, which lives on without its descriptor while it is mapped.
fn take_memfd(
    len: usize,
    touch: &impl Fn(*mut libc::c_void, usize) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let fd = memfd_create("probe", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    ftruncate(&fd, len.try_into().unwrap())?;
    let (write, raw) = (libc::PROT_READ | libc::PROT_WRITE, fd.as_raw_fd());
    // SAFETY: a new mapping, of nobody's memory.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, write, libc::MAP_SHARED, raw, 0) };
    if at == libc::MAP_FAILED { Err(Errno::last()) } else { touch(at, len) }
}

fn touch(at: *mut libc::c_void, len: usize, one_of: usize) -> Result<(), Errno> {
    for page in (0..len).step_by(4096 * one_of) {
        // SAFETY: the caller mapped so many bytes for writing.
        unsafe { at.cast::<u8>().wrapping_add(page).write_volatile(1) };
    }
    Ok(())
}

fn from_io(error: std::io::Error) -> Result<(), Errno> {
    Err(Errno::from_raw(error.raw_os_error().unwrap_or_default()))
}

fn call(number: i64, [one, two, three, four]: [i64; 4]) -> Result<(), Errno> {
    // SAFETY: pointers among the arguments lead to live memory of the caller; the calls that would
    // write through one are given null or room enough.
    Errno::result(unsafe { libc::syscall(number, one, two, three, four, 0, 0) }).map(drop)
}

fn family(family: AddressFamily) -> Result<(), Errno> {
    let kind = match family {
        AddressFamily::Netlink | AddressFamily::Packet => SockType::Raw,
        _ => SockType::Stream,
    };
    socket(family, kind, SockFlag::empty(), None).map(drop)
}

fn inet_connect() -> Result<(), Errno> {
    let listener = TcpListener::bind("127.0.0.1:0");
    let port = listener.as_ref().map_or(9, |listener| listener.local_addr().unwrap().port());
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
    connect(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))
}

fn inet_bind() -> Result<(), Errno> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))
}

/// In a network of its own, where nobody is; with every address of it.
fn udp_bind() -> Result<(), Errno> {
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None)?;
    bind(fd.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 0))
}

fn udp_send() -> Result<(), Errno> {
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None)?;
    let there = SockaddrIn::new(127, 0, 0, 1, 9);
    sendto(fd.as_raw_fd(), b"x", &there, MsgFlags::empty()).map(drop)
}

/// The socket that an attack is on: a child's control channel, or a fresh listener.
fn own_socket(own: &str) -> Result<OwnedFd, Errno> {
    match own {
        // SAFETY: the attempt is the last thing that this process does with it.
        "3" => Ok(unsafe { OwnedFd::from_raw_fd(3) }),
        _ => Ok(TcpListener::bind("127.0.0.1:0").map_err(|_| Errno::EADDRINUSE)?.into()),
    }
}

/// Turns a listener into a socket of its address, and connects that past landlock: it sees no `connect`.
fn fast_open(own: &str) -> Result<(), Errno> {
    let fd = own_socket(own)?;
    let bytes = [IoSlice::new(b"x")];
    if own == "3" {
        return sendmsg::<()>(3, &bytes, &[], FAST_OPEN, None).map(drop);
    }
    let target = TcpListener::bind("127.0.0.1:0").map_err(|_| Errno::EADDRINUSE)?;
    let port = target.local_addr().map_err(|_| Errno::EINVAL)?.port();
    shutdown(fd.as_raw_fd(), Shutdown::Read)?;
    let address = SockaddrIn::new(127, 0, 0, 1, port);
    sendmsg(fd.as_raw_fd(), &bytes, &[], FAST_OPEN, Some(&address)).map(drop)?;
    target.accept().map_or_else(from_io, |_| Ok(()))
}

/// The same by `send`, which names no address; there is nothing that it would reach outside.
fn fast_send(own: &str) -> Result<(), Errno> {
    send(own_socket(own)?.as_raw_fd(), b"x", FAST_OPEN).map(drop)
}

/// Ends listening for everybody who holds the listener.
fn stop_listening(own: &str) -> Result<(), Errno> {
    shutdown(own_socket(own)?.as_raw_fd(), Shutdown::Read)
}

/// Gives a descriptor away.
fn pass_descriptor(own: &str) -> Result<(), Errno> {
    let fds = [0];
    let rights = [ControlMessage::ScmRights(&fds)];
    let bytes = [IoSlice::new(b"x")];
    if own == "3" {
        return sendmsg::<()>(3, &bytes, &rights, MsgFlags::empty(), None).map(drop);
    }
    let (near, _far) = std::os::unix::net::UnixStream::pair().map_err(|_| Errno::EMFILE)?;
    sendmsg::<()>(near.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).map(drop)
}

fn unix_connect(address: UnixAddr) -> Result<(), Errno> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None)?;
    connect(fd.as_raw_fd(), &address)
}

fn list_root() -> Result<(), Errno> {
    match std::fs::read_dir("/") {
        Ok(mut entries) => entries.next().map_or(Err(Errno::ENOENT), |_| Ok(())),
        Err(error) => from_io(error),
    }
}

/// Names all that the root holds, folders within folders.
fn tell_root() -> String {
    let mut found = Vec::new();
    let mut folders = vec![std::path::PathBuf::from("/")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            // What the kernel says of the process itself is named, and not gone through.
            match path.is_dir() && path != std::path::Path::new("/proc/self") {
                true => folders.push(path),
                false => found.push(path.display().to_string()),
            }
        }
    }
    found.sort();
    found.join(" ")
}

fn fork() -> Result<(), Errno> {
    // SAFETY: the copy only ends.
    let pid = Errno::result(unsafe { libc::fork() })?;
    if pid == 0 {
        // SAFETY: ends the copy.
        unsafe { libc::_exit(0) }
    }
    Ok(())
}

/// Room for what a call writes, for the rest of the process's life.
fn room() -> &'static mut [u8] {
    Box::leak(vec![0; 4096].into_boxed_slice())
}

fn set_namespace(pid: &str) -> Result<(), Errno> {
    let path = format!("/proc/{pid}/ns/uts");
    let namespace = open(&*path, OFlag::O_RDONLY, Mode::empty())?;
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWUTS)
}

fn make_device() -> Result<(), Errno> {
    use nix::sys::stat::{SFlag, makedev, mknod};
    let path = "/device-of-the-probe";
    mknod(path, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3))?;
    nix::unistd::unlink(path)
}

fn set_host_name() -> Result<(), Errno> {
    // Its own, so that the control changes nothing.
    let name = nix::unistd::gethostname()?;
    nix::unistd::sethostname(name)
}

fn take_descriptor(pid: i64) -> Result<(), Errno> {
    // SAFETY: the calls take integers alone.
    let pidfd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    call(libc::SYS_pidfd_getfd, [pidfd, 0, 0, 0])
}

fn shared_memory() -> Result<(), Errno> {
    // SAFETY: the calls take integers alone.
    let id = Errno::result(unsafe { libc::shmget(libc::IPC_PRIVATE, 4096, 0o600) })?;
    // SAFETY: `IPC_RMID` reads no structure.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// `getpid` by the old interrupt, whose calls have other numbers.
#[cfg(target_arch = "x86_64")]
fn old_call() -> Result<(), Errno> {
    let result: i64;
    // SAFETY: number 20 is `getpid` there, which takes nothing and changes nothing but its result.
    unsafe { std::arch::asm!("int 0x80", inlateout("rax") 20_i64 => result) };
    if result > 0 { Ok(()) } else { Err(Errno::ENOSYS) }
}

fn perf() -> Result<(), Errno> {
    // PERF_TYPE_SOFTWARE, size, PERF_COUNT_SW_CPU_CLOCK.
    let mut attributes = [0_u32; 28];
    attributes[..3].copy_from_slice(&[1, 112, 0]);
    call(libc::SYS_perf_event_open, [attributes.as_ptr() as i64, 0, -1, -1])
}

fn memfd_exec() -> Result<(), Errno> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let fd = memfd_create("probe", MFdFlags::empty())?;
    let program = std::fs::read("/bin/true").unwrap_or_else(|_| b"\x7fELF".to_vec());
    nix::unistd::write(&fd, &program)?;
    let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
    nix::unistd::execveat::<_, &CStr, &CStr>(&fd, c"", &[c"true"], &[], flags).map(drop)
}

fn map(protection: i32) -> Result<*mut libc::c_void, Errno> {
    map_pages(4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
}

fn map_pages(len: usize, protection: i32, flags: i32) -> Result<*mut libc::c_void, Errno> {
    // SAFETY: a new mapping, of nobody's memory.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
    if at == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(at) }
}

fn map_executable() -> Result<(), Errno> {
    map(libc::PROT_READ | libc::PROT_EXEC).map(drop)
}

fn protect_executable() -> Result<(), Errno> {
    let at = map(libc::PROT_READ | libc::PROT_WRITE)?;
    // `ret`
    // SAFETY: the page was just mapped for writing.
    unsafe { at.cast::<u8>().write(0xc3) };
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: the page is ours.
    Errno::result(unsafe { libc::mprotect(at, 4096, protection) })?;
    // SAFETY: the page holds one `ret`, a function of no arguments.
    let function = unsafe { mem::transmute::<*mut libc::c_void, extern "C" fn()>(at) };
    function();
    Ok(())
}
