//! The operator's socket: `status`, `reload`, `stop` and their like, for root and the supervisor's own
//! user; erasures for those whom the configuration names.
//!
//! A sequenced-packet Unix socket; one JSON packet asks, one answers. The peer's user is asked of the
//! kernel, and where nobody else may ask, the socket's mode says so too. Files come as descriptors,
//! because the supervisor itself may no longer open them. Nobody who connects can make a turn wait: few are
//! heard in one, who may ask for erasures alone takes nobody else's place, and what they send is closed by
//! another thread.

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

use super::closer::Closer;
use crate::audit::record::LogAction;
use crate::package::digest_lists::{ALLOWED_FILE, REVOKED_FILE};
use crate::sys::socket::{peer, receive};

/// Longest question, in bytes.
const QUESTION_LEN_MAX_BYTES: usize = 1024;
/// Longest answer, in bytes.
const ANSWER_LEN_MAX_BYTES: usize = 128 << 10;
/// Most operators at once; each user who may ask for erasures alone has one place beside.
const CLIENTS_COUNT_MAX: usize = 8;
/// Most connections that are taken in one turn.
const ACCEPTS_PER_TURN: usize = 16;
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
    /// chain and its key, and the lists of the trust folder.
    Reload {
        /// Whether the certificate comes too.
        #[serde(default)]
        certificate: bool,
        /// The names of the lists that come, where there is a trust folder.
        #[serde(default)]
        lists: Option<Vec<List>>,
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
        /// The earliest time that was asked for, in seconds since 1970.
        #[serde(default)]
        from_s: Option<u64>,
        /// The latest.
        #[serde(default)]
        to_s: Option<u64>,
    },
    /// Destroy a principal's key, or agree to it.
    Erase {
        /// The token's name.
        principal: String,
    },
    /// Wrap the principals' keys under the key that comes as a descriptor.
    RotateWrappingKey {},
    /// Let the key that comes as a descriptor sign the log from now on.
    RotateAuditKey {},
}

/// A list of the trust folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum List {
    /// The models that may be served.
    Allowed,
    /// What is revoked.
    Revoked,
}

impl List {
    /// The name of its file.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Allowed => ALLOWED_FILE,
            Self::Revoked => REVOKED_FILE,
        }
    }
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

/// A socket that is bound and does nothing yet.
pub(super) struct BoundSocket {
    listener: UnixListener,
    erasers: Vec<u32>,
}

/// The listening socket and its connections.
pub(super) struct ControlSocket {
    listener: UnixListener,
    clients: Vec<Client>,
    closer: Closer,
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

impl BoundSocket {
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
        Ok(Self { listener, erasers })
    }

    /// Makes it ready to be served, with a thread that closes what comes over it.
    pub(super) fn serve(self) -> io::Result<ControlSocket> {
        let Self { listener, erasers } = self;
        Ok(ControlSocket { listener, clients: Vec::new(), closer: Closer::start()?, erasers })
    }
}

impl ControlSocket {
    /// What to poll for reading: the listener, then the connections; nothing while nothing is taken.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let clients = self.clients.iter().map(|client| client.socket.as_fd());
        let all = std::iter::once(self.listener.as_fd()).chain(clients);
        all.filter(|_| !self.closer.is_full())
    }

    /// The thread that closes what operators sent.
    pub(super) fn closer(&self) -> &Closer {
        &self.closer
    }

    /// Accepts who waits, and returns what was asked.
    pub(super) fn turn(&mut self, now: Instant) -> Vec<Question> {
        for _ in 0..ACCEPTS_PER_TURN {
            if self.closer.is_full() {
                return Vec::new();
            }
            let Ok((stream, _)) = self.listener.accept() else { break };
            let socket = OwnedFd::from(stream);
            let uid = peer(socket.as_fd()).map(|(_, uid, _)| uid).ok();
            match uid.filter(|uid| self.has_place(*uid)) {
                Some(uid) => self.clients.push(Client { socket, uid, since: now }),
                None => self.closer.close([socket]),
            }
        }
        let mut questions = Vec::new();
        for client in std::mem::take(&mut self.clients) {
            if self.closer.is_full() {
                self.clients.push(client);
                continue;
            }
            let is_late = now.saturating_duration_since(client.since) >= ASK_DEADLINE;
            let Client { socket, uid, since } = client;
            match ask_of(socket.as_fd()) {
                Err(Errno::EAGAIN) if !is_late => self.clients.push(Client { socket, uid, since }),
                Ok((Some(command), descriptors)) if command.is_for_all() || is_operator(uid) => {
                    questions.push(Question { command, uid, descriptors, socket });
                }
                Ok((_, descriptors)) => self.closer.close(descriptors.into_iter().chain([socket])),
                Err(_) => self.closer.close([socket]),
            }
        }
        questions
    }

    /// Whether one more connection of a user is taken.
    fn has_place(&self, uid: u32) -> bool {
        let mut others = self.clients.iter().map(|client| client.uid);
        match is_operator(uid) {
            true => others.filter(|other| is_operator(*other)).count() < CLIENTS_COUNT_MAX,
            false => self.erasers.contains(&uid) && others.all(|other| other != uid),
        }
    }

    /// Answers and closes; an operator that went away is no fault.
    pub(super) fn answer(&self, question: Question, value: &serde_json::Value) {
        let text = value.to_string();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = send(question.socket.as_raw_fd(), text.as_bytes(), flags);
        // There may be more in it than was asked.
        self.closer.close(question.descriptors.into_iter().chain([question.socket]));
    }
}

/// Whether a user may ask anything.
fn is_operator(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

/// What a connection asks, if it is a question, and the descriptors that came with it.
fn ask_of(socket: BorrowedFd<'_>) -> Result<(Option<Command>, VecDeque<OwnedFd>), Errno> {
    let mut bytes = [0; QUESTION_LEN_MAX_BYTES];
    let packet = receive(socket, &mut bytes, false)?;
    let text = bytes.get(..packet.len).filter(|_| !packet.cut);
    let command = text.and_then(|text| serde_json::from_slice(text).ok());
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
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};
    use std::path::PathBuf;

    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("cloister-control-{name}-{}", std::process::id()))
    }

    #[test]
    fn questions_come_with_their_descriptor_and_are_answered() {
        let path = path("ask");
        let mut server = BoundSocket::bind(&path, &[]).unwrap().serve().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let client_path = path.clone();
        let client = std::thread::spawn(move || {
            let file = fs::File::open("/proc/self/status").unwrap();
            let command = Command::Reload { certificate: true, lists: Some(vec![List::Revoked]) };
            ask(&client_path, command, &[file.as_fd(); 4]).unwrap()
        });
        let question = loop {
            if let Some(question) = server.turn(Instant::now()).pop() {
                break question;
            }
            std::thread::yield_now();
        };
        let lists = Some(vec![List::Revoked]);
        assert_eq!(question.command, Command::Reload { certificate: true, lists });
        assert_eq!(question.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(question.descriptors.len(), 4);
        server.answer(question, &serde_json::json!({ "ok": true }));
        assert_eq!(client.join().unwrap()["ok"], true);
        fs::remove_file(path).unwrap();
    }

    /// A connection whose close waits so long: nobody reads what it could not send.
    fn lingering(seconds: i32) -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        while ours.write(&[0; 1 << 16]).is_ok() {}
        let linger = libc::linger { l_onoff: 1, l_linger: seconds };
        setsockopt(&ours, sockopt::Linger, &linger).unwrap();
        (ours.into(), theirs)
    }

    /// Sends texts over a connection, each with a descriptor that nobody else has any more.
    fn send_lingering(path: &Path, texts: &[&str]) -> (OwnedFd, Vec<TcpStream>) {
        let connection = dial(path).unwrap();
        let mut peers = Vec::new();
        for text in texts {
            let (fd, peer) = lingering(30);
            let (raw, parts) = ([fd.as_raw_fd()], [IoSlice::new(text.as_bytes())]);
            let rights = [ControlMessage::ScmRights(&raw)];
            sendmsg::<()>(connection.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None)
                .unwrap();
            peers.push(peer);
        }
        (connection, peers)
    }

    #[test]
    fn nothing_that_is_sent_makes_a_turn_wait() {
        let (fd, _peer) = lingering(1);
        let start = Instant::now();
        drop(fd);
        assert!(start.elapsed() >= Duration::from_millis(900), "the control: a close that waits");

        let path = path("linger");
        let mut server = BoundSocket::bind(&path, &[]).unwrap().serve().unwrap();
        let status = "{\"command\":\"status\"}";
        let _babbling = send_lingering(&path, &["what is this"]);
        let _asking = send_lingering(&path, &[status, status]);
        let start = Instant::now();
        let questions = server.turn(start);
        assert_eq!(questions.len(), 1);
        for question in questions {
            server.answer(question, &serde_json::json!({ "ok": true }));
        }
        // One too many, who is closed unheard.
        let _silent: Vec<_> = (0..CLIENTS_COUNT_MAX).map(|_| dial(&path).unwrap()).collect();
        assert!(server.turn(start).is_empty());
        let _refused = send_lingering(&path, &[status]);
        assert!(server.turn(start).is_empty());
        assert_eq!(server.clients.len(), CLIENTS_COUNT_MAX);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn who_is_closed_too_slowly_is_not_taken_any_more() {
        let path = path("full");
        let mut server = BoundSocket::bind(&path, &[]).unwrap().serve().unwrap();
        let (stuck, _peer) = lingering(30);
        server.closer.close([stuck]);
        while !server.closer.is_full() {
            server.closer.close([OwnedFd::from(io::pipe().unwrap().0)]);
        }
        let _waiting = dial(&path).unwrap();
        assert!(server.turn(Instant::now()).is_empty() && server.clients.is_empty());
        assert_eq!(server.descriptors().count(), 0, "nothing wakes the loop meanwhile");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn connections_without_end_do_not_end_a_turn_either() {
        let path = path("flood");
        let mut server = BoundSocket::bind(&path, &[]).unwrap().serve().unwrap();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                        let _ = dial(&path);
                    }
                });
            }
            let start = Instant::now();
            for _ in 0..50 {
                server.turn(start);
                assert!(server.clients.len() <= CLIENTS_COUNT_MAX);
            }
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
            drop(server);
        });
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn who_may_ask_for_erasures_alone_takes_no_operators_place() {
        let path = path("places");
        let own = nix::unistd::geteuid().as_raw();
        let (anna, bert, stranger) = (own + 1000, own + 1001, own + 1002);
        let mut server = BoundSocket::bind(&path, &[anna, bert]).unwrap().serve().unwrap();
        let mut connect = |uid| {
            let has_place = server.has_place(uid);
            let (socket, since) = (io::pipe().unwrap().0.into(), Instant::now());
            server.clients.extend(has_place.then_some(Client { socket, uid, since }));
            has_place
        };
        assert_eq!(
            [anna, anna, bert, bert, stranger].map(&mut connect),
            [true, false, true, false, false]
        );
        for _ in 0..CLIENTS_COUNT_MAX {
            assert!(connect(own));
        }
        assert!(!connect(own) && !connect(0));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_second_supervisor_is_refused_and_a_dead_ones_socket_is_replaced() {
        let path = path("twice");
        let first = BoundSocket::bind(&path, &[]).unwrap();
        let second = BoundSocket::bind(&path, &[]).err().unwrap();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        BoundSocket::bind(&path, &[]).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file, not a socket").unwrap();
        assert!(BoundSocket::bind(&path, &[]).is_err());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn silent_and_babbling_clients_are_dropped() {
        let path = path("babble");
        let mut server = BoundSocket::bind(&path, &[]).unwrap().serve().unwrap();
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
