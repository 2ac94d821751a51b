//! Which processors the compute threads take, and taking one.
//!
//! The supervisor asks before its sandbox closes; a worker is told by message and reads nothing.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// This thread, for the calls that take one.
const THIS: Pid = Pid::from_raw(0);

/// Returns the processors that this thread may run on: one of each core, then the others.
///
/// # Errors
///
/// What `sched_getaffinity` says.
pub fn allowed() -> Result<Vec<u16>, Errno> {
    let set = sched_getaffinity(THIS)?;
    let allowed: Vec<u16> = (0..)
        .take(CpuSet::count())
        .filter(|&number| set.is_set(usize::from(number)) == Ok(true))
        .collect();
    Ok(cores_first(&allowed, &siblings))
}

/// Lets this thread run on these processors alone, and with it all threads that it starts.
///
/// # Errors
///
/// What `sched_setaffinity` says; `EINVAL` when none of them is there.
pub fn run_on(processors: &[u16]) -> Result<(), Errno> {
    let mut set = CpuSet::new();
    processors.iter().try_for_each(|&number| set.set(usize::from(number)))?;
    sched_setaffinity(THIS, &set)
}

/// Orders processors by how many of their core come before them.
fn cores_first(allowed: &[u16], siblings: &dyn Fn(u16) -> String) -> Vec<u16> {
    let before = |number: u16| {
        let siblings = parse(&siblings(number));
        siblings.iter().filter(|&&other| other < number && allowed.contains(&other)).count()
    };
    let mut ordered = allowed.to_vec();
    ordered.sort_by_cached_key(|&number| (before(number), number));
    ordered
}

/// What the kernel says of the processors of one core; nothing where it says nothing.
fn siblings(number: u16) -> String {
    let path = format!("/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list");
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Reads a list like `0-1,64`; what is no number is left out.
#[must_use]
pub fn parse(list: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_core_has_a_thread_before_any_has_two() {
        let pairs = |number: u16| format!("{},{}\n", number % 4, number % 4 + 4);
        assert_eq!(cores_first(&[0, 1, 2, 4, 5, 6, 7], &pairs), [0, 1, 2, 7, 4, 5, 6]);
        let neighbours = |number: u16| format!("{}-{}", number / 2 * 2, number / 2 * 2 + 1);
        assert_eq!(cores_first(&[0, 1, 2, 3, 5], &neighbours), [0, 2, 5, 1, 3]);
        assert_eq!(cores_first(&[3, 1], &|_| "?".to_owned()), [1, 3]);
        assert_eq!(parse("0-2,9,x,7-\n"), [0, 1, 2, 9]);
    }

    #[test]
    fn a_thread_runs_where_it_is_put() {
        let all = allowed().unwrap();
        let last = *all.last().unwrap();
        std::thread::spawn(move || {
            run_on(&[last]).unwrap();
            assert_eq!(allowed().unwrap(), [last]);
            assert_eq!(std::thread::spawn(|| allowed().unwrap()).join().unwrap(), [last]);
            assert_eq!(run_on(&[]), Err(Errno::EINVAL));
        })
        .join()
        .unwrap();
        assert_eq!(allowed().unwrap(), all);
    }
}
