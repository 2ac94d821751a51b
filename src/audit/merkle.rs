//! The Merkle tree of RFC 6962: hashes, and the right edge that appending needs.
//!
//! Nothing here reads or writes files. Source: RFC 6962 section 2.1, C2SP tlog-tiles.

use ring::digest::{Context, SHA256};

/// Hashes of one tile.
pub const TILE_WIDTH: usize = 256;

/// A node of the tree.
pub type Hash = [u8; 32];

/// `leaf = SHA-256(0x00 || record)`.
#[must_use]
pub fn leaf_hash(record: &[u8]) -> Hash {
    hash(0x00, record, &[])
}

/// `node = SHA-256(0x01 || left || right)`.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    hash(0x01, left, right)
}

fn hash(prefix: u8, first: &[u8], second: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(&[prefix]);
    context.update(first);
    context.update(second);
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// Root of a perfect subtree; the count of `hashes` is a power of two.
#[must_use]
pub fn perfect_root(hashes: &[Hash]) -> Hash {
    debug_assert!(hashes.len().is_power_of_two());
    let mut level = hashes.to_vec();
    while level.len() > 1 {
        level = level.chunks_exact(2).map(|pair| node_hash(&pair[0], &pair[1])).collect();
    }
    level[0]
}

/// The root of the empty tree: SHA-256 of nothing.
#[must_use]
pub fn empty_root() -> Hash {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&SHA256, &[]).as_ref());
    out
}

/// A full tile that an append completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullTile {
    /// Tile level; level 0 holds leaf hashes.
    pub level: u8,
    /// Index of the tile in its level.
    pub index: u64,
    /// Its 256 hashes.
    pub hashes: Vec<Hash>,
}

impl FullTile {
    /// Leaves of the tree when it became full.
    #[must_use]
    pub fn end(&self) -> u64 {
        let span = (TILE_WIDTH as u64).saturating_pow(u32::from(self.level) + 1);
        (self.index + 1).saturating_mul(span)
    }
}

/// The right edge of the tree: of each tile level, the hashes of the tile that is not full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    levels: Vec<Vec<Hash>>,
    size: u64,
}

impl Edge {
    /// Returns the edge of a tree whose tiles up to `size` leaves are full; `size` is a
    /// multiple of 256 and `levels` holds, from level 1 on, the hashes of the open tiles.
    #[must_use]
    pub fn of_full_tiles(size: u64, upper_levels: Vec<Vec<Hash>>) -> Self {
        let mut levels = vec![Vec::new()];
        levels.extend(upper_levels);
        Self { levels, size }
    }

    /// Returns the edge of a tree of `size` leaves whose open tiles, from level 0 on, hold `levels`;
    /// `None` unless each holds as many as the size says.
    #[must_use]
    pub fn of_open_tiles(size: u64, levels: Vec<Vec<Hash>>) -> Option<Self> {
        let mut rest = size;
        for level in &levels {
            if level.len() as u64 != rest % TILE_WIDTH as u64 {
                return None;
            }
            rest /= TILE_WIDTH as u64;
        }
        (rest == 0).then_some(Self { levels, size })
    }

    /// Leaves in the tree.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Of each level, the hashes of the open tile.
    #[must_use]
    pub fn open_tiles(&self) -> &[Vec<Hash>] {
        &self.levels
    }

    /// Appends a leaf; returns the tiles that it completed, lowest level first.
    pub fn push(&mut self, leaf: Hash) -> Vec<FullTile> {
        self.size += 1;
        self.carry(leaf, 0)
    }

    /// Appends 256 leaves, whose root is known, behind full tiles; returns the tiles that they
    /// completed, their own first.
    pub fn push_tile(&mut self, leaves: Vec<Hash>, root: Hash) -> Vec<FullTile> {
        debug_assert!(leaves.len() == TILE_WIDTH && self.size.is_multiple_of(TILE_WIDTH as u64));
        self.size += TILE_WIDTH as u64;
        if self.levels.is_empty() {
            self.levels.push(Vec::new());
        }
        let index = self.size / TILE_WIDTH as u64 - 1;
        let mut full = vec![FullTile { level: 0, index, hashes: leaves }];
        full.extend(self.carry(root, 1));
        full
    }

    /// Adds a node to a level, and what it completes to those above.
    fn carry(&mut self, node: Hash, from: u8) -> Vec<FullTile> {
        let mut full = Vec::new();
        let mut carry = node;
        let mut span = (TILE_WIDTH as u64).saturating_pow(u32::from(from) + 1);
        for level in from.. {
            let at = usize::from(level);
            if self.levels.len() == at {
                self.levels.push(Vec::with_capacity(TILE_WIDTH));
            }
            self.levels[at].push(carry);
            if self.levels[at].len() < TILE_WIDTH {
                break;
            }
            let hashes = std::mem::take(&mut self.levels[at]);
            carry = perfect_root(&hashes);
            full.push(FullTile { level, index: self.size / span - 1, hashes });
            span = span.saturating_mul(TILE_WIDTH as u64);
        }
        full
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut perfect = Vec::new();
        for level in self.levels.iter().rev() {
            let mut rest = level.as_slice();
            while !rest.is_empty() {
                let take = 1 << rest.len().ilog2();
                perfect.push(perfect_root(&rest[..take]));
                rest = &rest[take..];
            }
        }
        let Some(mut root) = perfect.pop() else { return empty_root() };
        while let Some(left) = perfect.pop() {
            root = node_hash(&left, &root);
        }
        root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6962's own recursive definition.
    fn definition(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => empty_root(),
            [one] => *one,
            _ => {
                let split = 1 << (leaves.len() - 1).ilog2();
                node_hash(&definition(&leaves[..split]), &definition(&leaves[split..]))
            }
        }
    }

    #[test]
    fn root_is_the_rfc_definition_at_every_size() {
        let leaves: Vec<Hash> = (0..600_u32).map(|i| leaf_hash(&i.to_le_bytes())).collect();
        let mut edge = Edge::default();
        assert_eq!(edge.root(), definition(&[]));
        for (i, leaf) in leaves.iter().enumerate() {
            edge.push(*leaf);
            assert_eq!(edge.root(), definition(&leaves[..=i]), "size {}", i + 1);
        }
    }

    #[test]
    fn whole_tiles_are_appended_like_their_leaves() {
        let (mut one, mut other) = (Edge::default(), Edge::default());
        for tile in 0..300_u32 {
            let leaves: Vec<Hash> =
                (0..256_u32).map(|i| leaf_hash(&(tile * 256 + i).to_le_bytes())).collect();
            let full: Vec<_> = leaves.iter().flat_map(|leaf| one.push(*leaf)).collect();
            let root = perfect_root(&leaves);
            assert_eq!(other.push_tile(leaves, root), full);
            assert_eq!((other.size(), other.root()), (one.size(), one.root()));
        }
    }

    #[test]
    fn an_edge_is_taken_only_if_it_has_the_shape_of_its_size() {
        let mut edge = Edge::default();
        for size in 0..70_000_u32 {
            if size % 511 == 0 {
                let (size, levels) = (edge.size(), edge.open_tiles().to_vec());
                assert_eq!(Edge::of_open_tiles(size, levels.clone()).as_ref(), Some(&edge));
                assert_eq!(Edge::of_open_tiles(size + 1, levels.clone()), None);
                assert_eq!(Edge::of_open_tiles(size + (1 << 24), levels), None);
            }
            edge.push(leaf_hash(&size.to_le_bytes()));
        }
    }

    #[test]
    fn known_answer_of_rfc_6962() {
        // The empty leaf of the certificate-transparency test vectors.
        let want = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d";
        let got: String = leaf_hash(b"").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn full_tiles_come_out_in_order() {
        let mut edge = Edge::default();
        let mut tiles = Vec::new();
        for i in 0..66_000_u32 {
            tiles.extend(edge.push(leaf_hash(&i.to_le_bytes())));
        }
        assert_eq!(tiles.iter().filter(|t| t.level == 0).count(), 257);
        let upper: Vec<_> = tiles.iter().filter(|t| t.level == 1).collect();
        assert_eq!((upper.len(), upper[0].index), (1, 0));
    }
}
