//! The service manager (systemd, or one that speaks its protocol): what it hands down, what it hears.
//!
//! The environment is read once, before the first child and the first key. The notification socket
//! is connected while that is allowed; later it can only be written to. Where there is no manager,
//! nothing is said.

use std::cell::Cell;
use std::ffi::OsString;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use nix::sys::socket::{SockaddrStorage, getsockname, getsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};

use super::config::Listen;
use super::error::Error;
use crate::sys::process::inherited_descriptor;

/// The first descriptor that a manager hands down.
const LISTENER_FIRST: i32 = 3;
/// Most listeners that are handed down.
const LISTENERS_COUNT_MAX: i32 = 16;
/// More time for a start, asked for while a model is read.
const EXTENSION: Duration = Duration::from_secs(60);
/// Time between two such questions.
const EXTENSION_STEP: Duration = Duration::from_secs(5);

/// The manager, if there is one.
#[derive(Debug, Default)]
pub(super) struct Manager {
    socket: Option<UnixDatagram>,
    /// Time between two signs of life.
    watchdog: Option<Duration>,
    /// When the last was given.
    alive: Cell<Option<Instant>>,
    /// When more time was asked for.
    extended: Cell<Option<Instant>>,
    listeners: Vec<OwnedFd>,
}

impl Manager {
    /// Finds the manager by the environment.
    ///
    /// # Errors
    ///
    /// A socket that is named and cannot be reached, or a listener that is announced and not there.
    pub(super) fn find() -> Result<Self, Error> {
        let variable = |name| std::env::var_os(name);
        let own = std::process::id();
        let meant = |name| number(variable(name)).map(|pid| pid == u64::from(own));
        let socket = match variable("NOTIFY_SOCKET") {
            Some(address) => Some(connect(&address).map_err(Error::Manager)?),
            None => None,
        };
        let watchdog =
            number(variable("WATCHDOG_USEC")).filter(|_| meant("WATCHDOG_PID") != Some(false));
        let count = number(variable("LISTEN_FDS"));
        let count = count.filter(|_| meant("LISTEN_PID") == Some(true)).unwrap_or(0);
        let count = i32::try_from(count).ok().filter(|&count| count <= LISTENERS_COUNT_MAX);
        let count = count.ok_or(Error::System("take listeners", nix::errno::Errno::EMFILE))?;
        let listeners = (LISTENER_FIRST..LISTENER_FIRST + count).map(inherited_descriptor);
        let listeners: Result<Vec<_>, _> = listeners.collect();
        Ok(Self {
            socket,
            // Twice in the time that it waits.
            watchdog: watchdog.filter(|&usec| usec > 0).map(|usec| Duration::from_micros(usec) / 2),
            alive: Cell::new(None),
            extended: Cell::new(None),
            listeners: listeners.map_err(|errno| Error::System("take a listener", errno))?,
        })
    }

    /// Takes the listener that was handed down for an address.
    pub(super) fn take_listener(&mut self, wanted: &Listen) -> Option<OwnedFd> {
        let index = self.listeners.iter().position(|listener| listens_on(listener, wanted))?;
        Some(self.listeners.swap_remove(index))
    }

    /// How many listeners were handed down and not taken.
    pub(super) fn listeners_left(&self) -> usize {
        self.listeners.len()
    }

    /// All parts serve.
    pub(super) fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={status}"));
    }

    /// What it is doing.
    pub(super) fn status(&self, status: &str) {
        self.say(&format!("STATUS={status}"));
    }

    /// A reload begins; it ends with [`Manager::ready`].
    pub(super) fn reloading(&self) {
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={}", time.as_micros()));
    }

    /// A stop begins.
    pub(super) fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=stopping");
    }

    /// The start goes on, but takes time.
    pub(super) fn still_starting(&self, status: &str) {
        if is_due(&self.extended, EXTENSION_STEP) {
            self.say(&format!("EXTEND_TIMEOUT_USEC={}\nSTATUS={status}", EXTENSION.as_micros()));
            self.alive();
        }
    }

    /// A sign of life, when one is due.
    pub(super) fn alive(&self) {
        if self.watchdog.is_some_and(|watchdog| is_due(&self.alive, watchdog)) {
            self.say("WATCHDOG=1");
        }
    }

    /// A manager that is gone or does not listen is none of the service's concern.
    fn say(&self, text: &str) {
        if let Some(socket) = &self.socket {
            let _ = socket.send(text.as_bytes());
        }
    }
}

/// Whether `step` has passed since it was last due; then it starts anew.
fn is_due(last: &Cell<Option<Instant>>, step: Duration) -> bool {
    let is_due = last.get().is_none_or(|last| last.elapsed() >= step);
    if is_due {
        last.set(Some(Instant::now()));
    }
    is_due
}

fn number(text: Option<OsString>) -> Option<u64> {
    text?.to_str()?.parse().ok()
}

/// Connects to a path, or to an abstract name after `@`.
fn connect(address: &OsString) -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match address.as_bytes() {
        [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        _ => socket.connect(address)?,
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn listens_on(listener: &OwnedFd, wanted: &Listen) -> bool {
    let listens = getsockopt(&listener.as_fd(), sockopt::AcceptConn) == Ok(true);
    let Ok(address) = getsockname::<SockaddrStorage>(listener.as_raw_fd()) else { return false };
    listens
        && match wanted {
            Listen::Tcp(wanted) => match wanted {
                std::net::SocketAddr::V4(wanted) => address
                    .as_sockaddr_in()
                    .is_some_and(|it| std::net::SocketAddrV4::from(*it) == *wanted),
                std::net::SocketAddr::V6(wanted) => address
                    .as_sockaddr_in6()
                    .is_some_and(|it| (it.ip(), it.port()) == (*wanted.ip(), wanted.port())),
            },
            Listen::Unix(path) => {
                address.as_unix_addr().and_then(|it| it.path()).is_some_and(|it| it == path)
            }
        }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn manager(socket: UnixDatagram) -> Manager {
        Manager { socket: Some(socket), watchdog: Some(Duration::ZERO), ..Manager::default() }
    }

    #[test]
    fn what_is_said_reaches_a_path_and_an_abstract_name() {
        let unique = format!("cloister-manager-{}", std::process::id());
        let path = std::env::temp_dir().join(&unique);
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = SocketAddr::from_abstract_name(&unique).unwrap();
        let by_name = UnixDatagram::bind_addr(&name).unwrap();
        for (address, heard) in
            [(path.clone().into(), by_path), (format!("@{unique}").into(), by_name)]
        {
            let manager = manager(connect(&address).unwrap());
            let mut bytes = [0; 256];
            let mut hear = || {
                let len = heard.recv(&mut bytes).unwrap();
                String::from_utf8(bytes[..len].to_vec()).unwrap()
            };
            manager.ready("serving");
            assert_eq!(hear(), "READY=1\nSTATUS=serving");
            manager.reloading();
            assert!(hear().starts_with("RELOADING=1\nMONOTONIC_USEC="));
            manager.alive();
            assert_eq!(hear(), "WATCHDOG=1");
            manager.still_starting("packing");
            assert!(hear().starts_with("EXTEND_TIMEOUT_USEC=60000000\n"));
            assert_eq!(hear(), "WATCHDOG=1");
            manager.still_starting("too early");
            manager.stopping();
            assert_eq!(hear(), "STOPPING=1\nSTATUS=stopping");
        }
        std::fs::remove_file(path).unwrap();
        Manager::default().ready("to nobody");
    }

    #[test]
    fn a_listener_is_known_by_its_address() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let other = TcpListener::bind("[::1]:0").ok();
        let path = std::env::temp_dir().join(format!("cloister-listen-{}", std::process::id()));
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut manager =
            Manager { listeners: vec![unix.into(), tcp.into()], ..Manager::default() };
        if let Some(other) = &other {
            assert!(manager.take_listener(&Listen::Tcp(other.local_addr().unwrap())).is_none());
        }
        assert!(manager.take_listener(&Listen::Tcp(address)).is_some());
        assert!(manager.take_listener(&Listen::Tcp(address)).is_none());
        assert_eq!(manager.listeners_left(), 1);
        assert!(manager.take_listener(&Listen::Unix(path.clone())).is_some());
        // A socket that does not listen is none.
        let idle = UnixDatagram::bind(path.with_extension("idle")).unwrap();
        assert!(!listens_on(&idle.into(), &Listen::Unix(path.with_extension("idle"))));
        std::fs::remove_file(path.with_extension("idle")).unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
