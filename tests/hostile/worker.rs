//! The worker that was taken over. It computes nothing; each prompt is an order.

use std::os::fd::AsFd;

use cloister::ipc::message::{
    Digest, EndReport, Finish, FromWorker, Generate, Outcome, Prompt, RequestId, ToWorker,
    ToWorkerControl, WorkerReport,
};
use cloister::ipc::{Channel, DataChannel, Event, Message};
use cloister::sandbox::Role;

use super::{attack_control, break_filter, either};

/// What it says it can hold.
const CONTEXT_LEN_TOKENS: u32 = 512;
/// Asked for this context, it says at its start that it has found no card.
const CONTEXT_WITHOUT_CARD: u32 = 1313;

struct Worker<'a> {
    control: &'a Channel,
    data: DataChannel<FromWorker, ToWorker>,
}

pub(super) fn run(control: &Channel) {
    let (ToWorkerControl::Config(config), mut fds) = control.recv().unwrap() else { panic!() };
    if config.context_len_tokens == CONTEXT_WITHOUT_CARD {
        let why = "no CUDA driver: it was taken over".to_owned();
        control.send(&WorkerReport::NoCard { why }, &[]).unwrap();
    }
    control.send(&ready(), &[]).unwrap();
    let mut worker = Worker { control, data: DataChannel::new(fds.pop().unwrap()) };
    loop {
        let (spoken, asked) = either(control.as_fd(), worker.data.as_fd());
        if spoken {
            match control.recv().unwrap().0 {
                ToWorkerControl::AreYouThere => control.send(&WorkerReport::Alive, &[]).unwrap(),
                ToWorkerControl::Drain => return,
                _ => {}
            }
        }
        if asked && let Ok(Event::Message(ToWorker::Generate(generate))) = worker.data.read() {
            worker.obey(&generate);
        }
    }
}

fn ready() -> WorkerReport {
    let engine = "one that was taken over".to_owned();
    WorkerReport::Ready { context_len_tokens: CONTEXT_LEN_TOKENS, engine }
}

fn end(request: RequestId, completion_tokens: u32) -> WorkerReport {
    WorkerReport::End(EndReport {
        request,
        outcome: Outcome::Stop,
        messages: vec![Digest([1; 32])],
        answer: Digest([2; 32]),
        parameters: Digest([3; 32]),
        prompt_tokens: 1,
        completion_tokens,
    })
}

impl Worker<'_> {
    fn obey(&mut self, generate: &Generate) {
        let request = generate.request;
        let Prompt::Text(attack) = &generate.prompt else { return };
        let other = RequestId([9; 16]);
        match attack.as_str() {
            "honest" => {
                self.control.send(&end(request, 1), &[]).unwrap();
                self.answer(request, "ok");
            }
            "end-of-another" => self.control.send(&end(other, 1), &[]).unwrap(),
            "end-twice" => {
                self.control.send(&end(request, 1), &[]).unwrap();
                self.control.send(&end(request, 1), &[]).unwrap();
            }
            "more-tokens-than-granted" => {
                self.control.send(&end(request, generate.max_tokens + 1), &[]).unwrap();
            }
            "ready" => self.control.send(&ready(), &[]).unwrap(),
            "alive" => self.control.send(&WorkerReport::Alive, &[]).unwrap(),
            "unused" => self.control.send(&WorkerReport::Unused { request }, &[]).unwrap(),
            "unused-of-another" => {
                self.control.send(&WorkerReport::Unused { request: other }, &[]).unwrap();
            }
            "break-filter" => break_filter(self.control, Role::Worker),
            "panic-of-words" => {
                let file = "src/the patient has a name\nand a line".to_owned();
                self.control.send(&WorkerReport::Panicked { file, line: 1 }, &[]).unwrap();
            }
            "panic-of-a-word" => {
                let file = "src/the_patient.rs".to_owned();
                self.control.send(&WorkerReport::Panicked { file, line: 1 }, &[]).unwrap();
                std::process::exit(1);
            }
            "answer-to-another" => {
                self.say(&FromWorker::Delta { request: other, text: "stolen".to_owned() });
                self.say(&FromWorker::Done {
                    request: other,
                    finish: Finish::Stop,
                    prompt_tokens: 1,
                    completion_tokens: 1,
                    cached_tokens: 0,
                });
                self.control.send(&end(request, 1), &[]).unwrap();
                self.answer(request, "ok");
            }
            "answer-after-its-end" => {
                self.control.send(&end(request, 1), &[]).unwrap();
                self.answer(request, "ok");
                self.say(&FromWorker::Delta { request, text: "more".to_owned() });
            }
            "frame-garbage" => self.write(&[&8_u32.to_le_bytes()[..], &[0xff; 8]].concat()),
            "frame-oversized" => self.write(&u32::MAX.to_le_bytes()),
            "frame-empty" => self.write(&[0; 4]),
            other => {
                let valid = WorkerReport::NoTicket { request }.encode().unwrap();
                assert!(attack_control(self.control, other, &valid));
            }
        }
    }

    fn answer(&mut self, request: RequestId, text: &str) {
        self.say(&FromWorker::Started { request, prompt_tokens: 1 });
        self.say(&FromWorker::Delta { request, text: text.to_owned() });
        self.say(&FromWorker::Done {
            request,
            finish: Finish::Stop,
            prompt_tokens: 1,
            completion_tokens: 1,
            cached_tokens: 0,
        });
    }

    fn say(&mut self, message: &FromWorker) {
        self.data.push(message).unwrap();
        self.data.flush().unwrap();
    }

    fn write(&mut self, bytes: &[u8]) {
        nix::unistd::write(&self.data, bytes).unwrap();
    }
}
