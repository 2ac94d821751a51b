//! Products of the tokens of one panel with AMX, straight from the packed bytes; see [`super::gemm`] for
//! the rest.
//!
//! Each block of weights goes through four stages, the next one always a stage behind: it is unpacked,
//! multiplied, stored, and added. So nothing waits for what was just made, and little lies between:
//! unpacked a super-block at a time, 16 tokens took a tenth longer.

use core::arch::x86_64::*;

use super::add::add_tokens;
use super::tiles;
use crate::avx512::{StepScales, group_bytes, high_part, load_lanes, low_part, store, store_lanes};
use crate::gemm::{SUPER_BLOCKS, Sums, TileDots, TileRing};
use crate::packed::{BLOCK_LEN, IntTile};
use crate::prefetch::{Beyond, ask_beyond};
use crate::quantize::{TILE_TOKENS, TileTokens};

/// See [`crate::gemm::Kernel::multiply_direct_tiled`].
///
/// # Safety
///
/// The thread has [`tiles::Shapes`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn multiply(
    tiles: &[IntTile<'_>],
    x: &TileTokens<'_>,
    ring: &mut TileRing,
    beyond: Beyond,
    sums: &mut [Sums; TILE_TOKENS],
) {
    match tiles[0].form.bits {
        // SAFETY: the caller's word is passed on.
        4 => unsafe { by_bits::<4>(tiles, x, ring, beyond, sums) },
        // SAFETY: as above.
        _ => unsafe { by_bits::<5>(tiles, x, ring, beyond, sums) },
    }
}

/// # Safety
///
/// As of [`multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[expect(
    clippy::too_many_lines,
    reason = "the stages of a block are written out, one behind the other"
)]
unsafe fn by_bits<const BITS: u32>(
    tiles: &[IntTile<'_>],
    x: &TileTokens<'_>,
    ring: &mut TileRing,
    beyond: Beyond,
    sums: &mut [Sums; TILE_TOKENS],
) {
    let TileRing { weights, dots: TileDots(dots), scales, mins } = ring;
    let (size, step_cols) = tiles[0].form.scales.step();
    assert!(step_cols == SUPER_BLOCKS * BLOCK_LEN, "scales are of a super-block");
    let parts = tiles[0].scales.len() / size;
    let [low_step, high_step] = [4, BITS as usize - 4].map(|lines| lines * SUPER_BLOCKS * 64);
    // The scales of the super-block that is unpacked, and how far behind its planes is asked for.
    let (mut step, mut low_beyond, mut high_beyond);
    macro_rules! unpack_from {
        ($index:expr, $part:expr) => {
            let bytes = &tiles[$index].scales[$part * size..][..size];
            ask_beyond(bytes.as_chunks().0, beyond.of_part($part, size));
            step = StepScales::read::<true, true>(bytes);
            low_beyond = beyond.of_part($part, low_step);
            high_beyond = beyond.of_part($part, high_step);
        };
    }
    macro_rules! unpack {
        ($index:expr, $part:expr, $block:expr) => {
            let block = $part * SUPER_BLOCKS + $block;
            let low = low_part::<BITS>(tiles[$index].low.as_chunks().0, block);
            let high = high_part::<BITS>(tiles[$index].high.as_chunks().0, block);
            ask_beyond(low, low_beyond);
            ask_beyond(high, high_beyond);
            for (group, target) in weights[$block % 2].iter_mut().enumerate() {
                store(target, group_bytes::<BITS>(low, high, group));
            }
            let at = $block % TileRing::BLOCKS;
            store_lanes(&mut scales[at], step.scale::<true, true>($block));
            store_lanes(&mut mins[at], step.min::<true>($block));
        };
    }
    macro_rules! multiply {
        ($part:expr, $block:expr) => {
            let (quants, weights) = (&x.quants[$part][$block], &weights[$block % 2]);
            // SAFETY: the caller's word is passed on.
            unsafe { tiles::multiply::<{ $block % 2 }>(quants, weights) };
        };
    }
    macro_rules! keep {
        ($block:expr) => {
            // SAFETY: the caller's word is passed on.
            unsafe { tiles::store::<{ $block % 2 }>(&mut dots[$block % 2]) };
        };
    }
    unpack_from!(0, 0);
    unpack!(0, 0, 0);
    unpack!(0, 0, 1);
    multiply!(0, 0);
    unpack!(0, 0, 2);
    multiply!(0, 1);
    keep!(0);
    // A part of the tokens meets all tiles while it is at hand.
    for part in 0..parts {
        for index in 0..tiles.len() {
            let (next_index, next_part) =
                if index + 1 < tiles.len() { (index + 1, part) } else { (0, part + 1) };
            let mut totals = [_mm512_setzero_ps(); TILE_TOKENS];
            for (total, sums) in totals.iter_mut().zip(&*sums) {
                *total = load_lanes(&sums.as_chunks().0[index]);
            }
            let [x_scales, x_biases, x_sums] = [&x.scales[part], &x.biases[part], &x.sums[part]];
            macro_rules! add {
                ($block:expr) => {
                    let at = $block % TileRing::BLOCKS;
                    let (scale, min) = (load_lanes(&scales[at]), load_lanes(&mins[at]));
                    let x = [&x_scales[$block], &x_biases[$block], &x_sums[$block]];
                    let dots = &dots[$block % 2];
                    add_tokens!(totals, dots, x, scale, min, TILE_TOKENS);
                };
            }
            macro_rules! blocks {
                ($($block:literal)*) => {$(
                    unpack!(index, part, $block + 3);
                    multiply!(part, $block + 2);
                    keep!($block + 1);
                    add!($block);
                )*};
            }
            const { assert!(SUPER_BLOCKS == 8, "all blocks are written out") };
            const { assert!(SUPER_BLOCKS.is_multiple_of(TileRing::BLOCKS), "a part starts anew") };
            blocks!(0 1 2 3 4);
            if next_part < parts {
                unpack_from!(next_index, next_part);
                unpack!(next_index, next_part, 0);
                multiply!(part, 7);
                keep!(6);
                add!(5);
                unpack!(next_index, next_part, 1);
                multiply!(next_part, 0);
                keep!(7);
                add!(6);
                unpack!(next_index, next_part, 2);
                multiply!(next_part, 1);
                keep!(0);
                add!(7);
            } else {
                multiply!(part, 7);
                keep!(6);
                add!(5);
                keep!(7);
                add!(6);
                add!(7);
            }
            for (sums, total) in sums.iter_mut().zip(totals) {
                store_lanes(&mut sums.as_chunks_mut().0[index], total);
            }
        }
    }
}
