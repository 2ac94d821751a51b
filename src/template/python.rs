//! What Python's Jinja2 prints where minijinja prints otherwise: values, JSON, dates.

use std::fmt::Write as _;
use std::io;

use minijinja::Value;
use minijinja::value::ValueKind;
use serde::Serialize as _;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Writes a value as Python's `str` does.
pub(super) fn text(value: &Value) -> String {
    let mut text = String::new();
    match value.as_str() {
        Some(string) => text.push_str(string),
        None if value.is_undefined() => {}
        None => push_repr(&mut text, value),
    }
    text
}

/// Writes a value as Python's `repr` does. The caller has measured it.
fn push_repr(text: &mut String, value: &Value) {
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => text.push_str("None"),
        ValueKind::Bool => text.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => push_quoted(text, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            text.push('[');
            for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                push_repr(text, &item);
            }
            text.push(']');
        }
        ValueKind::Map => {
            text.push('{');
            for (index, key) in value.try_iter().into_iter().flatten().enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                push_repr(text, &key);
                text.push_str(": ");
                push_repr(text, &value.get_item(&key).unwrap_or_default());
            }
            text.push('}');
        }
        _ => {
            let _ = write!(text, "{value}");
        }
    }
}

fn push_quoted(text: &mut String, string: &str) {
    let quote = if string.contains('\'') && !string.contains('"') { '"' } else { '\'' };
    text.push(quote);
    for c in string.chars() {
        match c {
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\\' => text.push_str("\\\\"),
            c if c == quote => text.extend(['\\', c]),
            c => text.push(c),
        }
    }
    text.push(quote);
}

/// JSON as Python's `json.dumps(…, ensure_ascii=False)` spaces it.
struct PythonJson;

impl Formatter for PythonJson {
    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_f64<W: io::Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }
}

/// Writes a number as Python does: a sign and two digits in the exponent.
fn float(value: f64) -> String {
    let text = serde_json::Number::from_f64(value).map_or("NaN".to_owned(), |n| n.to_string());
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent.trim_start_matches('+')),
    };
    let digits = digits.strip_suffix(".0").unwrap_or(digits);
    format!("{digits}e{sign}{exponent:0>2}")
}

/// Returns the value as JSON; `indent` spreads it over lines.
pub(super) fn json(value: &Value, indent: Option<usize>) -> Result<String, serde_json::Error> {
    let mut bytes = Vec::new();
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, PythonJson))?,
        Some(width) => {
            let indent = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))?;
        }
    }
    String::from_utf8(bytes).map_err(serde::ser::Error::custom)
}

const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Writes a time (seconds since 1970, UTC) as `strftime` does; nothing for unknown directives.
pub(super) fn strftime(format: &str, unix_s: u64) -> Option<String> {
    let days = unix_s / 86_400;
    let second = unix_s % 86_400;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (year, month, day) = civil(days);
    let weekday = DAYS[usize::try_from(days % 7).ok()?];
    let month_name = MONTHS[usize::try_from(month - 1).ok()?];
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let piece = match chars.next()? {
            'Y' => format!("{year}"),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'B' => month_name.to_owned(),
            'b' => month_name[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            '-' => match chars.next()? {
                'd' => format!("{day}"),
                'm' => format!("{month}"),
                'H' => format!("{hour}"),
                'I' => format!("{}", (hour + 11) % 12 + 1),
                _ => return None,
            },
            _ => return None,
        };
        text.push_str(&piece);
    }
    Some(text)
}

/// Returns year, month and day of a day since 1970-01-01 in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01 in eras of 400 years, so that leap days come last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, "1970-01-01 Thu 00:00:00"),
            (951_827_696, "2000-02-29 Tue 12:34:56"),
            (1_735_689_599, "2024-12-31 Tue 23:59:59"),
            (4_107_542_400, "2100-03-01 Mon 00:00:00"),
        ];
        for (unix_s, expected) in cases {
            assert_eq!(strftime("%Y-%m-%d %a %H:%M:%S", unix_s).unwrap(), expected);
        }
        assert_eq!(strftime("%-d %B %y, %I %p%%", 951_827_696).unwrap(), "29 February 00, 12 PM%");
        assert_eq!(strftime("%q", 0), None);
        assert_eq!(strftime("%", 0), None);
    }

    #[test]
    fn json_is_spaced_and_written_as_in_python() {
        let value: serde_json::Value =
            serde_json::from_str(r#"{"b": [1, 2.5, 1e20, 1e-7], "a": "é<\n", "c": {}}"#).unwrap();
        let value = Value::from_serialize(&value);
        let expected = r#"{"b": [1, 2.5, 1e+20, 1e-07], "a": "é<\n", "c": {}}"#;
        assert_eq!(json(&value, None).unwrap(), expected);
        assert!(json(&value, Some(2)).unwrap().starts_with("{\n  \"b\": [\n    1,"));
    }

    #[test]
    fn values_print_as_in_python() {
        let value: serde_json::Value =
            serde_json::from_str(r#"{"a": [true, null, "it's", "x"], "b": 1}"#).unwrap();
        let value = Value::from_serialize(&value);
        assert_eq!(text(&value), r#"{'a': [True, None, "it's", 'x'], 'b': 1}"#);
        assert_eq!(text(&Value::UNDEFINED), "");
        assert_eq!(text(&Value::from("it's")), "it's");
    }
}
