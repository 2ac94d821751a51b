//! The gated feed-forward half of a layer: `out = Wd (activation(Wg x) * (Wu x))`.
//!
//! A task computes a unit of the gate and the same unit of the other matrix, and what it makes of
//! both is 32 columns of the last product's input: one block of bytes, which is written at once.
//! The hidden values, far more than the cache holds, are never stored as floats, except where the
//! last product reads floats. The result is, bit for bit, that of the three products and the gate
//! one after another.

use crate::gemm::{
    Input, Kernel, Memory, Sums, TOKENS_MAX, UNIT_TILES, UnitPart, run_products, run_units,
    unit_bytes,
};
use crate::isa::Isa;
use crate::ops::{self, Gate};
use crate::output::{NEAR_TOKENS, Write, clear, store};
use crate::packed::{BLOCK_LEN, Packed};
use crate::pool::{Disjoint, Pool};
use crate::quantize::{Activations, Needed, PANEL_TOKENS, Writer};
use crate::{Precision, Product, reference};

/// The matrices of a gated feed-forward layer.
#[derive(Clone, Copy, Debug)]
pub struct FeedForward<'a> {
    /// What makes a gate of its product.
    pub kind: Gate,
    /// `[hidden, cols]`
    pub gate: Packed<'a>,
    /// `[hidden, cols]`
    pub up: Packed<'a>,
    /// `[rows, hidden]`
    pub down: Packed<'a>,
}

/// Buffers for the hidden values of such layers, allocated once and reused.
pub struct Hidden {
    quantized: Activations,
    /// `[tokens, hidden]`, or nothing if no last product reads floats.
    floats: Vec<f32>,
}

impl Hidden {
    /// Allocates for layers with these `down` and for up to `tokens_max` tokens.
    #[must_use]
    pub fn new<'a>(
        precision: Precision,
        downs: impl IntoIterator<Item = Packed<'a>>,
        tokens_max: usize,
    ) -> Self {
        let (mut quants, mut floats) = (0, 0);
        for down in downs {
            let cols = if down.reads_bytes(precision) { &mut quants } else { &mut floats };
            *cols = down.cols().max(*cols);
        }
        let quantized_tokens = if quants > 0 { tokens_max } else { 0 };
        Self {
            quantized: Activations::new(quants, quantized_tokens),
            floats: vec![0.0; floats * tokens_max],
        }
    }

    /// Overwrites the buffers with zeros, so that nothing of the last input stays.
    pub fn erase(&mut self) {
        self.quantized.erase();
        self.floats.fill(0.0);
    }
}

/// Computes a gated feed-forward layer, and writes it to `out` as `write` says.
///
/// Shapes: `x: [tokens, cols]`, `out: [tokens, rows]`. Allocates nothing.
///
/// # Panics
///
/// Panics if a shape does not fit or is larger than a buffer was made for.
#[expect(clippy::too_many_arguments, reason = "as `gemm`, with buffers for what lies between")]
pub fn feed_forward(
    pool: &Pool,
    isa: Isa,
    precision: Precision,
    scratch: &mut Activations,
    hidden: &mut Hidden,
    layer: &FeedForward<'_>,
    x: &[f32],
    tokens: usize,
    out: &mut [f32],
    write: Write,
) {
    let FeedForward { gate, up, down, .. } = layer;
    let (cols, width) = (gate.cols(), down.cols());
    assert_eq!(x.len(), tokens * cols, "x is [tokens, cols]");
    assert_eq!(out.len(), tokens * down.rows(), "out is [tokens, rows]");
    assert_eq!((up.rows(), up.cols()), (gate.rows(), cols), "both have the same shape");
    assert_eq!(gate.rows(), width, "the last product reads what the others make");
    if tokens == 0 || cols == 0 || width == 0 {
        clear(out, write);
        return;
    }
    let needed = |weights: &[&Packed<'_>]| {
        Needed::of(weights.iter().copied().filter(|weights| weights.reads_bytes(precision)))
    };
    if let Some(needed) = needed(&[gate, up]) {
        assert!(scratch.fits(tokens, cols), "scratch is too small");
        scratch.quantize(pool, isa, needed, x, cols);
    }
    let input = Input { precision, quantized: scratch, x, tokens, cols };
    let Hidden { quantized, floats } = hidden;
    let target = match needed(&[down]) {
        Some(needed) => {
            assert!(quantized.fits(tokens, width), "the hidden values' buffer is too small");
            HiddenTarget::Bytes(quantized.writer(isa, needed, tokens, width))
        }
        None => HiddenTarget::Floats(Disjoint::new(&mut floats[..tokens * width])),
    };
    let make = Make { isa, input: &input, layer, target };
    match isa {
        Isa::Reference => make.run(pool, reference::Plain),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => make.run(pool, proof),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni(proof) => make.run(pool, proof),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => make.run(pool, proof),
        #[cfg(target_arch = "x86_64")]
        Isa::Amx(proof) => make.run(pool, proof),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(proof) => make.run(pool, proof),
        #[cfg(target_arch = "aarch64")]
        Isa::Dotprod(proof) => make.run(pool, proof),
    }
    let x = floats.get(..tokens * width).unwrap_or(&[]);
    let input = Input { precision, quantized, x, tokens, cols: width };
    run_products(pool, isa, &input, &mut [Product { weights: *down, out, write }]);
}

/// Where the hidden values go: what the last product reads.
#[expect(clippy::large_enum_variant, reason = "one a call, and it stays where it is")]
enum HiddenTarget<'a> {
    Bytes(Writer<'a>),
    /// `[tokens, hidden]`
    Floats(Disjoint<'a, f32>),
}

/// The first two products and their gate.
struct Make<'a> {
    isa: Isa,
    input: &'a Input<'a>,
    layer: &'a FeedForward<'a>,
    target: HiddenTarget<'a>,
}

impl Make<'_> {
    fn run<K: Kernel>(&self, pool: &Pool, kernel: K) {
        let units = self.layer.gate.tiles().div_ceil(UNIT_TILES);
        run_units(pool, kernel, self.input, units, &|unit, next, memory| {
            let next = next.map_or(&[][..], |next| unit_bytes(&self.layer.gate, next));
            self.run_unit(kernel, unit, next, memory);
        });
    }

    /// Computes a unit of both; `next` is what this thread will read after it.
    fn run_unit<K: Kernel>(&self, kernel: K, unit: usize, next: &[u8], memory: &mut Memory) {
        let FeedForward { gate, up, .. } = self.layer;
        let Memory { chunks, rooms: [gates, ups] } = memory;
        gates.clear();
        ups.clear();
        let mut next = Some((unit_bytes(up, unit), next));
        for first in (0..self.input.tokens).step_by(TOKENS_MAX) {
            let tokens = first..self.input.tokens.min(first + TOKENS_MAX);
            let (then, next) = next.take().unwrap_or((&[], &[]));
            let part = UnitPart { weights: gate, unit, tokens: tokens.clone() };
            part.sum(kernel, self.input, then, chunks, gates, &mut |_, _| {});
            let part = UnitPart { weights: up, unit, tokens };
            part.sum(kernel, self.input, next, chunks, ups, &mut |token, ups| {
                let gates = gates.part(token - first, ups.len(), false);
                ops::gate(self.isa, self.layer.kind, ups.as_flattened(), gates.as_flattened_mut());
                self.write(unit, token, gates);
            });
        }
    }

    /// Writes the hidden values of a panel that a unit makes.
    fn write(&self, unit: usize, token: usize, values: &[Sums]) {
        match &self.target {
            HiddenTarget::Bytes(writer) => {
                const { assert!(crate::gemm::UNIT_ROWS == BLOCK_LEN) };
                // What is written next lies far from this: it would be waited for.
                let next = token + values.len();
                if self.input.tokens > NEAR_TOKENS {
                    writer.ask(next, PANEL_TOKENS.min(self.input.tokens - next), unit);
                }
                // SAFETY: a unit is the work of one task, and these are the columns of its rows.
                unsafe { writer.write(self.isa, token, unit..unit + 1, values.as_flattened()) }
            }
            HiddenTarget::Floats(floats) => {
                store(floats, self.layer.gate.rows(), unit, token, values, Write::Over);
            }
        }
    }
}
