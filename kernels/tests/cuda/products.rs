//! Products with matrices of every format: bit for bit the plain product in the card's order.

use kernels::TensorType;

use crate::data::{Matrix, Random, assert_near, assert_same, is_int, quantize};
use crate::emulator::{Argument, Buffer, Emulator, Request, pointer, value};

/// A matrix on the card.
pub(crate) struct OnCard {
    pub(crate) bytes: Buffer<u8>,
    pub(crate) bias: Option<Buffer<f32>>,
    pub(crate) out: Buffer<f32>,
}

impl OnCard {
    pub(crate) fn new(
        request: &mut Request,
        matrix: &Matrix,
        bias: Option<&[f32]>,
        tokens: usize,
    ) -> Self {
        Self {
            bytes: request.input(&matrix.packed),
            bias: bias.map(|bias| request.input(bias)),
            out: request.output(tokens * matrix.rows),
        }
    }

    /// `Matrix` of `packed.cuh`.
    pub(crate) fn argument(&self, matrix: &Matrix) -> Argument {
        Argument::new()
            .pointer(self.bytes)
            .maybe(self.bias)
            .pointer(self.out)
            .number(i32::try_from(matrix.rows).unwrap())
            .number(matrix.ty.id())
    }
}

/// `Products` of `matvec.cu`.
fn products(parts: &[(&OnCard, &Matrix)]) -> Argument {
    let none = Argument::new().number(0_u64).number(0_u64).number(0_u64).number(0_u64);
    let of = |i: usize| parts.get(i).map_or(none.clone(), |(card, matrix)| card.argument(matrix));
    let count = u32::try_from(parts.len()).unwrap();
    Argument::new().inner(of(0)).inner(of(1)).inner(of(2)).number(count)
}

/// What `quantize` would leave.
pub(crate) fn activations(request: &mut Request, x: &[f32]) -> [Argument; 2] {
    let (quants, scales) = quantize(x);
    [pointer(request.input(&quants)), pointer(request.input(&scales))]
}

fn int(value: usize) -> Argument {
    self::value(i32::try_from(value).unwrap())
}

/// Adds the launch of a product of few tokens, `n` at a time.
pub(crate) fn matvec(request: &mut Request, n: usize, parts: &[(&OnCard, &Matrix)], x: &[f32]) {
    let cols = parts[0].1.cols;
    let tokens = x.len() / cols;
    let tiles: usize = parts.iter().map(|(_, matrix)| matrix.rows.div_ceil(16)).sum();
    let [quants, scales] = activations(request, x);
    let arguments = [products(parts), quants, scales, int(cols), int(tokens)];
    request.launch(&format!("matvec_{n}"), [tiles, tokens.div_ceil(n), 1], 128, &arguments);
}

/// Bytes of shared memory of a `gemm`: two stages and the totals.
pub(crate) fn gemm_shared(ty: TensorType) -> usize {
    let (low, high, scales) = match ty {
        TensorType::Q8_0 => (2048, 16, 128),
        TensorType::Q4_0 => (1024, 16, 128),
        TensorType::Q4_1 => (1024, 16, 256),
        TensorType::Q5_0 => (1024, 256, 128),
        TensorType::Q5_1 => (1024, 256, 256),
        TensorType::Q4_K => (1024, 16, 320),
        TensorType::Q5_K => (1024, 256, 320),
        _ => (1024, 512, 288),
    };
    2 * (8 * (low + high + scales) + 64 * (144 + 32)) + 32 * 256 * 4
}

/// Adds the launch of a product of many tokens.
pub(crate) fn gemm(request: &mut Request, card: &OnCard, matrix: &Matrix, x: &[f32]) {
    let tokens = x.len() / matrix.cols;
    let [quants, scales] = activations(request, x);
    let arguments = [card.argument(matrix), quants, scales, int(matrix.cols), int(tokens)];
    let name = format!("gemm_{}", matrix.ty.name().to_lowercase());
    let grid = [tokens.div_ceil(64), matrix.rows.div_ceil(128), 1];
    request.launch_with(&name, grid, 256, gemm_shared(matrix.ty), &arguments);
}

/// Column counts: less than a segment, whole ones, more than a block works on at a time.
fn columns(ty: TensorType) -> Vec<usize> {
    if ty.block_len() == 256 { vec![256, 768, 4352] } else { vec![64, 448, 4224] }
}

fn int_types() -> impl Iterator<Item = TensorType> {
    TensorType::all().filter(|ty| is_int(*ty))
}

#[test]
fn products_of_few_tokens_are_the_plain_ones_in_every_integer_format() {
    let Some(emulator) = Emulator::get() else { return };
    let mut random = Random(1);
    for ty in int_types() {
        for (n, tokens, rows) in [(1, 1, 21), (2, 3, 16), (4, 4, 5), (8, 6, 33), (8, 9, 17)] {
            for cols in columns(ty) {
                let matrix = Matrix::random(&mut random, ty, rows, cols);
                let x = random.activations(tokens * cols);
                let mut request = Request::new(cols as u64);
                let card = OnCard::new(&mut request, &matrix, None, tokens);
                matvec(&mut request, n, &[(&card, &matrix)], &x);
                let found = request.run(emulator).get(card.out);
                let what = format!("{} {rows} x {cols}, {tokens} tokens by {n}", ty.name());
                assert_same(&found, &matrix.in_segments(&x), &what);
            }
        }
    }
}

#[test]
fn products_of_many_tokens_are_the_plain_ones_in_every_integer_format() {
    let Some(emulator) = Emulator::get() else { return };
    let mut random = Random(2);
    for ty in int_types() {
        for (tokens, rows, cols) in [(70, 130, 256), (9, 16, 768), (64, 40, 512), (33, 300, 512)] {
            let cols = if ty.block_len() == 32 && rows == 300 { 352 } else { cols };
            let matrix = Matrix::random(&mut random, ty, rows, cols);
            let bias = random.units(rows);
            let x = random.activations(tokens * cols);
            let mut request = Request::new(tokens as u64);
            let card = OnCard::new(&mut request, &matrix, Some(&bias), tokens);
            gemm(&mut request, &card, &matrix, &x);
            let found = request.run(emulator).get(card.out);
            let mut wanted = matrix.in_segments(&x);
            for row in wanted.chunks_exact_mut(rows) {
                row.iter_mut().zip(&bias).for_each(|(out, bias)| *out += bias);
            }
            assert_same(
                &found,
                &wanted,
                &format!("{} {rows} x {cols}, {tokens} tokens", ty.name()),
            );
        }
    }
}

#[test]
fn one_launch_multiplies_matrices_of_several_formats() {
    let Some(emulator) = Emulator::get() else { return };
    let mut random = Random(3);
    let types = [TensorType::Q4_K, TensorType::Q6_K, TensorType::Q8_0];
    let matrices = [(40, types[0]), (7, types[1]), (16, types[2])]
        .map(|(rows, ty)| Matrix::random(&mut random, ty, rows, 512));
    let biases = [40, 7, 16].map(|rows| random.units(rows));
    let x = random.activations(2 * 512);
    let mut request = Request::new(3);
    let cards: Vec<_> = matrices
        .iter()
        .zip(&biases)
        .map(|(matrix, bias)| OnCard::new(&mut request, matrix, Some(bias), 2))
        .collect();
    let parts: Vec<_> = cards.iter().zip(&matrices).collect();
    matvec(&mut request, 2, &parts, &x);
    let outputs = request.run(emulator);
    for ((card, matrix), bias) in cards.iter().zip(&matrices).zip(&biases) {
        let mut wanted = matrix.in_segments(&x);
        for row in wanted.chunks_exact_mut(matrix.rows) {
            row.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
        assert_same(&outputs.get(card.out), &wanted, matrix.ty.name());
    }
}

#[test]
fn products_with_floats_are_the_plain_ones_in_every_other_format() {
    let Some(emulator) = Emulator::get() else { return };
    let mut random = Random(4);
    for ty in TensorType::all().filter(|ty| !is_int(*ty)) {
        let columns = if ty.block_len() == 1 { [7, 300, 1100] } else { [256, 768, 1280] };
        for ((n, tokens, rows), cols) in
            [(1, 1, 21), (8, 11, 16), (8, 3, 5)].into_iter().zip(columns)
        {
            let matrix = Matrix::random(&mut random, ty, rows, cols);
            let x = random.activations(tokens * cols);
            let bias = random.units(rows);
            let mut request = Request::new(n as u64);
            let card = OnCard::new(&mut request, &matrix, Some(&bias), tokens);
            let arguments =
                [card.argument(&matrix), pointer(request.input(&x)), int(cols), int(tokens)];
            let grid = [rows.div_ceil(16), tokens.div_ceil(n), 1];
            request.launch(&format!("float_product_{n}"), grid, 128, &arguments);
            let found = request.run(emulator).get(card.out);
            let mut wanted = matrix.in_segments(&x);
            for row in wanted.chunks_exact_mut(rows) {
                row.iter_mut().zip(&bias).for_each(|(out, bias)| *out += bias);
            }
            assert_same(
                &found,
                &wanted,
                &format!("{} {rows} x {cols}, {tokens} tokens", ty.name()),
            );
        }
    }
}

#[test]
fn the_order_of_the_card_is_near_that_of_the_cpu() {
    let mut random = Random(5);
    let matrix = Matrix::random(&mut random, TensorType::Q4_K, 64, 4096);
    let x = random.activations(2 * 4096);
    let cpu = matrix.times(kernels::Precision::Int8, &x);
    assert_near(&matrix.in_segments(&x), &cpu, 1e-5, "another order");
}

#[test]
fn broken_input_shows_in_every_output_of_its_token() {
    let Some(emulator) = Emulator::get() else { return };
    let mut random = Random(6);
    let matrix = Matrix::random(&mut random, TensorType::Q4_K, 32, 256);
    let mut x = random.activations(2 * 256);
    x[256 + 77] = f32::NAN;
    let mut request = Request::new(6);
    let card = OnCard::new(&mut request, &matrix, None, 2);
    matvec(&mut request, 2, &[(&card, &matrix)], &x);
    let found = request.run(emulator).get(card.out);
    assert!(found[..32].iter().all(|out| out.is_finite()));
    assert!(found[32..].iter().all(|out| out.is_nan()));
}
