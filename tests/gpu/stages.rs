//! Layers on several cards: the same to the bit as on one, and each card holds what was planned.

use std::ops::Range;

use cloister::cli::golden::PackedFile;
use cloister::engine::{
    BatchToken, CardError, Engine, Error, GpuLayers, KvType, Model, Needs, Options, Sampler,
    SamplingParams,
};
use kernels::cuda::Card;
use kernels::{Isa, Pool};

use crate::engine::{all_bits, alone, options, prompt, together};
use crate::stand_in::with_cards;
use crate::tiny;

fn engine<'m>(
    model: &'m Model<'m>,
    options: Options,
    cards: &'m [Card<'m>],
    parts: &[Range<usize>],
) -> Result<Engine<'m>, Error> {
    Engine::on_cards(Pool::new(1), model, options, cards, parts)
}

/// The same bits on one card, on several, and launch by launch on several.
fn hold(cards: &[Card<'_>], name: &str, kv: KvType, all_parts: &[&[Range<usize>]]) {
    let file = PackedFile::read(&tiny::path(name)).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let prompts = [prompt(127, 7), prompt(3, 11), prompt(33, 5)];
    for parts in all_parts {
        let gpu_layers = parts.iter().map(Range::len).sum();
        let options = options(kv, gpu_layers);
        let mut on_one = Engine::on_card(Pool::new(1), &model, options, &cards[0]).unwrap();
        let want: Vec<_> = prompts.iter().map(|prompt| alone(&mut on_one, prompt, 256)).collect();
        for gpu_graphs in [true, false] {
            let options = Options { gpu_graphs, ..options };
            let mut on_all = engine(&model, options, cards, parts).unwrap();
            let found = alone(&mut on_all, &prompts[0], 23);
            assert!(all_bits(&found) == all_bits(&want[0]), "{name} {parts:?}: in chunks");
            let found = together(&mut on_all, &prompts, 10);
            for (found, want) in found.iter().zip(&want) {
                assert!(all_bits(found) == all_bits(want), "{name} {parts:?}: in company");
            }
            assert!(on_all.card_cache_is_zero().unwrap(), "what has ended is zeroed");
        }
    }
}

#[test]
fn layers_on_several_cards_give_the_bits_of_one_card() {
    with_cards("stages::layers_on_several_cards_give_the_bits_of_one_card", |cards| {
        // All layers and some, in any order, and a card between them that has none.
        hold(cards, "gemma3", KvType::Q8_0, &[&[4..7, 1..4, 0..1], &[3..5, 7..7, 5..7]]);
        hold(cards, "qwen2", KvType::F16, &[&[1..2, 0..1]]);
        hold(cards, "llama_tied_mha", KvType::F32, &[&[0..1, 2..2, 1..2]]);
    });
}

#[test]
fn the_last_card_chooses_tokens() {
    with_cards("stages::the_last_card_chooses_tokens", |cards| {
        let file = PackedFile::read(&tiny::path("llama")).unwrap();
        let model = Model::from_image(file.image()).unwrap();
        let params = SamplingParams { temperature: 0.9, seed: 7, ..SamplingParams::greedy() };
        let sampler = Sampler::new(params, model.config().vocab_size, Isa::detect());
        let choose = |mut engine: Engine<'_>| {
            let seq = engine.sequence_start(16).unwrap();
            let batch = [BatchToken { seq, token: 5, logits: true }];
            engine.forward_choosing(&batch, &[sampler.choice(0)]).unwrap();
            engine.chosen(0)
        };
        let options = options(KvType::F16, 2);
        let on_one = Engine::on_card(Pool::new(1), &model, options, &cards[0]).unwrap();
        let on_two = engine(&model, options, cards, &[1..2, 0..1]).unwrap();
        let chosen = choose(on_two);
        assert!(chosen.is_some() && chosen == choose(on_one));
    });
}

#[test]
fn parts_that_are_not_the_last_layers_are_refused() {
    with_cards("stages::parts_that_are_not_the_last_layers_are_refused", |cards| {
        let file = PackedFile::read(&tiny::path("gemma3")).unwrap();
        let model = Model::from_image(file.image()).unwrap();
        let (six, none) = (2..6, 7..7);
        let wrong =
            [vec![], vec![4..7, 2..3], vec![4..7, 1..4], vec![4..7, 3..6], vec![six], vec![none]];
        for parts in wrong {
            let made = engine(&model, options(KvType::F16, 5), cards, &parts);
            assert_eq!(made.err(), Some(Error::BadOption("gpu_layers")), "{parts:?}");
        }
    });
}

#[test]
fn each_card_gives_what_was_planned() {
    with_cards("stages::each_card_gives_what_was_planned", |cards| {
        for name in ["llama", "llama_tied_mha", "gemma3"] {
            let file = PackedFile::read(&tiny::path(name)).unwrap();
            let model = Model::from_image(file.image()).unwrap();
            let n_layers = model.config().n_layers;
            let options = options(KvType::F16, n_layers);
            let needs = Needs::of(&model, &options).unwrap();
            // Room for one layer and the output, for what is between, and for the first.
            let last = needs.total(n_layers - 1..n_layers);
            let rooms = [last, needs.total(1..n_layers - 1), needs.total(0..1)];
            let plan = needs.plan(GpuLayers::All, &rooms).unwrap();
            let middle = if n_layers > 2 { 1..n_layers - 1 } else { 1..1 };
            assert_eq!(plan.layers(), [n_layers - 1..n_layers, middle, 0..1]);
            let left = CardError::NoRoom { layers: 1, cards: 3 };
            let less = [rooms[0], rooms[1], rooms[2] - 1];
            assert_eq!(needs.plan(GpuLayers::All, &less), Err(Error::Card(left)));

            let free = || cards.iter().map(|card| card.free_memory().unwrap()).collect::<Vec<_>>();
            let before = free();
            let engine = engine(&model, options, cards, &plan.layers()).unwrap();
            let after = free();
            for ((part, before), after) in plan.parts.iter().zip(&before).zip(&after) {
                let taken = before - after;
                // Where one card serves as several, it gives for all; sizes are rounded up.
                let is_one = std::env::var_os("CLOISTER_CARD").is_some();
                let is_planned = taken <= part.total && part.total - taken < 512 * 256;
                assert!(is_one || is_planned, "{name}: {taken} of {}", part.total);
            }
            drop(engine);
            assert_eq!(free(), before);
        }
    });
}

#[test]
fn several_cards_that_are_too_small_say_so() {
    let error = Error::Card(CardError::NoRoom { layers: 2, cards: 3 });
    let text = error.to_string();
    assert!(text.contains("3 cards") && text.contains("lower gpu_layers"), "{text}");
}
