//! `cloister audit prune`: has the running supervisor, who alone writes the log, remove old records.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::status::{explain, read_config};
use super::{Outcome, Verdict, print, tell};
use crate::audit::retention::parse_time_s;
use crate::supervisor::config;
use crate::supervisor::control::{Command, ask};

/// Arguments of `cloister audit prune`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cloister audit prune\n  \
    cloister audit prune --older-than 8y --json\n\n\
    Whole bundles of 256 records go, after a record of it was written; the hashes stay, so that all\n\
    other records are still proven. With audit.retention_max set, the supervisor does so every day.\n\
    Exit code 1 when it is refused: a time below audit.retention_min or six months needs --force.")]
pub struct Arguments {
    /// How old records must be: 6y, 18m, 200d [default: audit.retention_max].
    #[arg(long, value_name = "TIME", value_parser = time)]
    older_than: Option<u64>,
    /// Remove records that should be kept longer. The log says that it was forced.
    #[arg(long)]
    force: bool,
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<u64, String> {
    parse_time_s(text).ok_or_else(|| "give a time as 6y, 18m or 200d".to_owned())
}

/// Runs `cloister audit prune`.
///
/// # Errors
///
/// No supervisor; neither `--older-than` nor `audit.retention_max`.
pub fn run(arguments: &Arguments) -> Outcome {
    let config = read_config(&arguments.config)?;
    let older_than_s = arguments.older_than.or(config.audit_retention.max_s);
    let older_than_s =
        older_than_s.ok_or("audit.retention_max is not set; say how old with --older-than")?;
    let command = Command::Prune { older_than_s, force: arguments.force };
    let mut removed = 0;
    loop {
        let answer = ask(&config.control_socket, command.clone(), &[])
            .map_err(|error| explain(&config.control_socket, &error))?;
        if let Some(error) = answer["error"].as_str() {
            tell(&format!("refused: {error}"));
            return Ok(Verdict::Refused);
        }
        removed += answer["removed"].as_u64().unwrap_or(0);
        if answer["has_more"] != true {
            break;
        }
    }
    match arguments.json {
        true => print(&json!({ "removed": removed }).to_string()),
        false => print(&format!("removed {removed} records")),
    }
    Ok(Verdict::Holds)
}
