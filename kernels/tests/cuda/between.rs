//! What lies between the products: norms, gates, activations as bytes, heads and their pages, erasing.

use half::f16;
use kernels::ops::{self, AttentionShape, KvPagesMut, PAGE_LEN, Place, Rope, RopePairs};
use kernels::{Isa, Pool};

use crate::data::{Random, assert_near, assert_same, quantize};
use crate::emulator::{Argument, Buffer, Emulator, Outputs, Request, maybe, pointer, value};

/// Where a kernel writes: floats, bytes, scales (the bits of scale and sums).
struct Out {
    floats: Buffer<f32>,
    quants: Buffer<i8>,
    scales: Buffer<u32>,
}

impl Out {
    fn new(request: &mut Request, len: usize) -> Self {
        let (quants, scales) = (request.output(len), request.output(len / 32 * 2));
        Self { floats: request.output(len), quants, scales }
    }

    fn argument(&self) -> Argument {
        Argument::new().pointer(self.floats).pointer(self.quants).pointer(self.scales)
    }

    /// The floats; the bytes are theirs exactly.
    fn checked(&self, outputs: &Outputs, what: &str) -> Vec<f32> {
        let floats = outputs.get(self.floats);
        let (quants, scales) = quantize(&floats);
        assert_eq!(outputs.get(self.quants), quants, "{what}: quants");
        let is_nan = |bits: u32| f32::from_bits(bits).is_nan();
        for (i, (found, wanted)) in outputs.get(self.scales).iter().zip(&scales).enumerate() {
            let same = found == wanted || i % 2 == 0 && is_nan(*found) && is_nan(*wanted);
            assert!(same, "{what}: scale or sums {i}: {found:x}, not {wanted:x}");
        }
        floats
    }
}

fn int(value: usize) -> Argument {
    self::value(i32::try_from(value).unwrap())
}

#[test]
fn activations_become_the_bytes_of_the_cpu() {
    let Some(emulator) = Emulator::get() else { return };
    let (cols, tokens) = (352, 3);
    let units = [1.0, 1e-35, 1e-29, 3e29, 0.0, 1e-3, 1e31, f32::NAN];
    let x: Vec<f32> = (0..cols * tokens)
        .map(|i| ((i * 7919 % 1021) as f32 / 4.0 - 127.5) * units[i / 32 % units.len()])
        .collect();
    let mut request = Request::new(1);
    let (out, from) = (Out::new(&mut request, x.len()), request.input(&x));
    let arguments = [pointer(from), int(cols), out.argument()];
    request.launch("quantize", [cols.div_ceil(256), tokens, 1], 256, &arguments);
    let outputs = request.run(emulator);
    assert_same(&out.checked(&outputs, "quantize"), &x, "floats");
}

#[test]
fn a_sum_and_its_norm_are_those_of_the_cpu() {
    let Some(emulator) = Emulator::get() else { return };
    let mut random = Random(2);
    let pool = Pool::new(1);
    for (cols, has_delta, has_weight) in
        [(32, true, true), (576, true, false), (2560, false, false)]
    {
        let (tokens, wanted_rows) = (3, [2_usize, 0]);
        let (x, delta) = (random.activations(tokens * cols), random.activations(tokens * cols));
        let (weight, delta_weight) = (random.units(cols), random.units(cols));
        let mut request = Request::new(cols as u64);
        let out = Out::new(&mut request, 2 * cols);
        let (on_card, rows) =
            (request.changed(&x), request.input(&wanted_rows.map(|row| row as i32)));
        let arguments = [
            pointer(on_card),
            maybe(has_delta.then(|| request.input(&delta))),
            maybe(has_weight.then(|| request.input(&delta_weight))),
            pointer(request.input(&weight)),
            value(1e-5_f32),
            int(cols),
            pointer(rows),
            out.argument(),
        ];
        request.launch("add_norm", [2, 1, 1], 256, &arguments);
        let outputs = request.run(emulator);

        let mut sums = x.clone();
        for row in wanted_rows.into_iter().filter(|_| has_delta) {
            let range = row * cols..(row + 1) * cols;
            let mut added = delta[range.clone()].to_vec();
            if has_weight {
                let plain = &delta[range.clone()];
                ops::rms_norm(&pool, Isa::Reference, plain, &delta_weight, 1e-5, &mut added);
            }
            ops::add(&pool, &added, &mut sums[range]);
        }
        let share = if has_weight { 1e-6 } else { 0.0 };
        assert_near(&outputs.get(on_card), &sums, share, "the sum");
        let picked: Vec<f32> =
            wanted_rows.iter().flat_map(|row| &sums[row * cols..][..cols]).copied().collect();
        let mut wanted = vec![f32::NAN; picked.len()];
        ops::rms_norm(&pool, Isa::Reference, &picked, &weight, 1e-5, &mut wanted);
        assert_near(&out.checked(&outputs, "add_norm"), &wanted, 1e-6, "the norm");
    }
}

#[test]
fn gates_are_their_formulas() {
    let Some(emulator) = Emulator::get() else { return };
    let mut random = Random(3);
    let (cols, tokens) = (288, 2);
    let mut gates: Vec<f32> = random.units(cols * tokens).iter().map(|x| x * 12.0).collect();
    gates[..3].copy_from_slice(&[-200.0, 200.0, 0.0]);
    let up = random.units(cols * tokens);
    for kind in [0, 1] {
        let mut request = Request::new(4);
        let out = Out::new(&mut request, gates.len());
        let (on_card, other) = (request.input(&gates), request.input(&up));
        let arguments = [pointer(on_card), pointer(other), value(kind), int(cols), out.argument()];
        request.launch("gate", [cols.div_ceil(256), tokens, 1], 256, &arguments);
        let outputs = request.run(emulator);
        let wanted: Vec<f32> = gates
            .iter()
            .zip(&up)
            .map(|(x, up)| {
                let x = f64::from(*x);
                let cube = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                let y = if kind == 0 { x } else { 2.0 * cube };
                (x / (1.0 + (-y).exp()) * f64::from(*up)) as f32
            })
            .collect();
        assert_near(&out.checked(&outputs, "gate"), &wanted, 1e-6, &format!("gate {kind}"));
    }
}

/// A batch of heads: shape, places in two sequences, queries, keys, values.
struct Batch {
    shape: AttentionShape,
    dims: usize,
    pairs: RopePairs,
    tables: Vec<u32>,
    places: Vec<Place>,
    /// Queries, keys, values.
    qkv: [Vec<f32>; 3],
}

impl Batch {
    fn new(
        random: &mut Random,
        pairs: RopePairs,
        n_heads: usize,
        head_dim: usize,
        dims: usize,
    ) -> Self {
        let shape = AttentionShape { n_heads, n_kv_heads: 2, head_dim, scale: 1.0, window: None };
        let place = |(table, position)| Place { table, position };
        let places: Vec<_> = [(0, 0), (0, 1), (3, 31), (3, 32), (0, 70)].map(place).to_vec();
        let of = |heads: usize, random: &mut Random| random.activations(5 * heads * head_dim);
        let qkv = [of(n_heads, random), of(2, random), of(2, random)];
        Self { shape, dims, pairs, tables: vec![4, 0, 5, 2, 1, 3], places, qkv }
    }

    /// Cosine and sine of every token's pairs, as the CPU computes them.
    fn turns(&self) -> Vec<f32> {
        let frequency = |i: usize| 10_000_f64.powf(-2.0 * i as f64 / self.dims as f64);
        let mut turns = Vec::new();
        for place in &self.places {
            for i in 0..self.dims / 2 {
                let (sine, cosine) = (place.position as f64 * frequency(i)).sin_cos();
                turns.extend([cosine as f32, sine as f32]);
            }
        }
        turns
    }

    /// Runs the kernel; pages of items `T`, and scales where they are 8 bits.
    fn run<T: crate::emulator::Number>(
        &self,
        emulator: &Emulator,
        name: &str,
        norms: Option<&[f32]>,
        pages: &[T],
    ) -> (Vec<f32>, Vec<T>, Vec<u16>) {
        let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = self.shape;
        let mut request = Request::new(head_dim as u64);
        let q = request.changed(&self.qkv[0]);
        let norm = norms.map(|norms| request.input(norms));
        let places: Vec<i32> = self
            .places
            .iter()
            .flat_map(|place| [place.table as i32, place.position as i32])
            .collect();
        let (pages, scales) =
            (request.changed(pages), request.changed(&vec![0_u16; 6 * 2 * n_kv_heads * head_dim]));
        let number = |value: usize| i32::try_from(value).unwrap();
        let heads = Argument::new()
            .pointer(q)
            .pointer(request.input(&self.qkv[1]))
            .pointer(request.input(&self.qkv[2]))
            .maybe(norm)
            .maybe(norm)
            .pointer(request.input(&self.turns()))
            .pointer(request.input(&self.tables))
            .pointer(request.input(&places))
            .pointer(pages)
            .pointer(scales)
            .number(number(n_heads))
            .number(number(n_kv_heads))
            .number(number(head_dim))
            .number(number(self.dims / 2))
            .number(i32::from(self.pairs == RopePairs::Neighbours))
            .number(1e-6_f32);
        let grid = [(n_heads + 2 * n_kv_heads).div_ceil(4), self.places.len(), 1];
        request.launch(&format!("prepare_heads_{name}"), grid, 128, &[heads]);
        let outputs = request.run(emulator);
        (outputs.get(q), outputs.get(pages), outputs.get(scales))
    }

    /// Queries and keys as the CPU turns them, normalised first if there are norms.
    fn wanted(&self, norms: Option<&[f32]>) -> [Vec<f32>; 2] {
        let pool = Pool::new(1);
        let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = self.shape;
        let mut rope = Rope::new(self.pairs, self.dims, 10_000.0, None, self.places.len());
        rope.set_positions(self.places.iter().map(|place| place.position));
        [(n_heads, &self.qkv[0]), (n_kv_heads, &self.qkv[1])].map(|(heads, x)| {
            let mut x = x.clone();
            if let Some(norms) = norms {
                ops::rms_norm(&pool, Isa::Reference, &x.clone(), norms, 1e-6, &mut x);
            }
            rope.apply(&pool, heads, head_dim, &mut x);
            x
        })
    }

    fn page_values(&self) -> usize {
        6 * 2 * PAGE_LEN * self.shape.n_kv_heads * self.shape.head_dim
    }

    fn store(&self, pages: KvPagesMut<'_>, keys: &[f32]) {
        let values = &self.qkv[2];
        ops::store_kv(Isa::Reference, &self.shape, pages, &self.tables, &self.places, keys, values);
    }
}

#[test]
fn heads_are_turned_and_stored_as_on_the_cpu() {
    let Some(emulator) = Emulator::get() else { return };
    let mut random = Random(5);
    for (pairs, n_heads, head_dim, dims) in [
        (RopePairs::Neighbours, 4, 64, 64),
        (RopePairs::Halves, 6, 96, 48),
        (RopePairs::Halves, 2, 16, 16),
        (RopePairs::Neighbours, 2, 256, 128),
    ] {
        let batch = Batch::new(&mut random, pairs, n_heads, head_dim, dims);
        let len = batch.page_values();
        let [q, k] = batch.wanted(None);
        let (mut f32s, mut f16s) = (vec![0.0; len], vec![f16::ZERO; len]);
        batch.store(KvPagesMut::F32(&mut f32s), &k);
        batch.store(KvPagesMut::F16(&mut f16s), &k);

        let (found_q, found, _) = batch.run(emulator, "f32", None, &vec![0.0_f32; len]);
        assert_same(&found_q, &q, "queries");
        assert_same(&found, &f32s, "pages of 32 bits");
        let (_, found, _) = batch.run(emulator, "f16", None, &vec![0_u16; len]);
        assert!(found.iter().zip(&f16s).all(|(found, wanted)| *found == wanted.to_bits()));
        if head_dim.is_multiple_of(32) {
            let (mut quants, mut scales) = (vec![0; len], vec![f16::ZERO; len / 32]);
            batch.store(KvPagesMut::Q8_0(&mut quants, &mut scales), &k);
            let (_, found, found_scales) = batch.run(emulator, "q8_0", None, &vec![0_i8; len]);
            assert_eq!(found, quants);
            assert!(
                found_scales.iter().zip(&scales).all(|(found, wanted)| *found == wanted.to_bits())
            );
        }

        let norms = random.units(head_dim);
        let [q, k] = batch.wanted(Some(&norms));
        f32s.fill(0.0);
        batch.store(KvPagesMut::F32(&mut f32s), &k);
        let (found_q, found, _) = batch.run(emulator, "f32", Some(&norms), &vec![0.0_f32; len]);
        assert_near(&found_q, &q, 1e-6, "normalised queries");
        assert_near(&found, &f32s, 1e-6, "pages of normalised keys");
    }
}

#[test]
fn what_16_bits_cannot_hold_becomes_the_largest_that_they_can() {
    let Some(emulator) = Emulator::get() else { return };
    let mut batch = Batch::new(&mut Random(6), RopePairs::Halves, 2, 32, 0);
    batch.qkv[1].fill(1e9);
    batch.qkv[2].fill(-1e9);
    let len = batch.page_values();
    let (_, found, _) = batch.run(emulator, "f16", None, &vec![0_u16; len]);
    let (largest, smallest) = (f16::MAX.to_bits(), f16::MIN.to_bits());
    let count = |wanted: u16| found.iter().filter(|bits| **bits == wanted).count();
    assert_eq!((count(largest), count(smallest)), (5 * 2 * 32, 5 * 2 * 32));
}

#[test]
fn erased_memory_is_zero_and_nothing_else_is() {
    let Some(emulator) = Emulator::get() else { return };
    let mut request = Request::new(7);
    let full = vec![7_u8; 3 * 5 * 160];
    let (all, pages, numbers) =
        (request.changed(&full), request.changed(&full), request.input(&[4_u32, 1]));
    request.launch("zero", [2, 1, 1], 256, &[pointer(all), value(5 * 10_u64)]);
    let arguments = [pointer(pages), value(50_u64), value(10_u64), pointer(numbers)];
    request.launch("zero_pages", [1, 2, 3], 256, &arguments);
    let outputs = request.run(emulator);
    assert!(
        outputs.get(all).iter().enumerate().all(|(i, byte)| *byte == if i < 800 { 0 } else { 7 })
    );
    for (i, byte) in outputs.get(pages).iter().enumerate() {
        let wanted = if [1, 4].contains(&(i / 160 % 5)) { 0 } else { 7 };
        assert_eq!(*byte, wanted, "byte {i}");
    }
}
