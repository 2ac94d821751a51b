//! Steps of answers that are repeated as graphs: the same bits as launch by launch, in any number, and never
//! with memory that was given back.

use cloister::cli::golden::PackedFile;
use cloister::engine::{BatchToken, Choice, Engine, KvType, Model, Options, argmax};
use kernels::Isa;
use kernels::cuda::{
    Batch, BatchLimits, Buffer, Contents, CudaError, Forms, Input, Rows, Step, add_norm,
};
use kernels::ops::{Place, Rope, RopePairs};

use crate::stand_in::{waits_count, with_card};
use crate::tiny::{self, engine};

/// Steps of each answer.
const STEPS: usize = 3;

fn options(kv: KvType, gpu_layers: usize, gpu_graphs: bool) -> Options {
    Options {
        kv,
        gpu_layers,
        gpu_graphs,
        cache_len: 5 * 320,
        sequences_max: 5,
        tokens_max: 64,
        logits_max: 5,
        ..Options::fast(Isa::detect(), 1, 320)
    }
}

/// The logits of every step of some answers, whose texts are of different lengths.
fn answers(engine: &mut Engine<'_>, count: usize) -> Vec<u32> {
    let mut seen = Vec::new();
    let mut batch = Vec::new();
    for i in 0..count {
        let seq = engine.sequence_start(300).unwrap();
        let len = 10 + 62 * u32::try_from(i).unwrap();
        let prompt: Vec<u32> = (0..len).map(|j| (j * 7 + 3) % 300).collect();
        engine.prefill(seq, &prompt).unwrap();
        batch.push(BatchToken { seq, token: argmax(engine.logits(0)), logits: true });
    }
    for _ in 0..STEPS {
        engine.forward(&batch).unwrap();
        for (row, token) in batch.iter_mut().enumerate() {
            token.token = argmax(engine.logits(row));
            seen.extend(engine.logits(row).iter().map(|logit| logit.to_bits()));
        }
    }
    batch.iter().for_each(|token| engine.sequence_end(token.seq).unwrap());
    assert!(engine.card_cache_is_zero().unwrap(), "what has ended is zeroed");
    seen
}

#[test]
fn any_number_of_answers_is_the_same_as_launch_by_launch() {
    let test = "steps::any_number_of_answers_is_the_same_as_launch_by_launch";
    let launched = with_card(test, |card| {
        for (name, kv, gpu_layers) in
            [("gemma3", KvType::Q8_0, 7), ("qwen2", KvType::F16, 1), ("llama", KvType::F32, 2)]
        {
            let file = PackedFile::read(&tiny::path(name)).unwrap();
            let model = Model::from_image(file.image()).unwrap();
            let mut recorded = engine(&model, options(kv, gpu_layers, true), card);
            let mut single = engine(&model, options(kv, gpu_layers, false), card);
            for count in [5, 1, 3, 2] {
                let (found, want) = (answers(&mut recorded, count), answers(&mut single, count));
                assert!(found == want, "{count} answers of {name}");
            }
        }
    });
    assert!(launched.is_none_or(|launched| launched.contains("graph")));
}

#[test]
fn an_engine_goes_on_when_another_on_its_card_has_ended() {
    with_card("steps::an_engine_goes_on_when_another_on_its_card_has_ended", |card| {
        let file = PackedFile::read(&tiny::path("llama")).unwrap();
        let model = Model::from_image(file.image()).unwrap();
        let mut stays = engine(&model, options(KvType::F16, 2, true), card);
        let want = answers(&mut stays, 2);
        drop(engine(&model, options(KvType::F16, 1, true), card));
        assert!(answers(&mut stays, 2) == want);
    });
}

#[test]
fn a_step_waits_for_its_card_once() {
    with_card("steps::a_step_waits_for_its_card_once", |card| {
        let file = PackedFile::read(&tiny::path("llama")).unwrap();
        let model = Model::from_image(file.image()).unwrap();
        let drawn = Choice { temperature: 0.9, top_k: 0, top_p: 1.0, min_p: 0.0, random: 7 };
        for (gpu_layers, gpu_graphs) in [(2, true), (1, true), (1, false)] {
            let mut engine = engine(&model, options(KvType::F16, gpu_layers, gpu_graphs), card);
            // Copies of the first zeros may be under way.
            let first = engine.sequence_start(20).unwrap();
            engine.prefill(first, &[5]).unwrap();
            let seqs = [(); 3].map(|()| engine.sequence_start(20).unwrap());
            let batch = seqs.map(|seq| BatchToken { seq, token: 5, logits: true });
            for choices in [&[][..], &[Some(drawn); 3], &[Some(drawn), None, None], &[None; 3]] {
                let before = waits_count();
                engine.forward_choosing(&batch, choices).unwrap();
                let is_one = before.is_none_or(|before| waits_count() == Some(before + 1));
                assert!(
                    is_one,
                    "{gpu_layers} layers, {choices:?}: {before:?}, {:?}",
                    waits_count()
                );
            }
        }
    });
}

/// What a step works on here.
struct State<'c> {
    batch: Batch<'c>,
    x: Option<Buffer<'c, f32>>,
    delta: Buffer<'c, f32>,
    weight: Buffer<'c, f32>,
    input: Input<'c>,
}

const COLS: usize = 32;

#[test]
fn a_step_adds_what_is_there_when_it_is_launched_and_not_when_memory_is_gone() {
    let test = "steps::a_step_adds_what_is_there_when_it_is_launched_and_not_when_memory_is_gone";
    with_card(test, |card| {
        let limits = BatchLimits {
            tokens: 2,
            logits: 2,
            positions: 32,
            tables_len: 1,
            pairs: [1, 0],
            run_len: 1,
        };
        let mut state = State {
            batch: Batch::new(card, limits).unwrap(),
            x: Some(Buffer::new(card, 2 * COLS).unwrap()),
            delta: Buffer::of(card, &[1.0; 2 * COLS]).unwrap(),
            weight: Buffer::of(card, &[1.0; COLS]).unwrap(),
            input: Input::new(card, 2, COLS).unwrap(),
        };
        let add = |state: &mut State<'_>| {
            let State { batch, x, delta, weight, input } = state;
            let (x, delta) = (x.as_mut().unwrap(), Some((&*delta, None)));
            let forms = Forms::of(&[]);
            add_norm(card, batch, Rows::All, x, delta, (weight, 1e-5), (input, forms))
        };
        let shapes = state.batch.shapes();
        assert_eq!(shapes.len(), 2, "one token and two, of one part");
        let step =
            Step::record(card, shapes[0], &mut state, |state| &mut state.batch, add).unwrap();
        let mut rope = Rope::new(RopePairs::Halves, 2, 10_000.0, None, 2);
        rope.set_positions([0].into_iter());
        let places = [Place { table: 0, position: 0 }];
        let (rope, local_rope) = (&rope, None);
        let contents = Contents { tokens: &[1], places: &places, wanted: &[0], rope, local_rope };
        state.batch.set(&contents).unwrap();
        step.launch(&state.batch).unwrap();
        step.launch(&state.batch).unwrap();
        let mut x = [0.0; 2 * COLS];
        state.x.as_ref().unwrap().read(0, &mut x).unwrap();
        assert_eq!(x, std::array::from_fn(|i| if i < COLS { 2.0 } else { 0.0 }));
        state.x = None;
        assert_eq!(step.launch(&state.batch), Err(CudaError::OutOfDate));
    });
}

#[test]
fn every_step_has_one_of_a_few_shapes_and_no_other_batch_has() {
    let test = "steps::every_step_has_one_of_a_few_shapes_and_no_other_batch_has";
    with_card(test, |card| {
        let (tokens, positions) = (300, 5000);
        let limits = BatchLimits {
            tokens,
            logits: 290,
            positions,
            tables_len: tokens * positions.div_ceil(32),
            pairs: [1, 0],
            run_len: 1,
        };
        let mut batch = Batch::new(card, limits).unwrap();
        let shapes = batch.shapes();
        assert_eq!(shapes.len(), 10 * 7, "1 to 256 rows, 1 to 40 parts");
        let mut rope = Rope::new(RopePairs::Halves, 2, 10_000.0, None, tokens);
        let mut shape_of = |n: usize, position: usize, stride: usize| {
            let place = |i: usize| Place {
                table: i * stride,
                position: position + i * (1 - stride.min(1)),
            };
            let places: Vec<_> = (0..n).map(place).collect();
            rope.set_positions(places.iter().map(|place| place.position));
            let wanted: Vec<_> = (0..n.min(290)).collect();
            let tokens = vec![1; n];
            batch
                .set(&Contents {
                    tokens: &tokens,
                    places: &places,
                    wanted: &wanted,
                    rope: &rope,
                    local_rope: None,
                })
                .unwrap();
            assert!(batch.rows() >= n && (batch.shape().is_some() || batch.rows() == n));
            batch.shape()
        };
        for n in (1..=256).step_by(3) {
            for position in [0, 127, 128, 1000, positions - 1] {
                let shape = shape_of(n, position, 157).unwrap();
                assert!(shapes.contains(&shape), "{n} tokens at {position}: {shape:?}");
            }
        }
        assert_eq!(shape_of(257, 0, 157), None, "too many");
        assert_eq!(shape_of(300, 0, 157), None, "some want no logits");
        assert_eq!(shape_of(9, 0, 0), None, "a prompt");
        assert!(shape_of(8, 0, 0).is_some(), "a guess");
    });
}
