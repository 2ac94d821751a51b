//! The compute threads of the workers: how many each has, and which processors they keep to.

use super::config::Config;
use crate::sys::processors;

/// What the workers share out among them.
pub(super) struct Compute {
    /// Threads of each worker.
    pub(super) threads: u16,
    /// Processors for all of them; none leaves the threads to the system.
    processors: Vec<u16>,
}

impl Compute {
    /// Asks the machine; not allowed later.
    pub(super) fn new(config: &Config) -> Self {
        let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let allowed = if config.worker.pin { processors::allowed() } else { Ok(Vec::new()) };
        Self::share(config, all, allowed.unwrap_or_default())
    }

    /// Shares `all` threads, unless the configuration says how many; no processors where a quota
    /// says that the time on those `allowed` is shared with others, or where there are too few.
    fn share(config: &Config, all: usize, allowed: Vec<u16>) -> Self {
        let models = config.models.len().max(1);
        let threads = match config.worker.threads {
            0 => u16::try_from((all / models).max(1)).unwrap_or(u16::MAX),
            asked => asked,
        };
        let has_quota = all < allowed.len();
        let is_enough = usize::from(threads) * models <= allowed.len();
        let processors = if is_enough && !has_quota { allowed } else { Vec::new() };
        Self { threads, processors }
    }

    /// Returns a processor for each thread of a worker, or none.
    pub(super) fn processors(&self, worker: usize) -> Vec<u16> {
        let of_workers = self.processors.chunks_exact(usize::from(self.threads).max(1));
        of_workers.into_iter().nth(worker).unwrap_or_default().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Shares six processors among two models.
    fn share(threads: usize, all: usize) -> Compute {
        let text = format!(
            "[[model]]\nfile = \"a.gguf\"\n[[model]]\nfile = \"b.gguf\"\n[worker]\nthreads = {threads}\n"
        );
        let config = Config::parse(Path::new("/c/cloister.toml"), &text, true, None).unwrap();
        Compute::share(&config, all, vec![0, 2, 4, 1, 3, 5])
    }

    #[test]
    fn workers_have_processors_of_their_own_if_there_are_enough() {
        let compute = share(0, 6);
        assert_eq!(compute.threads, 3);
        assert_eq!((compute.processors(0), compute.processors(1)), (vec![0, 2, 4], vec![1, 3, 5]));
        let compute = share(2, 6);
        assert_eq!((compute.processors(0), compute.processors(1)), (vec![0, 2], vec![4, 1]));
        assert_eq!(share(4, 6).processors(0), Vec::<u16>::new(), "more threads than processors");
        let compute = share(0, 4);
        assert_eq!(compute.threads, 2);
        assert_eq!(compute.processors(0), Vec::<u16>::new(), "a quota");
    }
}
