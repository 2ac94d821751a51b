//! The operator's command line: a table of subcommands.
//!
//! Each subcommand is a file with its arguments (and their help), and a `run`. Nothing here
//! runs in a jailed process. Exit codes: 0 done or holds, 1 refused, 2 usage or a fault.

pub mod audit;
pub mod audit_checkpoint;
pub mod audit_prune;
pub mod audit_witness;
pub mod bench;
#[cfg(feature = "cuda")]
pub mod card;
pub mod chat;
pub mod demo;
pub mod doctor;
pub mod fetch;
pub mod golden;
pub mod http_client;
pub mod keygen;
pub mod model;
mod model_checks;
pub mod model_distance;
pub mod model_explain;
pub mod model_inspect;
mod model_package;
pub mod model_quarantine;
mod model_report;
pub mod model_seal;
pub mod model_sign;
pub mod model_synth;
pub mod model_verify;
pub mod packed_file;
pub mod reload;
pub mod status;
pub mod token;

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::engine::KvType;

/// How a command that could be carried out ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done, or what was checked holds: exit code 0.
    Holds,
    /// What was checked does not hold: exit code 1. The command has said why.
    Refused,
}

/// What a subcommand returns; an error is printed and ends with exit code 2.
pub type Outcome = Result<Verdict, Box<dyn Error>>;

/// How the fast mode keeps keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kv {
    /// 16-bit floats.
    F16,
    /// 8-bit integers, 32 with a 16-bit scale.
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<Kv> for KvType {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::F16 => Self::F16,
            Kv::Q8_0 => Self::Q8_0,
        }
    }
}

/// Private LLM inference on your own hardware, with a log that proves what happened.
#[derive(Parser, Debug)]
#[command(name = "cloister", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Verify or list the audit log.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Time prefill and decode of a plain GGUF on this machine.
    Bench(bench::Arguments),
    /// Talk to a model.
    Chat(chat::Arguments),
    /// Try everything in one folder: keys, a model, the jailed appliance, an answer, the log.
    Demo(demo::Arguments),
    /// Look for what on this machine weakens Cloister, and say what to change.
    Doctor(doctor::Arguments),
    /// Make keys: for signing, opening, the audit log, TLS.
    #[command(subcommand)]
    Keygen(keygen::Command),
    /// Inspect, sign, seal, verify, explain, quarantine and synthesise model files.
    #[command(subcommand)]
    Model(model::Command),
    /// Have the running supervisor take changed tokens and a changed certificate.
    Reload(reload::Arguments),
    /// Show what the running supervisor says of itself.
    Status(status::Arguments),
    /// Make, list and revoke API tokens.
    #[command(subcommand)]
    Token(token::Command),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Audit(command) => audit::run(command),
        Command::Chat(arguments) => chat::run(&arguments),
        Command::Keygen(command) => keygen::run(&command),
        Command::Model(command) => model::run(&command),
        Command::Reload(arguments) => reload::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Token(command) => token::run(&command),
    };
    match outcome {
        Ok(Verdict::Holds) => ExitCode::SUCCESS,
        Ok(Verdict::Refused) => ExitCode::from(1),
        Err(error) => {
            tell(&format!("cloister: {error}"));
            ExitCode::from(2)
        }
    }
}

/// Prints a line of results. A reader that went away (a closed pipe) is no fault; a result that cannot be
/// written, as to a full disk, ends the program with exit code 2.
pub fn print(line: &str) {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            tell(&format!("cloister: the result cannot be written: {error}"));
            std::process::exit(2)
        }
        _ => {}
    }
}

/// Prints a line about the work itself, on standard error.
pub fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
