//! Which rule asks for what, what this log shows of it, and what it does not.
//!
//! The right column is as long as the left where it must be: a log shows what the appliance did, never
//! what people around it did. Rules: 45 CFR 164, Regulation (EU) 2016/679, Regulation (EU) 2024/1689,
//! NIST SP 800-53 revision 5.

use super::super::summary::Summary;
use super::Checked;
use super::chart::grouped;
use crate::audit::Retention;
use crate::audit::record::{RetentionPreset, RetentionTimes};

/// A rule, and what the log has for it.
pub(super) struct Control {
    /// Its name.
    pub(super) rule: &'static str,
    /// What it asks for, in a line.
    pub(super) asks: &'static str,
    /// What of this log shows it.
    pub(super) evidence: String,
    /// What this log does not show.
    pub(super) limit: &'static str,
}

/// All rules, in order of their laws.
pub(super) fn controls(summary: &Summary, checked: &Checked) -> Vec<Control> {
    let mut all = health(summary, checked);
    all.extend(privacy(summary, checked));
    all.extend(artificial_intelligence(summary));
    all.extend(nist(summary, checked));
    all
}

fn records(summary: &Summary) -> String {
    format!("{} in this period", plural(summary.records, "record"))
}

fn plural(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(count), if count == 1 { "" } else { "s" })
}

fn integrity(checked: &Checked) -> String {
    match &checked.report {
        Ok(report) => {
            let anchor = match report.anchored_at {
                Some(size) => {
                    format!("extends a checkpoint of {} kept elsewhere", plural(size, "record"))
                }
                None => "was not held against a checkpoint kept elsewhere".to_owned(),
            };
            format!("all {} match the signed tree; the log {anchor}", plural(report.size, "record"))
        }
        Err(_) => "the check FAILED: see the verdict".to_owned(),
    }
}

fn health(summary: &Summary, checked: &Checked) -> Vec<Control> {
    vec![
        Control {
            rule: "HIPAA 164.312(b)",
            asks: "Mechanisms that record and examine activity in systems that use ePHI",
            evidence: format!(
                "{}: {} begun, {} refused",
                records(summary),
                plural(summary.events.of("begin"), "request"),
                grouped(summary.refusals.sum())
            ),
            limit: "Which patient a request was about; what users did with an answer",
        },
        Control {
            rule: "HIPAA 164.312(c)(1)",
            asks: "Protection from improper alteration or destruction",
            evidence: integrity(checked),
            limit: "Integrity of anything but this log; a log put back whole to an older state, without a checkpoint kept elsewhere",
        },
        Control {
            rule: "HIPAA 164.308(a)(1)(ii)(D)",
            asks: "Regular review of records of activity",
            evidence: format!(
                "this report; {} of the log through Cloister are recorded in this period",
                plural(summary.readers.sum(), "reading")
            ),
            limit: "Readings past Cloister (the host's auditd has those); whether findings were followed up",
        },
    ]
}

fn privacy(summary: &Summary, checked: &Checked) -> Vec<Control> {
    vec![
        Control {
            rule: "GDPR Art. 5(2)",
            asks: "Being able to demonstrate compliance",
            evidence: format!("{}; {}", records(summary), integrity(checked)),
            limit: "Purposes and legal bases: these stand in the controller's own records (Art. 30)",
        },
        Control {
            rule: "GDPR Art. 25",
            asks: "Data protection by design and by default",
            evidence: "records hold keyed digests, pseudonyms and bucketed counts, never text; the schema is closed".to_owned(),
            limit: "What clients send, and whether they needed to",
        },
        Control {
            rule: "GDPR Art. 32",
            asks: "Security of processing, pseudonymisation, regular testing",
            evidence: format!(
                "starts name version and policy digest; {} and {} of a part are recorded",
                plural(summary.events.of("ticket_missing") + summary.events.of("sandbox_violation"), "sandbox event"),
                plural(summary.events.of("child_died"), "death")
            ),
            limit: "Security of the host, of backups and of clients; pseudonymised data stays personal data",
        },
        Control {
            rule: "GDPR Art. 33",
            asks: "Notifying a breach within 72 hours, with its nature and extent",
            evidence: format!("{}, {}, each with its time: what an extent can be taken from", plural(summary.failures.sum(), "failed authentication"), plural(summary.refusals.sum(), "refusal")),
            limit: "That there was no breach; what a stolen key was used for beyond its requests",
        },
        Control {
            rule: "GDPR Art. 35",
            asks: "An assessment of impact, with the measures foreseen",
            evidence: "models by digest, roles and volumes of use, as input to an assessment".to_owned(),
            limit: "The assessment itself",
        },
    ]
}

fn artificial_intelligence(summary: &Summary) -> Vec<Control> {
    vec![
        Control {
            rule: "AI Act Art. 12",
            asks: "Where the use is high-risk: automatic recording of events over the lifetime",
            evidence: format!("{}; each request names its model by digest", records(summary)),
            limit: "Reference data and persons who verified a result (Art. 12(3)), which the application has to record",
        },
        Control {
            rule: "AI Act Art. 19, 26(6)",
            asks: "Where the use is high-risk: keeping logs for at least six months",
            evidence: retention(summary),
            limit: "Whether the use is high-risk; logs of other systems in the chain",
        },
    ]
}

/// For how long records are kept by the settings of the last start, and why.
pub(super) fn kept(times: RetentionTimes) -> String {
    let days = |time_s: u64| grouped(time_s / 86_400);
    let most = match times.max_s {
        Some(max_s) => format!("removed after {} days", days(max_s)),
        None => "never removed unasked".to_owned(),
    };
    let why = match times.preset {
        None => "set without a preset",
        Some(RetentionPreset::Us) => {
            "preset us: 45 CFR 164.316(b)(2) wants documentation kept for six years, and no end"
        }
        Some(RetentionPreset::Eu) => {
            "preset eu: the AI Act wants logs of high-risk systems kept for at least six months \
             (Art. 19(1), 26(6)), the GDPR a limit (Art. 5(1)(e)), and the CNIL takes six months to a \
             year for logs (2021-122)"
        }
    };
    let is_own =
        times.preset.is_some_and(|preset| RetentionTimes::from(Retention::of(preset)) != times);
    let own = if is_own { "; its times were changed by settings of their own" } else { "" };
    format!("kept for at least {} days, {most} ({why}{own})", days(times.min_s))
}

fn retention(summary: &Summary) -> String {
    let kept = summary.retention.map_or_else(
        || "how long records are kept is not in the log".to_owned(),
        |(_, times)| format!("records are {}", kept(times)),
    );
    let runs = summary.events.of("retention_run");
    let oldest = summary.first_last.map(|[first, _]| super::super::text::date_text(first.1));
    let oldest = oldest
        .map_or(String::new(), |day| format!("; the oldest record of this period is of {day}"));
    format!("{kept}; {} in this period{oldest}", plural(runs, "retention run"))
}

fn nist(summary: &Summary, checked: &Checked) -> Vec<Control> {
    let mut all = nist_records(summary);
    all.extend(nist_protection(summary, checked));
    all
}

fn control(
    rule: &'static str,
    asks: &'static str,
    evidence: impl Into<String>,
    limit: &'static str,
) -> Control {
    Control { rule, asks, evidence: evidence.into(), limit }
}

fn nist_records(summary: &Summary) -> Vec<Control> {
    let kinds = plural(summary.events.0.len() as u64, "kind");
    let unwritten = plural(summary.refusals.of("log_unavailable"), "refusal");
    let breaks = plural(summary.time_breaks.len() as u64, "break");
    vec![
        control(
            "NIST AU-2",
            "Events that are logged are chosen and reviewed",
            format!("{kinds} of event are in this period"),
            "The review of the choice",
        ),
        control(
            "NIST AU-3",
            "What, when, where, source, outcome, who",
            "each record: event, time, start of the machine, outcome, pseudonym, model digest",
            "The network address of a client, which Cloister does not record",
        ),
        control(
            "NIST AU-3(3)",
            "Limiting personal data in records",
            "pseudonyms and keyed digests only",
            "Who a pseudonym is: only the holder of the principals' keys can tell",
        ),
        control(
            "NIST AU-4",
            "Enough room for records",
            "no request begins unless its record is durable",
            "Free space of the disk: `cloister doctor` tells",
        ),
        control(
            "NIST AU-5",
            "Response to failures of logging",
            format!("{unwritten} for a log that could not be written"),
            "Failures before the log existed",
        ),
        control(
            "NIST AU-6",
            "Review, analysis and reporting",
            "this report, `cloister audit search`, forwarding to a SIEM",
            "That someone read it",
        ),
        control(
            "NIST AU-7",
            "Reduction and reports without changing records",
            "made from the files, read-only; every figure can be counted again from an export",
            "Findings that need other systems' records",
        ),
        control(
            "NIST AU-8",
            "Time stamps",
            format!("UTC at 1 s, beside a clock that never goes back; {breaks} in time order"),
            "That the host's clock was right",
        ),
    ]
}

fn nist_protection(summary: &Summary, checked: &Checked) -> Vec<Control> {
    let report = checked.report.as_ref().ok();
    let elsewhere = match report.and_then(|report| report.anchored_at) {
        Some(size) => format!("a checkpoint of {} was kept elsewhere", plural(size, "record")),
        None => "no checkpoint from elsewhere was given to this report".to_owned(),
    };
    let unmatched = plural(report.map_or(0, |report| report.unmatched_ends), "end");
    vec![
        control(
            "NIST AU-9, AU-9(3)",
            "Protection of records, by cryptography",
            integrity(checked),
            "Who could read them: the folder's owner and group",
        ),
        control(
            "NIST AU-9(2)",
            "Records on another system",
            elsewhere,
            "Copies of the records: forwarding and exports",
        ),
        control(
            "NIST AU-10",
            "Non-repudiation",
            "each request stands under one principal; any record has an offline proof",
            "Who held a token: Cloister knows keys, not persons",
        ),
        control(
            "NIST AU-11",
            "Retention",
            retention(summary),
            "That the period chosen is the right one",
        ),
        control(
            "NIST AU-12",
            "Records are made where events happen",
            format!("a begin is durable before the first token; {unmatched} had no begin"),
            "What a worker that was taken over said of its own requests (declared, not observed)",
        ),
    ]
}
