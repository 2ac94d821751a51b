//! What the emulation is worth: each of these faults, put into a kernel, is noticed.

use std::fs;
use std::path::{Path, PathBuf};

use kernels::TensorType;
use kernels::ops::{AttentionShape, Place};

use crate::attention::{Cache, Held};
use crate::data::{Matrix, Random};
use crate::emulator::{Argument, Emulator, Request, maybe, pointer, sources, value};
use crate::products::{self, OnCard};

/// Orders of threads that a fault has to show itself in.
const SEEDS: u64 = 12;

/// Runs a kernel with the threads in the order of a seed: what it gives and what it should, or what the
/// emulation says.
type Run = fn(&Emulator, u64) -> Result<(Vec<f32>, Vec<f32>), String>;

/// Copies the sources, with one text in one file replaced.
fn copy(name: &str, file: &str, from: &str, to: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mutant-{name}"));
    let _ = fs::remove_dir_all(&folder);
    for part in ["", "emulated"] {
        fs::create_dir_all(folder.join(part)).unwrap();
        for entry in fs::read_dir(sources().join(part)).unwrap() {
            let path = entry.unwrap().path();
            let target = folder.join(part).join(path.file_name().unwrap());
            let _ = path.is_file().then(|| fs::copy(&path, target).unwrap());
        }
    }
    let path = folder.join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{name}: {file} has this once: {from}");
    fs::write(path, text.replace(from, to)).unwrap();
    folder
}

/// Why a run is not right; nothing if it is.
fn fault(run: Run, emulator: &Emulator, seed: u64) -> Option<String> {
    match run(emulator, seed) {
        Err(told) => Some(told),
        Ok((found, wanted)) => {
            let is_near = |(found, wanted): (&f32, &f32)| (found - wanted).abs() <= 1e-4;
            (!found.iter().zip(&wanted).all(is_near)).then(|| "other values".to_owned())
        }
    }
}

/// Asserts that a kernel is right, and that with a fault it is not, as `told` says.
fn is_noticed(name: &str, file: &str, (from, to): (&str, &str), run: Run, told: &str) {
    let Some(sound) = Emulator::get() else { return };
    for seed in 0..SEEDS {
        assert_eq!(fault(run, sound, seed), None, "{name}: without the fault, seed {seed}");
    }
    let folder = copy(name, file, from, to);
    let faulty = Emulator::build(&folder, file.split('.').next().unwrap());
    let faults: Vec<_> = (0..SEEDS).filter_map(|seed| fault(run, &faulty, seed)).collect();
    assert!(faults.iter().any(|fault| fault.contains(told)), "{name}: noticed was {faults:?}");
    faulty.remove();
    fs::remove_dir_all(folder).unwrap();
}

/// `add_norm` with both norms.
fn add_norm(emulator: &Emulator, seed: u64) -> Result<(Vec<f32>, Vec<f32>), String> {
    let cols = 96;
    let mut random = Random(3);
    let [x, delta, weight] = [0; 3].map(|_| random.units(cols));
    let mut request = Request::new(seed);
    let (on_card, out) = (request.changed(&x), request.output::<f32>(cols));
    let weight_on_card = request.input(&weight);
    let arguments = [
        pointer(on_card),
        pointer(request.input(&delta)),
        pointer(weight_on_card),
        pointer(weight_on_card),
        value(1e-5_f32),
        value(cols as i32),
        maybe::<i32>(None),
        Argument::new().pointer(out).number(0_u64).number(0_u64),
    ];
    request.launch("add_norm", [1, 1, 1], 256, &arguments);
    let outputs = request.try_run(emulator)?;
    let norm = |x: &[f32]| -> Vec<f32> {
        let mean = x.iter().map(|x| x * x).sum::<f32>() / cols as f32;
        x.iter().zip(&weight).map(|(x, weight)| x / (mean + 1e-5).sqrt() * weight).collect()
    };
    let sum: Vec<f32> = x.iter().zip(norm(&delta)).map(|(x, delta)| x + delta).collect();
    Ok((outputs.get(out), norm(&sum)))
}

/// A product with a matrix of Q5_K, of few tokens or of many.
fn product(emulator: &Emulator, seed: u64, is_few: bool) -> Result<(Vec<f32>, Vec<f32>), String> {
    let mut random = Random(4);
    let matrix = Matrix::random(&mut random, TensorType::Q5_K, 20, 512);
    let x = random.units(3 * 512);
    let mut request = Request::new(seed);
    let card = OnCard::new(&mut request, &matrix, None, 3);
    if is_few {
        products::matvec(&mut request, 4, &[(&card, &matrix)], &x);
    } else {
        products::gemm(&mut request, &card, &matrix, &x);
    }
    Ok((request.try_run(emulator)?.get(card.out), matrix.in_segments(&x)))
}

fn few_tokens(emulator: &Emulator, seed: u64) -> Result<(Vec<f32>, Vec<f32>), String> {
    product(emulator, seed, true)
}

fn many_tokens(emulator: &Emulator, seed: u64) -> Result<(Vec<f32>, Vec<f32>), String> {
    product(emulator, seed, false)
}

/// A decode step over two splits.
fn decode(emulator: &Emulator, seed: u64) -> Result<(Vec<f32>, Vec<f32>), String> {
    let mut random = Random(5);
    let shape =
        AttentionShape { n_heads: 4, n_kv_heads: 1, head_dim: 32, scale: 0.2, window: None };
    let mut cache = Cache::new(&mut random, shape, &[150]);
    cache.seed = seed;
    let places = [Place { table: 0, position: 149 }];
    let q = random.units(4 * 32);
    let found = cache.try_decode(emulator, Held::F16, &places, &q)?;
    Ok((found, cache.plain(Held::F16, &places, &q)))
}

const BLOCK_SUM: &str = "    for (int i = 0; i < WARPS; i++) sum += sums[i];\n    __syncthreads();";

#[test]
fn a_barrier_that_is_missing_before_a_read() {
    let without = ("    __syncthreads();\n    float sum = 0;", "    float sum = 0;");
    is_noticed("before", "norm.cu", without, add_norm, "other values");
}

#[test]
fn a_barrier_that_is_missing_before_the_next_write() {
    let without = (BLOCK_SUM, "    for (int i = 0; i < WARPS; i++) sum += sums[i];");
    is_noticed("after", "norm.cu", without, add_norm, "other values");
}

#[test]
fn lanes_that_take_no_part_in_an_exchange() {
    let some = ("    x = warp_sum(x);", "    if (threadIdx.x % 32 != 5) x = warp_sum(x);");
    is_noticed("lanes", "norm.cu", some, add_norm, "threads wait for others that never come");
}

#[test]
fn a_copy_that_is_not_waited_for() {
    let without = ("            copy_async_wait<0>();", "            copy_async_wait<1>();");
    is_noticed("copy", "gemm.cu", without, many_tokens, "a copy was never waited for");
}

#[test]
fn a_stage_that_is_overwritten_while_it_is_read() {
    let early = ("shared.stages[(segment + 1) % 2]);", "shared.stages[segment % 2]);");
    is_noticed("stage", "gemm.cu", early, many_tokens, "other values");
}

#[test]
fn a_fragment_of_the_wrong_lane() {
    let wrong =
        ("int row = lane / 4, group = lane % 4;", "int row = lane / 4, group = (lane + 1) % 4;");
    is_noticed("fragment", "gemm.cu", wrong, many_tokens, "other values");
}

#[test]
fn an_index_beyond_a_buffer() {
    let wrong = ("at >= matrix.rows) return;", "at > matrix.rows) return;");
    is_noticed("beyond", "matvec.cu", wrong, few_tokens, "heap-buffer-overflow");
}

#[test]
fn a_scale_of_the_wrong_block() {
    let wrong = ("int sub = block % per_step", "int sub = (block + 1) % per_step");
    is_noticed("scale", "matvec.cu", wrong, few_tokens, "other values");
}

#[test]
fn an_output_that_is_not_written() {
    let short = (
        "d < a.head_dim; d += 128) {\n        State",
        "d < a.head_dim - 1; d += 128) {\n        State",
    );
    is_noticed("unwritten", "attention.cu", short, decode, "other values");
}

#[test]
fn a_page_beyond_the_text() {
    let wrong = ("bool is_seen = start < rows.to &&", "bool is_seen = start <= rows.to + 32 &&");
    is_noticed("page", "attention.cu", wrong, decode, "heap-buffer-overflow");
}
