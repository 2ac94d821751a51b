//! Launches with their arguments, and the time that they take.

use std::cell::RefCell;

use kernels::cuda::{Card, CudaError, Memory, Timer};

use crate::limits::Limits;
use crate::shapes::Step;

/// Bytes that copies of weights or pages have together: more than any card's cache.
const COLD_SIZE: usize = 512 << 20;
/// Most copies.
const COPIES_MAX: usize = 64;
/// What the launches of a graph should take together, in seconds, were they at their limit.
const GRAPH_S: f64 = 0.004;
/// Most launches of a graph.
const GRAPH_MAX: f64 = 256.0;
/// Graphs that are timed: the median counts.
const ROUNDS: usize = 5;
/// Bytes that are sent at a time.
const PIECE_SIZE: usize = 16 << 20;

/// An argument, put together number by number; the caller keeps numbers aligned.
#[derive(Clone, Default)]
pub(crate) struct Argument(Vec<u8>);

impl Argument {
    pub(crate) fn long(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn int(mut self, value: usize) -> Self {
        self.0.extend(u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
        self
    }

    pub(crate) fn float(mut self, value: f32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn inner(mut self, inner: &Self) -> Self {
        self.0.extend(&inner.0);
        self
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// As long as a struct with pointers is.
    pub(crate) fn padded(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }
}

pub(crate) fn long(value: u64) -> Argument {
    Argument::default().long(value)
}

pub(crate) fn int(value: usize) -> Argument {
    Argument::default().int(value)
}

pub(crate) fn float(value: f32) -> Argument {
    Argument::default().float(value)
}

/// A launch.
pub(crate) struct Launch {
    pub(crate) kernel: String,
    pub(crate) grid: [usize; 3],
    pub(crate) threads: u32,
    pub(crate) shared: usize,
    pub(crate) arguments: Vec<Argument>,
}

/// What is timed: launches that take turns, and what one of them must do at least.
pub(crate) struct Work {
    pub(crate) part: &'static str,
    pub(crate) tokens: usize,
    pub(crate) step: Step,
    /// How often it happens in the step; 0 for one that is measured beside it.
    pub(crate) count: f64,
    pub(crate) launches: Vec<Launch>,
    /// Read and written.
    pub(crate) bytes: f64,
    /// Operations on bytes, two for a multiply-add.
    pub(crate) int8_ops: f64,
    /// The same on floats.
    pub(crate) float_ops: f64,
}

/// What was measured.
pub(crate) struct Row {
    pub(crate) shape: &'static str,
    pub(crate) work: Work,
    /// Of one launch.
    pub(crate) seconds: f64,
}

/// A card with its timer and the buffers that launches point to.
pub(crate) struct Bench<'c> {
    pub(crate) card: &'c Card<'c>,
    timer: Timer<'c>,
    held: RefCell<Vec<Memory<'c>>>,
    /// Whether times mean nothing.
    is_tiny: bool,
}

impl<'c> Bench<'c> {
    pub(crate) fn new(card: &'c Card<'c>, is_tiny: bool) -> Result<Self, CudaError> {
        Ok(Self { card, timer: card.timer()?, held: RefCell::default(), is_tiny })
    }

    /// Returns how many copies of `size` bytes are read in turn.
    pub(crate) fn copies(&self, size: usize) -> usize {
        if self.is_tiny { 2 } else { COLD_SIZE.div_ceil(size).clamp(2, COPIES_MAX) }
    }

    /// Allocates a buffer that is filled with a pattern again and again; returns where it lies. It lives
    /// until [`Self::forget`].
    pub(crate) fn buffer(&self, size: usize, pattern: &[u8]) -> Result<u64, CudaError> {
        let mut memory = self.card.allocate(size)?;
        let piece_len =
            (PIECE_SIZE / pattern.len() * pattern.len()).min(size.next_multiple_of(pattern.len()));
        let piece: Vec<u8> = pattern.iter().copied().cycle().take(piece_len).collect();
        for at in (0..size).step_by(piece_len) {
            memory.write(at, &piece[..piece_len.min(size - at)])?;
        }
        let address = memory.address();
        self.held.borrow_mut().push(memory);
        Ok(address)
    }

    /// A buffer of random bytes.
    pub(crate) fn bytes(&self, size: usize) -> Result<u64, CudaError> {
        self.buffer(size, &random(1 << 16))
    }

    /// A buffer of random floats between -1 and 1.
    pub(crate) fn floats(&self, len: usize) -> Result<u64, CudaError> {
        let units = random(1 << 14)
            .chunks_exact(2)
            .flat_map(|two| {
                let unit = f32::from(i16::from_le_bytes([two[0], two[1]])) / 32_768.0;
                unit.to_le_bytes()
            })
            .collect::<Vec<u8>>();
        self.buffer(len * 4, &units)
    }

    pub(crate) fn numbers(&self, numbers: &[u32]) -> Result<u64, CudaError> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.buffer(bytes.len(), &bytes)
    }

    /// Gives all buffers back.
    pub(crate) fn forget(&self) {
        self.held.borrow_mut().clear();
    }

    fn launch(&self, launch: &Launch) -> Result<(), CudaError> {
        let arguments: Vec<&[u8]> =
            launch.arguments.iter().map(|argument| argument.0.as_slice()).collect();
        let grid = launch.grid.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let shared = u32::try_from(launch.shared).unwrap_or(u32::MAX);
        // SAFETY: arguments and grids are those of the kernels' README; buffers live until `forget`, which
        // waits for all that runs.
        unsafe { self.card.launch(&launch.kernel, grid, launch.threads, shared, &arguments) }
    }

    /// Returns the seconds of one of `n` launches.
    pub(crate) fn seconds(&self, launches: &[Launch], n: usize) -> Result<f64, CudaError> {
        let n = if self.is_tiny { launches.len() } else { n.max(launches.len()) };
        self.launch(&launches[0])?;
        let graph = self.card.record(|| {
            launches.iter().cycle().take(n).try_for_each(|launch| self.launch(launch))
        })?;
        let rounds = if self.is_tiny { 1 } else { ROUNDS };
        let mut times = Vec::new();
        // The first round warms up.
        for _ in 0..=rounds {
            self.timer.start()?;
            // SAFETY: as for each launch.
            unsafe { graph.launch()? };
            self.timer.stop()?;
            times.push(self.timer.seconds()? / n as f64);
        }
        let timed = &mut times[1..];
        timed.sort_by(f64::total_cmp);
        Ok(timed[timed.len() / 2])
    }

    /// Times a work.
    pub(crate) fn row(
        &self,
        shape: &'static str,
        limits: &Limits,
        work: Work,
    ) -> Result<Row, CudaError> {
        let n = (GRAPH_S / limits.seconds(&work)).clamp(8.0, GRAPH_MAX);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 256")]
        let seconds = self.seconds(&work.launches, n as usize)?;
        Ok(Row { shape, work, seconds })
    }
}

/// Bytes of SplitMix64.
fn random(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mix = state;
        mix = (mix ^ (mix >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mix = (mix ^ (mix >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mix ^ (mix >> 31)
    };
    std::iter::repeat_with(next).flat_map(u64::to_le_bytes).take(len).collect()
}
