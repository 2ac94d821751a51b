//! The gateway over real sockets: answers, limits, and clients that are slow, rude or gone.

mod chat;
mod harness;

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use cloister::gateway;
use cloister::ipc::message::{
    Failure, Finish, FromWorker, GatewayConfig, ListenerKind, ModelIndex, Prompt, RequestId,
    ToGateway,
};
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};

use self::harness::{Client, KEY, Running, Seen, TlsKey, config, events, request};

const CHAT: &str = "/v1/chat/completions";

fn chat(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hello"}]});
    if let Value::Object(extra) = extra {
        body.as_object_mut().unwrap().extend(extra);
    }
    body
}

#[test]
fn health_and_models_follow_the_worker() {
    let gateway = Running::start(config());
    let mut client = gateway.client();
    assert_eq!(client.get("/health/live").status, 200);
    let not_ready = client.get("/health/ready");
    assert_eq!(not_ready.status, 503);
    assert_eq!(not_ready.header("retry-after"), Some("5"));
    assert_eq!(client.get("/v1/models").json(), json!({"object": "list", "data": []}));
    let worker = gateway.worker(0, "m");
    assert_eq!(client.get("/health/ready").status, 200);
    let model = client.get("/v1/models/m").json();
    assert_eq!((model["id"].as_str(), model["object"].as_str()), (Some("m"), Some("model")));
    assert_eq!(client.get("/v1/models").json()["data"], json!([model]));
    let unknown = client.get("/v1/models/n").error();
    assert_eq!(
        unknown,
        (404, "invalid_request_error".into(), "model".into(), "model_not_found".into())
    );
    client.send(b"HEAD /health/ready HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(client.head().status, 200);
    // The model is there as long as the supervisor says so.
    drop(worker);
    assert_eq!(client.get("/health/ready").status, 200);
    gateway.supervisor.send(&ToGateway::ModelDown { model: ModelIndex(0) }, &[]).unwrap();
    while client.get("/health/ready").status == 200 {}
    assert_eq!(client.get("/v1/models").json(), json!({"object": "list", "data": []}));
}

#[test]
fn wrong_paths_methods_and_keys_have_openai_errors() {
    let gateway = Running::start(config());
    let mut client = gateway.client();
    assert_eq!(client.get("/nothing").error().0, 404);
    let wrong = client.get(CHAT);
    assert_eq!((wrong.error().0, wrong.header("allow")), (405, Some("POST")));
    for header in ["", "authorization: Bearer wrong\r\n", "authorization: Basic abc\r\n"] {
        client.send(format!("GET /v1/models HTTP/1.1\r\nhost: x\r\n{header}\r\n").as_bytes());
        let refused = client.reply();
        assert_eq!((refused.error().0, refused.error().3), (401, "invalid_api_key".into()));
        assert!(refused.header("www-authenticate").unwrap().starts_with("Bearer"));
    }
    // Refused without its body being looked at, on a connection that stays of use.
    let body = "x".repeat(1 << 20);
    client.send(
        format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len())
            .as_bytes(),
    );
    client.send(body.as_bytes());
    assert_eq!(client.reply().error().0, 401);
    // What the body is said to be comes after the key, as all about a body does.
    for (key, status) in [("", 401), ("Bearer wrong", 401), ("Bearer sk-test-key", 415)] {
        let key = if key.is_empty() { String::new() } else { format!("authorization: {key}\r\n") };
        for media in ["", "content-type: text/plain\r\n"] {
            let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\n{key}{media}");
            client.send(format!("{head}content-length: 2\r\n\r\n{{}}").as_bytes());
            assert_eq!(client.reply().error().0, status, "{head}");
        }
    }
    assert_eq!(client.get("/health/live").status, 200);
}

/// One word at once, one for all that follow within a second, and the rest before the end.
#[test]
fn what_cannot_be_a_key_is_counted_and_told_seldom() {
    let gateway = Running::start(config());
    let mut client = gateway.client();
    let mut refuse = |header: &str| {
        client.send(format!("GET /v1/models HTTP/1.1\r\nhost: x\r\n{header}\r\n").as_bytes());
        assert_eq!(client.reply().error().0, 401);
    };
    refuse("authorization: Bearer wrong\r\n");
    refuse("");
    assert_eq!(gateway.next_seen(), Seen::KeysMalformed(1), "a wrong key is the supervisor's");
    let start = std::time::Instant::now();
    for _ in 0..20 {
        refuse("authorization: Basic abc\r\n");
        refuse("authorization: Bearer a b\r\n");
    }
    assert_eq!(gateway.next_seen(), Seen::KeysMalformed(40));
    assert!(start.elapsed() > Duration::from_millis(800), "{:?}", start.elapsed());
    refuse("");
    drop(client);
    gateway.supervisor.send(&ToGateway::Drain, &[]).unwrap();
    assert_eq!(gateway.next_seen(), Seen::KeysMalformed(1));
    assert!(gateway.ends());
}

#[test]
fn a_chat_is_answered_as_one_object() {
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    let mut client = gateway.client();
    for _ in 0..2 {
        client.send_post(CHAT, &chat(json!({"max_tokens": 9, "stop": "x", "seed": 4})));
        let work = worker.next_generate();
        assert_eq!((work.max_tokens, work.sampling.seed), (9, Some(4)));
        assert_eq!(work.stop, ["x"]);
        let Prompt::Chat { messages_json, .. } = &work.prompt else { panic!() };
        assert_eq!(messages_json, r#"[{"role":"user","content":"hello"}]"#);
        worker.answer(work.request, &["Hel", "lo \u{1f600}"]);
        let reply = client.reply();
        assert_eq!(reply.status, 200);
        let id = format!("{:02x}", work.request.0[0]).repeat(16);
        assert_eq!(reply.header("x-request-id"), Some(id.as_str()));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        let body = reply.json();
        assert_eq!(body["id"], format!("chatcmpl-{id}"));
        assert_eq!(body["object"], "chat.completion");
        assert_eq!(body["model"], "m");
        assert_eq!(body["choices"][0]["message"]["content"], "Hello \u{1f600}");
        assert_eq!(body["choices"][0]["finish_reason"], "stop");
        assert_eq!(body["usage"]["prompt_tokens"], 5);
        assert_eq!(body["usage"]["total_tokens"], 7);
        assert_eq!(body["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
        let seen = Seen::Begin { model: String::new(), max_tokens: 9, stream: false };
        assert_eq!(gateway.next_seen(), seen);
    }
    client.send_post("/v1/completions", &json!({"prompt": "once", "model": "m"}));
    let work = worker.next_generate();
    assert!(matches!(&work.prompt, Prompt::Text(text) if text == "once"));
    worker.answer(work.request, &[" upon"]);
    let body = client.reply().json();
    assert_eq!(
        (body["object"].as_str(), body["choices"][0]["text"].as_str()),
        (Some("text_completion"), Some(" upon"))
    );
}

#[test]
fn a_chat_is_streamed_as_the_openai_client_expects() {
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    let mut client = gateway.client();
    client
        .send_post(CHAT, &chat(json!({"stream": true, "stream_options": {"include_usage": true}})));
    let work = worker.next_generate();
    worker.say(&FromWorker::Started { request: work.request, prompt_tokens: 5 });
    let head = client.head();
    assert_eq!(head.status, 200);
    assert!(head.header("content-type").unwrap().starts_with("text/event-stream"));
    // Each text reaches the client before the next is there.
    let mut body = client.chunk().unwrap();
    for text in ["a", "\n\n", "data: [DONE]"] {
        worker.delta(work.request, text);
        body += &client.chunk().unwrap();
    }
    let finish = Finish::Length;
    let request = work.request;
    let (prompt_tokens, completion_tokens, cached_tokens) = (5, 3, 4);
    worker.say(&FromWorker::Done {
        request,
        finish,
        prompt_tokens,
        completion_tokens,
        cached_tokens,
    });
    while let Some(chunk) = client.chunk() {
        body += &chunk;
    }
    let events = events(&body);
    assert_eq!(events.last(), Some(&"[DONE]"));
    // Equal lengths say nothing about the text.
    assert!(events[..events.len() - 1].iter().all(|event| event.len() == 512));
    let chunks: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let text: String = chunks[1..4]
        .iter()
        .map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap())
        .collect();
    assert_eq!(text, "a\n\ndata: [DONE]");
    assert_eq!(chunks[4]["choices"][0]["finish_reason"], "length");
    assert_eq!(chunks[5]["choices"], json!([]));
    assert_eq!(chunks[5]["usage"]["total_tokens"], 8);
    assert_eq!(chunks.len(), 6);
}

#[test]
fn a_stream_can_leave_out_usage_and_filler() {
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    let mut client = gateway.client();
    let options =
        json!({"stream": true, "prompt": "x", "stream_options": {"include_obfuscation": false}});
    client.send_post("/v1/completions", &options);
    let work = worker.next_generate();
    worker.answer(work.request, &["ab"]);
    let reply = client.reply();
    let text = reply.text();
    let events = events(&text);
    assert_eq!(events.len(), 3);
    assert!(!text.contains("obfuscation") && !text.contains("usage"));
    let first: Value = serde_json::from_str(events[0]).unwrap();
    assert_eq!(first["choices"][0]["text"], "ab");
}

#[test]
fn a_refusal_is_a_status_streamed_or_not() {
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    let mut client = gateway.client();
    let too_long =
        Failure::ContextTooLong { prompt_tokens: 90, max_tokens: 20, context_len_tokens: 100 };
    let cases = [
        (too_long, 400, json!("context_length_exceeded")),
        (Failure::TemplateRefused, 400, json!("invalid_value")),
        (Failure::RequestInvalid, 400, json!("invalid_value")),
        (Failure::Busy, 429, json!("rate_limit_exceeded")),
        (Failure::NoTicket, 500, json!("internal_error")),
        (Failure::Internal, 500, json!("internal_error")),
    ];
    for stream in [false, true] {
        for (failure, status, code) in &cases {
            client.send_post(CHAT, &chat(json!({"stream": stream})));
            let request = worker.next_generate().request;
            worker.say(&FromWorker::Failed { request, failure: *failure });
            let reply = client.reply();
            let (got_status, _, _, got_code) = reply.error();
            assert_eq!((got_status, &got_code), (*status, code));
            if *failure == too_long {
                let text = reply.text();
                assert!(text.contains("100 tokens") && text.contains("110 tokens"), "{text}");
                assert!(text.contains("90 in the messages"), "{text}");
            }
        }
    }
}

#[test]
fn what_the_supervisor_denies_is_a_status() {
    let gateway = Running::start(config());
    let _worker = gateway.worker(0, "m");
    let mut client = gateway.client();
    for (model, status, retry_after, should_retry) in [
        ("missing", 404, None, None),
        ("loading", 503, Some("5"), Some("true")),
        ("log", 503, None, Some("false")),
        ("busy", 429, Some("2"), Some("true")),
        ("stopping", 503, Some("5"), Some("true")),
    ] {
        let reply = client.post(CHAT, &chat(json!({"model": model})));
        assert_eq!(reply.error().0, status, "{model}");
        assert_eq!(reply.header("retry-after"), retry_after, "{model}");
        assert_eq!(reply.header("x-should-retry"), should_retry, "{model}");
    }
    let reply = client.post(CHAT, &chat(json!({"temperature": "hot"})));
    assert_eq!(reply.error().2, "temperature");
}

#[test]
fn a_client_that_leaves_is_cancelled_at_once() {
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    for stream in [false, true] {
        // Before the first token.
        let mut client = gateway.client();
        client.send_post(CHAT, &chat(json!({"stream": stream})));
        let request = worker.next_generate().request;
        drop(client);
        assert_eq!(worker.next_cancel(), request);
        // What the worker still says of it harms nobody.
        worker.answer(request, &["late"]);
    }
    // In the middle of the text.
    let mut client = gateway.client();
    client.send_post(CHAT, &chat(json!({"stream": true})));
    let request = worker.next_generate().request;
    worker.say(&FromWorker::Started { request, prompt_tokens: 5 });
    worker.delta(request, "some");
    assert_eq!(client.head().status, 200);
    client.chunk();
    drop(client);
    assert_eq!(worker.next_cancel(), request);
}

#[test]
fn a_client_that_leaves_before_its_ticket_is_abandoned() {
    let gateway = Running::start(config());
    let _worker = gateway.worker(0, "m");
    let closed = gateway.begin_gate.lock().unwrap();
    let mut client = gateway.client();
    client.send_post(CHAT, &chat(json!({})));
    assert!(matches!(gateway.next_seen(), Seen::Begin { .. }));
    drop(client);
    // Seen by the gateway before the supervisor answers: a request behind it is answered.
    assert_eq!(gateway.client().get("/health/live").status, 200);
    assert_eq!(gateway.client().get("/health/live").status, 200);
    drop(closed);
    assert_eq!(gateway.next_seen(), Seen::Abandoned(RequestId([1; 16])));
}

#[test]
fn a_request_for_a_worker_that_died_is_abandoned() {
    let gateway = Running::start(config());
    let worker = gateway.worker(0, "m");
    let mut client = gateway.client();
    drop(worker);
    // One that comes before the end of the worker was seen fails with it.
    let mut request = 0;
    loop {
        request += 1;
        let reply = client.post(CHAT, &chat(json!({})));
        assert_eq!(reply.error().0, 503);
        assert!(matches!(gateway.next_seen(), Seen::Begin { .. }));
        if let Ok(seen) = gateway.seen.recv_timeout(Duration::from_millis(200)) {
            assert_eq!(seen, Seen::Abandoned(RequestId([request; 16])));
            return;
        }
    }
}

#[test]
fn a_request_waits_for_a_worker_of_its_own() {
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    // It gets one.
    let mut client = gateway.client();
    client.send_post(CHAT, &chat(json!({"model": "later"})));
    assert!(matches!(gateway.next_seen(), Seen::Begin { .. }));
    let request = worker.next_generate().request;
    assert_eq!(request, RequestId([1; 16]));
    worker.answer(request, &["at last"]);
    assert_eq!(client.reply().json()["choices"][0]["message"]["content"], "at last");
    // It gets none, or one that is gone.
    for model in ["later-none", "later-gone"] {
        client.send_post(CHAT, &chat(json!({"model": model, "stream": true})));
        assert!(matches!(gateway.next_seen(), Seen::Begin { .. }));
        assert_eq!(client.reply().error().0, 503);
    }
    assert_eq!(gateway.next_seen(), Seen::Abandoned(RequestId([3; 16])));
    // Its client leaves.
    client.send_post(CHAT, &chat(json!({"model": "later-never", "stream": true})));
    assert!(matches!(gateway.next_seen(), Seen::Begin { .. }));
    drop(client);
    assert_eq!(gateway.next_seen(), Seen::Abandoned(RequestId([4; 16])));
    let mut client = gateway.client();
    client.send_post(CHAT, &chat(json!({})));
    assert_eq!(worker.next_generate().request, RequestId([5; 16]));
}

#[test]
fn a_client_that_does_not_read_stalls_nobody() {
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    let mut slow = gateway.client();
    slow.send_post(CHAT, &chat(json!({"stream": true})));
    let slow_request = worker.next_generate().request;
    worker.say(&FromWorker::Started { request: slow_request, prompt_tokens: 5 });
    // More than its queue, its connection and the kernel hold together.
    for _ in 0..256 {
        worker.delta(slow_request, &"x".repeat(16 << 10));
    }
    let mut other = gateway.client();
    other.send_post(CHAT, &chat(json!({})));
    assert_eq!(worker.next_cancel(), slow_request);
    let request = worker.next_generate().request;
    worker.answer(request, &["quick"]);
    assert_eq!(other.reply().json()["choices"][0]["message"]["content"], "quick");
    // Whoever reads at last is told.
    let body = slow.reply().text();
    let last = events(&body).pop().unwrap().to_owned();
    assert_eq!(serde_json::from_str::<Value>(&last).unwrap()["error"]["code"], "client_too_slow");
}

#[test]
fn an_answer_left_unread_too_long_is_cancelled() {
    let gateway = Running::start(config_with(|config| config.write_deadline_ms = 200));
    let mut worker = gateway.worker(0, "m");
    let mut slow = gateway.client();
    slow.send_post(CHAT, &chat(json!({"stream": true})));
    let request = worker.next_generate().request;
    worker.say(&FromWorker::Started { request, prompt_tokens: 5 });
    // More than the kernel holds, less than the queue.
    for _ in 0..48 {
        worker.delta(request, &"x".repeat(16 << 10));
    }
    assert_eq!(worker.next_cancel(), request);
}

fn config_with(change: impl FnOnce(&mut GatewayConfig)) -> GatewayConfig {
    let mut changed = config();
    change(&mut changed);
    changed
}

#[test]
fn slow_heads_and_bodies_run_out_of_time() {
    let gateway = Running::start(config_with(|config| config.read_deadline_ms = 200));
    let mut silent = gateway.client();
    let mut half_head = gateway.client();
    half_head.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthoriz");
    let mut half_body = gateway.client();
    let whole = request("POST", CHAT, "", &chat(json!({})).to_string());
    half_body.send(&whole[..whole.len() - 3]);
    assert_eq!(half_body.reply().error().0, 408);
    assert!(half_head.is_closed() || half_head.is_closed());
    assert!(silent.is_closed());
    // A body that never comes, of a request that is refused anyway.
    let mut refused = gateway.client();
    refused.send(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n");
    assert_eq!(refused.reply().error().0, 404);
}

#[test]
fn long_bodies_and_heads_are_refused() {
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    let mut client = gateway.client();
    let long = chat(json!({"user": "x".repeat(1 << 20)})).to_string();
    client.send(&request("POST", CHAT, "", &long));
    assert_eq!(client.reply().error().0, 413);
    // The same in chunks, without a length to refuse by.
    let mut chunked = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    for _ in 0..20 {
        chunked += &format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    }
    client.send((chunked + "0\r\n\r\n").as_bytes());
    assert_eq!(client.reply().error().0, 413);
    let many: String = (0..70).map(|i| format!("x-{i}: y\r\n")).collect();
    client.send(&request("GET", "/health/live", &many, ""));
    assert_eq!(client.reply().error().0, 431);
    let long = format!("x-long: {}\r\n", "y".repeat(20 << 10));
    client.send(&request("GET", "/health/live", &long, ""));
    assert_eq!(client.reply().error().0, 431);
    let mut client = gateway.client();
    let longer = format!("x-long: {}\r\n", "y".repeat(100 << 10));
    client.stream.get_mut().write_all(&request("GET", "/", &longer, "")).ok();
    assert_eq!(client.head().status, 431);
    // A body of exactly the limit passes.
    let mut client = gateway.client();
    let empty = chat(json!({"user": ""})).to_string();
    let fits = chat(json!({"user": "x".repeat((1 << 20) - empty.len())})).to_string();
    assert_eq!(fits.len(), 1 << 20);
    client.send(&request("POST", CHAT, "", &fits));
    let request = worker.next_generate().request;
    worker.answer(request, &[]);
    assert_eq!(client.reply().status, 200);
}

#[test]
fn requests_in_one_go_are_answered_in_order() {
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    let mut client = gateway.client();
    let chat = chat(json!({})).to_string();
    let all = [
        request("GET", "/health/live", "", ""),
        request("POST", CHAT, "", &chat),
        request("GET", "/nowhere", "", ""),
        request("POST", CHAT, "connection: close\r\n", &chat),
    ];
    client.send(&all.concat());
    assert_eq!(client.reply().status, 200);
    for text in ["one", "two"] {
        let request = worker.next_generate().request;
        worker.answer(request, &[text]);
        assert_eq!(client.reply().json()["choices"][0]["message"]["content"], text);
        if text == "one" {
            assert_eq!(client.reply().status, 404);
        }
    }
    assert!(client.is_closed());
}

#[test]
fn one_request_too_many_is_told_to_wait() {
    let gateway = Running::start(config_with(|config| config.requests_max = 1));
    let mut worker = gateway.worker(0, "m");
    let mut first = gateway.client();
    first.send_post(CHAT, &chat(json!({})));
    let request = worker.next_generate().request;
    let mut second = gateway.client();
    let refused = second.post(CHAT, &chat(json!({})));
    assert_eq!((refused.error().0, refused.header("retry-after")), (429, Some("1")));
    // Other questions are answered meanwhile.
    assert_eq!(second.get("/v1/models").status, 200);
    worker.answer(request, &["x"]);
    assert_eq!(first.reply().status, 200);
    second.send_post(CHAT, &chat(json!({})));
    let request = worker.next_generate().request;
    worker.answer(request, &["y"]);
    assert_eq!(second.reply().status, 200);
}

#[test]
fn one_connection_too_many_waits_for_its_turn() {
    let gateway = Running::start(config_with(|config| config.connections_max = 2));
    let mut one = gateway.client();
    let mut two = gateway.client();
    assert_eq!(one.get("/health/live").status, 200);
    assert_eq!(two.get("/health/live").status, 200);
    let mut three = gateway.client();
    three.send(&request("GET", "/health/live", "", ""));
    // Still served, while the third waits.
    assert_eq!(one.get("/health/live").status, 200);
    drop(two);
    assert_eq!(three.reply().status, 200);
}

/// Connects to the gateway's TCP port from another loopback address.
fn connect_from(gateway: &Running, from: [u8; 4]) -> TcpStream {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket, sockopt,
    };
    let to = gateway.tcp.unwrap();
    let stream =
        socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let [a, b, c, d] = from;
    bind(stream.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0)).unwrap();
    connect(stream.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, to.port())).unwrap();
    nix::sys::socket::setsockopt(&stream, sockopt::TcpNoDelay, &true).unwrap();
    let stream = TcpStream::from(stream);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Whether a connection is closed without a word.
fn is_closed_unread(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(count) => count == 0,
        // For what was sent and never read.
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_peer_that_holds_its_share_of_connections_leaves_the_others_theirs() {
    let gateway = Running::start(config_with(|config| {
        config.listeners.push(ListenerKind::PlainLoopback);
        config.connections_max = 8;
        config.connections_per_peer_max = 3;
    }));
    let greedy = [127, 0, 0, 2];
    let live = request("GET", "/health/live", "", "");
    // Idle, slow, and in the middle of a head.
    let held: Vec<TcpStream> = (0..3).map(|_| connect_from(&gateway, greedy)).collect();
    (&held[1]).write_all(b"GET /hea").unwrap();
    for _ in 0..20 {
        let refused = connect_from(&gateway, greedy);
        let _ = (&refused).write_all(&live);
        assert!(is_closed_unread(&refused));
    }
    // Others are served, through TCP and the Unix socket.
    for last in [1, 3, 4] {
        let stream = connect_from(&gateway, [127, 0, 0, last]);
        let mut client = Client { stream: BufReader::new(stream) };
        assert_eq!(client.get("/health/live").status, 200, "127.0.0.{last}");
    }
    assert_eq!(gateway.client().get("/health/live").status, 200);
    // Those that it holds are of use, and one that ends makes room for another.
    let mut kept = Client { stream: BufReader::new(held[0].try_clone().unwrap()) };
    assert_eq!(kept.get("/health/live").status, 200);
    drop((kept, held));
    loop {
        let stream = connect_from(&gateway, greedy);
        let mut client = Client { stream: BufReader::new(&stream) };
        if client.stream.get_mut().write_all(&live).is_ok() && !is_closed_unread(&stream) {
            break;
        }
    }
}

#[test]
fn without_a_share_one_peer_can_hold_all_connections() {
    let gateway = Running::start(config_with(|config| {
        config.listeners.push(ListenerKind::PlainLoopback);
        config.connections_max = 3;
    }));
    let hold = |_| {
        let stream = connect_from(&gateway, [127, 0, 0, 2]);
        let mut client = Client { stream: BufReader::new(stream) };
        assert_eq!(client.get("/health/live").status, 200);
        client
    };
    let held: Vec<_> = (0..3).map(hold).collect();
    let mut waiting = gateway.client();
    waiting.send(&request("GET", "/health/live", "", ""));
    waiting.stream.get_ref().set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert!(waiting.stream.fill_buf().is_err(), "the control: it waits");
    drop(held);
    waiting.stream.get_ref().set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(waiting.reply().status, 200);
}

#[test]
fn a_handshake_that_stalls_is_closed() {
    let (mut config, key, _) = tls_parts();
    config.read_deadline_ms = 200;
    let gateway = Running::start_with(config, Some(key));
    let silent = TcpStream::connect(gateway.tcp.unwrap()).unwrap();
    let halting = TcpStream::connect(gateway.tcp.unwrap()).unwrap();
    // The first bytes of a hello that goes on for 512.
    (&halting).write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]).unwrap();
    for stream in [&silent, &halting] {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert!(is_closed_unread(stream));
    }
}

#[test]
fn a_worker_that_dies_fails_its_requests_alone() {
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    let mut streaming = gateway.client();
    streaming.send_post(CHAT, &chat(json!({"stream": true})));
    let request = worker.next_generate().request;
    worker.say(&FromWorker::Started { request, prompt_tokens: 5 });
    worker.delta(request, "half an");
    assert_eq!(streaming.head().status, 200);
    let mut body = streaming.chunk().unwrap();
    let mut waiting = gateway.client();
    waiting.send_post(CHAT, &chat(json!({})));
    worker.next_generate();
    drop(worker);
    let refused = waiting.reply();
    assert_eq!((refused.error().0, refused.header("x-should-retry")), (503, Some("true")));
    while let Some(chunk) = streaming.chunk() {
        body += &chunk;
    }
    let last: Value = serde_json::from_str(events(&body).last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "model_unavailable");
    // The next worker serves the same connections.
    let mut worker = gateway.worker(0, "m2");
    streaming.send_post(CHAT, &chat(json!({})));
    let request = worker.next_generate().request;
    worker.answer(request, &["back"]);
    assert_eq!(streaming.reply().json()["model"], "m2");
}

#[test]
fn a_worker_that_speaks_nonsense_is_cut_off() {
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    let mut client = gateway.client();
    client.send_post(CHAT, &chat(json!({})));
    worker.next_generate();
    worker.stream.write_all(&u32::MAX.to_le_bytes()).unwrap();
    assert_eq!(client.reply().error().0, 503);
    assert_eq!(worker.stream.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn cancelled_by_the_server_is_an_error_not_an_end() {
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    let mut client = gateway.client();
    client.send_post(CHAT, &chat(json!({"stream": true})));
    let request = worker.next_generate().request;
    worker.delta(request, "x");
    let finish = Finish::Cancelled;
    let (prompt_tokens, completion_tokens, cached_tokens) = (5, 1, 4);
    worker.say(&FromWorker::Done {
        request,
        finish,
        prompt_tokens,
        completion_tokens,
        cached_tokens,
    });
    let text = client.reply().text();
    let last: Value = serde_json::from_str(events(&text).last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "cancelled");
}

#[test]
fn it_drains_and_then_ends() {
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    let mut client = gateway.client();
    client.send_post(CHAT, &chat(json!({"stream": true})));
    let request = worker.next_generate().request;
    gateway.supervisor.send(&ToGateway::Drain, &[]).unwrap();
    // It may listen no more.
    let late = std::os::unix::net::UnixStream::connect(&gateway.socket);
    worker.answer(request, &["to the end"]);
    let reply = client.reply();
    assert!(reply.text().contains("to the end") && reply.text().contains("[DONE]"));
    assert!(client.is_closed());
    if let Ok(mut late) = late {
        late.write_all(&harness::request("GET", "/health/live", "", "")).ok();
    }
    assert!(gateway.ends());
}

#[test]
fn it_ends_when_the_supervisor_is_gone_or_talks_nonsense() {
    let gateway = Running::start(config());
    nix::sys::socket::shutdown(
        std::os::fd::AsRawFd::as_raw_fd(&*gateway.supervisor),
        nix::sys::socket::Shutdown::Both,
    )
    .unwrap();
    assert!(!gateway.ends());
    let gateway = Running::start(config());
    gateway.supervisor.send(&ToGateway::Authorized { correlation: 77 }, &[]).unwrap();
    assert!(!gateway.ends());
}

/// What a gateway with TLS needs.
fn tls_parts() -> (GatewayConfig, TlsKey, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let random = ring::rand::SystemRandom::new();
    let pair = ring::signature::EcdsaKeyPair::from_pkcs8(
        &ring::signature::ECDSA_P256_SHA256_ASN1_SIGNING,
        &made.signing_key.serialize_der(),
        &random,
    )
    .unwrap();
    let certificate = made.cert.der().clone();
    let config = config_with(|config| {
        config.listeners = vec![ListenerKind::Unix, ListenerKind::Tls];
        config.certificates = vec![certificate.to_vec()];
        config.tls_scheme = 0x0403;
    });
    (config, TlsKey(pair), certificate)
}

fn tls_gateway() -> (Running, CertificateDer<'static>) {
    let (config, key, certificate) = tls_parts();
    (Running::start_with(config, Some(key)), certificate)
}

#[test]
fn it_serves_inside_its_sandbox() {
    let (config, key, certificate) = tls_parts();
    let (gateway, id) = Running::start_sealed(config, Some(key));
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "Threads:\t1"] {
        assert!(status.lines().any(|found| found == line), "{line}");
    }
    let mut worker = gateway.worker(0, "m");
    let mut local = gateway.client();
    let mut remote = tls_client(&gateway, &certificate);
    local.send_post(CHAT, &chat(json!({})));
    let request = worker.next_generate().request;
    worker.answer(request, &["here"]);
    assert_eq!(local.reply().status, 200);
    remote.send_post(CHAT, &chat(json!({"stream": true})));
    let request = worker.next_generate().request;
    worker.answer(request, &["there"]);
    assert!(remote.reply().text().contains("[DONE]"));
    // A long body and a long answer, so that buffers grow.
    local.send_post(CHAT, &chat(json!({"user": "x".repeat(900_000)})));
    let request = worker.next_generate().request;
    worker.answer(request, &[&*"y".repeat(50_000); 18]);
    assert_eq!(local.reply().body.len() / 100_000, 9);
    local.send_post(CHAT, &chat(json!({})));
    let request = worker.next_generate().request;
    drop(local);
    assert_eq!(worker.next_cancel(), request);
    drop(remote);
    drop(worker);
    gateway.supervisor.send(&ToGateway::ModelDown { model: ModelIndex(0) }, &[]).unwrap();
    while gateway.client().get("/health/ready").status == 200 {}
    gateway.supervisor.send(&ToGateway::Drain, &[]).unwrap();
    assert!(gateway.ends());
}

fn tls_client(
    gateway: &Running,
    trusted: &CertificateDer<'static>,
) -> Client<rustls::StreamOwned<rustls::ClientConnection, TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let tcp = TcpStream::connect(gateway.tcp.unwrap()).unwrap();
    Client { stream: BufReader::new(rustls::StreamOwned::new(connection, tcp)) }
}

#[test]
fn tls_is_signed_by_the_supervisor() {
    let (gateway, certificate) = tls_gateway();
    let mut worker = gateway.worker(0, "m");
    for _ in 0..2 {
        let mut client = tls_client(&gateway, &certificate);
        assert_eq!(client.get("/v1/models").status, 200);
        assert_eq!(gateway.next_seen(), Seen::Signed);
        let connection = &client.stream.get_ref().conn;
        assert_eq!(connection.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(connection.tls13_tickets_received(), 0);
        client.send_post(CHAT, &chat(json!({"stream": true})));
        let request = worker.next_generate().request;
        worker.answer(request, &["over TLS"]);
        assert!(client.reply().text().contains("over TLS"));
        assert!(matches!(gateway.next_seen(), Seen::Begin { .. }));
        // Gone without a word, in the middle of an answer.
        client.send_post(CHAT, &chat(json!({})));
        let request = worker.next_generate().request;
        assert!(matches!(gateway.next_seen(), Seen::Begin { .. }));
        drop(client);
        assert_eq!(worker.next_cancel(), request);
    }
}

/// A client's first words in TLS 1.2, with or without the extension that offers 1.3.
fn client_hello(offers_13: bool) -> Vec<u8> {
    let suites = [0x13, 0x01, 0xc0, 0x2b, 0xc0, 0x2f];
    let mut extensions = vec![0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3];
    if offers_13 {
        extensions.extend([0, 43, 0, 3, 2, 3, 4]);
        extensions.extend([0, 51, 0, 2, 0, 0]);
    }
    let len = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &len(&suites),
        &suites,
        &[1, 0],
        &len(&extensions),
        &extensions,
    ];
    let body = body.concat();
    let message = [&[1, 0][..], &len(&body), &body].concat();
    [&[22, 3, 1][..], &len(&message), &message].concat()
}

#[test]
fn tls_1_2_is_refused_and_nothing_is_signed_for_it() {
    let (gateway, _) = tls_gateway();
    let answer = |hello: Vec<u8>| {
        let mut stream = TcpStream::connect(gateway.tcp.unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&hello).unwrap();
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).unwrap();
        answer
    };
    // A fatal alert: the version is not served.
    assert_eq!(answer(client_hello(false)), [21, 3, 3, 0, 2, 2, 70]);
    // The control: the same words with 1.3 among them are answered by a message of the handshake.
    assert_eq!(answer(client_hello(true))[0], 22);
    assert!(gateway.seen.try_recv().is_err());
}

#[test]
fn plain_http_on_a_tls_port_is_refused() {
    let (gateway, _) = tls_gateway();
    let mut plain = TcpStream::connect(gateway.tcp.unwrap()).unwrap();
    plain.write_all(&request("GET", "/health/live", "", "")).unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).ok();
    assert!(!answer.starts_with(b"HTTP"));
}

#[test]
fn a_gateway_does_not_start_with_less_than_it_was_told() {
    let certificates_missing = config_with(|config| config.listeners = vec![ListenerKind::Tls]);
    let (ours, theirs) = cloister::ipc::Channel::pair().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let fd = std::os::fd::AsFd::as_fd(&listener);
    ours.send(&ToGateway::Config(certificates_missing), &[fd]).unwrap();
    let error =
        gateway::run(theirs, |_| -> Result<(), _> { panic!("sealed too early") }).unwrap_err();
    assert!(matches!(error, gateway::Error::Tls(_)));
    let (ours, theirs) = cloister::ipc::Channel::pair().unwrap();
    ours.send(&ToGateway::Drain, &[]).unwrap();
    let error = gateway::run(theirs, |_| Ok(())).unwrap_err();
    assert!(matches!(error, gateway::Error::Protocol(_)));
}

#[test]
fn no_refusal_over_http_repeats_the_clients_text() {
    const CANARY: &str = "canary-4c1d";
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    let bodies = [
        json!({CANARY: 1}).to_string(),
        CANARY.to_owned(),
        format!("{{\"messages\": \"{CANARY}\"}}"),
        format!("{{\"messages\": [{{\"role\": \"{CANARY}\"}}]}}"),
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{CANARY}\"}}], \"top_p\": \"{CANARY}\"}}"
        ),
        chat(json!({"model": "missing", "messages": [{"role": "user", "content": CANARY}]}))
            .to_string(),
    ];
    let mut client = gateway.client();
    for body in &bodies {
        client.send(&request("POST", CHAT, "", body));
        let reply = client.reply();
        assert!(reply.status >= 400);
        assert!(!reply.text().contains(CANARY), "{}", reply.text());
        assert!(reply.headers.iter().all(|(_, value)| !value.contains(CANARY)));
    }
    for path in [format!("/{CANARY}"), format!("/v1/models/{CANARY}")] {
        assert!(!client.get(&path).text().contains(CANARY));
    }
    client.send_post(CHAT, &json!({"messages": [{"role": "user", "content": CANARY}]}));
    let request = worker.next_generate().request;
    worker.say(&FromWorker::Failed { request, failure: Failure::TemplateRefused });
    assert!(!client.reply().text().contains(CANARY));
}
