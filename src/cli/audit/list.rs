//! `cloister audit list` (or `search`): the records that are wanted, each proven before it is printed.

use clap::Args;

use super::super::{Outcome, Verdict, print, tell};
use super::filter::Filter;
use super::output::Form;
use super::recorded::Reading;
use super::scan::{forward, newest};
use super::source::Log;

/// Arguments of `cloister audit list`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    log: Log,
    #[command(flatten)]
    filter: Filter,
    /// Newest first.
    #[arg(long)]
    newest: bool,
    /// At most so many records.
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// Print a JSON object a line.
    #[arg(long)]
    json: bool,
    /// Print comma-separated values; no cell is a formula.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// Runs `cloister audit list`.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    let limit = arguments.limit.unwrap_or(usize::MAX);
    let mut reader = arguments.log.open(Reading::List, &arguments.filter)?;
    let form = Form::of(arguments.json, arguments.csv);
    if let Some(head) = form.head() {
        print(head);
    }
    let mut left = limit;
    let scanned = if arguments.newest {
        newest(&mut reader, &arguments.filter, limit).map(|(found, absent)| {
            found.iter().for_each(|one| print(&form.record(one)));
            absent
        })
    } else if limit == 0 {
        Ok(Default::default())
    } else {
        forward(&mut reader, &arguments.filter, &mut |found| {
            print(&form.record(&found));
            left -= 1;
            left > 0
        })
    };
    match scanned {
        Ok(absent) => {
            absent.sentence().iter().for_each(|sentence| tell(&format!("cloister: {sentence}")));
            Ok(Verdict::Holds)
        }
        Err(error) => {
            tell(&format!(
                "cloister: BROKEN: {error}; what is above is proven, what follows is not shown"
            ));
            Ok(Verdict::Refused)
        }
    }
}
