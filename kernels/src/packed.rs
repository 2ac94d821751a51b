//! The one packed layout of weight matrices, for every instruction set.
//!
//! A matrix is cut into tiles of 16 rows; the last tile is filled up with rows of zeros. A tile
//! holds its planes one after the other, each starting at a multiple of 64 bytes:
//!
//! | plane | for each 32 columns |
//! |---|---|
//! | low bits | 8-bit: 8 groups of 16 rows × 4 columns, a byte each. 4, 5, 6-bit: 4 × 64 bytes, group `2v` in the low and `2v + 1` in the high nibbles |
//! | high bits | 5-bit: 64 bytes (16 rows × 4 columns), group `g` in bit `g`. 6-bit: 2 × 64 bytes, groups `4h..4h + 4` in two bits each |
//! | scales | see [`Scales`] |
//!
//! Bytes are unsigned: `weight = scale * (byte - zero) + minimum`. A 64-byte group is one operand
//! of `vpdpbusd`: a row is a 32-bit lane. Float formats hold one plane, 16 rows for each column.
//! Every other format keeps its rows as the file has them.

use core::ops::Range;

use half::f16;

use crate::formats::{TensorType, dequantize};
use crate::gemm::Precision;
use crate::packed_source::SourceBlock;

/// Rows of a tile: the 32-bit lanes of a 512-bit register.
pub(crate) const TILE_ROWS: usize = 16;
/// Columns that share an activation scale.
pub(crate) const BLOCK_LEN: usize = 32;
/// Columns of a block of the K formats.
pub(crate) const SUPER_LEN: usize = 256;
/// Bytes of a cache line and of a vector.
const LINE: usize = 64;
/// The lower half of each of four bytes.
const NIBBLES: u32 = 0x0F0F_0F0F;

/// How the scale plane of an integer format is laid out, and how a sum is folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    /// A block of 32 columns: `scale: [f16; 16]`.
    Plain,
    /// A block of 32 columns: `scale: [f16; 16]`, `minimum: [f16; 16]`.
    Min,
    /// 256 columns: `d: [f16; 16]`, `dmin: [f16; 16]`, `scale: [[u8; 16]; 8]`,
    /// `minimum: [[u8; 16]; 8]`, one of each for 32 columns; the minimum is `-dmin * minimum`.
    SuperMin,
    /// 256 columns: `d: [f16; 16]`, `scale: [[i8; 16]; 16]`, one for 16 columns.
    SuperPlain,
}

impl Scales {
    /// Bytes in the scale plane, and the columns that they are for.
    pub(crate) const fn step(self) -> (usize, usize) {
        match self {
            Self::Plain => (32, BLOCK_LEN),
            Self::Min => (64, BLOCK_LEN),
            Self::SuperMin => (320, SUPER_LEN),
            Self::SuperPlain => (288, SUPER_LEN),
        }
    }

    /// Columns that share a weight scale.
    pub(crate) const fn sub_len(self) -> usize {
        match self {
            Self::SuperPlain => 16,
            _ => BLOCK_LEN,
        }
    }

    /// Whether weights have a minimum.
    pub(crate) const fn has_min(self) -> bool {
        matches!(self, Self::Min | Self::SuperMin)
    }
}

/// An integer format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IntForm {
    /// Bits of a weight: 4, 5, 6 or 8.
    pub(crate) bits: u32,
    /// The byte that stands for 0, where there is no minimum.
    pub(crate) zero: u8,
    pub(crate) scales: Scales,
}

impl IntForm {
    /// Bytes of low bits for a block of 32 columns.
    const fn low_step(self) -> usize {
        if self.bits == 8 { 512 } else { 256 }
    }

    /// Bytes of high bits for a block of 32 columns.
    const fn high_step(self) -> usize {
        match self.bits {
            5 => 64,
            6 => 128,
            _ => 0,
        }
    }
}

/// What a tile of a format holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Int(IntForm),
    F32,
    F16,
    Bf16,
    /// Rows as in the file.
    Rows,
}

impl Form {
    pub(crate) const fn of(ty: TensorType) -> Self {
        let (bits, zero, scales) = match ty {
            TensorType::F32 => return Self::F32,
            TensorType::F16 => return Self::F16,
            TensorType::BF16 => return Self::Bf16,
            TensorType::Q8_0 => (8, 128, Scales::Plain),
            TensorType::Q4_0 => (4, 8, Scales::Plain),
            TensorType::Q5_0 => (5, 16, Scales::Plain),
            TensorType::Q4_1 => (4, 0, Scales::Min),
            TensorType::Q5_1 => (5, 0, Scales::Min),
            TensorType::Q4_K => (4, 0, Scales::SuperMin),
            TensorType::Q5_K => (5, 0, Scales::SuperMin),
            TensorType::Q6_K => (6, 32, Scales::SuperPlain),
            _ => return Self::Rows,
        };
        Self::Int(IntForm { bits, zero, scales })
    }
}

/// The planes of one tile of an integer format, or of a range of its blocks.
#[derive(Clone, Copy)]
pub(crate) struct IntTile<'a> {
    pub(crate) form: IntForm,
    /// `[blocks][low_step]`
    pub(crate) low: &'a [u8],
    /// `[blocks][high_step]`
    pub(crate) high: &'a [u8],
    /// `[blocks or super-blocks][step]`
    pub(crate) scales: &'a [u8],
}

impl<'a> IntTile<'a> {
    /// Returns the planes of a tile of `cols` columns.
    #[inline]
    pub(crate) fn new(form: IntForm, cols: usize, tile: &'a [u8]) -> Self {
        let blocks = cols / BLOCK_LEN;
        let (step, step_cols) = form.scales.step();
        let (low, rest) = tile.split_at((blocks * form.low_step()).next_multiple_of(LINE));
        let (high, rest) = rest.split_at((blocks * form.high_step()).next_multiple_of(LINE));
        Self { form, low, high, scales: &rest[..cols / step_cols * step] }
    }

    /// Returns a range of the blocks; in a K format it starts and ends between super-blocks.
    #[inline]
    pub(crate) fn blocks(&self, range: Range<usize>) -> Self {
        let part = |plane: &'a [u8], step: usize| &plane[range.start * step..range.end * step];
        let (step, step_cols) = self.form.scales.step();
        let per_step = step_cols / BLOCK_LEN;
        Self {
            form: self.form,
            low: part(self.low, self.form.low_step()),
            high: part(self.high, self.form.high_step()),
            scales: &self.scales[range.start / per_step * step..range.end / per_step * step],
        }
    }

    /// Returns the number of blocks of 32 columns.
    pub(crate) fn blocks_len(&self) -> usize {
        self.low.len() / self.form.low_step()
    }

    /// Returns the bytes of 4 columns, `[row][4]`; `group` counts them from the first block.
    #[inline(always)]
    pub(crate) fn group(&self, group: usize) -> [u8; LINE] {
        let line = |plane: &[u8], at: usize| -> [u8; LINE] {
            *plane[at..].first_chunk().expect("a plane has whole lines")
        };
        let (block, group) = (group / 8, group % 8);
        let low_at = block * self.form.low_step();
        if self.form.bits == 8 {
            return line(self.low, low_at + group * LINE);
        }
        let low = line(self.low, low_at + group / 2 * LINE).map(|x| x >> (group % 2 * 4) & 15);
        let high_at = block * self.form.high_step();
        let (high, mask) = match self.form.bits {
            5 => (line(self.high, high_at).map(|x| x >> group), 1),
            6 => (line(self.high, high_at + group / 4 * LINE).map(|x| x >> (group % 4 * 2)), 3),
            _ => return low,
        };
        core::array::from_fn(|i| low[i] | (high[i] & mask) << 4)
    }

    /// Returns scale and minimum of the sub-block `sub` of a row.
    #[inline(always)]
    pub(crate) fn scale_and_min(&self, row: usize, sub: usize) -> (f32, f32) {
        let half = |at: usize| half_at(self.scales, at + row * 2);
        let byte = |at: usize| self.scales[at + row];
        match self.form.scales {
            Scales::Plain => (half(sub * 32), 0.0),
            Scales::Min => (half(sub * 64), half(sub * 64 + 32)),
            Scales::SuperMin => {
                let (at, sub) = (sub / 8 * 320, sub % 8 * 16);
                let (scale, min) = (byte(at + 64 + sub), byte(at + 192 + sub));
                (half(at) * f32::from(scale), -(half(at + 32) * f32::from(min)))
            }
            Scales::SuperPlain => {
                let (at, sub) = (sub / 16 * 288, sub % 16 * 16);
                (half(at) * f32::from(byte(at + 32 + sub).cast_signed()), 0.0)
            }
        }
    }

    /// Returns the weight that a byte stands for. Exact but for the one rounding that the format
    /// itself prescribes.
    #[inline(always)]
    pub(crate) fn weight_of(&self, byte: u8, scale: f32, min: f32) -> f32 {
        let weight = scale * f32::from(i16::from(byte) - i16::from(self.form.zero));
        if self.form.scales.has_min() { weight + min } else { weight }
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Returns the bytes of one tile of a tiled form, or nothing on overflow.
fn tile_size(form: Form, cols: usize) -> Option<usize> {
    let plane = |count: usize, step: usize| count.checked_mul(step)?.checked_next_multiple_of(LINE);
    match form {
        Form::Int(form) => {
            let blocks = cols / BLOCK_LEN;
            let (step, step_cols) = form.scales.step();
            plane(blocks, form.low_step())?
                .checked_add(plane(blocks, form.high_step())?)?
                .checked_add(plane(cols / step_cols, step)?)
        }
        Form::F32 => plane(cols, TILE_ROWS * 4),
        Form::F16 | Form::Bf16 => plane(cols, TILE_ROWS * 2),
        Form::Rows => None,
    }
}

/// Returns the bytes of a packed matrix: a multiple of 64.
///
/// Nothing if a row is not a whole number of blocks or the size overflows.
#[must_use]
pub fn packed_size(ty: TensorType, rows: usize, cols: usize) -> Option<usize> {
    let row_size = ty.row_size(cols)?;
    match Form::of(ty) {
        Form::Rows => rows.checked_mul(row_size)?.checked_next_multiple_of(LINE),
        form => rows.div_ceil(TILE_ROWS).checked_mul(tile_size(form, cols)?),
    }
}

/// Packs a matrix from the blocks of a GGUF file.
///
/// Shapes: `source: [rows, ty.row_size(cols)]`, `target: [packed_size(ty, rows, cols)]`.
/// Tiles of 16 rows follow each other, so that a tall matrix may be packed in parts of whole
/// tiles, except where the format has no tiles (see the module).
///
/// # Panics
///
/// Panics if a length is wrong.
pub fn pack(ty: TensorType, rows: usize, cols: usize, source: &[u8], target: &mut [u8]) {
    let row_size = ty.row_size(cols).expect("a row is a whole number of blocks");
    assert_eq!(Some(source.len()), rows.checked_mul(row_size), "source is rows of blocks");
    assert_eq!(Some(target.len()), packed_size(ty, rows, cols), "target is packed_size long");
    let form = Form::of(ty);
    if form == Form::Rows || source.is_empty() {
        let (blocks, padding) = target.split_at_mut(source.len());
        blocks.copy_from_slice(source);
        padding.fill(0);
        return;
    }
    let size = target.len() / rows.div_ceil(TILE_ROWS);
    let tiles = source.chunks(row_size * TILE_ROWS).zip(target.chunks_exact_mut(size));
    for (source, tile) in tiles {
        tile.fill(0);
        for (row, source) in source.chunks_exact(row_size).enumerate() {
            match form {
                Form::Int(form) => pack_row(ty, form, row, source, tile),
                Form::F32 => pack_floats::<4>(row, source, tile),
                Form::F16 | Form::Bf16 => pack_floats::<2>(row, source, tile),
                Form::Rows => unreachable!("rows were copied above"),
            }
        }
    }
}

fn pack_floats<const SIZE: usize>(row: usize, source: &[u8], tile: &mut [u8]) {
    let cols = tile.chunks_exact_mut(TILE_ROWS * SIZE);
    for (value, col) in source.chunks_exact(SIZE).zip(cols) {
        col[row * SIZE..][..SIZE].copy_from_slice(value);
    }
}

fn pack_row(ty: TensorType, form: IntForm, row: usize, source: &[u8], tile: &mut [u8]) {
    let blocks = source.len() / ty.block_size() * ty.block_len() / BLOCK_LEN;
    let (low, rest) = tile.split_at_mut((blocks * form.low_step()).next_multiple_of(LINE));
    let (high, scales) = rest.split_at_mut((blocks * form.high_step()).next_multiple_of(LINE));
    let per_source = ty.block_len() / BLOCK_LEN;
    for (i, source) in source.chunks_exact(ty.block_size()).enumerate() {
        let block = SourceBlock::read(ty, source);
        let (step, _) = form.scales.step();
        pack_scales(form.scales, row, &block, &mut scales[i * step..][..step]);
        for (j, bytes) in block.bytes[..ty.block_len()].chunks_exact(BLOCK_LEN).enumerate() {
            let b = i * per_source + j;
            let low = &mut low[b * form.low_step()..][..form.low_step()];
            let high = &mut high[b * form.high_step()..][..form.high_step()];
            pack_bytes(form.bits, row, bytes, low, high);
        }
    }
}

/// Stores the 32 bytes of one row's block.
fn pack_bytes(bits: u32, row: usize, bytes: &[u8], low: &mut [u8], high: &mut [u8]) {
    if bits == 8 {
        for (group, line) in bytes.chunks_exact(4).zip(low.chunks_exact_mut(LINE)) {
            line[row * 4..][..4].copy_from_slice(group);
        }
        return;
    }
    // Four columns at a time, a byte each.
    let quad = |quad: &[u8; 4]| u32::from_le_bytes(*quad);
    let (quads, _) = bytes.as_chunks::<4>();
    for (pair, line) in quads.chunks_exact(2).zip(low.chunks_exact_mut(LINE)) {
        let nibbles = quad(&pair[0]) & NIBBLES | (quad(&pair[1]) & NIBBLES) << 4;
        line[row * 4..][..4].copy_from_slice(&nibbles.to_le_bytes());
    }
    let width = bits as usize - 4;
    let Some(quads_a_line) = 8_usize.checked_div(width) else { return };
    for (quads, line) in quads.chunks_exact(quads_a_line).zip(high.chunks_exact_mut(LINE)) {
        let shifted = quads.iter().enumerate().map(|(i, four)| {
            // What is left of each byte has `width` bits.
            (quad(four) >> 4 & NIBBLES) << (i * width)
        });
        let bits = shifted.fold(0, |bits, four| bits | four);
        line[row * 4..][..4].copy_from_slice(&bits.to_le_bytes());
    }
}

/// Stores one row's scales of a source block.
fn pack_scales(scales: Scales, row: usize, block: &SourceBlock, plane: &mut [u8]) {
    plane[row * 2..][..2].copy_from_slice(&block.d);
    if scales.has_min() {
        plane[32 + row * 2..][..2].copy_from_slice(&block.min);
    }
    match scales {
        Scales::Plain | Scales::Min => {}
        Scales::SuperMin => {
            for sub in 0..8 {
                plane[64 + sub * 16 + row] = block.scales[sub];
                plane[192 + sub * 16 + row] = block.mins[sub];
            }
        }
        Scales::SuperPlain => {
            for sub in 0..16 {
                plane[32 + sub * 16 + row] = block.scales[sub];
            }
        }
    }
}

/// A packed matrix.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    ty: TensorType,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

impl<'a> Packed<'a> {
    /// Views bytes that [`pack`] wrote; nothing if their number is wrong.
    ///
    /// Any content is safe to compute with. Kernels are fastest if `bytes` is 64-byte aligned.
    #[must_use]
    pub fn new(ty: TensorType, rows: usize, cols: usize, bytes: &'a [u8]) -> Option<Self> {
        let fits = packed_size(ty, rows, cols) == Some(bytes.len());
        fits.then_some(Self { ty, rows, cols, bytes })
    }

    /// Returns the number of rows: outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns: inputs.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Returns the format of the weights.
    #[must_use]
    pub fn ty(&self) -> TensorType {
        self.ty
    }

    /// Returns the packed bytes.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Writes the weights of one row, exactly as [`dequantize`] gives them.
    ///
    /// # Panics
    ///
    /// Panics if there is no such row or `out` is not `cols` long.
    pub fn unpack_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "the row exists");
        assert_eq!(out.len(), self.cols, "out is a row");
        let (tile, lane) = (row / TILE_ROWS, row % TILE_ROWS);
        match Form::of(self.ty) {
            Form::Int(_) => {
                let tile = self.int_tile(tile).expect("the form is an integer form");
                let sub_len = tile.form.scales.sub_len();
                for (i, out) in out.chunks_exact_mut(4).enumerate() {
                    let (scale, min) = tile.scale_and_min(lane, i * 4 / sub_len);
                    let bytes = &tile.group(i)[lane * 4..][..4];
                    let weights = bytes.iter().map(|&byte| tile.weight_of(byte, scale, min));
                    out.iter_mut().zip(weights).for_each(|(out, weight)| *out = weight);
                }
            }
            Form::Rows => dequantize(self.ty, self.row_blocks(row, 0..self.cols), out),
            Form::F32 | Form::F16 | Form::Bf16 => {
                let size = self.ty.block_size();
                let cols = self.tile_bytes(tile).chunks_exact(TILE_ROWS * size);
                for (out, col) in out.iter_mut().zip(cols) {
                    dequantize(self.ty, &col[lane * size..][..size], core::slice::from_mut(out));
                }
            }
        }
    }

    pub(crate) fn form(&self) -> Form {
        Form::of(self.ty)
    }

    /// Returns whether a product of this precision reads its activations as bytes.
    pub(crate) fn reads_bytes(&self, precision: Precision) -> bool {
        matches!((self.form(), precision), (Form::Int(_), Precision::Int8))
    }

    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// Returns the bytes of a tile of a tiled format.
    #[inline]
    pub(crate) fn tile_bytes(&self, tile: usize) -> &'a [u8] {
        let size = self.bytes.len() / self.tiles();
        &self.bytes[tile * size..][..size]
    }

    /// Returns the bytes of up to `count` tiles of a tiled format.
    #[inline]
    pub(crate) fn tiles_bytes(&self, first: usize, count: usize) -> &'a [u8] {
        let size = self.bytes.len() / self.tiles();
        &self.bytes[first * size..self.bytes.len().min((first + count) * size)]
    }

    /// Returns the planes of a tile of an integer format.
    pub(crate) fn int_tile(&self, tile: usize) -> Option<IntTile<'a>> {
        match self.form() {
            Form::Int(form) => Some(IntTile::new(form, self.cols, self.tile_bytes(tile))),
            _ => None,
        }
    }

    /// Returns the blocks of some columns of a row of a format without tiles.
    pub(crate) fn row_blocks(&self, row: usize, cols: Range<usize>) -> &'a [u8] {
        let size = |cols: usize| cols / self.ty.block_len() * self.ty.block_size();
        let row = &self.bytes[row * size(self.cols)..][..size(self.cols)];
        &row[size(cols.start)..size(cols.end)]
    }
}
