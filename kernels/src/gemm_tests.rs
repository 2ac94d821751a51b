//! Matrix products: every instruction set gives the bits of the reference, and the reference is
//! within a derived distance of the exact product.

use crate::formats::dequantize;
use crate::gemm::{IntChunk, Kernel, SUPER_BLOCKS, TOKENS_MAX, TileWork, UNIT_ROWS, UNIT_TILES};
use crate::gemm_memory::Tiled;
use crate::packed::{BLOCK_LEN, Form, IntForm, IntTile};
use crate::prefetch::Ahead;
use crate::quantize::{PANEL_TOKENS, TILE_TOKENS, is_tiled};
use crate::{
    Activations, Isa, Packed, Pool, Precision, Product, TensorType, Write, gemm, pack, packed_size,
};

/// A small generator of test data (PCG's multiplier, upper bits).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 32) as u32
    }

    /// In `-1.0..1.0`.
    fn unit(&mut self) -> f32 {
        self.bits() as f32 / 2_147_483_648.0 - 1.0
    }

    /// Activations as models have them: most small, a few outliers, a block of zeros.
    pub(crate) fn activations(&mut self, len: usize) -> Vec<f32> {
        let mut x: Vec<f32> = (0..len)
            .map(|_| self.unit() * if self.bits().is_multiple_of(64) { 30.0 } else { 1.0 })
            .collect();
        if len >= 96 {
            x[32..64].fill(0.0);
        }
        x
    }

    /// Blocks of any content whose weights are numbers of sane size.
    fn blocks(&mut self, ty: TensorType, count: usize) -> Vec<u8> {
        let mut weights = vec![0.0; ty.block_len()];
        let mut all = Vec::new();
        while all.len() < count * ty.block_size() {
            let mut block: Vec<u8> = (0..ty.block_size()).map(|_| self.bits() as u8).collect();
            self.set_scales(ty, &mut block);
            dequantize(ty, &block, &mut weights);
            if weights.iter().all(|weight| weight.abs() < 100.0) {
                all.extend_from_slice(&block);
            }
        }
        all
    }

    /// Gives the formats with an integer form scales near 0.01, of either sign.
    fn set_scales(&mut self, ty: TensorType, block: &mut [u8]) {
        let Form::Int(form) = Form::of(ty) else { return };
        let mut set = |at: usize| {
            let scale = half::f16::from_f32(self.unit() * 0.02);
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        };
        set(if ty == TensorType::Q6_K { 208 } else { 0 });
        if form.scales.has_min() {
            set(2);
        }
    }
}

pub(crate) struct Matrix {
    ty: TensorType,
    rows: usize,
    cols: usize,
    source: Vec<u8>,
    packed: Vec<u8>,
}

impl Matrix {
    pub(crate) fn random(random: &mut Random, ty: TensorType, rows: usize, cols: usize) -> Self {
        let source = random.blocks(ty, rows * cols / ty.block_len());
        let mut packed = vec![0xAA; packed_size(ty, rows, cols).unwrap()];
        pack(ty, rows, cols, &source, &mut packed);
        Self { ty, rows, cols, source, packed }
    }

    pub(crate) fn view(&self) -> Packed<'_> {
        Packed::new(self.ty, self.rows, self.cols, &self.packed).unwrap()
    }

    fn weights(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.rows * self.cols];
        dequantize(self.ty, &self.source, &mut weights);
        weights
    }

    pub(crate) fn times(&self, pool: &Pool, isa: Isa, precision: Precision, x: &[f32]) -> Vec<f32> {
        let tokens = x.len() / self.cols;
        let mut out = vec![f32::NAN; tokens * self.rows];
        let mut scratch = Activations::new(self.cols, tokens);
        let product = Product { weights: self.view(), out: &mut out, write: Write::Over };
        gemm(pool, isa, precision, &mut scratch, x, tokens, &mut [product]);
        out
    }
}

pub(crate) fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|float| float.to_bits()).collect()
}

/// Column counts: one block, a few, and across the border of a chunk.
fn column_counts(ty: TensorType) -> Vec<usize> {
    match ty.block_len() {
        1 => vec![1, 7, 40, 256, 300],
        256 => vec![256, 768, 1280],
        len => {
            vec![len, 3 * len, 544_usize.next_multiple_of(len), 1056_usize.next_multiple_of(len)]
        }
    }
}

#[test]
fn a_packed_row_unpacks_to_the_weights() {
    let mut random = Random(1);
    for ty in TensorType::all() {
        for cols in column_counts(ty) {
            for rows in [1, 16, 35] {
                let matrix = Matrix::random(&mut random, ty, rows, cols);
                let weights = matrix.weights();
                for (row, want) in weights.chunks_exact(cols).enumerate() {
                    let mut got = vec![0.0; cols];
                    matrix.view().unpack_row(row, &mut got);
                    assert_eq!(bits(&got), bits(want), "{ty:?} {rows}x{cols} row {row}");
                }
            }
        }
    }
}

#[test]
fn a_packed_size_is_whole_lines_and_never_overflows() {
    for ty in TensorType::all() {
        let cols = ty.block_len() * 3;
        let size = packed_size(ty, 33, cols).unwrap();
        assert_eq!(size % 64, 0);
        assert!(size >= 33 * ty.row_size(cols).unwrap());
        assert!(Packed::new(ty, 33, cols, &vec![0; size]).is_some());
        assert!(Packed::new(ty, 33, cols, &vec![0; size - 1]).is_none());
        assert_eq!(packed_size(ty, usize::MAX, cols), None);
        assert_eq!(packed_size(ty, 1 << 40, usize::MAX / ty.block_len() * ty.block_len()), None);
    }
    assert_eq!(packed_size(TensorType::Q4_K, 16, 255), None);
}

#[test]
fn every_instruction_set_gives_the_bits_of_the_reference() {
    let pools = [Pool::new(1), Pool::new(2), Pool::new(3)];
    let mut random = Random(2);
    for ty in TensorType::all() {
        for (i, cols) in column_counts(ty).into_iter().enumerate() {
            let rows = [17, 50, 1, 33, 16][i];
            let matrix = Matrix::random(&mut random, ty, rows, cols);
            let x = random.activations(48 * cols);
            for precision in [Precision::Int8, Precision::F32] {
                let want = matrix.times(&pools[0], Isa::Reference, precision, &x);
                for isa in Isa::available() {
                    for tokens in (1..=19).chain([23, 24, 25, 33, 41, 48]) {
                        let got =
                            matrix.times(&pools[tokens % 3], isa, precision, &x[..tokens * cols]);
                        // Every batch is the start of the largest: nothing depends on the batch.
                        assert_eq!(
                            bits(&got),
                            bits(&want[..tokens * rows]),
                            "{ty:?} {rows}x{cols} {precision:?} {} tokens {tokens}",
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}

/// The largest bytes against the largest quants: no partial sum may saturate or wrap.
#[test]
fn extreme_weights_and_activations_do_not_overflow() {
    let mut random = Random(9);
    let pool = Pool::new(1);
    for ty in TensorType::all().filter(|ty| matches!(Form::of(*ty), Form::Int(_))) {
        for fill in [0x00, 0xFF, 0x80, 0x7F] {
            let mut block = vec![fill; ty.block_size()];
            random.set_scales(ty, &mut block);
            let source = block.repeat(16 * 512 / ty.block_len());
            let mut packed = vec![0; packed_size(ty, 16, 512).unwrap()];
            pack(ty, 16, 512, &source, &mut packed);
            let matrix = Matrix { ty, rows: 16, cols: 512, source, packed };
            for sign in [1.0, -1.0] {
                let x = vec![sign; 19 * 512];
                let want = matrix.times(&pool, Isa::Reference, Precision::Int8, &x);
                let exact = f64::from(sign)
                    * matrix.weights()[..512].iter().map(|w| f64::from(*w)).sum::<f64>();
                assert!((f64::from(want[0]) - exact).abs() <= 1e-3 * exact.abs().max(1.0));
                for isa in Isa::available() {
                    for tokens in [1, 7, 16, 19] {
                        let got = matrix.times(&pool, isa, Precision::Int8, &x[..tokens * 512]);
                        assert_eq!(bits(&got), bits(&want[..tokens * 16]), "{ty:?} {fill} {isa:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_batch_larger_than_a_chunk_of_tokens_is_the_same() {
    use TensorType::{F16, Q4_1, Q4_K, Q5_0, Q5_K, Q6_K};
    let mut random = Random(3);
    let pool = Pool::new(1);
    // Of the last ones, three super-blocks and a last unit of a single tile of rows.
    for (ty, rows, cols) in [
        (Q5_0, 18, 64),
        (Q4_1, 18, 64),
        (F16, 18, 64),
        (Q4_K, 40, 768),
        (Q5_K, 40, 768),
        (Q6_K, 40, 768),
    ] {
        let matrix = Matrix::random(&mut random, ty, rows, cols);
        let tokens = TOKENS_MAX + 25;
        let x = random.activations(tokens * cols);
        for precision in [Precision::Int8, Precision::F32] {
            let want = matrix.times(&pool, Isa::Reference, precision, &x);
            let last = matrix.times(&pool, Isa::Reference, precision, &x[(tokens - 1) * cols..]);
            assert_eq!(bits(&last), bits(&want[(tokens - 1) * rows..]));
            for isa in Isa::available() {
                let got = matrix.times(&Pool::new(2), isa, precision, &x);
                assert_eq!(bits(&got), bits(&want), "{ty:?} {}", isa.name());
            }
        }
    }
}

#[test]
fn many_products_of_mixed_formats_share_a_region() {
    let mut random = Random(4);
    let pool = Pool::new(2);
    let matrices: Vec<Matrix> =
        TensorType::all().map(|ty| Matrix::random(&mut random, ty, 20, 256)).collect();
    for (isa, tokens) in
        Isa::available().into_iter().flat_map(|isa| [(isa, 2), (isa, 16), (isa, 25)])
    {
        let x = random.activations(tokens * 256);
        let mut outs = vec![vec![f32::NAN; tokens * 20]; matrices.len()];
        let mut products: Vec<Product<'_>> = matrices
            .iter()
            .zip(&mut outs)
            .map(|(matrix, out)| Product { weights: matrix.view(), out, write: Write::Over })
            .collect();
        let mut scratch = Activations::new(256, tokens);
        gemm(&pool, isa, Precision::Int8, &mut scratch, &x, tokens, &mut products);
        for (matrix, out) in matrices.iter().zip(&outs) {
            let want = matrix.times(&pool, Isa::Reference, Precision::Int8, &x);
            assert_eq!(bits(out), bits(&want), "{:?} {} {tokens}", matrix.ty, isa.name());
        }
    }
}

#[test]
fn a_reused_scratch_leaves_nothing_behind() {
    let mut random = Random(5);
    let pool = Pool::new(1);
    let mut scratch = Activations::new(512, 48);
    let mut leaves_nothing = |isa, ty, cols, tokens, broken: bool| {
        let matrix = Matrix::random(&mut random, ty, 19, cols);
        let mut x = random.activations(tokens * cols);
        if broken {
            x.iter_mut().step_by(7).for_each(|x| *x = f32::NAN);
        }
        let mut out = vec![f32::NAN; tokens * 19];
        let product = Product { weights: matrix.view(), out: &mut out, write: Write::Over };
        gemm(&pool, isa, Precision::Int8, &mut scratch, &x, tokens, &mut [product]);
        if !broken {
            let want = matrix.times(&pool, isa, Precision::Int8, &x);
            assert_eq!(bits(&out), bits(&want), "{ty:?} {cols} {tokens} {}", isa.name());
        }
    };
    for isa in Isa::available() {
        for (cols, tokens) in [(512, 9), (256, 1), (512, 2), (256, 8)] {
            leaves_nothing(isa, TensorType::Q6_K, cols, tokens, false);
        }
        // A tile has rows for more tokens than a call: what was there must not come near a result.
        for ty in [TensorType::Q4_K, TensorType::Q6_K] {
            for tokens in [14, 15, 19, 25] {
                leaves_nothing(isa, ty, 512, 48, true);
                leaves_nothing(isa, ty, 512, tokens, false);
            }
        }
    }
}

#[test]
fn a_product_onto_what_is_there_is_their_sum() {
    use TensorType::{F16, F32, Q4_K, Q6_K};
    let mut random = Random(9);
    let pool = Pool::new(2);
    // Whole units, and a last one that is cut; floats and bytes; no columns.
    let shapes = [(Q4_K, 64, 256), (Q6_K, 41, 256), (F16, 20, 24), (F32, 20, 0)];
    for (ty, rows, cols) in shapes {
        let matrix = Matrix::random(&mut random, ty, rows, cols);
        for tokens in [1, 7, 16, 41] {
            let x = random.activations(tokens * cols);
            let before = random.activations(tokens * rows);
            for isa in Isa::available() {
                let mut want = before.clone();
                if cols > 0 {
                    let product = matrix.times(&pool, isa, Precision::Int8, &x);
                    want.iter_mut().zip(product).for_each(|(want, value)| *want += value);
                }
                let mut out = before.clone();
                let mut scratch = Activations::new(cols, tokens);
                let product = Product { weights: matrix.view(), out: &mut out, write: Write::Onto };
                gemm(&pool, isa, Precision::Int8, &mut scratch, &x, tokens, &mut [product]);
                assert_eq!(bits(&out), bits(&want), "{ty:?} {tokens} {}", isa.name());
            }
        }
    }
}

/// The distance to the exact product is at most what rounding activations to bytes can cost, plus
/// what rounding each fold can.
#[test]
fn products_are_within_the_derived_distance_of_the_exact_ones() {
    let mut random = Random(6);
    let pool = Pool::new(1);
    for ty in TensorType::all() {
        let (rows, cols) = (21, if ty.block_len() == 1 { 320 } else { 1280 });
        let matrix = Matrix::random(&mut random, ty, rows, cols);
        let weights = matrix.weights();
        let x = random.activations(2 * cols);
        for precision in [Precision::F32, Precision::Int8] {
            let got = matrix.times(&pool, Isa::Reference, precision, &x);
            let is_int = precision == Precision::Int8 && matches!(Form::of(ty), Form::Int(_));
            for (i, got) in got.iter().enumerate() {
                let (x, w) = (&x[i / rows * cols..][..cols], &weights[i % rows * cols..][..cols]);
                let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                let bound = if is_int {
                    int8_bound(&matrix, i % rows, x, w)
                } else {
                    let sum: f64 = x.iter().zip(w).map(|(x, w)| f64::from((x * w).abs())).sum();
                    cols as f64 * f64::from(f32::EPSILON) * sum
                };
                let error = (f64::from(*got) - exact).abs();
                assert!(error <= bound, "{ty:?} {precision:?} {i}: {error} over {bound}");
            }
        }
    }
}

/// Half a step of each activation times its weight, and half an ulp of all terms for each fold.
fn int8_bound(matrix: &Matrix, row: usize, x: &[f32], weights: &[f32]) -> f64 {
    let view = matrix.view();
    let tile = view.int_tile(row / 16).unwrap();
    let sub_len = tile.form.scales.sub_len();
    let (mut steps, mut terms) = (0.0, 0.0);
    for (block, (x, weights)) in x.chunks_exact(32).zip(weights.chunks_exact(32)).enumerate() {
        let largest = x.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        // The scale is rounded up to 16 bits.
        let step = f64::from(largest) / 127.0 * (1.0 + 2.0_f64.powi(-15));
        for (i, (x, weight)) in x.iter().zip(weights).enumerate() {
            let (_, min) = tile.scale_and_min(row % 16, (block * 32 + i) / sub_len);
            steps += step * 0.500_01 * f64::from(weight.abs());
            terms += (f64::from(x.abs()) + step) * f64::from((weight - min).abs() + min.abs());
        }
    }
    let folds = x.len() / sub_len * 3 + 3;
    steps + folds as f64 * 2.0_f64.powi(-24) * terms
}

#[test]
fn outliers_of_one_block_do_not_reach_the_next() {
    let pool = Pool::new(1);
    let mut random = Random(7);
    let matrix = Matrix::random(&mut random, TensorType::Q4_K, 16, 512);
    let mut x = vec![0.001; 512];
    let small = matrix.times(&pool, Isa::detect(), Precision::Int8, &x);
    x[0] = f32::NAN;
    let poisoned = matrix.times(&pool, Isa::detect(), Precision::Int8, &x);
    assert!(small.iter().all(|value| value.is_finite()));
    assert!(poisoned.iter().all(|value| value.is_nan()));
}

#[test]
#[should_panic(expected = "x and the weights have the same columns")]
fn a_wrong_shape_is_a_programming_error() {
    let matrix = Matrix::random(&mut Random(8), TensorType::Q8_0, 16, 64);
    let mut out = vec![0.0; 16];
    let product = Product { weights: matrix.view(), out: &mut out, write: Write::Over };
    let mut scratch = Activations::new(64, 1);
    let x = [0.0; 32];
    gemm(&Pool::new(1), Isa::Reference, Precision::Int8, &mut scratch, &x, 1, &mut [product]);
}

/// Evaluates an expression with the proof of an instruction set that asks for memory, which all but the plain
/// one are.
macro_rules! with_proof {
    ($isa:expr, $proof:ident => $do:expr) => {
        match $isa {
            Isa::Reference => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2($proof) => $do,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni($proof) => $do,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512($proof) => $do,
            #[cfg(target_arch = "x86_64")]
            Isa::Amx($proof) => $do,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon($proof) => $do,
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod($proof) => $do,
        }
    };
}

/// Returns the integer formats.
fn int_forms() -> impl Iterator<Item = (TensorType, IntForm)> {
    TensorType::all().filter_map(|ty| match Form::of(ty) {
        Form::Int(form) => Some((ty, form)),
        _ => None,
    })
}

/// Multiplies so many blocks of zeros once; returns whether all that comes after them was asked for.
fn asks_for_all<K: Kernel>(
    kernel: K,
    form: IntForm,
    (tiles, width, blocks): (usize, usize, usize),
) -> bool {
    let (chunk, cols) = (IntChunk::zeroed(), blocks * BLOCK_LEN);
    let activations = Activations::new(cols, width);
    let panel = activations.panel(form, width, cols, 0);
    // A line for each block.
    let bytes = vec![0_u8; blocks * 64];
    let mut ahead = Ahead::new(&bytes, blocks);
    let mut sums = vec![[0.0; UNIT_ROWS]; width];
    kernel.multiply_int(form, tiles, &chunk, &panel, &mut ahead, &mut sums);
    ahead.is_done()
}

#[test]
fn every_set_but_the_plain_one_asks_for_all_that_comes_after_any_number_of_blocks() {
    for (ty, form) in int_forms() {
        for blocks in [1, 3, 7, 8, 14] {
            for (tiles, width) in (1..=UNIT_TILES)
                .flat_map(|tiles| (1..=PANEL_TOKENS).map(move |width| (tiles, width)))
            {
                let shape = (tiles, width, blocks);
                for isa in Isa::available() {
                    let is_done = with_proof!(isa, proof => asks_for_all(proof, form, shape));
                    let name = isa.name();
                    assert!(
                        is_done,
                        "{name}, {ty:?}: {blocks} blocks, {tiles} tiles, {width} tokens"
                    );
                }
            }
        }
    }
}

/// Multiplies tiles straight from the packed bytes by each number of tokens for which that is the way;
/// returns whether all that comes after them was asked for, and nothing left out.
fn asks_for_all_directly<K: Kernel>(kernel: K, form: IntForm, weights: &Packed<'_>) -> bool {
    let (cols, tiles) = (weights.cols(), weights.tiles());
    let tiles: Vec<_> =
        (0..tiles).map(|tile| IntTile::new(form, cols, weights.tile_bytes(tile))).collect();
    let steps = tiles.len() * cols / BLOCK_LEN;
    (1..=K::DIRECT_TOKENS).all(|tokens| {
        let activations = Activations::new(cols, tokens);
        let panel = |first| activations.panel(form, tokens, cols, first);
        let panels: Vec<_> = (0..tokens).step_by(PANEL_TOKENS).map(panel).collect();
        // A line for each step, and one more, which has none.
        let bytes = vec![0_u8; (steps + 1) * 64];
        let mut ahead = Ahead::new(&bytes[..steps * 64], steps);
        let mut beyond = Ahead::new(&bytes, steps + 1);
        let mut sums = vec![[0.0; UNIT_ROWS]; tokens];
        kernel.multiply_direct(&tiles, &panels, &mut ahead, &mut sums);
        sums.fill([0.0; UNIT_ROWS]);
        kernel.multiply_direct(&tiles, &panels, &mut beyond, &mut sums);
        ahead.is_done() && !beyond.is_done()
    })
}

#[test]
fn every_set_but_the_plain_one_asks_for_a_step_a_block_straight_from_the_packed_bytes() {
    let mut random = Random(11);
    for (ty, form) in int_forms() {
        for rows in [16, 32] {
            let matrix = Matrix::random(&mut random, ty, rows, 512);
            for isa in Isa::available() {
                let weights = matrix.view();
                let is_done =
                    with_proof!(isa, proof => asks_for_all_directly(proof, form, &weights));
                assert!(is_done, "{}, {ty:?}, {rows} rows", isa.name());
            }
        }
    }
}

/// Multiplies a super-block on tiles, where there are any; returns whether all that comes after it was
/// asked for, and nothing left out.
fn asks_for_all_on_tiles<K: Kernel>(kernel: K, form: IntForm) -> bool {
    if !K::TILED {
        return true;
    }
    let activations = Activations::new(SUPER_BLOCKS * BLOCK_LEN, TILE_TOKENS);
    let panel = activations.tile_panel(1, 0, 0);
    let Tiled { chunks: [chunk, _], mut dots } = Tiled::zeroed();
    let work = TileWork { index: 0, panel: &panel, has_begun: false, next: None };
    [TILE_TOKENS / 2, TILE_TOKENS].into_iter().all(|tokens| {
        // A line for each step, and one more, which has none.
        let bytes = [0_u8; (SUPER_BLOCKS + 1) * 64];
        let mut ahead = Ahead::new(&bytes[..SUPER_BLOCKS * 64], SUPER_BLOCKS);
        let mut beyond = Ahead::new(&bytes, SUPER_BLOCKS + 1);
        let mut sums = vec![[0.0; UNIT_ROWS]; tokens];
        kernel.with_tiles(|| {
            kernel.multiply_tiled(form, &chunk, &work, &mut dots, &mut ahead, &mut sums);
            kernel.multiply_tiled(form, &chunk, &work, &mut dots, &mut beyond, &mut sums);
        });
        ahead.is_done() && !beyond.is_done()
    })
}

#[test]
fn every_set_asks_for_a_step_a_block_on_tiles() {
    for (ty, form) in int_forms().filter(|(_, form)| is_tiled(*form)) {
        for isa in Isa::available() {
            let is_done = with_proof!(isa, proof => asks_for_all_on_tiles(proof, form));
            assert!(is_done, "{}, {ty:?}", isa.name());
        }
    }
}
