//! Quantised activations laid out for registers that hold tiles: a token in a row.
//!
//! Where all products of a call read them, they are written instead of the panels; where only some do,
//! they are copied from those, bit for bit.

#[cfg(target_arch = "x86_64")]
use crate::avx512;
use crate::gemm::SUPER_BLOCKS;
use crate::isa::Isa;
use crate::packed::{BLOCK_LEN, IntForm, Scales};
use crate::pool::{Disjoint, Pool};
use crate::quantize::{MAGIC, PanelMut, QuantBlock, quantize_block};

/// Tokens of a tile.
pub(crate) const TILE_TOKENS: usize = 16;

/// The quants of a block of the tokens of a tile: `[token][column]`.
pub(crate) type TileQuants = [[i8; BLOCK_LEN]; TILE_TOKENS];

/// Buffers for the activations of one call. The rows of tokens that a call does not have keep what was
/// there, and are read, but never into a result.
pub(crate) struct TileActivations {
    /// `[super-blocks][tokens / 16][8]` of [`TileQuants`], from `quants_at` on: what a super-block of weights
    /// meets is one stream
    quants: Vec<i8>,
    /// Where the first line of `quants` starts: a row must not lie in two lines.
    quants_at: usize,
    /// Scales, biases and sums, as those of a panel: `[super-blocks][tokens / 16][8][16]`
    floats: [Vec<f32>; 3],
}

/// Returns whether products with weights of a form are made on tiles, where there are any: Q4_K, Q5_K and
/// Q6_K.
pub(crate) fn is_tiled(form: IntForm) -> bool {
    matches!(form.scales, Scales::SuperMin | Scales::SuperPlain)
}

/// Returns whether products of so many tokens are made on tiles, where there are any. With fewer,
/// what is unpacked and written down for them is read too few times; one or two more than a tile has
/// take as long as eight more (measured with 10 to 32). Of 19 to 22 tokens, Q4_K gains and Q6_K, of which
/// a model has less, loses somewhat: one bound for both leaves nothing to be written twice.
pub(crate) fn are_tiled(tokens: usize) -> bool {
    matches!(tokens, 14..=TILE_TOKENS | 19..)
}

/// A super-block of the tokens of one tile.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(any(test, target_arch = "x86_64")),
    expect(dead_code, reason = "no other CPU here has tiles")
)]
pub(crate) struct TilePanel<'a> {
    pub(crate) quants: &'a [TileQuants; SUPER_BLOCKS],
    /// `[block][token]`
    pub(crate) scales: &'a [[f32; TILE_TOKENS]; SUPER_BLOCKS],
    /// `[block][token]`
    pub(crate) biases: &'a [[f32; TILE_TOKENS]; SUPER_BLOCKS],
    /// `[block][token]`
    pub(crate) sums: &'a [[f32; TILE_TOKENS]; SUPER_BLOCKS],
}

/// As [`TilePanel`], of several super-blocks.
pub(crate) struct TileTokens<'a> {
    pub(crate) quants: &'a [[TileQuants; SUPER_BLOCKS]],
    pub(crate) scales: &'a [[[f32; TILE_TOKENS]; SUPER_BLOCKS]],
    pub(crate) biases: &'a [[[f32; TILE_TOKENS]; SUPER_BLOCKS]],
    pub(crate) sums: &'a [[[f32; TILE_TOKENS]; SUPER_BLOCKS]],
}

impl TileActivations {
    /// Allocates for so many blocks of so many tokens.
    pub(crate) fn new(blocks: usize, tokens: usize) -> Self {
        const LINE: usize = 64;
        let len = blocks
            .checked_mul(tokens.next_multiple_of(TILE_TOKENS) * BLOCK_LEN)
            .expect("the buffers' size is sane");
        let quants = vec![0; len + LINE];
        let quants_at = quants.as_ptr().align_offset(LINE).min(LINE);
        Self { quants, quants_at, floats: [(); 3].map(|()| vec![0.0; len / BLOCK_LEN]) }
    }

    /// Overwrites the buffers with zeros.
    pub(crate) fn erase(&mut self) {
        self.quants.fill(0);
        self.floats.iter_mut().for_each(|floats| floats.fill(0.0));
    }

    /// Returns the super-block `index` of the tokens of a tile, out of `tiles`.
    pub(crate) fn panel(&self, tiles: usize, tile: usize, index: usize) -> TilePanel<'_> {
        let TileTokens { quants, scales, biases, sums } = self.all();
        let at = index * tiles + tile;
        TilePanel { quants: &quants[at], scales: &scales[at], biases: &biases[at], sums: &sums[at] }
    }

    /// Returns all super-blocks there is room for: those of the call, where it has one tile.
    pub(crate) fn all(&self) -> TileTokens<'_> {
        let quants = self.quants[self.quants_at..].as_chunks().0.as_chunks().0.as_chunks().0;
        let [scales, biases, sums] =
            self.floats.each_ref().map(|floats| floats.as_chunks().0.as_chunks().0);
        TileTokens { quants, scales, biases, sums }
    }

    /// Returns what writes so many tokens.
    pub(crate) fn writer(&mut self, tokens: usize) -> TileWriter<'_> {
        TileWriter {
            tiles: tokens.div_ceil(TILE_TOKENS),
            quants: Disjoint::new(&mut self.quants[self.quants_at..]),
            floats: self.floats.each_mut().map(|floats| Disjoint::new(floats)),
        }
    }
}

/// Writes the rows of a call, from several threads.
pub(crate) struct TileWriter<'a> {
    /// Those of the call.
    tiles: usize,
    quants: Disjoint<'a, i8>,
    /// Scales, biases, sums.
    floats: [Disjoint<'a, f32>; 3],
}

impl TileWriter<'_> {
    /// Returns where the row of a block of a token starts, in rows.
    fn row(&self, block: usize, token: usize) -> usize {
        let (part, block) = (block / SUPER_BLOCKS, block % SUPER_BLOCKS);
        let (tile, row) = (token / TILE_TOKENS, token % TILE_TOKENS);
        ((part * self.tiles + tile) * SUPER_BLOCKS + block) * TILE_TOKENS + row
    }

    /// Asks for the place of a block of some tokens, which will be written.
    pub(crate) fn ask(&self, first: usize, width: usize, block: usize) {
        for token in first..first + width {
            let at = self.row(block, token);
            self.quants.ask(at * BLOCK_LEN, BLOCK_LEN);
            if token == first || token % TILE_TOKENS == 0 {
                self.floats.iter().for_each(|floats| floats.ask(at, 1));
            }
        }
    }

    /// Quantises `x: [tokens, cols]`, whole super-blocks of columns.
    pub(crate) fn write_all(&self, pool: &Pool, isa: Isa, x: &[f32], cols: usize) {
        let len = SUPER_BLOCKS * BLOCK_LEN;
        assert!(cols.is_multiple_of(len), "forms on tiles have whole super-blocks");
        let parts = cols / len;
        pool.run(parts * self.tiles, &|task| {
            let (tile, part) = (task / parts, task % parts);
            let tokens = x.chunks_exact(cols).enumerate().skip(tile * TILE_TOKENS);
            for (token, x) in tokens.take(TILE_TOKENS) {
                let x = &x[part * len..][..len];
                // SAFETY: each task has a super-block of the tokens of a tile of its own.
                unsafe { self.write(isa, token, part * SUPER_BLOCKS, x, len) }
            }
        });
    }

    /// Quantises the blocks from `first_block` on of the tokens from `first` on.
    ///
    /// Shape: `x: [tokens, cols]`, `cols` being those of the blocks.
    ///
    /// # Safety
    ///
    /// Nobody else may work on these blocks of these tokens meanwhile.
    pub(crate) unsafe fn write(
        &self,
        isa: Isa,
        first: usize,
        first_block: usize,
        x: &[f32],
        cols: usize,
    ) {
        for (token, x) in x.chunks_exact(cols).enumerate() {
            let token = first + token;
            #[cfg(target_arch = "x86_64")]
            if let Isa::Amx(proof) = isa {
                // SAFETY: the caller's word is passed on.
                unsafe { avx512::quantize_token(proof.avx512(), self, token, first_block, x) };
                continue;
            }
            // SAFETY: as above.
            unsafe { self.write_token(token, first_block, x, quantize_block) };
        }
        let _ = isa;
    }

    /// Quantises the blocks from `first_block` on of a token, each by `quantize`.
    ///
    /// # Safety
    ///
    /// Nobody else may work on these blocks of this token meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn write_token(
        &self,
        token: usize,
        first_block: usize,
        x: &[f32],
        quantize: impl Fn(&[f32; BLOCK_LEN]) -> QuantBlock,
    ) {
        for (index, x) in x.as_chunks().0.iter().enumerate() {
            let block = quantize(x);
            let at = self.row(first_block + index, token);
            // SAFETY: a block of a token has these quants, and the caller has it alone.
            let quants = unsafe { self.quants.part(at * BLOCK_LEN, BLOCK_LEN) };
            quants.copy_from_slice(&block.quants);
            let [left, right] = block.sums;
            let floats = [block.scale, -MAGIC * block.scale, block.scale * (left + right) as f32];
            for (target, float) in self.floats.iter().zip(floats) {
                // SAFETY: as above.
                let target = unsafe { target.part(at, 1) };
                target[0] = float;
            }
        }
    }

    /// Copies the blocks from `first_block` on of the tokens from `first` on.
    ///
    /// # Safety
    ///
    /// Nobody else may work on these blocks of these tokens meanwhile.
    pub(crate) unsafe fn copy(&self, first: usize, first_block: usize, panel: &PanelMut<'_>) {
        let width = panel.width;
        let quants = panel.quants.as_chunks::<4>().0.chunks_exact(width * BLOCK_LEN / 4);
        let sources = [&*panel.scales, &*panel.biases, &*panel.sums];
        for (index, quants) in quants.enumerate() {
            for i in 0..width {
                let at = self.row(first_block + index, first + i);
                // SAFETY: a block of a token has these quants, and the caller has it alone.
                let target = unsafe { self.quants.part(at * BLOCK_LEN, BLOCK_LEN) };
                let groups = quants[i..].iter().step_by(width);
                for (target, group) in target.as_chunks_mut().0.iter_mut().zip(groups) {
                    *target = *group;
                }
                for (target, source) in self.floats.iter().zip(sources) {
                    // SAFETY: as above.
                    let target = unsafe { target.part(at, 1) };
                    target[0] = source[index * width + i];
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const TOKENS: usize = 25;
    pub(crate) const COLS: usize = 512;

    /// Ties, tiny and huge blocks, a NaN.
    pub(crate) fn activations() -> Vec<f32> {
        let value = |i: usize| {
            let unit = [1.0, 1e-35, 3e29, 0.0, 1e-3][i / 32 % 5];
            ((i * 7919 % 1021) as f32 / 4.0 - 127.5) * unit
        };
        let mut x: Vec<f32> = (0..TOKENS * COLS).map(value).collect();
        x[3 * COLS + 70] = f32::NAN;
        x
    }

    /// Asserts that each row of a token is its block, and that those of no token were left alone.
    pub(crate) fn assert_written(all: &TileActivations, name: &str) {
        let x = activations();
        let tiles = TOKENS.div_ceil(TILE_TOKENS);
        for token in 0..tiles * TILE_TOKENS {
            for block in 0..COLS / BLOCK_LEN {
                let panel = all.panel(tiles, token / TILE_TOKENS, block / SUPER_BLOCKS);
                let (block_at, row) = (block % SUPER_BLOCKS, token % TILE_TOKENS);
                let floats = [panel.scales, panel.biases, panel.sums];
                let got = floats.map(|floats| floats[block_at][row].to_bits());
                let quants = panel.quants[block_at][row];
                if token < TOKENS {
                    let x = &x[token * COLS..].as_chunks().0[block];
                    let want = quantize_block(x);
                    let sum = want.scale * (want.sums[0] + want.sums[1]) as f32;
                    let floats = [want.scale, -MAGIC * want.scale, sum].map(f32::to_bits);
                    assert_eq!((quants, got), (want.quants, floats), "{name} {token} {block}");
                } else {
                    assert_eq!((quants, got), ([7; BLOCK_LEN], [7.0_f32.to_bits(); 3]), "{name}");
                }
            }
        }
    }

    /// Returns whether nothing of any input is there.
    pub(crate) fn is_zero(all: &TileActivations) -> bool {
        all.quants.iter().all(|quant| *quant == 0)
            && all.floats.iter().flatten().all(|float| *float == 0.0)
    }

    pub(crate) fn marked() -> TileActivations {
        let mut all = TileActivations::new(COLS / BLOCK_LEN, TOKENS);
        all.quants.fill(7);
        all.floats.iter_mut().for_each(|floats| floats.fill(7.0));
        all
    }

    #[test]
    fn each_row_is_its_block_and_rows_of_no_token_are_left_alone() {
        let sets = Isa::available().into_iter().filter(|isa| isa.has_tiles());
        for isa in sets.chain([Isa::Reference]) {
            let mut all = marked();
            all.writer(TOKENS).write_all(&Pool::new(3), isa, &activations(), COLS);
            assert_written(&all, isa.name());
        }
    }

    #[test]
    fn tiles_are_for_a_panel_that_is_nearly_full_and_for_more_than_one() {
        let tiled: Vec<_> = (1..=24).filter(|tokens| are_tiled(*tokens)).collect();
        assert_eq!(tiled, [14, 15, 16, 19, 20, 21, 22, 23, 24]);
        assert!(are_tiled(usize::MAX));
    }
}
