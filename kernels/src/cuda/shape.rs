//! Of what shape a batch is: batches of one shape are computed by the same launches, so that these can be
//! recorded (`step`).
//!
//! Only batches whose tokens all want logits, and attend one by one, have a shape: steps of answers. Their
//! tokens are rounded up to what the products take at once anyway, and the parts of their texts to a power
//! of two, so that there are few shapes.

/// Positions that a block attends to.
pub(super) const SPLIT_LEN: usize = 128;
/// Most rows of a step; more tokens are launched one by one.
const ROWS_MAX: usize = 256;
/// Rows up to here are rounded up to a power of two, more to a multiple of this: a tile of `gemm`.
const TILE_COLUMNS: usize = 64;

/// Of what shape a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tokens, with those that fill them up.
    pub(super) rows: usize,
    /// Parts of the longest text.
    pub(super) splits: usize,
}

/// What shapes are made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    rows: usize,
    splits: usize,
}

impl Bounds {
    /// The bounds of batches of so many tokens and logits, of texts of so many positions.
    pub(super) fn new(tokens: usize, logits: usize, positions: usize) -> Self {
        let splits = positions.div_ceil(SPLIT_LEN).max(1);
        Self { rows: tokens.min(logits).min(ROWS_MAX), splits }
    }

    /// Returns the rows of a step of so many tokens, if they are not too many or none.
    pub(super) fn rows(&self, tokens: usize) -> Option<usize> {
        let rounded = match tokens <= TILE_COLUMNS {
            true => tokens.next_power_of_two(),
            false => tokens.next_multiple_of(TILE_COLUMNS),
        };
        (1..=self.rows).contains(&tokens).then(|| rounded.min(self.rows))
    }

    /// Returns the parts of a text that ends at this position.
    pub(super) fn splits(&self, position: usize) -> usize {
        (position / SPLIT_LEN + 1).next_power_of_two().min(self.splits)
    }

    /// Returns all shapes.
    pub(super) fn shapes(&self) -> Vec<Shape> {
        let mut rows: Vec<_> = (1..=self.rows).filter_map(|tokens| self.rows(tokens)).collect();
        rows.dedup();
        let mut splits: Vec<_> = (0..self.splits).map(|i| self.splits(i * SPLIT_LEN)).collect();
        splits.dedup();
        let with = |rows: usize| splits.iter().map(move |&splits| Shape { rows, splits });
        rows.into_iter().flat_map(with).collect()
    }
}

/// Returns how many parts of a text a token with a window sees, at most.
pub(super) fn splits_of_window(window: usize) -> usize {
    window.saturating_sub(1).div_ceil(SPLIT_LEN) + 1
}
