//! Resource limits from `policy/limits`, compiled in.

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};

use super::{AtStep, Error, Role, Step};

/// One line a limit: process, limit, value, reason.
pub(super) const POLICY: &str = include_str!("../../policy/limits");

/// The limits of one process.
#[derive(Debug)]
pub struct Limits {
    role: Role,
}

impl Limits {
    /// The limits of `role`.
    #[must_use]
    pub fn of(role: Role) -> Self {
        Self { role }
    }

    /// Sets all but the number of processes, which would forbid the child's threads, and the number
    /// of descriptors to exactly `nofile`. A child that `locks_memory` keeps the limit on that, which says
    /// so to it, until it is sealed.
    ///
    /// # Errors
    ///
    /// A limit that the kernel refused.
    pub fn apply_before_exec(&self, nofile: u64, locks_memory: bool) -> Result<(), Error> {
        let is_left = |resource| {
            is_at_seal(resource) || (locks_memory && resource == Resource::RLIMIT_MEMLOCK)
        };
        for (resource, value) in self.lines().filter(|(resource, _)| !is_left(*resource)) {
            setrlimit(resource, value, value).at(Step::Limit)?;
        }
        setrlimit(Resource::RLIMIT_NOFILE, nofile, nofile).at(Step::Limit)
    }

    /// Sets what has to wait for the threads.
    pub(super) fn apply_at_seal(&self) -> Result<(), Error> {
        for (resource, value) in self.lines() {
            // The supervisor has no spawner before it, so all of its limits are set here.
            if is_at_seal(resource) || self.role == Role::Supervisor {
                setrlimit(resource, value, value).at(Step::Limit)?;
            }
        }
        Ok(())
    }

    fn lines(&self) -> impl Iterator<Item = (Resource, u64)> {
        let name = self.role.name();
        POLICY.lines().filter_map(move |line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(name)).then_some(())?;
            // `every_line_is_understood` holds for the compiled-in text.
            Some((resource(words.next()?).ok()?, words.next()?.parse().ok()?))
        })
    }
}

fn is_at_seal(resource: Resource) -> bool {
    resource == Resource::RLIMIT_NPROC
}

fn resource(name: &str) -> Result<Resource, Errno> {
    match name {
        "core" => Ok(Resource::RLIMIT_CORE),
        "fsize" => Ok(Resource::RLIMIT_FSIZE),
        "nproc" => Ok(Resource::RLIMIT_NPROC),
        "memlock" => Ok(Resource::RLIMIT_MEMLOCK),
        "msgqueue" => Ok(Resource::RLIMIT_MSGQUEUE),
        "stack" => Ok(Resource::RLIMIT_STACK),
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood() {
        let lines = || POLICY.lines().filter(|line| !line.starts_with('#'));
        for line in lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert!(resource(words[1]).is_ok(), "{line}");
            assert!(words[2].parse::<u64>().is_ok(), "{line}");
            assert!(words.len() > 3, "no reason: {line}");
        }
        let workers = [Role::Worker, Role::WorkerGpu];
        let roles = [Role::Gateway, Role::Loader, Role::Opener, Role::Supervisor];
        let roles = [&workers[..], &roles].concat();
        let counted: usize = roles.iter().map(|&role| Limits::of(role).lines().count()).sum();
        assert_eq!(counted, lines().count());
    }
}
