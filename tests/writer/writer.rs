//! Writes an audit log until it is killed, and says what was acknowledged: for the test that kills it.
//!
//! Usage: writer LOG KEY. One line for each commit: the records that are durable now. Every few commits it
//! ends the log in order and opens it again, so that it is killed then too.

#![expect(clippy::unwrap_used, reason = "a program of the tests may panic")]

use std::io::Write as _;
use std::path::PathBuf;

use cloister::audit::record::{MissingCause, RecoveredFacts, RefusalReason, RefusedFacts};
use cloister::audit::{Event, Log, Signer};

/// Commits between two orderly ends.
const COMMITS_COUNT: u64 = 5;

fn main() {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder, key] = arguments.as_slice() else { panic!("usage: writer LOG KEY") };
    let pem = std::fs::read(key).unwrap();
    let signer = || Signer::from_pem("test.example/audit", &pem).unwrap();
    let (mut log, found) = Log::open(folder, signer()).unwrap();
    let mut out = std::io::stdout();
    if !found.stopped_in_order {
        let observed = RecoveredFacts { dropped_bytes: found.dropped_bytes };
        log.append(Event::Recovered { observed }).unwrap();
    }
    for request in found.open_requests {
        log.append(Event::end_missing(request, MissingCause::SupervisorGone)).unwrap();
    }
    for commit in 0_u64.. {
        for count in 0..=commit * 7 % 12 {
            let reason = RefusalReason::TooManyRequests;
            let observed = RefusedFacts { reason, count, principal: None };
            log.append(Event::Refused { observed }).unwrap();
        }
        log.commit().unwrap();
        // A line that nobody reads any more ends the program as well as a signal.
        if writeln!(out, "{}", log.size()).and_then(|()| out.flush()).is_err() {
            return;
        }
        if commit % COMMITS_COUNT == COMMITS_COUNT - 1 {
            log.close().unwrap();
            log = Log::open(folder, signer()).unwrap().0;
        }
    }
}
