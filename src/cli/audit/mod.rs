//! `cloister audit`: what an auditor sees of the log, on the box or offline, with its public key.
//!
//! A command a file. Nothing here writes to the log or believes a record before it is proven; that the
//! log is read is itself recorded where its appliance runs (`recorded.rs`).

mod check_proof;
mod convert;
pub mod erase;
mod export;
mod facts;
mod filter;
mod follow;
mod forward;
mod lines;
mod list;
mod matching;
mod output;
mod recorded;
mod report;
pub mod rotate;
pub mod rotate_key;
mod scan;
mod show;
mod source;
mod stats;
mod summary;
mod tail;
mod target;
mod text;
mod tui;
mod verify;
mod verify_export;

use clap::Subcommand;

pub use self::source::{DEFAULT_KEY, PUBLIC_KEY_LEN_MAX_BYTES, read_key, read_text};
pub use self::text::time_text;
use super::{Outcome, Verdict, audit_checkpoint, audit_prune, audit_witness, print};
use crate::audit::record::SCHEMA;

/// Subcommands of `cloister audit`.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Check every record against the signed tree; the verdict is the first line.
    #[command(after_help = "Examples:\n  cloister audit verify /var/lib/cloister/audit\n  \
        cloister audit verify LOG --public-key audit.vkey --checkpoint kept-elsewhere.txt --json")]
    Verify(verify::Arguments),
    /// Print the records that are wanted, oldest first, each proven.
    #[command(
        visible_alias = "search",
        after_help = "Examples:\n  cloister audit list LOG --event begin\n  \
        cloister audit search LOG --from 7d --principal 3fa9 --newest --limit 20\n  \
        cloister audit search LOG --from 2026-11-01 --to 2026-11-30 --outcome failed --csv"
    )]
    List(list::Arguments),
    /// Show all that the log says of a request or a record, with what proves it.
    #[command(after_help = "Examples:\n  cloister audit show 6a0f LOG\n  \
        cloister audit show '#1234' LOG --proof 1234.tlog-proof --json")]
    Show(show::Arguments),
    /// Check a record's proof offline, with the public key alone.
    #[command(after_help = "Examples:\n  \
        cloister audit check-proof 1234.tlog-proof --public-key audit.vkey")]
    CheckProof(check_proof::Arguments),
    /// Ask whether the log holds a text, with the principals' keys.
    #[command(after_help = "Examples:\n  cloister audit match LOG --body request.json\n  \
        cloister audit match LOG --body note.txt --plain --keys principals --wrapping wrapping.key")]
    Match(matching::Arguments),
    /// Count over a period.
    #[command(after_help = "Examples:\n  cloister audit stats LOG --from 30d\n  \
        cloister audit stats LOG --model smol --json")]
    Stats(stats::Arguments),
    /// Write records with what proves them elsewhere.
    #[command(
        after_help = "Examples:\n  cloister audit export LOG --from 2026-11-01 --to 2026-11-30 --out november\n  \
        cloister audit export LOG --out all --format csv --format ocsf --since kept-elsewhere.txt"
    )]
    Export(export::Arguments),
    /// Check an export offline, with the public key alone.
    #[command(after_help = "Examples:\n  \
        cloister audit verify-export november --public-key audit.vkey")]
    VerifyExport(verify_export::Arguments),
    /// Write one page for people who decide: verdict, what changed, what happened, which rules it is evidence for.
    #[command(after_help = "Examples:\n  cloister audit report LOG --out report.html\n  \
        cloister audit report LOG --from 2026-11-01 --to 2026-11-30 --checkpoint kept-elsewhere.txt --out november.html")]
    Report(report::Arguments),
    /// Browse the log in the terminal.
    #[command(after_help = "Examples:\n  cloister audit tui LOG\n\n\
        Keys: arrows move, Enter looks at a record, / filters, r reads the log anew, q quits.")]
    Tui(tui::Arguments),
    /// Print new records as they come, each proven, each checkpoint held against the one before.
    #[command(after_help = "Examples:\n  cloister audit follow LOG\n  \
        cloister audit follow LOG --event refused --json")]
    Follow(follow::Arguments),
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
    /// Replace the key that signs the log; the old one hands over to the new.
    RotateKey(rotate_key::Arguments),
    /// Replace the key that the principals' keys are wrapped under.
    RotateWrappingKey(rotate::Arguments),
    /// Hand new records to a SIEM, each at least once.
    #[command(after_help = "Examples:\n  cloister audit forward LOG --to journald\n  \
        cloister audit forward LOG --to syslog:tcp:192.0.2.7:601 --cursor cursor")]
    Forward(forward::Arguments),
}

/// Runs `cloister audit`.
///
/// # Errors
///
/// A file that cannot be read or written.
pub fn run(command: Command) -> Outcome {
    match command {
        Command::Verify(arguments) => verify::run(&arguments),
        Command::List(arguments) => list::run(&arguments),
        Command::Show(arguments) => show::run(&arguments),
        Command::CheckProof(arguments) => check_proof::run(&arguments),
        Command::Match(arguments) => matching::run(&arguments),
        Command::Stats(arguments) => stats::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::VerifyExport(arguments) => verify_export::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Tui(arguments) => tui::run(&arguments),
        Command::Follow(arguments) => follow::run(&arguments),
        Command::Checkpoint(arguments) => audit_checkpoint::run(&arguments),
        Command::Witness(arguments) => audit_witness::run(&arguments),
        Command::Prune(arguments) => audit_prune::run(&arguments),
        Command::Erase(arguments) => erase::run(&arguments),
        Command::RotateKey(arguments) => rotate_key::run(&arguments),
        Command::RotateWrappingKey(arguments) => rotate::run_wrapping(&arguments),
        Command::Schema => {
            print(SCHEMA.trim_end());
            Ok(Verdict::Holds)
        }
        Command::Forward(arguments) => forward::run(&arguments),
    }
}
