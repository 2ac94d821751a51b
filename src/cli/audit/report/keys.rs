//! What became of each long-term key and of the principals' keys.

use super::super::facts::Area;
use super::super::summary::{Notable, Summary};
use super::chart::{grouped, table};
use super::sections::{lead, notable, paragraph};
use super::words::Set;

/// How often each key was made, used, replaced and destroyed, and each change by itself.
pub(super) fn keys(summary: &Summary) -> String {
    let mut out = lead(
        "As the supervisor made, used, replaced and destroyed them. No key stands in the log: a key that signs is \
         named by its public half, another by a digest.",
    );
    if summary.keys.is_empty() {
        out.push_str(&paragraph("No key was made, used, replaced or destroyed in this period."));
        return out;
    }
    let rows = summary.keys.iter().map(|(key, counts)| {
        let counts = [counts.created, counts.used, counts.rotated, counts.destroyed];
        let name = Set::Keys.say(key).to_owned();
        std::iter::once(name).chain(counts.map(grouped)).collect()
    });
    let heads = ["Key", "Made", "Used", "Replaced", "Destroyed"];
    out.push_str(&table("Keys and what became of them", &heads, rows));
    let is_change = |one: &Notable| one.facts.area == Area::Key;
    out.push_str(&notable(
        summary,
        "Keys made, replaced, destroyed",
        "No key was made, replaced or destroyed in this period.",
        &is_change,
    ));
    out
}
