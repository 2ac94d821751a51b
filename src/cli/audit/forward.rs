//! `cloister audit forward`: hands new records to a SIEM, each at least once.
//!
//! Reads the log's files and writes a cursor, nothing else; a record holds no content, so none leaves. The
//! cursor keeps the newest checkpoint that was seen: a log that was rolled back or changed since is told to
//! the SIEM, and nothing more is forwarded.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::super::{Outcome, Verdict, tell};
use super::source::{Log, read_text};
use super::tail::Tail;
use super::target::Target;
use crate::audit::proof_file::parse_hash;
use crate::audit::snapshot::parse;
use crate::audit::{Checkpoint, Error};

/// Time between two looks at the log, and before a target that failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest cursor, in bytes.
const CURSOR_LEN_MAX_BYTES: usize = 1024;

/// Arguments of `cloister audit forward`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    log: Log,
    /// Where to: journald, syslog:unix:/dev/log, syslog:tcp:ADDRESS:PORT or syslog:udp:ADDRESS:PORT.
    #[arg(long, value_name = "TARGET", value_parser = Target::parse)]
    to: Target,
    /// Remembers what was forwarded.
    #[arg(long, value_name = "FILE", default_value = "/var/lib/cloister-forward/cursor")]
    cursor: PathBuf,
    /// End when all records are forwarded.
    #[arg(long)]
    once: bool,
}

type Fault = Box<dyn std::error::Error>;

/// Runs `cloister audit forward`, until it is ended.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let verifier = arguments.log.verifier()?;
    let (seen, next) = read_cursor(&arguments.cursor, verifier.name())?;
    let mut tail = Tail::new(&arguments.log, verifier, seen, next);
    let mut target = arguments.to.clone();
    loop {
        let before = tail.next;
        let mut sent = Ok(());
        let came = tail.turn(&mut |index, entry| {
            if sent.is_ok() {
                sent = send(&mut target, index, entry);
            }
        });
        match (came, sent) {
            (Err(error), _) => return broken(&mut target, &error),
            (Ok(_), Err(error)) => {
                tell(&format!("cloister: {}: {error}; tried again", arguments.to.name()));
                tail.next = before;
                std::thread::sleep(PAUSE);
            }
            (Ok(0), _) if arguments.once => return Ok(Verdict::Holds),
            (Ok(0), _) => std::thread::sleep(PAUSE),
            (Ok(_), Ok(())) => write_cursor(&arguments.cursor, &tail)?,
        }
    }
}

fn send(target: &mut Target, index: u64, entry: &[u8]) -> Result<(), Fault> {
    let record = parse(entry, index)?;
    Ok(target.send(index, &record)?)
}

/// Says to the SIEM that the log is not what it was.
fn broken(target: &mut Target, error: &Error) -> Outcome {
    if !matches!(error, Error::Io { .. }) {
        target.alarm(&format!("the audit log is BROKEN: {error}"))?;
    }
    tell(&format!("cloister: BROKEN: {error}"));
    Ok(Verdict::Refused)
}

/// The newest checkpoint that was seen and the next record: three lines and one.
fn read_cursor(path: &Path, origin: &str) -> Result<(Checkpoint, u64), Fault> {
    if !path.exists() {
        let root = crate::audit::merkle::empty_root();
        return Ok((Checkpoint { origin: origin.to_owned(), size: 0, root }, 0));
    }
    let fault = || format!("{} is no cursor; remove it to forward all again", path.display());
    let text = read_text(path, CURSOR_LEN_MAX_BYTES)?;
    let lines: Vec<&str> = text.lines().collect();
    let [is_origin, size, root, next] = lines.as_slice() else { return Err(fault().into()) };
    let size: u64 = size.parse().map_err(|_| fault())?;
    let next: u64 = next.parse().map_err(|_| fault())?;
    if *is_origin != origin || next > size {
        return Err(fault().into());
    }
    Ok((Checkpoint { origin: origin.to_owned(), size, root: parse_hash(root)? }, next))
}

/// Makes the cursor durable, whole or not at all.
fn write_cursor(path: &Path, tail: &Tail) -> Result<(), Fault> {
    let fault = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh).map_err(fault)?;
    let text = format!("{}{}\n", tail.seen.to_text(), tail.next);
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fault)?;
    Ok(fs::rename(&fresh, path).map_err(fault)?)
}
