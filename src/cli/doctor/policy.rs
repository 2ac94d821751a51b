//! What each process may ask of the kernel: the policy that is compiled in, as a reviewer counts it.

use std::collections::BTreeSet;
use std::error::Error;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cli::print;

/// The policy of this processor's kind; `build.rs` compiles the same file.
#[cfg(target_arch = "x86_64")]
const SECCOMP: &str = include_str!("../../../policy/seccomp/x86_64.json");
#[cfg(target_arch = "aarch64")]
const SECCOMP: &str = include_str!("../../../policy/seccomp/aarch64.json");
/// The limits of all processes.
const LIMITS: &str = include_str!("../../../policy/limits");

/// The filter of one process.
#[derive(Clone, Debug, Serialize)]
pub struct Filter {
    /// Whose; `supervisor_threads` is a second one of the supervisor's, which only refuses.
    pub process: String,
    /// The kind of thread that adds it to that of its process; none for the process's own.
    pub thread: Option<String>,
    /// How many system calls it lets through, whatever their arguments.
    pub calls: usize,
    /// One for each form of a call.
    pub rules: Vec<Rule>,
    /// Resource limits: name and value.
    pub limits: Vec<(String, u64)>,
}

/// One form of a call that is let through.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Rule {
    /// The call's name.
    pub syscall: String,
    /// What its arguments must be; all of them.
    #[serde(default)]
    pub args: Vec<Condition>,
    /// What needs it.
    pub comment: String,
}

/// What an argument must be.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Condition {
    /// Which argument, from 0.
    pub index: usize,
    /// `dword` or `qword`: how much of it is looked at.
    #[serde(rename = "type")]
    pub width: String,
    /// `"eq"`, or `{"masked_eq": mask}`.
    pub op: Value,
    /// What it, or its bits under the mask, must equal.
    pub val: u64,
}

impl Condition {
    /// The bits that are looked at.
    #[must_use]
    pub fn mask(&self) -> u64 {
        let width = if self.width == "dword" { u64::from(u32::MAX) } else { u64::MAX };
        self.op["masked_eq"].as_u64().unwrap_or(width)
    }

    fn text(&self) -> String {
        match self.op["masked_eq"].as_u64() {
            Some(mask) => format!("argument {} & {mask:#x} = {:#x}", self.index, self.val),
            None => format!("argument {} = {:#x}", self.index, self.val),
        }
    }
}

/// Returns the filters that are compiled in, by process.
///
/// # Errors
///
/// None, as long as the build checked the same text.
pub fn filters() -> Result<Vec<Filter>, serde_json::Error> {
    parse(SECCOMP)
}

/// Reads the text of a policy file; those of other CPUs are of interest to tests alone.
///
/// # Errors
///
/// When it is no policy.
pub fn parse(text: &str) -> Result<Vec<Filter>, serde_json::Error> {
    let policy: Map<String, Value> = serde_json::from_str(text)?;
    policy
        .into_iter()
        .map(|(name, mut filter)| {
            let (process, thread) = match name.split_once('.') {
                Some((process, thread)) => (process.to_owned(), Some(thread.to_owned())),
                None => (name, None),
            };
            let limits = if thread.is_none() { limits(&process) } else { Vec::new() };
            let rules: Vec<Rule> = serde_json::from_value(filter["filter"].take())?;
            let names: BTreeSet<&str> = rules.iter().map(|rule| rule.syscall.as_str()).collect();
            Ok(Filter { calls: names.len(), limits, rules, process, thread })
        })
        .collect()
}

impl Filter {
    /// The name of its process, and of its thread if it is for one: `worker.compute`.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.thread {
            Some(thread) => format!("{}.{thread}", self.process),
            None => self.process.clone(),
        }
    }
}

fn limits(process: &str) -> Vec<(String, u64)> {
    let limit = |line: &str| {
        let mut words = line.split_whitespace();
        let is_its = words.next() == Some(process);
        is_its.then_some(())?;
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    LIMITS.lines().filter_map(limit).collect()
}

/// Prints the policy.
pub(super) fn show(json: bool) -> Result<(), Box<dyn Error>> {
    let filters = filters()?;
    if json {
        print(&serde_json::to_string(&filters)?);
        return Ok(());
    }
    for filter in &filters {
        let (calls, forms) = (filter.calls, filter.rules.len());
        print(&format!("{}: {calls} system calls in {forms} forms", filter.name()));
        for rule in &filter.rules {
            let conditions: Vec<String> = rule.args.iter().map(Condition::text).collect();
            let conditions = conditions.join(", ");
            print(&format!("  {:<18} {}", rule.syscall, rule.comment));
            if !conditions.is_empty() {
                print(&format!("  {:<18}   if {conditions}", ""));
            }
        }
        for (name, value) in &filter.limits {
            print(&format!("  limit {name:<12} {value}"));
        }
    }
    Ok(())
}
