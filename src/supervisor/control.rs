//! The operator's socket: `status`, `reload`, `stop` and their like, for root and the supervisor's own
//! user; erasures for those whom the configuration names.
//!
//! A sequenced-packet Unix socket; one JSON packet asks, one answers. The peer's user is asked of the
//! kernel, and where nobody else may ask, the socket's mode says so too. Files come as descriptors,
//! because the supervisor itself may no longer open them.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect,
    listen, send, sendmsg, setsockopt, socket, sockopt,
};
use serde::{Deserialize, Serialize};

use crate::audit::record::LogAction;
use crate::sys::socket::{peer, receive};

/// Longest question, in bytes.
const QUESTION_LEN_MAX_BYTES: usize = 1024;
/// Longest answer, in bytes.
const ANSWER_LEN_MAX_BYTES: usize = 128 << 10;
/// Most operators at once.
const CLIENTS_COUNT_MAX: usize = 8;
/// Time an operator has to ask.
const ASK_DEADLINE: Duration = Duration::from_secs(5);
/// Time the command line waits for an answer.
const ANSWER_DEADLINE_S: i64 = 10;

/// What an operator asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields, tag = "command")]
pub enum Command {
    /// The state, as JSON.
    Status {},
    /// Take the files that come as descriptors: the token table; if so said, then the certificate
    /// chain and its key.
    Reload {
        /// Whether the certificate comes too.
        #[serde(default)]
        certificate: bool,
    },
    /// Remove old records of the audit log, some at a time.
    Prune {
        /// How old they must be, in seconds.
        older_than_s: u64,
        /// Whether the shortest allowed time is overridden.
        #[serde(default)]
        force: bool,
    },
    /// Stop in order.
    Stop {},
    /// Record that the operator reads the log.
    LogRead {
        /// How.
        action: LogAction,
        /// How many records were shown.
        records: u64,
    },
    /// Destroy a principal's key, or agree to it.
    Erase {
        /// The token's name.
        principal: String,
    },
    /// Wrap the principals' keys under the key that comes as a descriptor.
    RotateWrappingKey {},
}

impl Command {
    /// Whether users may ask it who may ask for nothing but erasures.
    fn is_for_all(&self) -> bool {
        matches!(self, Self::Erase { .. })
    }
}

/// An operator's connection.
struct Client {
    socket: OwnedFd,
    uid: u32,
    since: Instant,
}

/// The listening socket and its connections.
pub(super) struct ControlSocket {
    listener: UnixListener,
    clients: Vec<Client>,
    /// Users who may ask for erasures, and for nothing else.
    erasers: Vec<u32>,
}

/// A question, and the connection that waits for its answer.
pub(super) struct Question {
    pub(super) command: Command,
    /// Who asks, as the kernel says.
    pub(super) uid: u32,
    /// In the order of the command.
    pub(super) descriptors: VecDeque<OwnedFd>,
    socket: OwnedFd,
}

impl Question {
    /// Answers and closes; an operator that went away is no fault.
    pub(super) fn answer(self, value: &serde_json::Value) {
        let text = value.to_string();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = send(self.socket.as_raw_fd(), text.as_bytes(), flags);
    }
}

impl ControlSocket {
    /// Makes the socket, in the place of one that nobody listens on. `erasers` may ask for erasures.
    pub(super) fn bind(path: &Path, erasers: &[u32]) -> io::Result<Self> {
        if let Ok(facts) = fs::symlink_metadata(path) {
            let is_taken = !facts.file_type().is_socket() || dial(path).is_ok();
            if is_taken {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            fs::remove_file(path)?;
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
        // Nobody can connect before `listen`.
        let mode = if erasers.is_empty() { 0o600 } else { 0o666 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        listen(&listener, Backlog::new(8)?)?;
        // The standard library accepts on any kind of Unix socket.
        let (listener, erasers) = (UnixListener::from(listener), erasers.to_vec());
        Ok(Self { listener, clients: Vec::new(), erasers })
    }

    /// What to poll for reading: the listener, then the connections.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let clients = self.clients.iter().map(|client| client.socket.as_fd());
        std::iter::once(self.listener.as_fd()).chain(clients)
    }

    /// Accepts who waits, and returns what was asked.
    pub(super) fn turn(&mut self, now: Instant) -> Vec<Question> {
        while let Ok((stream, _)) = self.listener.accept() {
            let socket = OwnedFd::from(stream);
            let uid = peer(socket.as_fd()).map(|(_, uid, _)| uid).ok();
            let uid = uid.filter(|uid| is_operator(*uid) || self.erasers.contains(uid));
            let uid = uid.filter(|_| self.clients.len() < CLIENTS_COUNT_MAX);
            self.clients.extend(uid.map(|uid| Client { socket, uid, since: now }));
        }
        let mut questions = Vec::new();
        for client in std::mem::take(&mut self.clients) {
            match ask_of(client.socket.as_fd()) {
                Ok((command, descriptors)) if command.is_for_all() || is_operator(client.uid) => {
                    let Client { socket, uid, .. } = client;
                    questions.push(Question { command, uid, descriptors, socket });
                }
                Err(Errno::EAGAIN)
                    if now.saturating_duration_since(client.since) < ASK_DEADLINE =>
                {
                    self.clients.push(client);
                }
                Ok(_) | Err(_) => {}
            }
        }
        questions
    }
}

/// Whether a user may ask anything.
fn is_operator(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

fn ask_of(socket: BorrowedFd<'_>) -> Result<(Command, VecDeque<OwnedFd>), Errno> {
    let mut bytes = [0; QUESTION_LEN_MAX_BYTES];
    let packet = receive(socket, &mut bytes, false)?;
    let text = bytes.get(..packet.len).filter(|_| !packet.cut).ok_or(Errno::EBADMSG)?;
    let command = serde_json::from_slice(text).map_err(|_| Errno::EBADMSG)?;
    Ok((command, packet.descriptors.into()))
}

/// Connects to a supervisor.
fn dial(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let connection = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    connect(connection.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(connection)
}

/// Asks the supervisor behind `path` and returns its answer.
///
/// # Errors
///
/// Connection errors, `TimedOut` when it does not answer (it may still be loading a model), and
/// `InvalidData` when the answer is none.
pub fn ask(
    path: &Path,
    command: Command,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<serde_json::Value> {
    let connection = dial(path)?;
    let text = serde_json::to_vec(&command)?;
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let parts = [IoSlice::new(&text)];
    sendmsg::<()>(connection.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
    let deadline = nix::sys::time::TimeVal::new(ANSWER_DEADLINE_S, 0);
    setsockopt(&connection, sockopt::ReceiveTimeout, &deadline)?;
    let mut bytes = vec![0; ANSWER_LEN_MAX_BYTES];
    let packet = receive(connection.as_fd(), &mut bytes, true).map_err(|errno| match errno {
        Errno::EAGAIN => io::ErrorKind::TimedOut.into(),
        errno => io::Error::from(errno),
    })?;
    let text = bytes.get(..packet.len).filter(|text| !packet.cut && !text.is_empty());
    let text = text.ok_or(io::ErrorKind::InvalidData)?;
    serde_json::from_slice(text).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("cloister-control-{name}-{}", std::process::id()))
    }

    #[test]
    fn questions_come_with_their_descriptor_and_are_answered() {
        let path = path("ask");
        let mut server = ControlSocket::bind(&path, &[]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let client_path = path.clone();
        let client = std::thread::spawn(move || {
            let file = fs::File::open("/proc/self/status").unwrap();
            ask(&client_path, Command::Reload { certificate: true }, &[file.as_fd(); 3]).unwrap()
        });
        let question = loop {
            if let Some(question) = server.turn(Instant::now()).pop() {
                break question;
            }
            std::thread::yield_now();
        };
        assert_eq!(question.command, Command::Reload { certificate: true });
        assert_eq!(question.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(question.descriptors.len(), 3);
        question.answer(&serde_json::json!({ "ok": true }));
        assert_eq!(client.join().unwrap()["ok"], true);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_second_supervisor_is_refused_and_a_dead_ones_socket_is_replaced() {
        let path = path("twice");
        let first = ControlSocket::bind(&path, &[]).unwrap();
        let second = ControlSocket::bind(&path, &[]).err().unwrap();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        ControlSocket::bind(&path, &[]).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file, not a socket").unwrap();
        assert!(ControlSocket::bind(&path, &[]).is_err());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn silent_and_babbling_clients_are_dropped() {
        let path = path("babble");
        let mut server = ControlSocket::bind(&path, &[]).unwrap();
        let start = Instant::now();
        let silent = dial(&path).unwrap();
        let babbling = dial(&path).unwrap();
        send(babbling.as_raw_fd(), b"{\"command\":\"status\",\"more\":1}", MsgFlags::empty())
            .unwrap();
        assert!(server.turn(start).is_empty());
        assert_eq!(server.clients.len(), 1);
        assert!(server.turn(start + ASK_DEADLINE).is_empty());
        assert!(server.clients.is_empty());
        drop(silent);
        fs::remove_file(path).unwrap();
    }
}
