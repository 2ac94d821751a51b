//! Tokens that a card chooses are those that the sampler chooses of the same logits.

use cloister::cli::golden::PackedFile;
use cloister::engine::{BatchToken, KvType, Model, Options, Sampler, SamplingParams};
use kernels::Isa;
use kernels::cuda::Card;

use crate::stand_in::with_card;
use crate::tiny;

/// Tokens of each answer.
const ANSWER_LEN: usize = 12;

fn params(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
    let mut params = SamplingParams { temperature: 0.9, seed: 5, ..SamplingParams::greedy() };
    change(&mut params);
    params
}

/// One of every kind; the last two are the host's.
fn all_kinds() -> Vec<SamplingParams> {
    vec![
        SamplingParams::greedy(),
        params(|_| ()),
        params(|params| params.top_k = 7),
        params(|params| params.top_p = 0.6),
        params(|params| (params.min_p, params.seed) = (0.1, u64::MAX)),
        params(|params| (params.top_k, params.top_p, params.temperature) = (40, 0.9, 1.6)),
        params(|params| params.repeat_penalty = 1.3),
        params(|params| params.logit_bias = vec![(3, 4.0)]),
    ]
}

/// The answers to one prompt, sampled by each kind side by side; and how many tokens the card chose.
fn answers(card: &Card<'_>, model: &Model<'_>, is_choosing: bool) -> (Vec<Vec<u32>>, usize) {
    let kinds = all_kinds();
    let count = kinds.len();
    let options = Options {
        kv: KvType::F16,
        gpu_layers: model.config().n_layers,
        cache_len: 64 * count,
        sequences_max: count,
        tokens_max: 16,
        logits_max: count,
        ..Options::fast(Isa::detect(), 1, 64)
    };
    let mut engine = tiny::engine(model, options, card);
    let new = |params| Sampler::new(params, model.config().vocab_size, Isa::detect());
    let mut samplers: Vec<_> = kinds.into_iter().map(new).collect();
    let mut answers = vec![Vec::new(); count];
    let mut batch = Vec::new();
    for sampler in &mut samplers {
        let seq = engine.sequence_start(60).unwrap();
        engine.prefill(seq, &[5, 9, 2]).unwrap();
        sampler.observe_prompt(&[5, 9, 2]);
        batch.push(BatchToken { seq, token: 11, logits: true });
    }
    let mut chosen_count = 0;
    for _ in 0..ANSWER_LEN {
        let choices = samplers.iter().map(|sampler| sampler.choice(0).filter(|_| is_choosing));
        let choices: Vec<_> = choices.collect();
        engine.forward_choosing(&batch, &choices).unwrap();
        for (row, sampler) in samplers.iter_mut().enumerate() {
            let token = match engine.chosen(row) {
                Some(token) => {
                    chosen_count += 1;
                    sampler.was_chosen();
                    token
                }
                None => sampler.sample(engine.logits_mut(row)),
            };
            sampler.accept(token);
            batch[row].token = token;
            answers[row].push(token);
        }
    }
    (answers, chosen_count)
}

#[test]
fn seeded_and_greedy_answers_are_those_of_the_sampler() {
    let test = "selection::seeded_and_greedy_answers_are_those_of_the_sampler";
    let launched = with_card(test, |card| {
        let file = PackedFile::read(&tiny::path("llama")).unwrap();
        let model = Model::from_image(file.image()).unwrap();
        let (want, none) = answers(card, &model, false);
        let (found, count) = answers(card, &model, true);
        assert_eq!((none, count), (0, (all_kinds().len() - 2) * ANSWER_LEN));
        assert_eq!(found, want);
        let (greedy, drawn) = (&want[0], &want[1]);
        assert_ne!(greedy, drawn, "the draws matter");
    });
    assert!(launched.is_none_or(|launched| launched.contains("select_token")));
}

#[test]
fn guesses_are_chosen_as_if_one_after_the_other() {
    with_card("selection::guesses_are_chosen_as_if_one_after_the_other", |card| {
        let file = PackedFile::read(&tiny::path("qwen2")).unwrap();
        let model = Model::from_image(file.image()).unwrap();
        let options = Options {
            gpu_layers: model.config().n_layers,
            tokens_max: 8,
            logits_max: 4,
            ..Options::fast(Isa::detect(), 1, 64)
        };
        let mut engine = tiny::engine(&model, options, card);
        let vocab_size = model.config().vocab_size;
        let sampler = || Sampler::new(params(|_| ()), vocab_size, Isa::detect());
        let mut rows = |is_choosing: bool| {
            let mut sampler = sampler();
            let seq = engine.sequence_start(8).unwrap();
            let token = |token| BatchToken { seq, token, logits: true };
            let batch = [3, 8, 1, 6].map(token);
            let choices = [0, 1, 2, 3].map(|i| sampler.choice(i).filter(|_| is_choosing));
            engine.forward_choosing(&batch, &choices).unwrap();
            let tokens = [0, 1, 2, 3].map(|row| match engine.chosen(row) {
                Some(token) => token,
                None => sampler.sample(engine.logits_mut(row)),
            });
            engine.sequence_end(seq).unwrap();
            tokens
        };
        assert_eq!(rows(true), rows(false));
    });
}
