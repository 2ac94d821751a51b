//! What the card can do at all.

use kernels::cuda::CudaError;

use crate::launch::{Bench, Launch, Work, float, int, long};

/// Bytes that are read to measure the bandwidth.
const READ_SIZE: usize = 4 << 30;
/// Rounds of the kernels that compute.
const ROUNDS: usize = 1 << 14;
/// Blocks on each multiprocessor.
const BLOCKS: usize = 8;
/// Operations of a warp in a round of `limit_int8`, of a thread in one of `limit_float`.
const INT8_OPS: f64 = 65_536.0;
const FLOAT_OPS: f64 = 16.0;

/// A second's worth.
pub(crate) struct Limits {
    pub(crate) bytes: f64,
    pub(crate) int8_ops: f64,
    pub(crate) float_ops: f64,
}

impl Limits {
    /// Returns the least seconds that a work takes.
    pub(crate) fn seconds(&self, work: &Work) -> f64 {
        self.parts(work).into_iter().map(|(_, seconds)| seconds).fold(0.0, f64::max)
    }

    /// Returns what limits a work.
    pub(crate) fn name(&self, work: &Work) -> &'static str {
        let largest = self.parts(work).into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        largest.map_or("", |(name, _)| name)
    }

    fn parts(&self, work: &Work) -> [(&'static str, f64); 3] {
        [
            ("bytes", work.bytes / self.bytes),
            ("int8", work.int8_ops / self.int8_ops),
            ("float", work.float_ops / self.float_ops),
        ]
    }
}

pub(crate) fn measure(
    bench: &Bench<'_>,
    multiprocessors: i32,
    is_tiny: bool,
) -> Result<Limits, CudaError> {
    let (size, rounds) = if is_tiny { (1 << 16, 4) } else { (READ_SIZE, ROUNDS) };
    let blocks = multiprocessors.unsigned_abs() as usize * BLOCKS;
    let from = bench.bytes(size)?;
    let out = bench.bytes(blocks * 256 * 4)?;
    let launch = |kernel: &str, arguments| Launch {
        kernel: kernel.to_owned(),
        grid: [blocks, 1, 1],
        threads: 256,
        shared: 0,
        arguments,
    };
    let read = launch("limit_read", vec![long(from), long(size as u64 / 16), long(out)]);
    let int8 = launch("limit_int8", vec![int(rounds), long(out)]);
    let floats = launch("limit_float", vec![int(rounds), float(0.5), long(out)]);
    let warps = (blocks * 8) as f64;
    let limits = Limits {
        bytes: size as f64 / bench.seconds(&[read], 2)?,
        int8_ops: INT8_OPS * rounds as f64 * warps / bench.seconds(&[int8], 2)?,
        float_ops: FLOAT_OPS * rounds as f64 * warps * 32.0 / bench.seconds(&[floats], 2)?,
    };
    bench.forget();
    Ok(limits)
}
