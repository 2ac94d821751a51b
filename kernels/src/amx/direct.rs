//! Products of the tokens of one panel with AMX, straight from the packed bytes; see [`super::gemm`] for
//! the rest.
//!
//! Each sub-block of weights goes through four stages, the next one always a stage behind: it is unpacked,
//! multiplied, stored, and added. So nothing waits for what was just made, and little lies between:
//! unpacked a super-block at a time, 16 tokens took a tenth longer.

use core::arch::x86_64::*;

use super::add::add_tokens;
use super::tiles;
use crate::avx512::{
    StepScales, group_bytes, high_part, load_lanes, low_part, signed, store, store_lanes,
};
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
        4 => unsafe { by_bits::<4, 8>(tiles, x, ring, beyond, sums) },
        // SAFETY: as above.
        5 => unsafe { by_bits::<5, 8>(tiles, x, ring, beyond, sums) },
        // SAFETY: as above.
        _ => unsafe { by_bits::<6, 4>(tiles, x, ring, beyond, sums) },
    }
}

/// `GROUPS` groups of four columns are a sub-block.
///
/// # Safety
///
/// As of [`multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[expect(
    clippy::too_many_lines,
    reason = "the stages of a sub-block are written out, one behind the other"
)]
unsafe fn by_bits<const BITS: u32, const GROUPS: usize>(
    tiles: &[IntTile<'_>],
    x: &TileTokens<'_>,
    ring: &mut TileRing,
    beyond: Beyond,
    sums: &mut [Sums; TILE_TOKENS],
) {
    let TileRing { weights, dots: TileDots(dots), scales, mins } = ring;
    let (size, step_cols) = tiles[0].form.scales.step();
    assert!(step_cols == SUPER_BLOCKS * BLOCK_LEN, "scales are of a super-block");
    let has_min = BITS < 6;
    // Sub-blocks of a block, and the last one of a super-block.
    let subs = 8 / GROUPS;
    let last = SUPER_BLOCKS * subs - 1;
    let parts = tiles[0].scales.len() / size;
    let [low_step, high_step] = [4, BITS as usize - 4].map(|lines| lines * SUPER_BLOCKS * 64);
    // The scales of the super-block that is unpacked, and how far behind its planes is asked for.
    let (mut step, mut low_beyond, mut high_beyond);
    macro_rules! unpack_from {
        ($index:expr, $part:expr) => {
            let bytes = &tiles[$index].scales[$part * size..][..size];
            ask_beyond(bytes, beyond.of_part($part, size));
            step = if has_min {
                StepScales::read::<true, true>(bytes)
            } else {
                StepScales::read::<true, false>(bytes)
            };
            low_beyond = beyond.of_part($part, low_step);
            high_beyond = beyond.of_part($part, high_step);
        };
    }
    macro_rules! unpack {
        ($index:expr, $part:expr, $sub:expr) => {
            let (block, sub) = ($part * SUPER_BLOCKS + $sub / subs, $sub % subs);
            let low = low_part::<BITS>(tiles[$index].low.as_chunks().0, block);
            let high = high_part::<BITS>(tiles[$index].high.as_chunks().0, block);
            ask_beyond(&low[low.len() / subs * sub..][..low.len() / subs], low_beyond);
            ask_beyond(&high[high.len() / subs * sub..][..high.len() / subs], high_beyond);
            for (group, target) in weights[$sub % 2][..GROUPS].iter_mut().enumerate() {
                let bytes = group_bytes::<BITS>(low, high, GROUPS * sub + group);
                store(target, signed::<BITS>(bytes));
            }
            let at = $sub % TileRing::SUBS;
            if has_min {
                store_lanes(&mut scales[at], step.scale::<true, true>($sub));
                store_lanes(&mut mins[at], step.min::<true>($sub));
            } else {
                store_lanes(&mut scales[at], step.scale::<true, false>($sub));
            }
        };
    }
    macro_rules! multiply {
        ($part:expr, $sub:expr, $place:expr) => {
            let quants = &x.quants[$part][$sub / subs];
            let weights = weights[$place].first_chunk::<GROUPS>().expect("a block has groups");
            // SAFETY: the caller's word is passed on.
            unsafe { tiles::multiply::<{ $place }, GROUPS>(quants, $sub % subs, weights) };
        };
    }
    macro_rules! keep {
        ($place:expr) => {
            // SAFETY: the caller's word is passed on.
            unsafe { tiles::store::<{ $place }>(&mut dots[$place]) };
        };
    }
    unpack_from!(0, 0);
    unpack!(0, 0, 0);
    unpack!(0, 0, 1);
    multiply!(0, 0, 0);
    unpack!(0, 0, 2);
    multiply!(0, 1, 1);
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
                ($sub:expr, $place:expr) => {
                    let (at, block) = ($sub % TileRing::SUBS, $sub / subs);
                    let scale = load_lanes(&scales[at]);
                    let min = if has_min { Some(load_lanes(&mins[at])) } else { None };
                    let x = [&x_scales[block], &x_biases[block], &x_sums[block]];
                    let dots = &dots[$place];
                    add_tokens!(totals, dots, x, scale, min, TILE_TOKENS);
                };
            }
            macro_rules! subs {
                ($($sub:literal)*) => {$(
                    unpack!(index, part, $sub + 3);
                    multiply!(part, $sub + 2, $sub % 2);
                    keep!(($sub + 1) % 2);
                    add!($sub, $sub % 2);
                )*};
            }
            const { assert!(SUPER_BLOCKS == 8, "all sub-blocks are written out") };
            const { assert!(SUPER_BLOCKS.is_multiple_of(TileRing::SUBS), "a part starts anew") };
            subs!(0 1 2 3 4);
            if subs == 2 {
                subs!(5 6 7 8 9 10 11 12);
            }
            if next_part < parts {
                unpack_from!(next_index, next_part);
                unpack!(next_index, next_part, 0);
                multiply!(part, last, 1);
                keep!(0);
                add!(last - 2, 1);
                unpack!(next_index, next_part, 1);
                multiply!(next_part, 0, 0);
                keep!(1);
                add!(last - 1, 0);
                unpack!(next_index, next_part, 2);
                multiply!(next_part, 1, 1);
                keep!(0);
                add!(last, 1);
            } else {
                multiply!(part, last, 1);
                keep!(0);
                add!(last - 2, 1);
                keep!(1);
                add!(last - 1, 0);
                add!(last, 1);
            }
            for (sums, total) in sums.iter_mut().zip(totals) {
                store_lanes(&mut sums.as_chunks_mut().0[index], total);
            }
        }
    }
}
