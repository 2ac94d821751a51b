//! Records in the shapes that other systems take: CSV, OCSF and CEF. One way: the record is the truth.
//!
//! Each line carries the whole record (OCSF `unmapped`, CEF `cs6`, CSV `facts`), so that nothing is lost
//! where a shape has no place for it; one that is longer than CEF lets a field be is left out there, which
//! the line says.

mod cef;
mod ocsf;

use clap::ValueEnum;

use super::output::{CSV_HEAD, Form};
use super::scan::Found;

/// A shape of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// The records as they stand in the log.
    Jsonl,
    /// Comma-separated values.
    Csv,
    /// Open Cybersecurity Schema Framework, a JSON object a line.
    Ocsf,
    /// Common Event Format.
    Cef,
}

impl Format {
    /// The file's name in an export.
    pub(super) fn file(self) -> &'static str {
        match self {
            Self::Jsonl => "records.jsonl",
            Self::Csv => "records.csv",
            Self::Ocsf => "records.ocsf.jsonl",
            Self::Cef => "records.cef",
        }
    }

    /// The first line, if the shape has one.
    pub(super) fn head(self) -> Option<&'static str> {
        (self == Self::Csv).then_some(CSV_HEAD)
    }

    /// A record of the log of this name.
    pub(super) fn line(self, log: &str, found: &Found) -> String {
        match self {
            Self::Jsonl => String::from_utf8_lossy(&found.entry).into_owned(),
            Self::Csv => Form::Csv.record(found),
            Self::Ocsf => ocsf::event(log, found).to_string(),
            Self::Cef => cef::line(log, found),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::audit::record::samples;
    use crate::audit::{Event, Record};

    /// A record with this event.
    pub(super) fn found(event: Event) -> Found {
        let record: Record = serde_json::from_value(json!({
            "v": 1, "time_s": 5, "clock": "synchronized", "monotonic_s": 2, "boot": "ab",
            "event": event }))
        .unwrap();
        Found { index: 7, entry: Vec::new(), record, origin: None }
    }

    /// A record of each event, with each word that it can have.
    pub(super) fn each() -> Vec<Found> {
        let events = samples::all();
        let names: std::collections::BTreeSet<_> = events.iter().map(Event::name).collect();
        assert_eq!(names.len(), samples::names::<Event>().len(), "{names:?}");
        events.into_iter().map(found).collect()
    }

    /// A record that says this of a model.
    pub(super) fn refused(model: &str, check: &str) -> Found {
        let facts = json!({ "model": model, "check": check });
        found(serde_json::from_value(json!({ "model_refused": { "observed": facts } })).unwrap())
    }

    #[test]
    fn foreign_text_makes_no_formula_and_no_row() {
        let row = Form::Csv.record(&refused("=cmd|' /C calc'!A0\" msg=x\r\na\\", ""));
        assert!(row.contains(",\"'=cmd") && !row.contains('\n'), "{row}");
    }
}
