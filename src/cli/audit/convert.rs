//! Records in the shapes that other systems take: CSV, OCSF and CEF. One way: the record is the truth.
//!
//! Each line carries the whole record (OCSF `unmapped`, CEF `cs6`, CSV `facts`), so that nothing is lost
//! where a shape has no place for it. Source: OCSF 1.3 (API Activity 6003, Application Lifecycle 6002,
//! Process Activity 1007, Authentication 3002, Entity Management 3004), ArcSight CEF revision 25.

use clap::ValueEnum;
use serde_json::{Value, json};

use super::facts::{Area, Facts, Weight};
use super::output::{CSV_HEAD, Form, object};
use super::scan::Found;
use super::text::plain;

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
            Self::Ocsf => ocsf(log, found).to_string(),
            Self::Cef => cef(log, found),
        }
    }
}

/// Class, activity and the activity's name of an event.
fn class(event: &str, facts: &Facts) -> (u32, u32, &'static str) {
    match (event, facts.area) {
        ("authentication_failed", _) => (3002, 1, "Logon"),
        ("begin" | "end" | "end_missing" | "refused", _) => (6003, 1, "Create"),
        ("start", _) => (6002, 3, "Start"),
        ("stop", _) => (6002, 4, "Stop"),
        ("child_started", _) => (1007, 1, "Launch"),
        ("child_died", _) => (1007, 2, "Terminate"),
        ("key_created", _) => (3004, 1, "Create"),
        ("log_read" | "key_used", _) => (3004, 2, "Read"),
        ("key_destroyed" | "retention_run" | "erased", _) => (3004, 4, "Delete"),
        (_, Area::Key | Area::Model | Area::Configuration | Area::Log) => (3004, 3, "Update"),
        (_, Area::Request | Area::Access | Area::Sandbox) => (6003, 99, "Other"),
        (_, Area::Service) => (6002, 99, "Other"),
    }
}

/// Whether what was tried came about: 1 it did, 2 it did not.
fn status(facts: &Facts) -> u32 {
    match (facts.weight, facts.outcome()) {
        (_, Some("failed" | "refused")) | (Weight::Warning, _) => 2,
        _ => 1,
    }
}

fn severity(facts: &Facts) -> u32 {
    match facts.weight {
        Weight::Plain => 1,
        Weight::Notice => 2,
        Weight::Warning => 3,
    }
}

fn ocsf(log: &str, found: &Found) -> Value {
    let event = found.record.event.name();
    let facts = Facts::of(&found.record.event);
    let (class_uid, activity_id, activity_name) = class(event, &facts);
    let principal = facts.principal().or(found.origin.as_ref().map(|of| of.principal.as_str()));
    let user = json!({ "uid": principal.unwrap_or("unknown"), "type": "User", "type_id": 1 });
    let mut value = json!({
        "activity_id": activity_id,
        "activity_name": activity_name,
        "category_uid": class_uid / 1000,
        "class_uid": class_uid,
        "type_uid": u64::from(class_uid) * 100 + u64::from(activity_id),
        "time": found.record.time_s.saturating_mul(1000),
        "severity_id": severity(&facts),
        "status_id": status(&facts),
        "message": event,
        "count": facts.count(),
        "metadata": {
            "version": "1.3.0",
            "uid": format!("{log}#{}", found.index),
            "sequence": found.index,
            "log_name": log,
            "product": { "name": "Cloister", "vendor_name": "Cloister" },
        },
        "unmapped": object(found.index, &found.record),
    });
    if let Some(outcome) = facts.outcome() {
        value["status_detail"] = outcome.into();
    }
    match class_uid {
        6003 => {
            let model = facts.model().or(found.origin.as_ref().map(|of| of.model.as_str()));
            let request = found.record.event.request().unwrap_or_default();
            value["actor"] = json!({ "user": user });
            value["api"] = json!({
                "operation": event,
                "request": { "uid": request },
                "service": { "name": model.unwrap_or("cloister") },
            });
            value["src_endpoint"] = json!({ "svc_name": "cloister-gateway" });
        }
        3002 => {
            value["user"] = user;
            value["service"] = json!({ "name": "cloister-gateway" });
        }
        3004 => {
            let name = facts.model().or(facts.text("key")).unwrap_or(event);
            value["entity"] = json!({ "name": name, "type": facts.area.name() });
        }
        1007 => {
            value["process"] = json!({ "name": facts.text("child").unwrap_or("unknown") });
            value["actor"] = json!({ "process": { "name": "cloister-supervisor" } });
            value["device"] = json!({ "type_id": 1, "uid": found.record.boot });
        }
        _ => value["app"] = json!({ "name": "Cloister", "vendor_name": "Cloister" }),
    }
    value
}

fn cef(log: &str, found: &Found) -> String {
    let event = found.record.event.name();
    let facts = Facts::of(&found.record.event);
    let principal = facts.principal().or(found.origin.as_ref().map(|of| of.principal.as_str()));
    let model = facts.model().or(found.origin.as_ref().map(|of| of.model.as_str()));
    let level = match facts.weight {
        Weight::Plain => 1,
        Weight::Notice => 3,
        Weight::Warning => 7,
    };
    let version = env!("CARGO_PKG_VERSION");
    let mut line =
        format!("CEF:0|Cloister|Cloister|{version}|{}|{}|{level}|", head(event), head(event));
    let record = object(found.index, &found.record).to_string();
    let request = found.record.event.request();
    let outcome = facts.outcome().map(str::to_owned);
    let members = [
        ("rt", Some(found.record.time_s.saturating_mul(1000).to_string())),
        ("externalId", Some(found.index.to_string())),
        ("cnt", Some(facts.count().to_string())),
        ("cat", Some(facts.area.name().to_owned())),
        ("suid", principal.map(str::to_owned)),
        ("outcome", outcome),
        ("cs1Label", model.map(|_| "model".to_owned())),
        ("cs1", model.map(str::to_owned)),
        ("cs2Label", request.map(|_| "request".to_owned())),
        ("cs2", request.map(str::to_owned)),
        ("cs3Label", Some("log".to_owned())),
        ("cs3", Some(log.to_owned())),
        ("cs6Label", Some("record".to_owned())),
        ("cs6", Some(record)),
    ];
    let members = members.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let members: Vec<_> =
        members.map(|(name, value)| format!("{name}={}", extension(&value))).collect();
    line.push_str(&members.join(" "));
    line
}

/// A value of a CEF header.
fn head(text: &str) -> String {
    plain(text).replace('\\', "\\\\").replace('|', "\\|")
}

/// A value of a CEF extension.
fn extension(text: &str) -> String {
    plain(text).replace('\\', "\\\\").replace('=', "\\=")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Event, Record};

    fn found(model: &str) -> Found {
        let event: Event = serde_json::from_value(json!({ "model_opened": { "observed": {
            "model": model, "digest": "00", "signer": "a|b=c\n", "sealed": true } } }))
        .unwrap();
        let record: Record = serde_json::from_value(json!({
            "v": 1, "time_s": 5, "clock": "synchronized", "monotonic_s": 2, "boot": "ab",
            "event": event }))
        .unwrap();
        Found { index: 7, entry: Vec::new(), record, origin: None }
    }

    #[test]
    fn foreign_text_cannot_add_a_field_a_line_or_a_formula() {
        let hostile = "=cmd|' /C calc'!A0\" msg=x\r\nCEF:0|a\\";
        let line = cef("log", &found(hostile));
        assert_eq!(line.matches("CEF:0|").count(), 3, "the head, and twice as text: {line}");
        assert!(!line.contains('\n') && !line.contains('\r'));
        // Every `=` that is not escaped belongs to a name of ours.
        let fields = line.replace("\\\\", "").replace("\\=", "");
        assert_eq!(fields.matches('=').count(), 10, "{fields}");
        let row = Form::Csv.record(&found(hostile));
        assert!(row.contains(",\"'=cmd") && !row.contains('\n'), "{row}");
        let value = ocsf("log", &found(hostile));
        assert_eq!(value["entity"]["name"], hostile);
        assert_eq!(value["type_uid"], 300_403);
        assert!(!value.to_string().contains('\n'));
    }
}
