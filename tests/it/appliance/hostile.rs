//! A part that was taken over speaks the protocol as an attacker would: what it wants is refused, what breaks
//! the protocol ends it on the record, and the others go on. Each test has a control that works.

use cloister::audit::record::KeyedDigest;
use cloister::audit::{PrincipalKeys, WrappingKey};
use cloister::supervisor::tokens::token_digest;

use super::erasure::sha256;
use super::records::facts;
use super::*;

/// Tokens of an answer, at most, whoever asks.
const TOKENS_MAX: u32 = 8;

/// An appliance of a model that loads at once, one of whose programs was taken over.
pub(super) fn taken_over(user: As, program: &str) -> Appliance {
    let tiny = support::golden().join("tiny/llama.gguf");
    let mut appliance = Appliance::start_with(user, &tiny, "");
    appliance.stop();
    cloister_ok(&["keygen", "tls", "--out", &appliance.path("tls.pem")]);
    appliance
        .change_config("[limits]\n", &format!("[limits]\ncompletion_tokens_max = {TOKENS_MAX}\n"));
    if program == "cloister-gateway" {
        let tls = "certificate = \"tls.cert.pem\"\n[keys]\ntls = \"tls.pem\"\n[limits]\n";
        appliance.change_config("[limits]\n", tls);
    }
    let programs = appliance.folder.join("programs");
    fs::create_dir(&programs).unwrap();
    for name in ["cloister-supervisor", "cloister-gateway", "cloister-worker"] {
        support::copy_program(&appliance.programs.join(name), &programs.join(name));
    }
    support::copy_program(&support::build_example("hostile"), &programs.join(program));
    appliance.programs = programs;
    give_to(&appliance.folder, user);
    appliance
}

fn begin_again(appliance: &mut Appliance) {
    appliance.stop();
    appliance.start_again();
    appliance.wait_until_ready();
}

/// Gives the gateway an order with a key; what it answers, `None` when it ends instead.
fn order_with(appliance: &Appliance, attack: &str, key: &str, max_tokens: u32) -> Option<Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", appliance.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let order = json!({ "attack": attack, "key": key, "max_tokens": max_tokens });
    writeln!(stream, "{order}").unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    serde_json::from_str(&answer).ok()
}

pub(super) fn order(appliance: &Appliance, attack: &str) -> Option<Value> {
    let key = token_digest(&appliance.token).0.map(|byte| format!("{byte:02x}")).concat();
    order_with(appliance, attack, &key, 4)
}

#[test]
fn a_gateway_gets_no_text_processed_that_is_not_on_the_record() {
    for user in users() {
        let mut appliance = taken_over(user, "cloister-gateway");
        appliance.start_again();
        appliance.wait_until_ready();
        let done = |attack| order(&appliance, attack).unwrap();
        assert_eq!(done("honest")["tokens"], 4, "the control");
        let no_ticket = json!({ "failed": "NoTicket", "deltas": 0 });
        assert_eq!(done("no-begin"), no_ticket);
        let replay = done("replay");
        assert_eq!((&replay["first"]["tokens"], &replay["second"]), (&json!(4), &no_ticket));
        assert_eq!(done("widen")["tokens"], 4, "the ticket's limit, not the request's");
        let key = token_digest(&appliance.token).0.map(|byte| format!("{byte:02x}")).concat();
        let asked = order_with(&appliance, "honest", &key, 1000).unwrap();
        assert_eq!(asked["tokens"], TOKENS_MAX, "the configuration's limit, not the gateway's");
        let nobody = order_with(&appliance, "honest", &"00".repeat(32), 4).unwrap();
        assert_eq!(nobody, "Denied { correlation: 7, reason: KeyInvalid }");
        assert_eq!(done("other-model"), "Denied { correlation: 7, reason: ModelUnknown }");
        assert!(done("sign-handshake")["signature"].as_u64().unwrap() > 60, "the control");
        assert_eq!(done("worker-descriptor")["kept"], false);
        let worker = appliance.only_child("cloister-worker");
        assert_eq!(done("honest")["tokens"], 4);
        assert_eq!(appliance.only_child("cloister-worker"), worker);
        appliance.stop();
        assert_eq!(appliance.records("begin").len(), 5);
        assert_eq!(appliance.records("end").len(), 5);
        assert_eq!(appliance.records("ticket_missing").len(), 2);
        assert!(appliance.records("child_died").is_empty());
        assert_eq!(appliance.verify_log()["verdict"], "INTACT");
    }
}

#[test]
fn a_gateway_that_takes_a_worker_for_a_second_request_is_refused_by_the_worker() {
    let mut appliance = taken_over(As::Oneself, "cloister-gateway");
    appliance.change_config("[worker]\n", "[worker]\nlifetime = \"request\"\nsequences = 2\n");
    appliance.start_again();
    appliance.wait_until_ready();
    let done = order(&appliance, "reuse").unwrap();
    assert_eq!(done["before"], json!({ "failed": "NoTicket", "deltas": 0 }));
    assert_eq!(done["right"]["tokens"], 4, "the control");
    assert_eq!(done["after"]["failed"], "closed", "it ended with its request");
    assert_eq!(done["control"]["tokens"], 4, "the second request's own worker serves it");
    eventually("the ends of both workers", || appliance.records("worker_ended").len() == 2);
    appliance.stop();
    assert_eq!(appliance.records("ticket_missing").len(), 1);
    assert!(appliance.records("child_died").is_empty());
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}

#[test]
fn a_gateway_that_mislabels_a_request_does_not_change_what_the_worker_reports() {
    let mut appliance = taken_over(As::Oneself, "cloister-gateway");
    appliance.start_again();
    appliance.wait_until_ready();
    for attack in ["honest", "mislabel"] {
        assert_eq!(order(&appliance, attack).unwrap()["tokens"], 4, "{attack}");
    }
    appliance.stop();
    let declared = |event: &str| -> Vec<Value> {
        facts(&appliance, event).iter().map(|one| one["declared"].clone()).collect()
    };
    let begun = declared("begin");
    assert_eq!(begun[0], json!({ "endpoint": "completion", "max_tokens": 4, "stream": false }));
    assert_eq!(begun[1], json!({ "endpoint": "chat", "max_tokens": 4096, "stream": true }));
    // Both were of the same text and of the same parameters, and the worker says so.
    let wrapping = WrappingKey::parse(&fs::read(appliance.path("wrapping.key")).unwrap()).unwrap();
    let keys = PrincipalKeys::look(Path::new(&appliance.path("principals")), wrapping).unwrap();
    let key = keys.all().unwrap().remove(0);
    let parameters = "temperature=0\ntop_k=0\ntop_p=1\nmin_p=0\nrepeat_penalty=1\npresence_penalty=0\n\
        frequency_penalty=0\nseed=\nmax_tokens=4\nlogit_bias=\n";
    for end in declared("end") {
        let is = |member: &str, text: &str| {
            let keyed = end.pointer(member).unwrap().clone();
            let keyed: KeyedDigest = serde_json::from_value(keyed).unwrap();
            key.matches(&keyed, &sha256(text.as_bytes()))
        };
        assert!(is("/messages/0", "abc") && is("/parameters", parameters), "{end}");
        assert!(!is("/messages/0", "abd") && !is("/parameters", "temperature=1\n"));
        assert_eq!(end["completion_tokens_max"], 4);
    }
}

#[test]
fn a_gateway_that_calls_workers_broken_has_few_started_and_none_given_up() {
    let mut appliance = taken_over(As::Oneself, "cloister-gateway");
    appliance.start_again();
    appliance.wait_until_ready();
    let started = |appliance: &Appliance| {
        let records = facts(appliance, "child_started");
        records.iter().filter(|one| one["observed"]["child"] == "worker smol").count()
    };
    let before = started(&appliance);
    assert_eq!(order(&appliance, "accuse").unwrap(), "done");
    eventually("another worker", || {
        order(&appliance, "honest").is_some_and(|answer| answer["tokens"] == 4)
    });
    let fresh = started(&appliance) - before;
    assert!((1..=5).contains(&fresh), "{fresh} workers for 25 words in little more than a second");
    let causes = deaths(&appliance, "worker");
    assert!(causes.iter().all(|cause| cause.contains("by its word")), "{causes:?}");
    appliance.stop();
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}

#[test]
fn a_gateway_that_gives_up_what_a_worker_has_hides_nothing_and_kills_nobody() {
    let mut appliance = taken_over(As::Oneself, "cloister-gateway");
    appliance.start_again();
    appliance.wait_until_ready();
    let worker = appliance.only_child("cloister-worker");
    let done = |attack| order(&appliance, attack).unwrap();
    // So long that it is still being read when it is given up: by its link, which then refuses it, or behind it.
    let failed = done("generate-and-abandon")["failed"].as_str().unwrap().to_owned();
    let is_refused = failed == "NoTicket";
    assert_eq!(done("begin-and-abandon"), json!("abandoned"));
    assert_eq!(done("honest")["tokens"], 4, "the control");
    assert_eq!(appliance.only_child("cloister-worker"), worker, "it did nothing wrong");
    appliance.stop();
    assert!(appliance.records("child_died").is_empty());
    let missing = facts(&appliance, "end_missing");
    assert_eq!(missing.len(), 1 + usize::from(is_refused), "what no worker had: {missing:?}");
    assert!(missing.iter().all(|one| one["observed"]["cause"] == "abandoned"), "{missing:?}");
    assert_eq!(appliance.records("end").len(), 2 - usize::from(is_refused), "{failed}");
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}

/// The causes of the deaths of `child`, and what it said of them, in order.
pub(super) fn deaths(appliance: &Appliance, child: &str) -> Vec<String> {
    let died = appliance
        .records("child_died")
        .into_iter()
        .map(|record| record["event"]["child_died"].clone());
    let its = died.filter(|event| event["observed"]["child"].as_str().unwrap().starts_with(child));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let both =
        |event: Value| text(&event["observed"]["cause"]) + &text(&event["declared"]["panic"]);
    its.map(both).collect()
}

/// Waits for the record of a death of `child`; returns its cause.
fn cause(appliance: &Appliance, child: &str, before: usize) -> String {
    let died = || deaths(appliance, child);
    eventually(&format!("the death of the {child}"), || died().len() > before);
    died().swap_remove(before)
}

/// Ways of breaking any channel, and what the record says of each.
const BROKEN: [(&str, &str); 6] = [
    ("garbage", "broke protocol"),
    ("empty", "closed its channel"),
    ("oversized", "broke protocol"),
    ("longer", "broke protocol"),
    ("shorter", "broke protocol"),
    ("descriptor", "broke protocol"),
];

#[test]
fn a_gateway_that_breaks_the_protocol_ends_on_the_record_and_another_serves() {
    let attacks = [
        ("flood", "did not take its messages"),
        ("ready", "broke protocol: GatewayReady repeated"),
        ("alive", "broke protocol: GatewayAlive at the wrong moment"),
        ("abandon", "broke protocol: Abandoned of no such request"),
        ("sign-anything", "broke protocol: Sign with an impossible value"),
        ("sign-client", "broke protocol: Sign with an impossible value"),
    ];
    let mut appliance = taken_over(As::Oneself, "cloister-gateway");
    for (count, (attack, why)) in BROKEN.into_iter().chain(attacks).enumerate() {
        begin_again(&mut appliance);
        let gateway = appliance.only_child("cloister-gateway");
        assert_eq!(order(&appliance, attack), None, "{attack}");
        let cause = cause(&appliance, "gateway", count);
        assert!(cause.contains(why), "{attack}: {cause}");
        appliance.wait_until_ready();
        assert_ne!(appliance.only_child("cloister-gateway"), gateway);
        assert_eq!(order(&appliance, "honest").unwrap()["tokens"], 4, "after {attack}");
    }
    appliance.stop();
    assert_eq!(deaths(&appliance, "gateway").len(), BROKEN.len() + attacks.len());
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}

#[test]
fn a_worker_survives_no_broken_frame_and_another_serves() {
    let mut appliance = taken_over(As::Oneself, "cloister-gateway");
    let attacks = ["worker-garbage", "worker-oversized", "worker-empty", "worker-half"];
    for (count, attack) in attacks.into_iter().enumerate() {
        begin_again(&mut appliance);
        assert!(order(&appliance, attack).is_some());
        cause(&appliance, "worker", count);
        eventually("another worker", || {
            order(&appliance, "honest").is_some_and(|answer| answer["tokens"] == 4)
        });
    }
    appliance.stop();
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}

#[test]
fn a_part_that_dies_again_and_again_is_given_up_and_said_so() {
    let mut appliance = taken_over(As::Oneself, "cloister-gateway");
    appliance.start_again();
    for count in 0..5 {
        appliance.wait_until_ready();
        assert_eq!(order(&appliance, "garbage"), None);
        cause(&appliance, "gateway", count);
    }
    let socket = appliance.path("control.sock");
    let status = || cloister(&["status", "--json", "--socket", &socket]);
    let state = || -> Value { serde_json::from_slice(&status().stdout).unwrap_or_default() };
    eventually("the gateway is given up", || state()["children"][0]["state"] == "failed");
    assert_eq!(status().status.code(), Some(1), "{}", state());
    assert!(appliance.children("cloister-gateway").is_empty());
    assert!(appliance.told().contains("gateway"), "{}", appliance.told());
    appliance.stop();
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}

/// Gives the worker an order through the real gateway.
fn prompt(appliance: &Appliance, attack: &str) -> (u16, String) {
    let body = json!({ "model": "smol", "prompt": attack, "max_tokens": 4, "temperature": 0 });
    read_answer(appliance.post("/v1/completions", &body)).unwrap_or_default()
}

fn is_served(appliance: &Appliance) -> bool {
    let (status, answer) = prompt(appliance, "honest");
    status == 200 && serde_json::from_str::<Value>(&answer).unwrap()["choices"][0]["text"] == "ok"
}

#[test]
fn a_worker_that_breaks_the_protocol_ends_on_the_record_and_another_serves() {
    let attacks = [
        ("end-of-another", "broke protocol: End of no such request"),
        ("end-twice", "broke protocol: End repeated"),
        ("more-tokens-than-granted", "broke protocol: End with an impossible value"),
        ("ready", "broke protocol: WorkerReady repeated"),
        ("alive", "broke protocol: WorkerAlive at the wrong moment"),
        ("flood", "broke protocol: NoTicket repeated"),
        ("unused", "broke protocol: Unused at the wrong moment"),
        ("unused-of-another", "broke protocol: Unused of no such request"),
        ("panic-of-words", "broke protocol: Panicked with an impossible value"),
        ("panic-of-a-word", "declared a panic outside of Cloister's own sources"),
        ("frame-garbage", "gateway"),
        ("frame-oversized", "gateway"),
        ("frame-empty", "gateway"),
    ];
    let mut appliance = taken_over(As::Oneself, "cloister-worker");
    for (count, (attack, why)) in BROKEN.into_iter().chain(attacks).enumerate() {
        begin_again(&mut appliance);
        assert!(is_served(&appliance), "the control");
        let (status, answer) = prompt(&appliance, attack);
        assert!(status == 0 || status >= 500, "{attack}: {status} {answer}");
        let cause = cause(&appliance, "worker", count);
        assert!(cause.contains(why), "{attack}: {cause}");
        eventually("another worker", || is_served(&appliance));
    }
    appliance.stop();
    let told = appliance.told() + &deaths(&appliance, "worker").concat();
    assert!(!told.contains("patient"), "{told}");
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}

#[test]
fn a_worker_that_has_no_card_to_find_ends_nobody_but_itself_by_saying_so() {
    let mut appliance = taken_over(As::Oneself, "cloister-worker");
    appliance.change_config("context = 2048\n", "context = 1313\n");
    give_to(&appliance.folder, appliance.user);
    appliance.start_again();
    for count in 0..2 {
        let cause = cause(&appliance, "worker", count);
        assert_eq!(cause, "broke protocol: NoCard at the wrong moment");
    }
    assert!(is_running(appliance.child.id().cast_signed()), "{}", appliance.told());
    appliance.stop();
    assert!(appliance.records("model_refused").is_empty());
    assert!(!appliance.told().contains("gpu_layers"), "{}", appliance.told());
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}

#[test]
fn a_worker_cannot_answer_for_another_request_or_after_the_end() {
    let mut appliance = taken_over(As::Oneself, "cloister-worker");
    begin_again(&mut appliance);
    for attack in ["answer-to-another", "answer-after-its-end"] {
        let (status, answer) = prompt(&appliance, attack);
        assert_eq!(status, 200, "{attack}: {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["choices"][0]["text"], "ok", "{attack}");
        assert!(is_served(&appliance));
    }
    appliance.stop();
    assert!(appliance.records("child_died").is_empty());
}

#[test]
fn a_loader_that_breaks_the_protocol_opens_nothing() {
    let attacks = [
        ("sealed-too-early", "the loader broke protocol"),
        ("other-length", "the loader broke protocol"),
        ("unsealed", "the loader's image is not sealed"),
        ("no-memfd", "the loader's image is not sealed"),
        ("wrong-length", "the loader's image is not sealed"),
        ("received-twice", "the loader broke protocol"),
        ("no-progress", "the loader broke protocol"),
        ("words", "the loader broke protocol"),
        ("garbage", "the loader failed: "),
        ("empty", "the loader failed: "),
        ("oversized", "the loader failed: "),
        ("longer", "the loader failed: "),
        ("shorter", "the loader failed: "),
        ("descriptor", "the loader failed: "),
    ];
    let mut appliance = taken_over(As::Oneself, "cloister-worker");
    refuses_all(&mut appliance, &attacks);
    assert!(!appliance.told().contains("\nis in here"));
    assert!(appliance.records("sandbox_violation").is_empty());
}

/// Starts the appliance with a model that is each order; each is refused for its reason, on the record.
fn refuses_all(appliance: &mut Appliance, orders: &[(&str, &str)]) {
    let unsigned = "file = \"o.gguf\"\nallow_unsigned = true\n";
    appliance.change_config("file = \"m.gguf.age\"\n", unsigned);
    for (count, (order, why)) in orders.iter().enumerate() {
        fs::write(appliance.path("o.gguf"), order).unwrap();
        fs::write(appliance.path("told.log"), "").unwrap();
        appliance.start_again();
        let status = appliance.child.wait().unwrap();
        let told = appliance.told();
        assert!(!status.success() && told.contains(why), "{order}: {status}: {told}");
        let refused = facts(appliance, "model_refused");
        assert_eq!(refused.len(), count + 1, "{order}");
        let check = refused[count]["observed"]["check"].as_str().unwrap();
        assert!(check.contains(why) || check == "the loader refused it", "{order}: {check}");
    }
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}

#[test]
fn an_opener_that_breaks_the_protocol_opens_nothing() {
    let attacks = [
        ("unwrap", "the opener broke protocol"),
        ("other-length", "the opener broke protocol"),
        ("more-than-the-file", "the opener broke protocol"),
        ("garbage", "the opener failed: "),
        ("empty", "the opener failed: "),
        ("oversized", "the opener failed: "),
        ("longer", "the opener failed: "),
        ("shorter", "the opener failed: "),
        ("descriptor", "the opener failed: "),
        ("flood", "the opener broke protocol"),
    ];
    let mut appliance = taken_over(As::Oneself, "cloister-supervisor");
    refuses_all(&mut appliance, &attacks);
    assert!(appliance.records("sandbox_violation").is_empty());
}

/// As gateway and worker (`records`): the kernel's verdict is the cause, whatever the part had said before.
#[test]
fn an_opener_or_loader_that_its_filter_killed_is_named_and_its_work_is_refused() {
    let cases = [("cloister-supervisor", "opener"), ("cloister-worker", "loader")];
    for user in users() {
        for (program, child) in cases {
            let mut appliance = taken_over(user, program);
            let why = format!("the {child} broke its seccomp filter");
            refuses_all(&mut appliance, &[("break-filter", &why)]);
            let broken = facts(&appliance, "sandbox_violation");
            let one = json!({ "observed": { "child": child, "signal": 31 } });
            assert_eq!(broken, [one]);
        }
    }
}
