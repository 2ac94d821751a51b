//! Schema and types say the same: what the code can write is valid, what is valid the code can write.

use std::collections::BTreeSet;

use jsonschema::Validator;
use serde_json::{Value, json};

use super::samples::{all, names};
use super::*;

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

fn validator() -> Validator {
    jsonschema::draft202012::new(&schema()).unwrap()
}

fn record(event: Event) -> Value {
    serde_json::to_value(Record::now(1_795_000_000, &"5b".repeat(16), event)).unwrap()
}

#[test]
fn the_schema_is_one() {
    assert!(jsonschema::draft202012::meta::is_valid(&schema()));
}

#[test]
fn every_event_that_the_code_can_write_is_valid_and_read_back() {
    let validator = validator();
    let mut seen = BTreeSet::new();
    for event in all() {
        seen.insert(event.name().to_owned());
        let record = record(event);
        let faults: Vec<_> = validator.iter_errors(&record).map(|e| e.to_string()).collect();
        assert!(faults.is_empty(), "{record}: {faults:?}");
        let back: Record = serde_json::from_value(record.clone()).unwrap();
        assert_eq!(serde_json::to_value(back).unwrap(), record);
    }
    assert_eq!(seen, names::<Event>().into_iter().collect(), "each event has a sample");
}

#[test]
fn every_member_and_word_of_the_schema_is_one_that_the_code_writes() {
    let schema = schema();
    let mut written = BTreeSet::new();
    for event in all() {
        note(&schema, &schema, "record", &record(event), &mut written);
    }
    for clock in [Clock::Synchronized, Clock::Unsynchronized] {
        let clock = serde_json::to_value(clock).unwrap();
        note(&schema, &schema["$defs"]["clock"], "clock", &clock, &mut written);
    }
    let mut said = BTreeSet::new();
    list(&schema, "record", &mut said);
    for (name, part) in schema["$defs"].as_object().unwrap() {
        list(part, name, &mut said);
    }
    assert_eq!(said, written);
}

/// Notes which members and words of the schema an instance uses.
fn note(root: &Value, part: &Value, name: &str, instance: &Value, seen: &mut BTreeSet<String>) {
    if let Some(target) = part["$ref"].as_str() {
        let name = target.strip_prefix("#/$defs/").unwrap();
        note(root, &root["$defs"][name], name, instance, seen);
    }
    if part["oneOf"].is_array() || part["enum"].is_array() {
        seen.extend(instance.as_str().map(|word| format!("{name}={word}")));
    }
    for item in instance.as_array().into_iter().flatten() {
        note(root, &part["items"], name, item, seen);
    }
    for (member, value) in instance.as_object().into_iter().flatten() {
        let path = format!("{name}.{member}");
        if let Some(next) = part["properties"].get(member) {
            note(root, next, &path, value, seen);
            seen.insert(path);
        }
    }
}

/// Lists the members and words of a part of the schema.
fn list(part: &Value, name: &str, said: &mut BTreeSet<String>) {
    let words = part["oneOf"].as_array().into_iter().flatten().map(|word| &word["const"]);
    let words = words.chain(part["enum"].as_array().into_iter().flatten());
    said.extend(words.filter_map(Value::as_str).map(|word| format!("{name}={word}")));
    for (member, next) in part["properties"].as_object().into_iter().flatten() {
        let path = format!("{name}.{member}");
        list(next, &path, said);
        said.insert(path);
    }
}

#[test]
fn everything_in_the_schema_is_described_and_every_object_closed() {
    fn look(part: &Value, path: &str, faults: &mut Vec<String>) {
        if part["description"].as_str().is_none_or(|text| text.len() <= 3) {
            faults.push(format!("{path}: no description"));
        }
        if part["type"] == "object" && part["additionalProperties"] != false {
            faults.push(format!("{path}: not closed"));
        }
        for (member, next) in part["properties"].as_object().into_iter().flatten() {
            look(next, &format!("{path}.{member}"), faults);
        }
        for word in part["oneOf"].as_array().into_iter().flatten() {
            look(word, &format!("{path}={}", word["const"]), faults);
        }
    }
    let (schema, mut faults) = (schema(), Vec::new());
    look(&schema, "record", &mut faults);
    for (name, part) in schema["$defs"].as_object().unwrap() {
        look(part, name, &mut faults);
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn a_member_that_is_unknown_or_missing_is_refused_by_schema_and_types() {
    let validator = validator();
    let mut tried = 0;
    for event in all() {
        let good = record(event);
        let mut objects = Vec::new();
        pointers(&good, String::new(), &mut objects);
        for at in objects {
            let mut more = good.clone();
            more.pointer_mut(&at).unwrap()["prompt"] = json!("x");
            assert!(!validator.is_valid(&more), "{at}: {more}");
            assert!(serde_json::from_value::<Record>(more).is_err(), "{at}: {good}");
            tried += 1;
            let members = good.pointer(&at).unwrap().as_object().unwrap();
            for member in members.keys() {
                let mut less = good.clone();
                less.pointer_mut(&at).unwrap().as_object_mut().unwrap().remove(member);
                let is_read = serde_json::from_value::<Record>(less.clone()).is_ok();
                assert_eq!(validator.is_valid(&less), is_read, "{at} without {member}: {less}");
            }
        }
    }
    assert!(tried > 200, "{tried}");
}

/// The JSON pointers of all objects.
fn pointers(value: &Value, at: String, found: &mut Vec<String>) {
    for (member, next) in value.as_object().into_iter().flatten() {
        pointers(next, format!("{at}/{member}"), found);
    }
    for (index, next) in value.as_array().into_iter().flatten().enumerate() {
        pointers(next, format!("{at}/{index}"), found);
    }
    if value.is_object() {
        found.push(at);
    }
}

#[test]
fn words_where_digests_and_buckets_belong_are_no_records() {
    let validator = validator();
    let begin = |principal: &str, max_tokens: u64| {
        let event = all().into_iter().find(|event| event.name() == "begin").unwrap();
        let mut record = record(event);
        record["event"]["begin"]["observed"]["principal"] = principal.into();
        record["event"]["begin"]["declared"]["max_tokens"] = max_tokens.into();
        validator.is_valid(&record)
    };
    assert!(begin("0123456789abcdef", 16), "the control");
    assert!(!begin("0123456789abcdef", 17));
    assert!(!begin("alice", 16));
    assert!(!begin("0123456789ABCDEF", 16));
}
