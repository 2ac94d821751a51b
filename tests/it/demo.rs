//! The demo as a whole process: what it starts ends with it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support;

/// The demo's process; killed, and its supervisor with it, if a test gives up.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        for pid in children(&self.0) {
            let _ = kill(pid, Signal::SIGTERM);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the running children of a process.
fn children(process: &Child) -> Vec<Pid> {
    let id = process.id();
    let list = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
}

fn ends_with_all_it_started(signal: Signal) {
    let name = format!("cloister-demo-{}-{}", signal.as_str(), std::process::id());
    let folder = std::env::temp_dir().join(name);
    let model = support::golden().join("tiny/llama.gguf");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloister"));
    command.args(["demo", "--serve", "--model"]).arg(model).arg("--dir").arg(&folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut demo = Demo(command.spawn().unwrap());
    let mut output = BufReader::new(demo.0.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("Serving http") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the demo serves");
    }
    let [supervisor] = children(&demo.0)[..] else { panic!("the demo has one child") };
    kill(Pid::from_raw(demo.0.id().try_into().unwrap()), signal).unwrap();
    let start = Instant::now();
    while demo.0.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < support::patience(60), "the demo ends");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(kill(supervisor, None), Err(Errno::ESRCH), "the supervisor ends before the demo");
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("Everything is in"), "it says where everything is: {rest}");
    fs::remove_dir_all(&folder).unwrap();
}

// One after the other: two that start at once may choose the same port.
#[test]
fn a_demo_that_is_ended_or_whose_terminal_is_closed_leaves_nothing_running() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        ends_with_all_it_started(signal);
    }
}
