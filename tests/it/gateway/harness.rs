//! The gateway in a thread of the test, with a scripted supervisor and a worker played by the test.
//!
//! The channels are the real ones; what is missing is the jail alone.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use cloister::gateway;
use cloister::ipc::message::{
    Denial, FromGateway, FromWorker, GatewayConfig, Generate, ListenerKind, ModelIndex, ModelInfo,
    RequestId, ToGateway, ToWorker, WorkerIndex,
};
use cloister::ipc::{Channel, FrameDecoder, FrameEncoder, data_pair};
use ring::signature::EcdsaKeyPair;
use serde_json::Value;

/// The one key that the scripted supervisor knows.
pub(super) const KEY: &str = "sk-test-key";

/// Longest wait of a test for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the scripted supervisor was told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Begin { model: String, max_tokens: u32, stream: bool },
    Abandoned(RequestId),
    Signed,
    KeysMalformed(u32),
}

/// A running gateway.
pub(super) struct Running {
    pub(super) supervisor: Arc<Channel>,
    pub(super) seen: Receiver<Seen>,
    pub(super) socket: PathBuf,
    pub(super) tcp: Option<std::net::SocketAddr>,
    /// Whether it ended well.
    ended: Option<JoinHandle<bool>>,
    /// While locked, the supervisor answers no `Begin`.
    pub(super) begin_gate: Arc<Mutex<()>>,
    folder: PathBuf,
}

/// The limits that most tests use.
pub(super) fn config() -> GatewayConfig {
    GatewayConfig {
        listeners: vec![ListenerKind::Unix],
        certificates: Vec::new(),
        tls_scheme: 0,
        body_len_max_bytes: 1 << 20,
        read_deadline_ms: 10_000,
        write_deadline_ms: 10_000,
        connections_max: 16,
        connections_per_peer_max: 16,
        requests_max: 8,
    }
}

/// A TLS key as the supervisor has it.
pub(super) struct TlsKey(pub(super) EcdsaKeyPair);

impl Running {
    pub(super) fn start(config: GatewayConfig) -> Self {
        Self::start_with(config, None)
    }

    /// Starts the gateway; a second listener, if named, is on loopback TCP.
    pub(super) fn start_with(config: GatewayConfig, tls: Option<TlsKey>) -> Self {
        let (ours, theirs) = Channel::pair().unwrap();
        let ended = std::thread::spawn(move || gateway::run(theirs, |_| Ok(())).is_ok());
        Self::configure(config, tls, ours, ended)
    }

    /// Starts the real program, which closes its sandbox before it serves.
    pub(super) fn start_sealed(config: GatewayConfig, tls: Option<TlsKey>) -> (Self, u32) {
        let (ours, theirs) = Channel::pair().unwrap();
        // The shell moves the channel from 0 to 3, where the program looks for it.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" 3<&0 0</dev/null", env!("CARGO_BIN_EXE_cloister-gateway")])
            .env_clear()
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let id = child.id();
        let ended = std::thread::spawn(move || child.wait().unwrap().success());
        (Self::configure(config, tls, ours, ended), id)
    }

    fn configure(
        config: GatewayConfig,
        tls: Option<TlsKey>,
        ours: Channel,
        ended: JoinHandle<bool>,
    ) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cloister-gateway-{}-{count}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("api.sock");
        let mut listeners: Vec<OwnedFd> = vec![UnixListener::bind(&socket).unwrap().into()];
        let mut tcp = None;
        if config.listeners.len() > 1 {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            tcp = Some(listener.local_addr().unwrap());
            listeners.push(listener.into());
        }
        let fds: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
        ours.send(&ToGateway::Config(config), &fds).unwrap();
        let (message, _) = ours.recv::<FromGateway>().unwrap();
        assert!(matches!(message, FromGateway::Ready));
        let supervisor = Arc::new(ours);
        let begin_gate = Arc::new(Mutex::new(()));
        let (sender, seen) = channel();
        let script = Script {
            channel: Arc::clone(&supervisor),
            sender,
            gate: Arc::clone(&begin_gate),
            tls,
            next_request: 0,
        };
        std::thread::spawn(move || script.play());
        Self { supervisor, seen, socket, tcp, ended: Some(ended), begin_gate, folder }
    }

    /// Brings up a worker for the model `name`.
    pub(super) fn worker(&self, index: u16, name: &str) -> Worker {
        let (ours, theirs) = data_pair().unwrap();
        let info = ModelInfo { name: name.to_owned(), context_len_tokens: 100, created_s: 7 };
        let message = ToGateway::ModelUp { model: ModelIndex(index), info };
        self.supervisor.send(&message, &[]).unwrap();
        let message = ToGateway::WorkerUp { worker: WorkerIndex(index) };
        self.supervisor.send(&message, &[theirs.as_fd()]).unwrap();
        let stream = UnixStream::from(ours);
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let worker = Worker { stream };
        // The gateway takes its messages in order, but its answers to clients say when it has.
        while !self.client().get("/v1/models").text().contains(&format!("\"{name}\"")) {}
        worker
    }

    pub(super) fn client(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    /// Waits for its end, and says whether that was a good one.
    pub(super) fn ends(mut self) -> bool {
        self.ended.take().unwrap().join().unwrap()
    }

    /// What the supervisor is told next.
    pub(super) fn next_seen(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

struct Script {
    channel: Arc<Channel>,
    sender: Sender<Seen>,
    gate: Arc<Mutex<()>>,
    tls: Option<TlsKey>,
    next_request: u8,
}

impl Script {
    fn play(mut self) {
        let want = ring::digest::digest(&ring::digest::SHA256, KEY.as_bytes());
        while let Ok((message, _)) = self.channel.recv::<FromGateway>() {
            let mut later = None;
            let answer = match message {
                FromGateway::Authorize { correlation, key } => {
                    if key.0 == want.as_ref() {
                        ToGateway::Authorized { correlation }
                    } else {
                        ToGateway::Denied { correlation, reason: Denial::KeyInvalid }
                    }
                }
                FromGateway::Begin { correlation, model, max_tokens, stream, .. } => {
                    let (reason, turn) = (denial(&model), turn(&model));
                    self.sender.send(Seen::Begin { model, max_tokens, stream }).ok();
                    drop(self.gate.lock().unwrap());
                    match reason {
                        Some(reason) => ToGateway::Denied { correlation, reason },
                        None => {
                            self.next_request += 1;
                            let request = RequestId([self.next_request; 16]);
                            let (model, worker) = (ModelIndex(0), WorkerIndex(0));
                            let worker = turn.is_none().then_some(worker);
                            later =
                                turn.flatten().map(|worker| ToGateway::Turn { request, worker });
                            ToGateway::Begun { correlation, request, model, worker }
                        }
                    }
                }
                FromGateway::Sign { correlation, message, .. } => {
                    // Another message in between must not be lost.
                    let down = ToGateway::ModelDown { model: ModelIndex(9) };
                    self.channel.send(&down, &[]).unwrap();
                    let random = ring::rand::SystemRandom::new();
                    let pair = &self.tls.as_ref().unwrap().0;
                    let signature = pair.sign(&random, &message).unwrap().as_ref().to_vec();
                    self.sender.send(Seen::Signed).ok();
                    ToGateway::Signature { correlation, signature }
                }
                FromGateway::Abandoned { request } => {
                    self.sender.send(Seen::Abandoned(request)).ok();
                    // A turn that crosses this word harms nobody.
                    ToGateway::Turn { request, worker: Some(WorkerIndex(0)) }
                }
                FromGateway::KeysMalformed { count } => {
                    self.sender.send(Seen::KeysMalformed(count)).ok();
                    continue;
                }
                // The end of the worker says it, too.
                FromGateway::WorkerBroken { .. } => continue,
                FromGateway::Alive => panic!("an answer to no question"),
                FromGateway::Ready => panic!("ready twice"),
            };
            let sent = std::iter::once(answer).chain(later);
            if sent.into_iter().any(|message| self.channel.send(&message, &[]).is_err()) {
                return;
            }
        }
    }
}

/// Whether a request for this model has to wait for its worker, and what its turn brings, if it comes.
fn turn(model: &str) -> Option<Option<Option<WorkerIndex>>> {
    Some(match model {
        "later" => Some(Some(WorkerIndex(0))),
        "later-gone" => Some(Some(WorkerIndex(7))),
        "later-none" => Some(None),
        "later-never" => None,
        _ => return None,
    })
}

fn denial(model: &str) -> Option<Denial> {
    Some(match model {
        "missing" => Denial::ModelUnknown,
        "loading" => Denial::ModelUnavailable,
        "log" => Denial::LogUnavailable,
        "busy" => Denial::TooManyRequests,
        "stopping" => Denial::Stopping,
        _ => return None,
    })
}

/// The worker's end of a data channel, played by the test.
pub(super) struct Worker {
    pub(super) stream: UnixStream,
}

impl Worker {
    pub(super) fn next(&mut self) -> ToWorker {
        let mut decoder = FrameDecoder::<ToWorker>::default();
        loop {
            let count = self.stream.read(decoder.space()).unwrap();
            assert!(count > 0, "the gateway closed the data channel");
            if let Some(message) = decoder.advance(count).unwrap() {
                return message;
            }
        }
    }

    pub(super) fn next_generate(&mut self) -> Generate {
        match self.next() {
            ToWorker::Generate(generate) => *generate,
            ToWorker::Cancel { .. } => panic!("a cancel where work was expected"),
        }
    }

    pub(super) fn next_cancel(&mut self) -> RequestId {
        match self.next() {
            ToWorker::Cancel { request } => request,
            ToWorker::Generate(_) => panic!("work where a cancel was expected"),
        }
    }

    pub(super) fn say(&mut self, message: &FromWorker) {
        let mut encoder = FrameEncoder::default();
        encoder.push(message).unwrap();
        self.stream.write_all(encoder.pending()).unwrap();
    }

    pub(super) fn delta(&mut self, request: RequestId, text: &str) {
        self.say(&FromWorker::Delta { request, text: text.to_owned() });
    }

    /// A whole answer.
    pub(super) fn answer(&mut self, request: RequestId, texts: &[&str]) {
        use cloister::ipc::message::Finish;
        self.say(&FromWorker::Started { request, prompt_tokens: 5 });
        for text in texts {
            self.delta(request, text);
        }
        let finish = Finish::Stop;
        let (prompt_tokens, completion_tokens, cached_tokens) = (5, 2, 4);
        self.say(&FromWorker::Done {
            request,
            finish,
            prompt_tokens,
            completion_tokens,
            cached_tokens,
        });
    }
}

/// A response, read to its end.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The error's type, parameter and code, when all four fields are there.
    pub(super) fn error(&self) -> (u16, Value, Value, Value) {
        let body = self.json();
        let error = body["error"].as_object().unwrap();
        assert_eq!(error.len(), 4);
        assert!(error["message"].is_string());
        let field = |name: &str| error[name].clone();
        (self.status, field("type"), field("param"), field("code"))
    }
}

/// A client with one connection.
pub(super) struct Client<S: Read = UnixStream> {
    pub(super) stream: BufReader<S>,
}

/// The bytes of a request.
pub(super) fn request(method: &str, path: &str, extra: &str, body: &str) -> Vec<u8> {
    let len = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
         content-type: application/json\r\ncontent-length: {len}\r\n{extra}\r\n{body}"
    )
    .into_bytes()
}

impl<S: Read + Write> Client<S> {
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    pub(super) fn get(&mut self, path: &str) -> Reply {
        self.send(&request("GET", path, "", ""));
        self.reply()
    }

    pub(super) fn post(&mut self, path: &str, body: &Value) -> Reply {
        self.send_post(path, body);
        self.reply()
    }

    pub(super) fn send_post(&mut self, path: &str, body: &Value) {
        self.send(&request("POST", path, "", &body.to_string()));
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The head of a response.
    pub(super) fn head(&mut self) -> Reply {
        let status_line = self.line();
        let status = status_line.split(' ').nth(1).expect(&status_line).parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            match line.split_once(": ") {
                Some((name, value)) => headers.push((name.to_owned(), value.to_owned())),
                None => break,
            }
        }
        Reply { status, headers, body: Vec::new() }
    }

    /// A chunk of a body; `None` at its end.
    pub(super) fn chunk(&mut self) -> Option<String> {
        let len = usize::from_str_radix(&self.line(), 16).unwrap();
        let mut bytes = vec![0; len + 2];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes.truncate(len);
        (len > 0).then(|| String::from_utf8(bytes).unwrap())
    }

    /// A response to its end.
    pub(super) fn reply(&mut self) -> Reply {
        let mut reply = self.head();
        if let Some(len) = reply.header("content-length") {
            reply.body = vec![0; len.parse().unwrap()];
            self.stream.read_exact(&mut reply.body).unwrap();
        } else {
            while let Some(chunk) = self.chunk() {
                reply.body.extend_from_slice(chunk.as_bytes());
            }
        }
        reply
    }

    /// Whether the gateway closes the connection next.
    pub(super) fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 1]), Ok(0))
    }
}

/// The data of all server-sent events of a body.
pub(super) fn events(body: &str) -> Vec<&str> {
    let events = body.split("\n\n").filter(|event| !event.is_empty());
    events.map(|event| event.strip_prefix("data: ").expect(event)).collect()
}
