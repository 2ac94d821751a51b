//! Proofs about the tree that hold without the log: inclusion, consistency, covers of a range.
//!
//! Nothing here reads a file: nodes come from the caller, and a check needs a proof and a root.
//! Source: RFC 6962 sections 2.1.1 and 2.1.2, RFC 9162 sections 2.1.3.2 and 2.1.4.2.

use std::ops::Range;

use super::Error;
use super::merkle::{Hash, empty_root, node_hash};

/// Most hashes of a proof: a tree has at most 63 levels, and consistency one hash more.
pub const PROOF_LEN_MAX: usize = 64;

/// Gives the root of the perfect subtree that starts at a leaf and has a height.
pub type Nodes<'a> = dyn FnMut(u64, u8) -> Result<Hash, Error> + 'a;

/// The largest power of two below `count`, which is at least 2.
fn split(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

fn height(count: u64) -> u8 {
    u8::try_from(count.ilog2()).unwrap_or(u8::MAX)
}

/// The root over the leaves of `range`, which starts where a subtree of the tree does.
///
/// # Errors
///
/// Those of `nodes`.
pub fn subtree(nodes: &mut Nodes<'_>, range: Range<u64>) -> Result<Hash, Error> {
    let mut start = range.start;
    let mut perfect = Vec::new();
    while start < range.end {
        let count = range.end - start;
        let size = if count.is_power_of_two() { count } else { split(count) };
        perfect.push(nodes(start, height(size))?);
        start += size;
    }
    Ok(fold(perfect))
}

/// Joins the roots of perfect subtrees, each smaller than the one before, to the tree's root.
fn fold(mut perfect: Vec<Hash>) -> Hash {
    let Some(mut root) = perfect.pop() else { return empty_root() };
    while let Some(left) = perfect.pop() {
        root = node_hash(&left, &root);
    }
    root
}

/// The way from leaf `index` to the root of a tree of `size` leaves.
///
/// # Errors
///
/// Those of `nodes`.
///
/// # Panics
///
/// Panics unless `index < size`.
pub fn inclusion(nodes: &mut Nodes<'_>, index: u64, size: u64) -> Result<Vec<Hash>, Error> {
    assert!(index < size);
    let (mut start, mut end) = (0, size);
    let mut path = Vec::new();
    while end - start > 1 {
        let middle = start + split(end - start);
        if index < middle {
            path.push(subtree(nodes, middle..end)?);
            end = middle;
        } else {
            path.push(subtree(nodes, start..middle)?);
            start = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// The root that a leaf and its path lead to; `None` when the path has not the right length.
#[must_use]
pub fn root_of_inclusion(leaf: Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    let mut node = index;
    let mut last = size.checked_sub(1).filter(|last| index <= *last)?;
    let mut root = leaf;
    for sibling in path {
        if last == 0 {
            return None;
        }
        if node & 1 == 1 || node == last {
            root = node_hash(sibling, &root);
            let shift = if node == 0 { 0 } else { node.trailing_zeros() };
            (node, last) = (node >> shift, last >> shift);
        } else {
            root = node_hash(&root, sibling);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    (last == 0).then_some(root)
}

/// What shows that the tree of `old` leaves is the beginning of that of `size`.
///
/// # Errors
///
/// Those of `nodes`.
///
/// # Panics
///
/// Panics unless `old <= size`.
pub fn consistency(nodes: &mut Nodes<'_>, old: u64, size: u64) -> Result<Vec<Hash>, Error> {
    assert!(old <= size);
    let (mut start, mut end, mut is_whole) = (0, size, true);
    let mut path = Vec::new();
    if old == 0 {
        return Ok(path);
    }
    while old != end {
        let middle = start + split(end - start);
        if old <= middle {
            path.push(subtree(nodes, middle..end)?);
            end = middle;
        } else {
            path.push(subtree(nodes, start..middle)?);
            start = middle;
            is_whole = false;
        }
    }
    if !is_whole {
        path.push(subtree(nodes, start..end)?);
    }
    path.reverse();
    Ok(path)
}

/// Whether `path` shows that the tree of `old` is the beginning of that of `new`; each is a size and
/// a root.
#[must_use]
pub fn is_consistent(old: (u64, Hash), new: (u64, Hash), path: &[Hash]) -> bool {
    if old.0 == new.0 {
        return path.is_empty() && old.1 == new.1;
    }
    if old.0 == 0 || old.0 > new.0 {
        return old.0 == 0 && path.is_empty() && old.1 == empty_root();
    }
    let shift = (old.0 - 1).trailing_ones();
    let (mut node, mut last) = ((old.0 - 1) >> shift, (new.0 - 1) >> shift);
    // A perfect old tree is itself the first node.
    let first = if old.0.is_power_of_two() { Some(&old.1) } else { None };
    let mut path = first.into_iter().chain(path);
    let Some(first) = path.next() else { return false };
    let (mut old_root, mut new_root) = (*first, *first);
    for hash in path {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            old_root = node_hash(hash, &old_root);
            new_root = node_hash(hash, &new_root);
            let shift = if node == 0 { 0 } else { node.trailing_zeros() };
            (node, last) = (node >> shift, last >> shift);
        } else {
            new_root = node_hash(&new_root, hash);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    last == 0 && old_root == old.1 && new_root == new.1
}

/// The largest perfect subtrees that lie wholly in `range`, in order: start and height.
#[must_use]
pub fn cover(range: Range<u64>) -> Vec<(u64, u8)> {
    let mut start = range.start;
    let mut found = Vec::new();
    while start < range.end {
        let room = height(range.end - start);
        let aligned = if start == 0 { room } else { start.trailing_zeros().min(63) as u8 };
        let height = room.min(aligned);
        found.push((start, height));
        start += 1 << height;
    }
    found
}

/// Computes a root from leaves and subtrees that come in order.
#[derive(Debug, Default)]
pub struct Roots {
    perfect: Vec<(u8, Hash)>,
    size: u64,
}

impl Roots {
    /// Leaves so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds the next perfect subtree; false when none of this height can stand here.
    #[must_use]
    pub fn push(&mut self, height: u8, hash: Hash) -> bool {
        let is_aligned = height < 63 && self.size.is_multiple_of(1 << height);
        let Some(size) = self.size.checked_add(1 << height).filter(|_| is_aligned) else {
            return false;
        };
        self.size = size;
        let (mut height, mut hash) = (height, hash);
        while let Some((_, left)) = self.perfect.pop_if(|(other, _)| *other == height) {
            hash = node_hash(&left, &hash);
            height += 1;
        }
        self.perfect.push((height, hash));
        true
    }

    /// The root over all that was added.
    #[must_use]
    pub fn root(self) -> Hash {
        fold(self.perfect.into_iter().map(|(_, hash)| hash).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::merkle::{Edge, leaf_hash};
    use super::*;

    fn leaf(index: u64) -> Hash {
        leaf_hash(&index.to_le_bytes())
    }

    fn root(size: u64) -> Hash {
        let mut edge = Edge::default();
        for index in 0..size {
            edge.push(leaf(index));
        }
        edge.root()
    }

    /// A node by its definition, from the leaves.
    fn node(start: u64, height: u8) -> Result<Hash, Error> {
        let mut level: Vec<Hash> = (start..start + (1 << height)).map(leaf).collect();
        while level.len() > 1 {
            level = level.chunks_exact(2).map(|pair| node_hash(&pair[0], &pair[1])).collect();
        }
        Ok(level[0])
    }

    #[test]
    fn inclusion_holds_for_every_leaf_and_for_no_other() {
        for size in 1..=40 {
            let want = root(size);
            for index in 0..size {
                let path = inclusion(&mut node, index, size).unwrap();
                assert_eq!(root_of_inclusion(leaf(index), index, size, &path), Some(want));
                for other in (0..size).filter(|other| *other != index) {
                    assert_ne!(root_of_inclusion(leaf(index), other, size, &path), Some(want));
                    assert_ne!(root_of_inclusion(leaf(other), index, size, &path), Some(want));
                }
                for at in 0..path.len() {
                    let mut bad = path.clone();
                    bad[at][7] ^= 1;
                    assert_ne!(root_of_inclusion(leaf(index), index, size, &bad), Some(want));
                }
                let long: Vec<Hash> = path.iter().copied().chain([want]).collect();
                assert_eq!(root_of_inclusion(leaf(index), index, size, &long), None);
            }
            assert_eq!(root_of_inclusion(leaf(size), size, size, &[]), None);
        }
    }

    #[test]
    fn consistency_holds_between_all_sizes_and_fails_for_a_changed_hash() {
        for size in 1..=40 {
            for old in 1..=size {
                let path = consistency(&mut node, old, size).unwrap();
                let (older, newer) = ((old, root(old)), (size, root(size)));
                assert!(is_consistent(older, newer, &path), "{old} {size}");
                assert!(!is_consistent((old, [1; 32]), newer, &path));
                assert!(!is_consistent(older, (size, [1; 32]), &path));
                for at in 0..path.len() {
                    let mut bad = path.clone();
                    bad[at][0] ^= 1;
                    assert!(!is_consistent(older, newer, &bad), "{old} {size} {at}");
                }
                if !path.is_empty() {
                    assert!(!is_consistent(older, newer, &path[1..]));
                }
            }
        }
    }

    #[test]
    fn a_tree_is_the_same_from_any_mix_of_leaves_and_subtrees() {
        for size in [1, 2, 7, 33, 40] {
            for from in 0..size {
                for to in from..=size {
                    let mut roots = Roots::default();
                    for (start, height) in cover(0..from) {
                        assert!(roots.push(height, node(start, height).unwrap()));
                    }
                    for index in from..to {
                        assert!(roots.push(0, leaf(index)));
                    }
                    for (start, height) in cover(to..size) {
                        assert!(roots.push(height, node(start, height).unwrap()));
                    }
                    assert_eq!(roots.size(), size);
                    assert_eq!(roots.root(), root(size), "{from}..{to} of {size}");
                }
            }
        }
        let mut roots = Roots::default();
        assert!(roots.push(0, [0; 32]));
        assert!(!roots.push(1, [0; 32]) && !roots.push(63, [0; 32]));
    }
}
