//! The gateway that was taken over. Its listener brings orders; it serves nobody.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;

use cloister::ipc::message::{
    Digest, Endpoint, FromGateway, FromWorker, Generate, Prompt, RequestId, Sampling, ToGateway,
    ToWorker, WorkerIndex,
};
use cloister::ipc::{Channel, DataChannel, Event, Message};
use cloister::sandbox::Role;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use super::{attack_control, break_filter, either};

/// A number for every question.
const CORRELATION: u64 = 7;
/// TLS's name for ECDSA on P-256 with SHA-256.
const ECDSA_P256: u16 = 0x0403;

/// Words of a text that takes a while to be read.
const LONG_WORDS_COUNT: usize = 2_000_000;
/// How often it calls a worker broken, and the time between, in milliseconds.
const ACCUSATIONS_COUNT: usize = 25;
const ACCUSATION_STEP_MS: u8 = 50;
/// The first worker; the only one, where one serves all of a model's requests.
const FIRST: WorkerIndex = WorkerIndex(0);

struct Gateway<'a> {
    control: &'a Channel,
    workers: BTreeMap<u16, DataChannel<ToWorker, FromWorker>>,
}

pub(super) fn run(control: &Channel) {
    let (ToGateway::Config(_), mut listeners) = control.recv().unwrap() else { panic!() };
    let listener = TcpListener::from(listeners.remove(0));
    listener.set_nonblocking(false).unwrap();
    control.send(&FromGateway::Ready, &[]).unwrap();
    let mut gateway = Gateway { control, workers: BTreeMap::new() };
    loop {
        let (spoken, connected) = either(control.as_fd(), listener.as_fd());
        if spoken {
            gateway.hear();
        }
        if connected {
            gateway.serve(listener.accept().unwrap().0);
        }
    }
}

impl Gateway<'_> {
    /// Takes one message of the supervisor; returns those that answer.
    fn hear(&mut self) -> Option<ToGateway> {
        match self.control.recv().unwrap() {
            (ToGateway::AreYouThere, _) => self.control.send(&FromGateway::Alive, &[]).unwrap(),
            (ToGateway::ModelUp { .. } | ToGateway::ModelDown { .. }, _) => {}
            (ToGateway::WorkerUp { worker }, mut data) => {
                self.workers.insert(worker.0, DataChannel::new(data.remove(0)));
            }
            (ToGateway::Drain, _) => std::process::exit(0),
            (answer, _) => return Some(answer),
        }
        None
    }

    fn ask(&mut self, question: &FromGateway) -> ToGateway {
        self.control.send(question, &[]).unwrap();
        self.next_answer()
    }

    fn next_answer(&mut self) -> ToGateway {
        loop {
            if let Some(answer) = self.hear() {
                return answer;
            }
        }
    }

    fn serve(&mut self, mut stream: TcpStream) {
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let answer = if line.starts_with("GET") {
            let status = if self.workers.is_empty() { 503 } else { 200 };
            format!("HTTP/1.1 {status} x\r\nConnection: close\r\n\r\n")
        } else {
            self.obey(&serde_json::from_str(&line).unwrap()).to_string()
        };
        // Whoever asks whether it is ready may be gone again.
        let _ = stream.write_all(answer.as_bytes());
    }

    fn obey(&mut self, order: &Value) -> Value {
        let attack = order["attack"].as_str().unwrap();
        let key = hex(order["key"].as_str().unwrap());
        let asked = u32::try_from(order["max_tokens"].as_u64().unwrap_or(4)).unwrap();
        let begun = |gateway: &mut Self| gateway.begin(key, asked);
        match attack {
            "honest" => match begun(self) {
                Ok((request, worker)) => self.generate(worker, request, asked),
                Err(denied) => denied,
            },
            "no-begin" => self.generate(FIRST, RequestId([9; 16]), 4),
            "replay" => {
                let (request, worker) = begun(self).unwrap();
                let first = self.generate(worker, request, 4);
                json!({ "first": first, "second": self.generate(worker, request, 4) })
            }
            "widen" => {
                let (request, worker) = begun(self).unwrap();
                self.generate(worker, request, 1000)
            }
            "reuse" => {
                let (first, its) = begun(self).unwrap();
                let (second, others) = begun(self).unwrap();
                assert_ne!(its, others);
                let before = self.generate(its, second, 4);
                let right = self.generate(its, first, 4);
                let after = self.generate(its, second, 4);
                let control = self.generate(others, second, 4);
                json!({ "before": before, "right": right, "after": after, "control": control })
            }
            "mislabel" => self.mislabel(key),
            "accuse" => self.accuse(),
            "begin-and-abandon" => self.abandon(key, false),
            "generate-and-abandon" => self.abandon(key, true),
            "other-model" => {
                let asked = self.question(key, "none such", 4);
                json!(format!("{:?}", self.ask(&asked)))
            }
            "sign-handshake" => {
                let content = b"TLS 1.3, server CertificateVerify\0";
                self.sign([&[b' '; 64][..], content, &[7; 32]].concat())
            }
            "sign-anything" => self.sign(b"I owe the bearer".to_vec()),
            "sign-client" => {
                let content = b"TLS 1.3, client CertificateVerify\0";
                self.sign([&[b' '; 64][..], content, &[7; 32]].concat())
            }
            "break-filter" => {
                break_filter(self.control, Role::Gateway);
                Value::Null
            }
            "ready" => self.tell(&FromGateway::Ready),
            "alive" => self.tell(&FromGateway::Alive),
            "abandon" => self.tell(&FromGateway::Abandoned { request: RequestId([9; 16]) }),
            "worker-garbage" => self.to_worker(&[&8_u32.to_le_bytes()[..], &[0xff; 8]].concat()),
            "worker-oversized" => self.to_worker(&u32::MAX.to_le_bytes()),
            "worker-empty" => self.to_worker(&[0; 4]),
            "worker-half" => {
                let told = self.to_worker(&[&100_u32.to_le_bytes()[..], &[1; 50]].concat());
                self.workers.clear();
                told
            }
            "worker-descriptor" => self.descriptor_to_worker(),
            other => {
                let valid = FromGateway::Authorize { correlation: CORRELATION, key };
                assert!(attack_control(self.control, other, &valid.encode().unwrap()), "{other}");
                // Nothing comes; the end does.
                loop {
                    self.hear();
                }
            }
        }
    }

    /// Says that a request is another than what its worker gets.
    fn mislabel(&mut self, key: Digest) -> Value {
        let (correlation, model, max_tokens) = (CORRELATION, String::new(), 4096);
        let (endpoint, stream) = (Endpoint::Chat, true);
        let begun =
            self.ask(&FromGateway::Begin { correlation, key, endpoint, model, max_tokens, stream });
        let ToGateway::Begun { request, worker: Some(worker), .. } = begun else { panic!() };
        self.generate(worker, request, 4)
    }

    /// Calls the first worker broken, and each that takes its place.
    fn accuse(&mut self) -> Value {
        for _ in 0..ACCUSATIONS_COUNT {
            self.control.send(&FromGateway::WorkerBroken { worker: FIRST }, &[]).unwrap();
            let mut ends = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ends, ACCUSATION_STEP_MS).unwrap() > 0 {
                self.hear();
            }
        }
        json!("done")
    }

    /// Gives up what it has begun, and has brought to its worker or not.
    fn abandon(&mut self, key: Digest, is_brought: bool) -> Value {
        let (request, worker) = self.begin(key, 4).unwrap();
        if is_brought {
            self.send(worker, request, "a word ".repeat(LONG_WORDS_COUNT), 4);
        }
        self.control.send(&FromGateway::Abandoned { request }, &[]).unwrap();
        if is_brought { self.answer(worker) } else { json!("abandoned") }
    }

    fn question(&self, key: Digest, model: &str, max_tokens: u32) -> FromGateway {
        let (correlation, model) = (CORRELATION, model.to_owned());
        let (endpoint, stream) = (Endpoint::Completion, false);
        FromGateway::Begin { correlation, key, endpoint, model, max_tokens, stream }
    }

    fn begin(&mut self, key: Digest, max_tokens: u32) -> Result<(RequestId, WorkerIndex), Value> {
        let question = self.question(key, "", max_tokens);
        let mut answer = self.ask(&question);
        loop {
            match answer {
                ToGateway::Begun { request, worker: Some(worker), .. }
                | ToGateway::Turn { request, worker: Some(worker) } => {
                    return Ok((request, worker));
                }
                ToGateway::Begun { worker: None, .. } => answer = self.next_answer(),
                other => return Err(json!(format!("{other:?}"))),
            }
        }
    }

    fn sign(&mut self, message: Vec<u8>) -> Value {
        let (correlation, scheme) = (CORRELATION, ECDSA_P256);
        match self.ask(&FromGateway::Sign { correlation, scheme, message }) {
            ToGateway::Signature { signature, .. } => json!({ "signature": signature.len() }),
            other => json!(format!("{other:?}")),
        }
    }

    fn tell(&mut self, message: &FromGateway) -> Value {
        self.control.send(message, &[]).unwrap();
        loop {
            self.hear();
        }
    }

    /// Asks a worker and counts what it answers.
    fn generate(&mut self, worker: WorkerIndex, request: RequestId, max_tokens: u32) -> Value {
        self.send(worker, request, "abc".to_owned(), max_tokens);
        self.answer(worker)
    }

    fn send(&mut self, worker: WorkerIndex, request: RequestId, text: String, max_tokens: u32) {
        let worker = self.workers.get_mut(&worker.0).unwrap();
        let (sampling, prompt) = (Sampling::greedy(), Prompt::Text(text));
        let generate = Generate { request, prompt, sampling, stop: Vec::new(), max_tokens };
        worker.push(&ToWorker::Generate(Box::new(generate))).unwrap();
        while worker.pending_len() > 0 && worker.flush().is_ok() {
            std::thread::yield_now();
        }
    }

    fn answer(&mut self, worker: WorkerIndex) -> Value {
        let worker = self.workers.get_mut(&worker.0).unwrap();
        let mut deltas = 0;
        loop {
            let mut ends = [PollFd::new(worker.as_fd(), PollFlags::POLLIN)];
            poll(&mut ends, PollTimeout::NONE).unwrap();
            match worker.read() {
                Ok(Event::Message(FromWorker::Delta { .. })) => deltas += 1,
                Ok(Event::Message(FromWorker::Done { completion_tokens, .. })) => {
                    return json!({ "tokens": completion_tokens, "deltas": deltas });
                }
                Ok(Event::Message(FromWorker::Failed { failure, .. })) => {
                    return json!({ "failed": format!("{failure:?}"), "deltas": deltas });
                }
                Ok(Event::Message(FromWorker::Started { .. }) | Event::Empty) => {}
                Ok(Event::Closed) | Err(_) => return json!({ "failed": "closed" }),
            }
        }
    }

    fn to_worker(&self, bytes: &[u8]) -> Value {
        let worker = &self.workers[&FIRST.0];
        json!(nix::unistd::write(worker, bytes).unwrap())
    }

    /// An end of a pipe of this process, attached to a frame that asks for nothing.
    fn descriptor_to_worker(&mut self) -> Value {
        let worker = self.workers[&FIRST.0].as_fd().try_clone_to_owned().unwrap();
        let (ours, theirs) = std::io::pipe().unwrap();
        let cancel = ToWorker::Cancel { request: RequestId([9; 16]) }.encode().unwrap();
        let len = u32::try_from(cancel.len()).unwrap().to_le_bytes();
        let frame = [&len[..], &cancel].concat();
        super::send_raw(&Channel::new(worker), &frame, &[theirs.as_fd()]);
        drop(theirs);
        // Nobody took the other end: it is closed as soon as the bytes are read.
        let mut ends = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
        let closed = poll(&mut ends, PollTimeout::from(20_000_u16)).unwrap();
        json!({ "kept": closed == 0 })
    }
}

fn hex(text: &str) -> Digest {
    let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
    Digest(std::array::from_fn(byte))
}
