//! The sections of a report, in the order in which a reviewer asks.

use serde_json::Value;

use super::super::facts::Area;
use super::super::show::flatten;
use super::super::summary::{Counts, Notable, Step, Summary};
use super::super::text::html;
use super::Checked;
use super::chart::{Bar, Series, bars, columns, grouped, table};
use super::controls::{controls, kept};
use super::keys::keys;
use super::words::{self, Set};

/// Most rows of a table of names.
const NAMES_COUNT_MAX: usize = 40;
/// Digits of a digest that are shown: enough to tell two apart.
const DIGEST_LEN_SHOWN: usize = 16;

/// A part of the page.
pub(super) struct Section {
    /// Its anchor.
    pub(super) id: &'static str,
    /// Its title.
    pub(super) title: &'static str,
    /// Its content, as markup.
    pub(super) body: String,
}

/// All sections.
pub(super) fn sections(summary: &Summary, checked: &Checked) -> Vec<Section> {
    let section = |id, title, body| Section { id, title, body };
    vec![
        section("changes", "What changed", changes(summary)),
        section("requests", "Requests and refusals", requests(summary)),
        section("who", "By principal and model", who(summary)),
        section("authentication", "Failed authentications", authentication(summary)),
        section("service", "Restarts and sandbox", service(summary)),
        section("gaps", "Gaps and clock", gaps(summary, checked)),
        section("retention", "Retention, erasure, reading", retention(summary)),
        section("keys", "Keys: made, used, replaced, destroyed", keys(summary)),
        section("controls", "Which rules this is evidence for", rules(summary, checked)),
        section("check", "Check it yourself", check(checked)),
    ]
}

/// A time without the marks that a table's head stands for.
fn time_text(time_s: u64) -> String {
    super::super::text::time_text(time_s).trim_end_matches('Z').replace('T', " ")
}

pub(super) fn paragraph(text: &str) -> String {
    format!("<p>{}</p>", html(text))
}

pub(super) fn lead(text: &str) -> String {
    format!("<p class=\"lead\">{}</p>", html(text))
}

/// A table of records that stand by themselves, or a sentence that there are none.
pub(super) fn notable(
    summary: &Summary,
    title: &str,
    none: &str,
    wanted: &dyn Fn(&Notable) -> bool,
) -> String {
    let found: Vec<&Notable> = summary.notable.iter().filter(|one| wanted(one)).collect();
    if found.is_empty() {
        return paragraph(none);
    }
    let rows = found.iter().map(|one| {
        vec![
            time_text(one.time_s),
            words::event(one.event),
            said(one.event, &one.facts.members),
            format!("#{}", one.index),
        ]
    });
    let mut out = table(title, &["When (UTC)", "Event", "What the record says", "Record"], rows);
    if summary.notable_left > 0 {
        let left = grouped(summary.notable_left);
        out.push_str(&paragraph(&format!("{left} more such records of all kinds are not listed one by one; `cloister audit search` has them.")));
    }
    out
}

/// A record's members in a line.
fn said(event: &str, members: &Value) -> String {
    let parts = parts(event, members).into_iter().map(|(name, value)| format!("{name} {value}"));
    parts.collect::<Vec<_>>().join(" · ")
}

/// A record's members in words, each with its name; digests are cut.
fn parts(event: &str, members: &Value) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    flatten("", members, &mut rows);
    // The build digest covers the programs.
    rows.retain(|(name, _)| !name.contains("programs."));
    let mut out: Vec<(String, String)> = Vec::new();
    for (way, value) in rows {
        // An item of a list is named as the list.
        let is_name = |part: &&str| !part.bytes().all(|byte| byte.is_ascii_digit());
        let member = way.rsplit('.').find(is_name).unwrap_or_default();
        let (name, value) = (words::member(member), value_text(event, member, &value));
        match out.last_mut() {
            Some((last, values)) if *last == name => {
                values.push_str(", ");
                values.push_str(&value);
            }
            _ => out.push((name, value)),
        }
    }
    out
}

fn value_text(event: &str, member: &str, value: &str) -> String {
    let number = value.parse::<u64>().ok();
    let is_digest =
        value.len() >= 2 * DIGEST_LEN_SHOWN && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    match (member, number) {
        ("min_s" | "max_s" | "older_than_s", Some(seconds)) => {
            format!("{} days", grouped(seconds / 86_400))
        }
        ("admitted_s" | "from_s" | "to_s", Some(time_s)) => time_text(time_s),
        _ if is_digest => format!("{}…", &value[..DIGEST_LEN_SHOWN]),
        _ => {
            let said = Set::of(event, member).say(value);
            // What the event says already.
            said.strip_prefix("no end: ").unwrap_or(said).to_owned()
        }
    }
}

fn changes(summary: &Summary) -> String {
    let is_change = |one: &Notable| {
        one.event == "start" || matches!(one.facts.area, Area::Configuration | Area::Model)
    };
    let mut out = lead(
        "Versions, configuration, policy, models, tokens and certificates, as each start or reload took them.",
    );
    // Starts that differ from the one before say what a reviewer looks for.
    let starts: Vec<&Notable> = summary.notable.iter().filter(|one| one.event == "start").collect();
    let mut differences = Vec::new();
    for pair in starts.windows(2) {
        let (Some(before), Some(after)) = (
            pair[0].facts.member("version").and(pair[0].facts.members.get("observed")),
            pair[1].facts.members.get("observed"),
        ) else {
            continue;
        };
        let Some(members) = after.as_object() else { continue };
        let is_other = |(name, value): &(&String, &Value)| {
            name.as_str() != "programs" && before.get(name.as_str()) != Some(value)
        };
        for (name, value) in members.iter().filter(is_other) {
            let text = |value: &Value| match parts("start", &serde_json::json!({ name: value })) {
                one if one.len() == 1 => one[0].1.clone(),
                many => many
                    .iter()
                    .map(|(name, it)| format!("{name} {it}"))
                    .collect::<Vec<_>>()
                    .join(" · "),
            };
            let old = before.get(name).unwrap_or(&Value::Null);
            differences.push(vec![
                time_text(pair[1].time_s),
                words::member(name),
                text(old),
                text(value),
            ]);
        }
    }
    if differences.is_empty() {
        out.push_str(&paragraph("No start in this period differs from the start before it."));
    } else {
        out.push_str(&table(
            "Starts that differ from the start before",
            &["When (UTC)", "What", "Before", "After"],
            differences.into_iter(),
        ));
    }
    out.push_str(&notable(
        summary,
        "Starts, models, configuration",
        "Nothing was started, opened or reloaded in this period.",
        &is_change,
    ));
    out
}

fn labels(summary: &Summary) -> Vec<String> {
    let (start, step_s) = summary.step_s;
    (0..summary.steps.len() as u64)
        .map(|at| {
            let text = time_text(start + at * step_s);
            // A day needs no hour, an hour no second.
            let len = if step_s.is_multiple_of(86_400) { 10 } else { 16 };
            text[..len].replace('T', " ")
        })
        .collect()
}

fn step_name(step_s: u64) -> String {
    match step_s {
        60 => "minute".to_owned(),
        3600 => "hour".to_owned(),
        86_400 => "day".to_owned(),
        604_800 => "week".to_owned(),
        _ if step_s < 3600 => format!("{} minutes", step_s / 60),
        _ if step_s < 86_400 => format!("{} hours", step_s / 3600),
        _ => format!("{} days", step_s / 86_400),
    }
}

fn values(summary: &Summary, of: impl Fn(&Step) -> u64) -> Vec<u64> {
    summary.steps.iter().map(of).collect()
}

fn requests(summary: &Summary) -> String {
    let step = step_name(summary.step_s.1);
    let series = [
        Series { name: "begun", class: "solid", values: values(summary, |step| step.requests) },
        Series { name: "refused", class: "hatched", values: values(summary, |step| step.refusals) },
    ];
    let mut out =
        columns("requests-chart", &format!("Requests for each {step}"), &labels(summary), &series);
    out.push_str(&names(
        "ends-bars",
        "How requests ended",
        ["Outcome", "Requests"],
        (&summary.outcomes, &in_words(Set::Ends)),
        "No request ended in this period.",
    ));
    out.push_str(&names(
        "refusals-bars",
        "Why requests were refused",
        ["Reason", "Requests"],
        (&summary.refusals, &in_words(Set::Refusals)),
        "No request was refused in this period.",
    ));
    let [prompt, answer] = summary.tokens_max.map(grouped);
    out.push_str(&paragraph(&format!(
        "At most {prompt} tokens were read and {answer} written: counts are recorded as the next power of two, so the sums are upper bounds."
    )));
    out
}

/// Names with bars, or a sentence that there are none.
fn names(
    id: &str,
    title: &str,
    heads: [&str; 2],
    (counts, say): (&Counts, &dyn Fn(&str) -> String),
    none: &str,
) -> String {
    let ranked = counts.ranked();
    if ranked.is_empty() {
        return paragraph(none);
    }
    let shown = &ranked[..ranked.len().min(NAMES_COUNT_MAX)];
    let shown: Vec<Bar<'_>> = shown
        .iter()
        .map(|&(word, count)| {
            let name = say(word);
            // What is searched for is one word.
            let raw = Some(word).filter(|word| name != *word && !word.contains(' '));
            Bar { name, raw, count }
        })
        .collect();
    let mut out = bars(id, title, heads, &shown);
    if ranked.len() > shown.len() {
        let rest: u64 = ranked[shown.len()..].iter().map(|(_, count)| count).sum();
        let left = ranked.len() - shown.len();
        out.push_str(&paragraph(&format!(
            "{left} more, together {}; `cloister audit stats` has them.",
            grouped(rest)
        )));
    }
    out
}

/// Says a set's words.
fn in_words(set: Set) -> impl Fn(&str) -> String {
    move |word| set.say(word).to_owned()
}

fn who(summary: &Summary) -> String {
    let mut out = lead(
        "Principals stand under pseudonyms; who one is, only the holder of the principals' keys can tell.",
    );
    out.push_str(&names(
        "principals-bars",
        "Requests by principal",
        ["Pseudonym", "Requests"],
        (&summary.principals, &in_words(Set::Plain)),
        "No principal asked in this period.",
    ));
    out.push_str(&names(
        "models-bars",
        "Requests by model",
        ["Model", "Requests"],
        (&summary.models, &in_words(Set::Plain)),
        "No model was asked in this period.",
    ));
    out.push_str(&names(
        "roles-bars",
        "Requests by role",
        ["Role", "Requests"],
        (&summary.roles, &in_words(Set::Plain)),
        "No role was used in this period.",
    ));
    out.push_str(&names(
        "refused-bars",
        "Refusals by principal",
        ["Pseudonym", "Refusals"],
        (&summary.refused_principals, &in_words(Set::Plain)),
        "No known principal was refused in this period.",
    ));
    out
}

fn authentication(summary: &Summary) -> String {
    if summary.failures.sum() == 0 {
        return paragraph("Every key that was presented in this period was valid.");
    }
    let step = step_name(summary.step_s.1);
    let series =
        [Series { name: "failed", class: "dotted", values: values(summary, |step| step.failures) }];
    let mut out = lead(
        "A first failure is recorded at once, those that follow are summed for up to ten seconds.",
    );
    out.push_str(&columns(
        "failures-chart",
        &format!("Failed authentications for each {step}"),
        &labels(summary),
        &series,
    ));
    out.push_str(&names(
        "failures-bars",
        "Why they failed",
        ["Cause", "Failures"],
        (&summary.failures, &in_words(Set::Failures)),
        "",
    ));
    out
}

fn service(summary: &Summary) -> String {
    let is_service = |one: &Notable| matches!(one.facts.area, Area::Service | Area::Sandbox);
    notable(
        summary,
        "Starts, stops, deaths of parts, sandbox",
        "Nothing was started or stopped, and nothing died, in this period.",
        &is_service,
    )
}

fn gaps(summary: &Summary, checked: &Checked) -> String {
    let mut out = String::new();
    if let Ok(report) = &checked.report {
        let mut rows = vec![
            ("Records that were pruned, as the log says; their hashes are proven", report.pruned),
            ("Records that are not signed yet", report.unsigned_tail),
            ("Requests without an end so far", report.open_requests),
            ("Ends without a begin", report.unmatched_ends),
            ("Records whose clock stands before the record before", report.clock_steps_back),
        ];
        if let Some(counter) = &report.tpm_counter {
            rows.extend([
                (
                    "Counts of the TPM in no record: of a start that failed, or a log that was put back",
                    counter.unrecorded,
                ),
                ("Starts that recorded no count of the TPM, after one that did", counter.starts_without),
            ]);
        }
        let rows = rows.into_iter().map(|(name, count)| vec![name.to_owned(), grouped(count)]);
        out.push_str(&table("In the whole log", &["What", "Count"], rows));
    }
    let is_gap = |one: &Notable| {
        matches!(one.event, "recovered" | "events_dropped" | "end_missing" | "clock_jump")
    };
    out.push_str(&notable(
        summary,
        "Lost records, missing ends, jumps of the clock",
        "No record was lost, no end is missing and no jump of the clock was seen in this period.",
        &is_gap,
    ));
    if summary.time_breaks.is_empty() {
        out.push_str(&paragraph(
            "The clock never went back, and the machine was not started anew, between two records.",
        ));
    } else {
        let rows = summary.time_breaks.iter().map(|one| {
            let what = match (one.times_s.1 < one.times_s.0, one.is_new_boot) {
                (true, true) => "machine started anew, clock back",
                (true, false) => "clock back",
                _ => "machine started anew",
            };
            vec![
                time_text(one.times_s.0),
                time_text(one.times_s.1),
                what.to_owned(),
                format!("#{}", one.index),
            ]
        });
        out.push_str(&table(
            "Breaks in the order of time",
            &["Record before", "Record after", "What", "Record"],
            rows,
        ));
    }
    out
}

fn retention(summary: &Summary) -> String {
    let is_kept = |one: &Notable| matches!(one.event, "retention_run" | "erasure_asked" | "erased");
    let mut out = paragraph(&match summary.retention {
        Some((start_s, times)) => {
            let start = time_text(start_s);
            format!("By the settings of the start of {start}, records are {}.", kept(times))
        }
        None => "How long records are kept stands in no start of this log.".to_owned(),
    });
    out.push_str(&notable(
        summary,
        "Records removed, principals erased",
        "No record was removed and no principal was erased in this period.",
        &is_kept,
    ));
    out.push_str(&erased(summary));
    out.push_str(&names(
        "readers-bars",
        "Who read the log through Cloister",
        ["Reader", "Readings"],
        (&summary.readers, &words::reader),
        "Nobody read the log through Cloister in this period while the appliance ran.",
    ));
    out
}

/// Whether copies of erased keys were made useless.
fn erased(summary: &Summary) -> String {
    let erasures = summary.notable.iter().filter(|one| one.event == "erased");
    let Some(last) = erasures.map(|one| one.index).max() else { return String::new() };
    let is_wrapping = |one: &&Notable| {
        one.event == "key_rotated" && one.index > last && one.facts.text("key") == Some("wrapping")
    };
    paragraph(match summary.notable.iter().find(is_wrapping) {
        Some(_) => {
            "The wrapping key was replaced after the last erasure: copies of the principals' keys from \
             before are useless to whoever does not have the old wrapping key."
        }
        None => {
            "The wrapping key was not replaced in this period after the last erasure: a copy of an erased \
             key is still one to whoever has the wrapping key (`cloister audit rotate-wrapping-key`)."
        }
    })
}

fn rules(summary: &Summary, checked: &Checked) -> String {
    let rows = controls(summary, checked).into_iter().map(|one| {
        vec![one.rule.to_owned(), one.asks.to_owned(), one.evidence, one.limit.to_owned()]
    });
    let mut out =
        lead("Evidence, not a certificate: each row says what this log shows and what it cannot.");
    out.push_str("<div class=\"controls\">");
    out.push_str(&table(
        "Rules and evidence",
        &["Rule", "Asks for", "This log shows", "This log does not show"],
        rows,
    ));
    out.push_str("</div>");
    out
}

fn check(checked: &Checked) -> String {
    let mut out = paragraph(
        "Nothing on this page has to be believed. With the log, or an export of it, and the public key from a place where the log's keeper cannot change it:",
    );
    out.push_str("<pre>cloister audit verify LOG --public-key audit.vkey --checkpoint KEPT-ELSEWHERE\ncloister audit show '#INDEX' LOG --proof one.tlog-proof\ncloister audit check-proof one.tlog-proof --public-key audit.vkey\ncloister audit export LOG --out FOLDER\ncloister audit verify-export FOLDER --public-key audit.vkey</pre>");
    out.push_str("<h3>The signed checkpoint that this page rests on</h3>");
    out.push_str(&format!(
        "<pre>{}</pre>",
        checked.note.lines().map(html).collect::<Vec<_>>().join("\n")
    ));
    out.push_str("<h3>The public key that it was checked with</h3>");
    out.push_str(&format!("<pre>{}</pre>", html(&checked.key)));
    out
}
