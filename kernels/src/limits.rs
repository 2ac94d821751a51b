//! What the machine can do at all: the measures that speeds are held against.
//!
//! The only clock of this crate, and nothing of an engine's work runs here. What the machine can do is what a
//! run does which only a tenth of many short runs beat: neighbours on the machine make most runs
//! slower, and a single lucky one proves nothing.

use core::hint::black_box;
use std::time::Instant;

use crate::{Isa, Pool};

/// Bytes to measure the bandwidth over: more than twice the largest cache of today's machines.
pub const BANDWIDTH_SIZE: usize = 640 << 20;

/// Bytes of a run of the bandwidth measure.
const RUN_LEN_BYTES: usize = 8 << 20;
/// Tasks of such a run.
const RUN_TASKS: usize = 32;
/// Steps of a task of the peak measure, about 0.1 ms.
const PEAK_STEPS: usize = 20_000;
/// Tasks of a run of the peak measure for each thread.
const PEAK_TASKS_A_THREAD: usize = 8;
/// Runs of the peak measure.
const PEAK_RUNS: usize = 100;

/// Sums of a step with AVX-512: more than latency times throughput of a dot product.
#[cfg(target_arch = "x86_64")]
const AVX512_SUMS: usize = 24;
/// Sums of a step with AVX-VNNI: latency times throughput of a dot product, and no more than the
/// registers hold.
#[cfg(target_arch = "x86_64")]
const AVXVNNI_SUMS: usize = 12;
/// Sums of a step with AVX2: latency times throughput of its three instructions.
#[cfg(target_arch = "x86_64")]
const AVX2_SUMS: usize = 12;

/// Sums of a step with `sdot`: more than latency times throughput.
#[cfg(target_arch = "aarch64")]
const DOTPROD_SUMS: usize = 24;
/// Sums of a step in 16 bits, two registers each.
#[cfg(target_arch = "aarch64")]
const NEON_SUMS: usize = 12;

/// A speed, a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Of a run that only the fastest tenth of the runs beat: what the machine can do.
    pub full: f64,
    /// Of a run that half of the runs beat: what neighbours leave of it.
    pub usual: f64,
}

impl Speed {
    /// Times runs that do so much each.
    fn of(runs: usize, work: usize, run: impl FnMut()) -> Self {
        let seconds = sorted_seconds(runs, run);
        let [full, usual] = [runs / 10, runs / 2].map(|index| work as f64 / seconds[index]);
        Self { full, usual }
    }
}

/// Returns the seconds of a run that only the fastest tenth of the runs beat.
///
/// # Panics
///
/// Panics if `runs` is 0.
pub fn fast_run(runs: usize, run: impl FnMut()) -> f64 {
    sorted_seconds(runs, run)[runs / 10]
}

fn sorted_seconds(runs: usize, mut run: impl FnMut()) -> Vec<f64> {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    let mut seconds: Vec<f64> = (0..runs).map(time).collect();
    seconds.sort_by(f64::total_cmp);
    seconds
}

/// Returns the bytes per second that all threads together read from `memory`: written before, and larger than
/// the caches, as [`BANDWIDTH_SIZE`] is.
///
/// # Panics
///
/// Panics if `memory` is less than 16 MiB.
#[must_use]
pub fn read_bandwidth(pool: &Pool, memory: &[u8]) -> Speed {
    let mut runs = memory.chunks_exact(RUN_LEN_BYTES).cycle();
    Speed::of(memory.len() / RUN_LEN_BYTES / 2, RUN_LEN_BYTES, || {
        let run = runs.next().expect("a cycle has no end");
        let part = RUN_LEN_BYTES / RUN_TASKS;
        pool.run(RUN_TASKS, &|task| {
            black_box(sum(run[task * part..][..part].as_chunks().0));
        });
    })
}

/// Returns the multiply-adds of bytes per second that all threads together reach with an
/// instruction set's dot products, from registers.
///
/// An instruction set without such a measure counts plain multiply-adds.
#[must_use]
pub fn int8_peak(pool: &Pool, isa: Isa) -> Speed {
    let tasks = pool.threads() * PEAK_TASKS_A_THREAD;
    let (_, macs_a_step) = dot_steps(isa, 0);
    Speed::of(PEAK_RUNS, PEAK_STEPS * tasks * macs_a_step, || {
        pool.run(tasks, &|_| {
            black_box(dot_steps(isa, PEAK_STEPS));
        });
    })
}

fn sum(words: &[[u8; 8]]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the line above found AVX2.
        return unsafe { sum_avx2(words) };
    }
    words.iter().fold(0, |sum, word| sum ^ u64::from_ne_bytes(*word))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(words: &[[u8; 8]]) -> u64 {
    words.iter().fold(0, |sum, word| sum ^ u64::from_ne_bytes(*word))
}

/// Runs `steps` steps of independent dot products; returns a value and the products of a step.
fn dot_steps(isa: Isa, steps: usize) -> (i32, usize) {
    #[cfg(target_arch = "x86_64")]
    {
        if matches!(isa, Isa::Amx(_)) {
            // SAFETY: `Isa::Amx` proves AMX with bytes, and that the kernel has given leave.
            return (0, unsafe { crate::amx::peak_steps(steps) });
        }
        if matches!(isa, Isa::Avx512(_)) {
            // SAFETY: `Isa::Avx512` proves AVX-512 F and VNNI.
            return (unsafe { dot_steps_avx512(steps) }, AVX512_SUMS * 64);
        }
        if matches!(isa, Isa::AvxVnni(_)) {
            // SAFETY: `Isa::AvxVnni` proves AVX2 and AVX-VNNI.
            return (unsafe { dot_steps_avxvnni(steps) }, AVXVNNI_SUMS * 32);
        }
        if matches!(isa, Isa::Avx2(_)) {
            // SAFETY: `Isa::Avx2` proves AVX2.
            return (unsafe { dot_steps_avx2(steps) }, AVX2_SUMS * 32);
        }
    }
    #[cfg(target_arch = "aarch64")]
    match isa {
        Isa::Dotprod(proof) => {
            // SAFETY: the proof says that the CPU has NEON.
            let sum = unsafe { dot_steps_arm::<DOTPROD_SUMS>(proof, steps) };
            return (sum, DOTPROD_SUMS * 16);
        }
        Isa::Neon(proof) => {
            // SAFETY: the proof says that the CPU has NEON.
            let sum = unsafe { dot_steps_arm::<NEON_SUMS>(proof, steps) };
            return (sum, NEON_SUMS * 16);
        }
        Isa::Reference => {}
    }
    let _ = isa;
    dot_steps_plain(steps)
}

fn dot_steps_plain(steps: usize) -> (i32, usize) {
    let bytes = black_box([1_i8; 16]);
    let mut sums = [0_i32; 16];
    for _ in 0..steps {
        for (sum, byte) in sums.iter_mut().zip(black_box(bytes)) {
            *sum = sum.wrapping_add(i32::from(byte) * i32::from(byte));
        }
    }
    (sums.into_iter().fold(0, i32::wrapping_add), sums.len())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_steps_avx512(steps: usize) -> i32 {
    use core::arch::x86_64::*;
    let bytes = black_box(_mm512_set1_epi8(1));
    let mut sums = [_mm512_setzero_si512(); AVX512_SUMS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, bytes, bytes);
        }
    }
    let total = sums.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_add_epi32(a, b));
    _mm512_reduce_add_epi32(total)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avxvnni")]
fn dot_steps_avxvnni(steps: usize) -> i32 {
    use core::arch::x86_64::*;
    let bytes = black_box(_mm256_set1_epi8(1));
    let mut sums = [_mm256_setzero_si256(); AVXVNNI_SUMS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_dpbusd_avx_epi32(*sum, bytes, bytes);
        }
    }
    let total = sums.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_add_epi32(a, b));
    _mm256_extract_epi32::<0>(total)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn dot_steps_avx2(steps: usize) -> i32 {
    use core::arch::x86_64::*;
    let bytes = black_box(_mm256_set1_epi8(1));
    let ones = black_box(_mm256_set1_epi16(1));
    let mut sums = [_mm256_setzero_si256(); AVX2_SUMS];
    for _ in 0..steps {
        for sum in &mut sums {
            // Each product takes the sum in, so that no step can be computed once for all.
            let pairs = _mm256_maddubs_epi16(bytes, *sum);
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    let total = sums.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_add_epi32(a, b));
    _mm256_extract_epi32::<0>(total)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn dot_steps_arm<const SUMS: usize>(kind: impl crate::neon::Dot, steps: usize) -> i32 {
    use core::arch::aarch64::*;
    let zero = vdupq_n_s32(0);
    let mut sums = [kind.begin(zero); SUMS];
    for _ in 0..steps {
        // Unknown in every step, so that no product can be computed once for all.
        let bytes = black_box(vdupq_n_s8(1));
        for sum in &mut sums {
            *sum = kind.add::<0>(*sum, bytes, bytes);
        }
    }
    let total = sums.into_iter().fold(zero, |total, sum| vaddq_s32(total, kind.end(zero, sum)));
    vaddvq_s32(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_a_positive_number() {
        let pool = Pool::new(2);
        let holds = |speed: Speed| speed.full >= speed.usual && speed.usual > 0.0;
        assert!(holds(read_bandwidth(&pool, &vec![1; 16 << 20])));
        for isa in Isa::available() {
            assert!(holds(int8_peak(&pool, isa)), "{}", isa.name());
        }
    }

    #[test]
    fn a_fast_run_is_beaten_by_a_tenth() {
        let mut runs = 0;
        assert!(fast_run(1, || runs += 1) >= 0.0);
        assert!(fast_run(20, || runs += 1) >= 0.0);
        assert_eq!(runs, 21);
    }
}
