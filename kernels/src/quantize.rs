//! Activations as signed bytes: what a fast product reads instead of the floats.
//!
//! Each 32 columns of a token share a scale: `x ≈ scale * quant`, `quant` in `-127..=127`. Tokens
//! lie in panels of [`PANEL_TOKENS`] (the last one narrower), and inside a panel everything that
//! a step of a kernel reads for the panel's tokens is contiguous.

use core::ops::Range;

use crate::isa::Isa;
use crate::packed::{BLOCK_LEN, Form, IntForm, Packed, Scales};
use crate::pool::{Disjoint, Pool};
pub(crate) use crate::quantize_tiles::{TILE_TOKENS, TilePanel, TileTokens, are_tiled, is_tiled};
use crate::quantize_tiles::{TileActivations, TileWriter};

/// Tokens that a kernel works on at a time: with two row vectors they fill 24 of 32 registers.
pub(crate) const PANEL_TOKENS: usize = 6;

/// 1.5 × 2^23. A float whose bits are `MAGIC_BITS + i` has the value `MAGIC + i` for
/// `|i| < 2^22`, so an integer sum that starts at `MAGIC_BITS` needs no conversion: the fused
/// `sum * scale - MAGIC * scale` is `i * scale` rounded once, because a scale has 16 significant
/// bits and `MAGIC * scale` is therefore exact.
pub(crate) const MAGIC: f32 = 12_582_912.0;
/// The bits of [`MAGIC`].
pub(crate) const MAGIC_BITS: i32 = 0x4B40_0000;

/// A block whose largest magnitude is below this is all zeros.
const MAGNITUDE_MIN: f32 = 1e-30;
/// A block whose largest magnitude is not below this, or that holds a NaN, has the scale NaN.
const MAGNITUDE_MAX: f32 = 1e30;

/// Which values an integer sum starts from: `MAGIC_BITS - zero * sum of the quants`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StartKind {
    zero: i32,
    sub_len: usize,
}

/// One for each form of weights with a zero byte, in the order of `Activations::starts`.
const START_KINDS: [StartKind; 4] = [
    StartKind { zero: 8, sub_len: BLOCK_LEN },
    StartKind { zero: 16, sub_len: BLOCK_LEN },
    StartKind { zero: 128, sub_len: BLOCK_LEN },
    StartKind { zero: 32, sub_len: BLOCK_LEN / 2 },
];

/// What of [`Activations`] a set of products reads beside the quants and their scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needed {
    starts: [bool; START_KINDS.len()],
    /// What products on tiles read, where there are such.
    tiles: bool,
    /// What other products read.
    panels: bool,
}

impl Needed {
    /// Returns what the products of bytes with these weights read; nothing if there are none.
    pub(crate) fn of<'w, 'a: 'w>(weights: impl Iterator<Item = &'w Packed<'a>>) -> Option<Self> {
        let mut needed = None::<Self>;
        for weights in weights {
            if let Form::Int(form) = weights.form() {
                needed.get_or_insert_default().add(form);
            }
        }
        needed
    }

    fn add(&mut self, form: IntForm) {
        if let Some(index) = start_index(form) {
            self.starts[index] = true;
        }
        self.tiles |= is_tiled(form);
        self.panels |= !is_tiled(form);
    }
}

/// Returns which starts a form reads; nothing if its bytes have no zero.
fn start_index(form: IntForm) -> Option<usize> {
    let kind = StartKind { zero: i32::from(form.zero), sub_len: form.scales.sub_len() };
    START_KINDS.iter().position(|known| *known == kind)
}

/// Buffers for the activations of one call, allocated once and reused.
pub struct Activations {
    cols_max: usize,
    tokens_max: usize,
    /// `[panels][cols / 4][panel tokens][4]`
    quants: Vec<i8>,
    /// `[panels][blocks][panel tokens]`
    scales: Vec<f32>,
    /// `-MAGIC * scale`, laid out as `scales`
    biases: Vec<f32>,
    /// `scale * sum of the quants`, laid out as `scales`
    sums: Vec<f32>,
    /// For each of `START_KINDS`: `[panels][cols / sub_len][panel tokens]`
    starts: [Vec<i32>; START_KINDS.len()],
    tiles: TileActivations,
    /// Whether the last call wrote panels; if not, what is in them is of a call before it.
    has_panels: bool,
}

/// Some blocks of the tokens of one panel.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// Tokens in the panel, `1..=PANEL_TOKENS`.
    pub(crate) width: usize,
    /// `[blocks * 8][width][4]`
    pub(crate) quants: &'a [i8],
    /// `[blocks][width]`
    pub(crate) scales: &'a [f32],
    /// `[blocks][width]`
    pub(crate) biases: &'a [f32],
    /// `[blocks][width]`
    pub(crate) sums: &'a [f32],
    /// `[blocks * BLOCK_LEN / sub_len][width]`; empty if the weights have a minimum
    pub(crate) starts: &'a [i32],
    /// The quants of the next panel, which are read after these; empty if this is the last
    pub(crate) next: &'a [i8],
    /// Its tokens
    next_width: usize,
}

impl Activations {
    /// Allocates for rows of up to `cols_max` columns and up to `tokens_max` tokens.
    ///
    /// # Panics
    ///
    /// Panics if the buffers' size overflows.
    #[must_use]
    pub fn new(cols_max: usize, tokens_max: usize) -> Self {
        let blocks = cols_max / BLOCK_LEN;
        let len = blocks.checked_mul(BLOCK_LEN * tokens_max).expect("the buffers' size is sane");
        let starts = START_KINDS.map(|kind| vec![0; len / kind.sub_len]);
        let floats = || vec![0.0; len / BLOCK_LEN];
        // Elsewhere nothing writes them.
        let has_tiles = Isa::detect().has_tiles();
        Self {
            cols_max,
            tokens_max,
            quants: vec![0; len],
            scales: floats(),
            biases: floats(),
            sums: floats(),
            starts,
            tiles: TileActivations::new(if has_tiles { blocks } else { 0 }, tokens_max),
            has_panels: true,
        }
    }

    /// Returns whether so many tokens and columns fit.
    pub(crate) fn fits(&self, tokens: usize, cols: usize) -> bool {
        cols <= self.cols_max && tokens <= self.tokens_max
    }

    /// Overwrites the buffers with zeros, so that nothing of the last input stays.
    pub fn erase(&mut self) {
        self.quants.fill(0);
        for floats in [&mut self.scales, &mut self.biases, &mut self.sums] {
            floats.fill(0.0);
        }
        self.starts.iter_mut().for_each(|starts| starts.fill(0));
        self.tiles.erase();
    }

    /// Quantises `x: [tokens, cols]`, whole blocks of columns.
    pub(crate) fn quantize(
        &mut self,
        pool: &Pool,
        isa: Isa,
        needed: Needed,
        x: &[f32],
        cols: usize,
    ) {
        let writer = self.writer(isa, needed, x.len() / cols, cols);
        if let Some(tiles) = writer.only_tiles() {
            return tiles.write_all(pool, isa, x, cols);
        }
        let panels = x.len().div_ceil(PANEL_TOKENS * cols);
        pool.run(panels, &|panel| {
            let first = panel * PANEL_TOKENS;
            let x = &x[first * cols..x.len().min((first + PANEL_TOKENS) * cols)];
            // SAFETY: each task has a panel of its own.
            unsafe { writer.write(isa, first, 0..cols / BLOCK_LEN, x) }
        });
    }

    /// Returns what writes `tokens` tokens of `cols` columns, for products that need so much.
    pub(crate) fn writer(
        &mut self,
        isa: Isa,
        needed: Needed,
        tokens: usize,
        cols: usize,
    ) -> Writer<'_> {
        let has_tiles = needed.tiles && isa.has_tiles() && are_tiled(tokens);
        self.has_panels = needed.panels || !has_tiles;
        let floats = [&mut self.scales, &mut self.biases, &mut self.sums];
        Writer {
            needed,
            cols,
            quants: Disjoint::new(&mut self.quants),
            floats: floats.map(|floats| Disjoint::new(floats)),
            starts: self.starts.each_mut().map(|starts| Disjoint::new(starts)),
            tiles: has_tiles.then(|| self.tiles.writer(tokens)),
        }
    }

    /// Returns the super-block `index` of the tokens of a tile, out of `tiles`, for weights of a form on
    /// tiles that `quantize` was told of.
    pub(crate) fn tile_panel(&self, tiles: usize, tile: usize, index: usize) -> TilePanel<'_> {
        self.tiles.panel(tiles, tile, index)
    }

    /// Returns the super-blocks of a call of one tile, for weights of a form on tiles that `quantize`
    /// was told of; more may follow.
    pub(crate) fn tile_tokens(&self) -> TileTokens<'_> {
        self.tiles.all()
    }

    /// Returns all blocks of a panel, for weights of a form that `quantize` was told of and whose products
    /// are not made on tiles.
    #[inline]
    pub(crate) fn panel(
        &self,
        form: IntForm,
        tokens: usize,
        cols: usize,
        first: usize,
    ) -> Panel<'_> {
        assert!(self.has_panels, "what reads panels was told to `quantize`");
        let width = PANEL_TOKENS.min(tokens - first);
        let blocks = cols / BLOCK_LEN;
        let floats = first * blocks..(first + width) * blocks;
        let (end, next_end) = (first + width, tokens.min(first + width + PANEL_TOKENS));
        let starts = start_index(form).map_or(&[][..], |index| {
            let subs = cols / START_KINDS[index].sub_len;
            &self.starts[index][first * subs..(first + width) * subs]
        });
        Panel {
            width,
            quants: &self.quants[first * cols..end * cols],
            scales: &self.scales[floats.clone()],
            biases: &self.biases[floats.clone()],
            sums: &self.sums[floats],
            starts,
            next: &self.quants[end * cols..next_end * cols],
            next_width: next_end - end,
        }
    }
}

impl<'a> Panel<'a> {
    /// Returns a range of the blocks.
    #[inline]
    pub(crate) fn blocks(&self, scales: Scales, start: usize, len: usize) -> Self {
        let subs = BLOCK_LEN / scales.sub_len() * self.width;
        let floats = |all: &'a [f32]| &all[start * self.width..][..len * self.width];
        let quants =
            |all: &'a [i8], width| &all[start * BLOCK_LEN * width..][..len * BLOCK_LEN * width];
        let starts = match self.starts {
            [] => &[][..],
            starts => &starts[start * subs..][..len * subs],
        };
        Self {
            width: self.width,
            quants: quants(self.quants, self.width),
            scales: floats(self.scales),
            biases: floats(self.biases),
            sums: floats(self.sums),
            starts,
            next: quants(self.next, self.next_width),
            next_width: self.next_width,
        }
    }
}

/// Writes the panels of a call, the rows of tiles, or both, from several threads.
pub(crate) struct Writer<'a> {
    needed: Needed,
    cols: usize,
    quants: Disjoint<'a, i8>,
    /// Scales, biases, sums.
    floats: [Disjoint<'a, f32>; 3],
    starts: [Disjoint<'a, i32>; START_KINDS.len()],
    tiles: Option<TileWriter<'a>>,
}

impl Writer<'_> {
    /// Quantises some blocks of columns of the panel whose first token is `first`.
    ///
    /// Shape: `x: [tokens of the panel, columns of the blocks]`.
    ///
    /// # Safety
    ///
    /// Nobody else may work on these blocks of this panel meanwhile.
    pub(crate) unsafe fn write(&self, isa: Isa, first: usize, blocks: Range<usize>, x: &[f32]) {
        let cols = blocks.len() * BLOCK_LEN;
        if let Some(tiles) = self.only_tiles() {
            // SAFETY: the caller's word is passed on.
            return unsafe { tiles.write(isa, first, blocks.start, x, cols) };
        }
        let width = x.len() / cols;
        // Where the blocks start in an array that has an element for so many columns of a token.
        let at =
            |cols_each: usize| (first * self.cols + blocks.start * BLOCK_LEN * width) / cols_each;
        // SAFETY: the blocks of a panel are contiguous, and the caller has them alone.
        let quants = unsafe { self.quants.part(at(1), width * cols) };
        let [scales, biases, sums] = self.floats.each_ref().map(|floats| {
            // SAFETY: as above.
            unsafe { floats.part(at(BLOCK_LEN), width * blocks.len()) }
        });
        let starts = core::array::from_fn(|kind| {
            let sub_len = START_KINDS[kind].sub_len;
            let len = if self.needed.starts[kind] { width * cols / sub_len } else { 0 };
            // SAFETY: as above.
            unsafe { self.starts[kind].part(at(sub_len), len) }
        });
        let mut target = PanelMut { width, quants, scales, biases, sums, starts };
        quantize_panel(isa, x, cols, &mut target);
        if let Some(tiles) = &self.tiles {
            // SAFETY: the caller's word is passed on.
            unsafe { tiles.copy(first, blocks.start, &target) };
        }
    }

    /// Returns what writes for tiles, if nobody reads panels.
    fn only_tiles(&self) -> Option<&TileWriter<'_>> {
        self.tiles.as_ref().filter(|_| !self.needed.panels)
    }

    /// Asks for the place of one block of a panel of `width` tokens, which will be written.
    pub(crate) fn ask(&self, first: usize, width: usize, block: usize) {
        if let Some(tiles) = &self.tiles {
            // Who asks writes for one matrix, and has one or the other.
            return tiles.ask(first, width, block);
        }
        let at = |cols_each: usize| (first * self.cols + block * BLOCK_LEN * width) / cols_each;
        self.quants.ask(at(1), width * BLOCK_LEN);
        self.floats.iter().for_each(|floats| floats.ask(at(BLOCK_LEN), width));
        for (starts, kind) in self.starts.iter().zip(START_KINDS) {
            starts.ask(at(kind.sub_len), width * BLOCK_LEN / kind.sub_len);
        }
    }
}

/// Where blocks of a panel are written; as [`Panel`], with every kind of starts.
pub(crate) struct PanelMut<'a> {
    pub(crate) width: usize,
    pub(crate) quants: &'a mut [i8],
    pub(crate) scales: &'a mut [f32],
    pub(crate) biases: &'a mut [f32],
    pub(crate) sums: &'a mut [f32],
    starts: [&'a mut [i32]; START_KINDS.len()],
}

fn quantize_panel(isa: Isa, x: &[f32], cols: usize, target: &mut PanelMut<'_>) {
    match isa {
        Isa::Reference => write_panel(x, cols, target, quantize_block),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => crate::avx2::quantize_panel(proof, x, cols, target),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni(proof) => crate::avx2::quantize_panel(proof.avx2(), x, cols, target),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => crate::avx512::quantize_panel(proof, x, cols, target),
        #[cfg(target_arch = "x86_64")]
        Isa::Amx(proof) => crate::avx512::quantize_panel(proof.avx512(), x, cols, target),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(proof) => crate::neon::quantize_panel(proof, x, cols, target),
        #[cfg(target_arch = "aarch64")]
        Isa::Dotprod(proof) => crate::neon::quantize_panel(proof.neon(), x, cols, target),
    }
}

/// Quantises the tokens of a panel, a block at a time by `quantize`.
#[inline(always)]
pub(crate) fn write_panel(
    x: &[f32],
    cols: usize,
    target: &mut PanelMut<'_>,
    quantize: impl Fn(&[f32; BLOCK_LEN]) -> QuantBlock,
) {
    match target.width {
        1 => write_tokens::<1>(x, cols, target, quantize),
        2 => write_tokens::<2>(x, cols, target, quantize),
        3 => write_tokens::<3>(x, cols, target, quantize),
        4 => write_tokens::<4>(x, cols, target, quantize),
        5 => write_tokens::<5>(x, cols, target, quantize),
        _ => write_tokens::<PANEL_TOKENS>(x, cols, target, quantize),
    }
}

/// Does so for a panel of `WIDTH` tokens.
#[inline(always)]
fn write_tokens<const WIDTH: usize>(
    x: &[f32],
    cols: usize,
    target: &mut PanelMut<'_>,
    quantize: impl Fn(&[f32; BLOCK_LEN]) -> QuantBlock,
) {
    let x: [&[[f32; BLOCK_LEN]]; WIDTH] =
        core::array::from_fn(|token| x[token * cols..][..cols].as_chunks().0);
    let quants: &mut [[[[i8; 4]; WIDTH]; BLOCK_LEN / 4]] =
        target.quants.as_chunks_mut().0.as_chunks_mut().0.as_chunks_mut().0;
    let scales = target.scales.as_chunks_mut::<WIDTH>().0.iter_mut();
    let biases = target.biases.as_chunks_mut::<WIDTH>().0.iter_mut();
    let sums = target.sums.as_chunks_mut::<WIDTH>().0.iter_mut();
    let mut starts =
        target.starts.each_mut().map(|starts| starts.as_chunks_mut::<WIDTH>().0.iter_mut());
    let floats = scales.zip(biases).zip(sums);
    for ((block, quants), ((scales, biases), sums)) in quants.iter_mut().enumerate().zip(floats) {
        let mut starts_here = [const { [None, None] }; START_KINDS.len()];
        for (kind, (starts, here)) in
            START_KINDS.iter().zip(starts.iter_mut().zip(&mut starts_here))
        {
            here[0] = starts.next();
            if kind.sub_len < BLOCK_LEN {
                here[1] = starts.next();
            }
        }
        for token in 0..WIDTH {
            let block = quantize(&x[token][block]);
            for (groups, group) in quants.iter_mut().zip(block.quants.as_chunks().0) {
                groups[token] = *group;
            }
            let [left, right] = block.sums;
            scales[token] = block.scale;
            biases[token] = -MAGIC * block.scale;
            sums[token] = block.scale * (left + right) as f32;
            // Written one by one, as all else here: gathered first, they would be read back as vectors
            // before they are through, which took half of all time.
            for (kind, [first, second]) in START_KINDS.iter().zip(&mut starts_here) {
                let rest = if kind.sub_len < BLOCK_LEN { 0 } else { right };
                if let Some(first) = first {
                    first[token] = MAGIC_BITS - kind.zero * (left + rest);
                }
                if let Some(second) = second {
                    second[token] = MAGIC_BITS - kind.zero * right;
                }
            }
        }
    }
}

/// A block of one token.
pub(crate) struct QuantBlock {
    pub(crate) scale: f32,
    pub(crate) quants: [i8; BLOCK_LEN],
    /// The sums of the first and the second 16 quants.
    pub(crate) sums: [i32; 2],
}

/// Returns the scale of a block, and what its values are multiplied by, from the bits of its
/// largest magnitude.
#[inline(always)]
pub(crate) fn scale_and_inverse(magnitude: u32) -> (f32, f32) {
    let magnitude = f32::from_bits(magnitude);
    // Rounded up to 16 significant bits (see `MAGIC`), so that no quant is above 127.
    let scale = f32::from_bits((magnitude / 127.0).to_bits().wrapping_add(0xFF) & !0xFF);
    let is_told = (MAGNITUDE_MIN..MAGNITUDE_MAX).contains(&magnitude);
    let inverse = if is_told { 1.0 / scale } else { 0.0 };
    let untold = if magnitude < MAGNITUDE_MIN { 0.0 } else { f32::NAN };
    (if is_told { scale } else { untold }, inverse)
}

/// Quantises a block: the meaning of every other version.
pub(crate) fn quantize_block(x: &[f32; BLOCK_LEN]) -> QuantBlock {
    // A NaN must not get lost in the maximum: compared as bits it is above every number.
    let magnitude = x.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7FFF_FFFF));
    let (scale, inverse) = scale_and_inverse(magnitude);
    // Adding `MAGIC` rounds to the nearest integer, ties to even, into the low bits.
    let quants = x.map(|x| (x * inverse + MAGIC).to_bits() as i8);
    let sum = |quants: &[i8]| quants.iter().map(|&quant| i32::from(quant)).sum();
    QuantBlock { scale, quants, sums: [sum(&quants[..16]), sum(&quants[16..])] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_within_half_a_step_and_its_largest_value_is_127_steps() {
        for exponent in [-90, -20, 0, 3, 90] {
            let unit = 2.0_f32.powi(exponent);
            let x: [f32; 32] = core::array::from_fn(|i| unit * ((i * 37 % 32) as f32 - 15.3));
            let QuantBlock { scale, quants, .. } = quantize_block(&x);
            assert_eq!(scale.to_bits() & 0xFF, 0);
            assert_eq!(quants.iter().map(|quant| quant.unsigned_abs()).max(), Some(127));
            for (x, quant) in x.iter().zip(quants) {
                let error = f64::from(*x) - f64::from(scale) * f64::from(quant);
                assert!(error.abs() <= f64::from(scale) * 0.500_01, "{x} {quant} {scale}");
            }
        }
    }

    #[test]
    fn zeros_stay_zero_and_what_cannot_be_told_is_poisoned() {
        for tiny in [0.0, 1e-40] {
            let block = quantize_block(&[tiny; 32]);
            assert_eq!((block.scale, block.quants, block.sums), (0.0, [0; 32], [0; 2]));
        }
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e31] {
            let mut x = [1.0; 32];
            x[17] = bad;
            assert!(quantize_block(&x).scale.is_nan());
        }
    }

    #[test]
    fn every_instruction_set_quantises_alike() {
        // Ties, tiny and huge blocks, signs; a panel and a half of tokens.
        let value = |i: usize| {
            let unit = [1.0, 1e-35, 1e-29, 3e29, 0.0, 1e-3][i / 32 % 6];
            ((i * 7919 % 1021) as f32 / 4.0 - 127.5) * unit
        };
        let x: Vec<f32> = (0..9 * 192).map(value).collect();
        let run = |isa| {
            let mut all = Activations::new(192, 9);
            all.quantize(
                &Pool::new(1),
                isa,
                Needed { starts: [true; 4], tiles: true, panels: true },
                &x,
                192,
            );
            let floats = [all.scales, all.biases, all.sums];
            (
                all.quants,
                floats.map(|floats| floats.iter().map(|x| x.to_bits()).collect::<Vec<_>>()),
                all.starts,
            )
        };
        let want = run(Isa::Reference);
        for isa in Isa::available() {
            assert_eq!(run(isa), want, "{}", isa.name());
        }
    }

    #[test]
    fn panels_are_written_only_if_somebody_reads_them_and_all_is_erased() {
        use crate::quantize_tiles::tests::{
            COLS, TOKENS, activations, assert_written, is_zero, marked,
        };
        for isa in Isa::available() {
            for panels in [false, true] {
                let needed = Needed { starts: [panels; 4], tiles: true, panels };
                let mut all = Activations::new(COLS, TOKENS);
                if isa.has_tiles() {
                    all.tiles = marked();
                }
                all.quantize(&Pool::new(2), isa, needed, &activations(), COLS);
                if isa.has_tiles() {
                    assert_written(&all.tiles, isa.name());
                }
                let is_only_tiles = isa.has_tiles() && !panels;
                assert_eq!(all.quants.iter().all(|quant| *quant == 0), is_only_tiles);
                all.erase();
                let floats = [&all.scales, &all.biases, &all.sums];
                assert!(floats.into_iter().flatten().all(|float| *float == 0.0));
                assert!(all.quants.iter().all(|quant| *quant == 0));
                assert!(all.starts.iter().flatten().all(|start| *start == 0));
                assert!(is_zero(&all.tiles));
            }
        }
    }

    #[test]
    fn every_largest_value_gives_127() {
        let mut bits = 1.0_f32.to_bits();
        while bits < 2.0_f32.to_bits() {
            let quants = quantize_block(&[-f32::from_bits(bits); 32]).quants;
            assert_eq!(quants, [-127; 32]);
            bits += 997;
        }
    }
}
