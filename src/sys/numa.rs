//! Memory nodes: which there are, and keeping a process to one.
//!
//! The spawner and the supervisor read them at their start; a child inherits its node and reads
//! nothing.

use std::path::Path;

use nix::errno::Errno;

use super::processors;

/// Where the kernel lists its nodes.
pub const FOLDER: &str = "/sys/devices/system/node";
/// `MPOL_BIND`: memory of these nodes or none.
const BIND: libc::c_int = 2;
/// Most nodes that any kernel is built for.
const COUNT_MAX: usize = 1024;

/// A memory node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its number.
    pub number: u16,
    /// The processors beside it; none for memory alone.
    pub processors: Vec<u16>,
    /// All of its memory.
    pub total_bytes: u64,
    /// What is free or holds nothing but copies of files.
    pub available_bytes: u64,
}

impl Node {
    /// Reads a node from what the kernel says of it; `None` if that is no node.
    #[must_use]
    pub fn parse(name: &str, processors: &str, memory: &str) -> Option<Self> {
        let number = name.strip_prefix("node")?.parse().ok()?;
        let bytes = |key: &str| -> Option<u64> {
            let line = memory.lines().find(|line| line.contains(key))?;
            let kib: u64 = line.split_whitespace().rev().nth(1)?.parse().ok()?;
            kib.checked_mul(1024)
        };
        let total_bytes = bytes(" MemTotal:")?;
        let copies =
            bytes(" FilePages:").unwrap_or(0).saturating_sub(bytes(" Shmem:").unwrap_or(0));
        let available_bytes = bytes(" MemFree:")?.saturating_add(copies).min(total_bytes);
        Some(Self {
            number,
            processors: processors::parse(processors),
            total_bytes,
            available_bytes,
        })
    }
}

/// Returns the nodes that have memory, in order; none where the kernel knows of no nodes.
#[must_use]
pub fn nodes() -> Vec<Node> {
    let folder = Path::new(FOLDER);
    let read = |name: &str| {
        let text = |file| std::fs::read_to_string(folder.join(name).join(file)).ok();
        Node::parse(name, &text("cpulist")?, &text("meminfo")?)
    };
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut nodes: Vec<Node> = names.filter_map(|name| read(&name)).collect();
    nodes.retain(|node| node.total_bytes > 0);
    nodes.sort_by_key(|node| node.number);
    nodes
}

/// Takes all memory of this thread, and of whatever it becomes or starts, from one node: from
/// nowhere else, even when that node is full.
///
/// # Errors
///
/// What `set_mempolicy` says; `EINVAL` when there is no such node, or it has no memory.
pub fn bind_memory(node: u16) -> Result<(), Errno> {
    let mut mask = [0_u64; COUNT_MAX / 64];
    let word = mask.get_mut(usize::from(node / 64)).ok_or(Errno::EINVAL)?;
    *word = 1 << (node % 64);
    // The kernel reads one bit less than it is told.
    let len = COUNT_MAX + 1;
    // SAFETY: the kernel reads `COUNT_MAX` bits of the mask, which has as many.
    let code = unsafe { libc::syscall(libc::SYS_set_mempolicy, BIND, mask.as_ptr(), len) };
    Errno::result(code).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: &str = "\nNode 1 MemTotal:       1000 kB\nNode 1 MemFree:         200 kB\n\
        Node 1 MemUsed:         800 kB\nNode 1 FilePages:       300 kB\nNode 1 Shmem:  40 kB\n";

    #[test]
    fn a_node_is_what_the_kernel_says() {
        let node = Node::parse("node1", "4-6\n", MEMORY).unwrap();
        assert_eq!((node.number, node.processors), (1, vec![4, 5, 6]));
        assert_eq!((node.total_bytes, node.available_bytes), (1000 << 10, 460 << 10));
        assert_eq!(Node::parse("possible", "0", MEMORY), None);
        assert_eq!(Node::parse("node1", "0", "nothing"), None);
        let much = MEMORY.replace("1000", "99999999999999999999");
        assert_eq!(Node::parse("node1", "0", &much), None);
    }

    #[test]
    fn a_thread_keeps_to_a_node_that_is_there() {
        let Some(first) = nodes().first().cloned() else { return };
        std::thread::spawn(move || {
            bind_memory(first.number).unwrap();
            let maps = std::fs::read_to_string("/proc/thread-self/numa_maps").unwrap();
            let bound = format!(" bind:{}", first.number);
            assert!(maps.lines().any(|line| line.contains(&bound)), "{maps}");
            assert_eq!(bind_memory(1023), Err(Errno::EINVAL));
            assert_eq!(bind_memory(u16::MAX), Err(Errno::EINVAL));
        })
        .join()
        .unwrap();
    }
}
