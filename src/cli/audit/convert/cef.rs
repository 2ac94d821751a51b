//! A record as a line of the Common Event Format. Source: ArcSight CEF, revision 25.
//!
//! In the head a pipe and a backslash are escaped, in the extension an equals sign and a backslash. What
//! would end the line, act on a terminal or hide is written out before, so that no value holds it.

use serde_json::json;

use super::super::facts::{Facts, Weight};
use super::super::output::object;
use super::super::scan::Found;
use super::super::text::{plain, plain_json};

/// Longest custom string (`cs1` to `cs6`), in characters.
const CUSTOM_LEN_MAX: usize = 4000;
/// Longest `outcome`, in characters.
const OUTCOME_LEN_MAX: usize = 63;

/// The line of a record of the log of this name.
pub(super) fn line(log: &str, found: &Found) -> String {
    let event = found.record.event.name();
    let facts = Facts::of(&found.record.event);
    let principal = facts.principal().or(found.origin.as_ref().map(|of| of.principal.as_str()));
    let model = facts.model().or(found.origin.as_ref().map(|of| of.model.as_str()));
    let level = match facts.weight {
        Weight::Plain => 1,
        Weight::Notice => 3,
        Weight::Warning => 7,
    };
    let version = head(env!("CARGO_PKG_VERSION"));
    let name = head(event);
    let request = found.record.event.request();
    let members = [
        ("rt", Some(found.record.time_s.saturating_mul(1000).to_string())),
        ("externalId", Some(found.index.to_string())),
        ("cnt", Some(facts.count().to_string())),
        ("cat", Some(facts.area.name().to_owned())),
        ("suid", principal.map(extension)),
        ("outcome", facts.outcome().map(|outcome| cut(&extension(outcome), OUTCOME_LEN_MAX))),
        ("cs1Label", model.map(|_| "model".to_owned())),
        ("cs1", model.map(|model| cut(&extension(model), CUSTOM_LEN_MAX))),
        ("cs2Label", request.map(|_| "request".to_owned())),
        ("cs2", request.map(extension)),
        ("cs3Label", Some("log".to_owned())),
        ("cs3", Some(extension(log))),
        ("cs6Label", Some("record".to_owned())),
        ("cs6", Some(record(found))),
    ];
    let members = members.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let members: Vec<_> = members.map(|(name, value)| format!("{name}={value}")).collect();
    format!("CEF:0|Cloister|Cloister|{version}|{name}|{name}|{level}|{}", members.join(" "))
}

/// The whole record; where it is longer than a field may be, a word that it is left out.
fn record(found: &Found) -> String {
    let whole = escape(&plain_json(&object(found.index, &found.record).to_string()));
    if whole.chars().count() <= CUSTOM_LEN_MAX {
        return whole;
    }
    let why = format!("longer than {CUSTOM_LEN_MAX} characters");
    extension(&json!({ "index": found.index, "left_out": why }).to_string())
}

/// A value of the head.
fn head(text: &str) -> String {
    plain(text).replace('\\', "\\\\").replace('|', "\\|")
}

/// A value of the extension. Blanks at its ends are written out, since parsers take them off.
fn extension(text: &str) -> String {
    let inner = text.trim_matches(' ');
    let start = text.len() - text.trim_start_matches(' ').len();
    let end = if inner.is_empty() { 0 } else { text.len() - start - inner.len() };
    let blanks = |count: usize| "\\u{20}".repeat(count);
    escape(&format!("{}{}{}", blanks(start), plain(inner), blanks(end)))
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('=', "\\=")
}

/// The first characters of an escaped value; no escape is cut in two.
fn cut(escaped: &str, len_max: usize) -> String {
    if escaped.chars().count() <= len_max {
        return escaped.to_owned();
    }
    let kept: String = escaped.chars().take(len_max - 1).collect();
    let dangling = kept.len() - kept.trim_end_matches('\\').len();
    let kept = if dangling % 2 == 1 { &kept[..kept.len() - 1] } else { &kept };
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::super::tests::{each, found, refused};
    use super::*;
    use crate::audit::Event;

    /// A text a line, as it must stand in the head and in the extension.
    const AWKWARD: &str = include_str!("../../../../tests/vectors/cef/awkward.jsonl");

    /// Takes the escapes off; `None` if one is not of the format.
    fn unescape(text: &str, escaped: &str) -> Option<String> {
        let mut out = String::new();
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            match char {
                '\\' => out.push(chars.next().filter(|next| escaped.contains(*next))?),
                char if escaped.contains(char) => return None,
                char => out.push(char),
            }
        }
        Some(out)
    }

    /// Splits at each such character that no backslash escapes.
    fn split(text: &str, at: char) -> Vec<String> {
        let (mut parts, mut is_escaped) = (vec![String::new()], false);
        for char in text.chars() {
            if char == at && !is_escaped {
                parts.push(String::new());
            } else {
                parts.last_mut().unwrap().push(char);
            }
            is_escaped = char == '\\' && !is_escaped;
        }
        parts
    }

    /// Reads a line as a collector does: seven fields of a head, then names and values.
    fn read(line: &str) -> (Vec<String>, BTreeMap<String, String>) {
        assert!(!line.contains(['\n', '\r']), "{line}");
        let parts = split(line, '|');
        let head = parts[..7].iter().map(|part| unescape(part, "\\|").unwrap()).collect();
        // A pipe needs no escape in the extension.
        let extension = parts[7..].join("|");
        let pieces = split(&extension, '=');
        let mut members = BTreeMap::new();
        let mut name = pieces[0].clone();
        for (at, piece) in pieces.iter().enumerate().skip(1) {
            let (value, next) = match at + 1 == pieces.len() {
                true => (piece.as_str(), ""),
                false => piece.rsplit_once(' ').unwrap(),
            };
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{name:?} in {line}");
            let value = unescape(value, "\\=").unwrap_or_else(|| panic!("{value}"));
            assert_eq!(members.insert(name, value), None, "twice in {line}");
            name = next.to_owned();
        }
        (head, members)
    }

    #[test]
    fn every_awkward_character_is_escaped_by_the_formats_rules() {
        for row in AWKWARD.lines() {
            let row: Value = serde_json::from_str(row).unwrap();
            let text = row["text"].as_str().unwrap();
            assert_eq!(head(text), row["head"].as_str().unwrap(), "{text:?}");
            assert_eq!(extension(text), row["extension"].as_str().unwrap(), "{text:?}");
            let (head, members) = read(&line("log", &refused(text, "")));
            assert_eq!((head[0].as_str(), head[4].as_str()), ("CEF:0", "model_refused"));
            let want = unescape(row["extension"].as_str().unwrap(), "\\=");
            assert_eq!(Some(members["cs1"].clone()), want, "{text:?}");
            let record: Value = serde_json::from_str(&members["cs6"]).unwrap();
            let members: Vec<_> = members.into_keys().collect();
            let want = ["cat", "cnt", "cs1", "cs1Label", "cs3", "cs3Label", "cs6", "cs6Label"];
            assert_eq!(members, [&want[..], &["externalId", "outcome", "rt"]].concat(), "{text:?}");
            assert_eq!(record["event"]["model_refused"]["observed"]["model"], text);
        }
    }

    #[test]
    fn every_event_is_a_line_whose_fields_are_as_long_as_they_may_be() {
        for found in each() {
            let (head, members) = read(&line("log", &found));
            assert_eq!(head.len(), 7);
            assert!(head[6].parse::<u8>().unwrap() <= 10);
            for (name, len_max) in [
                ("cs6", CUSTOM_LEN_MAX),
                ("outcome", OUTCOME_LEN_MAX),
                ("suid", 1023),
                ("cat", 1023),
            ] {
                let len = members.get(name).map_or(0, |value| value.chars().count());
                assert!(len <= len_max, "{name}: {len}");
            }
            let record: Value = serde_json::from_str(&members["cs6"]).unwrap();
            assert_eq!(record, object(found.index, &found.record));
        }
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters_or_left_out_and_said() {
        let (_, members) = read(&line("log", &refused("m", &"=".repeat(200))));
        assert_eq!(members["outcome"], format!("{}…", "=".repeat(31)));
        let (_, members) = read(&line("log", &refused(&"é".repeat(5000), "")));
        assert_eq!(members["cs1"].chars().count(), CUSTOM_LEN_MAX);
        assert_eq!(members["cs6"], r#"{"index":7,"left_out":"longer than 4000 characters"}"#);
        let (_, members) = read(&line("log", &found(Event::Stop {})));
        assert!(members["cs6"].contains("stop"), "the control");
    }
}
