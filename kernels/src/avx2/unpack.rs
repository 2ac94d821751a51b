//! Packed tiles into registers, half a tile at a time: 8 rows, a row in each 32-bit lane.

use core::arch::x86_64::*;

use crate::gemm::{FloatChunk, IntChunk, Lanes, TileCols};
use crate::packed::{BLOCK_LEN, IntTile, Scales};

/// Half of a line: the bytes of 8 rows.
pub(super) type HalfLine = [u8; 32];
/// Half of a vector: the values of 8 rows.
pub(super) type HalfLanes = [f32; 8];

/// Unpacks the bytes of a block and half a tile: 8 groups of 8 rows × 4 columns.
///
/// `low` and `high` are the block's part of the planes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn block_bytes<const BITS: u32>(
    low: &[HalfLine],
    high: &[HalfLine],
    half: usize,
) -> [__m256i; 8] {
    let mut bytes = [_mm256_setzero_si256(); 8];
    for (group, bytes) in bytes.iter_mut().enumerate() {
        *bytes = group_bytes::<BITS>(low, high, half, group);
    }
    bytes
}

/// Unpacks one group of a block and half a tile.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn group_bytes<const BITS: u32>(
    low: &[HalfLine],
    high: &[HalfLine],
    half: usize,
    group: usize,
) -> __m256i {
    if BITS == 8 {
        return load(&low[group * 2 + half]);
    }
    let pair = load(&low[group / 2 * 2 + half]);
    let shifted = if group.is_multiple_of(2) { pair } else { _mm256_srli_epi16::<4>(pair) };
    let bytes = _mm256_and_si256(shifted, _mm256_set1_epi8(15));
    match BITS {
        5 => {
            let bit = shift_to_bit_4(load(&high[half]), group);
            or_masked(bytes, bit, _mm256_set1_epi8(0x10))
        }
        6 => {
            let bits = shift_to_bit_4(load(&high[group / 4 * 2 + half]), group % 4 * 2);
            or_masked(bytes, bits, _mm256_set1_epi8(0x30))
        }
        _ => bytes,
    }
}

/// Returns `bytes | (bits & mask)`.
#[inline]
#[target_feature(enable = "avx2")]
fn or_masked(bytes: __m256i, bits: __m256i, mask: __m256i) -> __m256i {
    _mm256_or_si256(bytes, _mm256_and_si256(bits, mask))
}

/// Shifts so that bit `from` of each byte becomes bit 4; other bits are left to be masked.
#[inline]
#[target_feature(enable = "avx2")]
fn shift_to_bit_4(bits: __m256i, from: usize) -> __m256i {
    match from {
        0 => _mm256_slli_epi16::<4>(bits),
        1 => _mm256_slli_epi16::<3>(bits),
        2 => _mm256_slli_epi16::<2>(bits),
        3 => _mm256_slli_epi16::<1>(bits),
        5 => _mm256_srli_epi16::<1>(bits),
        6 => _mm256_srli_epi16::<2>(bits),
        7 => _mm256_srli_epi16::<3>(bits),
        _ => bits,
    }
}

/// Returns a block's part of the plane of low bits.
#[inline(always)]
pub(super) fn low_part<const BITS: u32>(low: &[u8], block: usize) -> &[HalfLine] {
    let lines = if BITS == 8 { 16 } else { 8 };
    &low.as_chunks().0[block * lines..][..lines]
}

/// Returns a block's part of the plane of high bits.
#[inline(always)]
pub(super) fn high_part<const BITS: u32>(high: &[u8], block: usize) -> &[HalfLine] {
    let lines = if BITS == 5 {
        2
    } else if BITS == 6 {
        4
    } else {
        0
    };
    &high.as_chunks().0[block * lines..][..lines]
}

/// Half a tile's scales of one step of a scale plane: a block, or a super-block of 8.
#[derive(Clone, Copy)]
pub(super) struct StepScales<'a> {
    scale: __m256,
    /// The minima, or minus the scale of the minima.
    min: __m256,
    bytes: &'a [[u8; 8]],
    half: usize,
}

impl<'a> StepScales<'a> {
    /// Reads the floats of a step.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn read<const SUPER: bool, const MIN: bool>(step: &'a [u8], half: usize) -> Self {
        let floats: &[[u8; 16]] = step.as_chunks().0;
        let zero = _mm256_setzero_ps();
        let min = if MIN { halves(&floats[2 + half]) } else { zero };
        let min = if SUPER { _mm256_xor_ps(min, _mm256_set1_ps(-0.0)) } else { min };
        let bytes = step[if MIN { 64 } else { 32 }..].as_chunks().0;
        Self { scale: halves(&floats[half]), min, bytes, half }
    }

    /// Returns the scales of sub-block `sub` of the step.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn scale<const SUPER: bool, const MIN: bool>(&self, sub: usize) -> __m256 {
        if !SUPER {
            return self.scale;
        }
        let bytes = load_8(&self.bytes[sub * 2 + self.half]);
        let steps = if MIN { _mm256_cvtepu8_epi32(bytes) } else { _mm256_cvtepi8_epi32(bytes) };
        _mm256_mul_ps(self.scale, _mm256_cvtepi32_ps(steps))
    }

    /// Returns the minima of block `block` of the step.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn min<const SUPER: bool>(&self, block: usize) -> __m256 {
        if !SUPER {
            return self.min;
        }
        let steps = _mm256_cvtepu8_epi32(load_8(&self.bytes[(8 + block) * 2 + self.half]));
        _mm256_mul_ps(self.min, _mm256_cvtepi32_ps(steps))
    }
}

/// See [`crate::gemm::Kernel::unpack_int`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn int(tile: &IntTile<'_>, chunk: &mut IntChunk, index: usize) {
    let bytes = chunk.bytes[index].as_flattened_mut().as_chunks_mut().0;
    match tile.form.bits {
        4 => bytes_to_chunk::<4>(tile, bytes),
        5 => bytes_to_chunk::<5>(tile, bytes),
        6 => bytes_to_chunk::<6>(tile, bytes),
        _ => bytes_to_chunk::<8>(tile, bytes),
    }
    let (scales, mins) = (&mut chunk.scales[index], &mut chunk.mins[index]);
    match tile.form.scales {
        Scales::Plain => scales_to_chunk::<false, false>(tile, scales, mins),
        Scales::Min => scales_to_chunk::<false, true>(tile, scales, mins),
        Scales::SuperMin => scales_to_chunk::<true, true>(tile, scales, mins),
        Scales::SuperPlain => scales_to_chunk::<true, false>(tile, scales, mins),
    }
}

#[target_feature(enable = "avx2")]
fn bytes_to_chunk<const BITS: u32>(tile: &IntTile<'_>, target: &mut [HalfLine]) {
    for (block, target) in
        target.as_chunks_mut::<16>().0.iter_mut().take(tile.blocks_len()).enumerate()
    {
        let low = low_part::<BITS>(tile.low, block);
        let high = high_part::<BITS>(tile.high, block);
        for half in 0..2 {
            let groups = block_bytes::<BITS>(low, high, half);
            for (group, bytes) in groups.into_iter().enumerate() {
                store(&mut target[group * 2 + half], bytes);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn scales_to_chunk<const SUPER: bool, const MIN: bool>(
    tile: &IntTile<'_>,
    scales: &mut [Lanes],
    mins: &mut [Lanes],
) {
    let (size, step_cols) = tile.form.scales.step();
    let blocks = step_cols / BLOCK_LEN;
    let subs = step_cols / tile.form.scales.sub_len();
    for (i, step) in tile.scales.chunks_exact(size).enumerate() {
        for half in 0..2 {
            let step = StepScales::read::<SUPER, MIN>(step, half);
            for (sub, lanes) in scales[i * subs..][..subs].iter_mut().enumerate() {
                store_lanes(&mut lanes.as_chunks_mut().0[half], step.scale::<SUPER, MIN>(sub));
            }
            if MIN {
                for (block, lanes) in mins[i * blocks..][..blocks].iter_mut().enumerate() {
                    store_lanes(&mut lanes.as_chunks_mut().0[half], step.min::<SUPER>(block));
                }
            }
        }
    }
}

/// See [`crate::gemm::Kernel::unpack_float`]; false if this form has no kernel here.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn float(tile: &TileCols<'_>, len: usize, chunk: &mut FloatChunk, index: usize) -> bool {
    let FloatChunk { weights, ints } = chunk;
    let target = &mut weights[index][..len];
    let halved = target.as_flattened_mut().as_chunks_mut().0;
    match *tile {
        TileCols::Int(tile) => {
            int(&tile, ints, 0);
            int_to_floats(&tile, ints, target);
        }
        TileCols::F16(bytes) => {
            for (bytes, target) in bytes.as_chunks().0.iter().zip(halved) {
                store_lanes(target, halves(bytes));
            }
        }
        TileCols::Bf16(bytes) => {
            for (bytes, target) in bytes.as_chunks().0.iter().zip(halved) {
                let upper = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load_16(bytes)));
                store_lanes(target, _mm256_castsi256_ps(upper));
            }
        }
        TileCols::F32(bytes) => {
            for (bytes, target) in bytes.as_chunks().0.iter().zip(halved) {
                store_lanes(target, _mm256_castsi256_ps(load(bytes)));
            }
        }
        TileCols::Rows(..) => return false,
    }
    true
}

#[target_feature(enable = "avx2,fma,f16c")]
fn int_to_floats(tile: &IntTile<'_>, ints: &IntChunk, target: &mut [Lanes]) {
    let zero = _mm256_set1_epi32(i32::from(tile.form.zero));
    let has_min = tile.form.scales.has_min();
    let sub_groups = tile.form.scales.sub_len() / 4;
    for (group, target) in target.chunks_exact_mut(4).enumerate() {
        for half in 0..2 {
            let bytes = load(&ints.bytes[0][group].as_chunks().0[half]);
            let scale = load_lanes(&ints.scales[0][group / sub_groups].as_chunks().0[half]);
            let min = load_lanes(&ints.mins[0][group / 8].as_chunks().0[half]);
            let columns = [
                bytes,
                _mm256_srli_epi32::<8>(bytes),
                _mm256_srli_epi32::<16>(bytes),
                _mm256_srli_epi32::<24>(bytes),
            ];
            for (column, target) in columns.into_iter().zip(&mut *target) {
                let byte = _mm256_and_si256(column, _mm256_set1_epi32(255));
                let steps = _mm256_cvtepi32_ps(_mm256_sub_epi32(byte, zero));
                let weight = _mm256_mul_ps(scale, steps);
                let weight = if has_min { _mm256_add_ps(weight, min) } else { weight };
                store_lanes(&mut target.as_chunks_mut().0[half], weight);
            }
        }
    }
}

/// Loads half a line of bytes at any alignment.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(bytes: &HalfLine) -> __m256i {
    // SAFETY: `bytes` is 32 readable bytes, and `loadu` takes any alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(target: &mut HalfLine, line: __m256i) {
    // SAFETY: `target` is 32 writable bytes, and `storeu` takes any alignment.
    unsafe { _mm256_storeu_si256(target.as_mut_ptr().cast(), line) };
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: `bytes` is 16 readable bytes, and `loadu` takes any alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_8(bytes: &[u8; 8]) -> __m128i {
    _mm_cvtsi64_si128(i64::from_le_bytes(*bytes))
}

/// Widens 8 half floats.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn halves(bytes: &[u8; 16]) -> __m256 {
    _mm256_cvtph_ps(load_16(bytes))
}

/// Loads a value for each of 8 rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_lanes(lanes: &HalfLanes) -> __m256 {
    // SAFETY: `lanes` is 8 readable floats, and `loadu` takes any alignment.
    unsafe { _mm256_loadu_ps(lanes.as_ptr()) }
}

/// Stores a value for each of 8 rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_lanes(target: &mut HalfLanes, lanes: __m256) {
    // SAFETY: `target` is 8 writable floats, and `storeu` takes any alignment.
    unsafe { _mm256_storeu_ps(target.as_mut_ptr(), lanes) };
}
