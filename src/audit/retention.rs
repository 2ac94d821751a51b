//! For how long records are kept: whole bundles go when all their records are old enough, the hashes
//! stay, so that everything else is still proven.
//!
//! What is removed is recorded first; a log whose oldest records are gone without such a record does
//! not verify. No bundle is removed that a durable tile and its hashes do not replace.

use std::path::Path;

use super::Error;
use super::disk::Disk;
use super::merkle::TILE_WIDTH;
use super::record::{Record, RetentionPreset, RetentionTimes};
use super::tiles::{Kind, read_entries, tile_path};

const DAY_S: u64 = 86_400;
/// HIPAA, 45 CFR 164.316(b)(2)(i): documentation is retained for six years.
const SIX_YEARS_S: u64 = 2192 * DAY_S;
/// AI Act, Art. 19(1) and 26(6): logs of a high-risk system are kept for at least six months.
const HALF_YEAR_S: u64 = 183 * DAY_S;
/// GDPR Art. 5(1)(e) asks for a limit; the CNIL (2021-122) takes six months to a year for logs.
const YEAR_S: u64 = 366 * DAY_S;
/// The shortest time that is taken without force: half a year.
pub const RETENTION_FLOOR_S: u64 = 182 * DAY_S;
/// Most bundles that are removed at once.
const BUNDLES_COUNT_MAX: u64 = 256;

/// For how long records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// By whose rules, where a preset was chosen.
    pub preset: Option<RetentionPreset>,
    /// At least, in seconds.
    pub min_s: u64,
    /// At most, where they are removed at all.
    pub max_s: Option<u64>,
}

impl Default for Retention {
    fn default() -> Self {
        Self { preset: None, min_s: SIX_YEARS_S, max_s: None }
    }
}

impl From<Retention> for RetentionTimes {
    fn from(Retention { preset, min_s, max_s }: Retention) -> Self {
        Self { preset, min_s, max_s }
    }
}

impl Retention {
    /// The times of a preset.
    #[must_use]
    pub fn of(preset: RetentionPreset) -> Self {
        let (min_s, max_s) = match preset {
            RetentionPreset::Us => (SIX_YEARS_S, None),
            RetentionPreset::Eu => (HALF_YEAR_S, Some(YEAR_S)),
        };
        Self { preset: Some(preset), min_s, max_s }
    }
}

/// Reads `6y`, `18m` or `200d`; a year has 365.25 days, a month a twelfth of it, rounded up to days.
#[must_use]
pub fn parse_time_s(text: &str) -> Option<u64> {
    let (count, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_plain = !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = count.parse().ok().filter(|&count| is_plain && count <= 100_000)?;
    let days = match unit {
        "y" => (count * 1461).div_ceil(4),
        "m" => (count * 1461).div_ceil(48),
        "d" => count,
        _ => return None,
    };
    Some(days * DAY_S)
}

/// The first bundle whose records are there, of `count` in durable tiles.
pub(super) fn first_kept(folder: &Path, count: u64) -> u64 {
    let is_there = |index: u64| tile_path(folder, Kind::Entries, index, TILE_WIDTH).exists();
    let (mut gone, mut end) = (0, count);
    while gone < end {
        let middle = gone + (end - gone) / 2;
        if is_there(middle) { end = middle } else { gone = middle + 1 }
    }
    gone
}

/// The bundles from `first` on, of `count`, whose records are all older than `before_s`; and whether
/// there may be more.
pub(super) fn old_bundles(
    folder: &Path,
    (first, count): (u64, u64),
    before_s: u64,
) -> Result<(u64, bool), Error> {
    let most = count.min(first + BUNDLES_COUNT_MAX);
    for index in first..most {
        for (at, entry) in
            (index * TILE_WIDTH as u64..).zip(read_entries(folder, index, TILE_WIDTH)?)
        {
            let record: Record =
                serde_json::from_slice(&entry).map_err(|_| Error::RecordMalformed { index: at })?;
            if record.time_s >= before_s {
                return Ok((index, false));
            }
        }
    }
    Ok((most, most < count))
}

/// Removes the records of bundles up to `end`.
pub(super) fn remove(disk: &dyn Disk, folder: &Path, count: u64, end: u64) -> Result<(), Error> {
    for index in first_kept(folder, count)..end {
        let path = tile_path(folder, Kind::Entries, index, TILE_WIDTH);
        disk.remove(&path).map_err(Error::io("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_strictly() {
        assert_eq!(parse_time_s("6y"), Some(2192 * DAY_S));
        assert_eq!(parse_time_s("6m"), Some(183 * DAY_S));
        assert_eq!(parse_time_s("200d"), Some(200 * DAY_S));
        for bad in ["", "y", "6", "6 y", "-6y", "+6y", "6w", "1.5y", "999999999d", "6ÿ"] {
            assert_eq!(parse_time_s(bad), None, "{bad}");
        }
        assert_eq!(parse_time_s("6y"), Some(Retention::default().min_s));
        let (eu, us) = (Retention::of(RetentionPreset::Eu), Retention::of(RetentionPreset::Us));
        assert_eq!((parse_time_s("6m"), parse_time_s("1y")), (Some(eu.min_s), eu.max_s));
        assert_eq!((parse_time_s("6y"), None), (Some(us.min_s), us.max_s));
        assert!(eu.min_s >= RETENTION_FLOOR_S);
    }
}
