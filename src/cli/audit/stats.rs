//! `cloister audit stats`: counts over a period, of records that are each proven.

use clap::Args;

use super::super::{Outcome, Verdict, print, tell};
use super::filter::Filter;
use super::output::broken;
use super::recorded::Reading;
use super::scan::forward;
use super::source::Log;
use super::summary::{Counts, Summary};
use super::text::{plain, time_text};

/// Arguments of `cloister audit stats`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    log: Log,
    #[command(flatten)]
    filter: Filter,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `cloister audit stats`.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let mut reader = arguments.log.open(Reading::Stats, &arguments.filter)?;
    // What is counted is what the scan gives out.
    let mut summary = Summary::new(Filter::default(), 0, 0);
    let scanned = forward(&mut reader, &arguments.filter, &mut |found| {
        summary.see(found.index, &found.record);
        true
    });
    match scanned {
        Ok(absent) => {
            absent.sentence().iter().for_each(|sentence| tell(&format!("cloister: {sentence}")));
        }
        Err(error) => {
            print(&broken(arguments.json, &error));
            return Ok(Verdict::Refused);
        }
    }
    if arguments.json {
        print(&summary.to_json().to_string());
        return Ok(Verdict::Holds);
    }
    let Some([first, last]) = summary.first_last else {
        print("no records");
        return Ok(Verdict::Holds);
    };
    let (from, to) = (time_text(first.1), time_text(last.1));
    print(&format!("{} records, {from} to {to}", summary.records));
    for (title, counts) in [
        ("events", &summary.events),
        ("requests by principal", &summary.principals),
        ("requests by model", &summary.models),
        ("requests by role", &summary.roles),
        ("ends", &summary.outcomes),
        ("refusals", &summary.refusals),
        ("authentication failures", &summary.failures),
        ("uses of keys", &summary.key_uses),
        ("readings of the log", &summary.readers),
    ] {
        table(title, counts);
    }
    Ok(Verdict::Holds)
}

fn table(title: &str, counts: &Counts) {
    if counts.0.is_empty() {
        return;
    }
    print(&format!("\n{title}"));
    for (name, count) in counts.ranked() {
        print(&format!("  {count:>10}  {}", plain(name)));
    }
}
