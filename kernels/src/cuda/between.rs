//! What lies between the products, on the card: embedding rows, norms, gates, activations as bytes.

use super::batch::Batch;
use super::buffer::{Buffer, dim, int, maybe, size};
use super::products::{Forms, Input, Matrix, reads_bytes};
use super::{Card, CudaError};
use crate::ops::Gate;
use crate::packed::TILE_ROWS;

/// Most parts of an embedding table that are read side by side.
const TABLE_PARTS_MAX: usize = 1024;
/// Bytes of a tile that a block of `embed_scan` reads.
const SCAN_LEN: usize = 128 * 16;
/// Tokens that a pass over the table serves.
const SCAN_TOKENS: usize = 8;
/// Columns of a block of the kernels here.
const COLUMNS: usize = 256;

/// Finds the embedding rows of a batch's tokens, without an address that depends on them.
#[derive(Debug)]
pub struct Embedding<'c> {
    /// `[tokens][tile_size]` bytes: the tiles that the tokens' rows are in.
    found: Buffer<'c, u32>,
}

impl<'c> Embedding<'c> {
    /// Allocates for so many tokens of a table.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfMemory`] with what is free.
    pub fn new(card: &'c Card<'c>, table: &Matrix<'_>, tokens: usize) -> Result<Self, CudaError> {
        let (tile_size, _) = tile_of_matrix(table);
        Ok(Self { found: Buffer::new(card, tokens * tile_size / size_of::<u32>())? })
    }

    /// Returns the bytes that it takes.
    #[must_use]
    pub fn size(packed: &crate::Packed<'_>, tokens: usize) -> usize {
        let (len, rows, cols) = (packed.bytes().len(), packed.rows(), packed.cols());
        tokens * tile_of(packed.ty(), len, rows, cols).0
    }

    /// Zeroes what it keeps of the last batch.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    pub fn erase(&mut self) -> Result<(), CudaError> {
        self.found.erase()
    }

    /// Writes the rows of the batch's tokens, times `scale`, to `out: [tokens][cols]`.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    ///
    /// # Panics
    ///
    /// Panics if a buffer is too short.
    pub fn rows(
        &mut self,
        card: &Card<'_>,
        table: &Matrix<'_>,
        batch: &Batch<'_>,
        scale: f32,
        out: &mut Buffer<'_, f32>,
    ) -> Result<(), CudaError> {
        let (n, cols) = (batch.rows(), table.cols());
        let ((tile_size, shift), table_size) = (tile_of_matrix(table), table.bytes().len());
        out.has(n * cols);
        self.found.has(n * tile_size / size_of::<u32>());
        let pieces = n * tile_size / 16;
        let found = self.found.pointer(card);
        // SAFETY: the pieces are those of the buffer that was measured.
        unsafe {
            card.launch("zero", [dim(pieces.div_ceil(256)), 1, 1], 256, 0, &[&found, &size(pieces)])
        }?;
        let (tokens, shift) = (batch.tokens(card), shift.to_ne_bytes());
        let parts = table_size.div_ceil(tile_size).min(TABLE_PARTS_MAX);
        let grid = [dim(tile_size.div_ceil(SCAN_LEN)), dim(parts), dim(n.div_ceil(SCAN_TOKENS))];
        let (bytes, tile) = (table.bytes().pointer(card), size(tile_size));
        let scan: [&[u8]; 7] = [&bytes, &size(table_size), &tile, &shift, &tokens, &int(n), &found];
        // SAFETY: the table has its size, there is a token and a tile of `found` for each of the batch.
        unsafe { card.launch("embed_scan", grid, 128, 0, &scan) }?;
        let (ty, out, scale) =
            (table.ty().id().to_ne_bytes(), out.pointer(card), scale.to_ne_bytes());
        let grid = [dim(cols.div_ceil(COLUMNS)), dim(n), 1];
        let pick: [&[u8]; 8] = [&ty, &found, &tile, &shift, &int(cols), &tokens, &scale, &out];
        // SAFETY: as above; `out` has a row for each token.
        unsafe { card.launch("embed_rows", grid, 64, 0, &pick) }
    }
}

fn tile_of_matrix(table: &Matrix<'_>) -> (usize, u32) {
    tile_of(table.ty(), table.bytes().len(), table.rows(), table.cols())
}

/// Bytes of a tile of an embedding table, and the shift that tells the tile of a row: `2^shift` rows are a tile.
fn tile_of(ty: crate::TensorType, len: usize, rows: usize, cols: usize) -> (usize, u32) {
    if reads_bytes(ty) || ty.block_len() == 1 {
        return (len / rows.div_ceil(TILE_ROWS).max(1), TILE_ROWS.ilog2());
    }
    // As many rows as are a multiple of 16 bytes.
    let row_size = ty.row_size(cols).expect("a packed matrix has whole blocks");
    let shift = (0..4).find(|shift| (row_size << shift).is_multiple_of(16)).unwrap_or(4);
    (row_size << shift, shift)
}

/// What is added before a norm: a half of a layer, with the weights of its own norm if it has one.
pub type Delta<'a, 'c> = (&'a Buffer<'c, f32>, Option<&'a Buffer<'c, f32>>);

/// Which rows a norm is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Every token of the batch.
    All,
    /// Those whose logits are wanted, in order.
    Wanted,
}

/// Adds `delta` to the rows of `x`, and writes their norms to `input`, in the forms that are read.
///
/// # Errors
///
/// [`CudaError::Failed`] if the card fails.
///
/// # Panics
///
/// Panics if a shape does not fit.
pub fn add_norm(
    card: &Card<'_>,
    batch: &Batch<'_>,
    rows: Rows,
    x: &mut Buffer<'_, f32>,
    delta: Option<Delta<'_, '_>>,
    (weight, epsilon): (&Buffer<'_, f32>, f32),
    (input, forms): (&mut Input<'_>, Forms),
) -> Result<(), CudaError> {
    let cols = weight.len();
    x.has(batch.rows() * cols);
    let (delta, delta_weight) = match delta {
        Some((delta, weight)) => {
            delta.has(batch.rows() * cols);
            weight.inspect(|weight| weight.has(cols));
            (Some(delta), weight)
        }
        None => (None, None),
    };
    let (count, rows) = match rows {
        Rows::All => (batch.rows(), [0; 8]),
        Rows::Wanted => (batch.wanted_len(), batch.wanted(card)),
    };
    if count == 0 {
        return Ok(());
    }
    let out = input.out(card, forms, count, cols);
    let arguments: [&[u8]; 8] = [
        &x.pointer(card),
        &maybe(card, delta),
        &maybe(card, delta_weight),
        &weight.pointer(card),
        &epsilon.to_ne_bytes(),
        &int(cols),
        &rows,
        out.bytes(),
    ];
    // SAFETY: rows are of the batch, and every buffer was measured.
    unsafe { card.launch("add_norm", [dim(count), 1, 1], 256, 0, &arguments) }
}

/// Writes `x: [tokens][cols]` to `input`, in the forms that are read.
///
/// # Errors
///
/// [`CudaError::Failed`] if the card fails.
///
/// # Panics
///
/// Panics if a buffer is too short.
pub fn quantize(
    card: &Card<'_>,
    (tokens, cols): (usize, usize),
    x: &Buffer<'_, f32>,
    (input, forms): (&mut Input<'_>, Forms),
) -> Result<(), CudaError> {
    x.has(tokens * cols);
    let out = input.out(card, forms, tokens, cols);
    let grid = [dim(cols.div_ceil(COLUMNS)), dim(tokens), 1];
    // SAFETY: every buffer was measured.
    unsafe { card.launch("quantize", grid, 256, 0, &[&x.pointer(card), &int(cols), out.bytes()]) }
}

/// Writes `activation(gate) * up`, `[tokens][cols]`, to `input`, in the forms that are read.
///
/// # Errors
///
/// [`CudaError::Failed`] if the card fails.
///
/// # Panics
///
/// Panics if a buffer is too short.
pub fn gate(
    card: &Card<'_>,
    (tokens, cols): (usize, usize),
    (gates, up, kind): (&Buffer<'_, f32>, &Buffer<'_, f32>, Gate),
    (input, forms): (&mut Input<'_>, Forms),
) -> Result<(), CudaError> {
    gates.has(tokens * cols);
    up.has(tokens * cols);
    let out = input.out(card, forms, tokens, cols);
    let kind = int(match kind {
        Gate::Silu => 0,
        Gate::GeluTanh => 1,
    });
    let grid = [dim(cols.div_ceil(COLUMNS)), dim(tokens), 1];
    let arguments: [&[u8]; 5] =
        [&gates.pointer(card), &up.pointer(card), &kind, &int(cols), out.bytes()];
    // SAFETY: every buffer was measured.
    unsafe { card.launch("gate", grid, 256, 0, &arguments) }
}
