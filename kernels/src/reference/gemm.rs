//! Matrix products in plain Rust; see [`crate::gemm()`] for the formula.

use half::{bf16, f16};

use crate::formats::dequantize;
use crate::gemm::{
    FLOAT_CHUNK_COLS, FloatChunk, INT_CHUNK_BLOCKS, IntChunk, Kernel, Lanes, Sums, TileCols,
};
use crate::packed::{BLOCK_LEN, IntForm, IntTile, Scales, TILE_ROWS};
use crate::prefetch::Ahead;
use crate::quantize::{MAGIC_BITS, Panel};

/// Calls `$body`, compiled with the CPU's own fused multiply-add where it has one: the library's
/// is equal by definition and a hundred times slower.
macro_rules! fused {
    ($body:ident, $($arg:ident: $ty:ty = $value:expr),+) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma")]
            fn with_fma($($arg: $ty),+) {
                $body($($arg),+);
            }
            if crate::isa::Avx2Fma::detect().is_some() {
                // SAFETY: the CPU has AVX2 and FMA.
                return unsafe { with_fma($($value),+) };
            }
        }
        $body($($value),+);
    }};
}

/// The reference instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Kernel for Plain {
    fn unpack_int(self, tile: &IntTile<'_>, chunk: &mut IntChunk, index: usize) {
        fused!(
            unpack_int,
            tile: &IntTile<'_> = tile,
            chunk: &mut IntChunk = chunk,
            index: usize = index
        );
    }

    fn multiply_int(
        self,
        form: IntForm,
        tiles: usize,
        chunk: &IntChunk,
        panel: &Panel<'_>,
        _: &mut Ahead<'_>,
        sums: &mut [Sums],
    ) {
        fused!(
            add_int,
            scales: Scales = form.scales,
            tiles: usize = tiles,
            chunk: &IntChunk = chunk,
            panel: &Panel<'_> = panel,
            sums: &mut [Sums] = sums
        );
    }

    const DIRECT_TOKENS: usize = 1;

    fn multiply_direct(
        self,
        tiles: &[IntTile<'_>],
        panels: &[Panel<'_>],
        _: &mut Ahead<'_>,
        sums: &mut [Sums],
    ) {
        let [panel] = panels else { unreachable!("one panel at a time") };
        let mut chunk = IntChunk::zeroed();
        let Some(form) = tiles.first().map(|tile| tile.form) else { return };
        let blocks = panel.scales.len() / panel.width;
        for start in (0..blocks).step_by(INT_CHUNK_BLOCKS) {
            let len = INT_CHUNK_BLOCKS.min(blocks - start);
            for (index, tile) in tiles.iter().enumerate() {
                self.unpack_int(&tile.blocks(start..start + len), &mut chunk, index);
            }
            let panel = panel.blocks(form.scales, start, len);
            self.multiply_int(form, tiles.len(), &chunk, &panel, &mut Ahead::new(&[], 1), sums);
        }
    }

    fn unpack_float(self, tile: &TileCols<'_>, len: usize, chunk: &mut FloatChunk, index: usize) {
        let lanes = &mut chunk.weights[index][..len];
        match *tile {
            TileCols::Int(tile) => fused!(
                unpack_weights,
                tile: IntTile<'_> = tile,
                lanes: &mut [Lanes] = lanes
            ),
            TileCols::F32(bytes) => unpack_each(bytes, f32::from_le_bytes, lanes),
            TileCols::F16(bytes) => unpack_each(bytes, |b| f16::from_le_bytes(b).to_f32(), lanes),
            TileCols::Bf16(bytes) => unpack_each(bytes, |b| bf16::from_le_bytes(b).to_f32(), lanes),
            TileCols::Rows(matrix, first, start) => {
                let mut row = [0.0; FLOAT_CHUNK_COLS];
                for lane in 0..TILE_ROWS {
                    if first + lane < matrix.rows() {
                        let blocks = matrix.row_blocks(first + lane, start..start + len);
                        dequantize(matrix.ty(), blocks, &mut row[..len]);
                    } else {
                        row.fill(0.0);
                    }
                    lanes.iter_mut().zip(&row).for_each(|(lanes, weight)| lanes[lane] = *weight);
                }
            }
        }
    }

    fn multiply_float(self, tiles: usize, chunk: &FloatChunk, x: &[&[f32]], sums: &mut [Sums]) {
        fused!(
            add_float,
            tiles: usize = tiles,
            chunk: &FloatChunk = chunk,
            x: &[&[f32]] = x,
            sums: &mut [Sums] = sums
        );
    }
}

/// Unpacks blocks of a tile into `chunk`, as tile `index` of its unit.
#[inline(always)]
fn unpack_int(tile: &IntTile<'_>, chunk: &mut IntChunk, index: usize) {
    let scales = tile.form.scales;
    let cols = tile.blocks_len() * BLOCK_LEN;
    for (group, bytes) in chunk.bytes[index][..cols / 4].iter_mut().enumerate() {
        *bytes = tile.group(group);
    }
    for row in 0..TILE_ROWS {
        for sub in 0..cols / scales.sub_len() {
            let (scale, min) = tile.scale_and_min(row, sub);
            chunk.scales[index][sub][row] = scale;
            if scales.has_min() {
                chunk.mins[index][sub][row] = min;
            }
        }
    }
}

/// Unpacks the columns of a tile to floats.
#[inline(always)]
fn unpack_weights(tile: IntTile<'_>, lanes: &mut [Lanes]) {
    let sub_len = tile.form.scales.sub_len();
    for (sub, lanes) in lanes.chunks_exact_mut(sub_len).enumerate() {
        let scales: [_; TILE_ROWS] = core::array::from_fn(|row| tile.scale_and_min(row, sub));
        for (i, lanes) in lanes.chunks_exact_mut(4).enumerate() {
            let bytes = tile.group(sub * sub_len / 4 + i);
            for (row, (scale, min)) in scales.iter().enumerate() {
                for (col, lanes) in lanes.iter_mut().enumerate() {
                    lanes[row] = tile.weight_of(bytes[row * 4 + col], *scale, *min);
                }
            }
        }
    }
}

/// Adds the first blocks of `chunk` times `panel` to the sums of each token.
#[inline(always)]
fn add_int(scales: Scales, tiles: usize, chunk: &IntChunk, panel: &Panel<'_>, sums: &mut [Sums]) {
    for (token, sums) in sums.iter_mut().enumerate() {
        for index in 0..tiles {
            let sums = sums[index * TILE_ROWS..].first_chunk_mut().expect("a tile has 16 sums");
            for block in 0..panel.scales.len() / panel.width {
                add_block(scales, index, chunk, panel, (block, token), sums);
            }
        }
    }
}

/// Adds one block of one tile and token to its sums.
#[inline(always)]
fn add_block(
    scales: Scales,
    index: usize,
    chunk: &IntChunk,
    panel: &Panel<'_>,
    (block, token): (usize, usize),
    sums: &mut Lanes,
) {
    let subs = BLOCK_LEN / scales.sub_len();
    let groups = scales.sub_len() / 4;
    let at = block * panel.width + token;
    for sub in block * subs..(block + 1) * subs {
        let start = match panel.starts {
            [] => 0,
            starts => starts[sub * panel.width + token] - MAGIC_BITS,
        };
        let mut dots = [start; TILE_ROWS];
        for group in sub * groups..(sub + 1) * groups {
            let bytes = chunk.bytes[index][group].as_chunks::<4>().0;
            let quants = &panel.quants[(group * panel.width + token) * 4..][..4];
            for (dot, bytes) in dots.iter_mut().zip(bytes) {
                let products = bytes.iter().zip(quants).map(|(&b, &q)| i32::from(b) * i32::from(q));
                *dot += products.sum::<i32>();
            }
        }
        for ((sum, dot), scale) in sums.iter_mut().zip(dots).zip(&chunk.scales[index][sub]) {
            *sum = (dot as f32 * panel.scales[at]).mul_add(*scale, *sum);
        }
    }
    if scales.has_min() {
        for (sum, min) in sums.iter_mut().zip(&chunk.mins[index][block]) {
            *sum = panel.sums[at].mul_add(*min, *sum);
        }
    }
}

/// Adds the first columns of `chunk` times the tokens `x` to the sums of each token.
#[inline(always)]
fn add_float(tiles: usize, chunk: &FloatChunk, x: &[&[f32]], sums: &mut [Sums]) {
    for (x, sums) in x.iter().zip(sums) {
        for (weights, sums) in chunk.weights[..tiles].iter().zip(sums.as_chunks_mut().0) {
            let mut lanes: Lanes = *sums;
            for (weights, x) in weights.iter().zip(*x) {
                for (weight, sum) in weights.iter().zip(&mut lanes) {
                    *sum = weight.mul_add(*x, *sum);
                }
            }
            *sums = lanes;
        }
    }
}

/// Unpacks floats of `SIZE` bytes.
fn unpack_each<const SIZE: usize>(
    bytes: &[u8],
    read: impl Fn([u8; SIZE]) -> f32,
    lanes: &mut [Lanes],
) {
    let cells = bytes.chunks_exact(SIZE).zip(lanes.as_flattened_mut());
    for (bytes, weight) in cells {
        *weight = read(*bytes.first_chunk().expect("chunks_exact gives whole floats"));
    }
}
