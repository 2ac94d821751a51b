//! Asking for memory before it is read. Never changes what is computed.

#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;

/// Bytes of a cache line.
const LINE: usize = 64;

/// How many bytes before they are read a stream's lines are asked for, at most. Measured on Intel: those that
/// are asked for more than 128 KB before are gone again, and a third of the speed with them; less than 16 KB is
/// too late.
const DISTANCE: usize = 96 << 10;

/// What a thread will read, asked for line by line while it works.
///
/// The hardware follows a stream inside a page and loses it at each border of a tile; measured
/// on decoding, asking for what comes takes it from 73 % of the read bandwidth to 95 %.
#[derive(Clone, Copy)]
pub(crate) struct Ahead<'a, T = u8> {
    items: &'a [T],
    /// What is asked for after `items`.
    then: &'a [T],
    /// All their lines, spread over so many steps: those of each step, and the rest of the division.
    lines: usize,
    rest: usize,
    steps: usize,
    /// What is due of one more line, in parts of it as many as steps.
    due: usize,
    cache: Cache,
}

/// Which cache a line is asked into.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cache {
    #[cfg(target_arch = "x86_64")]
    First,
    Second,
}

impl Cache {
    /// Returns the one with which this CPU decodes fastest. Intel's cores keep far more reads to the
    /// second cache in flight than to the first (measured: 15 % faster); AMD's do not, and wait less
    /// for what is in the first.
    fn of_this_cpu() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            static CACHE: OnceLock<Cache> = OnceLock::new();
            *CACHE.get_or_init(|| {
                let vendor = core::arch::x86_64::__cpuid(0);
                let vendor = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
                match vendor.as_flattened() {
                    b"GenuineIntel" => Self::Second,
                    _ => Self::First,
                }
            })
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::Second
    }
}

impl<'a, T> Ahead<'a, T> {
    /// Items of a line.
    const LINE: usize = LINE / size_of::<T>();

    /// Spreads `items` over `steps` steps.
    pub(crate) fn new(items: &'a [T], steps: usize) -> Self {
        Self::of(items, &[], steps)
    }

    /// What is read in `steps` steps is `now`, and then `next`: asks for each part of both a while before.
    pub(crate) fn of_stream(now: &'a [T], next: &'a [T], steps: usize) -> Self {
        let distance = now.len().min(DISTANCE / size_of::<T>());
        Self::of(&now[distance..], &next[..distance.min(next.len())], steps)
    }

    fn of(items: &'a [T], then: &'a [T], steps: usize) -> Self {
        let lines = items.len().div_ceil(Self::LINE) + then.len().div_ceil(Self::LINE);
        let steps = steps.max(1);
        let (lines, rest) = (lines / steps, lines % steps);
        Self { items, then, lines, rest, steps, due: 0, cache: Cache::of_this_cpu() }
    }

    /// Asks for what is due in the next `n` steps, as `n` times [`Self::step`].
    #[inline(always)]
    pub(crate) fn steps(&mut self, n: usize) {
        let due = self.due + n * self.rest;
        self.due = due % self.steps;
        let (lines, cache) = (n * self.lines + due / self.steps, self.cache);
        self.take(lines, |at| fetch(at, lines, cache));
    }

    /// Asks for what is due in the next step: as much as in any other, and no line earlier than its turn.
    ///
    /// A step of a few lines is a few instructions: a line that was worked out on its own took as many as its
    /// products, and a kernel of one token a quarter of its time.
    #[inline(always)]
    pub(crate) fn step(&mut self) {
        self.due += self.rest;
        let is_whole = self.due >= self.steps;
        self.due -= if is_whole { self.steps } else { 0 };
        let (lines, cache) = (self.lines, self.cache);
        self.take(lines + usize::from(is_whole), |at| {
            fetch(at, lines, cache);
            if is_whole {
                fetch_line(at.wrapping_byte_add(lines * LINE), cache);
            }
        });
    }

    /// Takes so many lines off, which `fetch` asks for where they follow one another.
    #[inline(always)]
    fn take(&mut self, lines: usize, fetch: impl FnOnce(*const T)) {
        match self.items.get(lines * Self::LINE..) {
            Some(left) => {
                fetch(self.items.as_ptr());
                self.items = left;
            }
            None => (self.items, self.then) = step_over(self.items, self.then, lines, self.cache),
        }
    }

    /// Returns whether everything was asked for.
    #[cfg(test)]
    pub(crate) fn is_done(&self) -> bool {
        self.items.is_empty() && self.then.is_empty()
    }
}

/// What is asked for while a unit is read whose tiles are read in turns, a part of each: what the
/// same tile has some parts later, and then the next unit's.
///
/// It is asked for from where it is read, a few instructions a part and one a line: between products
/// on tiles, more are felt.
#[derive(Clone, Copy)]
pub(crate) struct Beyond {
    /// Parts of a tile, and how many of them before it is read a part is asked for.
    parts: usize,
    before: usize,
    /// From the unit to the next one, wrapping.
    jump: usize,
}

impl Beyond {
    /// What is read is `now`, in so many parts, and then `next`. Of a shorter `next`, as the last unit of a
    /// matrix may be, something else is asked for too, which does no harm.
    pub(crate) fn new(now: &[u8], next: &[u8], parts: usize) -> Self {
        let before = (DISTANCE * parts / now.len().max(1)).clamp(1, parts.max(1));
        let jump = match next {
            // What was read is asked for once more.
            [] => 0,
            _ => next.as_ptr().addr().wrapping_sub(now.as_ptr().addr()),
        };
        Self { parts, before, jump }
    }

    /// Returns how far behind a part of a plane that has `step` bytes a part lies what is asked for
    /// meanwhile, wrapping.
    #[cfg_attr(
        not(any(test, target_arch = "x86_64")),
        expect(dead_code, reason = "no other CPU here has tiles")
    )]
    #[inline(always)]
    pub(crate) fn of_part(self, part: usize, step: usize) -> usize {
        if part + self.before < self.parts {
            self.before * step
        } else {
            self.jump.wrapping_sub((self.parts - self.before) * step)
        }
    }
}

/// Asks for the lines that lie so far behind `part`, wrapping, into the second cache.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn ask_beyond<T>(part: &[T], distance: usize) {
    let lines = size_of_val(part).div_ceil(LINE);
    fetch(part.as_ptr().wrapping_byte_add(distance), lines, Cache::Second);
}

/// Asks for the lines of `len` items from an address on, wherever that is, all at once, into the first cache.
#[inline(always)]
pub(crate) fn ask_from<T>(at: *const T, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(last) = len.checked_sub(1) {
        fetch(at, len.div_ceil(LINE / size_of::<T>()), Cache::First);
        fetch_line(at.wrapping_add(last), Cache::First);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, len);
}

/// Asks for what lies so many times its length behind a part of what is read, wherever that is, into the first
/// cache.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn ask_near<T>(part: &[T], parts: usize) {
    let at = part.as_ptr().wrapping_add(part.len() * parts);
    fetch(at, size_of_val(part) / LINE, Cache::First);
}

/// Asks for the last lines of `items` and the first of `then`, so many in all; returns what is left.
#[cold]
#[inline(never)]
fn step_over<'a, T>(
    mut items: &'a [T],
    mut then: &'a [T],
    lines: usize,
    cache: Cache,
) -> (&'a [T], &'a [T]) {
    for _ in 0..lines {
        if items.is_empty() {
            items = core::mem::take(&mut then);
        }
        let (line, rest) = items.split_at(Ahead::<T>::LINE.min(items.len()));
        fetch_line(line.as_ptr(), cache);
        items = rest;
    }
    (items, then)
}

/// Asks for so many lines from an address on.
#[inline(always)]
fn fetch<T>(at: *const T, lines: usize, cache: Cache) {
    for line in 0..lines {
        fetch_line(at.wrapping_byte_add(line * LINE), cache);
    }
}

/// Asks for a line.
#[inline(always)]
fn fetch_line<T>(line: *const T, cache: Cache) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        match cache {
            // SAFETY: a prefetch reads nothing and faults nowhere.
            Cache::First => unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) },
            // SAFETY: as above.
            Cache::Second => unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) },
        }
    }
    #[cfg(target_arch = "aarch64")]
    match cache {
        // SAFETY: a prefetch reads nothing and faults nowhere.
        Cache::Second => unsafe {
            core::arch::asm!(
                "prfm pldl2keep, [{line}]",
                line = in(reg) line,
                options(nostack, preserves_flags, readonly),
            );
        },
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = (line, cache);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_asked_for_within_the_steps() {
        for (len, steps) in [(0, 1), (1, 1), (64, 3), (28_416, 48), (1000, 7), (64, 0)] {
            let bytes = vec![0; len];
            let mut ahead = Ahead::new(&bytes, steps);
            (0..steps.max(1)).for_each(|_| ahead.step());
            assert!(ahead.is_done(), "{len} bytes in {steps} steps");
        }
    }

    #[test]
    fn a_stream_is_asked_for_a_while_before_it_is_read() {
        let (unit, long) = (vec![0_u8; 28_416], vec![0; 3 * DISTANCE]);
        for (now, next) in [(&unit, &unit), (&unit, &long), (&long, &unit), (&long, &long)] {
            let distance = now.len().min(DISTANCE);
            for steps in [1, 48, 7000] {
                let mut ahead = Ahead::of_stream(now, next, steps);
                let lines = (now.len() - distance + next.len().min(distance)).div_ceil(LINE);
                for step in 1..=steps {
                    ahead.step();
                    let left = ahead.items.len().div_ceil(LINE) + ahead.then.len().div_ceil(LINE);
                    assert_eq!(lines - left, lines * step / steps, "step {step} of {steps}");
                }
                assert!(ahead.is_done());
            }
        }
        let (mut one_by_one, mut at_once) =
            (Ahead::of_stream(&unit, &long, 50), Ahead::of_stream(&unit, &long, 50));
        for steps in [1, 0, 7, 20, 22] {
            (0..steps).for_each(|_| one_by_one.step());
            at_once.steps(steps);
            let left = |ahead: &Ahead<'_>| (ahead.items.len(), ahead.then.len(), ahead.due);
            assert_eq!(left(&one_by_one), left(&at_once));
        }
        assert!(at_once.is_done());
        let mut ahead = Ahead::of_stream(&unit, &[], 48);
        ahead.steps(48);
        assert!(ahead.is_done(), "the end of a stream");
    }

    /// Reads two units of two tiles each, side by side, with one plane.
    #[test]
    fn each_part_of_the_next_unit_is_asked_for_once_before_it_is_read() {
        for (parts, step) in [(1, 2048), (6, 2048), (35, 512), (56, 320), (56, 2048)] {
            let units = vec![0_u8; 2 * 2 * parts * step];
            let (now, next) = units.split_at(2 * parts * step);
            let start = units.as_ptr().addr();
            // Which part of which tile lies at an address.
            let place = |at: usize| ((at - start) / (parts * step), (at - start) / step % parts);
            let (mut asked, mut farthest) = (Vec::new(), 0);
            for (unit, then) in [(now, next), (next, &[][..])] {
                let beyond = Beyond::new(unit, then, parts);
                for part in 0..parts {
                    for tile in 0..2 {
                        let at = unit.as_ptr().addr() + (tile * parts + part) * step;
                        let (in_tile, target) = place(at.wrapping_add(beyond.of_part(part, step)));
                        asked.push((in_tile, target));
                        let later = (in_tile / 2 * parts + target) * 2 + in_tile % 2;
                        let here = (place(at).0 / 2 * parts + part) * 2 + tile;
                        farthest = farthest.max(later.saturating_sub(here) * step);
                    }
                }
            }
            for tile in [2, 3] {
                for part in 0..parts {
                    let times = asked.iter().filter(|place| **place == (tile, part)).count();
                    let again = usize::from(part < asked_again(parts, step));
                    assert_eq!(times, 1 + again, "{parts} parts, tile {tile}, part {part}");
                }
            }
            assert!((1..=DISTANCE.max(2 * step)).contains(&farthest), "{parts} parts: {farthest}");
        }
    }

    /// Parts of the last unit that are asked for once more at its end, since nothing comes after it.
    fn asked_again(parts: usize, step: usize) -> usize {
        (DISTANCE / (2 * step)).clamp(1, parts)
    }
}
