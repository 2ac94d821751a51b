//! `cloister doctor`: what of this machine helps or weakens Cloister, and what to change.
//!
//! It reads what the kernel says of itself and changes nothing. No finding names a user, a process
//! or anything but the machine's own settings.

mod hardware;
mod host;
mod kernel;
mod memory;
pub mod policy;
mod storage;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use self::host::Host;
use super::{Outcome, Verdict, print};
use crate::supervisor::config;

/// Arguments of `cloister doctor`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cloister doctor\n  cloister doctor --strict --json\n  \
    cloister doctor --policy\n\n\
    Exit code 0 when Cloister can run here, 1 when something it needs is missing (with --strict \
    also when something weakens it).")]
pub struct Arguments {
    /// The configuration file, if there is one yet.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// Show what each process may ask of the kernel, instead of looking at the machine.
    #[arg(long, conflicts_with_all = ["strict", "config"])]
    policy: bool,
    /// Treat warnings as faults.
    #[arg(long)]
    strict: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How much a finding matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Weight {
    /// As it should be.
    Good,
    /// Worth knowing; nothing is weaker for it.
    Note,
    /// Cloister runs, but something that it promises is weaker.
    Warning,
    /// Cloister does not run.
    Fault,
}

impl Weight {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Note => "note",
            Self::Warning => "WARNING",
            Self::Fault => "FAULT",
        }
    }
}

/// What one look found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Finding {
    /// Names the look; stable.
    check: &'static str,
    weight: Weight,
    /// What is there.
    found: String,
    /// What to change, or why it matters; empty when there is nothing to do.
    advice: &'static str,
}

impl Finding {
    fn new(check: &'static str, weight: Weight, found: impl Into<String>) -> Self {
        Self { check, weight, found: found.into(), advice: "" }
    }

    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Weight::Good, found)
    }

    /// Adds what to do, unless all is good.
    fn advise(mut self, advice: &'static str) -> Self {
        if self.weight > Weight::Good {
            self.advice = advice;
        }
        self
    }
}

/// Runs `cloister doctor`.
///
/// # Errors
///
/// None of its own.
pub fn run(arguments: &Arguments) -> Outcome {
    if arguments.policy {
        policy::show(arguments.json)?;
        return Ok(Verdict::Holds);
    }
    let findings = examine(&Host::this(), &arguments.config);
    let worst = findings.iter().map(|finding| finding.weight).max().unwrap_or(Weight::Good);
    if arguments.json {
        print(&serde_json::json!({ "worst": worst, "findings": findings }).to_string());
    } else {
        findings.iter().for_each(show);
        let count = |weight| findings.iter().filter(|finding| finding.weight == weight).count();
        let (faults, warnings) = (count(Weight::Fault), count(Weight::Warning));
        print(&match (faults, warnings) {
            (0, 0) => "All is well.".to_owned(),
            (0, _) => format!("Cloister runs here; warnings: {warnings}."),
            _ => format!("Cloister does not run here; faults: {faults}, warnings: {warnings}."),
        });
    }
    let limit = if arguments.strict { Weight::Warning } else { Weight::Fault };
    Ok(if worst < limit { Verdict::Holds } else { Verdict::Refused })
}

/// Looks at everything.
fn examine(host: &Host, config_file: &std::path::Path) -> Vec<Finding> {
    let mut findings = kernel::examine(host);
    findings.extend(memory::examine(host));
    findings.extend(hardware::examine(host));
    findings.extend(storage::examine(host, config_file));
    findings
}

fn show(finding: &Finding) {
    print(&format!("{:<8} {:<18} {}", finding.weight.word(), finding.check, finding.found));
    if !finding.advice.is_empty() {
        print(&format!("{:<27} {}", "", finding.advice));
    }
}
