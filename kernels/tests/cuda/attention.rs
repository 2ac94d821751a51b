//! Attention over the paged cache: near the plain one, and the same bits however it is launched.

use half::f16;
use kernels::ops::{AttentionShape, KvPages, KvPagesMut, PAGE_LEN, Place, attention, store_kv};
use kernels::{Isa, Pool};

use crate::data::{Random, assert_near, assert_same};
use crate::emulator::{Argument, Emulator, Request};

/// Positions of a split.
const SPLIT_LEN: usize = 128;

/// How pages hold values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Held {
    F32,
    F16,
    Q8_0,
}

/// A cache with sequences of these lengths, their pages shuffled; places never written are NaN where a
/// page is not read at all, and zero elsewhere.
pub(crate) struct Cache {
    /// Decides the order of threads.
    pub(crate) seed: u64,
    shape: AttentionShape,
    tables: Vec<u32>,
    /// Where the page list of each sequence starts.
    starts: Vec<usize>,
    f32s: Vec<f32>,
    f16s: Vec<f16>,
    quants: Vec<i8>,
    scales: Vec<f16>,
}

impl Cache {
    pub(crate) fn new(random: &mut Random, shape: AttentionShape, lens: &[usize]) -> Self {
        let pages_of = |len: &usize| len.div_ceil(PAGE_LEN);
        let n_pages: usize = lens.iter().map(pages_of).sum();
        // One page more than is used lies in the tables' reach.
        let tables: Vec<u32> =
            (1..=n_pages).rev().map(|page| u32::try_from(page).unwrap()).collect();
        let page_len = 2 * PAGE_LEN * shape.n_kv_heads * shape.head_dim;
        let len = (n_pages + 1) * page_len;
        let mut cache = Self {
            seed: 1,
            shape,
            tables,
            starts: Vec::new(),
            f32s: vec![0.0; len],
            f16s: vec![f16::ZERO; len],
            quants: vec![0; len],
            scales: vec![f16::ZERO; len / 32],
        };
        cache.f32s[..page_len].fill(f32::NAN);
        cache.f16s[..page_len].fill(f16::NAN);
        let mut table = 0;
        for len in lens {
            cache.starts.push(table);
            cache.fill(random, table, *len);
            table += pages_of(len);
        }
        cache
    }

    fn fill(&mut self, random: &mut Random, table: usize, len: usize) {
        let row = self.shape.n_kv_heads * self.shape.head_dim;
        let mut values = || -> Vec<f32> {
            random.units(len * row).iter().map(|x| f16::from_f32(*x).to_f32()).collect()
        };
        let (k, v) = (values(), values());
        let places: Vec<_> = (0..len).map(|position| Place { table, position }).collect();
        let (shape, tables) = (&self.shape, &self.tables);
        let store = |pages: KvPagesMut<'_>| {
            store_kv(Isa::Reference, shape, pages, tables, &places, &k, &v);
        };
        store(KvPagesMut::F32(&mut self.f32s));
        store(KvPagesMut::F16(&mut self.f16s));
        if shape.head_dim.is_multiple_of(32) {
            store(KvPagesMut::Q8_0(&mut self.quants, &mut self.scales));
        }
    }

    /// The plain attention of the CPU.
    pub(crate) fn plain(&self, held: Held, places: &[Place], q: &[f32]) -> Vec<f32> {
        let pages = match held {
            Held::F32 => KvPages::F32(&self.f32s),
            Held::F16 => KvPages::F16(&self.f16s),
            Held::Q8_0 => KvPages::Q8_0(&self.quants, &self.scales),
        };
        let mut out = vec![f32::NAN; q.len()];
        let (shape, tables, scores) = (&self.shape, &self.tables, &mut []);
        attention(&Pool::new(1), Isa::Reference, shape, pages, tables, places, q, scores, &mut out);
        out
    }

    /// `Attention` of `attention.cu`: the request, the argument, the output.
    fn launch(
        &self,
        held: Held,
        places: &[Place],
        q: &[f32],
        runs: &[i32],
    ) -> (Request, Argument, crate::emulator::Buffer<f32>) {
        let AttentionShape { n_heads, n_kv_heads, head_dim, scale, window } = self.shape;
        let mut request = Request::new(self.seed);
        let bits = |halves: &[f16]| halves.iter().map(|half| half.to_bits()).collect::<Vec<_>>();
        let splits_max = self.splits_max(places);
        let parts = places.len() * n_heads * splits_max * (head_dim + 2);
        let of_places: Vec<i32> =
            places.iter().flat_map(|place| [place.table as i32, place.position as i32]).collect();
        let out = request.output::<f32>(q.len());
        let argument = Argument::new().pointer(request.input(q)).pointer(out);
        let argument = match held {
            Held::F32 => argument.pointer(request.input(&self.f32s)).number(0_u64),
            Held::F16 => argument.pointer(request.input(&bits(&self.f16s))).number(0_u64),
            Held::Q8_0 => argument
                .pointer(request.input(&self.quants))
                .pointer(request.input(&bits(&self.scales))),
        };
        let number = |value: usize| i32::try_from(value).unwrap();
        let argument = argument
            .pointer(request.input(&self.tables))
            .pointer(request.input(&of_places))
            .pointer(request.input(runs))
            .pointer(request.output::<f32>(parts))
            .number(number(n_heads))
            .number(number(n_kv_heads))
            .number(number(head_dim))
            .number(scale)
            .number(number(window.unwrap_or(0)))
            .number(number(splits_max))
            .number(number(runs.len() / 2));
        (request, argument, out)
    }

    fn splits_max(&self, places: &[Place]) -> usize {
        let splits = |place: &Place| {
            let first =
                self.shape.window.map_or(0, |window| (place.position + 1).saturating_sub(window));
            place.position / SPLIT_LEN + 1 - first / SPLIT_LEN
        };
        places.iter().map(splits).max().unwrap()
    }

    /// Each split a block, then all put together.
    fn decode(&self, emulator: &Emulator, held: Held, places: &[Place], q: &[f32]) -> Vec<f32> {
        self.try_decode(emulator, held, places, q).unwrap_or_else(|told| panic!("{told}"))
    }

    /// The same; an error is what the emulation says.
    pub(crate) fn try_decode(
        &self,
        emulator: &Emulator,
        held: Held,
        places: &[Place],
        q: &[f32],
    ) -> Result<Vec<f32>, String> {
        let (mut request, argument, out) = self.launch(held, places, q, &[]);
        let AttentionShape { n_heads, n_kv_heads, .. } = self.shape;
        let group = n_heads / n_kv_heads;
        let rows = if group >= 8 { 8 } else { group.next_power_of_two() };
        let grid = [self.splits_max(places), n_kv_heads * group.div_ceil(rows), places.len()];
        let name = format!("attention_decode_{}_{rows}", name(held));
        request.launch(&name, grid, 128, std::slice::from_ref(&argument));
        request.launch("attention_combine", [n_heads, places.len(), 1], 128, &[argument]);
        Ok(request.try_run(emulator)?.get(out))
    }

    /// The rows of runs of neighbours, as a prompt has them.
    fn prompt(&self, emulator: &Emulator, held: Held, places: &[Place], q: &[f32]) -> Vec<f32> {
        let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = self.shape;
        let group = n_heads / n_kv_heads;
        let (rows, longest) = match head_dim {
            0..=64 => (8, 64),
            65..=128 => (8, 128),
            _ => (4, 256),
        };
        let runs = runs_of(places, (rows / group).max(1));
        let (mut request, argument, out) = self.launch(held, places, q, &runs);
        let grid = [(runs.len() / 2).div_ceil(4), n_kv_heads * group.div_ceil(rows), 1];
        let name = format!("attention_prompt_{}_{longest}", name(held));
        request.launch(&name, grid, 128, &[argument]);
        request.run(emulator).get(out)
    }
}

fn name(held: Held) -> &'static str {
    match held {
        Held::F32 => "f32",
        Held::F16 => "f16",
        Held::Q8_0 => "q8_0",
    }
}

/// Runs of at most `len_max` neighbours in one sequence: first token, length.
fn runs_of(places: &[Place], len_max: usize) -> Vec<i32> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (i, place) in places.iter().enumerate() {
        if let Some((first, len)) = runs.last_mut()
            && *len < len_max
            && places[*first].table == place.table
            && places[*first].position + *len == place.position
        {
            *len += 1;
        } else {
            runs.push((i, 1));
        }
    }
    runs.iter().flat_map(|(first, len)| [*first as i32, *len as i32]).collect()
}

/// Query heads, key heads, dimensions of a head, window.
const SHAPES: &[(usize, usize, usize, Option<usize>)] = &[
    (1, 1, 16, None),
    (9, 3, 32, None),
    (8, 2, 64, Some(40)),
    (12, 1, 96, None),
    (2, 2, 32, None),
    (4, 2, 80, Some(130)),
    (4, 1, 128, None),
    (2, 1, 256, Some(1)),
];

#[test]
fn attention_is_near_the_plain_one_and_the_same_however_it_is_launched() {
    let Some(emulator) = Emulator::get() else { return };
    let mut random = Random(1);
    for &(n_heads, n_kv_heads, head_dim, window) in SHAPES {
        let shape = AttentionShape { n_heads, n_kv_heads, head_dim, scale: 0.3, window };
        let cache = Cache::new(&mut random, shape, &[300, 37]);
        let place = |(sequence, position): (usize, usize)| Place {
            table: cache.starts[sequence],
            position,
        };
        // The last tokens of one sequence, the first of another, and single ones.
        let places: Vec<_> = (290..300)
            .map(|p| (0, p))
            .chain((0..5).map(|p| (1, p)))
            .chain([(1, 36), (0, 127), (0, 128)])
            .map(place)
            .collect();
        let q = random.units(places.len() * n_heads * head_dim);
        for held in [Held::F32, Held::F16, Held::Q8_0] {
            if held == Held::Q8_0 && !head_dim.is_multiple_of(32) {
                continue;
            }
            let what = format!("{held:?} {shape:?}");
            let decoded = cache.decode(emulator, held, &places, &q);
            assert_near(&decoded, &cache.plain(held, &places, &q), 3e-6, &what);
            assert_same(&cache.prompt(emulator, held, &places, &q), &decoded, &what);
        }
    }
}

#[test]
fn a_token_does_not_depend_on_its_neighbours_in_the_batch() {
    let Some(emulator) = Emulator::get() else { return };
    let mut random = Random(2);
    let shape =
        AttentionShape { n_heads: 4, n_kv_heads: 2, head_dim: 32, scale: 0.5, window: None };
    let cache = Cache::new(&mut random, shape, &[200, 140]);
    let places: Vec<_> = [(0, 199), (1, 60), (1, 61), (1, 139), (0, 3)]
        .map(|(sequence, position): (usize, usize)| Place {
            table: cache.starts[sequence],
            position,
        })
        .to_vec();
    let row = 4 * 32;
    let q = random.units(places.len() * row);
    let together = cache.decode(emulator, Held::F16, &places, &q);
    assert_same(&cache.prompt(emulator, Held::F16, &places, &q), &together, "as a prompt");
    for (i, place) in places.iter().enumerate() {
        let alone = cache.decode(emulator, Held::F16, &[*place], &q[i * row..][..row]);
        assert_same(&alone, &together[i * row..][..row], "alone");
    }
}
