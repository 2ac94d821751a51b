//! `cloister audit verify`: every record against the signed tree, offline, with its public key alone.

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
            let by = anchor.map(|(_, by)| by).unwrap_or_default();
            show(arguments.json, &report, &by)?;
            Ok(Verdict::Holds)
        }
        Err(error) => {
            print(&broken(arguments.json, &error));
            Ok(Verdict::Refused)
        }
    }
}

fn show(json: bool, report: &Report, by: &str) -> Result<(), Box<dyn std::error::Error>> {
    let anchored = match report.anchored_at {
        Some(size) => {
            let time = report.anchored_time_s.map(|time_s| format!(", {}", time_text(time_s)));
            format!("ANCHORED by {by} at {size} records{}", time.unwrap_or_default())
        }
        None => "UNANCHORED".to_owned(),
    };
    if json {
        let mut value = serde_json::to_value(report)?;
        value["verdict"] = "INTACT".into();
        value["anchor"] = anchored.into();
        print(&value.to_string());
        return Ok(());
    }
    print(&format!("INTACT: {} records of {}, {anchored}", report.size, report.origin));
    if report.pruned > 0 {
        print(&format!(
            "  pruned                entries 0..{}; their hashes are proven",
            report.pruned
        ));
    }
    print(&format!("  root of the tree      {}", report.root));
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
