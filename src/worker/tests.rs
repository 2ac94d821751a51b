//! A request is judged by its ticket alone, whatever the gateway says.

use std::sync::{Arc, mpsc};
use std::thread;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::link::{Admitted, Ended, Link, Mouth, Said, Sayings};
use super::scheduler::Heard;
use crate::ipc::message::{
    Digest, EndReport, Failure, Finish, FromWorker, Generate, Outcome, Prompt, RequestId, Sampling,
    Ticket, ToWorker, ToWorkerControl, WorkerReport,
};
use crate::ipc::{Channel, DataChannel, Event, data_pair};

/// The other ends of a running link.
struct Peers {
    supervisor: Channel,
    gateway: DataChannel<ToWorker, FromWorker>,
    admitted: mpsc::Receiver<Admitted>,
    heard: mpsc::Receiver<Heard>,
    mouth: Mouth,
    ended: thread::JoinHandle<Ended>,
}

fn start(one_request: bool) -> Peers {
    let (supervisor, control) = Channel::pair().unwrap();
    let (gateway, data) = data_pair().unwrap();
    let (woken, wake) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
    let said = Arc::<Sayings>::default();
    let (admitted_sender, admitted) = mpsc::channel();
    let (heard_sender, heard) = mpsc::channel();
    let link = Link {
        control: Arc::new(control),
        data: DataChannel::new(data),
        said: Arc::clone(&said),
        woken,
        admitted: admitted_sender,
        heard: heard_sender,
        one_request,
    };
    let ended = thread::spawn(move || link.run());
    let mouth = Mouth::new(said, Arc::new(wake));
    Peers { supervisor, gateway: DataChannel::new(gateway), admitted, heard, mouth, ended }
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
    let mut peers = start(false);
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
    let (report, _) = peers.supervisor.recv::<WorkerReport>().unwrap();
    assert!(matches!(report, WorkerReport::NoTicket { request: RequestId(id) } if id == [2; 16]));
    let (report, _) = peers.supervisor.recv::<WorkerReport>().unwrap();
    assert!(matches!(report, WorkerReport::Unused { request: RequestId(id) } if id == [3; 16]));

    // A question whether all threads work takes a request's way.
    peers.supervisor.send(&ToWorkerControl::AreYouThere, &[]).unwrap();
    assert!(matches!(peers.admitted.recv().unwrap(), Admitted::AreYouThere));

    drop(peers.supervisor);
    assert_eq!(peers.ended.join().unwrap(), Ended::Closed);
}

fn ask(peers: &mut Peers, request: u8) {
    peers.gateway.push(&generate(request)).unwrap();
    peers.gateway.flush().unwrap();
}

/// Says what the engine's side says of a request that ended.
fn end(peers: &Peers, request: u8) {
    let request = RequestId([request; 16]);
    peers.mouth.say(Said::Supervisor(WorkerReport::End(EndReport {
        request,
        outcome: Outcome::Stop,
        messages: Vec::new(),
        answer: Digest([0; 32]),
        parameters: Digest([0; 32]),
        prompt_tokens: 1,
        completion_tokens: 1,
    })));
    peers.mouth.say(Said::Gateway(FromWorker::Done {
        request,
        finish: Finish::Stop,
        prompt_tokens: 1,
        completion_tokens: 1,
        cached_tokens: 0,
    }));
}

#[test]
fn a_worker_of_one_request_serves_no_second_one_and_ends_after_the_first() {
    let mut peers = start(true);
    peers.supervisor.send(&ticket(1), &[]).unwrap();
    ask(&mut peers, 1);
    assert!(matches!(peers.admitted.recv().unwrap(), Admitted::Request(..)));
    // Another request's ticket is another worker's: here there is none.
    ask(&mut peers, 2);
    let failure = Failure::NoTicket;
    assert_eq!(
        next(&mut peers.gateway),
        FromWorker::Failed { request: RequestId([2; 16]), failure }
    );
    assert!(!peers.ended.is_finished(), "a refusal is not the end of its request");
    end(&peers, 1);
    assert!(matches!(next(&mut peers.gateway), FromWorker::Done { .. }));
    assert_eq!(peers.ended.join().unwrap(), Ended::Served);

    // The control: one that serves all of a model's requests goes on.
    let mut peers = start(false);
    for request in [1, 2] {
        peers.supervisor.send(&ticket(request), &[]).unwrap();
        ask(&mut peers, request);
        assert!(matches!(peers.admitted.recv().unwrap(), Admitted::Request(..)));
        end(&peers, request);
        assert!(matches!(next(&mut peers.gateway), FromWorker::Done { .. }));
    }

    // A second ticket is not believed even of the supervisor.
    let peers = start(true);
    peers.supervisor.send(&ticket(1), &[]).unwrap();
    peers.supervisor.send(&ticket(2), &[]).unwrap();
    assert_eq!(peers.ended.join().unwrap(), Ended::TooManyTickets);
}

/// The engine's thread keeps what it is told to stop before it knows it; a gateway must not fill that room
/// with names, and push a revocation out.
#[test]
fn only_what_a_worker_has_is_cancelled_and_for_all_else_it_says_that_it_has_none() {
    let mut peers = start(false);
    let request = |number: u8| RequestId([number; 16]);
    let cancel = |peers: &mut Peers, number| {
        peers.gateway.push(&ToWorker::Cancel { request: request(number) }).unwrap();
        peers.gateway.flush().unwrap();
    };
    peers.supervisor.send(&ticket(1), &[]).unwrap();
    for number in 1..=200 {
        cancel(&mut peers, number);
    }
    ask(&mut peers, 1);
    assert!(matches!(peers.admitted.recv().unwrap(), Admitted::Request(..)));
    assert!(peers.heard.try_recv().is_err(), "nobody has any of these");
    // Now it has one: the gateway and the supervisor may stop it, and no report says otherwise.
    cancel(&mut peers, 1);
    assert!(matches!(peers.heard.recv().unwrap(), Heard::Cancel(one) if one == request(1)));
    let revoke = |number| ToWorkerControl::Revoke { request: request(number) };
    peers.supervisor.send(&revoke(1), &[]).unwrap();
    assert!(matches!(peers.heard.recv().unwrap(), Heard::Cancel(one) if one == request(1)));
    end(&peers, 1);
    let (report, _) = peers.supervisor.recv::<WorkerReport>().unwrap();
    assert!(matches!(report, WorkerReport::End(_)), "{report:?}");
    // It has ended, so that there is nothing to stop.
    peers.supervisor.send(&revoke(1), &[]).unwrap();
    let (report, _) = peers.supervisor.recv::<WorkerReport>().unwrap();
    assert!(matches!(report, WorkerReport::Unused { request: one } if one == request(1)));
    cancel(&mut peers, 1);
    peers.supervisor.send(&ToWorkerControl::AreYouThere, &[]).unwrap();
    assert!(matches!(peers.admitted.recv().unwrap(), Admitted::AreYouThere));
    assert!(peers.heard.try_recv().is_err());
}
