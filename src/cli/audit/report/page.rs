//! The page around the sections: head with its policy, verdict, contents, foot.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

use super::super::summary::Summary;
use super::super::text::{html, time_text};
use super::Checked;
use super::chart::{PATTERNS, grouped};
use super::sections::{Section, sections};

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(super) fn page(summary: &Summary, checked: &Checked, period: (u64, u64)) -> String {
    let style_hash = STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
    let name = html(&checked.signed.origin);
    let plain = |time_s| time_text(time_s).trim_end_matches('Z').replace('T', " ");
    let (from, to) = (plain(period.0), plain(period.1));
    let sections = sections(summary, checked);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{style_hash}'; \
         base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"referrer\" content=\"no-referrer\">\n\
         <meta name=\"robots\" content=\"noindex\">\n\
         <title>Audit report: {name}, {from} to {to}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#content\">Skip to the content</a>\n{PATTERNS}\n"
    );
    let _ = write!(
        out,
        "<header class=\"top\"><p class=\"kicker\">Cloister audit report</p><h1>{name}</h1>\
         <p class=\"period\">{from} to {to} (UTC)</p>{}{}{}</header>\n<main id=\"content\">",
        verdict(checked),
        tiles(summary),
        contents(&sections)
    );
    for Section { id, title, body } in &sections {
        let _ = write!(
            out,
            "\n<section aria-labelledby=\"{id}\"><h2 id=\"{id}\">{title}</h2>{body}</section>"
        );
    }
    let _ = write!(
        out,
        "\n</main>\n<footer><p>Made on {} by Cloister {} from {} signed records. Times are UTC. This page holds no text of any \
         request or answer, and loads nothing.</p></footer>\n</body>\n</html>\n",
        time_text(checked.made_s),
        env!("CARGO_PKG_VERSION"),
        grouped(checked.signed.size)
    );
    out
}

/// The verdict: a word, and what it rests on.
fn verdict(checked: &Checked) -> String {
    let (class, mark, word, why) = match &checked.report {
        Err(error) => (
            "bad",
            "✕",
            "BROKEN".to_owned(),
            format!(
                "{error}. What follows covers the records before the break; nothing after it is proven."
            ),
        ),
        Ok(report) => match (report.anchored_at, &checked.anchor) {
            (Some(size), Some(by)) => (
                "good",
                "✓",
                format!("INTACT, ANCHORED by {by} at {} records", grouped(size)),
                format!(
                    "All {} records are the ones that were signed, each in its place, and the log extends the \
                     checkpoint that was kept elsewhere: it is no older state than that.",
                    grouped(report.size)
                ),
            ),
            _ => (
                "open",
                "✓",
                "INTACT, UNANCHORED".to_owned(),
                format!(
                    "All {} records are the ones that were signed, each in its place. No checkpoint from elsewhere was \
                     given, so this does not show that nobody put back an older state of the whole log.",
                    grouped(report.size)
                ),
            ),
        },
    };
    format!(
        "<div class=\"verdict {class}\"><span class=\"mark\" aria-hidden=\"true\">{mark}</span><div>\
         <p class=\"word\">{}</p><p class=\"why\">{}</p></div></div>",
        html(&word),
        html(&why)
    )
}

fn tiles(summary: &Summary) -> String {
    let back = summary.time_breaks.iter().filter(|one| one.times_s.1 < one.times_s.0).count();
    let tiles = [
        ("Records", summary.records),
        ("Requests begun", summary.events.of("begin")),
        ("Requests refused", summary.refusals.sum()),
        ("Failed authentications", summary.failures.sum()),
        ("Starts", summary.events.of("start")),
        ("Parts that died", summary.events.of("child_died")),
        ("Ends missing", summary.events.of("end_missing")),
        ("Clock set back", back as u64),
    ];
    let tiles =
        tiles.map(|(name, count)| format!("<div><dt>{name}</dt><dd>{}</dd></div>", grouped(count)));
    format!("<dl class=\"tiles\">{}</dl>", tiles.concat())
}

fn contents(sections: &[Section]) -> String {
    let links =
        sections.iter().map(|one| format!("<li><a href=\"#{}\">{}</a></li>", one.id, one.title));
    format!("<nav aria-label=\"Contents\"><ol>{}</ol></nav>", links.collect::<String>())
}
