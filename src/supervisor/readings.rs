//! Who reads the log, on the record: the auditors' own socket, and what becomes a record.
//!
//! Members of `audit.readers_group` may connect, which the socket's mode says; who it is, the kernel says.
//! They may announce that they read, and nothing else: a message has a fixed size and no text. A reading is
//! durable before it is answered; those that follow by the same user in the same way within `INTERVAL`
//! are summed, so that nobody fills the log by reading it. Nobody who connects can make a turn wait: few are
//! heard in one, each user has two places, and what they send is closed by another thread.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, send,
    setsockopt, socket, sockopt,
};
use nix::unistd::{Gid, getegid, setegid};

use super::closer::Closer;
use super::serve::{Supervisor, now};
use crate::audit::Event;
use crate::audit::record::{LogAction, LogReadFacts, ReaderFacts, bucket};
use crate::sys::socket::{peer, receive};

/// Time between two records of one user who reads in one way.
const INTERVAL: Duration = Duration::from_secs(10);
/// Most readers who are waited for at once, and most of one user.
const CLIENTS_COUNT_MAX: usize = 8;
const USER_CLIENTS_COUNT_MAX: usize = 2;
/// Time a reader has to say what it reads.
const SAY_DEADLINE: Duration = Duration::from_secs(2);
/// Time the command line waits for an answer.
const ANSWER_DEADLINE_S: i64 = 10;
/// Bytes of a message: version, action, records, first and last second; little endian.
const MESSAGE_LEN: usize = 26;
const VERSION: u8 = 1;
/// Where no time was asked for.
const ANY_TIME: u64 = u64::MAX;
/// The answers: it is on the record, or the log cannot be written.
const RECORDED: u8 = 1;
const NOT_RECORDED: u8 = 0;
/// Each action's number.
const ACTIONS: [LogAction; 9] = [
    LogAction::Verify,
    LogAction::List,
    LogAction::Show,
    LogAction::Match,
    LogAction::Stats,
    LogAction::Export,
    LogAction::Report,
    LogAction::Follow,
    LogAction::Browse,
];

/// What a reader says of its reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// How.
    pub action: LogAction,
    /// How many records may be shown.
    pub records: u64,
    /// The earliest time that was asked for, in seconds since 1970.
    pub from_s: Option<u64>,
    /// The latest.
    pub to_s: Option<u64>,
}

impl Reading {
    fn encode(&self) -> [u8; MESSAGE_LEN] {
        let action = ACTIONS.iter().position(|action| *action == self.action).unwrap_or(0);
        let mut out = [0; MESSAGE_LEN];
        out[0] = VERSION;
        out[1] = u8::try_from(action).unwrap_or(0);
        let times = [self.from_s, self.to_s].map(|time_s| time_s.unwrap_or(ANY_TIME));
        for (at, number) in [self.records, times[0], times[1]].into_iter().enumerate() {
            out[2 + 8 * at..10 + 8 * at].copy_from_slice(&number.to_le_bytes());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; MESSAGE_LEN] = bytes.try_into().ok()?;
        let action = ACTIONS.get(usize::from(bytes[1])).filter(|_| bytes[0] == VERSION)?;
        let (numbers, _) = bytes[2..].as_chunks::<8>();
        let [records, from, to] = numbers else { return None };
        let time = |bytes| Some(u64::from_le_bytes(bytes)).filter(|time_s| *time_s != ANY_TIME);
        let records = u64::from_le_bytes(*records);
        Some(Self { action: *action, records, from_s: time(*from), to_s: time(*to) })
    }

    fn event(&self, uid: u32, count: u64) -> Event {
        Event::LogRead {
            observed: ReaderFacts { uid, count: (count > 1).then_some(count) },
            declared: LogReadFacts {
                action: self.action,
                records_max: bucket(self.records),
                from_s: self.from_s,
                to_s: self.to_s,
            },
        }
    }

    /// Both, as one: the most records, and the whole time.
    fn with(self, other: Self) -> Self {
        Self {
            action: self.action,
            records: self.records.max(other.records),
            from_s: self.from_s.zip(other.from_s).map(|(a, b)| a.min(b)),
            to_s: self.to_s.zip(other.to_s).map(|(a, b)| a.max(b)),
        }
    }
}

/// What was recorded a short time ago, and what came since.
#[derive(Default)]
pub(super) struct Readings(HashMap<(u32, LogAction), Recent>);

struct Recent {
    since: Instant,
    more: Option<(u64, Reading)>,
}

impl Readings {
    /// Notes a reading; returns its record, unless one of the same user and kind was a short time ago.
    fn note(&mut self, uid: u32, reading: Reading, now: Instant) -> Option<Event> {
        let key = (uid, reading.action);
        if let Some(recent) = self.0.get_mut(&key)
            && now.saturating_duration_since(recent.since) < INTERVAL
        {
            recent.more = Some(match recent.more {
                Some((count, before)) => (count + 1, before.with(reading)),
                None => (1, reading),
            });
            return None;
        }
        let before = self.0.insert(key, Recent { since: now, more: None });
        let (count, reading) = match before.and_then(|recent| recent.more) {
            Some((count, before)) => (count + 1, before.with(reading)),
            None => (1, reading),
        };
        Some(reading.event(uid, count))
    }

    /// The records that are due.
    fn due(&mut self, now: Instant) -> Vec<Event> {
        let is_due = |recent: &Recent| now.saturating_duration_since(recent.since) >= INTERVAL;
        let events = self.take(is_due);
        for recent in self.0.values_mut().filter(|recent| recent.more.is_some() && is_due(recent)) {
            *recent = Recent { since: now, more: None };
        }
        self.0.retain(|_, recent| !is_due(recent));
        events
    }

    /// All records.
    pub(super) fn all(&mut self) -> Vec<Event> {
        let events = self.take(|_| true);
        self.0.clear();
        events
    }

    fn take(&self, is_it: impl Fn(&Recent) -> bool) -> Vec<Event> {
        let events =
            self.0.iter().filter(|(_, recent)| is_it(recent)).filter_map(|(key, recent)| {
                recent.more.as_ref().map(|(count, reading)| reading.event(key.0, *count))
            });
        events.collect()
    }
}

/// A reader who has connected.
struct Client {
    socket: OwnedFd,
    uid: u32,
    since: Instant,
}

/// The auditors' socket and its connections.
pub(super) struct ReadersSocket {
    path: PathBuf,
    listener: UnixListener,
    clients: Vec<Client>,
}

impl ReadersSocket {
    /// Makes the socket for a group, in the place of one that nobody listens on.
    pub(super) fn bind(path: &Path, group: u32) -> io::Result<Self> {
        if let Ok(facts) = fs::symlink_metadata(path) {
            if !facts.file_type().is_socket() || dial(path).is_ok() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            fs::remove_file(path)?;
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        // Made by the group, so that nothing has to be given to it.
        let own = getegid();
        setegid(Gid::from_raw(group))?;
        let bound = bind(listener.as_raw_fd(), &UnixAddr::new(path)?);
        setegid(own)?;
        bound?;
        // Nobody can connect before `listen`.
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        listen(&listener, Backlog::new(8)?)?;
        let (path, listener) = (path.to_owned(), UnixListener::from(listener));
        Ok(Self { path, listener, clients: Vec::new() })
    }

    /// What to poll for reading: the listener, then the connections.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let clients = self.clients.iter().map(|client| client.socket.as_fd());
        std::iter::once(self.listener.as_fd()).chain(clients)
    }

    /// Takes the socket away.
    pub(super) fn remove(&self) {
        // The folder may be root's; whoever starts next replaces the socket.
        let _ = fs::remove_file(&self.path);
    }

    /// Accepts who waits, and returns what was said, by whom, and where to answer.
    fn turn(&mut self, closer: &Closer, now: Instant) -> Vec<(OwnedFd, u32, Reading)> {
        if closer.is_full() {
            return Vec::new();
        }
        let mut clients = std::mem::take(&mut self.clients);
        for _ in 0..CLIENTS_COUNT_MAX {
            let Ok((stream, _)) = self.listener.accept() else { break };
            let socket = OwnedFd::from(stream);
            match peer(socket.as_fd()) {
                Ok((_, uid, _)) => clients.push(Client { socket, uid, since: now }),
                Err(_) => closer.close([socket]),
            }
        }
        let mut said = Vec::new();
        for client in clients {
            let mut bytes = [0; MESSAGE_LEN + 1];
            let is_late = now.saturating_duration_since(client.since) >= SAY_DEADLINE;
            let Client { socket, uid, since } = client;
            match receive(socket.as_fd(), &mut bytes, false) {
                Err(Errno::EAGAIN) if !is_late && self.has_place(uid) => {
                    self.clients.push(Client { socket, uid, since });
                }
                Err(_) => closer.close([socket]),
                Ok(packet) => {
                    closer.close(packet.descriptors);
                    match bytes.get(..packet.len).and_then(Reading::decode) {
                        Some(reading) => said.push((socket, uid, reading)),
                        None => closer.close([socket]),
                    }
                }
            }
        }
        said
    }

    /// Whether one more connection of a user is waited for.
    fn has_place(&self, uid: u32) -> bool {
        let its = self.clients.iter().filter(|client| client.uid == uid).count();
        its < USER_CLIENTS_COUNT_MAX && self.clients.len() < CLIENTS_COUNT_MAX
    }
}

impl Supervisor {
    /// Hears the auditors, and appends the records that are due.
    pub(super) fn hear_readers(&mut self) {
        let now = now().instant;
        let closer = self.control.closer().clone();
        let said = self.readers.as_mut().map(|readers| readers.turn(&closer, now));
        let said = said.unwrap_or_default();
        for (socket, uid, reading) in said {
            let answer = [if self.record_reading(uid, reading) { RECORDED } else { NOT_RECORDED }];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            // A reader that went away is no fault.
            let _ = send(socket.as_raw_fd(), &answer, flags);
            // There may be more in it than was said.
            closer.close([socket]);
        }
        let due = self.readings.due(now);
        self.ledger.append_all(due);
    }

    /// Puts a reading on the record, durably; says whether it is there.
    pub(super) fn record_reading(&mut self, uid: u32, reading: Reading) -> bool {
        if self.ledger.is_failing() {
            return false;
        }
        match self.readings.note(uid, reading, now().instant) {
            None => true,
            Some(event) => {
                self.ledger.append(event);
                self.ledger.commit().is_ok()
            }
        }
    }
}

/// Where the auditors' socket is: beside the operators'.
#[must_use]
pub fn socket_beside(control_socket: &Path) -> PathBuf {
    control_socket.with_file_name("readers.sock")
}

fn dial(path: &Path) -> io::Result<OwnedFd> {
    let connection =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(connection.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(connection)
}

/// Has the supervisor behind `path` record a reading; returns whether it did.
///
/// # Errors
///
/// Connection errors; `TimedOut` when it does not answer.
pub fn announce(path: &Path, reading: &Reading) -> io::Result<bool> {
    let connection = dial(path)?;
    send(connection.as_raw_fd(), &reading.encode(), MsgFlags::MSG_NOSIGNAL)?;
    let deadline = nix::sys::time::TimeVal::new(ANSWER_DEADLINE_S, 0);
    setsockopt(&connection, sockopt::ReceiveTimeout, &deadline)?;
    let mut answer = [0; 2];
    match receive(connection.as_fd(), &mut answer, true) {
        Ok(packet) => match answer.get(..packet.len) {
            Some([RECORDED]) => Ok(true),
            Some([NOT_RECORDED]) => Ok(false),
            _ => Err(io::ErrorKind::InvalidData.into()),
        },
        Err(Errno::EAGAIN) => Err(io::ErrorKind::TimedOut.into()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READING: Reading =
        Reading { action: LogAction::List, records: 7, from_s: Some(5), to_s: None };

    /// How often, how, how many records at most, and of what time.
    fn facts(event: Event) -> (u32, u64, LogAction, u64, Option<u64>, Option<u64>) {
        let Event::LogRead { observed, declared } = event else { panic!("{event:?}") };
        let LogReadFacts { action, records_max, from_s, to_s } = declared;
        (observed.uid, observed.count.unwrap_or(1), action, records_max, from_s, to_s)
    }

    #[test]
    fn a_message_has_one_form() {
        for action in ACTIONS {
            for (from_s, to_s) in [(None, None), (Some(0), Some(u64::MAX - 1)), (Some(9), None)] {
                let reading = Reading { action, records: u64::MAX, from_s, to_s };
                assert_eq!(Reading::decode(&reading.encode()), Some(reading));
            }
        }
        let good = READING.encode();
        for (at, to) in [(0, 0), (0, 2), (1, 9), (1, 255)] {
            let mut bad = good;
            bad[at] = to;
            assert_eq!(Reading::decode(&bad), None, "{at} {to}");
        }
        assert_eq!(Reading::decode(&good[1..]), None);
        assert_eq!(Reading::decode(&[&good[..], &[0]].concat()), None);
    }

    #[test]
    fn the_first_is_recorded_at_once_and_those_that_follow_together() {
        let (mut readings, start) = (Readings::default(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        let first = readings.note(1000, READING, at(0)).map(facts);
        assert_eq!(first, Some((1000, 1, LogAction::List, 8, Some(5), None)));
        let wider = Reading { records: 100, from_s: Some(2), to_s: Some(9), ..READING };
        assert!(readings.note(1000, READING, at(1)).is_none());
        assert!(readings.note(1000, wider, at(2)).is_none());
        // Another user and another way are told apart.
        assert!(readings.note(1001, READING, at(2)).is_some());
        let export = Reading { action: LogAction::Export, ..READING };
        assert!(readings.note(1000, export, at(2)).is_some());
        assert!(readings.due(at(9)).is_empty());
        let due: Vec<_> = readings.due(at(10)).into_iter().map(facts).collect();
        assert_eq!(due, [(1000, 2, LogAction::List, 128, Some(2), None)]);
        // What was just recorded counts as the first again.
        assert!(readings.note(1000, READING, at(19)).is_none());
        let all: Vec<_> = readings.all().into_iter().map(facts).collect();
        assert_eq!(all, [(1000, 1, LogAction::List, 8, Some(5), None)]);
        assert!(readings.due(at(100)).is_empty() && readings.0.is_empty());
    }

    #[test]
    fn nothing_is_kept_of_who_read_long_ago() {
        let (mut readings, start) = (Readings::default(), Instant::now());
        readings.note(1000, READING, start);
        readings.due(start + INTERVAL);
        assert!(readings.0.is_empty());
        readings.note(1000, READING, start);
        readings.note(1000, READING, start);
        // A late look finds what waited in the next record.
        let late = readings.note(1000, READING, start + INTERVAL).map(facts);
        assert_eq!(late.map(|facts| facts.1), Some(2));
    }

    #[test]
    fn readers_are_heard_and_who_babbles_or_is_silent_is_dropped() {
        let path = std::env::temp_dir().join(format!("cloister-readers-{}", std::process::id()));
        let group = getegid().as_raw();
        let (mut server, closer) =
            (ReadersSocket::bind(&path, group).unwrap(), Closer::start().unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(ReadersSocket::bind(&path, group).is_err(), "one is there");
        let client_path = path.clone();
        let client = std::thread::spawn(move || announce(&client_path, &READING).unwrap());
        let (socket, uid, reading) = loop {
            if let Some(said) = server.turn(&closer, Instant::now()).pop() {
                break said;
            }
            std::thread::yield_now();
        };
        assert_eq!((uid, reading), (nix::unistd::geteuid().as_raw(), READING));
        send(socket.as_raw_fd(), &[RECORDED], MsgFlags::empty()).unwrap();
        assert!(client.join().unwrap());
        let start = Instant::now();
        let babbling = dial(&path).unwrap();
        send(babbling.as_raw_fd(), &[VERSION; MESSAGE_LEN + 9], MsgFlags::empty()).unwrap();
        assert!(server.turn(&closer, start).is_empty() && server.clients.is_empty());
        let silent = [(); 4].map(|()| dial(&path).unwrap());
        assert!(server.turn(&closer, start).is_empty());
        assert_eq!(server.clients.len(), USER_CLIENTS_COUNT_MAX);
        assert!(server.turn(&closer, start + SAY_DEADLINE).is_empty());
        assert!(server.clients.is_empty());
        drop((silent, server));
        // A dead one's place is taken.
        ReadersSocket::bind(&path, group).unwrap().remove();
        assert!(!path.exists());
    }
}
