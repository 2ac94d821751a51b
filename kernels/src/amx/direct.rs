//! Products of the tokens of one panel with AMX, straight from the packed bytes; see [`super::gemm`] for the rest.
//!
//! Each block of weights goes through four stages, the next one always a stage behind: it is unpacked, multiplied,
//! stored, and added. So nothing waits for what was just made, and little lies between: unpacked a super-block at a
//! time, 16 tokens took a tenth longer.

use core::arch::x86_64::*;

use super::add::add_tokens;
use super::tiles;
use crate::avx512::{StepScales, group_bytes, high_part, load_lanes, low_part, store, store_lanes};
use crate::gemm::{SUPER_BLOCKS, Sums, TileDots, TileRing, UNIT_TILES};
use crate::packed::IntTile;
use crate::prefetch::Beyond;
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
    let TileRing { bytes, dots: TileDots(dots), scales, mins } = ring;
    let (size, _) = tiles[0].form.scales.step();
    let parts = x.quants.len();
    macro_rules! read_scales {
        ($index:expr, $part:expr) => {{
            let step = &tiles[$index].scales[$part * size..][..size];
            beyond.ask(step.as_chunks().0);
            StepScales::read::<true, true>(step)
        }};
    }
    let mut step = read_scales!(0, 0);
    macro_rules! unpack {
        ($index:expr, $part:expr, $block:expr) => {
            let at = $block % TileRing::BLOCKS;
            let block = $part * SUPER_BLOCKS + $block;
            let low = low_part::<BITS>(tiles[$index].low.as_chunks().0, block);
            let high = high_part::<BITS>(tiles[$index].high.as_chunks().0, block);
            beyond.ask(low);
            beyond.ask(high);
            for (group, target) in bytes[at].iter_mut().enumerate() {
                store(target, group_bytes::<BITS>(low, high, group));
            }
            store_lanes(&mut scales[at], step.scale::<true, true>($block));
            store_lanes(&mut mins[at], step.min::<true>($block));
        };
    }
    macro_rules! multiply {
        ($part:expr, $block:expr) => {
            let weights = &bytes[$block % TileRing::BLOCKS];
            // SAFETY: the caller's word is passed on.
            unsafe { tiles::multiply::<{ $block % 2 }>(&x.quants[$part][$block], weights) };
        };
    }
    macro_rules! keep {
        ($block:expr) => {
            // SAFETY: the caller's word is passed on.
            unsafe { tiles::store::<{ $block % 2 }>(&mut dots[$block % 2]) };
        };
    }
    unpack!(0, 0, 0);
    unpack!(0, 0, 1);
    unpack!(0, 0, 2);
    multiply!(0, 0);
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
                    add_tokens!(
                        totals, dots, x, scale, min, TILE_TOKENS,
                        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
                    );
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
            const { assert!(SUPER_BLOCKS == 8 && UNIT_TILES == 2, "all blocks are written out") };
            blocks!(0 1 2 3 4);
            if next_part < parts {
                step = read_scales!(next_index, next_part);
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
