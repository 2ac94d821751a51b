//! `cloister audit report`: one page that says what happened, verdict first, for people who decide.
//!
//! The page stands alone: no script, no outside reference, one style sheet whose hash its own policy
//! names. Every text from the log is escaped. Sections are in `sections.rs`, rules in `controls.rs`.

mod chart;
mod controls;
mod keys;
mod page;
mod sections;
mod words;

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;

use clap::Args;

use super::super::{Outcome, Verdict, print, tell};
use super::filter::Filter;
use super::recorded::Reading;
use super::source::{Anchor, Log};
use super::summary::Summary;
use super::text::{now_s, parse_from, parse_to};
use crate::audit::verify::{Report, verify};
use crate::audit::{Checkpoint, Error, Snapshot};

/// Arguments of `cloister audit report`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    log: Log,
    /// The period's beginning: a day, a time in UTC, or a span before now [default: the log's].
    #[arg(long, value_name = "TIME", value_parser = parse_from)]
    from: Option<u64>,
    /// The period's end [default: the log's].
    #[arg(long, value_name = "TIME", value_parser = parse_to)]
    to: Option<u64>,
    #[command(flatten)]
    anchor: Anchor,
    /// The page to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Write over a page that is there.
    #[arg(long)]
    force: bool,
}

/// What the check of the whole log came to.
pub(super) struct Checked {
    /// The report, or the first break.
    pub(super) report: Result<Report, Error>,
    /// What was signed.
    pub(super) signed: Checkpoint,
    /// The signed note.
    pub(super) note: String,
    /// The log's public key.
    pub(super) key: String,
    /// Who kept the checkpoint from elsewhere.
    pub(super) anchor: Option<String>,
    /// When the check was made.
    pub(super) made_s: u64,
}

/// Runs `cloister audit report`.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let log = &arguments.log;
    let verifier = log.verifier()?;
    // Said before the check, which takes long on a long log.
    if !arguments.force && arguments.out.exists() {
        return Err(out_fault(arguments, &ErrorKind::AlreadyExists.into()).into());
    }
    let (anchor, by) = arguments.anchor.read(&verifier, &log.folder)?.unzip();
    let filter = Filter { from: arguments.from, to: arguments.to, ..Filter::default() };
    let mut snapshot = log.open(Reading::Report, &filter)?;
    let (from, to) = period(arguments, &mut snapshot);
    let mut summary = Summary::new(filter, from, to);
    let report = verify(&log.folder, &verifier, anchor.as_ref(), &mut |index, record| {
        summary.see(index, record);
    });
    let checked = Checked {
        report,
        signed: snapshot.checkpoint().clone(),
        note: snapshot.note().to_owned(),
        key: verifier.to_text(),
        anchor: by,
        made_s: now_s(),
    };
    let page = page::page(&summary, &checked, (from, to));
    let fault = |error| out_fault(arguments, &error);
    let file = if arguments.force {
        File::create(&arguments.out)
    } else {
        File::create_new(&arguments.out)
    };
    let mut file = file.map_err(fault)?;
    file.write_all(page.as_bytes()).and_then(|()| file.sync_all()).map_err(fault)?;
    tell(&format!("wrote {}", arguments.out.display()));
    match &checked.report {
        Ok(report) => {
            print(&format!(
                "INTACT: {} records of {}, {} in the period",
                report.size, report.origin, summary.records
            ));
            Ok(Verdict::Holds)
        }
        Err(error) => {
            print(&super::output::broken(false, error));
            Ok(Verdict::Refused)
        }
    }
}

/// Why the page cannot be written, and what to do.
fn out_fault(arguments: &Arguments, error: &std::io::Error) -> String {
    let out = arguments.out.display();
    match error.kind() {
        ErrorKind::AlreadyExists => format!(
            "--out {out}: there is a file already; give another name, or --force to write over it"
        ),
        _ => format!("--out {out}: {error}"),
    }
}

/// The period's first and last second: as asked, or those of the log's first and last record.
fn period(arguments: &Arguments, snapshot: &mut Snapshot) -> (u64, u64) {
    let last = snapshot.size().saturating_sub(1);
    let time = |snapshot: &mut Snapshot, index| snapshot.record(index).map(|record| record.time_s);
    let first_s = snapshot.first_kept().and_then(|index| time(snapshot, index));
    let last_s = time(snapshot, last);
    let to = arguments.to.or(last_s.ok()).unwrap_or_else(now_s);
    let from = arguments.from.or(first_s.ok()).unwrap_or(to);
    (from.min(to), to)
}
