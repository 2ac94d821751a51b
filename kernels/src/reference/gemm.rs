//! Matrix products in plain Rust; see [`crate::gemm()`] for the formula.

use half::{bf16, f16};

use crate::formats::dequantize;
use crate::gemm::{
    FLOAT_CHUNK_COLS, FloatChunk, INT_CHUNK_BLOCKS, IntChunk, Kernel, Lanes, Sums, TileCols,
};
use crate::packed::{BLOCK_LEN, IntForm, IntTile, Scales, TILE_ROWS};
use crate::quantize::{MAGIC_BITS, Panel};

/// The reference instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Kernel for Plain {
    fn unpack_int(self, tile: &IntTile<'_>, chunk: &mut IntChunk, index: usize) {
        let scales = tile.form.scales;
        let cols = tile.blocks_len() * BLOCK_LEN;
        for row in 0..TILE_ROWS {
            for col in 0..cols {
                chunk.bytes[index][col / 4][row * 4 + col % 4] = tile.byte(row, col);
            }
            for sub in 0..cols / scales.sub_len() {
                let (scale, min) = tile.scale_and_min(row, sub);
                chunk.scales[index][sub][row] = scale;
                if scales.has_min() {
                    chunk.mins[index][sub][row] = min;
                }
            }
        }
    }

    fn multiply_int(
        self,
        form: IntForm,
        tiles: usize,
        chunk: &IntChunk,
        panel: &Panel<'_>,
        sums: &mut [Sums],
    ) {
        for (token, sums) in sums.iter_mut().enumerate() {
            for (lane, sum) in sums[..tiles * TILE_ROWS].iter_mut().enumerate() {
                for block in 0..panel.scales.len() / panel.width {
                    add_block(form.scales, lane, chunk, panel, (block, token), sum);
                }
            }
        }
    }

    fn multiply_one(self, tiles: &[IntTile<'_>], panel: &Panel<'_>, sums: &mut Sums) {
        let mut chunk = IntChunk::zeroed();
        let Some(form) = tiles.first().map(|tile| tile.form) else { return };
        let blocks = panel.scales.len();
        for start in (0..blocks).step_by(INT_CHUNK_BLOCKS) {
            let len = INT_CHUNK_BLOCKS.min(blocks - start);
            for (index, tile) in tiles.iter().enumerate() {
                self.unpack_int(&tile.blocks(start..start + len), &mut chunk, index);
            }
            let panel = panel.blocks(form.scales, start, len);
            let sums = core::slice::from_mut(sums);
            self.multiply_int(form, tiles.len(), &chunk, &panel, sums);
        }
    }

    fn unpack_float(self, tile: &TileCols<'_>, len: usize, chunk: &mut FloatChunk, index: usize) {
        let lanes = &mut chunk.weights[index][..len];
        match *tile {
            TileCols::Int(tile) => {
                for (col, lanes) in lanes.iter_mut().enumerate() {
                    *lanes = core::array::from_fn(|row| tile.weight(row, col));
                }
            }
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
        for (x, sums) in x.iter().zip(sums) {
            for (weights, sums) in
                chunk.weights[..tiles].iter().zip(sums.chunks_exact_mut(TILE_ROWS))
            {
                for (weights, x) in weights.iter().zip(*x) {
                    for (weight, sum) in weights.iter().zip(&mut *sums) {
                        *sum = weight.mul_add(*x, *sum);
                    }
                }
            }
        }
    }
}

/// Adds one block of one (row, token) to its sum.
fn add_block(
    scales: Scales,
    lane: usize,
    chunk: &IntChunk,
    panel: &Panel<'_>,
    (block, token): (usize, usize),
    sum: &mut f32,
) {
    let (index, row) = (lane / TILE_ROWS, lane % TILE_ROWS);
    let subs = BLOCK_LEN / scales.sub_len();
    let at = block * panel.width + token;
    for sub in block * subs..(block + 1) * subs {
        let groups = scales.sub_len() / 4;
        let mut dot = match panel.starts {
            [] => 0,
            starts => starts[sub * panel.width + token] - MAGIC_BITS,
        };
        for group in sub * groups..(sub + 1) * groups {
            let bytes = &chunk.bytes[index][group][row * 4..][..4];
            let quants = &panel.quants[(group * panel.width + token) * 4..][..4];
            let products = bytes.iter().zip(quants).map(|(&b, &q)| i32::from(b) * i32::from(q));
            dot += products.sum::<i32>();
        }
        let steps = dot as f32 * panel.scales[at];
        *sum = steps.mul_add(chunk.scales[index][sub][row], *sum);
    }
    if scales.has_min() {
        *sum = panel.sums[at].mul_add(chunk.mins[index][block][row], *sum);
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
