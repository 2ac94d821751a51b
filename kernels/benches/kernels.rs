//! Speed of the matrix products against this machine's limits.
//!
//! `cargo bench -p kernels -- [--quick] [--threads N] [--isa NAME] [--format NAME|attention]`
//!
//! Decode (a token of each of 1, 4 and 16 sequences) is held against the read bandwidth over a
//! weight set larger than any cache, and so is attention over 4,096 positions; prefill (512 tokens)
//! against the peak of the widest vectors' 8-bit dot product. Each figure is that of a run which only
//! a tenth of many short runs beat: neighbours on the machine make most runs slower, and a single
//! lucky one proves nothing.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::hint::black_box;

use half::f16;
use kernels::limits::{BANDWIDTH_SIZE, fast_run, int8_peak, read_bandwidth};
use kernels::ops::{
    AttentionShape, KV_BLOCK_LEN, KvPages, KvPagesMut, PAGE_LEN, Place, attention, store_kv,
};
use kernels::{
    Activations, Isa, Packed, Pool, Precision, Product, TensorType, Write, gemm, pack, packed_size,
};

/// Weights of a decode run with `--quick`, in bytes.
const DECODE_SIZE_QUICK: usize = 64 << 20;
/// Rows and columns of a matrix: the feed-forward of a small model.
const SHAPE: (usize, usize) = (8960, 1536);
/// The same for prefill.
const SHAPE_PREFILL: (usize, usize) = (1536, 1536);

/// Positions before the token of an attention run.
const ATTENTION_DEPTH: usize = 4096;
/// Query heads, KV heads and their values: SmolLM2-135M, Qwen2.5-1.5B, Gemma 3 270M.
const ATTENTION_SHAPES: [(usize, usize, usize); 3] = [(9, 3, 64), (12, 2, 128), (4, 1, 256)];

const FORMATS: [TensorType; 12] = [
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
    TensorType::Q8_0,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::F16,
    TensorType::BF16,
    TensorType::F32,
    TensorType::IQ4_NL,
];

struct Options {
    is_quick: bool,
    threads: usize,
    isa: Option<String>,
    format: Option<String>,
}

fn main() {
    let options = options();
    let pool = Pool::new(options.threads);
    let size = if options.is_quick { DECODE_SIZE_QUICK } else { BANDWIDTH_SIZE };
    let bandwidth = read_bandwidth(&pool, &vec![1; size]).full;
    let peak = int8_peak(&pool, Isa::widest_vectors()).full;
    println!("threads {}", pool.threads());
    println!("read bandwidth {:.1} GB/s", bandwidth / 1e9);
    println!("8-bit dot product peak {:.0} G MAC/s", peak / 1e9);
    println!("{:28} {:>7} {:>10} {:>9} {:>6}", "kernel", "format", "isa", "rate", "share");
    let isas = Isa::available().into_iter().rev();
    for isa in isas.filter(|isa| options.isa.as_deref().unwrap_or(isa.name()) == isa.name()) {
        for ty in FORMATS {
            if options.format.as_deref().is_some_and(|name| name != ty.name()) {
                continue;
            }
            let is_slow = isa == Isa::Reference;
            if is_slow && options.isa.is_none() {
                continue;
            }
            for tokens in [1, 4, 16] {
                decode(&pool, isa, ty, tokens, options.is_quick || is_slow, bandwidth);
            }
            for (tokens, precision) in [
                (4, Precision::Int8),
                (16, Precision::Int8),
                (512, Precision::Int8),
                (512, Precision::F32),
            ] {
                prefill(&pool, isa, ty, (tokens, precision), peak);
            }
        }
        if options.format.as_deref().is_none_or(|name| name == "attention")
            && (isa != Isa::Reference || options.isa.is_some())
        {
            for (n_heads, n_kv_heads, head_dim) in ATTENTION_SHAPES {
                let shape =
                    AttentionShape { n_heads, n_kv_heads, head_dim, scale: 0.1, window: None };
                for is_q8_0 in [false, true] {
                    attend(&pool, isa, &shape, is_q8_0, options.is_quick, bandwidth);
                }
            }
        }
    }
}

fn options() -> Options {
    let mut options = Options { is_quick: false, threads: 2, isa: None, format: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_default();
        match argument.as_str() {
            "--quick" => options.is_quick = true,
            "--threads" => options.threads = value().parse().unwrap_or(2),
            "--isa" => options.isa = Some(value()),
            "--format" => options.format = Some(value()),
            _ => {}
        }
    }
    options
}

/// A few tokens through a weight set of many matrices.
fn decode(pool: &Pool, isa: Isa, ty: TensorType, tokens: usize, is_quick: bool, bandwidth: f64) {
    let (rows, cols) = SHAPE;
    let matrix = matrix(ty, rows, cols);
    let size = if is_quick { DECODE_SIZE_QUICK } else { BANDWIDTH_SIZE };
    let count = size.div_ceil(matrix.len());
    let weights = Aligned::new(&matrix, count);
    let x = activations(tokens * cols);
    let mut scratch = Activations::new(cols, tokens);
    let mut out = vec![0.0; tokens * rows];
    let mut matrices = weights.bytes().chunks_exact(matrix.len()).cycle();
    let seconds = fast_run(count * 4, || {
        let bytes = matrices.next().expect("a cycle has no end");
        let weights = Packed::new(ty, rows, cols, bytes).expect("it was packed so");
        let product = Product { weights, out: &mut out, write: Write::Over };
        gemm(pool, isa, Precision::Int8, &mut scratch, &x, tokens, &mut [product]);
        black_box(&mut out);
    });
    let rate = matrix.len() as f64 / seconds;
    report(&format!("decode of {tokens}"), ty, isa, (rate, "GB/s"), rate / bandwidth);
}

/// One token after many, through the caches of many layers.
fn attend(
    pool: &Pool,
    isa: Isa,
    shape: &AttentionShape,
    is_q8_0: bool,
    is_quick: bool,
    bandwidth: f64,
) {
    let row = shape.n_kv_heads * shape.head_dim;
    let layer_len = 2 * ATTENTION_DEPTH * row;
    let layers = if is_quick { 1 } else { BANDWIDTH_SIZE.div_ceil(layer_len) };
    let n_scales = layer_len / KV_BLOCK_LEN;
    let tables: Vec<u32> = (0..ATTENTION_DEPTH / PAGE_LEN).map(|page| page as u32).collect();
    let places: Vec<_> =
        (0..ATTENTION_DEPTH).map(|position| Place { table: 0, position }).collect();
    let keys = activations(ATTENTION_DEPTH * row);
    let (mut f16s, mut quants, mut scales) = (Vec::new(), Vec::new(), Vec::new());
    if is_q8_0 {
        (quants, scales) = (vec![0; layers * layer_len], vec![f16::ZERO; layers * n_scales]);
        for (quants, scales) in quants.chunks_mut(layer_len).zip(scales.chunks_mut(n_scales)) {
            let pages = KvPagesMut::Q8_0(quants, scales);
            store_kv(isa, shape, pages, &tables, &places, &keys, &keys);
        }
    } else {
        f16s = vec![f16::ZERO; layers * layer_len];
        for pages in f16s.chunks_mut(layer_len) {
            let pages = KvPagesMut::F16(pages);
            store_kv(isa, shape, pages, &tables, &places, &keys, &keys);
        }
    }
    let q = activations(shape.n_heads * shape.head_dim);
    let mut out = vec![0.0; q.len()];
    let mut room = vec![0.0; shape.n_heads * ATTENTION_DEPTH];
    let mut layer = 0;
    let seconds = fast_run(layers.max(8) * 4, || {
        let pages = if is_q8_0 {
            let quants = &quants[layer * layer_len..][..layer_len];
            KvPages::Q8_0(quants, &scales[layer * n_scales..][..n_scales])
        } else {
            KvPages::F16(&f16s[layer * layer_len..][..layer_len])
        };
        let places = &places[places.len() - 1..];
        attention(pool, isa, shape, pages, &tables, places, &q, &mut room, &mut out);
        black_box(&mut out);
        layer = (layer + 1) % layers;
    });
    let bytes = if is_q8_0 { layer_len + 2 * n_scales } else { 2 * layer_len };
    let rate = bytes as f64 / seconds;
    let name = format!("attend {}/{}x{}", shape.n_heads, shape.n_kv_heads, shape.head_dim);
    let ty = if is_q8_0 { TensorType::Q8_0 } else { TensorType::F16 };
    report(&name, ty, isa, (rate, "GB/s"), rate / bandwidth);
}

/// Many tokens through one matrix.
fn prefill(
    pool: &Pool,
    isa: Isa,
    ty: TensorType,
    (tokens, precision): (usize, Precision),
    peak: f64,
) {
    let (rows, cols) = SHAPE_PREFILL;
    let matrix = Aligned::new(&matrix(ty, rows, cols), 1);
    let weights = Packed::new(ty, rows, cols, matrix.bytes()).expect("it was packed so");
    let x = activations(tokens * cols);
    let mut scratch = Activations::new(cols, tokens);
    let mut out = vec![0.0; tokens * rows];
    let runs = if isa == Isa::Reference { 1 } else { 40 };
    let seconds = fast_run(runs, || {
        let product = Product { weights, out: &mut out, write: Write::Over };
        gemm(pool, isa, precision, &mut scratch, &x, tokens, &mut [product]);
        black_box(&mut out);
    });
    let rate = (rows * cols * tokens) as f64 / seconds;
    let name = format!("prefill {tokens} tokens {precision:?}");
    report(&name, ty, isa, (rate, "GMAC/s"), rate / peak);
}

fn report(kernel: &str, ty: TensorType, isa: Isa, (rate, unit): (f64, &str), share: f64) {
    let (name, isa) = (ty.name(), isa.name());
    let (rate, share) = (rate / 1e9, share * 100.0);
    println!("{kernel:28} {name:>7} {isa:>10} {rate:7.1} {unit:6} {share:5.1} %");
}

/// Copies of a packed matrix at a 64-byte border.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(matrix: &[u8], count: usize) -> Self {
        let mut bytes = vec![0; matrix.len() * count + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        for target in bytes[start..].chunks_exact_mut(matrix.len()).take(count) {
            target.copy_from_slice(matrix);
        }
        bytes.truncate(start + matrix.len() * count);
        Self { bytes, start }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// A packed matrix of pseudo-random blocks.
fn matrix(ty: TensorType, rows: usize, cols: usize) -> Vec<u8> {
    let row_size = ty.row_size(cols).expect("the shapes are whole blocks");
    let mut state = 1_u32;
    let source: Vec<u8> = (0..rows * row_size)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // No exponent is all ones or all zeros: every float is a normal number.
            (state >> 24) as u8 & 0xBF | 0x10
        })
        .collect();
    let mut packed = vec![0; packed_size(ty, rows, cols).expect("the size is sane")];
    pack(ty, rows, cols, &source, &mut packed);
    packed
}

fn activations(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 37 % 255) as f32 / 128.0 - 1.0).collect()
}
