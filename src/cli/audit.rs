//! `cloister audit`: verify and list the log, offline, with nothing but its public key.

pub mod erase;
pub mod rotate;

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{Outcome, Verdict, audit_checkpoint, audit_prune, audit_witness, print, tell};
use crate::audit::record::SCHEMA;
use crate::audit::verify::{Report, verify};
use crate::audit::{Checkpoint, Error, Record, Verifier, Witness};

/// Subcommands of `cloister audit`.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Check every record against the signed tree; the verdict is the first line.
    #[command(after_help = "Examples:\n  cloister audit verify /var/lib/cloister/audit\n  \
        cloister audit verify LOG --public-key audit.vkey --checkpoint kept-elsewhere.txt --json")]
    Verify(VerifyArguments),
    /// Print the records, oldest first, after checking them.
    #[command(after_help = "Examples:\n  cloister audit list LOG --event begin\n  \
        cloister audit list LOG --request 6a0f… --json")]
    List(ListArguments),
    /// Print the newest checkpoint, to keep off this machine.
    Checkpoint(audit_checkpoint::Arguments),
    /// Have a witness elsewhere sign that it saw the newest checkpoint.
    Witness(audit_witness::Arguments),
    /// Have the running supervisor remove old records; their hashes stay.
    Prune(audit_prune::Arguments),
    /// Print the schema of a record: JSON Schema, draft 2020-12.
    #[command(after_help = "Examples:\n  cloister audit schema > record.schema.json")]
    Schema,
    /// Destroy a principal's key: its texts are found in the log by nobody any more.
    Erase(erase::Arguments),
    /// Replace the key that the principals' keys are wrapped under.
    RotateWrappingKey(rotate::Arguments),
}

/// Which log, and what it must be signed with.
#[derive(Args, Debug)]
pub struct Log {
    /// The log's folder.
    #[arg(value_name = "LOG", default_value = "/var/lib/cloister/audit")]
    folder: PathBuf,
    /// The log's public key (NAME+KEYID+BASE64) [default: LOG/../audit.vkey].
    ///
    /// Take it from where the log cannot be changed: a key that lies beside the log proves
    /// only that the log is whole.
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `cloister audit verify`.
#[derive(Args, Debug)]
pub struct VerifyArguments {
    #[command(flatten)]
    log: Log,
    /// A checkpoint kept off this machine, which the log must extend.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// The key of a witness that must have signed that checkpoint.
    #[arg(long, value_name = "FILE", requires = "checkpoint")]
    witness_key: Option<PathBuf>,
}

/// Arguments of `cloister audit list`.
#[derive(Args, Debug)]
pub struct ListArguments {
    #[command(flatten)]
    log: Log,
    /// Only this event (begin, end, end_missing, refused, start, …).
    #[arg(long)]
    event: Option<String>,
    /// Only this request, in hex; a beginning is enough.
    #[arg(long)]
    request: Option<String>,
}

/// Runs `cloister audit`.
///
/// # Errors
///
/// A file that cannot be read.
pub fn run(command: Command) -> Outcome {
    match command {
        Command::Verify(arguments) => run_verify(&arguments),
        Command::List(arguments) => run_list(&arguments),
        Command::Checkpoint(arguments) => audit_checkpoint::run(&arguments),
        Command::Witness(arguments) => audit_witness::run(&arguments),
        Command::Prune(arguments) => audit_prune::run(&arguments),
        Command::Erase(arguments) => erase::run(&arguments),
        Command::RotateWrappingKey(arguments) => rotate::run_wrapping(&arguments),
        Command::Schema => {
            print(SCHEMA.trim_end());
            Ok(Verdict::Holds)
        }
    }
}

fn run_verify(arguments: &VerifyArguments) -> Outcome {
    let log = &arguments.log;
    let verifier = read_verifier(log)?;
    let anchor = match &arguments.checkpoint {
        Some(path) => Some(read_checkpoint(path, &verifier)?),
        None => None,
    };
    let by = match (&arguments.checkpoint, &arguments.witness_key) {
        (Some(path), Some(key)) => read_witness(path, key)?,
        (Some(path), None) => path.display().to_string(),
        (None, _) => String::new(),
    };
    match verify(&log.folder, &verifier, anchor.as_ref(), &mut |_, _| {}) {
        Ok(report) => {
            show(log, &report, &by)?;
            Ok(Verdict::Holds)
        }
        Err(error) => refuse(log, &error),
    }
}

/// Which witness signed the checkpoint in `path`, and when.
fn read_witness(path: &Path, key: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let fault = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = fs::read_to_string(key).map_err(|error| fault(key, &error))?;
    let witness = Witness::parse(&text).map_err(|error| fault(key, &error))?;
    let note = fs::read(path).map_err(|error| fault(path, &error))?;
    let seen_s = witness.seen_s(&note).map_err(|error| fault(path, &error))?;
    Ok(format!("witness {} (seen {})", witness.name(), time_text(seen_s)))
}

/// Says which check failed; files that cannot be read are a fault, not a verdict.
fn refuse(log: &Log, error: &Error) -> Outcome {
    if log.json {
        print(&serde_json::json!({ "verdict": "BROKEN", "error": error.to_string() }).to_string());
    } else {
        print(&format!("BROKEN: {error}"));
    }
    Ok(Verdict::Refused)
}

fn show(log: &Log, report: &Report, by: &str) -> Result<(), Box<dyn std::error::Error>> {
    let anchored = match report.anchored_at {
        Some(size) => {
            let time = report.anchored_time_s.map(|time_s| format!(", {}", time_text(time_s)));
            format!("ANCHORED by {by} at {size} records{}", time.unwrap_or_default())
        }
        None => "UNANCHORED".to_owned(),
    };
    if log.json {
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

fn run_list(arguments: &ListArguments) -> Outcome {
    let log = &arguments.log;
    let verifier = read_verifier(log)?;
    let (mut lines, mut last) = (Vec::new(), None);
    let checked = verify(&log.folder, &verifier, None, &mut |index, record| {
        // A walk that started over.
        if last.replace(index).is_some_and(|last| index <= last) {
            lines.clear();
        }
        if wanted(arguments, record) {
            lines.push(line(log.json, index, record));
        }
    });
    for line in lines {
        print(&line);
    }
    match checked {
        Ok(_) => Ok(Verdict::Holds),
        Err(error) => {
            tell(&format!("cloister: the records above are not proven: {error}"));
            Ok(Verdict::Refused)
        }
    }
}

fn wanted(arguments: &ListArguments, record: &Record) -> bool {
    let event = arguments.event.as_ref().is_none_or(|event| event == record.event.name());
    let request = arguments.request.as_ref().is_none_or(|request| {
        record.event.request().is_some_and(|id| id.starts_with(request.as_str()))
    });
    event && request
}

fn line(json: bool, index: u64, record: &Record) -> String {
    let mut value = serde_json::to_value(record).unwrap_or_default();
    if json {
        value["index"] = index.into();
        return value.to_string();
    }
    let name = record.event.name();
    let facts = value["event"].get(name).map(ToString::to_string).unwrap_or_default();
    format!("{index:>8}  {}  {name:<14} {facts}", time_text(record.time_s))
}

fn read_verifier(log: &Log) -> Result<Verifier, Box<dyn std::error::Error>> {
    let path = match &log.public_key {
        Some(path) => path.clone(),
        None => log.folder.parent().unwrap_or(Path::new(".")).join("audit.vkey"),
    };
    let text = fs::read_to_string(&path).map_err(|error| {
        format!(
            "cannot read the audit public key {}: {error}; name it with --public-key",
            path.display()
        )
    })?;
    Ok(Verifier::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?)
}

fn read_checkpoint(
    path: &Path,
    verifier: &Verifier,
) -> Result<Checkpoint, Box<dyn std::error::Error>> {
    let fault = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let note = fs::read(path).map_err(|error| fault(&error))?;
    let text = verifier.open_kept(&note).map_err(|error| fault(&error))?;
    Ok(Checkpoint::parse(text).map_err(|error| fault(&error))?)
}

/// `2026-11-21T05:00:00Z`, by the civil calendar.
#[must_use]
pub fn time_text(time_s: u64) -> String {
    let (days, second) = (time_s / 86_400, time_s % 86_400);
    // Days since 0000-03-01, in eras of 400 years (Howard Hinnant, "chrono-compatible date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::time_text;

    #[test]
    fn times_are_those_of_the_civil_calendar() {
        assert_eq!(time_text(0), "1970-01-01T00:00:00Z");
        assert_eq!(time_text(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(time_text(1_795_237_199), "2026-11-21T04:59:59Z");
    }
}
