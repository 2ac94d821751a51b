//! The whole appliance, started as an operator starts it: answers, log, crashes, canary.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cloister::cli::fetch::SMOLLM2;
use serde_json::{Value, json};

use crate::support;

mod card;
mod children;
mod erasure;
mod full_disk;
mod hang;
mod hostile;
mod keys;
mod lifetime;
mod live_memory;
mod long_log;
mod long_texts;
mod memory;
mod node;
mod privacy;
mod readers;
mod records;
mod replica;
mod retention;
mod revoked;
mod rotate_key;
mod speed;
mod swap;
mod tpm_counter;

pub(crate) use keys::scalar;
pub(crate) use live_memory::found_in;

/// As whom an appliance is started.
#[derive(Clone, Copy, PartialEq, Debug)]
enum As {
    /// The user of the test.
    Oneself,
    /// A plain user, from a test that runs as root.
    Nobody,
}

/// An appliance in a folder of its own.
struct Appliance {
    folder: PathBuf,
    /// Where its programs are.
    programs: PathBuf,
    port: u16,
    token: String,
    child: Child,
    user: As,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs a command of the operator.
fn cloister(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cloister")).args(words).output().unwrap()
}

/// Runs a command that must succeed; returns what it printed.
fn cloister_ok(words: &[&str]) -> String {
    let done = cloister(words);
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{words:?}: {told}");
    String::from_utf8(done.stdout).unwrap()
}

impl Appliance {
    /// Makes keys, signs and seals SmolLM2, and starts it.
    fn start(user: As) -> Self {
        Self::start_with(user, &support::model(&SMOLLM2), "")
    }

    /// Does so with another model, and with more about how workers compute.
    fn start_with(user: As, model: &Path, worker: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = PathBuf::from("/var/tmp")
            .join(format!("cloister-appliance-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("trust")).unwrap();
        let path = |name: &str| folder.join(name).display().to_string();
        cloister_ok(&["keygen", "signing", "--out", &path("signing.pem")]);
        fs::rename(path("signing.pub.pem"), path("trust/test.pem")).unwrap();
        cloister_ok(&["keygen", "model-identity", "--out", &path("identity.age")]);
        cloister_ok(&[
            "keygen",
            "audit",
            "--name",
            "test.example/audit",
            "--out",
            &path("audit.key"),
        ]);
        let model = model.display().to_string();
        let key = path("signing.pem");
        cloister_ok(&["model", "sign", &model, "--key", &key, "--out", &path("m.gguf.sig")]);
        let identity = fs::read_to_string(path("identity.age")).unwrap();
        let recipient = identity.lines().find_map(|l| l.strip_prefix("# public key: ")).unwrap();
        let sealed = path("m.gguf.age");
        cloister_ok(&["model", "seal", &model, "--recipient", recipient, "--out", &sealed]);
        let port = free_port();
        let config = format!(
            "[server]\nlisten = [\"127.0.0.1:{port}\"]\n[limits]\nrequest_deadline_ms = 60000\n\
             [[model]]\nname = \"smol\"\nfile = \"m.gguf.age\"\n\
             [audit]\nfolder = \"audit\"\norigin = \"test.example/audit\"\n\
             [control]\nsocket = \"control.sock\"\n[worker]\ncontext = 2048\n{worker}"
        );
        fs::write(path("cloister.toml"), config).unwrap();
        let made =
            cloister_ok(&["token", "add", "test", "--json", "--config", &path("cloister.toml")]);
        let made: Value = serde_json::from_str(&made).unwrap();
        let token = made["token"].as_str().unwrap().to_owned();
        give_to(&folder, user);
        let programs = Path::new(env!("CARGO_BIN_EXE_cloister")).parent().unwrap().to_owned();
        let child = spawn(&folder, &programs, user);
        let mut appliance = Self { folder, programs, port, token, child, user };
        appliance.wait_until_ready();
        appliance
    }

    /// Replaces a part of the configuration, once.
    fn change_config(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.path("cloister.toml")).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(self.path("cloister.toml"), text.replacen(from, to, 1)).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn wait_until_ready(&mut self) {
        let start = Instant::now();
        while self.get("/health/ready").is_none_or(|(status, _)| status != 200) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("ended at its start: {status}\n{}", self.told());
            }
            assert!(start.elapsed() < support::patience(120), "not ready:\n{}", self.told());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the supervisor wrote to its standard output and error.
    fn told(&self) -> String {
        fs::read_to_string(self.folder.join("told.log")).unwrap_or_default()
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
            self.token
        );
        stream.write_all(head.as_bytes()).ok()?;
        read_answer(stream)
    }

    /// Sends a request and returns the open connection.
    fn post(&self, path: &str, body: &Value) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(support::patience(120))).unwrap();
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.token,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        stream
    }

    fn chat(&self, body: &Value) -> (u16, Value) {
        // A connection that is cut has status 0.
        let answer = read_answer(self.post("/v1/chat/completions", body));
        let (status, text) = answer.unwrap_or_default();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Verifies the log and returns the report.
    fn verify_log(&self) -> Value {
        let (log, key) = (self.path("audit"), self.path("audit.vkey"));
        let text = cloister_ok(&["audit", "verify", &log, "--public-key", &key, "--json"]);
        serde_json::from_str(&text).unwrap()
    }

    fn records(&self, event: &str) -> Vec<Value> {
        let (log, key) = (self.path("audit"), self.path("audit.vkey"));
        let words = ["audit", "list", &log, "--public-key", &key, "--json", "--event", event];
        cloister_ok(&words).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Process ids below the supervisor whose program is `name`.
    fn children(&self, name: &str) -> Vec<i32> {
        descendants(self.child.id().cast_signed())
            .into_iter()
            .filter(|pid| {
                // Before Linux 6.14 the kernel names a program after the descriptor that it is started by.
                fs::read_to_string(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|words| words.split('\0').next() == Some(name))
            })
            .collect()
    }

    /// The one running child whose program is `name`.
    fn only_child(&self, name: &str) -> i32 {
        let running = || -> Vec<i32> {
            self.children(name).into_iter().filter(|pid| is_running(*pid)).collect()
        };
        eventually(&format!("one {name}"), || running().len() == 1);
        running()[0]
    }

    /// Starts it once more.
    fn start_again(&mut self) {
        self.child = spawn(&self.folder, &self.programs, self.user);
    }

    fn stop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            kill(self.child.id().cast_signed(), "TERM");
            let start = Instant::now();
            while self.child.try_wait().unwrap().is_none() {
                assert!(start.elapsed() < support::patience(30), "does not stop");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Lets the user of the appliance own its files.
fn give_to(folder: &Path, user: As) {
    if user == As::Nobody {
        let done = Command::new("chown").args(["-R", "nobody:nogroup"]).arg(folder).status();
        assert!(done.unwrap().success());
    }
}

fn spawn(folder: &Path, programs: &Path, user: As) -> Child {
    let told =
        fs::OpenOptions::new().create(true).append(true).open(folder.join("told.log")).unwrap();
    let binary = programs.join("cloister-supervisor");
    let mut command = match user {
        As::Oneself => Command::new(binary),
        As::Nobody => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(binary);
            command
        }
    };
    command.arg("--config").arg(folder.join("cloister.toml")).current_dir("/").env("HOME", folder);
    command.stdin(Stdio::null()).stdout(told.try_clone().unwrap()).stderr(told).spawn().unwrap()
}

fn kill(pid: i32, signal: &str) {
    let done = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status();
    assert!(done.unwrap().success(), "kill {pid}");
}

/// Waits for what must come, on a machine that may be busy.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < support::patience(60), "never came: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn descendants(of: i32) -> Vec<i32> {
    let parent = |pid: i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
    };
    let all: Vec<i32> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect();
    let mut found = vec![of];
    let mut at = 0;
    while at < found.len() {
        let of = found[at];
        found.extend(all.iter().filter(|&&pid| parent(pid) == Some(of)));
        at += 1;
    }
    found.remove(0);
    found
}

/// Reads a whole HTTP/1.1 answer (fixed length, chunked or to the end).
fn read_answer(stream: TcpStream) -> Option<(u16, String)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let (mut chunked, mut header) = (false, String::new());
    loop {
        header.clear();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        chunked |= header.to_lowercase().starts_with("transfer-encoding: chunked");
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    } else {
        reader.read_to_end(&mut body).ok()?;
    }
    Some((status, String::from_utf8(body).ok()?))
}

fn ask(text: &str, max_tokens: u32) -> Value {
    json!({
        "model": "smol", "max_tokens": max_tokens, "temperature": 0,
        "messages": [{ "role": "user", "content": text }],
    })
}

fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// As oneself, and as a plain user when the test may choose.
fn users() -> Vec<As> {
    if is_root() { vec![As::Oneself, As::Nobody] } else { vec![As::Oneself] }
}

/// A word that stands in no vocabulary, template or error text.
const CANARY: &str = "xanthorrhoea-7f3a-canary";

#[test]
fn answers_are_right_recorded_and_leave_no_trace() {
    for user in users() {
        let mut appliance = Appliance::start(user);
        let (status, answer) = appliance.chat(&ask("What is the capital of France?", 24));
        assert_eq!(status, 200, "{answer}");
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(!text.trim().is_empty());
        let again = appliance.chat(&ask("What is the capital of France?", 24)).1;
        assert_eq!(again["choices"], answer["choices"], "greedy answers repeat");

        let mut streamed = ask("What is the capital of France?", 24);
        streamed["stream"] = true.into();
        let stream = appliance.post("/v1/chat/completions", &streamed);
        let (status, events) = read_answer(stream).unwrap();
        assert_eq!(status, 200);
        let mut joined = String::new();
        for event in events.lines().filter_map(|line| line.strip_prefix("data: ")) {
            if let Ok(chunk) = serde_json::from_str::<Value>(event) {
                joined += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
            }
        }
        assert_eq!(joined, text, "streamed and whole answers are the same");
        assert!(events.trim_end().ends_with("data: [DONE]"));

        let (status, refusal) = appliance.chat(&ask(CANARY, 4000));
        assert_eq!(status, 400, "{refusal}");
        let message = refusal["error"]["message"].as_str().unwrap();
        assert!(message.contains("4000") && message.contains("2048"), "{message}");
        assert_eq!(appliance.chat(&ask(CANARY, 8)).0, 200);
        let bad = json!({ "model": "smol", "temperature": CANARY, "messages": [] });
        assert_eq!(appliance.chat(&bad).0, 400);

        appliance.stop();
        let report = appliance.verify_log();
        assert_eq!(report["verdict"], "INTACT");
        assert_eq!(report["open_requests"], 0, "{report}");
        assert_eq!(appliance.records("begin").len(), appliance.records("end").len());
        assert!(appliance.records("begin").len() >= 5);
        no_canary(&appliance.folder);
    }
}

/// What the worker does with such a request stands in its `session.rs`, in debug builds alone.
#[cfg(debug_assertions)]
const PANIC_SEED: u64 = 0x7061_6e69_6373;

#[cfg(debug_assertions)]
#[test]
fn a_panic_that_quotes_the_prompt_and_a_cancel_leave_no_trace() {
    for user in users() {
        let mut appliance = Appliance::start(user);
        let mut stream = ask(&format!("Tell me all about {CANARY}."), 1500);
        stream["stream"] = true.into();
        let mut cancelled = appliance.post("/v1/chat/completions", &stream);
        cancelled.read_exact(&mut [0; 400]).unwrap();
        drop(cancelled);
        eventually("the record of a cancel", || {
            appliance.records("end").iter().any(|end| end.to_string().contains("cancelled"))
        });

        let worker = appliance.only_child("cloister-worker");
        let mut asked = ask(&format!("{CANARY} {CANARY}"), 8);
        asked["seed"] = PANIC_SEED.into();
        let (status, answer) = appliance.chat(&asked);
        assert!(status >= 500, "{status}: {answer}");
        assert!(!answer.to_string().contains(CANARY), "{answer}");
        eventually("the record of the panic", || {
            let died = appliance.records("child_died");
            died.iter().any(|died| died.to_string().contains("panic at src/worker/session.rs"))
        });
        assert_ne!(appliance.only_child("cloister-worker"), worker, "it is started again");
        appliance.wait_until_ready();
        assert_eq!(appliance.chat(&ask("hi", 4)).0, 200);
        assert_eq!(appliance.records("end_missing").len(), 1);
        appliance.stop();
        assert_eq!(appliance.verify_log()["verdict"], "INTACT");
        let listed = appliance.records("begin").len();
        assert!(listed >= 3, "{listed}");
        no_canary(&appliance.folder);
    }
}

/// Looks for the canary in every file of the appliance, but in none that the test wrote.
fn no_canary(folder: &Path) {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                let found = support::holds(&bytes, CANARY.as_bytes());
                assert!(!found, "the canary is in {}", path.display());
            }
        }
    }
}

#[test]
fn a_prefix_is_found_again_by_its_principal_alone() {
    let mut appliance = Appliance::start(As::Oneself);
    let config = appliance.path("cloister.toml");
    let made = cloister_ok(&["token", "add", "other", "--json", "--config", &config]);
    let made: Value = serde_json::from_str(&made).unwrap();
    let long = "Count the sheep that jump over the fence, one after the other. ".repeat(12);
    let ask_long = |appliance: &Appliance| {
        let (status, answer) = appliance.chat(&ask(&long, 8));
        assert_eq!(status, 200, "{answer}");
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        let usage = &answer["usage"];
        let prompt = usage["prompt_tokens"].as_u64().unwrap();
        (text, prompt, usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap())
    };
    let (cold, prompt, cached) = ask_long(&appliance);
    assert!(prompt > 64 && cached == 0, "{cached} of {prompt}");
    let whole_pages = (prompt - 1) / 32 * 32;
    assert_eq!(ask_long(&appliance), (cold.clone(), prompt, whole_pages));
    let mine = std::mem::replace(&mut appliance.token, made["token"].as_str().unwrap().to_owned());
    assert_eq!(ask_long(&appliance), (cold.clone(), prompt, 0), "another principal");
    assert_eq!(ask_long(&appliance), (cold.clone(), prompt, whole_pages));
    // What was kept goes with the principal, and the place with it; the others stay.
    cloister_ok(&["token", "revoke", "other", "--config", &config]);
    eventually("the revocation", || appliance.chat(&ask("hello", 1)).0 == 401);
    appliance.token = mine;
    assert_eq!(ask_long(&appliance), (cold, prompt, whole_pages));
}

#[test]
fn keys_and_models_that_are_not_there_are_refused() {
    let mut appliance = Appliance::start(As::Oneself);
    let token = std::mem::replace(&mut appliance.token, "sk-wrong".into());
    let (status, answer) = appliance.chat(&ask("hi", 4));
    assert_eq!((status, &answer["error"]["code"]), (401, &json!("invalid_api_key")), "{answer}");
    appliance.token = token;
    let mut other = ask("hi", 4);
    other["model"] = "other".into();
    let (status, answer) = appliance.chat(&other);
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")), "{answer}");
    let (status, models) = appliance.get("/v1/models").unwrap();
    assert_eq!(status, 200);
    assert!(models.contains("\"smol\""), "{models}");
    appliance.stop();
    assert!(!appliance.records("refused").is_empty());
}

/// Starts a long stream and reads its first bytes.
fn start_stream(appliance: &Appliance) -> TcpStream {
    let mut body = ask("Write a very long story about the sea.", 1500);
    body["stream"] = true.into();
    let mut stream = appliance.post("/v1/chat/completions", &body);
    let mut first = [0; 400];
    stream.read_exact(&mut first).unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&first));
    stream
}

fn drain(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // A reset connection has ended as well as a closed one.
    let _ = stream.read_to_end(&mut rest);
}

#[test]
fn a_killed_part_ends_cleanly_and_the_log_tells() {
    for user in users() {
        let mut appliance = Appliance::start(user);
        for (round, part) in ["cloister-gateway", "cloister-worker"].iter().enumerate() {
            let stream = start_stream(&appliance);
            let killed = appliance.only_child(part);
            kill(killed, "KILL");
            drain(stream);
            eventually(&format!("{part} is started again"), || {
                appliance.children(part).iter().any(|pid| *pid != killed)
            });
            appliance.wait_until_ready();
            eventually(&format!("an answer after the end of {part}"), || {
                appliance.chat(&ask("hi", 4)).0 == 200
            });
            eventually(&format!("an end_missing record for {part}"), || {
                appliance.records("end_missing").len() == round + 1
            });
        }
        let stream = start_stream(&appliance);
        let children = descendants(appliance.child.id().cast_signed());
        assert!(children.len() >= 3, "{children:?}");
        appliance.child.kill().unwrap();
        appliance.child.wait().unwrap();
        drain(stream);
        let start = Instant::now();
        while children.iter().any(|pid| is_running(*pid)) {
            assert!(start.elapsed() < Duration::from_secs(10), "children outlive the supervisor");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(appliance.verify_log()["verdict"], "INTACT");
        appliance.start_again();
        appliance.wait_until_ready();
        appliance.stop();
        assert_eq!(appliance.records("end_missing").len(), 3);
        assert_eq!(appliance.verify_log()["open_requests"], 0);
    }
}

/// Whether a process still does something; a zombie waits for its new parent only.
fn is_running(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim().starts_with('Z')))
}

#[test]
fn compute_threads_keep_to_a_processor_each_and_no_other_thread_does() {
    let processors = cloister::sys::processors::allowed().unwrap();
    if std::thread::available_parallelism().unwrap().get() < processors.len() {
        return support::tell("a quota of processor time: threads are not pinned here");
    }
    let mut appliance = Appliance::start(As::Oneself);
    let seen = |appliance: &Appliance| {
        let worker = appliance.only_child("cloister-worker");
        let (mut compute, mut others) = (Vec::new(), Vec::new());
        for task in fs::read_dir(format!("/proc/{worker}/task")).unwrap() {
            let task = task.unwrap().path();
            let status = fs::read_to_string(task.join("status")).unwrap();
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap().trim().to_owned()
            };
            let is_main = task.ends_with(worker.to_string());
            let computes = is_main || field("Name:").starts_with("kernels-");
            if computes { &mut compute } else { &mut others }.push(field("Cpus_allowed_list:"));
        }
        compute.sort_unstable();
        (compute, others)
    };
    let mut each: Vec<String> = processors.iter().map(u16::to_string).collect();
    each.sort_unstable();
    let (compute, others) = seen(&appliance);
    assert_eq!(compute, each);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let all = own.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    assert!(others.len() >= 2 && others.iter().all(|list| list == all.trim()), "{others:?}");

    appliance.stop();
    appliance.change_config("[worker]\n", "[worker]\npin = false\n");
    appliance.start_again();
    appliance.wait_until_ready();
    let (compute, _) = seen(&appliance);
    assert!(compute.iter().all(|list| list == all.trim()), "{compute:?}");
    appliance.stop();
}

#[test]
fn the_openai_client_chats_streaming_and_not() {
    let Some(python) = support::python_with("openai") else {
        return support::skip(
            "the openai client",
            "python has no package openai (CLOISTER_PYTHON)",
        );
    };
    let appliance = Appliance::start(As::Oneself);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/openai_client.py");
    let done = Command::new(python)
        .arg(script)
        .args([format!("http://127.0.0.1:{}/v1", appliance.port), "smol".into()])
        .env("OPENAI_API_KEY", &appliance.token)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{told}");
}

#[test]
fn tls_is_served_with_a_key_that_only_the_supervisor_has() {
    for user in users() {
        let mut appliance = Appliance::start(user);
        appliance.stop();
        let (key, certificate) = (appliance.path("tls.pem"), appliance.path("tls.cert.pem"));
        cloister_ok(&[
            "keygen",
            "tls",
            "--host",
            "localhost",
            "--host",
            "127.0.0.1",
            "--out",
            &key,
        ]);
        appliance.change_config(
            "[limits]",
            "certificate = \"tls.cert.pem\"\n[keys]\ntls = \"tls.pem\"\n[limits]",
        );
        give_to(&appliance.folder, user);
        appliance.start_again();
        fs::write(appliance.path("key.txt"), &appliance.token).unwrap();
        let (url, file) =
            (format!("https://localhost:{}", appliance.port), appliance.path("key.txt"));
        let asked = [
            "chat",
            "--url",
            &url,
            "--ca",
            &certificate,
            "--api-key-file",
            &file,
            "--max-tokens",
            "8",
            "--json",
            "Hello",
        ];
        eventually("an answer over TLS", || cloister(&asked).status.success());
        let other = appliance.path("other.pem");
        cloister_ok(&["keygen", "tls", "--host", "localhost", "--out", &other]);
        let with_other = asked.map(|word| word.replace("tls.cert.pem", "other.cert.pem"));
        let other_is_shown = || {
            let words: Vec<&str> = with_other.iter().map(String::as_str).collect();
            cloister(&words).status.success()
        };
        assert!(!other_is_shown(), "a certificate that is not trusted");
        talk_over_tls(&appliance, &url);
        take_another_certificate(&appliance, &other_is_shown);
        appliance.stop();
        assert_eq!(appliance.verify_log()["verdict"], "INTACT");
    }
}

fn talk_over_tls(appliance: &Appliance, url: &str) {
    let Some(python) = support::python_with("openai") else {
        return support::skip("the openai client over TLS", "python has no package openai");
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/openai_client.py");
    let done = Command::new(python)
        .arg(script)
        .args([format!("{url}/v1"), "smol".into()])
        .env("OPENAI_API_KEY", &appliance.token)
        .env("SSL_CERT_FILE", appliance.path("tls.cert.pem"))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Another certificate and its key are taken without a restart; one without the other is not.
fn take_another_certificate(appliance: &Appliance, other_is_shown: &impl Fn() -> bool) {
    let reload = || cloister(&["reload", "--config", &appliance.path("cloister.toml")]);
    fs::copy(appliance.path("other.cert.pem"), appliance.path("tls.cert.pem")).unwrap();
    let refused = reload();
    assert_eq!(refused.status.code(), Some(1));
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(why.contains("the certificate is not of this key"), "{why}");
    assert!(!other_is_shown());
    fs::copy(appliance.path("other.pem"), appliance.path("tls.pem")).unwrap();
    give_to(&appliance.folder, appliance.user);
    let taken = reload();
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    eventually("the other certificate", other_is_shown);
    assert_eq!(appliance.records("certificate_loaded").len(), 1);
}

#[test]
fn a_changed_model_is_refused_before_it_is_parsed() {
    let mut appliance = Appliance::start(As::Oneself);
    appliance.stop();
    let sealed = appliance.path("m.gguf.age");
    let good = fs::read(&sealed).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&sealed, &bad).unwrap();
    assert_refused(&mut appliance, "chunk");
    fs::write(&sealed, &good[..good.len() - 70_000]).unwrap();
    assert_refused(&mut appliance, "");
    fs::write(&sealed, &good).unwrap();
    cloister_ok(&["keygen", "signing", "--out", &appliance.path("other.pem")]);
    fs::rename(appliance.path("other.pub.pem"), appliance.path("trust/test.pem")).unwrap();
    assert_refused(&mut appliance, "trust");
}

/// The next start must say why it serves nothing, and record it.
fn assert_refused(appliance: &mut Appliance, why: &str) {
    let before = appliance.records("model_refused").len();
    appliance.start_again();
    let start = Instant::now();
    loop {
        let refused = appliance.records("model_refused");
        if refused.len() > before {
            let check =
                refused.last().unwrap()["event"]["model_refused"]["observed"]["check"].to_string();
            assert!(check.to_lowercase().contains(why), "{check}");
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "not refused:\n{}", appliance.told());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_ne!(appliance.get("/health/ready").map(|(status, _)| status), Some(200));
    appliance.stop();
}
