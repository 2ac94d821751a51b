//! Products of activations with matrices on the card.
//!
//! Whichever kernel runs, a token's result is the same to the bit (`kernels/cuda/README.md`).

use super::buffer::{Buffer, Struct, dim, int, maybe};
use super::{Card, CudaError};
use crate::formats::TensorType;
use crate::packed::{BLOCK_LEN, Packed, TILE_ROWS};

/// Most tokens of a product by `matvec`: from here on weights are read once by `gemm`.
const MATVEC_TOKENS_MAX: usize = 8;
/// Most matrices of a launch of `matvec`.
const MATRICES_MAX: usize = 3;

/// A matrix on the card, as the loader packed it.
#[derive(Debug)]
pub struct Matrix<'c> {
    bytes: Buffer<'c, u8>,
    /// `[rows]`
    bias: Option<Buffer<'c, f32>>,
    ty: TensorType,
    rows: usize,
    cols: usize,
}

impl<'c> Matrix<'c> {
    /// Copies a matrix and its bias to the card.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfMemory`] with what is free.
    ///
    /// # Panics
    ///
    /// Panics if the bias has not one value for each row.
    pub fn new(
        card: &'c Card<'c>,
        packed: &Packed<'_>,
        bias: Option<&[f32]>,
    ) -> Result<Self, CudaError> {
        assert!(bias.is_none_or(|bias| bias.len() == packed.rows()), "a bias for each row");
        Ok(Self {
            bytes: Buffer::of(card, packed.bytes())?,
            bias: bias.map(|bias| Buffer::of(card, bias)).transpose()?,
            ty: packed.ty(),
            rows: packed.rows(),
            cols: packed.cols(),
        })
    }

    /// Returns its outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns its inputs.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn ty(&self) -> TensorType {
        self.ty
    }

    pub(super) fn bytes(&self) -> &Buffer<'c, u8> {
        &self.bytes
    }

    fn argument(&self, card: &Card<'_>, out: &Buffer<'_, f32>) -> Struct {
        Struct::new()
            .with(&self.bytes.pointer(card))
            .with(&maybe(card, self.bias.as_ref()))
            .with(&out.pointer(card))
            .with(&int(self.rows))
            .with(&self.ty.id().to_ne_bytes())
    }
}

/// Returns whether products with a format read activations as bytes.
#[must_use]
pub fn reads_bytes(ty: TensorType) -> bool {
    gemm_of(ty).is_some()
}

/// The kernel for many tokens, and what its shared memory holds of a tile: low bits, high bits, scales.
fn gemm_of(ty: TensorType) -> Option<(&'static str, [usize; 3])> {
    Some(match ty {
        TensorType::Q8_0 => ("gemm_q8_0", [2048, 16, 128]),
        TensorType::Q4_0 => ("gemm_q4_0", [1024, 16, 128]),
        TensorType::Q4_1 => ("gemm_q4_1", [1024, 16, 256]),
        TensorType::Q5_0 => ("gemm_q5_0", [1024, 256, 128]),
        TensorType::Q5_1 => ("gemm_q5_1", [1024, 256, 256]),
        TensorType::Q4_K => ("gemm_q4_k", [1024, 16, 320]),
        TensorType::Q5_K => ("gemm_q5_k", [1024, 256, 320]),
        TensorType::Q6_K => ("gemm_q6_k", [1024, 512, 288]),
        _ => return None,
    })
}

/// In which form products read activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forms {
    floats: bool,
    bytes: bool,
}

impl Forms {
    /// Returns what products with these matrices read.
    #[must_use]
    pub fn of(matrices: &[&Matrix<'_>]) -> Self {
        Self {
            floats: matrices.iter().any(|matrix| !reads_bytes(matrix.ty)),
            bytes: matrices.iter().any(|matrix| reads_bytes(matrix.ty)),
        }
    }
}

/// What products read, in either form.
#[derive(Debug)]
pub struct Input<'c> {
    /// `[tokens][cols]`
    floats: Buffer<'c, f32>,
    /// `[tokens][cols]`
    quants: Buffer<'c, i8>,
    /// `[tokens][cols / 32]`: the bits of a scale, and the sums of its quants.
    scales: Buffer<'c, [u32; 2]>,
}

impl<'c> Input<'c> {
    /// Allocates for so many tokens of as many columns.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfMemory`] with what is free.
    pub fn new(card: &'c Card<'c>, tokens: usize, cols: usize) -> Result<Self, CudaError> {
        Ok(Self {
            floats: Buffer::new(card, tokens * cols)?,
            quants: Buffer::new(card, tokens * cols)?,
            scales: Buffer::new(card, tokens * cols.div_ceil(BLOCK_LEN))?,
        })
    }

    /// Returns the bytes that it takes.
    #[must_use]
    pub fn size(tokens: usize, cols: usize) -> usize {
        tokens * (cols * (size_of::<f32>() + size_of::<i8>()) + cols.div_ceil(BLOCK_LEN) * 8)
    }

    /// Zeroes it.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    pub fn erase(&mut self) -> Result<(), CudaError> {
        self.floats.erase()?;
        self.quants.erase()?;
        self.scales.erase()
    }

    /// `Out` of `norm.cu`, for so many tokens of as many columns.
    pub(super) fn out(&self, card: &Card<'_>, forms: Forms, tokens: usize, cols: usize) -> Struct {
        self.floats.has(tokens * cols);
        assert!(!forms.bytes || cols.is_multiple_of(BLOCK_LEN), "bytes come in whole blocks");
        Struct::new()
            .with(&maybe(card, forms.floats.then_some(&self.floats)))
            .with(&maybe(card, forms.bytes.then_some(&self.quants)))
            .with(&maybe(card, forms.bytes.then_some(&self.scales)))
    }
}

/// A matrix, and where its product with the input goes: `[tokens][rows]`.
pub type Product<'a, 'c> = (&'a Matrix<'c>, &'a mut Buffer<'c, f32>);

/// Multiplies the input's tokens with matrices, which all have its columns.
///
/// # Errors
///
/// [`CudaError::Failed`] if the card fails.
///
/// # Panics
///
/// Panics if a shape does not fit.
pub fn multiply(
    card: &Card<'_>,
    input: &Input<'_>,
    tokens: usize,
    products: &mut [Product<'_, '_>],
) -> Result<(), CudaError> {
    let Some(cols) = products.first().map(|(matrix, _)| matrix.cols) else { return Ok(()) };
    input.floats.has(tokens * cols);
    for (matrix, out) in &mut *products {
        assert_eq!(matrix.cols, cols, "products that share an input have its columns");
        out.has(tokens * matrix.rows);
    }
    let by_bytes = |product: &&mut Product<'_, '_>| reads_bytes(product.0.ty);
    if tokens <= MATVEC_TOKENS_MAX {
        let (mut args, mut count, mut tiles) = (Struct::new(), 0, 0);
        for (matrix, out) in products.iter_mut().filter(by_bytes) {
            args = args.with(matrix.argument(card, out).bytes());
            (count, tiles) = (count + 1, tiles + matrix.rows.div_ceil(TILE_ROWS));
        }
        matvec(card, input, (cols, tokens), (args, count, tiles))?;
    } else {
        for (matrix, out) in products.iter_mut().filter(by_bytes) {
            gemm(card, input, tokens, matrix, out)?;
        }
    }
    for (matrix, out) in products.iter_mut().filter(|product| !by_bytes(product)) {
        float_product(card, input, tokens, matrix, out)?;
    }
    Ok(())
}

fn matvec(
    card: &Card<'_>,
    input: &Input<'_>,
    (cols, tokens): (usize, usize),
    (mut products, count, tiles): (Struct, usize, usize),
) -> Result<(), CudaError> {
    if count == 0 {
        return Ok(());
    }
    for _ in count..MATRICES_MAX {
        products = products
            .with(Struct::new().with(&[0; 8]).with(&[0; 8]).with(&[0; 8]).with(&[0; 8]).bytes());
    }
    let (name, at_once) = match tokens {
        1 => ("matvec_1", 1),
        2 => ("matvec_2", 2),
        3 | 4 => ("matvec_4", 4),
        _ => ("matvec_8", 8),
    };
    let grid = [dim(tiles), dim(tokens.div_ceil(at_once)), 1];
    let (quants, scales) = (input.quants.pointer(card), input.scales.pointer(card));
    let products = products.with(&int(count));
    let arguments: [&[u8]; 5] = [products.bytes(), &quants, &scales, &int(cols), &int(tokens)];
    // SAFETY: grid and arguments are those of the README, and the buffers were measured by `multiply`.
    unsafe { card.launch(name, grid, 128, 0, &arguments) }
}

fn gemm(
    card: &Card<'_>,
    input: &Input<'_>,
    tokens: usize,
    matrix: &Matrix<'_>,
    out: &Buffer<'_, f32>,
) -> Result<(), CudaError> {
    let Some((name, [low, high, scales])) = gemm_of(matrix.ty) else { return Ok(()) };
    let shared = 2 * (8 * (low + high + scales) + 11264) + 32768;
    let grid = [dim(tokens.div_ceil(64)), dim(matrix.rows.div_ceil(128)), 1];
    let (quants, scales) = (input.quants.pointer(card), input.scales.pointer(card));
    let (matrix, cols) = (matrix.argument(card, out), int(matrix.cols));
    let arguments: [&[u8]; 5] = [matrix.bytes(), &quants, &scales, &cols, &int(tokens)];
    // SAFETY: as in `matvec`; the shared memory is by the README's formula.
    unsafe { card.launch(name, grid, 256, dim(shared), &arguments) }
}

fn float_product(
    card: &Card<'_>,
    input: &Input<'_>,
    tokens: usize,
    matrix: &Matrix<'_>,
    out: &Buffer<'_, f32>,
) -> Result<(), CudaError> {
    let (name, at_once) = if tokens == 1 { ("float_product_1", 1) } else { ("float_product_8", 8) };
    let grid = [dim(matrix.rows.div_ceil(TILE_ROWS)), dim(tokens.div_ceil(at_once)), 1];
    let (x, cols) = (input.floats.pointer(card), int(matrix.cols));
    let matrix = matrix.argument(card, out);
    let arguments: [&[u8]; 4] = [matrix.bytes(), &x, &cols, &int(tokens)];
    // SAFETY: as in `matvec`.
    unsafe { card.launch(name, grid, 128, 0, &arguments) }
}
