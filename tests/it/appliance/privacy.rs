//! A thousand requests, each with a word of its own, none of which is found anywhere afterwards; and what an
//! attacker with the log, and all texts that were ever sent, can link without the keys: nothing.

use std::collections::{HashMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloister::audit::record::{Event, KeyedDigest, Record};
use cloister::audit::{PrincipalKey, PrincipalKeys, WrappingKey};
use ring::hmac;

use super::erasure::sha256;
use super::records::all_records;
use super::*;

/// Requests in all.
const REQUESTS: usize = 1000;
/// Clients at once.
const CLIENTS: usize = 6;
/// The beginning of every word; it stands in no vocabulary, template or error text.
const WORD: &str = "zqxjvkw-";
/// What each principal sends once, word for word the same.
const SHARED: &str = "zqxjvkw-shared by two";

fn word(number: usize) -> String {
    format!("{WORD}{number:04}")
}

/// What came back, as far as it says how the request ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Kind {
    Chat,
    Completion,
    UnknownModel,
    Malformed,
    OverLong,
    InvalidUtf8,
    Cancelled,
    WrongKey,
}

fn kind(number: usize) -> Kind {
    match number % 10 {
        0..=3 => Kind::Chat,
        4 => Kind::Completion,
        5 => Kind::UnknownModel,
        6 => Kind::Malformed,
        7 => Kind::OverLong,
        8 => Kind::InvalidUtf8,
        _ if number % 20 == 9 => Kind::Cancelled,
        _ => Kind::WrongKey,
    }
}

/// Sends bytes that need not be JSON; returns the status.
fn send(appliance: &Appliance, token: &str, path: &str, body: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(("127.0.0.1", appliance.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    read_answer(stream).map(|(status, _)| status).unwrap_or_default()
}

fn request(appliance: &Appliance, number: usize) -> u16 {
    const CHAT: &str = "/v1/chat/completions";
    let word = word(number);
    let chat = |text: &str, max_tokens| ask(text, max_tokens);
    let to_chat =
        |body: &Value| send(appliance, &appliance.token, CHAT, body.to_string().as_bytes());
    match kind(number) {
        Kind::Chat => to_chat(&chat(&word, 1)),
        Kind::Completion => {
            let body =
                json!({ "model": "smol", "prompt": &word, "max_tokens": 1, "stop": [&word] });
            send(appliance, &appliance.token, "/v1/completions", body.to_string().as_bytes())
        }
        Kind::UnknownModel => {
            let mut body = chat(&word, 1);
            body["model"] = word.into();
            to_chat(&body)
        }
        Kind::Malformed => {
            let mut body = chat("hi", 1);
            body[&word] = word.clone().into();
            body["temperature"] = word.into();
            to_chat(&body)
        }
        Kind::OverLong => to_chat(&chat(&format!("{word} ").repeat(400), 1)),
        Kind::InvalidUtf8 => {
            let body = chat(&word, 1).to_string().into_bytes();
            let at = body.windows(word.len()).position(|it| it == word.as_bytes()).unwrap();
            let body = [&body[..at], &[0xff, 0xfe], &body[at..]].concat();
            send(appliance, &appliance.token, CHAT, &body)
        }
        Kind::Cancelled => {
            let mut body = chat(&format!("Tell me all about {word}."), 400);
            body["stream"] = true.into();
            let mut stream = appliance.post(CHAT, &body);
            let mut begun = [0; 300];
            stream.read_exact(&mut begun).unwrap();
            assert!(begun.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&begun));
            0
        }
        Kind::WrongKey => {
            let body = chat(&word, 1).to_string();
            send(appliance, &format!("sk-cloister-{word}"), CHAT, body.as_bytes())
        }
    }
}

/// All requests, by several clients; how each kind ended, and how often.
fn send_all(appliance: &Appliance) -> HashMap<(Kind, u16), usize> {
    let ended = std::thread::scope(|scope| {
        let client = |first: usize| {
            scope.spawn(move || {
                let its = (first..REQUESTS).step_by(CLIENTS);
                its.map(|number| (kind(number), request(appliance, number))).collect::<Vec<_>>()
            })
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    let mut counts = HashMap::new();
    ended.into_iter().for_each(|end| *counts.entry(end).or_default() += 1);
    counts
}

/// The word as it is, and as it would look in other clothes.
fn traces() -> Vec<Vec<u8>> {
    let word = WORD.trim_end_matches('-').as_bytes();
    let hex = word.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut traces = vec![word.to_vec(), word.to_ascii_uppercase(), hex.clone().into_bytes()];
    traces.push(hex.to_uppercase().into_bytes());
    for shift in 0..3 {
        let text = STANDARD.encode([&vec![0; shift][..], word].concat());
        // Digits that depend on what stands before and behind are left out.
        let whole = text.trim_end_matches('=');
        traces.push(whole.as_bytes()[[0, 2, 3][shift]..whole.len() - 1].to_vec());
    }
    traces
}

fn has_trace(bytes: &[u8]) -> bool {
    traces().iter().any(|trace| support::holds(bytes, trace))
}

/// The files of the appliance that hold a trace.
fn files_with_traces(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_none_or(|end| end != "age")
                && fs::read(&path).is_ok_and(|bytes| has_trace(&bytes))
            {
                found.push(path);
            }
        }
    }
    found
}

/// Each end of the log: its principal, the digests of its messages, and the digest of its answer.
fn ends(records: &[Record]) -> Vec<(String, Vec<KeyedDigest>, KeyedDigest)> {
    let mut whose = HashMap::new();
    let mut ends = Vec::new();
    for record in records {
        match &record.event {
            Event::Begin { request, observed, .. } => {
                whose.insert(request.clone(), observed.principal.clone());
            }
            Event::End { request, declared, .. } => ends.push((
                whose[request].clone(),
                declared.messages.clone(),
                declared.answer.clone(),
            )),
            _ => {}
        }
    }
    ends
}

/// What somebody without the keys may try on a record: every way to make a digest of what is there.
fn guesses(candidate: &[u8], keyed: &KeyedDigest, pseudonym: &str) -> Vec<String> {
    let digest = sha256(candidate);
    let nonce: Vec<u8> = (0..keyed.nonce.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&keyed.nonce[at..at + 2], 16).unwrap())
        .collect();
    let tag = |key: &[u8], message: &[u8]| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec()
    };
    let made = [
        digest.to_vec(),
        sha256(&[&nonce, candidate].concat()).to_vec(),
        sha256(&[&nonce, &digest[..]].concat()).to_vec(),
        tag(&nonce, candidate),
        tag(&nonce, &digest),
        tag(pseudonym.as_bytes(), &[&nonce, &digest[..]].concat()),
        tag(&[0; 32], &[&nonce, &digest[..]].concat()),
        tag(&[], &[&nonce, &digest[..]].concat()),
    ];
    made.iter().map(|bytes| cloister::audit::principal_keys::hex(bytes)).collect()
}

/// How many of the texts somebody links to a record, by `links`.
fn linked(
    ends: &[(String, Vec<KeyedDigest>, KeyedDigest)],
    texts: &[String],
    links: impl Fn(&str, &KeyedDigest, &str) -> bool,
) -> usize {
    let is_linked = |text: &&String| {
        let mut all = ends
            .iter()
            .flat_map(|(whose, messages, _)| messages.iter().map(move |message| (whose, message)));
        all.any(|(whose, message)| links(text, message, whose))
    };
    texts.iter().filter(is_linked).count()
}

#[test]
fn a_thousand_requests_leave_no_word_and_nobody_without_the_keys_links_any() {
    let mut appliance = Appliance::start(As::Oneself);
    appliance.stop();
    // What a client gave up counts against its key until the worker has noticed.
    let most = format!("[limits]\nrequests_max = {REQUESTS}\nrequests_per_key_max = {REQUESTS}\n");
    appliance.change_config("[limits]\n", &most);
    appliance.start_again();
    appliance.wait_until_ready();
    let config = appliance.path("cloister.toml");
    let made = cloister_ok(&["token", "add", "other", "--json", "--config", &config]);
    let other: Value = serde_json::from_str(&made).unwrap();
    let other = other["token"].as_str().unwrap().to_owned();
    let shared = ask(SHARED, 1).to_string();
    for token in [&appliance.token, &other] {
        let status = || send(&appliance, token, "/v1/chat/completions", shared.as_bytes());
        eventually("an answer to both", || status() == 200);
    }
    let counts = send_all(&appliance);
    let count = |kind, status| counts.get(&(kind, status)).copied().unwrap_or_default();
    let want = [
        (Kind::Chat, 200, 400),
        (Kind::Completion, 200, 100),
        (Kind::UnknownModel, 404, 100),
        (Kind::Malformed, 400, 100),
        (Kind::OverLong, 400, 100),
        (Kind::InvalidUtf8, 400, 100),
        (Kind::Cancelled, 0, 50),
        (Kind::WrongKey, 401, 50),
    ];
    assert!(want.iter().all(|(kind, status, n)| count(*kind, *status) == *n), "{counts:?}");
    let status = cloister(&["status", "--json", "--config", &config]).stdout;
    assert!(status.len() > 100 && !has_trace(&status));
    appliance.stop();

    assert_eq!(files_with_traces(&appliance.folder), Vec::<PathBuf>::new());
    let spilt = appliance.folder.join("spilt.txt");
    for text in [word(1), STANDARD.encode(format!("a{}", word(1)))] {
        fs::write(&spilt, text).unwrap();
        assert_eq!(
            files_with_traces(&appliance.folder),
            std::slice::from_ref(&spilt),
            "the control"
        );
    }

    // The schema knows no count that is not a power of two.
    let records: Vec<Record> =
        all_records(&appliance).into_iter().map(|it| serde_json::from_value(it).unwrap()).collect();
    nobody_links(&appliance, &ends(&records));
}

fn nobody_links(appliance: &Appliance, ends: &[(String, Vec<KeyedDigest>, KeyedDigest)]) {
    let sent: Vec<String> = (0..REQUESTS).filter(|n| kind(*n) == Kind::Chat).map(word).collect();
    let without_keys = |text: &str, keyed: &KeyedDigest, whose: &str| {
        guesses(text.as_bytes(), keyed, whose).contains(&keyed.hmac)
    };
    // Every digest is another, whatever it is of: equal texts do not show.
    let all = ends.iter().flat_map(|(_, messages, answer)| messages.iter().chain([answer]));
    let (hmacs, nonces): (Vec<_>, Vec<_>) = all.map(|it| (&it.hmac, &it.nonce)).unzip();
    assert!(hmacs.len() > 1000, "{}", hmacs.len());
    assert_eq!(hmacs.iter().collect::<HashSet<_>>().len(), hmacs.len());
    assert_eq!(nonces.iter().collect::<HashSet<_>>().len(), nonces.len());
    assert_eq!(linked(ends, &sent[..50], without_keys), 0);

    let wrapping = WrappingKey::parse(&fs::read(appliance.path("wrapping.key")).unwrap()).unwrap();
    let keys = PrincipalKeys::look(Path::new(&appliance.path("principals")), wrapping).unwrap();
    let keys: HashMap<String, PrincipalKey> =
        keys.all().unwrap().into_iter().map(|key| (key.pseudonym().to_owned(), key)).collect();
    let with_keys = |text: &str, keyed: &KeyedDigest, whose: &str| {
        keys[whose].matches(keyed, &sha256(text.as_bytes()))
    };
    assert_eq!(linked(ends, &sent, with_keys), sent.len(), "the control: whoever has them does");

    // The same text of two principals: each is found by its own key alone.
    let digest = sha256(SHARED.as_bytes());
    let owners = |key: &PrincipalKey| -> HashSet<&str> {
        let its = ends.iter().filter(|(_, messages, _)| {
            messages.iter().any(|message| key.matches(message, &digest))
        });
        its.map(|(whose, ..)| whose.as_str()).collect()
    };
    let found: Vec<_> = keys.values().map(|key| (key.pseudonym(), owners(key))).collect();
    assert!(found.len() >= 2);
    assert!(found.iter().all(|(own, owners)| *owners == HashSet::from([*own])), "{found:?}");
}
