//! A layer computed at once is, bit for bit, its products and its gate one after another.

use crate::gemm_tests::{Matrix, Random, bits};
use crate::ops::{Gate, gate};
use crate::{
    Activations, FeedForward, Hidden, Isa, Pool, Precision, TensorType, Write, feed_forward,
};

struct Layer {
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

impl Layer {
    /// `cols` into `hidden` into 24.
    fn random(random: &mut Random, types: [TensorType; 3], cols: usize, hidden: usize) -> Self {
        let [gate, up, down] = types;
        Self {
            gate: Matrix::random(random, gate, hidden, cols),
            up: Matrix::random(random, up, hidden, cols),
            down: Matrix::random(random, down, 24, hidden),
        }
    }

    fn one_after_another(&self, isa: Isa, precision: Precision, kind: Gate, x: &[f32]) -> Vec<f32> {
        let pool = Pool::new(2);
        let mut hidden = self.gate.times(&pool, isa, precision, x);
        let up = self.up.times(&pool, isa, precision, x);
        gate(isa, kind, &up, &mut hidden);
        self.down.times(&pool, isa, precision, &hidden)
    }

    fn at_once(&self, isa: Isa, precision: Precision, kind: Gate, x: &[f32]) -> Vec<f32> {
        let tokens = x.len() / self.gate.view().cols();
        let mut out = vec![f32::NAN; tokens * self.down.view().rows()];
        self.write(isa, precision, kind, x, &mut out, Write::Over);
        out
    }

    fn write(
        &self,
        isa: Isa,
        precision: Precision,
        kind: Gate,
        x: &[f32],
        out: &mut [f32],
        write: Write,
    ) {
        let (gate, up, down) = (self.gate.view(), self.up.view(), self.down.view());
        let tokens = x.len() / gate.cols();
        let mut scratch = Activations::new(gate.cols(), tokens);
        let mut hidden = Hidden::new(precision, [down], tokens);
        let layer = FeedForward { kind, gate, up, down };
        let pool = Pool::new(2);
        feed_forward(
            &pool,
            isa,
            precision,
            &mut scratch,
            &mut hidden,
            &layer,
            x,
            tokens,
            out,
            write,
        );
        hidden.erase();
    }
}

#[test]
fn a_layer_at_once_has_the_bits_of_its_steps() {
    use TensorType::{BF16, F32, IQ4_NL, Q4_0, Q4_1, Q4_K, Q5_K, Q6_K, Q8_0};
    let mut random = Random(7);
    // Shapes: a block, whole units and half of one; a hidden width that only floats can have.
    let cases = [
        ([Q4_K, Q4_K, Q6_K], 256, 768),
        ([Q6_K, Q5_K, Q4_K], 256, 768),
        ([Q4_K, Q8_0, Q6_K], 256, 768),
        ([Q4_0, Q8_0, Q4_1], 96, 32),
        ([Q8_0, F32, Q8_0], 64, 96),
        ([Q4_1, Q4_1, F32], 32, 48),
        ([F32, BF16, IQ4_NL], 40, 64),
    ];
    for (types, cols, hidden) in cases {
        let layer = Layer::random(&mut random, types, cols, hidden);
        for tokens in [1, 2, 6, 7, 14, 16, 18, 25, 535] {
            let x = random.activations(tokens * cols);
            for precision in [Precision::Int8, Precision::F32] {
                let kind = if tokens % 2 == 0 { Gate::Silu } else { Gate::GeluTanh };
                let want = layer.one_after_another(Isa::detect(), precision, kind, &x);
                for isa in Isa::available() {
                    let got = layer.at_once(isa, precision, kind, &x);
                    let name = isa.name();
                    assert_eq!(bits(&got), bits(&want), "{types:?} {tokens} {precision:?} {name}");
                }
            }
        }
    }
}

#[test]
fn a_layer_onto_what_is_there_is_their_sum() {
    use TensorType::{F32, Q4_K, Q6_K};
    let mut random = Random(9);
    for types in [[Q4_K, Q4_K, Q6_K], [F32; 3]] {
        let layer = Layer::random(&mut random, types, 256, 256);
        for tokens in [1, 16, 61] {
            let (x, before) = (random.activations(tokens * 256), random.activations(tokens * 24));
            for isa in Isa::available() {
                let mut want = layer.at_once(isa, Precision::Int8, Gate::Silu, &x);
                want.iter_mut().zip(&before).for_each(|(want, before)| *want += before);
                let mut out = before.clone();
                layer.write(isa, Precision::Int8, Gate::Silu, &x, &mut out, Write::Onto);
                assert_eq!(bits(&out), bits(&want), "{types:?} {tokens} {}", isa.name());
            }
        }
    }
}

#[test]
fn nothing_in_is_nothing_out() {
    let layer = Layer::random(&mut Random(8), [TensorType::Q8_0; 3], 32, 32);
    assert!(layer.at_once(Isa::detect(), Precision::Int8, Gate::Silu, &[]).is_empty());
}
