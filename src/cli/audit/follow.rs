//! `cloister audit follow`: new records as they come.

use std::time::Duration;

use clap::Args;

use super::super::{Outcome, Verdict, print, tell};
use super::filter::{Filter, Origins};
use super::output::Form;
use super::recorded::Reading;
use super::scan::Found;
use super::source::Log;
use super::tail::Tail;
use crate::audit::snapshot::parse;

/// Time between two looks at the log.
const PAUSE: Duration = Duration::from_millis(250);

/// Arguments of `cloister audit follow`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    log: Log,
    #[command(flatten)]
    filter: Filter,
    /// Begin with so many records that are there already.
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    last: u64,
    /// End after so many records.
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
    /// Print a JSON object a line.
    #[arg(long)]
    json: bool,
    /// Print comma-separated values; no cell is a formula.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// Runs `cloister audit follow`, until it is ended.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let reader = arguments.log.open(Reading::Follow, &arguments.filter)?;
    let seen = reader.checkpoint().clone();
    let next = seen.size.saturating_sub(arguments.last);
    let mut tail = Tail::new(&arguments.log, arguments.log.verifier()?, seen, next);
    let form = Form::of(arguments.json, arguments.csv);
    let mut origins = Origins::default();
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    form.head().into_iter().for_each(print);
    while left > 0 {
        let mut fault = None;
        let came = tail.turn(&mut |index, entry| match parse(entry, index) {
            Ok(record) => {
                let origin = origins.see(&record.event);
                if left > 0 && arguments.filter.wants(&record, origin.as_ref()) {
                    print(&form.record(&Found { index, entry: entry.to_vec(), record, origin }));
                    left -= 1;
                }
            }
            Err(error) => fault = Some(error),
        });
        match (came, fault) {
            (Err(error), _) | (_, Some(error)) => {
                tell(&format!("cloister: BROKEN: {error}"));
                return Ok(Verdict::Refused);
            }
            (Ok(0), None) => std::thread::sleep(PAUSE),
            (Ok(_), None) => {}
        }
    }
    Ok(Verdict::Holds)
}
