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

use core::ops::Range;

#[cfg(target_arch = "x86_64")]
pub(crate) use crate::gemm_memory::Group;
pub(crate) use crate::gemm_memory::{
    Chunks, FLOAT_CHUNK_COLS, FloatChunk, INT_CHUNK_BLOCKS, IntChunk, Memory, Room, SUPER_BLOCKS,
    TOKENS_MAX, TileChunk, TileDots, TileRing,
};
pub(crate) use crate::gemm_tiles::TileWork;
use crate::isa::Isa;
pub use crate::output::Write;
use crate::output::{clear, store};
use crate::packed::{BLOCK_LEN, Form, IntForm, IntTile, Packed, TILE_ROWS};
use crate::pool::{Disjoint, Pool};
use crate::prefetch::{Ahead, Beyond};
use crate::quantize::{
    Activations, Needed, PANEL_TOKENS, Panel, TILE_TOKENS, TileTokens, are_tiled, is_tiled,
};
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
    /// What becomes of the values of `out`.
    pub write: Write,
}

/// Tiles that are worked on together: a unit. Each activation that is read serves both.
pub(crate) const UNIT_TILES: usize = 2;
/// Rows of a unit.
pub(crate) const UNIT_ROWS: usize = UNIT_TILES * TILE_ROWS;
/// The sums of one token.
pub(crate) type Sums = [f32; UNIT_ROWS];
/// A vector of one value for each row of a tile.
pub(crate) type Lanes = [f32; TILE_ROWS];

/// Returns how many blocks are unpacked at a time, whole super-blocks. What is read only a few
/// times is best read while it is still at hand.
fn chunk_blocks(tokens: usize) -> usize {
    match tokens {
        0..=32 => 8,
        33..=96 => 16,
        _ => INT_CHUNK_BLOCKS,
    }
}

/// Most panels of a product that is computed straight from the packed bytes.
const DIRECT_PANELS: usize = 3;
/// Most tokens of such a product.
pub(crate) const DIRECT_TOKENS_MAX: usize = DIRECT_PANELS * PANEL_TOKENS;

/// Products that share a parallel region.
const REGION_PRODUCTS: usize = 8;

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

    /// Most tokens, up to [`DIRECT_TOKENS_MAX`], for which `multiply_direct` is the faster way where
    /// nothing is made on tiles.
    const DIRECT_TOKENS: usize;

    /// Computes whole tiles for the tokens of a few panels, whose sums are zero, straight from the packed
    /// bytes, one tile after the other: the hardware follows its few planes (side by side, two tiles were up
    /// to a quarter slower). A step of `ahead` with each block. The plain version asks for nothing.
    fn multiply_direct(
        self,
        tiles: &[IntTile<'_>],
        panels: &[Panel<'_>],
        ahead: &mut Ahead<'_>,
        sums: &mut [Sums],
    );

    /// Whether products with a form that [`is_tiled`] are made on tiles, for as many tokens as
    /// [`are_tiled`].
    const TILED: bool = false;

    /// Does `work` with tiles.
    fn with_tiles(self, work: impl FnOnce()) {
        work();
    }

    /// Unpacks a super-block of a tile. Called where `TILED` is set.
    fn unpack_tiled(self, _tile: &IntTile<'_>, _chunk: &mut TileChunk) {
        unreachable!("an instruction set without tiles is not asked for them");
    }

    /// Adds what was unpacked times a panel to the sums of its first 8 tokens, or of all 16. A step of
    /// `ahead` with each block. Called in `with_tiles`, where `TILED` is set.
    ///
    /// A call leaves the first products of its `next` in the tiles and in `dots`. The call after it, in
    /// the same `with_tiles`, must be that one, with the same `dots`, and say that it `has_begun`.
    fn multiply_tiled(
        self,
        _form: IntForm,
        _chunk: &TileChunk,
        _work: &TileWork<'_>,
        _dots: &mut TileDots,
        _ahead: &mut Ahead<'_>,
        _sums: &mut [Sums],
    ) {
        unreachable!("an instruction set without tiles is not asked for them");
    }

    /// Computes whole tiles of rows for all tokens of a panel, whose sums are zero, straight from the
    /// packed bytes. Called in `with_tiles`, where `TILED` is set.
    fn multiply_direct_tiled(
        self,
        _tiles: &[IntTile<'_>],
        _x: &TileTokens<'_>,
        _ring: &mut TileRing,
        _beyond: Beyond,
        _sums: &mut [Sums; TILE_TOKENS],
    ) {
        unreachable!("an instruction set without tiles is not asked for them");
    }

    /// Unpacks `len` columns of a tile to floats.
    fn unpack_float(self, tile: &TileCols<'_>, len: usize, chunk: &mut FloatChunk, index: usize);

    /// Adds the first columns of `chunk` times the tokens `x` to `sums: [x.len()]`.
    fn multiply_float(self, tiles: usize, chunk: &FloatChunk, x: &[&[f32]], sums: &mut [Sums]);
}

/// Calls `$body::<$given.., BITS, SUPER, MIN>(args..)` with what an integer format is: bits of a byte,
/// whether scales are bytes of a super-block, whether there are minima.
macro_rules! by_form {
    ($form:expr, $body:ident, [$($given:ident),*], $args:tt) => {{
        use $crate::packed::Scales;
        match ($form.bits, $form.scales) {
            (4, Scales::Plain) => $body::<$($given,)* 4, false, false> $args,
            (5, Scales::Plain) => $body::<$($given,)* 5, false, false> $args,
            (_, Scales::Plain) => $body::<$($given,)* 8, false, false> $args,
            (4, Scales::Min) => $body::<$($given,)* 4, false, true> $args,
            (_, Scales::Min) => $body::<$($given,)* 5, false, true> $args,
            (4, Scales::SuperMin) => $body::<$($given,)* 4, true, true> $args,
            (_, Scales::SuperMin) => $body::<$($given,)* 5, true, true> $args,
            (_, Scales::SuperPlain) => $body::<$($given,)* 6, true, false> $args,
        }
    }};
}
pub(crate) use by_form;

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
        products.iter_mut().for_each(|product| clear(product.out, product.write));
        return;
    }
    let weights = products.iter().map(|product| &product.weights);
    let weights = weights.filter(|weights| weights.reads_bytes(precision));
    if let Some(needed) = Needed::of(weights) {
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
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(proof) => run_region(pool, proof, input, products),
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

impl Input<'_> {
    /// Returns whether products are made on tiles, where the format of the weights is one for that.
    fn has_tiles<K: Kernel>(&self) -> bool {
        K::TILED && are_tiled(self.tokens)
    }
}

/// A product whose output is shared by the threads; a unit is a task.
struct Target<'a> {
    weights: Packed<'a>,
    out: Disjoint<'a, f32>,
    write: Write,
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
        let Product { weights, out, write } = product;
        *target = Some(Target { weights: *weights, out: Disjoint::new(out), write: *write });
    }
    let n_tasks = targets.iter().flatten().map(Target::units).sum();
    run_units(pool, kernel, input, n_tasks, &|task, next, memory| {
        let next = next.and_then(|next| find_unit(&targets, next));
        let next = next.map_or(&[][..], |(target, unit)| unit_bytes(&target.weights, unit));
        if let Some((target, unit)) = find_unit(&targets, task) {
            run_unit(kernel, input, target, unit, next, memory);
        }
    });
}

/// Calls `run(task, next, memory)` for each unit, `next` being the one that this thread will likely
/// have after it.
pub(crate) fn run_units<K: Kernel>(
    pool: &Pool,
    kernel: K,
    input: &Input<'_>,
    n_tasks: usize,
    run: &(dyn Fn(usize, Option<usize>, &mut Memory) + Sync),
) {
    pool.run_each(n_tasks, &|tasks| {
        let mut memory = Memory::new();
        let work = || tasks.for_each(|(task, next)| run(task, next, &mut memory));
        if input.has_tiles::<K>() {
            kernel.with_tiles(work);
        } else {
            work();
        }
    });
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
    let Memory { chunks, rooms: [room, _] } = memory;
    room.clear();
    let mut next = Some(next);
    for first in (0..input.tokens).step_by(TOKENS_MAX) {
        let tokens = first..input.tokens.min(first + TOKENS_MAX);
        let part = UnitPart { weights: &target.weights, unit, tokens };
        let next = next.take().unwrap_or(&[]);
        part.sum(kernel, input, next, chunks, room, &mut |first, sums| {
            store(&target.out, target.weights.rows(), unit, first, sums, target.write);
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
        chunks: &mut Chunks,
        room: &mut Room,
        finished: &mut impl FnMut(usize, &mut [Sums]),
    ) {
        match (self.weights.form(), input.precision) {
            (Form::Int(form), Precision::Int8) if input.has_tiles::<K>() && is_tiled(form) => {
                if input.tokens > TILE_TOKENS {
                    self.sum_tile_panels(kernel, form, input, next, chunks, room, finished);
                } else {
                    self.sum_tile_panel(kernel, form, input, next, chunks, room);
                    self.finish(room, finished);
                }
            }
            (Form::Int(form), Precision::Int8) if input.tokens <= K::DIRECT_TOKENS => {
                self.sum_direct(kernel, form, input, next, room);
                self.finish(room, finished);
            }
            (Form::Int(form), Precision::Int8) => {
                let chunk = chunks.int.get_or_insert_with(IntChunk::zeroed);
                self.sum_ints(kernel, form, input, next, chunk, room, finished);
            }
            _ => {
                let chunk = chunks.float.get_or_insert_with(FloatChunk::zeroed);
                self.sum_floats(kernel, input, next, chunk, room, finished);
            }
        }
    }

    /// Gives `finished` all panels.
    fn finish(&self, room: &mut Room, finished: &mut impl FnMut(usize, &mut [Sums])) {
        for (at, width) in self.panels() {
            finished(self.tokens.start + at, room.part(at, width, false));
        }
    }

    /// Returns the number of tiles.
    pub(crate) fn tiles(&self) -> usize {
        UNIT_TILES.min(self.weights.tiles() - self.unit * UNIT_TILES)
    }

    /// Returns the tiles of this integer format, of which the first `tiles` count.
    #[inline]
    pub(crate) fn int_tiles(&self, form: IntForm) -> [IntTile<'a>; UNIT_TILES] {
        let last = self.tiles() - 1;
        core::array::from_fn(|index| {
            let tile = self.unit * UNIT_TILES + index.min(last);
            IntTile::new(form, self.weights.cols(), self.weights.tile_bytes(tile))
        })
    }

    /// Returns what asks for this unit and the `next`, both ahead of `steps` steps of work.
    pub(crate) fn ahead<'u>(&'u self, next: &'u [u8], steps: usize) -> Ahead<'u> {
        Ahead::of_stream(unit_bytes(self.weights, self.unit), next, steps)
    }

    /// Returns the panels: the first token of each in `room`, and how many it has.
    pub(crate) fn panels(&self) -> impl Iterator<Item = (usize, usize)> {
        let tokens = self.tokens.len();
        (0..tokens).step_by(PANEL_TOKENS).map(move |at| (at, PANEL_TOKENS.min(tokens - at)))
    }

    /// A few tokens times integer weights, unpacked in registers.
    fn sum_direct<K: Kernel>(
        &self,
        kernel: K,
        form: IntForm,
        input: &Input<'_>,
        next: &[u8],
        room: &mut Room,
    ) {
        let sums = room.part(0, input.tokens, true);
        let panel =
            |index| input.quantized.panel(form, input.tokens, input.cols, index * PANEL_TOKENS);
        let mut ahead = self.ahead(next, input.cols / BLOCK_LEN * self.tiles());
        // Made where they are used: an array that is moved once more is felt in a unit so short.
        let tile = |index| {
            let tile = self.unit * UNIT_TILES + index;
            IntTile::new(form, self.weights.cols(), self.weights.tile_bytes(tile))
        };
        macro_rules! multiply {
            ($panels:expr) => {
                match self.tiles() {
                    1 => kernel.multiply_direct(&[tile(0)], $panels, &mut ahead, sums),
                    _ => kernel.multiply_direct(&[tile(0), tile(1)], $panels, &mut ahead, sums),
                }
            };
        }
        const { assert!(DIRECT_PANELS == 3 && K::DIRECT_TOKENS <= DIRECT_TOKENS_MAX) };
        match input.tokens.div_ceil(PANEL_TOKENS) {
            1 => multiply!(&[panel(0)]),
            2 => multiply!(&[panel(0), panel(1)]),
            _ => multiply!(&[panel(0), panel(1), panel(2)]),
        }
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
        let mut ahead = self.ahead(next, blocks * panels);
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
        let mut ahead = self.ahead(next, cols.div_ceil(FLOAT_CHUNK_COLS) * panels);
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
