//! Matrix products: `out[t, r] = Σ_k weights[r, k] * x[t, k]`.
//!
//! One product is the sum of one (row, token) in one lane with the columns in order, so it does
//! not depend on the number of tokens, on the other rows, on threads or on the instruction set.
//! With [`Precision::Int8`] and an integer format, for each sub-block of columns:
//!
//! ```text
//! dot  = Σ (byte - zero) * quant            exact, in integers
//! sum  = fma(dot * x_scale, scale, sum)     x_scale: of 32 columns; scale: of the sub-block
//! sum  = fma(x_scale * Σ quant, minimum, sum)      if the format has minima
//! ```
//!
//! Otherwise `sum = fma(weight, x, sum)` for each column, with the exact weight.

use core::mem::MaybeUninit;
use core::ops::Range;

use crate::isa::Isa;
use crate::packed::{BLOCK_LEN, Form, IntForm, IntTile, Packed, TILE_ROWS};
use crate::pool::{Disjoint, Pool};
use crate::prefetch::Ahead;
use crate::quantize::{Activations, PANEL_TOKENS, Panel, StartsNeeded};
use crate::reference;

/// How activations take part in a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As 32-bit floats, against the exact weights: the exact mode.
    F32,
    /// As bytes with a scale for 32 columns, where the format of the weights is an integer
    /// format of the packed layout; as 32-bit floats elsewhere.
    Int8,
}

/// One matrix of a call.
pub struct Product<'a> {
    /// `[rows, cols]`
    pub weights: Packed<'a>,
    /// `[tokens, rows]`
    pub out: &'a mut [f32],
}

/// Tiles that are worked on together: a unit. Each activation that is read serves both.
pub(crate) const UNIT_TILES: usize = 2;
/// Rows of a unit.
pub(crate) const UNIT_ROWS: usize = UNIT_TILES * TILE_ROWS;
/// The sums of one token.
pub(crate) type Sums = [f32; UNIT_ROWS];
/// A vector of one value for each row of a tile.
pub(crate) type Lanes = [f32; TILE_ROWS];

/// Most blocks of an [`IntChunk`], whole super-blocks: 33 KB that stay in the first-level cache.
pub(crate) const INT_CHUNK_BLOCKS: usize = 24;

/// Returns how many blocks are unpacked at a time, whole super-blocks. What is read only a few
/// times is best read while it is still at hand.
fn chunk_blocks(tokens: usize) -> usize {
    match tokens {
        0..=32 => 8,
        33..=96 => 16,
        _ => INT_CHUNK_BLOCKS,
    }
}

/// Columns of a [`FloatChunk`]: at least one block of every format.
pub(crate) const FLOAT_CHUNK_COLS: usize = 256;
/// Tokens whose sums are kept while the chunks of a unit go by: 66 KB.
pub(crate) const TOKENS_MAX: usize = 86 * PANEL_TOKENS;
/// Tokens from which on a unit is so long that a thread takes the next only when it has ended; up to
/// them, reading neighbours in one stream is worth more (measured with 8 to 32 tokens: 2 to 5 %).
const LONG_UNIT_TOKENS: usize = 65;
/// Products that share a parallel region.
const REGION_PRODUCTS: usize = 8;

/// Unpacked columns of a unit in an integer format.
#[repr(C, align(64))]
pub(crate) struct IntChunk {
    /// `[tile][column / 4][row][4]`
    pub(crate) bytes: [[[u8; 64]; INT_CHUNK_BLOCKS * 8]; UNIT_TILES],
    /// `[tile][sub-block]`
    pub(crate) scales: [[Lanes; INT_CHUNK_BLOCKS * 2]; UNIT_TILES],
    /// `[tile][block]`
    pub(crate) mins: [[Lanes; INT_CHUNK_BLOCKS]; UNIT_TILES],
}

impl IntChunk {
    pub(crate) fn zeroed() -> Self {
        Self {
            bytes: [[[0; 64]; INT_CHUNK_BLOCKS * 8]; UNIT_TILES],
            scales: [[[0.0; TILE_ROWS]; INT_CHUNK_BLOCKS * 2]; UNIT_TILES],
            mins: [[[0.0; TILE_ROWS]; INT_CHUNK_BLOCKS]; UNIT_TILES],
        }
    }
}

/// Unpacked columns of a unit as floats.
#[repr(C, align(64))]
pub(crate) struct FloatChunk {
    /// `[tile][column]`
    pub(crate) weights: [[Lanes; FLOAT_CHUNK_COLS]; UNIT_TILES],
}

impl FloatChunk {
    fn zeroed() -> Self {
        Self { weights: [[[0.0; TILE_ROWS]; FLOAT_CHUNK_COLS]; UNIT_TILES] }
    }
}

/// A range of the columns of one tile.
#[derive(Clone, Copy)]
pub(crate) enum TileCols<'a> {
    Int(IntTile<'a>),
    /// `[column][row]`
    F32(&'a [u8]),
    /// `[column][row]`
    F16(&'a [u8]),
    /// `[column][row]`
    Bf16(&'a [u8]),
    /// Matrix, first row, first column.
    Rows(&'a Packed<'a>, usize, usize),
}

/// What an instruction set implements. Lengths and shapes are the driver's duty; an
/// implementation checks those that its pointers rely on.
pub(crate) trait Kernel: Copy + Sync {
    /// Unpacks blocks of a tile into `chunk`, as tile `index` of its unit.
    fn unpack_int(self, tile: &IntTile<'_>, chunk: &mut IntChunk, index: usize);

    /// Adds the first blocks of `chunk` times `panel` to `sums: [panel.width]`; a step of `ahead` with
    /// each block, or as many before each part of the work, more rather than fewer. The plain version asks
    /// for nothing.
    fn multiply_int(
        self,
        form: IntForm,
        tiles: usize,
        chunk: &IntChunk,
        panel: &Panel<'_>,
        ahead: &mut Ahead<'_>,
        sums: &mut [Sums],
    );

    /// Most tokens, up to those of a panel, for which `multiply_direct` is the faster way.
    const DIRECT_TOKENS: usize;

    /// Computes whole tiles for the tokens of one panel, straight from the packed bytes; a step
    /// of `ahead` with each block of all tiles, or of its part with each block of a tile. The plain version
    /// asks for nothing.
    fn multiply_direct(
        self,
        tiles: &[IntTile<'_>],
        panel: &Panel<'_>,
        ahead: Ahead<'_>,
        sums: &mut [Sums],
    );

    /// Unpacks `len` columns of a tile to floats.
    fn unpack_float(self, tile: &TileCols<'_>, len: usize, chunk: &mut FloatChunk, index: usize);

    /// Adds the first columns of `chunk` times the tokens `x` to `sums: [x.len()]`.
    fn multiply_float(self, tiles: usize, chunk: &FloatChunk, x: &[&[f32]], sums: &mut [Sums]);
}

/// Multiplies several matrices by the same activations, in one parallel region.
///
/// Shapes: `x: [tokens, cols]`, each `out: [tokens, rows]`.
/// Allocates nothing.
///
/// # Panics
///
/// Panics if a shape does not fit or is larger than `scratch` was made for.
pub fn gemm(
    pool: &Pool,
    isa: Isa,
    precision: Precision,
    scratch: &mut Activations,
    x: &[f32],
    tokens: usize,
    products: &mut [Product<'_>],
) {
    if tokens == 0 || products.is_empty() {
        return;
    }
    let cols = x.len() / tokens;
    assert_eq!(x.len(), tokens * cols, "x is whole rows");
    assert!(scratch.fits(tokens, cols), "scratch is too small");
    for product in &*products {
        assert_eq!(product.weights.cols(), cols, "x and the weights have the same columns");
        assert_eq!(product.out.len(), tokens * product.weights.rows(), "out is [tokens, rows]");
    }
    if cols == 0 {
        products.iter_mut().for_each(|product| product.out.fill(0.0));
        return;
    }
    let weights = products.iter().map(|product| &product.weights);
    let weights = weights.filter(|weights| weights.reads_bytes(precision));
    if let Some(needed) = StartsNeeded::of(weights) {
        scratch.quantize(pool, isa, needed, x, cols);
    }
    let input = Input { precision, quantized: scratch, x, tokens, cols };
    run_products(pool, isa, &input, products);
}

/// Multiplies several matrices by activations that are quantised where they must be.
pub(crate) fn run_products(pool: &Pool, isa: Isa, input: &Input<'_>, products: &mut [Product<'_>]) {
    for products in products.chunks_mut(REGION_PRODUCTS) {
        match isa {
            Isa::Reference => run_region(pool, reference::Plain, input, products),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(proof) => run_region(pool, proof, input, products),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni(proof) => run_region(pool, proof, input, products),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(proof) => run_region(pool, proof, input, products),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(proof) => run_region(pool, proof, input, products),
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod(proof) => run_region(pool, proof, input, products),
        }
    }
}

/// The right-hand side of a call.
pub(crate) struct Input<'a> {
    pub(crate) precision: Precision,
    /// What products of bytes read.
    pub(crate) quantized: &'a Activations,
    /// `[tokens, cols]`: what the others read.
    pub(crate) x: &'a [f32],
    pub(crate) tokens: usize,
    pub(crate) cols: usize,
}

/// A product whose output is shared by the threads; a unit is a task.
struct Target<'a> {
    weights: Packed<'a>,
    out: Disjoint<'a, f32>,
}

impl Target<'_> {
    fn units(&self) -> usize {
        self.weights.tiles().div_ceil(UNIT_TILES)
    }
}

/// Returns the product and the unit of a task.
fn find_unit<'t, 'a>(
    targets: &'t [Option<Target<'a>>],
    mut task: usize,
) -> Option<(&'t Target<'a>, usize)> {
    for target in targets.iter().flatten() {
        if task < target.units() {
            return Some((target, task));
        }
        task -= target.units();
    }
    None
}

fn run_region<K: Kernel>(pool: &Pool, kernel: K, input: &Input<'_>, products: &mut [Product<'_>]) {
    let mut targets = [const { None }; REGION_PRODUCTS];
    for (target, product) in targets.iter_mut().zip(products) {
        *target = Some(Target { weights: product.weights, out: Disjoint::new(product.out) });
    }
    let n_tasks = targets.iter().flatten().map(Target::units).sum();
    run_units(pool, input, n_tasks, &|task, next, memory| {
        let next = next.and_then(|next| find_unit(&targets, next));
        let next = next.map_or(&[][..], |(target, unit)| unit_bytes(&target.weights, unit));
        if let Some((target, unit)) = find_unit(&targets, task) {
            run_unit(kernel, input, target, unit, next, memory);
        }
    });
}

/// Calls `run(task, next, memory)` for each unit, `next` being the one that this thread will, or
/// will likely, have after it.
pub(crate) fn run_units(
    pool: &Pool,
    input: &Input<'_>,
    n_tasks: usize,
    run: &(dyn Fn(usize, Option<usize>, &mut Memory) + Sync),
) {
    pool.run_each(n_tasks, &|tasks| {
        let mut memory = Memory::default();
        if input.tokens < LONG_UNIT_TOKENS {
            tasks.for_each(|(task, next)| run(task, next, &mut memory));
        } else {
            tasks.one_by_one(|task, next| run(task, next, &mut memory));
        }
    });
}

/// What a thread keeps from unit to unit, so that it is cleared once: what a kind of product
/// needs is made when it is needed.
#[derive(Default)]
pub(crate) struct Memory {
    int: Option<IntChunk>,
    float: Option<FloatChunk>,
}

/// Returns the packed bytes of a unit of a tiled format.
pub(crate) fn unit_bytes<'a>(weights: &Packed<'a>, unit: usize) -> &'a [u8] {
    match weights.form() {
        Form::Rows => &[],
        _ => weights.tiles_bytes(unit * UNIT_TILES, UNIT_TILES),
    }
}

/// Computes a unit; `next` is what this thread will read after it.
fn run_unit<K: Kernel>(
    kernel: K,
    input: &Input<'_>,
    target: &Target<'_>,
    unit: usize,
    next: &[u8],
    memory: &mut Memory,
) {
    let mut room = Room::new();
    let mut next = Some(next);
    for first in (0..input.tokens).step_by(TOKENS_MAX) {
        let tokens = first..input.tokens.min(first + TOKENS_MAX);
        let part = UnitPart { weights: &target.weights, unit, tokens };
        let next = next.take().unwrap_or(&[]);
        part.sum(kernel, input, next, memory, &mut room, &mut |first, sums| {
            store(&target.out, target.weights.rows(), unit, first, sums);
        });
    }
}

/// A unit of a matrix and up to `TOKENS_MAX` tokens: what is computed in one go.
pub(crate) struct UnitPart<'w, 'a> {
    pub(crate) weights: &'w Packed<'a>,
    pub(crate) unit: usize,
    pub(crate) tokens: Range<usize>,
}

impl<'a> UnitPart<'_, 'a> {
    /// Computes the sums in `room`, and gives `finished` those of a panel as soon as they are,
    /// with the panel's first token; asks for the bytes `next` meanwhile.
    pub(crate) fn sum<K: Kernel>(
        &self,
        kernel: K,
        input: &Input<'_>,
        next: &[u8],
        memory: &mut Memory,
        room: &mut Room,
        finished: &mut impl FnMut(usize, &mut [Sums]),
    ) {
        match (self.weights.form(), input.precision) {
            (Form::Int(form), Precision::Int8) if input.tokens <= K::DIRECT_TOKENS => {
                let sums = self.sum_direct(kernel, form, input, next, room);
                finished(self.tokens.start, sums);
            }
            (Form::Int(form), Precision::Int8) => {
                let chunk = memory.int.get_or_insert_with(IntChunk::zeroed);
                self.sum_ints(kernel, form, input, next, chunk, room, finished);
            }
            _ => {
                let chunk = memory.float.get_or_insert_with(FloatChunk::zeroed);
                self.sum_floats(kernel, input, next, chunk, room, finished);
            }
        }
    }

    /// Returns the number of tiles.
    fn tiles(&self) -> usize {
        UNIT_TILES.min(self.weights.tiles() - self.unit * UNIT_TILES)
    }

    /// Returns the tiles of this integer format, of which the first `tiles` count.
    #[inline]
    fn int_tiles(&self, form: IntForm) -> [IntTile<'a>; UNIT_TILES] {
        let last = self.tiles() - 1;
        core::array::from_fn(|index| {
            let tile = self.unit * UNIT_TILES + index.min(last);
            IntTile::new(form, self.weights.cols(), self.weights.tile_bytes(tile))
        })
    }

    /// Returns the panels: the first token of each in `room`, and how many it has.
    fn panels(&self) -> impl Iterator<Item = (usize, usize)> {
        let tokens = self.tokens.len();
        (0..tokens).step_by(PANEL_TOKENS).map(move |at| (at, PANEL_TOKENS.min(tokens - at)))
    }

    /// A few tokens times integer weights, unpacked in registers.
    fn sum_direct<'r, K: Kernel>(
        &self,
        kernel: K,
        form: IntForm,
        input: &Input<'_>,
        next: &[u8],
        room: &'r mut Room,
    ) -> &'r mut [Sums] {
        let sums = room.part(0, input.tokens, true);
        let panel = input.quantized.panel(form, input.tokens, input.cols, 0);
        let ahead = Ahead::new(next, input.cols / BLOCK_LEN);
        kernel.multiply_direct(&self.int_tiles(form)[..self.tiles()], &panel, ahead, sums);
        sums
    }

    /// Many tokens times integer weights: each chunk is unpacked once for all of them.
    #[expect(clippy::too_many_arguments, reason = "see `sum`")]
    fn sum_ints<K: Kernel>(
        &self,
        kernel: K,
        form: IntForm,
        input: &Input<'_>,
        next: &[u8],
        chunk: &mut IntChunk,
        room: &mut Room,
        finished: &mut impl FnMut(usize, &mut [Sums]),
    ) {
        let (unit_tiles, tiles) = (self.int_tiles(form), self.tiles());
        let blocks = input.cols / BLOCK_LEN;
        let chunk_blocks = chunk_blocks(self.tokens.len());
        let panels = self.tokens.len().div_ceil(PANEL_TOKENS);
        let mut ahead = Ahead::new(next, blocks * panels);
        for start in (0..blocks).step_by(chunk_blocks) {
            let len = chunk_blocks.min(blocks - start);
            for (index, tile) in unit_tiles[..tiles].iter().enumerate() {
                kernel.unpack_int(&tile.blocks(start..start + len), chunk, index);
            }
            for (at, width) in self.panels() {
                let sums = room.part(at, width, start == 0);
                let first = self.tokens.start + at;
                let panel = input.quantized.panel(form, input.tokens, input.cols, first);
                let panel = panel.blocks(form.scales, start, len);
                kernel.multiply_int(form, tiles, chunk, &panel, &mut ahead, sums);
                if start + len == blocks {
                    finished(first, sums);
                }
            }
        }
    }

    /// Any number of tokens as floats times any weights.
    fn sum_floats<K: Kernel>(
        &self,
        kernel: K,
        input: &Input<'_>,
        next: &[u8],
        chunk: &mut FloatChunk,
        room: &mut Room,
        finished: &mut impl FnMut(usize, &mut [Sums]),
    ) {
        let (cols, tiles) = (input.cols, self.tiles());
        let panels = self.tokens.len().div_ceil(PANEL_TOKENS);
        let mut ahead = Ahead::new(next, cols.div_ceil(FLOAT_CHUNK_COLS) * panels);
        for start in (0..cols).step_by(FLOAT_CHUNK_COLS) {
            let len = FLOAT_CHUNK_COLS.min(cols - start);
            for index in 0..tiles {
                let tile = tile_cols(self.weights, self.unit * UNIT_TILES + index, start, len);
                kernel.unpack_float(&tile, len, chunk, index);
            }
            for (at, width) in self.panels() {
                let sums = room.part(at, width, start == 0);
                let first = self.tokens.start + at;
                let row = |i: usize| match first + i {
                    token if i < width => &input.x[token * cols + start..][..len],
                    _ => &[],
                };
                let x: [&[f32]; PANEL_TOKENS] = core::array::from_fn(row);
                ahead.step();
                kernel.multiply_float(tiles, chunk, &x[..width], sums);
                if start + len == cols {
                    finished(first, sums);
                }
            }
        }
    }
}

/// The sums of some tokens while the chunks of a unit go by; cleared where and when they are
/// first used, since clearing all of them ahead would be felt.
pub(crate) struct Room {
    sums: [MaybeUninit<Sums>; TOKENS_MAX],
    /// So many of `sums`, from the first on, were written.
    written: usize,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self { sums: [const { MaybeUninit::uninit() }; TOKENS_MAX], written: 0 }
    }

    /// Returns the sums of some tokens, zero when `is_first`.
    ///
    /// # Panics
    ///
    /// Panics if some of them were never asked for as the first.
    pub(crate) fn part(&mut self, first: usize, len: usize, is_first: bool) -> &mut [Sums] {
        let part = &mut self.sums[first..][..len];
        if is_first && first <= self.written {
            for sums in &mut *part {
                sums.write([0.0; UNIT_ROWS]);
            }
            self.written = self.written.max(first + len);
        }
        assert!(first + len <= self.written, "sums are cleared before they are added to");
        // SAFETY: all sums below `written` were written, and the assertion keeps the part there.
        unsafe { part.assume_init_mut() }
    }
}

/// Returns a range of the columns of a tile.
fn tile_cols<'a>(weights: &'a Packed<'a>, tile: usize, start: usize, len: usize) -> TileCols<'a> {
    let floats = |size: usize| {
        &weights.tile_bytes(tile)[start * TILE_ROWS * size..][..len * TILE_ROWS * size]
    };
    match weights.form() {
        Form::Int(_) => {
            let tile = weights.int_tile(tile).expect("the form is an integer form");
            TileCols::Int(tile.blocks(start / BLOCK_LEN..(start + len) / BLOCK_LEN))
        }
        Form::F32 => TileCols::F32(floats(4)),
        Form::F16 => TileCols::F16(floats(2)),
        Form::Bf16 => TileCols::Bf16(floats(2)),
        Form::Rows => TileCols::Rows(weights, tile * TILE_ROWS, start),
    }
}

/// Writes the sums of some tokens of a unit to `out: [tokens, rows]`, without the rows that fill up
/// the last tile.
pub(crate) fn store(
    out: &Disjoint<'_, f32>,
    rows: usize,
    unit: usize,
    first_token: usize,
    sums: &[Sums],
) {
    let first_row = unit * UNIT_ROWS;
    let len = UNIT_ROWS.min(rows - first_row);
    for (i, sums) in sums.iter().enumerate() {
        // SAFETY: a unit is the work of one task, and these are the outputs of its rows alone.
        let out = unsafe { out.part((first_token + i) * rows + first_row, len) };
        match out.first_chunk_mut() {
            Some(out) => *out = *sums,
            None => out.copy_from_slice(&sums[..len]),
        }
    }
}
