//! What the machine can do at all, measured before and after every round: its speed moves by the hour and by
//! the second, and a share of what it could do at another time says little.

use std::error::Error;

use kernels::limits::{BANDWIDTH_SIZE, Speed, int8_peak, read_bandwidth};
use kernels::{Isa, Pool};

use crate::sys::memory::UnsealedMemory;

/// What the machine could do at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// Bytes per second.
    pub(super) read_bandwidth: Speed,
    /// Multiply-adds per second of the widest vectors.
    pub(super) peak: Speed,
}

/// What the machine can do at all.
pub(super) struct Limits {
    /// Bytes per second: the most that was measured.
    pub(super) read_bandwidth: f64,
    /// Multiply-adds per second of each instruction set, widest first.
    pub(super) peaks: Vec<(Isa, f64)>,
    /// Of the widest vectors: the most that was measured.
    pub(super) peak: f64,
}

/// Measures limits with as many threads as the rows have.
pub(super) struct Probe {
    pool: Pool,
    memory: UnsealedMemory,
    /// The instruction set with the widest vectors.
    widest: Isa,
}

impl Probe {
    /// Bytes that a probe keeps resident.
    pub(super) const SIZE: u64 = BANDWIDTH_SIZE as u64;

    /// Takes its memory.
    pub(super) fn new(pool: Pool) -> Result<Self, Box<dyn Error>> {
        // Kept as weights are.
        let mut memory = UnsealedMemory::new("cloister-bench", BANDWIDTH_SIZE)?;
        memory.collapse(0..BANDWIDTH_SIZE);
        memory.fill(1);
        Ok(Self { pool, memory, widest: Isa::widest_vectors() })
    }

    /// Measures what stands beside a round.
    pub(super) fn limit(&self) -> Limit {
        Limit {
            read_bandwidth: read_bandwidth(&self.pool, &self.memory),
            peak: int8_peak(&self.pool, self.widest),
        }
    }

    /// Measures every instruction set; `seen` stood beside the rounds.
    pub(super) fn limits(&self, seen: &[Limit]) -> Limits {
        let now = self.limit();
        let most = |of: fn(&Limit) -> f64| seen.iter().map(of).fold(of(&now), f64::max);
        let peak = most(|limit| limit.peak.full);
        let of = |isa| if isa == self.widest { peak } else { int8_peak(&self.pool, isa).full };
        let isas = Isa::available().into_iter().rev().filter(|isa| *isa != Isa::Reference);
        let peaks = isas.map(|isa| (isa, of(isa))).collect();
        Limits { read_bandwidth: most(|limit| limit.read_bandwidth.full), peaks, peak }
    }
}
