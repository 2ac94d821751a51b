//! A fixed pool of threads that share the tasks of one parallel region at a time.
//!
//! No thread is started and nothing is allocated after [`Pool::new`]. A thread that was late or is slow
//! does fewer of its tasks, and others do the rest (`shares.rs`); a thread that wakes up
//! after the last task was taken never joins the region and nobody waits for it.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use crate::prefetch;
use crate::shares::{Share, Tasks, share_out};

/// Polls before a waiting thread parks: about 10 to 50 µs, longer than the gap between two
/// regions of one layer, shorter than anything a person or a power meter would notice.
const POLLS_BEFORE_PARKING: u32 = 1000;

/// Set in `state` while workers may join the region.
const OPEN: u64 = 1 << 31;
/// The bits of `state` that count the workers inside the region.
const INSIDE: u64 = OPEN - 1;
/// One region further in `state`.
const NEXT_REGION: u64 = 1 << 32;

/// One parallel region: what to call, how often.
#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(Tasks<'_>) + Sync),
}

/// What the caller and the workers share.
struct Shared {
    /// Region number (upper 32 bits), `OPEN`, and the number of workers inside.
    state: AtomicU64,
    /// The job of the open region; written only while `state` is closed and nobody is inside.
    job: UnsafeCell<Option<Job>>,
    /// The tasks of the open region; the caller's first.
    shares: Vec<Share>,
    /// Whether a task of this region panicked on a worker.
    panicked: AtomicBool,
    /// Set while the caller is parked, waiting for the last worker to leave.
    caller_parked: AtomicBool,
    /// Who runs the region.
    caller: Mutex<Option<Thread>>,
    /// Set once, when the pool is dropped.
    stop: AtomicBool,
    /// For each worker, whether it is parked.
    parked: Vec<AtomicBool>,
}

// SAFETY: `job` is the only field that is not `Sync`. It is written by the holder of `Pool::turn`
// while `state` shows a closed region with nobody inside, and read only by threads that joined an
// open region through the compare-and-swap on `state`, which orders the write before the read.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure, and it is not used after the region.
unsafe impl Send for Shared {}

/// A fixed pool of threads; the thread that calls [`Pool::run`] is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held for a region, so that regions of several callers follow each other.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts a pool of `threads` threads, the caller included; returns when all of them run.
    ///
    /// # Panics
    ///
    /// Panics if `threads` is 0 or the system refuses a thread.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self::starting(threads, |_| {})
    }

    /// As [`Pool::new`]; each thread but the caller's first calls `start` with its number, from 1.
    ///
    /// # Panics
    ///
    /// As [`Pool::new`]. A `start` that panics is never waited for in vain: the pool does not
    /// come to be.
    #[must_use]
    pub fn starting(threads: usize, start: impl Fn(usize) + Send + Sync + 'static) -> Self {
        assert!(threads > 0, "a pool has at least the caller's thread");
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            shares: (0..threads).map(|_| Share::empty()).collect(),
            panicked: AtomicBool::new(false),
            caller_parked: AtomicBool::new(false),
            caller: Mutex::new(None),
            stop: AtomicBool::new(false),
            parked: (1..threads).map(|_| AtomicBool::new(false)).collect(),
        });
        // The start of a thread makes system calls that a seccomp filter may forbid afterwards.
        let started = Arc::new(Barrier::new(threads));
        let start = Arc::new(start);
        let workers = (0..threads - 1)
            .map(|index| {
                let (shared, started) = (Arc::clone(&shared), Arc::clone(&started));
                let start = Arc::clone(&start);
                thread::Builder::new()
                    .name(format!("kernels-{}", index + 1))
                    .spawn(move || {
                        start(index + 1);
                        started.wait();
                        work(&shared, index);
                    })
                    .expect("the system gives the threads that it was asked for")
            })
            .collect();
        started.wait();
        Self { shared, turn: Mutex::new(()), workers }
    }

    /// Returns the number of threads, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)` to `task(n_tasks - 1)`, each once, and returns when all have returned.
    ///
    /// Which thread runs a task, and in which order, is open. A task must not call `run` of the
    /// same pool.
    ///
    /// # Panics
    ///
    /// Panics if a task panics, after all threads have left the region, and if tasks are 2^32 or more.
    pub fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.run_each(n_tasks, &|tasks| tasks.for_each(|(index, _)| task(index)));
    }

    /// Calls `task` once on each thread of the pool but the caller's.
    ///
    /// # Panics
    ///
    /// Panics if a call panics, after all have returned.
    pub fn on_each_worker(&self, task: &(dyn Fn() + Sync)) {
        let (all, caller) = (Barrier::new(self.threads()), thread::current().id());
        self.run(self.threads(), &|_| {
            // Nobody comes past it with a second task: each thread takes one.
            all.wait();
            if thread::current().id() != caller {
                task();
            }
        });
    }

    /// As [`Pool::run`], but `work` is called once by each thread that takes part, with the
    /// tasks that come to this thread.
    ///
    /// # Panics
    ///
    /// Panics if a call panics, after all threads have left the region.
    pub(crate) fn run_each(&self, n_tasks: usize, work: &(dyn Fn(Tasks<'_>) + Sync)) {
        if self.workers.is_empty() || n_tasks <= 1 {
            let share = [Share::empty()];
            share_out(&share, n_tasks);
            return work(Tasks::of(&share, 0));
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.open(n_tasks, work);
        let tasks = Tasks::of(&self.shared.shares, 0);
        let mine = catch_unwind(AssertUnwindSafe(|| work(tasks)));
        self.close();
        if let Err(cause) = mine {
            resume_unwind(cause);
        }
        assert!(!self.shared.panicked.swap(false, Ordering::Relaxed), "a task panicked");
    }

    /// Publishes the job and wakes the workers that sleep.
    fn open(&self, n_tasks: usize, task: &(dyn Fn(Tasks<'_>) + Sync)) {
        let shared = &*self.shared;
        let task: *const (dyn Fn(Tasks<'_>) + Sync + '_) = task;
        // SAFETY: only the lifetime changes. `close` returns after the last worker has left the
        // region, and `run` calls it on every path, so `task` outlives every use.
        let task: *const (dyn Fn(Tasks<'_>) + Sync + 'static) =
            unsafe { core::mem::transmute(task) };
        // SAFETY: the region is closed and empty, and `turn` is held, so nobody else reads or
        // writes `job` until the store to `state` below.
        unsafe { *shared.job.get() = Some(Job { task }) };
        *shared.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        share_out(&shared.shares, n_tasks);
        let regions = shared.state.load(Ordering::Relaxed) / NEXT_REGION;
        let region = regions.wrapping_add(1).wrapping_mul(NEXT_REGION);
        shared.state.store(region | OPEN, Ordering::SeqCst);
        self.wake_parked();
    }

    /// Lets nobody join any more and waits for those inside.
    fn close(&self) {
        let shared = &*self.shared;
        shared.state.fetch_and(!OPEN, Ordering::SeqCst);
        let is_empty = || shared.state.load(Ordering::SeqCst) & INSIDE == 0;
        wait_until(&shared.caller_parked, is_empty);
    }

    fn wake_parked(&self) {
        for (parked, worker) in self.shared.parked.iter().zip(&self.workers) {
            if parked.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wake_parked();
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its tasks, so it has none of its own to pass on.
            drop(worker.join());
        }
    }
}

impl Shared {
    /// Joins the open region if it is another than `last`; returns its number.
    fn join(&self, last: u64) -> Option<u64> {
        let mut state = self.state.load(Ordering::SeqCst);
        while state & OPEN != 0 && state / NEXT_REGION != last {
            let inside = state + 1;
            match self.state.compare_exchange(state, inside, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Some(state / NEXT_REGION),
                Err(now) => state = now,
            }
        }
        None
    }

    /// Leaves the region, waking the caller if it sleeps and this was the last worker inside.
    fn leave(&self) {
        let before = self.state.fetch_sub(1, Ordering::SeqCst);
        let is_last = before & INSIDE == 1 && before & OPEN == 0;
        if is_last && self.caller_parked.swap(false, Ordering::SeqCst) {
            let caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(caller) = &*caller {
                caller.unpark();
            }
        }
    }
}

/// The life of a worker thread.
fn work(shared: &Shared, index: usize) {
    let mut last = 0;
    loop {
        let is_due = || {
            let state = shared.state.load(Ordering::SeqCst);
            (state & OPEN != 0 && state / NEXT_REGION != last) || shared.stop.load(Ordering::SeqCst)
        };
        wait_until(&shared.parked[index], is_due);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let Some(region) = shared.join(last) else { continue };
        last = region;
        // SAFETY: this thread is inside an open region, so `job` was written before it opened
        // and is not written again before this thread leaves.
        let job = unsafe { *shared.job.get() };
        if let Some(job) = job {
            // SAFETY: the caller of `run` keeps the closure alive until this thread has left.
            let task = unsafe { &*job.task };
            let tasks = Tasks::of(&shared.shares, index + 1);
            let run = AssertUnwindSafe(|| task(tasks));
            if catch_unwind(run).is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
        }
        shared.leave();
    }
}

/// Waits for `is_due`: polls first, then parks; whoever makes it true must look at `parked`.
fn wait_until(parked: &AtomicBool, is_due: impl Fn() -> bool) {
    for _ in 0..POLLS_BEFORE_PARKING {
        if is_due() {
            return;
        }
        core::hint::spin_loop();
    }
    loop {
        parked.store(true, Ordering::SeqCst);
        if is_due() {
            parked.store(false, Ordering::SeqCst);
            return;
        }
        thread::park();
    }
}

/// A slice whose parts are written by different threads, each part by one of them.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Disjoint` gives out `&mut [T]` only through `part`, whose caller promises that no
// two parts overlap; `T: Send` lets another thread write them.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the elements `start..start + len`.
    ///
    /// # Safety
    ///
    /// - No two parts that are alive at the same time overlap.
    ///
    /// # Panics
    ///
    /// Panics if the part ends past the slice.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts do not overlap")]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "a part lies in its slice");
        // SAFETY: the assertion keeps the start in the slice.
        let start = unsafe { self.start.add(start) };
        // SAFETY: the assertion keeps the part in the slice, which is borrowed for `'a`; by the
        // caller's promise no other reference to these elements is alive.
        unsafe { core::slice::from_raw_parts_mut(start, len) }
    }

    /// Asks for the elements `start..start + len` to be near before they are written; for nothing if they
    /// are not in the slice.
    #[inline(always)]
    pub(crate) fn ask(&self, start: usize, len: usize) {
        if start <= self.len && len <= self.len - start {
            prefetch::ask_from(self.start.wrapping_add(start), len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU32, AtomicUsize};

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for threads in 1..=5 {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for n_tasks in [0, 1, 2, 3, 7, 100, 1000] {
                let counts: Vec<AtomicU32> = (0..n_tasks).map(|_| AtomicU32::new(0)).collect();
                pool.run(n_tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn each_worker_is_reached_once_and_the_caller_is_not() {
        for threads in 1..=5 {
            let pool = Pool::new(threads);
            for _ in 0..50 {
                let seen = Mutex::new(Vec::new());
                pool.on_each_worker(&|| seen.lock().unwrap().push(thread::current().id()));
                let mut seen = seen.into_inner().unwrap();
                assert!(!seen.contains(&thread::current().id()));
                seen.sort_by_key(|id| format!("{id:?}"));
                seen.dedup();
                assert_eq!(seen.len(), threads - 1);
            }
        }
    }

    #[test]
    fn many_short_regions_lose_no_task() {
        let pool = Pool::new(3);
        let sum = AtomicUsize::new(0);
        for _ in 0..20_000 {
            pool.run(4, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
        }
        assert_eq!(sum.load(Ordering::Relaxed), 20_000 * 6);
    }

    #[test]
    fn a_parked_pool_wakes_up_and_a_long_task_is_waited_for() {
        let pool = Pool::new(2);
        let done = AtomicU32::new(0);
        for _ in 0..3 {
            // Far more polls than a thread makes before it parks.
            let busy = || (0..POLLS_BEFORE_PARKING * 200).for_each(|_| core::hint::spin_loop());
            busy();
            pool.run(2, &|_| {
                busy();
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(done.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn as_many_tasks_as_threads_run_at_once() {
        let pool = Pool::new(3);
        for _ in 0..10 {
            let all = Barrier::new(3);
            pool.run(3, &|_| {
                all.wait();
            });
        }
    }

    #[test]
    fn callers_on_two_threads_take_turns() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        pool.run(3, &|i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 6000);
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let run = AssertUnwindSafe(|| pool.run(8, &|i| assert!(i != 3)));
        assert!(catch_unwind(run).is_err());
        let count = AtomicU32::new(0);
        pool.run(8, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 8);
    }
}
