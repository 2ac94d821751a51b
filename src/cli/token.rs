//! `cloister token`: who may use the appliance. A token is shown once and stored as a digest.

use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::json;

use super::status::{Supervisor, explain, is_absent, read_config};
use super::{Outcome, Verdict, print, tell};
use crate::supervisor::control::{self, ask};
use crate::supervisor::tokens::{Role, TokenTable, update};

/// Subcommands of `cloister token`.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a token and print it, this once.
    #[command(after_help = "Examples:\n  cloister token add alice\n  \
        cloister token add ci --expires 90d --json\n  cloister token add ops --role admin")]
    Add(AddArguments),
    /// List the tokens (names and dates, never tokens).
    #[command(after_help = "Examples:\n  cloister token list\n  cloister token list --json")]
    List(ListArguments),
    /// Revoke a token; what it runs now is stopped.
    #[command(after_help = "Examples:\n  cloister token revoke alice")]
    Revoke(RevokeArguments),
    /// Have the running supervisor read the table again.
    #[command(after_help = "Examples:\n  cloister token reload")]
    Reload(ReloadArguments),
}

/// Which table, and how to print.
#[derive(Args, Debug)]
pub struct Table {
    #[command(flatten)]
    supervisor: Supervisor,
    /// The token table, instead of the one that the configuration names.
    #[arg(long, value_name = "FILE", requires = "socket")]
    file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `cloister token add`.
#[derive(Args, Debug)]
pub struct AddArguments {
    /// Whose token it is.
    name: String,
    /// As whose its requests are recorded; it may send no others.
    #[arg(long, value_enum, default_value = "user")]
    role: Role,
    /// When it ends: a number and s, m, h, d or w [default: never].
    #[arg(long, value_name = "TIME", value_parser = parse_duration_s)]
    expires: Option<u64>,
    #[command(flatten)]
    table: Table,
}

/// Arguments of `cloister token list`.
#[derive(Args, Debug)]
pub struct ListArguments {
    #[command(flatten)]
    table: Table,
}

/// Arguments of `cloister token revoke`.
#[derive(Args, Debug)]
pub struct RevokeArguments {
    /// Whose token it is.
    name: String,
    #[command(flatten)]
    table: Table,
}

/// Arguments of `cloister token reload`.
#[derive(Args, Debug)]
pub struct ReloadArguments {
    #[command(flatten)]
    table: Table,
}

impl Table {
    fn path(&self) -> Result<PathBuf, Box<dyn std::error::Error>> {
        match &self.file {
            Some(file) => Ok(file.clone()),
            None => Ok(read_config(&self.supervisor.config)?.tokens_file),
        }
    }

    /// Hands the table to the supervisor; returns whether it took it, or why it was not asked.
    fn reload(&self) -> Result<io::Result<bool>, Box<dyn std::error::Error>> {
        let file = std::fs::File::open(self.path()?)?;
        let socket = self.supervisor.socket()?;
        let command = control::Command::Reload { certificate: false, lists: None };
        let answer = ask(&socket, command, &[file.as_fd()]);
        Ok(answer.map(|answer| {
            if let Some(error) = answer["error"].as_str() {
                tell(&format!("the supervisor refused the table: {error}"));
            }
            answer["ok"] == true
        }))
    }

    /// After a change: tells whether it holds now or from the next start on.
    fn tell_effect(&self) -> Result<(), Box<dyn std::error::Error>> {
        match self.reload()? {
            Ok(true) => tell("in effect now"),
            Ok(false) => tell("in effect when the supervisor starts or reloads"),
            Err(error) if is_absent(&error) => tell("in effect when the supervisor starts"),
            Err(error) => {
                tell(&explain(&self.supervisor.socket()?, &error));
                tell("in effect when the supervisor starts or reloads");
            }
        }
        Ok(())
    }
}

/// Runs `cloister token`.
///
/// # Errors
///
/// A table that cannot be read or written; a name that is taken or unknown.
pub fn run(command: &Command) -> Outcome {
    match command {
        Command::Add(arguments) => add(arguments),
        Command::List(arguments) => list(arguments),
        Command::Revoke(arguments) => revoke(arguments),
        Command::Reload(arguments) => match arguments.table.reload()? {
            Ok(true) => Ok(Verdict::Holds),
            Ok(false) => Ok(Verdict::Refused),
            Err(error) => {
                tell(&explain(&arguments.table.supervisor.socket()?, &error));
                Ok(Verdict::Refused)
            }
        },
    }
}

fn add(arguments: &AddArguments) -> Outcome {
    let path = arguments.table.path()?;
    let now_s = now_s();
    let expires_s = arguments.expires.map(|after_s| now_s.saturating_add(after_s));
    let token = update(&path, own_uid(), |table| {
        table.add(&arguments.name, arguments.role, now_s, expires_s)
    })?;
    if arguments.table.json {
        let token = token.as_str();
        print(
            &json!({ "name": arguments.name, "token": token, "expires_s": expires_s }).to_string(),
        );
    } else {
        print(&token);
        tell("this is the only time it is shown; give it as `Authorization: Bearer TOKEN`");
    }
    arguments.table.tell_effect()?;
    Ok(Verdict::Holds)
}

fn revoke(arguments: &RevokeArguments) -> Outcome {
    let path = arguments.table.path()?;
    update(&path, own_uid(), |table| table.revoke(&arguments.name, now_s()))?;
    if arguments.table.json {
        print(&json!({ "name": arguments.name, "state": "revoked" }).to_string());
    } else {
        print(&format!("revoked {}", arguments.name));
    }
    arguments.table.tell_effect()?;
    Ok(Verdict::Holds)
}

fn list(arguments: &ListArguments) -> Outcome {
    let table = TokenTable::read(&arguments.table.path()?, own_uid())?;
    let now_s = now_s();
    for token in table.tokens() {
        let state = token.state(now_s);
        if arguments.table.json {
            let value = json!({
                "name": token.name,
                "role": token.role,
                "state": state,
                "created_s": token.created_s,
                "expires_s": token.expires_s,
                "revoked_s": token.revoked_s,
            });
            print(&value.to_string());
            continue;
        }
        let left = match token.expires_s {
            Some(end) if state == "valid" => format!(", {} left", span(end - now_s)),
            _ => String::new(),
        };
        print(&format!("{:<24} {:<6} {state}{left}", token.name, token.role.name()));
    }
    if table.tokens().is_empty() {
        tell("no tokens; make one with: cloister token add NAME");
    }
    Ok(Verdict::Holds)
}

fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

const UNITS: [(char, u64); 5] =
    [('w', 7 * 24 * 3600), ('d', 24 * 3600), ('h', 3600), ('m', 60), ('s', 1)];

/// `90d` in seconds.
fn parse_duration_s(text: &str) -> Result<u64, String> {
    let fault = || "give a number and s, m, h, d or w, such as 90d".to_owned();
    let unit = text.chars().next_back().ok_or_else(fault)?;
    let (_, unit_s) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(fault)?;
    let count: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| fault())?;
    count.checked_mul(unit_s).filter(|&s| s > 0).ok_or_else(fault)
}

/// Seconds in the largest unit that they fill.
fn span(seconds: u64) -> String {
    let unit = UNITS.into_iter().find(|(_, unit_s)| seconds >= *unit_s);
    let (name, unit_s) = unit.unwrap_or(('s', 1));
    format!("{}{name}", seconds / unit_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time() {
        assert_eq!(parse_duration_s("90d"), Ok(90 * 86_400));
        assert_eq!(parse_duration_s("1w"), Ok(604_800));
        for text in [
            "",
            "d",
            "90",
            "0d",
            "-1d",
            "1.5h",
            "9é",
            "99999999999999999999d",
            "18446744073709551615w",
        ] {
            assert!(parse_duration_s(text).is_err(), "{text}");
        }
        assert_eq!(span(90 * 86_400), "12w");
        assert_eq!(span(59), "59s");
        assert_eq!(span(0), "0s");
    }
}
