//! The tasks of a parallel region, shared out before it begins: neighbours to each thread, whose memory it
//! reads in one stream, and half of what another still has before it to whoever has done its own.
//! No task is run here.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

/// What one thread has still to do, on cache lines of its own: the first task in the upper 32 bits, the end
/// in the lower.
///
/// Tasks that were taken never come back, so that a range that is not empty is found once: nobody
/// can mistake it for an earlier one.
#[repr(align(128))]
pub(crate) struct Share(AtomicU64);

impl Share {
    pub(crate) fn empty() -> Self {
        Self(AtomicU64::new(0))
    }

    fn set(&self, tasks: Range<u32>) {
        self.0.store(pack(tasks), Ordering::Relaxed);
    }

    fn left(&self) -> Range<u32> {
        unpack(self.0.load(Ordering::Relaxed))
    }

    /// Leaves `rest` of what is left, which is returned as it was; nothing if nothing was left.
    fn leave(&self, rest: impl Fn(Range<u32>) -> Range<u32>) -> Option<Range<u32>> {
        let leave =
            |bits| Some(unpack(bits)).filter(|left| !left.is_empty()).map(|left| pack(rest(left)));
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, leave).ok().map(unpack)
    }

    /// Takes the first task.
    fn take_first(&self) -> Option<Range<u32>> {
        self.leave(|left| left.start + 1..left.end)
    }

    /// Takes the last half, or the last task.
    fn take_last_half(&self) -> Option<Range<u32>> {
        let half = |left: &Range<u32>| left.start + (left.end - left.start) / 2;
        let left = self.leave(|left| left.start..half(&left))?;
        Some(half(&left)..left.end)
    }
}

fn pack(tasks: Range<u32>) -> u64 {
    u64::from(tasks.start) << 32 | u64::from(tasks.end)
}

fn unpack(bits: u64) -> Range<u32> {
    (bits >> 32) as u32..bits as u32
}

/// Shares `n_tasks` tasks out to as many threads as there are shares.
///
/// # Panics
///
/// Panics if tasks are 2^32 or more.
pub(crate) fn share_out(shares: &[Share], n_tasks: usize) {
    let n_tasks = u64::from(u32::try_from(n_tasks).expect("a region has fewer than 2^32 tasks"));
    let border = |thread: usize| (n_tasks * thread as u64 / shares.len() as u64) as u32;
    for (thread, share) in shares.iter().enumerate() {
        share.set(border(thread)..border(thread + 1));
    }
}

/// The tasks that come to one thread, each with the one that will likely come after it.
pub(crate) struct Tasks<'a> {
    shares: &'a [Share],
    /// Whose tasks: the index of a share, which this thread alone fills.
    thread: usize,
}

impl<'a> Tasks<'a> {
    /// # Panics
    ///
    /// Panics if there is no share of that thread.
    pub(crate) fn of(shares: &'a [Share], thread: usize) -> Self {
        assert!(thread < shares.len(), "a thread has a share");
        Self { shares, thread }
    }

    /// Makes half of what the richest thread has left this one's; nothing if no thread has any.
    fn take_over(&self) -> Option<Range<u32>> {
        loop {
            let richest = self.shares.iter().max_by_key(|share| share.left().len())?;
            if richest.left().is_empty() {
                return None;
            }
            if let Some(taken) = richest.take_last_half() {
                self.shares[self.thread].set(taken.start + 1..taken.end);
                return Some(taken);
            }
        }
    }
}

impl Iterator for Tasks<'_> {
    type Item = (usize, Option<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let left = self.shares[self.thread].take_first().or_else(|| self.take_over())?;
        let (task, next) = (left.start as usize, left.start as usize + 1);
        Some((task, (next < left.end as usize).then_some(next)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(threads: usize, n_tasks: usize) -> Vec<Share> {
        let shares: Vec<_> = (0..threads).map(|_| Share::empty()).collect();
        share_out(&shares, n_tasks);
        shares
    }

    #[test]
    fn a_thread_does_neighbours_and_then_half_of_what_another_has_left() {
        let shares = shares(2, 16);
        let mut other = Tasks::of(&shares, 1);
        assert_eq!(other.next(), Some((8, Some(9))));
        let tasks: Vec<_> = Tasks::of(&shares, 0).collect();
        let order: Vec<_> = tasks.iter().map(|(task, _)| *task).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15, 10, 11, 9]);
        for (index, (_, next)) in tasks.iter().enumerate() {
            // At the end of what is its own, nobody knows.
            assert!(next.is_none_or(|next| next == order[index + 1]), "task {index}");
        }
        assert_eq!(other.next(), None);
    }

    #[test]
    fn no_thread_takes_two_tasks_while_another_could_be_without_one() {
        for (n_tasks, threads) in [(1, 2), (4, 4), (3, 4), (48, 64), (65, 64)] {
            let shares = shares(threads, n_tasks);
            let mut firsts: Vec<_> = (0..threads)
                .filter_map(|thread| Tasks::of(&shares, thread).next().map(|(task, _)| task))
                .collect();
            assert_eq!(firsts.len(), n_tasks.min(threads), "{n_tasks} tasks, {threads} threads");
            firsts.sort_unstable();
            firsts.dedup();
            assert_eq!(firsts.len(), n_tasks.min(threads), "each is taken once");
        }
    }

    #[test]
    fn threads_that_take_from_each_other_take_each_task_once() {
        use core::sync::atomic::AtomicU32;
        for (threads, n_tasks) in [(2, 5), (2, 30_000), (3, 97), (5, 100_000)] {
            let shares = shares(threads, n_tasks);
            let counts: Vec<AtomicU32> = (0..n_tasks).map(|_| AtomicU32::new(0)).collect();
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let (shares, counts) = (&shares, &counts);
                    scope.spawn(move || {
                        for (task, _) in Tasks::of(shares, thread) {
                            counts[task].fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }
}
