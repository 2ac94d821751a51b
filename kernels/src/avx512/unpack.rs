//! Packed tiles of 16 rows into registers, a row in each 32-bit lane.

use core::arch::x86_64::*;

use crate::gemm::{FloatChunk, IntChunk, Lanes, TileCols};
use crate::packed::{BLOCK_LEN, IntTile, Scales};
use crate::quantize::is_tiled;

/// Unpacks the bytes of a block: 8 groups of 16 rows × 4 columns.
///
/// `low` and `high` are the block's part of the planes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn block_bytes<const BITS: u32>(low: &[[u8; 64]], high: &[[u8; 64]]) -> [__m512i; 8] {
    let mut bytes = [_mm512_setzero_si512(); 8];
    for (group, bytes) in bytes.iter_mut().enumerate() {
        *bytes = group_bytes::<BITS>(low, high, group);
    }
    bytes
}

/// Unpacks one group of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn group_bytes<const BITS: u32>(
    low: &[[u8; 64]],
    high: &[[u8; 64]],
    group: usize,
) -> __m512i {
    if BITS == 8 {
        return load(&low[group]);
    }
    let pair = load(&low[group / 2]);
    let shifted = if group.is_multiple_of(2) { pair } else { _mm512_srli_epi16::<4>(pair) };
    let bytes = _mm512_and_si512(shifted, _mm512_set1_epi8(15));
    match BITS {
        5 => or_masked(bytes, shift_to_bit_4(load(&high[0]), group), _mm512_set1_epi8(0x10)),
        6 => {
            let bits = shift_to_bit_4(load(&high[group / 4]), group % 4 * 2);
            or_masked(bytes, bits, _mm512_set1_epi8(0x30))
        }
        _ => bytes,
    }
}

/// Takes off what stands for 0 in weights of a form on tiles: signed bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn signed<const BITS: u32>(bytes: __m512i) -> __m512i {
    if BITS == 6 { _mm512_sub_epi8(bytes, _mm512_set1_epi8(32)) } else { bytes }
}

/// Returns `bytes | (bits & mask)`.
#[inline]
#[target_feature(enable = "avx512f")]
fn or_masked(bytes: __m512i, bits: __m512i, mask: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0xF8>(bytes, bits, mask)
}

/// Shifts so that bit `from` of each byte becomes bit 4; other bits are left to be masked.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn shift_to_bit_4(bits: __m512i, from: usize) -> __m512i {
    match from {
        0 => _mm512_slli_epi16::<4>(bits),
        1 => _mm512_slli_epi16::<3>(bits),
        2 => _mm512_slli_epi16::<2>(bits),
        3 => _mm512_slli_epi16::<1>(bits),
        5 => _mm512_srli_epi16::<1>(bits),
        6 => _mm512_srli_epi16::<2>(bits),
        7 => _mm512_srli_epi16::<3>(bits),
        _ => bits,
    }
}

/// The scales of one step of a scale plane: a block, or a super-block of 8.
#[derive(Clone, Copy)]
pub(crate) struct StepScales<'a> {
    scale: __m512,
    /// The minima, or minus the scale of the minima.
    min: __m512,
    bytes: &'a [[u8; 16]],
}

impl<'a> StepScales<'a> {
    /// Reads the floats of a step.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(crate) fn read<const SUPER: bool, const MIN: bool>(step: &'a [u8]) -> Self {
        let (scale, rest) = step.split_first_chunk::<32>().expect("a step has 16 scales");
        let zero = _mm512_setzero_ps();
        let (min, rest) = match rest.split_first_chunk::<32>() {
            Some((min, rest)) if MIN => (halves(min), rest),
            _ => (zero, rest),
        };
        let min = if SUPER { _mm512_xor_ps(min, _mm512_set1_ps(-0.0)) } else { min };
        Self { scale: halves(scale), min, bytes: rest.as_chunks().0 }
    }

    /// Returns the scales of sub-block `sub` of the step.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn scale<const SUPER: bool, const MIN: bool>(&self, sub: usize) -> __m512 {
        if !SUPER {
            return self.scale;
        }
        let bytes = load_16(&self.bytes[sub]);
        let steps = if MIN { _mm512_cvtepu8_epi32(bytes) } else { _mm512_cvtepi8_epi32(bytes) };
        _mm512_mul_ps(self.scale, _mm512_cvtepi32_ps(steps))
    }

    /// Returns the minima of block `block` of the step.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn min<const SUPER: bool>(&self, block: usize) -> __m512 {
        if !SUPER {
            return self.min;
        }
        let steps = _mm512_cvtepu8_epi32(load_16(&self.bytes[8 + block]));
        _mm512_mul_ps(self.min, _mm512_cvtepi32_ps(steps))
    }
}

/// See [`crate::isa::Avx512Vnni::unpack_to`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
pub(super) fn int<const SIGNED: bool>(
    tile: &IntTile<'_>,
    bytes: &mut [[u8; 64]],
    scales: &mut [Lanes],
    mins: &mut [Lanes],
) {
    assert!(!SIGNED || is_tiled(tile.form), "only the bytes of these forms may be signed");
    match tile.form.bits {
        4 => bytes_to_chunk::<4, SIGNED>(tile, bytes),
        5 => bytes_to_chunk::<5, SIGNED>(tile, bytes),
        6 => bytes_to_chunk::<6, SIGNED>(tile, bytes),
        _ => bytes_to_chunk::<8, SIGNED>(tile, bytes),
    }
    match tile.form.scales {
        Scales::Plain => scales_to_chunk::<false, false>(tile, scales, mins),
        Scales::Min => scales_to_chunk::<false, true>(tile, scales, mins),
        Scales::SuperMin => scales_to_chunk::<true, true>(tile, scales, mins),
        Scales::SuperPlain => scales_to_chunk::<true, false>(tile, scales, mins),
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn bytes_to_chunk<const BITS: u32, const SIGNED: bool>(
    tile: &IntTile<'_>,
    target: &mut [[u8; 64]],
) {
    let (low, high) = (tile.low.as_chunks().0, tile.high.as_chunks().0);
    for (block, target) in target.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        if block >= tile.blocks_len() {
            break;
        }
        let groups =
            block_bytes::<BITS>(low_part::<BITS>(low, block), high_part::<BITS>(high, block));
        for (group, target) in groups.into_iter().zip(target) {
            store(target, if SIGNED { signed::<BITS>(group) } else { group });
        }
    }
}

/// Returns the lines of low bits of a block.
#[inline(always)]
pub(crate) fn low_part<const BITS: u32>(low: &[[u8; 64]], block: usize) -> &[[u8; 64]] {
    let lines = if BITS == 8 { 8 } else { 4 };
    &low[block * lines..][..lines]
}

/// Returns the lines of high bits of a block.
#[inline(always)]
pub(crate) fn high_part<const BITS: u32>(high: &[[u8; 64]], block: usize) -> &[[u8; 64]] {
    let lines = if BITS == 5 {
        1
    } else if BITS == 6 {
        2
    } else {
        0
    };
    &high[block * lines..][..lines]
}

#[target_feature(enable = "avx512f,avx512dq")]
fn scales_to_chunk<const SUPER: bool, const MIN: bool>(
    tile: &IntTile<'_>,
    scales: &mut [Lanes],
    mins: &mut [Lanes],
) {
    let (size, step_cols) = tile.form.scales.step();
    let blocks = step_cols / BLOCK_LEN;
    let subs = step_cols / tile.form.scales.sub_len();
    for (i, step) in tile.scales.chunks_exact(size).enumerate() {
        let step = StepScales::read::<SUPER, MIN>(step);
        for (sub, lanes) in scales[i * subs..][..subs].iter_mut().enumerate() {
            store_lanes(lanes, step.scale::<SUPER, MIN>(sub));
        }
        if MIN {
            for (block, lanes) in mins[i * blocks..][..blocks].iter_mut().enumerate() {
                store_lanes(lanes, step.min::<SUPER>(block));
            }
        }
    }
}

/// See [`crate::gemm::Kernel::unpack_float`]; false if this form has no kernel here.
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
pub(super) fn float(tile: &TileCols<'_>, len: usize, chunk: &mut FloatChunk, index: usize) -> bool {
    let FloatChunk { weights, ints } = chunk;
    let target = &mut weights[index][..len];
    match *tile {
        TileCols::Int(tile) => {
            int::<false>(&tile, &mut ints.bytes[0], &mut ints.scales[0], &mut ints.mins[0]);
            int_to_floats(&tile, ints, target);
        }
        TileCols::F16(bytes) => {
            for (bytes, target) in bytes.as_chunks().0.iter().zip(target) {
                store_lanes(target, halves(bytes));
            }
        }
        TileCols::Bf16(bytes) => {
            for (bytes, target) in bytes.as_chunks().0.iter().zip(target) {
                let upper = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(load_32(bytes)));
                store_lanes(target, _mm512_castsi512_ps(upper));
            }
        }
        TileCols::F32(bytes) => {
            for (bytes, target) in bytes.as_chunks().0.iter().zip(target) {
                store_lanes(target, _mm512_castsi512_ps(load(bytes)));
            }
        }
        TileCols::Rows(..) => return false,
    }
    true
}

#[target_feature(enable = "avx512f")]
fn int_to_floats(tile: &IntTile<'_>, ints: &IntChunk, target: &mut [Lanes]) {
    let zero = _mm512_set1_epi32(i32::from(tile.form.zero));
    let has_min = tile.form.scales.has_min();
    let sub_groups = tile.form.scales.sub_len() / 4;
    for (group, target) in target.chunks_exact_mut(4).enumerate() {
        let bytes = load(&ints.bytes[0][group]);
        let scale = load_lanes(&ints.scales[0][group / sub_groups]);
        let min = load_lanes(&ints.mins[0][group / 8]);
        let columns = [
            bytes,
            _mm512_srli_epi32::<8>(bytes),
            _mm512_srli_epi32::<16>(bytes),
            _mm512_srli_epi32::<24>(bytes),
        ];
        for (column, target) in columns.into_iter().zip(target) {
            let byte = _mm512_and_si512(column, _mm512_set1_epi32(255));
            let steps = _mm512_cvtepi32_ps(_mm512_sub_epi32(byte, zero));
            let weight = _mm512_mul_ps(scale, steps);
            store_lanes(target, if has_min { _mm512_add_ps(weight, min) } else { weight });
        }
    }
}

/// Loads a line of bytes at any alignment.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: `bytes` is 64 readable bytes, and `loadu` takes any alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn store(target: &mut [u8; 64], line: __m512i) {
    // SAFETY: `target` is 64 writable bytes, and `storeu` takes any alignment.
    unsafe { _mm512_storeu_si512(target.as_mut_ptr().cast(), line) };
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: `bytes` is 32 readable bytes, and `loadu` takes any alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: `bytes` is 16 readable bytes, and `loadu` takes any alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Widens 16 half floats.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(bytes: &[u8; 32]) -> __m512 {
    _mm512_cvtph_ps(load_32(bytes))
}

/// Loads a value for each row.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn load_lanes(lanes: &Lanes) -> __m512 {
    // SAFETY: `lanes` is 16 readable floats, and `loadu` takes any alignment.
    unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
}

/// Stores a value for each row.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn store_lanes(target: &mut Lanes, lanes: __m512) {
    // SAFETY: `target` is 16 writable floats, and `storeu` takes any alignment.
    unsafe { _mm512_storeu_ps(target.as_mut_ptr(), lanes) };
}
