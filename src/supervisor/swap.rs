//! Whether memory of the service can be written to a swap device: asked once, at the start; and leave to lock
//! all of it, which the processes then do themselves (`sandbox/memory.rs`).

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use super::error::Error;

/// What is missing where it can.
pub(super) const MISSING: &str = "swap: prompts and weights may be written to a swap device; swapoff -a, or \
     MemorySwapMax=0 in the unit, as the shipped one has";

/// Returns whether swap is on and nothing keeps this process out of it.
pub(super) fn is_possible() -> bool {
    let text = |path: &Path| fs::read_to_string(path).ok();
    let swaps = text(Path::new("/proc/swaps"));
    let group = text(Path::new("/proc/self/cgroup"));
    has_device(swaps.as_deref()) && !is_kept_out(group.as_deref(), &text)
}

/// Lets this process, and those that it starts, lock memory without a limit.
pub(super) fn let_all_lock() -> Result<(), Error> {
    let (resource, all) = (Resource::RLIMIT_MEMLOCK, RLIM_INFINITY);
    let limit = getrlimit(resource).map_or(0, |(_, hard)| hard);
    setrlimit(resource, all, all).map_err(|_| Error::Lock(limit))
}

/// Whether the kernel lists a device; a list that cannot be read is taken for one.
fn has_device(swaps: Option<&str>) -> bool {
    swaps.is_none_or(|swaps| swaps.lines().skip(1).any(|line| !line.trim().is_empty()))
}

/// Whether the process's control group, or one above it, may have no swap.
fn is_kept_out(own: Option<&str>, read: &dyn Fn(&Path) -> Option<String>) -> bool {
    let path = own.and_then(|own| own.lines().find_map(|line| line.strip_prefix("0::/")));
    let Some(path) = path else { return false };
    let groups = Path::new(path).ancestors().map(|group| {
        let mut file = PathBuf::from("/sys/fs/cgroup");
        file.push(group);
        file.push("memory.swap.max");
        file
    });
    groups.into_iter().any(|file| read(&file).is_some_and(|max| max.trim() == "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_counts_unless_a_group_forbids_it() {
        let header = "Filename Type Size Used Priority\n";
        assert!(!has_device(Some(header)));
        assert!(has_device(Some(&format!("{header}/dev/sda2 partition 1 0 -2\n"))));
        assert!(has_device(None));
        let own = Some("1:memory:/x\n0::/system.slice/cloister.service\n");
        let with = |group: &'static str, max: &'static str| {
            move |path: &Path| {
                let file = format!("/sys/fs/cgroup/{group}memory.swap.max");
                (path == Path::new(&file)).then(|| max.to_owned())
            }
        };
        assert!(is_kept_out(own, &with("system.slice/cloister.service/", "0\n")));
        assert!(is_kept_out(own, &with("system.slice/", "0\n")));
        assert!(!is_kept_out(own, &with("system.slice/", "max\n")));
        assert!(!is_kept_out(own, &with("user.slice/", "0\n")));
        assert!(!is_kept_out(Some("1:memory:/x\n"), &with("", "0\n")));
        assert!(!is_kept_out(None, &with("", "0\n")));
    }
}
