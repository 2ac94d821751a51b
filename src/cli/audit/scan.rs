//! Goes through the proven records of a log, oldest or newest first, and gives out the wanted ones.
//!
//! A search for a request or a principal needs no index: every record is proven, on all processors, and
//! only those that hold the name are parsed. So nothing that a search leaves out is unproven.
//!
//! A range of time is found by halving over the bundles' first records, widened by a day, so that a
//! clock that was set back by up to a day hides nothing; `--whole` looks at every record.

use std::collections::HashMap;
use std::ops::Range;

use memchr::memmem::Finder;

use super::filter::{Filter, Origin, Origins};
use super::text::DAY_S;
use crate::audit::snapshot::{Swept, parse};
use crate::audit::{Error, Event, Record, Snapshot};

/// Records of a bundle.
const WIDTH: u64 = crate::audit::merkle::TILE_WIDTH as u64;

/// A wanted record.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Its place in the log.
    pub(super) index: u64,
    /// Its bytes.
    pub(super) entry: Vec<u8>,
    /// What they say.
    pub(super) record: Record,
    /// Who the request that it is about was of.
    pub(super) origin: Option<Origin>,
}

/// Ranges of records whose files are not there: pruned, or removed, as `verify` tells.
#[derive(Debug, Default)]
pub(super) struct Absent(Vec<Range<u64>>);

impl Absent {
    fn add(&mut self, bundle: u64, size: u64) {
        let range = bundle * WIDTH..size.min((bundle + 1) * WIDTH);
        let joined =
            self.0.iter_mut().find(|known| known.end == range.start || known.start == range.end);
        match joined {
            Some(known) if known.end == range.start => known.end = range.end,
            Some(known) => known.start = range.start,
            None => self.0.push(range),
        }
    }

    /// Whether nothing is absent but the oldest records: what is pruned is always those.
    pub(super) fn is_oldest_alone(&self) -> bool {
        self.0.iter().all(|range| range.start == 0)
    }

    /// A sentence, if anything is absent.
    pub(super) fn sentence(&self) -> Option<String> {
        let ranges: Vec<String> =
            self.0.iter().map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
        (!ranges.is_empty()).then(|| {
            format!(
                "records {} are not here: pruned or removed; `cloister audit verify` tells which",
                ranges.join(", ")
            )
        })
    }
}

/// The proven records of a bundle; `None` when its file is not there.
fn bundle(
    reader: &mut Snapshot,
    bundle: u64,
    absent: &mut Absent,
) -> Result<Option<Vec<Vec<u8>>>, Error> {
    match reader.entries(bundle) {
        Err(Error::TileMissing { .. }) => {
            absent.add(bundle, reader.size());
            Ok(None)
        }
        entries => entries.map(Some),
    }
}

/// Gives the wanted records to `visit`, oldest first, until it returns false.
///
/// # Errors
///
/// The first record that is not the signed one.
pub(super) fn forward(
    reader: &mut Snapshot,
    filter: &Filter,
    visit: &mut dyn FnMut(Found) -> bool,
) -> Result<Absent, Error> {
    let (mut absent, size) = (Absent::default(), reader.size());
    let mut origins = Origins::default();
    let names = Names::of(filter);
    let range = bundles_of(reader, filter)?;
    reader.sweep(range, &|bytes| names.may_hold(bytes), &mut |at, swept| {
        let entries = match swept {
            Swept::Records(entries) => entries,
            Swept::Other => return Ok(true),
            Swept::Absent => {
                absent.add(at, size);
                return Ok(true);
            }
        };
        for (index, entry) in (at * WIDTH..).zip(entries) {
            let is_far = quick_time(&entry).is_some_and(|time_s| is_far(filter, time_s));
            if is_far || !names.may_want(&entry, &origins) {
                continue;
            }
            let record = parse(&entry, index)?;
            let origin = origins.see(&record.event);
            if filter.wants(&record, origin.as_ref())
                && !visit(Found { index, entry, record, origin })
            {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    Ok(absent)
}

/// The names that are looked for, as bytes: a record without them needs no parsing.
struct Names<'f> {
    request: Option<Finder<'f>>,
    principal: Option<Finder<'f>>,
    begins_request: Finder<'f>,
}

impl<'f> Names<'f> {
    fn of(filter: &'f Filter) -> Self {
        // Only hexadecimal digits stand in a record as they are, whoever wrote it.
        let finder = |name: &'f Option<String>| {
            let name = name.as_ref().filter(|name| name.bytes().all(|b| b.is_ascii_hexdigit()))?;
            (!name.is_empty()).then(|| Finder::new(name.as_bytes()))
        };
        let (request, principal) = (finder(&filter.request), finder(&filter.principal));
        Self { request, principal, begins_request: Finder::new(b"\"request\":\"") }
    }

    /// Whether a bundle may hold a wanted record. An end does not name its principal.
    fn may_hold(&self, bundle: &[u8]) -> bool {
        self.request.as_ref().is_none_or(|name| name.find(bundle).is_some())
    }

    /// Whether a record may be wanted, or the begin of one that is.
    fn may_want(&self, entry: &[u8], origins: &Origins) -> bool {
        let holds = |name: &Finder<'_>| name.find(entry).is_some();
        self.request.as_ref().is_none_or(holds)
            && self.principal.as_ref().is_none_or(|name| {
                holds(name) || self.request_of(entry).is_some_and(|it| origins.is_open(it))
            })
    }

    /// The request that a record is about, as the log writes it.
    fn request_of<'e>(&self, entry: &'e [u8]) -> Option<&'e str> {
        let rest = &entry[self.begins_request.find(entry)? + self.begins_request.needle().len()..];
        let end = rest.iter().position(|&byte| byte == b'"')?;
        std::str::from_utf8(&rest[..end]).ok()
    }
}

/// The newest wanted records, newest first.
///
/// # Errors
///
/// The first record that is not the signed one.
pub(super) fn newest(
    reader: &mut Snapshot,
    filter: &Filter,
    limit: usize,
) -> Result<(Vec<Found>, Absent), Error> {
    let mut absent = Absent::default();
    let mut walk = Newest { filter, found: Vec::new(), waiting: HashMap::new() };
    for at in bundles_of(reader, filter)?.rev() {
        let Some(entries) = bundle(reader, at, &mut absent)? else { continue };
        let end = at * WIDTH + entries.len() as u64;
        for (index, entry) in (at * WIDTH..end).rev().zip(entries.into_iter().rev()) {
            let record = parse(&entry, index)?;
            walk.see(Found { index, entry, record, origin: None });
        }
        if walk.is_done(limit) {
            break;
        }
    }
    let Newest { mut found, waiting, .. } = walk;
    found.extend(waiting.into_values().filter(|end| filter.wants(&end.record, None)));
    found.sort_unstable_by_key(|one| std::cmp::Reverse(one.index));
    found.truncate(limit);
    Ok((found, absent))
}

/// A walk from the newest record to the oldest.
struct Newest<'f> {
    filter: &'f Filter,
    found: Vec<Found>,
    /// Ends whose begin is still to come, by request.
    waiting: HashMap<String, Found>,
}

impl Newest<'_> {
    fn see(&mut self, mut one: Found) {
        match &one.record.event {
            Event::Begin { request, .. } => {
                one.origin = Origins::default().see(&one.record.event);
                if let Some(end) = self.waiting.remove(request) {
                    let origin = one.origin.clone();
                    self.take(Found { origin, ..end });
                }
            }
            Event::End { request, .. } | Event::EndMissing { request, .. } => {
                let request = request.clone();
                if self.filter.wants_time(one.record.time_s)
                    && let Some(other) = self.waiting.insert(request, one)
                {
                    self.take(other);
                }
                return;
            }
            _ => {}
        }
        self.take(one);
    }

    fn take(&mut self, one: Found) {
        if self.filter.wants(&one.record, one.origin.as_ref()) {
            self.found.push(one);
        }
    }

    /// Whether nothing that is still to come can be among the newest `limit`.
    fn is_done(&mut self, limit: usize) -> bool {
        if limit == 0 {
            return true;
        }
        if self.found.len() < limit {
            return false;
        }
        let (_, last, _) =
            self.found.select_nth_unstable_by_key(limit - 1, |one| std::cmp::Reverse(one.index));
        let last = last.index;
        self.waiting.values().all(|end| end.index < last)
    }
}

/// The bundles in which records of the wanted time may stand.
fn bundles_of(reader: &mut Snapshot, filter: &Filter) -> Result<Range<u64>, Error> {
    let all = 0..reader.bundles();
    if filter.whole {
        return Ok(all);
    }
    // The last bundle that begins more than a day too early, and the first that begins as much too late.
    let start = match filter.from {
        Some(from) => halve(reader, all.clone(), &|time_s| time_s.saturating_add(DAY_S) < from)?,
        None => 0,
    };
    let end = match filter.to {
        Some(to) => halve(reader, all.clone(), &|time_s| time_s <= to.saturating_add(DAY_S))?,
        None => all.end,
    };
    Ok(start.saturating_sub(1)..end.max(start))
}

/// The first bundle whose first record's time is not `is_before`, by halving. Absent bundles count as before: the
/// oldest are those that are pruned.
fn halve(
    reader: &mut Snapshot,
    range: Range<u64>,
    is_before: &dyn Fn(u64) -> bool,
) -> Result<u64, Error> {
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = low + (high - low) / 2;
        let first = match reader.entries(middle) {
            Err(Error::TileMissing { .. }) => None,
            entries => entries?.into_iter().next(),
        };
        let time_s = match first {
            Some(entry) => Some(parse(&entry, middle * WIDTH)?.time_s),
            None => None,
        };
        if time_s.is_none_or(is_before) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// Whether a record is out of the time range by more than a request lasts.
fn is_far(filter: &Filter, time_s: u64) -> bool {
    filter.from.is_some_and(|from| time_s.saturating_add(DAY_S) < from)
        || filter.to.is_some_and(|to| time_s > to)
}

/// The time of a record that is written as the log writes it; others are parsed whole.
fn quick_time(entry: &[u8]) -> Option<u64> {
    let rest = entry.strip_prefix(b"{\"v\":1,\"time_s\":")?;
    let len = rest.iter().take(19).position(|byte| !byte.is_ascii_digit())?;
    let (digits, _) = rest
        .split_at_checked(len)
        .filter(|(digits, rest)| !digits.is_empty() && rest[0] == b',')?;
    Some(digits.iter().fold(0, |time_s, digit| time_s * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_time_is_the_parsed_one_or_none() {
        let time = |text: &str| quick_time(text.as_bytes());
        assert_eq!(time("{\"v\":1,\"time_s\":1795237199,\"x\""), Some(1_795_237_199));
        for text in [
            "",
            "{\"v\":1,\"time_s\":",
            "{\"v\":1,\"time_s\":,",
            "{\"v\":1,\"time_s\":12",
            "{\"v\":1,\"time_s\":1.5,",
            "{\"v\":2,\"time_s\":1,",
            "{\"v\":1,\"time_s\":12345678901234567890,",
            "{\"v\":1,\"time_s\":-1,",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
