//! Records as lines for people, as JSON, and as comma-separated values.

use serde_json::{Value, json};

use super::facts::Facts;
use super::scan::Found;
use super::text::{csv_cell, plain, time_text};
use crate::audit::Record;

/// How records are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A line for people.
    Line,
    /// A JSON object a line.
    Json,
    /// Comma-separated values.
    Csv,
}

/// The columns of [`Form::Csv`].
pub(super) const CSV_HEAD: &str =
    "index,time,event,area,principal,model,request,outcome,count,boot,monotonic_s,facts";

impl Form {
    /// The form that two flags ask for.
    pub(super) fn of(json: bool, csv: bool) -> Self {
        match (json, csv) {
            (true, _) => Self::Json,
            (_, true) => Self::Csv,
            _ => Self::Line,
        }
    }

    /// The first line, if the form has one.
    pub(super) fn head(self) -> Option<&'static str> {
        (self == Self::Csv).then_some(CSV_HEAD)
    }

    /// A record.
    pub(super) fn record(self, found: &Found) -> String {
        match self {
            Self::Line => line(found.index, &found.record),
            Self::Json => object(found.index, &found.record).to_string(),
            Self::Csv => row(found),
        }
    }
}

/// A record for people; nothing in it acts on a terminal.
pub(super) fn line(index: u64, record: &Record) -> String {
    let name = record.event.name();
    let facts = super::facts::members(&record.event).to_string();
    format!("{index:>8}  {}  {name:<14} {}", time_text(record.time_s), plain(&facts))
}

/// A record and its place.
pub(super) fn object(index: u64, record: &Record) -> Value {
    let mut value = serde_json::to_value(record).unwrap_or_default();
    value["index"] = index.into();
    value
}

fn row(found: &Found) -> String {
    let Found { index, record, origin, .. } = found;
    let facts = Facts::of(&record.event);
    let principal = facts.principal().or(origin.as_ref().map(|of| of.principal.as_str()));
    let model = facts.model().or(origin.as_ref().map(|of| of.model.as_str()));
    let count = facts.count();
    let cells = [
        &index.to_string(),
        &time_text(record.time_s),
        record.event.name(),
        facts.area.name(),
        principal.unwrap_or_default(),
        model.unwrap_or_default(),
        record.event.request().unwrap_or_default(),
        facts.outcome().unwrap_or_default(),
        &count.to_string(),
        &record.boot,
        &record.monotonic_s.to_string(),
        &facts.members.to_string(),
    ];
    cells.map(csv_cell).join(",")
}

/// A verdict that a check failed with, for `--json` or for people.
pub(super) fn broken(json: bool, error: &dyn std::fmt::Display) -> String {
    match json {
        true => json!({ "verdict": "BROKEN", "error": error.to_string() }).to_string(),
        false => format!("BROKEN: {}", plain(&error.to_string())),
    }
}
