//! Products with the matrices of a layer and of the output.

use kernels::cuda::CudaError;
use kernels::{TensorType, packed_size};

use crate::launch::{Argument, Bench, Launch, Row, Work, int, long};
use crate::limits::Limits;
use crate::shapes::{Shape, Step};

/// Matrices that share their input: rows and format of each.
struct Part {
    name: &'static str,
    cols: usize,
    matrices: Vec<(usize, TensorType)>,
    /// How often in a pass.
    count: f64,
    is_output: bool,
}

fn parts(shape: &Shape) -> Vec<Part> {
    use TensorType::{Q4_K, Q6_K};
    let (embed, ffn, layers) = (shape.embed, shape.ffn, shape.layers as f64);
    let part = |name, cols, matrices, count| Part { name, cols, matrices, count, is_output: false };
    vec![
        part(
            "q k v",
            embed,
            vec![(shape.q_dim(), Q4_K), (shape.kv_dim(), Q4_K), (shape.kv_dim(), Q6_K)],
            layers,
        ),
        part("attention out", shape.q_dim(), vec![(embed, Q4_K)], layers),
        part("gate up", embed, vec![(ffn, Q4_K), (ffn, Q4_K)], layers),
        part("down q4_k", ffn, vec![(embed, Q4_K)], layers / 2.0),
        part("down q6_k", ffn, vec![(embed, Q6_K)], layers / 2.0),
        Part { is_output: true, ..part("logits", embed, vec![(shape.vocab, Q6_K)], 1.0) },
    ]
}

pub(crate) fn measure(
    bench: &Bench<'_>,
    shape: &Shape,
    limits: &Limits,
    rows: &mut Vec<Row>,
) -> Result<(), CudaError> {
    for part in parts(shape) {
        let size = |&(rows, ty): &(usize, TensorType)| {
            packed_size(ty, rows, part.cols).unwrap_or(0).next_multiple_of(256)
        };
        let all: usize = part.matrices.iter().map(size).sum();
        let copies = bench.copies(all);
        let weights = bench.bytes(all * copies)?;
        for (step, tokens) in shape.steps() {
            // A prompt has logits of its last token alone.
            let tokens = if part.is_output && step == Step::Prompt { 1 } else { tokens };
            let input =
                Input::new(bench, part.cols, tokens, part.matrices.iter().map(|it| it.0).sum())?;
            let places: Vec<u64> = (0..copies).map(|copy| weights + (copy * all) as u64).collect();
            let mut add = |of: &[(usize, TensorType)], count, launches| {
                let work = work(&part, of, step, tokens, count, launches);
                bench.row(shape.name, limits, work).map(|row| rows.push(row))
            };
            if tokens == 1 {
                let launch = |at: &u64| matvec(&part, *at, size, &input, tokens, 1);
                add(&part.matrices, part.count, places.iter().map(launch).collect())?;
                continue;
            }
            if step == Step::Many {
                let launch = |at: &u64| matvec(&part, *at, size, &input, tokens, 8);
                add(&part.matrices, 0.0, places.iter().map(launch).collect())?;
            }
            let mut offset = 0;
            for matrix in &part.matrices {
                let launch =
                    |at: &u64| gemm(matrix, *at + offset as u64, &input, part.cols, tokens);
                let one = std::slice::from_ref(matrix);
                add(one, part.count, places.iter().map(launch).collect())?;
                offset += size(matrix);
            }
        }
        bench.forget();
    }
    Ok(())
}

/// Activations as bytes, and room for the results.
struct Input {
    quants: u64,
    scales: u64,
    out: u64,
}

impl Input {
    fn new(bench: &Bench<'_>, cols: usize, tokens: usize, rows: usize) -> Result<Self, CudaError> {
        Ok(Self {
            quants: bench.bytes(cols * tokens)?,
            scales: bench.bytes(cols / 32 * 8 * tokens)?,
            out: bench.bytes(rows * 4 * tokens)?,
        })
    }
}

fn work(
    part: &Part,
    matrices: &[(usize, TensorType)],
    step: Step,
    tokens: usize,
    count: f64,
    launches: Vec<Launch>,
) -> Work {
    let rows: usize = matrices.iter().map(|(rows, _)| rows).sum();
    let weights: usize =
        matrices.iter().filter_map(|(rows, ty)| packed_size(*ty, *rows, part.cols)).sum();
    // Bytes and the scale of 32 of them; floats come out.
    let activations = tokens as f64 * (part.cols as f64 * 1.25 + rows as f64 * 4.0);
    Work {
        part: part.name,
        tokens,
        step,
        count,
        launches,
        bytes: weights as f64 + activations,
        int8_ops: 2.0 * rows as f64 * part.cols as f64 * tokens as f64,
        float_ops: 0.0,
    }
}

/// `Matrix` of `packed.cuh`.
fn matrix_argument(at: u64, out: u64, rows: usize, ty: TensorType) -> Argument {
    long(at).long(0).long(out).int(rows).int(ty.id() as usize)
}

fn matvec(
    part: &Part,
    at: u64,
    size: impl Fn(&(usize, TensorType)) -> usize,
    input: &Input,
    tokens: usize,
    n: usize,
) -> Launch {
    let (mut at, mut out) = (at, input.out);
    let mut products = Argument::default();
    for matrix in &part.matrices {
        products = products.inner(&matrix_argument(at, out, matrix.0, matrix.1));
        at += size(matrix) as u64;
        out += (matrix.0 * 4 * tokens) as u64;
    }
    for _ in part.matrices.len()..3 {
        products = products.inner(&matrix_argument(0, 0, 0, TensorType::F32));
    }
    let tiles = part.matrices.iter().map(|(rows, _)| rows.div_ceil(16)).sum();
    let products = products.int(part.matrices.len()).padded();
    Launch {
        kernel: format!("matvec_{n}"),
        grid: [tiles, tokens.div_ceil(n), 1],
        threads: 128,
        shared: 0,
        arguments: vec![
            products,
            long(input.quants),
            long(input.scales),
            int(part.cols),
            int(tokens),
        ],
    }
}

fn gemm(
    matrix: &(usize, TensorType),
    at: u64,
    input: &Input,
    cols: usize,
    tokens: usize,
) -> Launch {
    let (rows, ty) = *matrix;
    // Of `gemm.cu`: high bits and scales of a segment.
    let (high, scales) = if ty == TensorType::Q6_K { (512, 288) } else { (16, 320) };
    Launch {
        kernel: format!("gemm_{}", ty.name().to_lowercase()),
        grid: [tokens.div_ceil(64), rows.div_ceil(128), 1],
        threads: 256,
        shared: 2 * (8 * (1024 + high + scales) + 11_264) + 32_768,
        arguments: vec![
            matrix_argument(at, input.out, rows, ty),
            long(input.quants),
            long(input.scales),
            int(cols),
            int(tokens),
        ],
    }
}
