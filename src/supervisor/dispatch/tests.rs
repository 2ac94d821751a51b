//! Every order of messages: what is allowed, what is recorded first, what kills.

mod one_request;

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use ring::signature::Ed25519KeyPair;

use super::*;
use crate::audit::record::samples::names;
use crate::audit::record::{KeyUseFacts, ProgramFacts, RefusalReason, StartFacts};
use crate::audit::{Log, PrincipalKeys, Signer, WrappingKey};
use crate::ipc::message::{Endpoint, NO_TICKETS_COUNT_MAX};
use crate::supervisor::tokens::{Role, token_digest};

const MODEL: ModelIndex = ModelIndex(0);
const OTHER: WorkerIndex = WorkerIndex(1);
const WORKER: WorkerIndex = WorkerIndex(0);

/// A dispatch with two models, a real log, and one valid token.
struct Appliance {
    dispatch: Dispatch,
    ledger: Ledger,
    now: Now,
    key: Digest,
    folder: PathBuf,
}

impl Drop for Appliance {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn appliance(name: &str) -> Appliance {
    let worker = config::Worker { prefix_principals: 2, ..config::Worker::default() };
    appliance_of(name, worker)
}

fn appliance_of(name: &str, worker: config::Worker) -> Appliance {
    let unique = format!("cloister-dispatch-{name}-{}", std::process::id());
    let folder = std::env::temp_dir().join(unique);
    let _ = fs::remove_dir_all(&folder);
    let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let text = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
    let signer = Signer::from_pem("test/log", pem.as_bytes()).unwrap();
    let (log, _) = Log::open(&folder.join("log"), signer).unwrap();
    let wrapping = WrappingKey::generate().unwrap();
    let wrapping = WrappingKey::parse(wrapping.expose()).unwrap();
    let keys = PrincipalKeys::open(&folder.join("principals"), wrapping).unwrap();
    let ledger = Ledger::new(log, keys, &start_facts());
    let mut tokens = TokenTable::default();
    let token = tokens.add("alice", Role::User, 0, Some(1000)).unwrap();
    let models = ["first", "second"].map(|name| (name.to_owned(), Digest([1; 32])));
    let limits = Limits {
        requests_max: 3,
        requests_per_key_max: 2,
        request_deadline_ms: 60_000,
        ..Limits::default()
    };
    let dispatch = Dispatch::new(limits, worker, tokens, None, models.into()).unwrap();
    let now = Now { wall_s: 100, instant: Instant::now() };
    Appliance { dispatch, ledger, now, key: token_digest(&token), folder }
}

fn start_facts() -> StartFacts {
    let digest = || "00".repeat(32);
    StartFacts {
        version: "0.0.0".into(),
        profile: "evaluation".into(),
        config_digest: digest(),
        policy_digest: digest(),
        build_digest: digest(),
        programs: ProgramFacts {
            supervisor: digest(),
            gateway: digest(),
            worker: digest(),
            worker_gpu: None,
        },
        landlock_abi: 1,
        retention: None,
        tpm_counter: None,
    }
}

/// An appliance whose gateway and workers serve.
fn serving(name: &str) -> Appliance {
    let mut it = appliance(name);
    it.dispatch.worker_started(WORKER, false);
    it.dispatch.worker_started(OTHER, false);
    it.worker(WORKER, ready()).unwrap();
    it.worker(OTHER, ready()).unwrap();
    it.dispatch.gateway_started();
    it.gateway(FromGateway::Ready).unwrap();
    let effects = it.dispatch.take_effects();
    assert!(matches!(
        effects[..],
        [
            Effect::ModelReady(MODEL),
            Effect::WorkerReady(WORKER),
            Effect::ModelReady(ModelIndex(1)),
            Effect::WorkerReady(OTHER),
            Effect::GatewayReady,
        ]
    ));
    it
}

fn ready() -> WorkerReport {
    WorkerReport::Ready { context_len_tokens: 64, engine: "avx2, 1 thread".into() }
}

fn end(request: RequestId) -> EndReport {
    EndReport {
        request,
        outcome: Outcome::Stop,
        messages: vec![Digest([2; 32])],
        answer: Digest([3; 32]),
        parameters: Digest([4; 32]),
        prompt_tokens: 5,
        completion_tokens: 9,
    }
}

impl Appliance {
    fn gateway(&mut self, message: FromGateway) -> Result<(), Fault> {
        self.dispatch.hear_gateway(message, &mut self.ledger, self.now)
    }

    fn worker(&mut self, worker: WorkerIndex, report: WorkerReport) -> Result<(), Fault> {
        self.dispatch.hear_worker(worker, report, &mut self.ledger, self.now)
    }

    fn ask(&mut self, model: &str) -> Result<(), Fault> {
        self.gateway(FromGateway::Begin {
            correlation: 7,
            key: self.key,
            endpoint: Endpoint::Chat,
            model: model.into(),
            max_tokens: 20,
            stream: true,
        })
    }

    fn turn(&mut self) -> Vec<Effect> {
        self.dispatch.expire(&mut self.ledger, self.now);
        self.dispatch.commit(&mut self.ledger, self.now);
        self.dispatch.take_effects()
    }

    /// A begun request.
    fn begun(&mut self) -> RequestId {
        self.ask("").unwrap();
        let effects = self.turn();
        let [Effect::Worker(WORKER, ToWorkerControl::Ticket(ticket)), Effect::Gateway(begun)] =
            &effects[..]
        else {
            panic!("{effects:?}");
        };
        let ToGateway::Begun { correlation: 7, request, model: MODEL, worker: Some(WORKER) } =
            begun
        else {
            panic!("{begun:?}");
        };
        assert_eq!(ticket.request, *request);
        *request
    }

    fn denied(&mut self) -> Denial {
        let effects = self.turn();
        match &effects[..] {
            [Effect::Gateway(ToGateway::Denied { correlation: 7, reason })] => *reason,
            _ => panic!("{effects:?}"),
        }
    }
}

/// The journal is not all UTF-8; read it leniently.
fn journal(folder: &Path) -> String {
    String::from_utf8_lossy(&fs::read(folder.join("log/journal")).unwrap()).into_owned()
}

#[test]
fn a_request_goes_from_begin_to_end_and_the_ticket_comes_first() {
    let mut it = serving("whole");
    let request = it.begun();
    let text = journal(&it.folder);
    assert!(text.contains("\"begin\"") && !text.contains("alice"), "{text}");
    it.worker(WORKER, WorkerReport::End(end(request))).unwrap();
    assert!(it.turn().is_empty());
    assert_eq!(it.dispatch.open_count(), 0);
    let text = journal(&it.folder);
    assert!(text.contains("\"end\"") && text.contains("\"completion_tokens_max\":16"), "{text}");
    // The worker's digest stands in the log keyed only.
    assert!(!text.contains(&"03".repeat(32)));
}

#[test]
fn the_begin_record_is_durable_before_anything_is_sent() {
    let mut it = serving("durable");
    it.ask("").unwrap();
    assert!(it.dispatch.take_effects().is_empty());
    assert!(!journal(&it.folder).contains("\"begin\""));
    it.turn();
    assert!(journal(&it.folder).contains("\"begin\""));
}

#[test]
fn begins_of_one_turn_share_a_commit() {
    let mut it = serving("group");
    it.ask("").unwrap();
    it.ask("second").unwrap();
    let effects = it.turn();
    assert_eq!(effects.len(), 4);
    assert!(matches!(effects[2], Effect::Worker(OTHER, ToWorkerControl::Ticket(_))));
}

#[test]
fn tickets_bind_the_limits_and_one_principal_has_one_cache_domain() {
    let mut it = serving("ticket");
    let mut tickets = Vec::new();
    for max_tokens in [20, 0] {
        let begin = FromGateway::Begin {
            correlation: 1,
            key: it.key,
            endpoint: Endpoint::Completion,
            model: "first".into(),
            max_tokens,
            stream: false,
        };
        it.gateway(begin).unwrap();
        for effect in it.turn() {
            if let Effect::Worker(_, ToWorkerControl::Ticket(ticket)) = effect {
                tickets.push(ticket);
            }
        }
    }
    assert_eq!(tickets.iter().map(|ticket| ticket.max_tokens).collect::<Vec<_>>(), [20, 64]);
    assert!(tickets[0].cache_domain.is_some());
    assert_eq!(tickets[0].cache_domain, tickets[1].cache_domain);
    assert_ne!(tickets[0].request, tickets[1].request);
}

#[test]
fn cache_domains_follow_the_token_table_and_are_forgotten_with_their_principal() {
    let mut it = serving("domains");
    let mut tokens = it.dispatch.tokens.clone();
    for name in ["bob", "carol"] {
        tokens.add(name, Role::User, 0, None).unwrap();
    }
    it.dispatch.set_tokens(tokens.clone(), &mut it.ledger, it.now);
    assert!(it.turn().is_empty(), "nobody has lost anything");
    let domain = |it: &Appliance, name| it.dispatch.cache_domains.find(&it.dispatch.tokens, name);
    let (alice, bob) = (domain(&it, "alice").unwrap(), domain(&it, "bob").unwrap());
    assert_ne!(alice, bob);
    assert_eq!(domain(&it, "carol"), None, "there is room for two");

    let running = it.begun();
    tokens.revoke("alice", 100).unwrap();
    it.dispatch.set_tokens(tokens, &mut it.ledger, it.now);
    let effects = it.turn();
    let is_forget = |effect: &Effect, at: WorkerIndex| {
        matches!(effect, Effect::Worker(worker, ToWorkerControl::Forget { cache_domain })
            if *worker == at && *cache_domain == alice)
    };
    assert!(matches!(effects[0], Effect::Worker(WORKER, ToWorkerControl::Revoke { request })
            if request == running));
    assert!(is_forget(&effects[1], WORKER) && is_forget(&effects[2], OTHER), "{effects:?}");
    assert_eq!(effects.len(), 3);
    assert_eq!(domain(&it, "alice"), None);
    assert_eq!(domain(&it, "bob"), Some(bob));
    assert!(domain(&it, "carol").is_some(), "whoever moves up has one");
}

#[test]
fn denials_have_reasons() {
    let mut it = serving("denials");
    it.ask("third").unwrap();
    assert_eq!(it.denied(), Denial::ModelUnknown);
    let good = std::mem::replace(&mut it.key, Digest([0; 32]));
    it.ask("").unwrap();
    assert_eq!(it.denied(), Denial::KeyInvalid);
    it.key = good;
    it.now.wall_s = 1000;
    it.ask("").unwrap();
    assert_eq!(it.denied(), Denial::KeyInvalid);
    it.now.wall_s = 999;
    it.begun();
    it.begun();
    it.ask("second").unwrap();
    assert_eq!(it.denied(), Denial::TooManyRequests);
    it.dispatch.worker_gone(WORKER, false, &mut it.ledger);
    it.turn();
    it.ask("").unwrap();
    assert_eq!(it.denied(), Denial::ModelUnavailable);
    it.dispatch.stop();
    it.ask("second").unwrap();
    assert_eq!(it.denied(), Denial::Stopping);
}

#[test]
fn refusals_are_counted_so_that_a_flood_is_few_records() {
    let mut it = serving("flood");
    it.key = Digest([0; 32]);
    for _ in 0..500 {
        it.ask("").unwrap();
        it.turn();
    }
    it.now.instant += Duration::from_secs(11);
    it.turn();
    let text = journal(&it.folder);
    assert_eq!(text.matches("\"authentication_failed\":").count(), 2, "{text}");
    assert!(text.contains("\"count\":1}") && text.contains("\"count\":499}"), "{text}");
}

#[test]
fn keys_that_open_nothing_are_told_apart_and_never_named() {
    let mut it = serving("authentication");
    let mut tokens = it.dispatch.tokens.clone();
    let revoked = token_digest(&tokens.add("bob", Role::User, 0, None).unwrap());
    tokens.revoke("bob", 100).unwrap();
    it.dispatch.set_tokens(tokens, &mut it.ledger, it.now);
    let pseudonym = it.ledger.pseudonym("bob").unwrap();
    it.now.wall_s = 1000;
    for key in [it.key, revoked, Digest([9; 32])] {
        let correlation = 7;
        it.gateway(FromGateway::Authorize { correlation, key }).unwrap();
    }
    it.turn();
    let text = journal(&it.folder);
    for cause in ["expired", "revoked", "unknown"] {
        assert!(text.contains(&format!("\"cause\":\"{cause}\",\"count\":1")), "{cause}: {text}");
    }
    assert!(text.contains(&pseudonym) && !text.contains("bob") && !text.contains("alice"));
}

#[test]
fn a_log_that_cannot_be_written_grants_nothing_and_cuts_what_runs() {
    let mut it = serving("log");
    let running = it.begun();
    let broken = break_log(&it);
    it.ask("").unwrap();
    let effects = it.turn();
    assert!(effects.iter().any(|effect| matches!(
        effect,
        Effect::Gateway(ToGateway::Denied { reason: Denial::LogUnavailable, .. })
    )));
    assert!(effects.iter().any(|effect| matches!(
        effect,
        Effect::Worker(WORKER, ToWorkerControl::Revoke { request }) if *request == running
    )));
    assert!(!effects.iter().any(|effect| matches!(
        effect,
        Effect::Worker(_, ToWorkerControl::Ticket(_)) | Effect::Gateway(ToGateway::Begun { .. })
    )));
    let report = EndReport { outcome: Outcome::Cancelled, ..end(running) };
    it.worker(WORKER, WorkerReport::End(report)).unwrap();
    it.turn();
    assert!(it.ledger.is_failing());
    // Once it can be written again, the end that waited is in it and work goes on.
    mend_log(broken);
    it.begun();
    let text = journal(&it.folder);
    let count = |what: &str| text.matches(what).count();
    assert_eq!(count("\"end\":"), 1, "{text}");
    // A begin that became durable although its commit failed has an end too.
    assert_eq!(count("\"begin\":"), 2 + count("\"cause\":\"log_unavailable\""), "{text}");
}

/// No file can be made until the returned paths are exchanged again; what is open can still be written.
fn break_log(it: &Appliance) -> [PathBuf; 2] {
    let (log, away) = (it.folder.join("log"), it.folder.join("away"));
    fs::rename(&log, &away).unwrap();
    fs::write(&log, "in the way").unwrap();
    [log, away]
}

fn mend_log([log, away]: [PathBuf; 2]) {
    fs::remove_file(&log).unwrap();
    fs::rename(&away, &log).unwrap();
}

fn uses(ledger: &mut Ledger, events_count: u64, count: u64) {
    for _ in 0..events_count {
        ledger.append(Event::KeyUsed { observed: KeyUseFacts { key: KeyRole::Tls, count } });
    }
}

#[test]
fn what_is_dropped_while_the_log_cannot_be_written_is_counted_on_the_record() {
    let mut it = serving("dropped");
    let running = it.begun();
    let broken = break_log(&it);
    uses(&mut it.ledger, 1, 1);
    assert!(it.ledger.commit().is_err());
    uses(&mut it.ledger, 5000, 777);
    assert!(it.ledger.commit().is_err());
    uses(&mut it.ledger, 100, 777);
    it.ledger.shed();
    it.ledger.append(Event::end_missing(request_name(running), MissingCause::Deadline));
    assert!(it.ledger.commit().is_err());
    mend_log(broken);
    it.ledger.commit().unwrap();
    it.ledger.commit().unwrap();
    let text = journal(&it.folder);
    let count = |what: &str| text.matches(what).count();
    let (kept, dropped) = (count("\"count\":777}"), 5100 - 4096);
    assert_eq!(kept, 4096);
    assert_eq!(count("\"events_dropped\""), 1, "{text}");
    assert_eq!(
        count(&format!("{{\"events_dropped\":{{\"observed\":{{\"count\":{dropped}}}}}}}")),
        1
    );
    assert_eq!(count("\"end_missing\""), 1, "an end is never dropped");
}

#[test]
fn a_request_that_begins_as_the_log_works_again_is_on_the_record_whatever_waits() {
    let mut it = serving("backlog");
    let broken = break_log(&it);
    for _ in 0..2 {
        uses(&mut it.ledger, 4500, 1);
        assert!(it.ledger.commit().is_err());
    }
    mend_log(broken);
    let request = it.begun();
    assert!(
        journal(&it.folder)
            .contains(&format!("{{\"begin\":{{\"request\":\"{}\"", request_name(request)))
    );
}

/// What the schema knows as a reason is one that a request can meet.
#[test]
fn every_reason_of_a_refusal_is_one_that_the_supervisor_gives() {
    let mut it = serving("reasons");
    it.ask("none").unwrap();
    it.dispatch.models[1].is_open = false;
    it.ask("second").unwrap();
    for _ in 0..3 {
        it.ask("first").unwrap();
    }
    it.turn();
    let broken = break_log(&it);
    uses(&mut it.ledger, 1, 1);
    assert!(it.ledger.commit().is_err());
    it.dispatch.requests.clear();
    it.ask("first").unwrap();
    it.turn();
    mend_log(broken);
    it.dispatch.stop();
    it.ask("first").unwrap();
    it.dispatch.flush_counts(&mut it.ledger);
    it.turn();
    let text = journal(&it.folder);
    let given = |reason: &&String| text.contains(&format!("\"reason\":\"{reason}\""));
    let known = names::<RefusalReason>();
    assert_eq!(known.iter().filter(given).collect::<Vec<_>>(), known.iter().collect::<Vec<_>>());
}

#[test]
fn messages_at_the_wrong_moment_kill() {
    let mut it = appliance("moment");
    assert_eq!(it.gateway(FromGateway::Ready), Err(Fault::Moment(Kind::GatewayReady)));
    it.dispatch.gateway_started();
    assert_eq!(it.ask(""), Err(Fault::Moment(Kind::Begin)));
    let abandoned = FromGateway::Abandoned { request: RequestId([0; 16]) };
    assert_eq!(it.gateway(abandoned), Err(Fault::Moment(Kind::Abandoned)));
    assert_eq!(it.worker(WORKER, ready()), Err(Fault::Moment(Kind::WorkerReady)));
    it.dispatch.worker_started(WORKER, false);
    let report = WorkerReport::End(end(RequestId([0; 16])));
    assert_eq!(it.worker(WORKER, report), Err(Fault::Moment(Kind::End)));
}

#[test]
fn no_card_is_found_by_a_worker_alone_that_was_started_to_use_one() {
    let no_card = |why: &str| WorkerReport::NoCard { why: why.into() };
    let mut it = appliance("no-card");
    it.dispatch.worker_started(WORKER, false);
    it.dispatch.worker_started(OTHER, true);
    assert_eq!(it.worker(WORKER, no_card("none")), Err(Fault::Moment(Kind::NoCard)));
    assert!(it.dispatch.take_effects().is_empty());
    it.worker(OTHER, no_card("none")).unwrap();
    let effects = it.dispatch.take_effects();
    assert!(matches!(&effects[..], [Effect::NoCard(OTHER, why)] if why == "none"), "{effects:?}");
    assert_eq!(it.worker(OTHER, no_card("none")), Err(Fault::Repeated(Kind::NoCard)));
    it.dispatch.worker_started(OTHER, true);
    assert_eq!(it.worker(OTHER, no_card("line\nfeed")), Err(Fault::Value(Kind::NoCard)));
}

#[test]
fn repeated_messages_kill() {
    let mut it = serving("repeated");
    assert_eq!(it.gateway(FromGateway::Ready), Err(Fault::Repeated(Kind::GatewayReady)));
    assert_eq!(it.worker(WORKER, ready()), Err(Fault::Repeated(Kind::WorkerReady)));
    let request = it.begun();
    it.gateway(FromGateway::Abandoned { request }).unwrap();
    let again = it.gateway(FromGateway::Abandoned { request });
    assert_eq!(again, Err(Fault::Repeated(Kind::Abandoned)));
    it.worker(WORKER, WorkerReport::End(end(request))).unwrap();
    let again = it.worker(WORKER, WorkerReport::End(end(request)));
    assert_eq!(again, Err(Fault::Repeated(Kind::End)));
    let panic = || WorkerReport::Panicked { file: "src/engine/mod.rs".into(), line: 3 };
    it.worker(WORKER, panic()).unwrap();
    assert_eq!(it.worker(WORKER, panic()), Err(Fault::Repeated(Kind::Panicked)));
}

#[test]
fn forged_messages_kill() {
    let mut it = serving("forged");
    let unknown = RequestId([9; 16]);
    let abandoned = it.gateway(FromGateway::Abandoned { request: unknown });
    assert_eq!(abandoned, Err(Fault::UnknownRequest(Kind::Abandoned)));
    let report = it.worker(WORKER, WorkerReport::End(end(unknown)));
    assert_eq!(report, Err(Fault::UnknownRequest(Kind::End)));
    let sign = FromGateway::Sign { correlation: 1, scheme: 0x0403, message: vec![0; 9] };
    assert_eq!(it.gateway(sign), Err(Fault::Moment(Kind::Sign)));
    let no_worker = FromGateway::WorkerBroken { worker: WorkerIndex(9) };
    assert_eq!(it.gateway(no_worker), Err(Fault::Value(Kind::WorkerBroken)));
    let request = it.begun();
    // Another model's worker ends a request that it was never given.
    let report = it.worker(OTHER, WorkerReport::End(end(request)));
    assert_eq!(report, Err(Fault::UnknownRequest(Kind::End)));
    // That it has none of a request is said when it is asked to stop, and of its own.
    let unused = |request| WorkerReport::Unused { request };
    assert_eq!(it.worker(WORKER, unused(request)), Err(Fault::Moment(Kind::Unused)));
    assert_eq!(it.worker(OTHER, unused(request)), Err(Fault::UnknownRequest(Kind::Unused)));
    assert_eq!(it.worker(WORKER, unused(unknown)), Err(Fault::UnknownRequest(Kind::Unused)));
    let impossible = [
        EndReport { completion_tokens: 21, ..end(request) },
        EndReport { prompt_tokens: 65, ..end(request) },
        EndReport { messages: vec![Digest([0; 32]); MESSAGES_COUNT_MAX + 1], ..end(request) },
    ];
    for report in impossible {
        let report = it.worker(WORKER, WorkerReport::End(report));
        assert_eq!(report, Err(Fault::Value(Kind::End)));
    }
    let no_card = WorkerReport::NoCard { why: "line\nfeed".into() };
    assert_eq!(it.worker(WORKER, no_card), Err(Fault::Moment(Kind::NoCard)), "while it serves");
    let panic = WorkerReport::Panicked { file: "line\nfeed".into(), line: 3 };
    assert_eq!(it.worker(WORKER, panic), Err(Fault::Value(Kind::Panicked)));
}

#[test]
fn only_handshakes_are_signed() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = crate::secret::Secret::new(made.signing_key.serialize_pem().into_bytes());
    let (key, _) = TlsKey::read(&key, made.cert.pem().as_bytes()).unwrap();
    let mut it = serving("sign");
    it.dispatch.tls = Some(key);
    let context = [&[b' '; 64][..], b"TLS 1.3, server CertificateVerify\0", &[0; 32]].concat();
    let sign = |message| FromGateway::Sign { correlation: 1, scheme: 0x0403, message };
    it.gateway(sign(context.clone())).unwrap();
    let effects = it.turn();
    assert!(matches!(&effects[..], [Effect::Gateway(ToGateway::Signature { signature, .. })]
        if !signature.is_empty()));
    assert!(journal(&it.folder).contains("\"key_used\""));
    let forged = it.gateway(sign(context[1..].to_vec()));
    assert_eq!(forged, Err(Fault::Value(Kind::Sign)));
}

#[test]
fn a_gone_worker_leaves_end_missing_and_the_gateway_hears_of_it() {
    let mut it = serving("worker-gone");
    it.begun();
    let panic = WorkerReport::Panicked { file: "src/engine/mod.rs".into(), line: 3 };
    it.worker(WORKER, panic).unwrap();
    let cause = it.dispatch.worker_gone(WORKER, false, &mut it.ledger);
    assert_eq!(cause.as_deref(), Some("declared a panic at src/engine/mod.rs:3"));
    let effects = it.turn();
    assert!(matches!(effects[..], [Effect::Gateway(ToGateway::ModelDown { model: MODEL })]));
    assert!(journal(&it.folder).contains("worker_gone"));
    assert_eq!(it.dispatch.open_count(), 0);
    it.dispatch.worker_started(WORKER, false);
    it.worker(WORKER, ready()).unwrap();
    it.turn();
    it.begun();
}

#[test]
fn a_gone_gateway_leaves_end_missing_for_what_ran_and_what_just_began() {
    let mut it = serving("gateway-gone");
    it.begun();
    it.ask("second").unwrap();
    it.dispatch.gateway_gone(&mut it.ledger);
    it.turn();
    assert!(it.turn().is_empty());
    let text = journal(&it.folder);
    assert_eq!(text.matches("\"begin\":").count(), 2, "{text}");
    assert_eq!(text.matches("gateway_gone").count(), 2, "{text}");
    assert_eq!(it.dispatch.open_count(), 0);
}

#[test]
fn a_request_past_its_deadline_is_revoked_then_given_up_with_its_worker() {
    let mut it = serving("deadline");
    let request = it.begun();
    it.now.instant += Duration::from_secs(61);
    let effects = it.turn();
    assert!(matches!(effects[..], [Effect::Worker(WORKER, ToWorkerControl::Revoke { .. })]));
    // A step of the engine may take as long as a part that hangs is given.
    it.now.instant += it.dispatch.limits.hang() - Duration::from_secs(1);
    assert!(it.turn().is_empty());
    it.now.instant += Duration::from_secs(2);
    let effects = it.turn();
    assert!(matches!(effects[..], [Effect::WorkerStuck(WORKER, _)]), "{effects:?}");
    assert!(journal(&it.folder).contains("\"cause\":\"deadline\""));
    let late = it.worker(WORKER, WorkerReport::End(end(request)));
    assert_eq!(late, Err(Fault::Repeated(Kind::End)));
}

#[test]
fn an_abandoned_request_is_closed_by_its_workers_word_without_killing_anyone() {
    let mut it = serving("abandoned");
    let request = it.begun();
    it.gateway(FromGateway::Abandoned { request }).unwrap();
    let effects = it.turn();
    assert!(matches!(effects[..], [Effect::Worker(WORKER, ToWorkerControl::Revoke { .. })]));
    assert!(!journal(&it.folder).contains("\"abandoned\""), "the gateway's word is not enough");
    it.worker(WORKER, WorkerReport::Unused { request }).unwrap();
    assert!(it.turn().is_empty());
    assert!(journal(&it.folder).contains("\"cause\":\"abandoned\""));
    assert_eq!(it.dispatch.open_count(), 0);
    let again = it.worker(WORKER, WorkerReport::Unused { request });
    assert_eq!(again, Err(Fault::Repeated(Kind::Unused)));
    // The gateway's word may also cross the worker's, and the order to stop the worker's end, once.
    let request = it.begun();
    it.worker(WORKER, WorkerReport::End(end(request))).unwrap();
    it.gateway(FromGateway::Abandoned { request }).unwrap();
    assert!(it.turn().is_empty());
    let unasked = it.worker(WORKER, WorkerReport::Unused { request });
    assert_eq!(unasked, Err(Fault::Repeated(Kind::Unused)));
    let request = it.begun();
    it.gateway(FromGateway::Abandoned { request }).unwrap();
    it.turn();
    it.worker(WORKER, WorkerReport::End(end(request))).unwrap();
    it.worker(WORKER, WorkerReport::Unused { request }).unwrap();
    let again = it.worker(WORKER, WorkerReport::Unused { request });
    assert_eq!(again, Err(Fault::Repeated(Kind::Unused)));
}

/// A gateway that brings a request to a worker and says at the same time that it never did.
#[test]
fn what_is_abandoned_while_a_worker_reads_it_has_its_end_on_the_record() {
    let mut it = serving("abandoned-late");
    let request = it.begun();
    it.gateway(FromGateway::Abandoned { request }).unwrap();
    it.turn();
    // A step of the engine may take as long as a part that hangs is given.
    it.now.instant += it.dispatch.limits.hang() - Duration::from_secs(1);
    assert!(it.turn().is_empty());
    let report = EndReport { outcome: Outcome::Cancelled, ..end(request) };
    it.worker(WORKER, WorkerReport::End(report)).unwrap();
    assert!(it.turn().is_empty());
    let text = journal(&it.folder);
    assert!(text.contains("\"end\":") && !text.contains("\"end_missing\":"), "{text}");
    // One that does neither in time is not believed any more.
    let request = it.begun();
    it.gateway(FromGateway::Abandoned { request }).unwrap();
    it.turn();
    it.now.instant += it.dispatch.limits.hang();
    let effects = it.turn();
    assert!(matches!(effects[..], [Effect::WorkerStuck(WORKER, _)]), "{effects:?}");
    assert!(journal(&it.folder).contains("\"cause\":\"abandoned\""));
}

/// A worker cannot stop what it never saw.
#[test]
fn what_the_gateway_never_brings_ends_with_its_time_and_not_with_its_worker() {
    let mut it = serving("unbrought");
    let request = it.begun();
    it.now.instant += Duration::from_secs(61);
    let effects = it.turn();
    assert!(matches!(effects[..], [Effect::Worker(WORKER, ToWorkerControl::Revoke { .. })]));
    // To give it up now gives it neither another cause nor more time.
    it.gateway(FromGateway::Abandoned { request }).unwrap();
    it.worker(WORKER, WorkerReport::Unused { request }).unwrap();
    assert!(it.turn().is_empty());
    it.now.instant += it.dispatch.limits.hang();
    assert!(it.turn().iter().all(|effect| !matches!(effect, Effect::WorkerStuck(..))));
    let text = journal(&it.folder);
    assert!(text.contains("\"cause\":\"deadline\"") && !text.contains("abandoned"), "{text}");
}

#[test]
fn revoking_a_token_ends_its_requests() {
    let mut it = serving("revoked");
    let request = it.begun();
    it.dispatch.set_tokens(TokenTable::default(), &mut it.ledger, it.now);
    let effects = it.turn();
    assert!(matches!(
        effects[..],
        [
            Effect::Worker(WORKER, ToWorkerControl::Revoke { request: it }),
            Effect::Worker(WORKER, ToWorkerControl::Forget { .. }),
            Effect::Worker(OTHER, ToWorkerControl::Forget { .. }),
        ] if it == request
    ));
    assert!(journal(&it.folder).contains("\"tokens_loaded\""));
    it.ask("").unwrap();
    assert_eq!(it.denied(), Denial::KeyInvalid);
}

#[test]
fn an_erasure_ends_what_runs_and_no_new_key_says_anything_of_it() {
    let mut it = serving("erased");
    let running = it.begun();
    let before = it.ledger.known_pseudonym("alice").unwrap();
    assert_eq!(it.ledger.erase("nobody", &[0]).unwrap(), None);
    assert_eq!(it.ledger.erase("alice", &[0, 1000]).unwrap(), Some(before.clone()));
    assert_eq!(it.ledger.known_pseudonym("alice"), None);
    it.dispatch.end_principal("alice", &mut it.ledger, it.now);
    let effects = it.turn();
    assert!(matches!(
        effects[..],
        [
            Effect::Worker(WORKER, ToWorkerControl::Revoke { request: it }),
            Effect::Worker(WORKER, ToWorkerControl::Forget { .. }),
            Effect::Worker(OTHER, ToWorkerControl::Forget { .. }),
        ] if it == running
    ));
    // The principal goes on under another key, which does not sign for the old request.
    let after = it.begun();
    assert_ne!(it.ledger.known_pseudonym("alice").unwrap(), before);
    it.worker(WORKER, WorkerReport::End(end(running))).unwrap();
    it.worker(WORKER, WorkerReport::End(end(after))).unwrap();
    it.turn();
    let text = journal(&it.folder);
    let erased = format!("\"erased\":{{\"observed\":{{\"principal\":\"{before}\",\"by\":[0,1000]");
    assert!(text.contains(&erased), "{text}");
    assert_eq!(text.matches("\"key_unavailable\"").count(), 1, "{text}");
    assert_eq!(text.matches("\"end\":").count(), 1, "{text}");
    assert_eq!(text.matches("\"key_created\":").count(), 2, "{text}");
    assert_eq!(text.matches("\"key_destroyed\":").count(), 1, "{text}");
}

#[test]
fn an_erasure_that_cannot_be_recorded_is_none() {
    let mut it = serving("unerased");
    it.begun();
    let before = it.ledger.known_pseudonym("alice").unwrap();
    let (log, away) = (it.folder.join("log"), it.folder.join("away"));
    fs::rename(&log, &away).unwrap();
    fs::write(&log, "in the way").unwrap();
    it.ask("").unwrap();
    it.turn();
    assert!(it.ledger.is_failing());
    it.ledger.erase("alice", &[0]).unwrap_err();
    assert_eq!(it.ledger.known_pseudonym("alice").unwrap(), before);
    fs::remove_file(&log).unwrap();
    fs::rename(&away, &log).unwrap();
    it.turn();
    it.begun();
    let text = journal(&it.folder);
    assert!(!text.contains("\"erased\""), "{text}");
    assert_eq!(it.ledger.known_pseudonym("alice").unwrap(), before);
}

#[test]
fn a_request_without_a_ticket_is_recorded() {
    let mut it = serving("no-ticket");
    it.worker(WORKER, WorkerReport::NoTicket { request: RequestId([5; 16]) }).unwrap();
    it.turn();
    let text = journal(&it.folder);
    assert!(text.contains("\"ticket_missing\""), "{text}");
    assert!(!text.contains(&"05".repeat(16)), "a name of the worker's choice: {text}");
}

/// All that a worker may say is bounded: by what it is asked, by its requests, or by a number.
#[test]
fn a_worker_cannot_go_on_reporting_requests_without_a_ticket() {
    let mut it = serving("no-tickets");
    let report = |number: usize| {
        let mut request = [0; 16];
        request[..8].copy_from_slice(&(number as u64).to_le_bytes());
        WorkerReport::NoTicket { request: RequestId(request) }
    };
    for number in 0..NO_TICKETS_COUNT_MAX {
        it.worker(WORKER, report(number)).unwrap();
    }
    assert_eq!(it.worker(WORKER, report(0)), Err(Fault::Repeated(Kind::NoTicket)));
    // The next in its place may again, and each has a number of its own.
    it.worker(OTHER, report(0)).unwrap();
    it.dispatch.worker_gone(WORKER, false, &mut it.ledger);
    it.dispatch.worker_started(WORKER, false);
    it.worker(WORKER, ready()).unwrap();
    it.worker(WORKER, report(0)).unwrap();
}

#[test]
fn a_child_that_does_not_answer_is_given_up_and_one_that_was_not_asked_dies() {
    let mut it = serving("pulse");
    assert_eq!(it.gateway(FromGateway::Alive), Err(Fault::Moment(Kind::GatewayAlive)));
    assert_eq!(it.worker(WORKER, WorkerReport::Alive), Err(Fault::Moment(Kind::WorkerAlive)));
    let mut it = serving("pulses");
    let feel = |it: &mut Appliance, seconds| {
        it.now.instant += Duration::from_secs(seconds);
        it.dispatch.feel_pulses(it.now);
        it.dispatch.take_effects()
    };
    let asked = feel(&mut it, 0);
    assert!(
        matches!(
            asked[..],
            [
                Effect::Gateway(ToGateway::AreYouThere),
                Effect::Worker(WORKER, ToWorkerControl::AreYouThere),
                Effect::Worker(OTHER, ToWorkerControl::AreYouThere),
            ]
        ),
        "{asked:?}"
    );
    it.gateway(FromGateway::Alive).unwrap();
    it.worker(OTHER, WorkerReport::Alive).unwrap();
    assert!(feel(&mut it, 9).is_empty());
    let again = feel(&mut it, 1);
    assert_eq!(again.len(), 2, "{again:?}");
    it.gateway(FromGateway::Alive).unwrap();
    it.worker(OTHER, WorkerReport::Alive).unwrap();
    let lost = feel(&mut it, 110);
    let is_lost = |effect: &Effect| matches!(effect, Effect::WorkerStuck(WORKER, why) if why.contains("hangs"));
    assert_eq!(lost.iter().filter(|effect| is_lost(effect)).count(), 1, "{lost:?}");
    // Given up once; what it still says changes nothing until its end.
    it.worker(WORKER, WorkerReport::Alive).unwrap();
    assert!(!feel(&mut it, 1).iter().any(is_lost));
    it.dispatch.worker_gone(WORKER, false, &mut it.ledger);
    it.dispatch.worker_started(WORKER, false);
    it.worker(WORKER, ready()).unwrap();
    let fresh = feel(&mut it, 0);
    let is_asked =
        |effect: &Effect| matches!(effect, Effect::Worker(WORKER, ToWorkerControl::AreYouThere));
    assert!(fresh.iter().any(is_asked), "{fresh:?}");
}
