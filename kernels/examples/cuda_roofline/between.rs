//! What lies between the products: embeddings, norms, gates, activations as bytes, the choice of a token.

use kernels::cuda::CudaError;
use kernels::{TensorType, packed_size};

use crate::launch::{Argument, Bench, Launch, Row, Work, float, int, long};
use crate::limits::Limits;
use crate::shapes::{Shape, Step};

/// Bytes of an activation as a byte, with its share of a scale.
const BYTE: f64 = 1.25;

pub(crate) fn measure(
    bench: &Bench<'_>,
    shape: &Shape,
    limits: &Limits,
    rows: &mut Vec<Row>,
) -> Result<(), CudaError> {
    for (step, tokens) in shape.steps() {
        let mut works = elementwise(bench, shape, step, tokens)?;
        works.extend(embedding(bench, shape, step, tokens)?);
        if step != Step::Prompt {
            works.push(selection(bench, shape, step, tokens)?);
        }
        for work in works {
            rows.push(bench.row(shape.name, limits, work)?);
        }
        bench.forget();
    }
    Ok(())
}

/// A work that only moves bytes.
fn moving(part: &'static str, at: (Step, usize), count: f64, bytes: f64, launch: Launch) -> Work {
    let (step, tokens) = at;
    Work { part, tokens, step, count, launches: vec![launch], bytes, int8_ops: 0.0, float_ops: 0.0 }
}

fn launch(kernel: &str, grid: [usize; 3], threads: u32, arguments: Vec<Argument>) -> Launch {
    Launch { kernel: kernel.to_owned(), grid, threads, shared: 0, arguments }
}

fn elementwise(
    bench: &Bench<'_>,
    shape: &Shape,
    step: Step,
    tokens: usize,
) -> Result<Vec<Work>, CudaError> {
    let (embed, ffn, q, layers) = (shape.embed, shape.ffn, shape.q_dim(), shape.layers as f64);
    let widest = ffn.max(q) * tokens;
    let (x, delta, weight) = (bench.floats(widest)?, bench.floats(widest)?, bench.floats(embed)?);
    let out = long(0).long(bench.bytes(widest)?).long(bench.bytes(widest / 32 * 8)?);
    let sum = [
        long(x),
        long(delta),
        long(0),
        long(weight),
        float(1e-5),
        int(embed),
        long(0),
        out.clone(),
    ];
    let values = |width: usize| (width * tokens) as f64;
    Ok(vec![
        moving(
            "sum and norm",
            (step, tokens),
            2.0 * layers + 1.0,
            values(embed) * (12.0 + BYTE),
            launch("add_norm", [tokens, 1, 1], 256, sum.to_vec()),
        ),
        moving(
            "bytes",
            (step, tokens),
            layers,
            values(q) * (4.0 + BYTE),
            launch(
                "quantize",
                [q.div_ceil(256), tokens, 1],
                256,
                vec![long(x), int(q), out.clone()],
            ),
        ),
        moving(
            "gate",
            (step, tokens),
            layers,
            values(ffn) * (8.0 + BYTE),
            launch(
                "gate",
                [ffn.div_ceil(256), tokens, 1],
                256,
                vec![long(x), long(delta), int(0), int(ffn), out],
            ),
        ),
    ])
}

fn embedding(
    bench: &Bench<'_>,
    shape: &Shape,
    step: Step,
    tokens: usize,
) -> Result<Vec<Work>, CudaError> {
    let (ty, embed) = (TensorType::Q4_K, shape.embed);
    let size = packed_size(ty, shape.vocab, embed).unwrap_or(0);
    let tile_size = size / shape.vocab.div_ceil(16);
    let table = bench.bytes(size)?;
    let ids: Vec<u32> = (0..).take(tokens).collect();
    let ids = bench.numbers(&ids)?;
    let found = bench.buffer(tile_size * tokens, &[0; 4096])?;
    let out = bench.bytes(embed * 4 * tokens)?;
    // Enough parts of the table to keep every multiprocessor at work.
    let parts = 256.min(shape.vocab / 16);
    let scan = vec![
        long(table),
        long(size as u64),
        long(tile_size as u64),
        int(4),
        long(ids),
        int(tokens),
        long(found),
    ];
    let rows = vec![
        int(ty.id() as usize),
        long(found),
        long(tile_size as u64),
        int(4),
        int(embed),
        long(ids),
        float(1.0),
        long(out),
    ];
    // A pass serves eight tokens.
    let passes = tokens.div_ceil(8);
    let grid = [tile_size.div_ceil(2048), parts, passes];
    Ok(vec![
        moving(
            "embedding, scan",
            (step, tokens),
            1.0,
            (size * passes) as f64,
            launch("embed_scan", grid, 128, scan),
        ),
        moving(
            "embedding, rows",
            (step, tokens),
            1.0,
            (tokens * embed) as f64 * 4.6,
            launch("embed_rows", [embed.div_ceil(256), tokens, 1], 64, rows),
        ),
    ])
}

/// Top-k, top-p and a temperature, without penalties.
fn selection(bench: &Bench<'_>, shape: &Shape, step: Step, n: usize) -> Result<Work, CudaError> {
    let values = shape.vocab * n;
    let one =
        float(0.7).float(0.95).float(f32::NEG_INFINITY).float(1.0).float(0.0).float(0.0).int(40);
    let sampling = bench.buffer(28 * n, one.bytes())?;
    let select = long(bench.floats(values)?)
        .long(bench.floats(values)?)
        .long(0)
        .long(0)
        .long(0)
        .long(0)
        .long(sampling)
        .long(bench.bytes(8 * n)?)
        .long(bench.bytes(4 * n)?)
        .int(shape.vocab)
        .padded();
    let launch = launch("select_token", [n, 1, 1], 1024, vec![select]);
    Ok(moving("choice of tokens", (step, n), 1.0, values as f64 * 4.0, launch))
}
