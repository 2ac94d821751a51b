//! Heads: rotations and the cache, attention of answers and of prompts, in 16-bit pages.

use kernels::cuda::CudaError;
use kernels::ops::PAGE_LEN;

use crate::launch::{Argument, Bench, Launch, Row, Work, long};
use crate::limits::Limits;
use crate::shapes::{Shape, Step};

/// Positions of a split.
const SPLIT_LEN: usize = 128;

pub(crate) fn measure(
    bench: &Bench<'_>,
    shape: &Shape,
    limits: &Limits,
    rows: &mut Vec<Row>,
) -> Result<(), CudaError> {
    let layers = shape.layers as f64;
    let (one, many) = ((Step::One, 1), (Step::Many, shape.many));
    for ((step, n), context, count) in
        [(one, shape.prompt, layers), (many, shape.prompt, layers), (one, shape.long, 0.0)]
    {
        let part = if count > 0.0 {
            ["attention", "attention, sum"]
        } else {
            ["long attention", "long sum"]
        };
        let cache = Cache::answers(bench, shape, n, context)?;
        for work in cache.decode(bench, shape, step, part, count)? {
            rows.push(bench.row(shape.name, limits, work)?);
        }
        if count > 0.0 {
            let work = cache.prepare(bench, shape, step, count)?;
            rows.push(bench.row(shape.name, limits, work)?);
        }
        bench.forget();
    }
    let cache = Cache::prompt(bench, shape)?;
    let work = cache.prepare(bench, shape, Step::Prompt, layers)?;
    rows.push(bench.row(shape.name, limits, work)?);
    let work = cache.read(bench, shape, layers)?;
    rows.push(bench.row(shape.name, limits, work)?);
    bench.forget();
    Ok(())
}

/// Pages of one layer, several copies of them, and where the tokens of a batch stand.
struct Cache {
    pages: u64,
    size: usize,
    copies: usize,
    tables: u64,
    places: u64,
    tokens: usize,
    /// Positions that each token sees.
    seen: Vec<usize>,
    /// Positions that are read once for all heads.
    read: usize,
}

impl Cache {
    fn new(
        bench: &Bench<'_>,
        shape: &Shape,
        sequences: usize,
        len: usize,
        places: &[u32],
    ) -> Result<Self, CudaError> {
        let pages = sequences * len.div_ceil(PAGE_LEN);
        let size = pages * PAGE_LEN * shape.kv_dim() * 4;
        let copies = bench.copies(size);
        // 16-bit floats between 1/16 and 1/8, of either sign.
        let halves: Vec<u8> = (0..4096_u16)
            .flat_map(|i| (0x2C00 | i.wrapping_mul(0x9E37) & 0x83FF).to_le_bytes())
            .collect();
        // Pages lie anywhere: neighbours of a text are 7 pages apart.
        let step =
            [7, 11, 13, 1].into_iter().find(|step| !pages.is_multiple_of(*step)).unwrap_or(1);
        let tables: Vec<u32> =
            (0..pages).map(|page| u32::try_from(page * step % pages).unwrap_or(0)).collect();
        Ok(Self {
            pages: bench.buffer(size * copies, &halves)?,
            size,
            copies,
            tables: bench.numbers(&tables)?,
            places: bench.numbers(places)?,
            tokens: places.len() / 2,
            seen: places.chunks_exact(2).map(|place| place[1] as usize + 1).collect(),
            read: sequences * len,
        })
    }

    /// `n` sequences with a token each at the end of its text.
    fn answers(bench: &Bench<'_>, shape: &Shape, n: usize, len: usize) -> Result<Self, CudaError> {
        let start = |i: usize| i * len.div_ceil(PAGE_LEN);
        let numbers = (0..n).flat_map(|i| [start(i), len - 1]);
        let places: Vec<u32> = numbers.filter_map(|number| u32::try_from(number).ok()).collect();
        Self::new(bench, shape, n, len, &places)
    }

    /// One sequence, all of it at once.
    fn prompt(bench: &Bench<'_>, shape: &Shape) -> Result<Self, CudaError> {
        let places: Vec<u32> =
            (0..).take(shape.prompt).flat_map(|position| [0, position]).collect();
        Self::new(bench, shape, 1, shape.prompt, &places)
    }

    fn each_copy(&self, launch: impl Fn(u64) -> Launch) -> Vec<Launch> {
        (0..self.copies).map(|copy| launch(self.pages + (copy * self.size) as u64)).collect()
    }

    fn splits_max(&self) -> usize {
        self.seen.iter().max().map_or(1, |seen| seen.div_ceil(SPLIT_LEN))
    }

    /// Multiply-adds of scores and values, two operations each.
    fn float_ops(&self, shape: &Shape) -> f64 {
        let seen: usize = self.seen.iter().sum();
        4.0 * shape.q_dim() as f64 * seen as f64
    }

    /// `Attention` of `attention.cu`, with other pages each time.
    fn argument(
        &self,
        bench: &Bench<'_>,
        shape: &Shape,
        runs: &[u32],
    ) -> Result<impl Fn(u64) -> Argument, CudaError> {
        let values = self.tokens * shape.q_dim();
        let (q, out) = (bench.floats(values)?, bench.floats(values)?);
        let parts = if runs.is_empty() {
            bench.floats(self.tokens * shape.heads * self.splits_max() * (shape.head_dim + 2))?
        } else {
            0
        };
        let runs_at = if runs.is_empty() { 0 } else { bench.numbers(runs)? };
        let (tables, places, splits) = (self.tables, self.places, self.splits_max());
        let sizes = [shape.heads, shape.kv_heads, shape.head_dim];
        let n_runs = runs.len() / 2;
        #[expect(clippy::cast_precision_loss, reason = "a head is short")]
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        Ok(move |pages: u64| {
            let pointers = long(q).long(out).long(pages).long(0).long(tables).long(places);
            let pointers = pointers.long(runs_at).long(parts);
            let sizes = sizes.iter().fold(pointers, |all, size| all.int(*size)).float(scale);
            sizes.int(0).int(splits).int(n_runs).padded()
        })
    }

    fn decode(
        &self,
        bench: &Bench<'_>,
        shape: &Shape,
        step: Step,
        [part, sum]: [&'static str; 2],
        count: f64,
    ) -> Result<[Work; 2], CudaError> {
        let argument = self.argument(bench, shape, &[])?;
        let group = shape.heads / shape.kv_heads;
        let rows = group.next_power_of_two().min(8);
        let (tokens, splits) = (self.tokens, self.splits_max());
        let launch = |pages| Launch {
            kernel: format!("attention_decode_f16_{rows}"),
            grid: [splits, shape.kv_heads * group.div_ceil(rows), tokens],
            threads: 128,
            shared: 0,
            arguments: vec![argument(pages)],
        };
        let combine = Launch {
            kernel: "attention_combine".to_owned(),
            grid: [shape.heads, tokens, 1],
            threads: 128,
            shared: 0,
            arguments: vec![argument(self.pages)],
        };
        let parts = (tokens * shape.heads * splits * (shape.head_dim + 2)) as f64 * 4.0;
        let work = |part, launches, bytes, float_ops| Work {
            part,
            tokens,
            step,
            count,
            launches,
            bytes,
            int8_ops: 0.0,
            float_ops,
        };
        let pages = (self.read * shape.kv_dim() * 4) as f64;
        Ok([
            work(part, self.each_copy(launch), pages + parts, self.float_ops(shape)),
            work(sum, vec![combine], parts, 0.0),
        ])
    }

    /// Attention of a prompt.
    fn read(&self, bench: &Bench<'_>, shape: &Shape, count: f64) -> Result<Work, CudaError> {
        let group = shape.heads / shape.kv_heads;
        let (rows, longest) = match shape.head_dim {
            0..=64 => (8, 64),
            65..=128 => (8, 128),
            _ => (4, 256),
        };
        let run_len = (rows / group).max(1);
        let runs: Vec<u32> = (0..self.tokens)
            .step_by(run_len)
            .flat_map(|first| [first, run_len.min(self.tokens - first)])
            .filter_map(|number| u32::try_from(number).ok())
            .collect();
        let argument = self.argument(bench, shape, &runs)?;
        let grid = [(runs.len() / 2).div_ceil(4), shape.kv_heads * group.div_ceil(rows), 1];
        let launch = |pages| Launch {
            kernel: format!("attention_prompt_f16_{longest}"),
            grid,
            threads: 128,
            shared: 0,
            arguments: vec![argument(pages)],
        };
        Ok(Work {
            part: "attention",
            tokens: self.tokens,
            step: Step::Prompt,
            count,
            launches: self.each_copy(launch),
            bytes: (self.read * shape.kv_dim() * 4 + self.tokens * shape.q_dim() * 8) as f64,
            int8_ops: 0.0,
            float_ops: self.float_ops(shape),
        })
    }

    /// Rotations, and keys and values into their pages.
    fn prepare(
        &self,
        bench: &Bench<'_>,
        shape: &Shape,
        step: Step,
        count: f64,
    ) -> Result<Work, CudaError> {
        let (tokens, q, kv) = (self.tokens, shape.q_dim(), shape.kv_dim());
        let pairs = shape.head_dim / 2;
        let [queries, keys, values] =
            [bench.floats(tokens * q)?, bench.floats(tokens * kv)?, bench.floats(tokens * kv)?];
        let turns = bench.floats(tokens * pairs * 2)?;
        let (tables, places) = (self.tables, self.places);
        let launch = |pages| {
            let pointers = long(queries).long(keys).long(values).long(0).long(0).long(turns);
            let pointers = pointers.long(tables).long(places).long(pages).long(0);
            let heads = pointers.int(shape.heads).int(shape.kv_heads).int(shape.head_dim);
            Launch {
                kernel: "prepare_heads_f16".to_owned(),
                grid: [(shape.heads + 2 * shape.kv_heads).div_ceil(4), tokens, 1],
                threads: 128,
                shared: 0,
                arguments: vec![heads.int(pairs).int(1).float(1e-5)],
            }
        };
        Ok(Work {
            part: "rotation, cache",
            tokens,
            step,
            count,
            launches: self.each_copy(launch),
            bytes: (tokens * (q * 8 + kv * 12 + pairs * 8)) as f64,
            int8_ops: 0.0,
            float_ops: 0.0,
        })
    }
}
