//! Counts over the records of a period: what `stats` prints and a report draws.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::facts::{Area, Facts, Weight};
use super::filter::{Filter, Origins};
use super::text::time_text;
use crate::audit::record::RetentionTimes;
use crate::audit::{Event, Record};

/// Most notable records that are kept one by one; the rest is counted.
const NOTABLE_COUNT_MAX: usize = 2000;
/// Most different names that are counted one by one; the rest is counted under [`OTHERS`].
const NAMES_COUNT_MAX: usize = 1000;
/// Where names beyond the limit are counted.
pub(super) const OTHERS: &str = "(others)";
/// Most steps of time that are told apart.
pub(super) const STEPS_COUNT_MAX: u64 = 48;
/// Lengths of a step of time, in seconds.
const STEPS_S: &[u64] = &[
    60, 300, 900, 3600, 10_800, 21_600, 43_200, 86_400, 604_800, 2_419_200, 7_257_600, 31_536_000,
];

/// Counts by name, of bounded size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts(pub(super) BTreeMap<String, u64>);

impl Counts {
    /// Adds to a name's count.
    pub(super) fn add(&mut self, name: &str, count: u64) {
        let is_known = self.0.contains_key(name) || self.0.len() < NAMES_COUNT_MAX;
        let slot = self.0.entry(if is_known { name } else { OTHERS }.to_owned()).or_default();
        *slot = slot.saturating_add(count);
    }

    /// A name's count.
    pub(super) fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// All counts together.
    pub(super) fn sum(&self) -> u64 {
        self.0.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Names and counts, the greatest first.
    pub(super) fn ranked(&self) -> Vec<(&str, u64)> {
        let mut ranked: Vec<_> =
            self.0.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        ranked.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        ranked
    }
}

/// One step of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Requests that began.
    pub(super) requests: u64,
    /// Requests that were refused, keys that open nothing not among them.
    pub(super) refusals: u64,
    /// Keys that open nothing.
    pub(super) failures: u64,
}

/// A record that a reviewer should see by itself.
#[derive(Clone, Debug)]
pub(super) struct Notable {
    /// Its place in the log.
    pub(super) index: u64,
    /// When.
    pub(super) time_s: u64,
    /// The event's name.
    pub(super) event: &'static str,
    /// What it says.
    pub(super) facts: Facts,
}

/// A break in the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimeBreak {
    /// The record after it.
    pub(super) index: u64,
    /// The time before and after.
    pub(super) times_s: (u64, u64),
    /// Whether the machine was started anew between the two.
    pub(super) is_new_boot: bool,
}

/// What became of the keys of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyCounts {
    /// How many were made.
    pub(super) created: u64,
    /// How often they were used.
    pub(super) used: u64,
    /// How often one was replaced.
    pub(super) rotated: u64,
    /// How many were destroyed.
    pub(super) destroyed: u64,
}

/// Counts over the records of a period.
#[derive(Clone, Debug, Default)]
pub(super) struct Summary {
    filter: Filter,
    origins: Origins,
    last: Option<(u64, u64, String)>,
    /// Records of the period.
    pub(super) records: u64,
    /// First and last index, and time, of the period's records.
    pub(super) first_last: Option<[(u64, u64); 2]>,
    /// Records of each event.
    pub(super) events: Counts,
    /// Requests that began, by principal, model and role.
    pub(super) principals: Counts,
    /// By model.
    pub(super) models: Counts,
    /// By role.
    pub(super) roles: Counts,
    /// How requests ended: outcomes, and causes of missing ends.
    pub(super) outcomes: Counts,
    /// Refusals by reason.
    pub(super) refusals: Counts,
    /// Refusals by principal, of those that are known.
    pub(super) refused_principals: Counts,
    /// Keys that open nothing, by cause.
    pub(super) failures: Counts,
    /// Readings of the log, by who.
    pub(super) readers: Counts,
    /// For how long the last start, in the period or before it, keeps records, and when it was.
    pub(super) retention: Option<(u64, RetentionTimes)>,
    /// Uses of long-term keys.
    pub(super) key_uses: Counts,
    /// What became of keys, by their kind.
    pub(super) keys: BTreeMap<String, KeyCounts>,
    /// Tokens of prompts and answers, at most.
    pub(super) tokens_max: [u64; 2],
    /// Records to see by themselves, oldest first.
    pub(super) notable: Vec<Notable>,
    /// Notable records beyond those.
    pub(super) notable_left: u64,
    /// Steps of the clock, back or at another start of the machine.
    pub(super) time_breaks: Vec<TimeBreak>,
    /// Where a step of time begins, and how long it is, in seconds.
    pub(super) step_s: (u64, u64),
    /// The steps of the period.
    pub(super) steps: Vec<Step>,
}

impl Summary {
    /// A summary of `filter`'s period, in steps of time from `from` to `to`.
    pub(super) fn new(filter: Filter, from: u64, to: u64) -> Self {
        let wanted = to.saturating_sub(from) / STEPS_COUNT_MAX + 1;
        let step_s = STEPS_S.iter().copied().find(|step_s| *step_s >= wanted);
        let step_s = step_s.unwrap_or(wanted);
        let start = from - from % step_s;
        let count = (to.saturating_sub(start) / step_s + 1).min(2 * STEPS_COUNT_MAX);
        let steps = vec![Step::default(); usize::try_from(count).unwrap_or(0)];
        Self { filter, step_s: (start, step_s), steps, ..Self::default() }
    }

    /// Counts a record; all of the log come, in order.
    pub(super) fn see(&mut self, index: u64, record: &Record) {
        if self.last.as_ref().is_some_and(|(last, ..)| index <= *last) {
            // The walk over a log that grows meanwhile has started over.
            let (start, step_s) = self.step_s;
            let to = start + step_s * (self.steps.len() as u64).saturating_sub(1);
            let filter = std::mem::take(&mut self.filter);
            *self = Self { step_s: self.step_s, ..Self::new(filter, start, to) };
        }
        if let Event::Start { observed } = &record.event
            && self.filter.to.is_none_or(|to| record.time_s <= to)
        {
            self.retention = observed.retention.map(|times| (record.time_s, times));
        }
        let origin = self.origins.see(&record.event);
        let is_wanted = self.filter.wants(record, origin.as_ref());
        if is_wanted {
            self.count_time(index, record);
            self.count(index, record);
        }
        self.last = Some((index, record.time_s, record.boot.clone()));
    }

    fn count_time(&mut self, index: u64, record: &Record) {
        self.records += 1;
        let here = (index, record.time_s);
        let first = self.first_last.map_or(here, |[first, _]| first);
        self.first_last = Some([first, here]);
        let Some((_, last_s, boot)) = &self.last else { return };
        let is_new_boot = *boot != record.boot;
        if record.time_s < *last_s || is_new_boot {
            let times_s = (*last_s, record.time_s);
            self.time_breaks.push(TimeBreak { index, times_s, is_new_boot });
            self.time_breaks.truncate(NOTABLE_COUNT_MAX);
        }
    }

    fn count(&mut self, index: u64, record: &Record) {
        let facts = Facts::of(&record.event);
        let event = record.event.name();
        self.events.add(event, 1);
        let at = record.time_s.checked_sub(self.step_s.0).map(|since| since / self.step_s.1.max(1));
        let at = at.and_then(|at| usize::try_from(at).ok());
        let mut nowhere = Step::default();
        let step = at.and_then(|at| self.steps.get_mut(at)).unwrap_or(&mut nowhere);
        match (&record.event, facts.outcome()) {
            (Event::Begin { observed, .. }, _) => {
                step.requests += 1;
                self.principals.add(&observed.principal, 1);
                self.models.add(&observed.model, 1);
                self.roles.add(&observed.role, 1);
            }
            (Event::End { .. } | Event::EndMissing { .. }, Some(outcome)) => {
                self.outcomes.add(outcome, 1);
                for (sum, name) in
                    self.tokens_max.iter_mut().zip(["prompt_tokens_max", "completion_tokens_max"])
                {
                    *sum = sum.saturating_add(facts.number(name).unwrap_or(0));
                }
            }
            (Event::AuthenticationFailed { .. }, Some(why)) => {
                step.failures = step.failures.saturating_add(facts.count());
                self.failures.add(why, facts.count());
            }
            (Event::Refused { .. }, Some(why)) => {
                step.refusals = step.refusals.saturating_add(facts.count());
                self.refusals.add(why, facts.count());
                if let Some(principal) = facts.principal() {
                    self.refused_principals.add(principal, facts.count());
                }
            }
            (Event::KeyUsed { .. }, _) => {
                self.key_uses.add(facts.text("key").unwrap_or(OTHERS), facts.count());
            }
            (Event::LogRead { .. }, action) => {
                let uid = facts.number("uid").map_or("?".to_owned(), |uid| uid.to_string());
                let name = format!("uid {uid}, {}", action.unwrap_or("read"));
                self.readers.add(&name, facts.count());
            }
            _ => {}
        }
        self.count_key(&record.event, &facts);
        let is_counted = matches!(facts.area, Area::Request | Area::Access);
        let is_plain = facts.weight == Weight::Plain && event != "child_started";
        if is_plain || is_counted && event != "end_missing" {
            return;
        }
        if self.notable.len() < NOTABLE_COUNT_MAX {
            self.notable.push(Notable { index, time_s: record.time_s, event, facts });
        } else {
            self.notable_left += 1;
        }
    }

    fn count_key(&mut self, event: &Event, facts: &Facts) {
        let Some(key) = facts.text("key").filter(|_| facts.area == Area::Key) else { return };
        let counts = self.keys.entry(key.to_owned()).or_default();
        match event {
            Event::KeyCreated { .. } => counts.created += 1,
            Event::KeyUsed { .. } => counts.used = counts.used.saturating_add(facts.count()),
            Event::KeyRotated { .. } => counts.rotated += 1,
            Event::KeyDestroyed { .. } => counts.destroyed += 1,
            _ => {}
        }
    }

    /// As JSON.
    pub(super) fn to_json(&self) -> Value {
        let times = self.first_last.map(|[first, last]| [time_text(first.1), time_text(last.1)]);
        json!({
            "records": self.records,
            "from_to": times,
            "events": self.events.0,
            "requests_by_principal": self.principals.0,
            "requests_by_model": self.models.0,
            "requests_by_role": self.roles.0,
            "ends": self.outcomes.0,
            "refusals": self.refusals.0,
            "authentication_failures": self.failures.0,
            "key_uses": self.key_uses.0,
            "readings": self.readers.0,
            "prompt_tokens_max": self.tokens_max[0],
            "completion_tokens_max": self.tokens_max[1],
            "clock_steps_back": self.time_breaks.iter().filter(|one| one.times_s.1 < one.times_s.0).count(),
        })
    }
}
