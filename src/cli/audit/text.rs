//! Times and foreign text as review shows them.
//!
//! What stands in the log may have been chosen by someone else: a model's name, a loader's reason.
//! No output of review lets it act: not on a terminal, in a spreadsheet or in a page.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds of a day.
pub(super) const DAY_S: u64 = 86_400;

/// Now, in seconds since 1970.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `2026-11-21T05:00:00Z`, by the civil calendar.
#[must_use]
pub fn time_text(time_s: u64) -> String {
    let second = time_s % DAY_S;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{}T{hour:02}:{minute:02}:{second:02}Z", date_text(time_s))
}

/// `2026-11-21`.
pub(super) fn date_text(time_s: u64) -> String {
    // Days since 0000-03-01, in eras of 400 years (Howard Hinnant, "chrono-compatible date algorithms").
    let shifted = time_s / DAY_S + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The first second of what `text` names: a day, a second (UTC), or a span before now as in `7d`.
pub(super) fn parse_from(text: &str) -> Result<u64, String> {
    parse_time(text).map(|(first, _)| first)
}

/// The last second of what `text` names.
pub(super) fn parse_to(text: &str) -> Result<u64, String> {
    parse_time(text).map(|(_, last)| last)
}

fn parse_time(text: &str) -> Result<(u64, u64), String> {
    let fault = || {
        "give a day (2026-11-21), a time (2026-11-21T05:00:00Z) or a span before now (36h, 7d)"
            .to_owned()
    };
    if let Some(unit) = text.chars().next_back().filter(|unit| "smhdw".contains(*unit)) {
        let unit_s = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => DAY_S,
            _ => 7 * DAY_S,
        };
        let count: u64 = text[..text.len() - 1].parse().map_err(|_| fault())?;
        let then = now_s().saturating_sub(count.saturating_mul(unit_s));
        return Ok((then, then));
    }
    let (date, clock) = match text.strip_suffix('Z').unwrap_or(text).split_once(['T', ' ']) {
        Some((date, clock)) => (date, Some(clock)),
        None => (text, None),
    };
    let day_s = parse_date(date).ok_or_else(fault)?;
    let Some(clock) = clock else { return Ok((day_s, day_s + DAY_S - 1)) };
    let mut parts = clock.split(':').map(|part| number(part, 2));
    let mut next = || parts.next().flatten();
    let (hour, minute) = next().zip(next()).ok_or_else(fault)?;
    let second = next().unwrap_or(0);
    if hour > 23 || minute > 59 || second > 59 || clock.len() > 8 {
        return Err(fault());
    }
    let time_s = day_s + hour * 3600 + minute * 60 + second;
    Ok((time_s, time_s))
}

fn parse_date(text: &str) -> Option<u64> {
    let mut parts = text.split('-');
    let (year, month, day) =
        (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    if parts.next().is_some() || year < 1970 {
        return None;
    }
    let shifted = if month > 2 { year } else { year - 1 };
    let (era, year_of_era) = (shifted / 400, shifted % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.checked_sub(1)?;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let time_s = (era * 146_097 + day_of_era - 719_468) * DAY_S;
    // The 31st of a month of 30 days comes out as another day.
    (date_text(time_s) == text).then_some(time_s)
}

fn number(text: &str, len: usize) -> Option<u64> {
    let is_plain = text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

/// Text that a terminal only shows: control characters and those that change the direction or
/// the width of a line are written out.
#[must_use]
pub(super) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if acts(char) {
            // Writing to a `String` does not fail.
            let _ = write!(out, "\\u{{{:x}}}", u32::from(char));
        } else {
            out.push(char);
        }
    }
    out
}

/// JSON that says the same without a character that acts: such stand in its strings alone.
pub(super) fn plain_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for char in json.chars() {
        if acts(char) {
            for unit in char.encode_utf16(&mut [0; 2]) {
                // Writing to a `String` does not fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(char);
        }
    }
    out
}

/// Whether a character does more than stand there.
fn acts(char: char) -> bool {
    char.is_control()
        || matches!(u32::from(char), 0xad | 0x61c | 0x200b..=0x200f | 0x2028..=0x202e
            | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb | 0xe0000..=0xe0fff)
}

/// A cell of a table of comma-separated values. One that a spreadsheet would take for a formula is
/// led by an apostrophe.
#[must_use]
pub(super) fn csv_cell(text: &str) -> String {
    let text = plain(text);
    let is_formula = text.starts_with([
        '=', '+', '-', '@', '|', '%', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}',
    ]);
    let mark = if is_formula { "'" } else { "" };
    format!("\"{mark}{}\"", text.replace('"', "\"\""))
}

/// Text of a page, or of an attribute in double quotes.
#[must_use]
pub(super) fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in plain(text).chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_civil_calendar() {
        assert_eq!(time_text(0), "1970-01-01T00:00:00Z");
        assert_eq!(time_text(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(time_text(1_795_237_199), "2026-11-21T04:59:59Z");
        for time_s in (0..4_000_000_000).step_by(7_654_321) {
            assert_eq!(parse_from(&time_text(time_s)), Ok(time_s));
            assert_eq!(parse_from(&date_text(time_s)), Ok(time_s - time_s % DAY_S));
        }
        assert_eq!(parse_to("1970-01-01"), Ok(DAY_S - 1));
        assert_eq!(parse_to("1970-01-02 00:01"), Ok(DAY_S + 60));
        let bad = [
            "",
            "now",
            "2026-02-30",
            "2026-13-01",
            "2026-1-1",
            "1969-12-31",
            "d",
            "-1d",
            "1.5h",
            "2026-11-21T25:00:00Z",
            "2026-11-21T05:00:00+01:00",
            "2026-11-21T5:00",
            "2026-00-10",
            "２026-11-21",
        ];
        for text in bad {
            assert!(parse_from(text).is_err(), "{text}");
        }
    }

    #[test]
    fn foreign_text_acts_nowhere() {
        let hostile = "a\u{1b}[2J\u{9b}31m\r\n\t\u{7f}\u{202e}b\u{200b}\u{e0041}";
        let shown = plain(hostile);
        assert!(shown.chars().all(|char| !acts(char)), "{shown}");
        assert!(shown.starts_with("a\\u{1b}[2J\\u{9b}31m\\u{d}"));
        assert_eq!(plain("gut Grüße 模型"), "gut Grüße 模型");
        let json = serde_json::json!({ hostile: [hostile] });
        let shown = plain_json(&json.to_string());
        assert!(shown.chars().all(|char| !acts(char)), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), json);
        for text in ["=1+1", "+1", "-1", "@x", "\u{ff1d}1"] {
            assert!(csv_cell(text).starts_with("\"'"), "{text}");
        }
        assert_eq!(csv_cell("a\",\n=b"), "\"a\"\",\\u{a}=b\"");
        assert_eq!(csv_cell("\t=1"), "\"\\u{9}=1\"");
        assert_eq!(html("<i a='b' c=\"d\">&"), "&lt;i a=&#39;b&#39; c=&quot;d&quot;&gt;&amp;");
    }
}
