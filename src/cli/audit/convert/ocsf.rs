//! A record as an event of the Open Cybersecurity Schema Framework, version 1.3.
//!
//! Which class and activity each event is stands in [`class`]; a test holds every event against OCSF's own
//! schema (`tests/vectors/ocsf`). No member is a guess: what is not known is not there.

use serde_json::{Value, json};

use super::super::facts::{Area, Facts, Weight};
use super::super::output::object;
use super::super::scan::Found;

const PROCESS_ACTIVITY: u32 = 1007;
const EVENT_LOG_ACTIVITY: u32 = 1008;
const AUTHENTICATION: u32 = 3002;
const ENTITY_MANAGEMENT: u32 = 3004;
const APPLICATION_LIFECYCLE: u32 = 6002;
const API_ACTIVITY: u32 = 6003;
/// An activity that the schema has no word for; its name is the event's.
const OTHER: (u32, Option<&str>) = (99, None);

/// Class, activity, and the activity's name where the schema has one.
fn class(event: &str, facts: &Facts) -> (u32, (u32, Option<&'static str>)) {
    let named = |activity, name| (activity, Some(name));
    match (event, facts.area) {
        ("authentication_failed", _) => (AUTHENTICATION, named(1, "Logon")),
        ("begin" | "end" | "end_missing" | "refused", _) => (API_ACTIVITY, named(1, "Create")),
        ("start", _) => (APPLICATION_LIFECYCLE, named(3, "Start")),
        ("stop", _) => (APPLICATION_LIFECYCLE, named(4, "Stop")),
        ("child_started", _) => (PROCESS_ACTIVITY, named(1, "Launch")),
        ("child_died" | "worker_ended" | "sandbox_violation", _) => {
            (PROCESS_ACTIVITY, named(2, "Terminate"))
        }
        ("key_created", _) => (ENTITY_MANAGEMENT, named(1, "Create")),
        ("key_destroyed" | "erased", _) => (ENTITY_MANAGEMENT, named(4, "Delete")),
        ("model_opened" | "model_refused", _) => (ENTITY_MANAGEMENT, named(10, "Activate")),
        ("key_used" | "erasure_asked", _) => (ENTITY_MANAGEMENT, OTHER),
        ("retention_run", _) => (EVENT_LOG_ACTIVITY, named(2, "Delete")),
        ("log_read", _) if facts.outcome() == Some("export") => {
            (EVENT_LOG_ACTIVITY, named(3, "Export"))
        }
        (_, Area::Log) => (EVENT_LOG_ACTIVITY, OTHER),
        (_, Area::Key | Area::Model | Area::Configuration) => {
            (ENTITY_MANAGEMENT, named(3, "Update"))
        }
        (_, Area::Request | Area::Access | Area::Sandbox) => (API_ACTIVITY, OTHER),
        (_, Area::Service) => (APPLICATION_LIFECYCLE, OTHER),
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

/// The event of a record of the log of this name.
pub(super) fn event(log: &str, found: &Found) -> Value {
    let event = found.record.event.name();
    let facts = Facts::of(&found.record.event);
    let (class_uid, (activity_id, activity_name)) = class(event, &facts);
    let mut value = json!({
        "activity_id": activity_id,
        "activity_name": activity_name.unwrap_or(event),
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
            "product": {
                "name": "Cloister", "vendor_name": "Cloister", "version": env!("CARGO_PKG_VERSION"),
            },
        },
        "unmapped": object(found.index, &found.record),
    });
    if let Some(outcome) = facts.outcome() {
        value["status_detail"] = outcome.into();
    }
    add_objects(&mut value, class_uid, (log, found), &facts);
    value
}

/// Adds the objects of the class.
fn add_objects(value: &mut Value, class_uid: u32, (log, found): (&str, &Found), facts: &Facts) {
    let event = found.record.event.name();
    let principal = facts.principal().or(found.origin.as_ref().map(|of| of.principal.as_str()));
    let model = facts.model().or(found.origin.as_ref().map(|of| of.model.as_str()));
    let uid = facts.number("uid").map(|uid| user(Some(&uid.to_string())));
    match class_uid {
        API_ACTIVITY => {
            value["actor"] = json!({ "user": user(principal) });
            let service = json!({ "name": model.unwrap_or("cloister") });
            value["api"] = json!({ "operation": event, "service": service });
            if let Some(request) = found.record.event.request() {
                value["api"]["request"] = json!({ "uid": request });
            }
            value["src_endpoint"] = json!({ "svc_name": "cloister-gateway" });
        }
        AUTHENTICATION => {
            value["user"] = user(principal);
            value["service"] = json!({ "name": "cloister-gateway" });
        }
        ENTITY_MANAGEMENT => {
            let name = facts.model().or(facts.text("key")).unwrap_or(event);
            value["entity"] = json!({ "name": name, "type": facts.area.name(), "type_id": 99 });
            if let Some(id) = facts.text("id").or(facts.principal()) {
                value["entity"]["uid"] = id.into();
            }
        }
        PROCESS_ACTIVITY => {
            let child = facts.text("child").unwrap_or("unknown");
            value["process"] = json!({ "name": child, "uid": child });
            value["actor"] = json!({ "app_name": "cloister-supervisor" });
            value["device"] = json!({ "type_id": 1, "uid": found.record.boot });
        }
        EVENT_LOG_ACTIVITY => {
            value["log_name"] = log.into();
            value["log_type_id"] = 2.into();
            value["log_type"] = "Application".into();
            if let Some(user) = uid {
                value["actor"] = json!({ "user": user });
            }
        }
        _ => {
            value["app"] = json!({
                "name": "Cloister", "vendor_name": "Cloister", "version": env!("CARGO_PKG_VERSION"),
            });
        }
    }
}

fn user(uid: Option<&str>) -> Value {
    match uid {
        Some(uid) => json!({ "uid": uid, "type": "User", "type_id": 1 }),
        None => json!({ "uid": "unknown", "type": "Unknown", "type_id": 0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{each, found, refused};
    use super::*;
    use crate::audit::record::samples;

    /// What of OCSF's own schema says what the export may hold: `tests/vectors/ocsf/make.py`.
    const SCHEMA: &str = include_str!("../../../../tests/vectors/ocsf/1.3.0.json");

    /// The faults of an object under a definition of the schema.
    fn faults(schema: &Value, of: &Value, value: &Value, at: &str) -> Vec<String> {
        let Some(object) = value.as_object() else { return vec![format!("{at} is no object")] };
        let attributes = of["attributes"].as_object().unwrap();
        let mut all = Vec::new();
        for (name, one) in object {
            match attributes.get(name) {
                None => all.push(format!("{at}.{name} is not of the schema")),
                Some(attribute) => {
                    all.extend(attribute_faults(schema, attribute, one, &format!("{at}.{name}")));
                }
            }
        }
        let is_missing = |(name, one): &(&String, &Value)| {
            one["requirement"] == "required"
                && one["profile"].is_null()
                && !object.contains_key(*name)
        };
        all.extend(
            attributes.iter().filter(is_missing).map(|(name, _)| format!("{at}.{name}: missing")),
        );
        for (rule, names) in of["constraints"].as_object().unwrap() {
            let names = names.as_array().unwrap();
            let count =
                names.iter().filter(|name| object.contains_key(name.as_str().unwrap())).count();
            let holds = match rule.as_str() {
                "at_least_one" => count > 0,
                "just_one" => count == 1,
                other => panic!("a new kind of rule: {other}"),
            };
            all.extend((!holds).then(|| format!("{at}: {rule} of {names:?}")));
        }
        all
    }

    fn attribute_faults(schema: &Value, of: &Value, value: &Value, at: &str) -> Vec<String> {
        if of["is_array"] == true {
            let all = value.as_array().unwrap();
            let of = &json!({ "type": of["type"], "object_type": of["object_type"] });
            return all.iter().flat_map(|one| attribute_faults(schema, of, one, at)).collect();
        }
        let kind = &schema["types"][of["type"].as_str().unwrap()];
        let is_it = match kind.as_str().unwrap_or("object_t") {
            "string_t" => value.is_string(),
            "integer_t" => value.as_i64().is_some_and(|value| i32::try_from(value).is_ok()),
            "long_t" => value.is_i64() || value.is_u64(),
            "boolean_t" => value.is_boolean(),
            "object_t" if of["object_type"] == "object" => value.is_object(),
            "object_t" => {
                let object = &schema["objects"][of["object_type"].as_str().unwrap()];
                assert!(object.is_object(), "{at}: have make.py keep {}", of["object_type"]);
                return faults(schema, object, value, at);
            }
            other => panic!("{at}: a new type: {other}"),
        };
        let mut all = Vec::new();
        all.extend((!is_it).then(|| format!("{at} is no {}", of["type"])));
        if let Some(names) = of["enum"].as_object() {
            let is_known = names.contains_key(&value.to_string());
            all.extend((!is_known).then(|| format!("{at}: {value} is not of the schema")));
        }
        all
    }

    /// The faults of an event, its names held against its numbers.
    fn event_faults(schema: &Value, value: &Value) -> Vec<String> {
        let classes = schema["classes"].as_object().unwrap();
        let class = classes.values().find(|class| class["uid"] == value["class_uid"]).unwrap();
        let mut all = faults(schema, class, value, "event");
        for (number, name) in
            [("activity_id", "activity_name"), ("log_type_id", "log_type"), ("category_uid", "")]
        {
            let names = &class["attributes"][number]["enum"];
            let want = &names[value[number].to_string()];
            let is_free = value[number] == 99 || value[name].is_null();
            all.extend((!is_free && value[name] != *want).then(|| format!("{name} is not {want}")));
        }
        all
    }

    #[test]
    fn every_event_is_of_ocsfs_own_schema() {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        for found in each() {
            let value = event("ward/audit", &found);
            let faults = event_faults(&schema, &value);
            assert!(faults.is_empty(), "{faults:?} in {value}");
            let is_whole = value["unmapped"] == object(found.index, &found.record);
            assert!(is_whole, "{value}");
        }
    }

    /// The controls: each kind of fault is one.
    #[test]
    fn what_the_schema_forbids_is_found() {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let good = event("log", &found(samples::all().remove(2)));
        assert_eq!(event_faults(&schema, &good), Vec::<String>::new());
        let change = |at: &str, to: Value| {
            let mut value = good.clone();
            *value.pointer_mut(at).unwrap() = to;
            event_faults(&schema, &value)
        };
        for (at, to) in [
            ("/activity_id", json!(77)),
            ("/activity_name", json!("Halt")),
            ("/type_uid", json!(600_277)),
            ("/time", json!("now")),
            ("/severity_id", json!("1")),
            ("/metadata/product", json!({ "name": "Cloister" })),
            ("/metadata/sequence", json!(u64::from(u32::MAX))),
            ("/app", json!({ "vendor_name": "Cloister" })),
            ("/app", json!({ "name": "Cloister", "vendor_name": "Cloister", "made": 1 })),
            ("/metadata", json!({})),
        ] {
            assert!(!change(at, to.clone()).is_empty(), "{at} {to}");
        }
        let mut bare = good.clone();
        bare.as_object_mut().unwrap().remove("app");
        assert!(!event_faults(&schema, &bare).is_empty());
        // A process has a number or a name of its own, by a rule over both.
        let process = json!({ "name": "worker" });
        assert!(!faults(&schema, &schema["objects"]["process"], &process, "process").is_empty());
    }

    #[test]
    fn foreign_text_stays_one_string() {
        let hostile = "=cmd|' /C calc'!A0\" msg=x\r\na\\";
        let value = event("log", &refused(hostile, ""));
        assert_eq!(value["entity"]["name"], hostile);
        assert!(!value.to_string().contains('\n'));
    }
}
