//! Which records are wanted: by time, event, request, principal, model and outcome.
//!
//! An end record names only its request; its principal and model are those of its begin.

use std::collections::HashMap;

use clap::Args;

use super::facts::Facts;
use super::text::{parse_from, parse_to};
use crate::audit::{Event, Record};

/// Which records are wanted; what is not said, any.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Filter {
    /// Not before: a day, a time in UTC, or a span before now (2026-11-21, 2026-11-21T05:00:00Z, 7d).
    #[arg(long, value_name = "TIME", value_parser = parse_from)]
    pub(super) from: Option<u64>,
    /// Not after.
    #[arg(long, value_name = "TIME", value_parser = parse_to)]
    pub(super) to: Option<u64>,
    /// Only these events (begin, end, end_missing, refused, start, …); may be repeated.
    #[arg(long, value_name = "EVENT")]
    pub(super) event: Vec<String>,
    /// Only this request, in hex; a beginning is enough.
    #[arg(long, value_name = "HEX")]
    pub(super) request: Option<String>,
    /// Only this principal's pseudonym; a beginning is enough.
    #[arg(long, value_name = "HEX")]
    pub(super) principal: Option<String>,
    /// Only this model.
    #[arg(long, value_name = "NAME")]
    pub(super) model: Option<String>,
    /// Only what came out so (stop, length, cancelled, failed, key_invalid, worker_gone, …).
    #[arg(long, value_name = "WORD")]
    pub(super) outcome: Option<String>,
    /// Search the whole log for the time range: needed where the clock was set back by more than a day.
    #[arg(long)]
    pub(super) whole: bool,
}

/// Who a request was of, and which model served it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// The principal's pseudonym.
    pub(super) principal: String,
    /// The model's name.
    pub(super) model: String,
}

/// The requests that began and have not ended, as far as records were seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins(HashMap<String, Origin>);

impl Origins {
    /// Whether a request began and has not ended.
    pub(super) fn is_open(&self, request: &str) -> bool {
        self.0.contains_key(request)
    }

    /// Learns from a record, oldest first; returns the origin of the request that it is about.
    pub(super) fn see(&mut self, event: &Event) -> Option<Origin> {
        match event {
            Event::Begin { request, observed, .. } => {
                let (principal, model) = (observed.principal.clone(), observed.model.clone());
                let origin = Origin { principal, model };
                self.0.insert(request.clone(), origin.clone());
                Some(origin)
            }
            Event::End { request, .. } | Event::EndMissing { request, .. } => {
                self.0.remove(request)
            }
            _ => None,
        }
    }
}

impl Filter {
    /// Whether a record of this time is wanted.
    pub(super) fn wants_time(&self, time_s: u64) -> bool {
        self.from.is_none_or(|from| time_s >= from) && self.to.is_none_or(|to| time_s <= to)
    }

    /// Whether records are told apart by what only a begin says.
    pub(super) fn needs_origin(&self) -> bool {
        self.principal.is_some() || self.model.is_some()
    }

    /// Whether a record is wanted.
    pub(super) fn wants(&self, record: &Record, origin: Option<&Origin>) -> bool {
        let name = record.event.name();
        if !self.wants_time(record.time_s)
            || !(self.event.is_empty() || self.event.iter().any(|event| event == name))
            || !is_start(self.request.as_ref(), record.event.request())
        {
            return false;
        }
        if !self.needs_origin() && self.outcome.is_none() {
            return true;
        }
        let facts = Facts::of(&record.event);
        let principal = facts.principal().or(origin.map(|origin| origin.principal.as_str()));
        let model = facts.model().or(origin.map(|origin| origin.model.as_str()));
        is_start(self.principal.as_ref(), principal)
            && self.model.as_deref().is_none_or(|want| model == Some(want))
            && self.outcome.as_deref().is_none_or(|want| facts.outcome() == Some(want))
    }
}

/// Whether what is wanted, if anything, is the beginning of what is there.
fn is_start(want: Option<&String>, is: Option<&str>) -> bool {
    want.is_none_or(|want| is.is_some_and(|is| is.starts_with(want.as_str())))
}
