//! Does work on a row of bundles on all processors, a bounded number ahead of who asks, and hands it out
//! in order.

use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};

use super::Error;

/// Most threads that work.
const THREADS_COUNT_MAX: usize = 16;
/// Bundles that each thread works ahead.
const AHEAD_COUNT: usize = 8;

/// Gives what `work` makes of each number of `range` to `each`, in order, until that fails or returns false.
pub(super) fn in_order<T: Send>(
    range: Range<u64>,
    work: impl Fn(u64) -> Result<T, Error> + Sync,
    mut each: impl FnMut(u64, T) -> Result<bool, Error>,
) -> Result<(), Error> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(THREADS_COUNT_MAX);
    let work = &work;
    std::thread::scope(|scope| {
        let lanes: Vec<Receiver<Result<T, Error>>> = (0..threads as u64)
            .map(|lane| {
                let (sender, receiver) = sync_channel(AHEAD_COUNT);
                let numbers = (range.start + lane..range.end).step_by(threads);
                scope.spawn(move || {
                    for number in numbers {
                        // Nobody listens any more.
                        if sender.send(work(number)).is_err() {
                            return;
                        }
                    }
                });
                receiver
            })
            .collect();
        for (lane, number) in lanes.iter().cycle().zip(range.clone()) {
            let made = lane.recv().map_err(|_| Error::Unavailable)??;
            if !each(number, made)? {
                break;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_comes_in_order_until_it_is_enough_or_fails() {
        let run = |end: u64, bad: u64| {
            let mut seen = Vec::new();
            let work = |n| if n == bad { Err(Error::Random) } else { Ok(n * 2) };
            let done = in_order(3..1000, work, |n, made| {
                assert_eq!(made, n * 2);
                seen.push(n);
                Ok(n < end)
            });
            (done.is_ok(), seen.len())
        };
        assert_eq!(run(u64::MAX, u64::MAX), (true, 997));
        assert_eq!(run(500, u64::MAX), (true, 498));
        assert_eq!(run(u64::MAX, 703), (false, 700));
    }
}
