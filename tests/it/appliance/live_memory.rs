//! What the living processes remember of a request that has ended: nothing of its text.
//!
//! The test reads their memory as root may. The control finds the text while the request runs.

use std::os::unix::fs::FileExt as _;

use super::*;

/// Longest stretch of memory that is read at once, in bytes.
const STRETCH: usize = 4 << 20;

/// Where a process's memory holds a text: the names of the mappings.
pub(crate) fn found_in(pid: i32, text: &[u8]) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
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
            if bytes[..read].windows(text.len()).any(|window| window == text) {
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
fn canary(number: u32) -> String {
    format!("QUETZALCOATL-{number:04}-{}", "XOLOTL".repeat(4))
}

#[test]
fn a_request_that_ended_is_nowhere_in_living_memory() {
    if !is_root() {
        return support::skip("the memory of living processes", "the tests run as a plain user");
    }
    let mut appliance = Appliance::start(As::Oneself);
    let parts = |appliance: &Appliance| {
        let supervisor = appliance.child.id().cast_signed();
        let children = ["cloister-gateway", "cloister-worker"].map(|it| appliance.only_child(it));
        [("supervisor", supervisor), ("gateway", children[0]), ("worker", children[1])]
    };
    let hunt = |appliance: &Appliance, text: &str| -> Vec<String> {
        let found = |(name, pid): (&str, i32)| {
            let found = found_in(pid, text.as_bytes());
            found.into_iter().map(move |at| format!("{name} {at}")).collect::<Vec<_>>()
        };
        parts(appliance).into_iter().flat_map(found).collect()
    };

    // While a request runs the worker has its stop strings, and while it arrives the gateway has its
    // body: the hunt can find something.
    let running = canary(1);
    let asked = canary(5);
    let mut stream = ask(&format!("Count from one to a million, in honour of {asked}"), 1500);
    stream["stream"] = true.into();
    stream["stop"] = running.clone().into();
    let mut open = appliance.post("/v1/chat/completions", &stream);
    open.read_exact(&mut [0; 400]).unwrap();
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
    let gone = |appliance: &Appliance, text: &str, after: &str| {
        // The last buffers go when their connection has ended.
        let start = Instant::now();
        while !hunt(appliance, text).is_empty() && start.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(hunt(appliance, text), [""; 0], "after {after}");
    };
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
    // Temporary files in memory are files too.
    for folder in ["/dev/shm", "/tmp"] {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let Ok(bytes) = fs::read(&path) else { continue };
            let holds = |text: &String| bytes.windows(text.len()).any(|w| w == text.as_bytes());
            assert!(![&running, &answered, &refused].into_iter().any(holds), "{}", path.display());
        }
    }
    appliance.stop();
}
