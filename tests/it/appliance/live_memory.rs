//! What the living processes remember of a request that has ended: nothing of its text.
//!
//! The test reads their memory as root may. The control finds the text while the request runs.

use std::os::unix::fs::FileExt as _;

use super::*;

/// Longest stretch of memory that is read at once, in bytes.
const STRETCH: usize = 4 << 20;

/// Where a process's memory holds a text: the names of the mappings.
pub(crate) fn found_in(pid: i32, text: &[u8]) -> Vec<String> {
    // One that just ended holds nothing any more.
    let Ok(maps) = fs::read_to_string(format!("/proc/{pid}/maps")) else { return Vec::new() };
    let Ok(memory) = fs::File::open(format!("/proc/{pid}/mem")) else { return Vec::new() };
    let mut found = Vec::new();
    let mut bytes = vec![0; STRETCH];
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (range, name) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let (mut at, end) = (number(start), number(end));
        while at < end {
            let len = usize::try_from(end - at).unwrap().min(STRETCH);
            let read = memory.read_at(&mut bytes[..len], at).unwrap_or(0);
            if support::holds(&bytes[..read], text) {
                let name = name.split_whitespace().last().unwrap();
                found.push(format!("{at:x}: {name}"));
            }
            if at + len as u64 == end {
                break;
            }
            // The next stretch overlaps, so that a text on the border is seen.
            at += (len - text.len()) as u64;
        }
    }
    found
}

/// A text that no other test and no program holds.
pub(super) fn canary(number: u32) -> String {
    format!("QUETZALCOATL-{number:04}-{}", "XOLOTL".repeat(4))
}

/// The living processes that a request passes, or its facts.
fn parts(appliance: &Appliance) -> Vec<(&'static str, i32)> {
    let mut parts = vec![("supervisor", appliance.child.id().cast_signed())];
    for (name, program) in [("gateway", "cloister-gateway"), ("worker", "cloister-worker")] {
        let running = appliance.children(program).into_iter().filter(|pid| is_running(*pid));
        parts.extend(running.map(|pid| (name, pid)));
    }
    parts
}

/// Where the living processes hold a text.
pub(super) fn hunt(appliance: &Appliance, text: &str) -> Vec<String> {
    let found = |(name, pid): (&str, i32)| {
        let found = found_in(pid, text.as_bytes());
        found.into_iter().map(move |at| format!("{name} {at}")).collect::<Vec<_>>()
    };
    parts(appliance).into_iter().flat_map(found).collect()
}

/// The text must be nowhere in living memory; the last buffers go when their connection has ended.
pub(super) fn gone(appliance: &Appliance, text: &str, after: &str) {
    let start = Instant::now();
    while !hunt(appliance, text).is_empty() && start.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(hunt(appliance, text), [""; 0], "after {after}");
}

/// A long stream, of which the first bytes have come; its prompt and its stop string hold a text each.
fn stream_about(appliance: &Appliance, prompt: &str, stop: &str) -> TcpStream {
    let mut stream = ask(&format!("Count from one to a million, in honour of {prompt}"), 1500);
    stream["stream"] = true.into();
    stream["stop"] = stop.into();
    let mut open = appliance.post("/v1/chat/completions", &stream);
    open.read_exact(&mut [0; 400]).unwrap();
    open
}

/// Files below a folder that were written since a moment and hold one of the texts.
fn files_with(folder: &Path, since: std::time::SystemTime, texts: &[String]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let Ok(facts) = fs::symlink_metadata(&path) else { continue };
        if facts.is_dir() {
            found.extend(files_with(&path, since, texts));
        } else if facts.is_file() && facts.modified().is_ok_and(|when| when >= since) {
            let Ok(bytes) = fs::read(&path) else { continue };
            let holds = |text: &String| support::holds(&bytes, text.as_bytes());
            if texts.iter().any(holds) {
                found.push(path);
            }
        }
    }
    found
}

/// A part dies in the middle of a request, whose texts must be gone with it. Returns them.
fn crash(appliance: &mut Appliance, program: &str, texts: [String; 2]) -> [String; 2] {
    let open = stream_about(appliance, &texts[0], &texts[1]);
    assert!(!hunt(appliance, &texts[1]).is_empty(), "the control before a crash of {program}");
    let killed = appliance.only_child(program);
    kill(killed, "KILL");
    drain(open);
    eventually(&format!("{program} is started again"), || {
        appliance.children(program).iter().any(|pid| *pid != killed && is_running(*pid))
    });
    appliance.wait_until_ready();
    eventually("an answer after a crash", || appliance.chat(&ask("hi", 4)).0 == 200);
    for text in &texts {
        gone(appliance, text, &format!("a crash of {program}"));
    }
    texts
}

#[test]
fn a_request_that_ended_is_nowhere_in_living_memory() {
    if !is_root() {
        return support::skip("the memory of living processes", "the tests run as a plain user");
    }
    let started = std::time::SystemTime::now();
    let mut appliance = Appliance::start(As::Oneself);
    // While a request runs the worker has its stop strings, and while it arrives the gateway has its
    // body: the hunt can find something.
    let [running, asked] = [canary(1), canary(5)];
    let open = stream_about(&appliance, &asked, &running);
    let found = hunt(&appliance, &running);
    assert!(found.iter().any(|at| at.starts_with("worker")), "the control: {found:?}");
    drop(open);
    let arriving = canary(4);
    let mut half = TcpStream::connect(("127.0.0.1", appliance.port)).unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n";
    let token = &appliance.token;
    write!(half, "{head}Authorization: Bearer {token}\r\n\r\n{{\"model\": \"{arriving}").unwrap();
    eventually("the control in the gateway", || {
        hunt(&appliance, &arriving).iter().any(|at| at.starts_with("gateway"))
    });
    drop(half);
    eventually("the record of a cancel", || {
        appliance.records("end").iter().any(|end| end.to_string().contains("cancelled"))
    });
    gone(&appliance, &running, "a cancel");
    gone(&appliance, &asked, "a cancel");
    gone(&appliance, &arriving, "a body that never came whole");

    let answered = canary(2);
    assert_eq!(appliance.chat(&ask(&format!("Say: {answered}"), 16)).0, 200);
    gone(&appliance, &answered, "an answer");
    let refused = canary(3);
    let bad = json!({ "model": "smol", "temperature": refused, "messages": [] });
    assert_eq!(appliance.chat(&bad).0, 400);
    gone(&appliance, &refused, "a refusal");

    // What died in the middle is neither in those that live on nor in those that follow it.
    let mut texts = vec![running, asked, arriving, answered, refused];
    for (number, program) in [(6, "cloister-worker"), (8, "cloister-gateway")] {
        texts.extend(crash(&mut appliance, program, [canary(number), canary(number + 1)]));
    }
    assert_eq!(appliance.records("end_missing").len(), 2);
    // Journal, log, keys, standard error, and temporary files, those in memory too.
    let folders = ["/dev/shm", "/tmp", "/var/tmp", "/run"].map(PathBuf::from);
    let own = appliance.folder.clone();
    let found: Vec<PathBuf> = folders
        .iter()
        .chain([&own])
        .flat_map(|folder| files_with(folder, started, &texts))
        .collect();
    assert!(found.is_empty(), "{found:?}");
    // The control: a file that holds one is found.
    fs::write(own.join("control"), &texts[0]).unwrap();
    assert_eq!(files_with(&own, started, &texts), [own.join("control")]);
    appliance.stop();
}
