//! `cloister chat` and its client, against the gateway.

use std::io::Write;
use std::ops::ControlFlow;
use std::process::{Command, Output, Stdio};
use std::thread;

use cloister::cli::http_client::{Client, Error};
use cloister::ipc::message::{Failure, FromWorker, Prompt};
use cloister::secret::Secret;
use serde_json::{Value, json};

use super::harness::{KEY, Running, Worker, config};
use super::tls_gateway;

const CHAT: &str = "/v1/chat/completions";

/// A worker that answers `count` requests with what it was asked last.
fn echo(mut worker: Worker, count: usize) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for _ in 0..count {
            let work = worker.next_generate();
            let Prompt::Chat { messages_json, .. } = &work.prompt else { panic!() };
            let messages: Value = serde_json::from_str(messages_json).unwrap();
            let messages = messages.as_array().unwrap();
            let last = messages.last().unwrap()["content"].as_str().unwrap();
            worker.answer(work.request, &[&messages.len().to_string(), ":", last]);
        }
    })
}

fn key() -> Option<Secret> {
    Some(Secret::new(KEY.as_bytes().to_vec()))
}

fn body(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": text}], "stream": true})
}

fn streamed(client: &Client, text: &str) -> Result<String, Error> {
    let mut answer = String::new();
    client.stream(CHAT, &body(text), |event| {
        answer += event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        ControlFlow::Continue(())
    })?;
    Ok(answer)
}

#[test]
fn the_client_streams_over_every_transport() {
    let (gateway, certificate) = tls_gateway();
    let echo = echo(gateway.worker(0, "m"), 2);
    let ca = gateway.socket.with_file_name("ca.pem");
    let pem = format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &certificate)
    );
    std::fs::write(&ca, pem).unwrap();
    let https = format!("https://localhost:{}/v1", gateway.tcp.unwrap().port());
    let unix = format!("unix:{}", gateway.socket.display());
    for (address, ca) in [(https.as_str(), Some(ca.as_path())), (&unix, None)] {
        let client = Client::new(address, key(), ca).unwrap();
        assert_eq!(client.get("/v1/models").unwrap()["data"][0]["id"], "m");
        assert_eq!(streamed(&client, "h\u{e9}").unwrap(), "1:h\u{e9}");
    }
    // Not trusted without its certificate.
    let client = Client::new(&https, key(), None);
    assert!(client.is_err() || matches!(client.unwrap().get("/health/live"), Err(Error::Tls(_))));
    echo.join().unwrap();
}

#[test]
fn the_client_tells_refusals_from_faults() {
    let gateway = Running::start(config());
    let mut worker = gateway.worker(0, "m");
    let unix = format!("unix:{}", gateway.socket.display());
    let client = Client::new(&unix, None, None).unwrap();
    let refused = streamed(&client, "x");
    assert!(matches!(refused, Err(Error::Refused { status: 401, .. })));
    let client = Client::new(&unix, key(), None).unwrap();
    let served = thread::spawn(move || {
        let request = worker.next_generate().request;
        worker.delta(request, "a");
        worker.say(&FromWorker::Failed { request, failure: Failure::Internal });
        // A client that has seen enough leaves.
        let request = worker.next_generate().request;
        worker.delta(request, "b");
        assert_eq!(worker.next_cancel(), request);
    });
    assert!(matches!(streamed(&client, "x"), Err(Error::Refused { status: 200, .. })));
    client.stream(CHAT, &body("x"), |_| ControlFlow::Break(())).unwrap();
    served.join().unwrap();
    let client = Client::new("unix:/nowhere/at/all", key(), None).unwrap();
    assert!(matches!(client.get("/v1/models"), Err(Error::Connect(_))));
}

fn chat(gateway: &Running, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cloister"))
        .args(["chat", "--url", &format!("unix:{}", gateway.socket.display())])
        .args(arguments)
        .env("CLOISTER_API_KEY", KEY)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn chat_answers_prompts_and_pipes_with_exit_codes() {
    let gateway = Running::start(config());
    let echo = echo(gateway.worker(0, "m"), 3);
    let out = chat(&gateway, &["hello"], "");
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(0), &b"1:hello\n"[..]));
    let out = chat(&gateway, &["--system", "be brief"], "from a pipe");
    assert_eq!(out.stdout, b"2:from a pipe\n");
    let out = chat(&gateway, &["--json", "-m", "m", "x"], "");
    let answer: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "1:x");
    let out = chat(&gateway, &["-m", "missing", "x"], "");
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("no such model"));
    let out = chat(&gateway, &["--url", "http://example.com", "x"], "");
    assert_eq!(out.status.code(), Some(2));
    echo.join().unwrap();
}
