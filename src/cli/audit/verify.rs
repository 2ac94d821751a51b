//! `cloister audit verify`: every record against the signed tree, offline, with its public key alone.

use std::cmp::Ordering;

use clap::Args;

use super::super::{Outcome, Verdict, print};
use super::filter::Filter;
use super::output::broken;
use super::recorded::{self, Reading};
use super::source::{Anchor, Log};
use super::text::time_text;
use crate::audit::verify::{Report, verify};

/// Arguments of `cloister audit verify`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    log: Log,
    #[command(flatten)]
    anchor: Anchor,
    /// What the TPM's counter of starts is now (`cloister-tpm-counter read`): the log's last start must have it.
    #[arg(long, value_name = "N")]
    tpm_counter: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `cloister audit verify`.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let log = &arguments.log;
    let verifier = log.verifier()?;
    log.must_be_there()?;
    recorded::announce(log, Reading::Verify, 0, &Filter::default())?;
    let anchor = arguments.anchor.read(&verifier, &log.folder)?;
    match verify(&log.folder, &verifier, anchor.as_ref().map(|one| &one.0), &mut |_, _| {}) {
        Ok(report) => {
            if let Some(why) = arguments.tpm_counter.and_then(|now| fault(now, &report)) {
                print(&broken(arguments.json, &why));
                return Ok(Verdict::Refused);
            }
            let by = anchor.map(|(_, by)| by).unwrap_or_default();
            show(arguments, &report, &by)?;
            Ok(Verdict::Holds)
        }
        Err(error) => {
            print(&broken(arguments.json, &error));
            Ok(Verdict::Refused)
        }
    }
}

/// Why a log is not the one whose last start the TPM counted, which is at `now`.
fn fault(now: u64, report: &Report) -> Option<String> {
    let Some(counter) = &report.tpm_counter else {
        return Some("no start in this log recorded a counter of the TPM".to_owned());
    };
    let last = counter.last;
    match now.cmp(&last) {
        Ordering::Equal => None,
        Ordering::Less => Some(format!(
            "the last start recorded {last} of the TPM's counter, and {now} was given: that is of an earlier start, \
             or of another TPM"
        )),
        Ordering::Greater => Some(format!(
            "the TPM's counter is {now}, and the log ends after the start with {last}: the log was rolled back to \
             before {}, unless they ended before their record (journalctl -u cloister tells)",
            match now - last {
                1 => "the last start".to_owned(),
                starts => format!("the last {starts} starts"),
            }
        )),
    }
}

/// What the TPM's counter says, for the verdict's line.
fn counted(report: &Report, now: Option<u64>) -> String {
    let Some(counter) = &report.tpm_counter else { return String::new() };
    let mut said = format!(", the TPM's counter rises from {} to {}", counter.first, counter.last);
    if counter.unrecorded > 0 {
        said.push_str(&format!(", {} of its values in no record", counter.unrecorded));
    }
    if let Some(now) = now {
        said.push_str(&format!(", and {now} is that of the last start"));
    }
    said
}

fn show(
    arguments: &Arguments,
    report: &Report,
    by: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let anchored = match report.anchored_at {
        Some(size) => {
            let time = report.anchored_time_s.map(|time_s| format!(", {}", time_text(time_s)));
            format!("ANCHORED by {by} at {size} records{}", time.unwrap_or_default())
        }
        None => "UNANCHORED".to_owned(),
    };
    if arguments.json {
        let mut value = serde_json::to_value(report)?;
        value["verdict"] = "INTACT".into();
        value["anchor"] = anchored.into();
        value["is_last_start_of_tpm"] = arguments.tpm_counter.map(|_| true).into();
        print(&value.to_string());
        return Ok(());
    }
    let counted = counted(report, arguments.tpm_counter);
    print(&format!("INTACT: {} records of {}, {anchored}{counted}", report.size, report.origin));
    if report.pruned > 0 {
        print(&format!(
            "  pruned                entries 0..{}; their hashes are proven",
            report.pruned
        ));
    }
    print(&format!("  root of the tree      {}", report.root));
    show_counter(report);
    for change in &report.key_changes {
        print(&format!(
            "  key changed           at {} records, signed by both keys\n    from {}\n    to   {}",
            change.size, change.before, change.after
        ));
    }
    if let Some(key) = &report.followed_to {
        print(&format!(
            "  The key that was given is an older one. It leads to the log's key by the changes above; \
             from now on give this one:\n    {key}"
        ));
    }
    if let Some((first, last)) = report.time_s {
        print(&format!("  from, to              {} {}", time_text(first), time_text(last)));
    }
    for (event, count) in &report.events {
        print(&format!("  {event:<21} {count}"));
    }
    for (name, count) in [
        ("not yet signed", report.unsigned_tail),
        ("still without an end", report.open_requests),
        ("ends without a begin", report.unmatched_ends),
        ("clock steps back", report.clock_steps_back),
    ] {
        if count > 0 {
            print(&format!("  {name:<21} {count}"));
        }
    }
    if let Some(index) = report.clock_step_back_first {
        print(&format!("  the first clock step back is at record {index}"));
    }
    if report.anchored_at.is_none() {
        print(
            "  No checkpoint from elsewhere was given: that nobody put back an older state of \
             the whole log is not shown. Keep copies of LOG/checkpoint off this machine and pass \
             one with --checkpoint.",
        );
    }
    Ok(())
}

fn show_counter(report: &Report) {
    let Some(counter) = &report.tpm_counter else { return };
    print(&format!("  TPM's counter         recorded by {} starts", counter.starts));
    for (count, what) in [
        (counter.starts_without, "starts after the first of them recorded none"),
        (
            counter.unrecorded,
            "of its values stand in no record: starts that ended before it, or records that are gone",
        ),
    ] {
        if count > 0 {
            print(&format!("    {count} {what}"));
        }
    }
}
