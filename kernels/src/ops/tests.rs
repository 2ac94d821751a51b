//! Every operation, on every instruction set, against its definition in 64 bits.

use half::f16;

use super::*;
use crate::isa::Isa;

/// A plain generator of values around 0, the same in every run.
struct Values(u64);

impl Values {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let bits = u32::try_from(self.0 >> 40).unwrap();
        bits as f32 / (1 << 23) as f32 - 1.0
    }

    fn many(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// Runs `compute` on every instruction set and with 1 and 3 threads; the bits must agree.
fn same_everywhere(compute: impl Fn(&Pool, Isa) -> Vec<f32>) -> Vec<f32> {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let first = compute(&Pool::new(1), Isa::Reference);
    for threads in [1, 3] {
        let pool = Pool::new(threads);
        for isa in Isa::available() {
            let other = compute(&pool, isa);
            assert!(bits(&first) == bits(&other), "{} with {threads} threads differs", isa.name());
        }
    }
    first
}

#[test]
fn exp_is_right_to_two_ulps_and_never_denormal() {
    let mut x = -86.9_f32;
    while x < 87.9 {
        let (got, want) = (lanes::exp(x), f64::from(x).exp());
        let error = (f64::from(got) - want).abs() / want;
        assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}) = {got}, not {want}");
        x += 0.013;
    }
    assert_eq!(lanes::exp(0.0), 1.0);
    assert_eq!(lanes::exp(-87.1), 0.0);
    assert_eq!(lanes::exp(f32::NEG_INFINITY), 0.0);
    assert!(lanes::exp(f32::INFINITY).is_finite());
    assert!(lanes::exp(f32::NAN).is_nan());
}

#[test]
fn rms_norm_is_its_formula() {
    for n in [1, 15, 16, 17, 576, 640] {
        let mut values = Values(n as u64);
        let (x, weight) = (values.many(3 * n), values.many(n));
        let out = same_everywhere(|pool, isa| {
            let mut out = vec![0.0; 3 * n];
            rms_norm(pool, isa, &x, &weight, 1e-5, &mut out);
            out
        });
        for (row, x) in out.chunks(n).zip(x.chunks(n)) {
            let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let scale = 1.0 / (squares / n as f64 + 1e-5).sqrt();
            for i in 0..n {
                let want = f64::from(x[i]) * scale * f64::from(weight[i]);
                assert!((f64::from(row[i]) - want).abs() <= 2e-6 * want.abs() + 1e-9);
            }
        }
    }
}

#[test]
fn gates_are_their_formulas() {
    let mut values = Values(7);
    let up = values.many(40_001);
    let x: Vec<f32> = values.many(40_001).iter().map(|x| x * 12.0).collect();
    for kind in [Gate::Silu, Gate::GeluTanh] {
        let out = same_everywhere(|_, isa| {
            let mut out = x.clone();
            gate(isa, kind, &up, &mut out);
            out
        });
        for i in 0..x.len() {
            let (x, up) = (f64::from(x[i]), f64::from(up[i]));
            let activated = match kind {
                Gate::Silu => x / (1.0 + (-x).exp()),
                Gate::GeluTanh => {
                    let y = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                    0.5 * x * (1.0 + y.tanh())
                }
            };
            let want = activated * up;
            assert!((f64::from(out[i]) - want).abs() <= 4e-6 * want.abs() + 1e-7, "{x} {up}");
        }
    }
}

#[test]
fn sums_and_scales_are_exact_over_task_borders() {
    let pool = Pool::new(2);
    let n = VALUES_A_TASK * 2 + 5;
    let mut out = vec![1.0; n];
    let x: Vec<f32> = (0..n).map(|i| (i % 1000) as f32).collect();
    add(&pool, &x, &mut out);
    scale(&pool, 2.0, &mut out);
    assert!(out.iter().zip(&x).all(|(out, x)| *out == (x + 1.0) * 2.0));
    let mut rows = vec![0.5; 6 * 7001];
    let bias: Vec<f32> = (0..7001).map(|i| i as f32).collect();
    add_bias(&pool, &bias, &mut rows);
    assert!(rows.chunks(7001).all(|row| row.iter().zip(&bias).all(|(x, b)| *x == b + 0.5)));
}

#[test]
fn rope_turns_pairs_and_leaves_the_rest() {
    let pool = Pool::new(1);
    let factors = [1.0, 4.0];
    for pairs in [RopePairs::Neighbours, RopePairs::Halves] {
        let mut rope = Rope::new(pairs, 4, 100.0, Some(&factors), 2);
        rope.set_positions([0, 3].into_iter());
        let mut x: Vec<f32> = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].repeat(4);
        rope.apply(&pool, 2, 6, &mut x);
        assert_eq!(x[..12], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].repeat(2)[..], "position 0 stays");
        assert_eq!(x[12..18], x[18..], "every head turns alike");
        let (i, j) = if pairs == RopePairs::Neighbours { (2, 3) } else { (1, 3) };
        let angle = 3.0_f64 * 0.1 / 4.0;
        let (a, b) = if pairs == RopePairs::Neighbours { (3.0, 4.0) } else { (2.0, 4.0) };
        assert!((f64::from(x[12 + i]) - (a * angle.cos() - b * angle.sin())).abs() < 1e-6);
        assert!((f64::from(x[12 + j]) - (a * angle.sin() + b * angle.cos())).abs() < 1e-6);
        assert_eq!(x[16..18], [5.0, 6.0]);
    }
}

/// How a page holds its values.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    F32,
    F16,
    Q8_0,
}

impl Held {
    const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Q8_0];
}

/// A cache with the pages of one sequence in a shuffled order.
struct Cache {
    shape: AttentionShape,
    tables: Vec<u32>,
    k: Vec<f32>,
    v: Vec<f32>,
    f32s: Vec<f32>,
    f16s: Vec<f16>,
    quants: Vec<i8>,
    scales: Vec<f16>,
}

impl Cache {
    fn new(shape: AttentionShape, len: usize) -> Self {
        let row = shape.n_kv_heads * shape.head_dim;
        let mut values = Values(len as u64 + 99);
        // Values that 16 bits hold exactly, so that both stores of floats have one meaning.
        let mut exact =
            |n| values.many(n).iter().map(|x| f16::from_f32(*x).to_f32()).collect::<Vec<_>>();
        Self::of(shape, exact(len * row), exact(len * row))
    }

    fn of(shape: AttentionShape, k: Vec<f32>, v: Vec<f32>) -> Self {
        let len = k.len() / (shape.n_kv_heads * shape.head_dim);
        let n_pages = len.div_ceil(PAGE_LEN);
        let tables: Vec<u32> = (0..u32::try_from(n_pages).unwrap()).rev().collect();
        let size = n_pages * 2 * PAGE_LEN * shape.n_kv_heads * shape.head_dim;
        let places = places(0..len);
        let (mut f32s, mut f16s) = (vec![0.0; size], vec![f16::ZERO; size]);
        let store =
            |isa, pages: KvPagesMut<'_>| store_kv(isa, &shape, pages, &tables, &places, &k, &v);
        store(Isa::Reference, KvPagesMut::F32(&mut f32s));
        store(Isa::Reference, KvPagesMut::F16(&mut f16s));
        let mut quantized = None;
        let isas =
            if shape.head_dim.is_multiple_of(KV_BLOCK_LEN) { Isa::available() } else { Vec::new() };
        for isa in isas {
            let (mut quants, mut scales) = (vec![0; size], vec![f16::ZERO; size / KV_BLOCK_LEN]);
            store(isa, KvPagesMut::Q8_0(&mut quants, &mut scales));
            let found = (quants, scales);
            let first = quantized.get_or_insert_with(|| found.clone());
            assert!(*first == found, "{} stores other bytes", isa.name());
        }
        let (quants, scales) = quantized.unwrap_or_default();
        Self { shape, tables, k, v, f32s, f16s, quants, scales }
    }

    /// The cache of the floats that the small integers of this one stand for.
    fn dequantized(&self) -> Self {
        let AttentionShape { n_kv_heads, head_dim: dim, .. } = self.shape;
        let float = |i: usize, values: bool| {
            let (row, d) = (i / dim, i % dim);
            let (position, head) = (row / n_kv_heads, row % n_kv_heads);
            let page = self.tables[position / PAGE_LEN] as usize * n_kv_heads + head;
            let (page, slot) = (page * 2 + usize::from(values), position % PAGE_LEN);
            let at = if values { slot * dim + d } else { d * PAGE_LEN + slot };
            let scale = self.scales[page * dim + d / KV_BLOCK_LEN * PAGE_LEN + slot];
            f32::from(self.quants[page * PAGE_LEN * dim + at]) * scale.to_f32()
        };
        let floats = |values| (0..self.k.len()).map(|i| float(i, values)).collect();
        Self::of(self.shape, floats(false), floats(true))
    }

    fn attend(&self, pool: &Pool, isa: Isa, held: Held, places: &[Place], q: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; q.len()];
        let pages = match held {
            Held::F32 => KvPages::F32(&self.f32s),
            Held::F16 => KvPages::F16(&self.f16s),
            Held::Q8_0 => KvPages::Q8_0(&self.quants, &self.scales),
        };
        let mut scores = vec![f32::NAN; self.shape.n_heads * self.tables.len() * PAGE_LEN * 8];
        let (shape, tables) = (&self.shape, &self.tables);
        attention(pool, isa, shape, pages, tables, places, q, &mut scores, &mut out);
        out
    }

    /// The definition, in 64 bits.
    fn define(&self, position: usize, head: usize, q: &[f32]) -> Vec<f64> {
        let AttentionShape { n_heads, n_kv_heads, head_dim: dim, scale, window } = self.shape;
        let start = window.map_or(0, |window| (position + 1).saturating_sub(window));
        let kv_head = head / (n_heads / n_kv_heads);
        let at = |p: usize| (p * n_kv_heads + kv_head) * dim;
        let dot = |p: usize| -> f64 {
            q.iter().zip(&self.k[at(p)..]).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
        };
        let weights: Vec<f64> =
            (start..=position).map(|p| (dot(p) * f64::from(scale)).exp()).collect();
        let total: f64 = weights.iter().sum();
        let value = |d: usize| {
            let part = |(i, w): (usize, &f64)| w * f64::from(self.v[at(start + i) + d]);
            weights.iter().enumerate().map(part).sum::<f64>() / total
        };
        (0..dim).map(value).collect()
    }
}

fn places(positions: core::ops::Range<usize>) -> Vec<Place> {
    positions.map(|position| Place { table: 0, position }).collect()
}

#[test]
fn attention_is_its_formula_for_every_grouping_and_window() {
    for (n_heads, n_kv_heads, head_dim) in
        [(1, 1, 16), (9, 3, 32), (12, 2, 64), (7, 1, 48), (8, 1, 80)]
    {
        for window in [None, Some(1), Some(16), Some(40)] {
            let shape = AttentionShape { n_heads, n_kv_heads, head_dim, scale: 0.3, window };
            let len = 75;
            let cache = Cache::new(shape, len);
            let q = Values(5).many(len * n_heads * head_dim);
            let all = places(0..len);
            let out = same_everywhere(|pool, isa| cache.attend(pool, isa, Held::F32, &all, &q));
            let out_f16 = same_everywhere(|pool, isa| cache.attend(pool, isa, Held::F16, &all, &q));
            assert_eq!(out, out_f16);
            for (i, (out, q)) in out.chunks(head_dim).zip(q.chunks(head_dim)).enumerate() {
                let want = cache.define(i / n_heads, i % n_heads, q);
                for (out, want) in out.iter().zip(want) {
                    assert!((f64::from(*out) - want).abs() < 2e-6, "{out} {want}");
                }
            }
        }
    }
}

#[test]
fn attention_over_small_integers_is_that_over_the_floats_they_stand_for() {
    for (n_heads, n_kv_heads, head_dim) in
        [(9, 3, 32), (12, 2, 64), (7, 1, 96), (8, 2, 32), (33, 1, 32)]
    {
        for (window, len) in [(None, 75), (Some(1), 33), (Some(16), 64), (Some(40), 97)] {
            let shape = AttentionShape { n_heads, n_kv_heads, head_dim, scale: 0.3, window };
            let cache = Cache::new(shape, len);
            let floats = cache.dequantized();
            let pairs = [(&floats.k, &cache.k), (&floats.v, &cache.v)];
            for (block, floats) in pairs.iter().flat_map(|(floats, values)| {
                values.chunks(KV_BLOCK_LEN).zip(floats.chunks(KV_BLOCK_LEN))
            }) {
                let step = block.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0;
                for (x, float) in block.iter().zip(floats) {
                    assert!((x - float).abs() < step * 0.57, "{x} became {float}");
                }
            }
            let q = Values(5).many(len * n_heads * head_dim);
            let all = places(0..len);
            let out = same_everywhere(|pool, isa| cache.attend(pool, isa, Held::Q8_0, &all, &q));
            for (i, (out, q)) in out.chunks(head_dim).zip(q.chunks(head_dim)).enumerate() {
                let want = floats.define(i / n_heads, i % n_heads, q);
                for (out, want) in out.iter().zip(want) {
                    assert!((f64::from(*out) - want).abs() < 2e-6, "{out} {want}");
                }
            }
        }
    }
}

#[test]
fn attention_of_a_token_does_not_depend_on_its_chunk() {
    for (window, held) in
        [None, Some(20)].into_iter().flat_map(|w| [(w, Held::F16), (w, Held::Q8_0)])
    {
        let shape = AttentionShape { n_heads: 6, n_kv_heads: 2, head_dim: 32, scale: 0.5, window };
        let len = 70;
        let cache = Cache::new(shape, len);
        let row = 6 * 32;
        let q = Values(3).many(len * row);
        let pool = Pool::new(2);
        for isa in Isa::available() {
            let whole = cache.attend(&pool, isa, held, &places(0..len), &q);
            for chunk in [1, 3, 32, 33] {
                for start in (0..len).step_by(chunk) {
                    let end = (start + chunk).min(len);
                    let (from, to) = (start * row, end * row);
                    let part = cache.attend(&pool, isa, held, &places(start..end), &q[from..to]);
                    assert_eq!(part, whole[from..to]);
                }
            }
            // Tokens of a batch need not be neighbours.
            let mixed = [Place { table: 0, position: 69 }, Place { table: 0, position: 2 }];
            let q_mixed = [&q[69 * row..], &q[2 * row..3 * row]].concat();
            let out = cache.attend(&pool, isa, held, &mixed, &q_mixed);
            assert_eq!(out, [&whole[69 * row..], &whole[2 * row..3 * row]].concat());
        }
    }
}

#[test]
fn threads_that_share_a_long_text_compute_what_one_computes() {
    for (n_heads, n_kv_heads, head_dim) in [(4, 1, 256), (9, 3, 64), (5, 5, 96), (2, 1, 32)] {
        for window in [None, Some(600)] {
            let shape = AttentionShape { n_heads, n_kv_heads, head_dim, scale: 0.1, window };
            let cache = Cache::new(shape, 1110);
            let row = n_heads * head_dim;
            for (tokens, held) in [1, 3].into_iter().flat_map(|n| Held::ALL.map(|held| (n, held))) {
                let places = places(1110 - tokens..1110);
                let q = Values(11).many(tokens * row);
                for isa in Isa::available() {
                    let want = cache.attend(&Pool::new(1), isa, held, &places, &q);
                    for threads in [2, 3, 4] {
                        let pool = Pool::new(threads);
                        let out = cache.attend(&pool, isa, held, &places, &q);
                        assert_eq!(out, want, "{shape:?} {} {threads} threads", isa.name());
                    }
                }
            }
        }
    }
}

/// A head of one position with these keys, and what is stored of them.
fn stored(keys: [f32; 32]) -> (f16, [i8; 32]) {
    let shape =
        AttentionShape { n_heads: 1, n_kv_heads: 1, head_dim: 32, scale: 1.0, window: None };
    let cache = Cache::of(shape, keys.to_vec(), keys.to_vec());
    let found = core::array::from_fn(|d| cache.quants[d * PAGE_LEN]);
    assert_eq!(cache.quants[PAGE_LEN * 32..][..32], found, "values are as keys");
    assert_eq!(cache.scales[0], cache.scales[32]);
    (cache.scales[0], found)
}

#[test]
fn small_integers_are_the_nearest_and_even_between_two() {
    let mut keys: [f32; 32] = core::array::from_fn(|i| i as f32 / 2.0 - 8.0);
    keys[31] = -127.0;
    let want = [
        -8, -8, -7, -6, -6, -6, -5, -4, -4, -4, -3, -2, -2, -2, -1, 0, 0, 0, 1, 2, 2, 2, 3, 4, 4,
        4, 5, 6, 6, 6, 7, -127,
    ];
    assert_eq!(stored(keys), (f16::ONE, want));
    assert_eq!(stored(keys.map(|x| x / 64.0)), (f16::from_f32(1.0 / 64.0), want));
}

#[test]
fn small_integers_saturate_and_take_anything() {
    let one = |x: f32| {
        let mut keys = [0.0; 32];
        keys[7] = x;
        let (scale, quants) = stored(keys);
        assert!(quants.iter().enumerate().all(|(i, quant)| i == 7 || *quant == 0));
        (scale, quants[7])
    };
    assert_eq!(one(0.0), (f16::ZERO, 0));
    assert_eq!(one(1e9), (f16::MAX, 127));
    assert_eq!(one(f32::NEG_INFINITY), (f16::MAX, -127));
    assert_eq!(one(1e-30), (f16::ZERO, 0));
    let (scale, quant) = one(1e-4);
    assert!((scale.to_f32() * f32::from(quant) - 1e-4).abs() < 3e-6, "{scale} {quant}");
    let mut keys = [1.0; 32];
    keys[3] = f32::NAN;
    stored(keys);
}

#[test]
fn sixteen_bits_saturate() {
    let shape =
        AttentionShape { n_heads: 1, n_kv_heads: 1, head_dim: 16, scale: 1.0, window: None };
    let mut pages = vec![f16::ZERO; 2 * PAGE_LEN * 16];
    let (k, v) = ([1e9; 16], [-1e9; 16]);
    let pages_mut = KvPagesMut::F16(&mut pages);
    store_kv(Isa::Reference, &shape, pages_mut, &[0], &places(0..1), &k, &v);
    assert_eq!(pages[0], f16::MAX);
    assert_eq!(pages[PAGE_LEN * 16], f16::MIN);
}

#[test]
fn thresholds_are_those_of_a_sorted_list() {
    let mut values = Values(11);
    for n in [1, 5, 16, 100, 1003] {
        let x: Vec<f32> = values.many(n).iter().map(|x| (x * 50.0).round() / 8.0).collect();
        let mut sorted = x.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let weights: Vec<f32> = x.iter().map(|x| x.exp()).collect();
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        for isa in Isa::available() {
            for k in [1, 2, n / 2 + 1, n, n + 5] {
                assert_eq!(nth_largest(isa, &x, k), sorted[k.min(n) - 1]);
            }
            for share in [0.1, 0.5, 0.9] {
                let target = total * share;
                let threshold = threshold_of_weight(isa, &x, &weights, target as f32);
                let weight = |from: &dyn Fn(f32) -> bool| -> f64 {
                    let of = |(x, w): (&f32, &f32)| if from(*x) { f64::from(*w) } else { 0.0 };
                    x.iter().zip(&weights).map(of).sum()
                };
                assert!(weight(&|x| x >= threshold) >= target * 0.99999);
                assert!(weight(&|x| x > threshold) <= target * 1.00001);
            }
        }
    }
}

#[test]
fn weights_are_exponentials_above_the_floor() {
    let x = Values(2).many(1001);
    let out = same_everywhere(|_, isa| {
        let mut weights = vec![f32::NAN; x.len()];
        let sum = weigh(isa, &x, -0.25, 1.0, 2.0, &mut weights);
        weights.push(sum);
        weights
    });
    let (sum, weights) = out.split_last().unwrap();
    for (x, weight) in x.iter().zip(weights) {
        let want = if *x < -0.25 { 0.0 } else { ((f64::from(*x) - 1.0) * 2.0).exp() };
        assert!((f64::from(*weight) - want).abs() < 1e-6);
    }
    let want: f64 = weights.iter().map(|w| f64::from(*w)).sum();
    assert!((f64::from(*sum) - want).abs() < 1e-4);
}
