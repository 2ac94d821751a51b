//! Products on tiles of registers: how the parts of a unit follow one another. What the tiles hold is
//! the instruction set's.

use crate::gemm::{
    Chunks, Input, Kernel, Room, SUPER_BLOCKS, Sums, TOKENS_MAX, TileChunk, TileRing, UNIT_TILES,
    UnitPart, unit_bytes,
};
use crate::gemm_memory::Tiled;
use crate::packed::{BLOCK_LEN, IntForm, IntTile};
use crate::prefetch::Beyond;
use crate::quantize::{TILE_TOKENS, TilePanel};

/// What is done in one go: a super-block of a tile of rows times a panel.
///
/// It refers to panels rather than holding them: what was copied a moment ago, a word at a time, is
/// not yet there to be read as vectors, and waits behind the tiles that are being stored.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "no other CPU here has tiles"))]
pub(crate) struct TileWork<'a> {
    /// Of the tile of rows, in its unit.
    pub(crate) index: usize,
    pub(crate) panel: &'a TilePanel<'a>,
    /// Whether the work before this has begun it.
    pub(crate) has_begun: bool,
    /// The weights and the panel of the work after this, which is begun before this ends.
    pub(crate) next: Option<(&'a TileChunk, &'a TilePanel<'a>)>,
}

impl UnitPart<'_, '_> {
    /// The tokens of one panel, all that there are, times weights of a form on tiles, unpacked sub-block by
    /// sub-block.
    pub(crate) fn sum_tile_panel<K: Kernel>(
        &self,
        kernel: K,
        form: IntForm,
        input: &Input<'_>,
        next: &[u8],
        chunks: &mut Chunks,
        room: &mut Room,
    ) {
        const { assert!(TILE_TOKENS <= TOKENS_MAX, "one part of the tokens is all of them") };
        let ring = chunks.ring.get_or_insert_with(TileRing::zeroed);
        let parts = input.cols / BLOCK_LEN / SUPER_BLOCKS;
        let beyond = Beyond::new(unit_bytes(self.weights, self.unit), next, parts);
        let x = input.quantized.tile_tokens();
        let sums = room.part(0, TILE_TOKENS, true).first_chunk_mut().expect("all tokens have sums");
        let tiles = &self.int_tiles(form)[..self.tiles()];
        kernel.multiply_direct_tiled(tiles, &x, ring, beyond, sums);
    }

    /// Many tokens times weights of a form on tiles: each super-block of a tile of rows is unpacked
    /// once for all tokens of this part, over the one before it, as soon as the last ones have met that.
    #[expect(clippy::too_many_arguments, reason = "what `UnitPart::sum` has, and the form")]
    pub(crate) fn sum_tile_panels<K: Kernel>(
        &self,
        kernel: K,
        form: IntForm,
        input: &Input<'_>,
        next: &[u8],
        chunks: &mut Chunks,
        room: &mut Room,
        finished: &mut impl FnMut(usize, &mut [Sums]),
    ) {
        const EIGHT: usize = TILE_TOKENS / 2;
        const { assert!(UNIT_TILES == 2, "each tile of rows is written out") };
        let Tiled { chunks: [first, second], dots } =
            chunks.tiled.get_or_insert_with(Tiled::zeroed);
        let parts = input.cols / BLOCK_LEN / SUPER_BLOCKS;
        let panels = self.tokens.start / TILE_TOKENS..self.tokens.end.div_ceil(TILE_TOKENS);
        let all_panels = input.tokens.div_ceil(TILE_TOKENS);
        let panel_of = |index, part| input.quantized.tile_panel(all_panels, index, part);
        let mut ahead = self.ahead(next, parts * SUPER_BLOCKS * UNIT_TILES * panels.len());
        // Of a last single tile of rows, both are the same: one is not stored.
        let [first_tile, second_tile] = self.int_tiles(form);
        let unpack = |tile: &IntTile<'_>, part: usize, chunk: &mut TileChunk| {
            kernel
                .unpack_tiled(&tile.blocks(part * SUPER_BLOCKS..(part + 1) * SUPER_BLOCKS), chunk);
        };
        unpack(&first_tile, 0, first);
        unpack(&second_tile, 0, second);
        let mut has_begun = false;
        for part in 0..parts {
            let mut small_panels = self.panels().peekable();
            for index in panels.clone() {
                let at = (index - panels.start) * TILE_TOKENS;
                let width = if self.tokens.len() - at > EIGHT { TILE_TOKENS } else { EIGHT };
                let sums = room.part(at, width, part == 0);
                let (is_last, is_last_part) = (index + 1 == panels.end, part + 1 == parts);
                let panel = panel_of(index, part);
                let next_panel = match (is_last, is_last_part) {
                    (false, _) => Some(panel_of(index + 1, part)),
                    (true, false) => Some(panel_of(panels.start, part + 1)),
                    (true, true) => None,
                };
                let next = Some((&*second, &panel));
                let work = TileWork { index: 0, panel: &panel, has_begun, next };
                kernel.multiply_tiled(form, first, &work, dots, &mut ahead, sums);
                if is_last && !is_last_part {
                    unpack(&first_tile, part + 1, first);
                }
                let next = next_panel.as_ref().map(|panel| (&*first, panel));
                let work = TileWork { index: 1, panel: &panel, has_begun: true, next };
                kernel.multiply_tiled(form, second, &work, dots, &mut ahead, sums);
                if is_last && !is_last_part {
                    unpack(&second_tile, part + 1, second);
                }
                has_begun = true;
                let is_done = |&(from, len): &_| is_last_part && from + len <= at + TILE_TOKENS;
                while let Some((from, len)) = small_panels.next_if(is_done) {
                    finished(self.tokens.start + from, room.part(from, len, false));
                }
            }
        }
    }
}
