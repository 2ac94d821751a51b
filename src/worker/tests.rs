//! A request is judged by its ticket alone, whatever the gateway says.

use std::sync::{Arc, mpsc};
use std::thread;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::link::{Admitted, Ended, Link};
use crate::ipc::message::{
    Failure, FromWorker, Generate, Prompt, RequestId, Sampling, Ticket, ToWorker, ToWorkerControl,
    WorkerReport,
};
use crate::ipc::{Channel, DataChannel, Event, data_pair};

/// The other ends of a running link.
struct Peers {
    supervisor: Channel,
    gateway: DataChannel<ToWorker, FromWorker>,
    admitted: mpsc::Receiver<Admitted>,
    ended: thread::JoinHandle<Ended>,
}

fn start() -> Peers {
    let (supervisor, control) = Channel::pair().unwrap();
    let (gateway, data) = data_pair().unwrap();
    let (woken, _wake) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
    let (admitted_sender, admitted) = mpsc::channel();
    let (heard, _heard) = mpsc::channel();
    let link = Link {
        control: Arc::new(control),
        data: DataChannel::new(data),
        said: Arc::default(),
        woken,
        admitted: admitted_sender,
        heard,
    };
    // The ends that this test does not use stay open with the link.
    let ended = thread::spawn(move || {
        let _kept = (_wake, _heard);
        link.run()
    });
    Peers { supervisor, gateway: DataChannel::new(gateway), admitted, ended }
}

fn generate(request: u8) -> ToWorker {
    ToWorker::Generate(Box::new(Generate {
        request: RequestId([request; 16]),
        prompt: Prompt::Text("hello".into()),
        sampling: Sampling::greedy(),
        stop: Vec::new(),
        max_tokens: 1,
    }))
}

fn ticket(request: u8) -> ToWorkerControl {
    let request = RequestId([request; 16]);
    ToWorkerControl::Ticket(Ticket {
        request,
        cache_domain: None,
        max_tokens: 1,
        deadline_ms: 60_000,
    })
}

fn next(gateway: &mut DataChannel<ToWorker, FromWorker>) -> FromWorker {
    loop {
        match gateway.read().unwrap() {
            Event::Message(message) => return message,
            Event::Empty => thread::yield_now(),
            Event::Closed => panic!("the link closed its end"),
        }
    }
}

#[test]
fn a_request_without_a_ticket_is_refused_and_reported() {
    let mut peers = start();
    let refused = |request| FromWorker::Failed {
        request: RequestId([request; 16]),
        failure: Failure::NoTicket,
    };
    peers.gateway.push(&generate(1)).unwrap();
    peers.gateway.flush().unwrap();
    assert_eq!(next(&mut peers.gateway), refused(1));
    let (report, _) = peers.supervisor.recv::<WorkerReport>().unwrap();
    assert!(matches!(report, WorkerReport::NoTicket { request: RequestId(id) } if id == [1; 16]));

    peers.supervisor.send(&ticket(2), &[]).unwrap();
    peers.gateway.push(&generate(2)).unwrap();
    peers.gateway.flush().unwrap();
    let Admitted::Request(generated, _) = peers.admitted.recv().unwrap() else { panic!() };
    assert_eq!(generated.request, RequestId([2; 16]));
    // A ticket serves once.
    peers.gateway.push(&generate(2)).unwrap();
    peers.gateway.flush().unwrap();
    assert_eq!(next(&mut peers.gateway), refused(2));

    // A ticket that was taken back is none.
    peers.supervisor.send(&ticket(3), &[]).unwrap();
    let revoke = ToWorkerControl::Revoke { request: RequestId([3; 16]) };
    peers.supervisor.send(&revoke, &[]).unwrap();
    peers.gateway.push(&generate(3)).unwrap();
    peers.gateway.flush().unwrap();
    assert_eq!(next(&mut peers.gateway), refused(3));

    // A question whether all threads work takes a request's way.
    peers.supervisor.send(&ToWorkerControl::AreYouThere, &[]).unwrap();
    assert!(matches!(peers.admitted.recv().unwrap(), Admitted::AreYouThere));

    drop(peers.supervisor);
    assert_eq!(peers.ended.join().unwrap(), Ended::Closed);
}
