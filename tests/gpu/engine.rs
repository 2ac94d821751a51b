//! A sequence on a card is the same to the bit in any company, chunk and step, warm or cold; it is near
//! that of the CPU; what it leaves is zeroed.

use std::path::Path;

use cloister::cli::golden::PackedFile;
use cloister::engine::{
    BatchToken, CacheDomain, CardError, Engine, Error, KvType, Model, Options, argmax,
};
use kernels::cuda::{Card, CudaError};
use kernels::{Isa, Pool};

use crate::stand_in::{with_card, with_failing_card};
use crate::tiny::{self, engine};

/// Tokens of an answer, the first of which the prompt gives.
const ANSWER_LEN: usize = 3;

pub(crate) fn options(kv: KvType, gpu_layers: usize) -> Options {
    Options {
        kv,
        gpu_layers,
        cache_len: 3 * 192,
        sequences_max: 3,
        tokens_max: 256,
        logits_max: 3,
        ..Options::fast(Isa::detect(), 1, 192)
    }
}

pub(crate) fn prompt(len: u32, step: u32) -> Vec<u32> {
    (0..len).map(|i| (i * step + step) % 300).collect()
}

pub(crate) fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// The logits after a prompt, which is read in chunks, and after each token of the answer but the last.
pub(crate) fn alone(engine: &mut Engine<'_>, prompt: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let seq = engine.sequence_start(prompt.len() + ANSWER_LEN).unwrap();
    for tokens in prompt.chunks(chunk) {
        engine.prefill(seq, tokens).unwrap();
    }
    let mut seen = vec![engine.logits(0).to_vec()];
    while seen.len() < ANSWER_LEN {
        let token = argmax(engine.logits(0));
        engine.forward(&[BatchToken { seq, token, logits: true }]).unwrap();
        seen.push(engine.logits(0).to_vec());
    }
    engine.sequence_end(seq).unwrap();
    seen
}

/// The same for all prompts at once, `stride` tokens of each in a batch.
pub(crate) fn together(
    engine: &mut Engine<'_>,
    prompts: &[Vec<u32>],
    stride: usize,
) -> Vec<Vec<Vec<f32>>> {
    let mut texts = prompts.to_vec();
    let start = |text: &Vec<u32>| engine.sequence_start(text.len() + ANSWER_LEN).unwrap();
    let seqs: Vec<_> = prompts.iter().map(start).collect();
    let mut done = vec![0; texts.len()];
    let mut seen = vec![Vec::new(); texts.len()];
    while seen.iter().any(|seen| seen.len() < ANSWER_LEN) {
        let (mut batch, mut owners) = (Vec::new(), Vec::new());
        for (i, text) in texts.iter().enumerate().filter(|(i, _)| seen[*i].len() < ANSWER_LEN) {
            let end = (done[i] + stride).min(text.len());
            for (at, &token) in text.iter().enumerate().take(end).skip(done[i]) {
                let logits = at + 1 == text.len();
                batch.push(BatchToken { seq: seqs[i], token, logits });
                owners.extend(logits.then_some(i));
            }
            done[i] = end;
        }
        engine.forward(&batch).unwrap();
        for (row, &i) in owners.iter().enumerate() {
            seen[i].push(engine.logits(row).to_vec());
            texts[i].push(argmax(engine.logits(row)));
        }
    }
    seqs.into_iter().for_each(|seq| engine.sequence_end(seq).unwrap());
    seen
}

pub(crate) fn all_bits(seen: &[Vec<f32>]) -> Vec<Vec<u32>> {
    seen.iter().map(|logits| bits(logits)).collect()
}

/// The same bits in chunks and in company, and near those of the CPU.
fn hold(card: &Card<'_>, path: &Path, kv: KvType, gpu_layers: usize, distance_max: f32) {
    let file = PackedFile::read(path).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    // The answer to the first goes from one part of a text to the next.
    let prompts = [prompt(127, 7), prompt(3, 11), prompt(33, 5)];
    let mut on_card = engine(&model, options(kv, gpu_layers), card);
    let want: Vec<_> = prompts.iter().map(|prompt| alone(&mut on_card, prompt, 256)).collect();
    let chunked = alone(&mut on_card, &prompts[0], 23);
    assert!(all_bits(&chunked) == all_bits(&want[0]), "in chunks");
    let found = together(&mut on_card, &prompts, 10);
    for (found, want) in found.iter().zip(&want) {
        assert!(all_bits(found) == all_bits(want), "in company");
    }
    assert!(on_card.card_cache_is_zero().unwrap(), "what has ended is zeroed");
    on_card.erase().unwrap();
    let mut on_cpu = Engine::new(&model, options(kv, 0)).unwrap();
    let mut largest = 0.0_f32;
    for (prompt, want) in prompts.iter().zip(&want) {
        let found = alone(&mut on_cpu, prompt, 256);
        for (found, want) in found.iter().flatten().zip(want.iter().flatten()) {
            assert!(want.is_finite());
            largest = largest.max((found - want).abs());
        }
    }
    assert!(largest < distance_max, "{largest} from the CPU's logits");
}

#[test]
fn any_company_gives_the_same_bits_with_a_cache_of_16_bits() {
    with_card("engine::any_company_gives_the_same_bits_with_a_cache_of_16_bits", |card| {
        hold(card, &tiny::path("qwen2"), KvType::F16, 2, 1e-3);
    });
}

#[test]
fn any_company_gives_the_same_bits_with_a_cache_of_8_bits_and_some_layers() {
    with_card(
        "engine::any_company_gives_the_same_bits_with_a_cache_of_8_bits_and_some_layers",
        |card| {
            hold(card, &tiny::path("llama"), KvType::Q8_0, 1, 1e-3);
        },
    );
}

#[test]
fn any_company_gives_the_same_bits_with_weights_of_8_and_4_bits() {
    with_card("engine::any_company_gives_the_same_bits_with_weights_of_8_and_4_bits", |card| {
        let path = tiny::quantised("llama3_ropefreqs");
        // Activations that differ by a little are rounded to bytes that differ by one.
        hold(card, &path, KvType::F16, 2, 0.3);
        std::fs::remove_file(path).unwrap();
    });
}

#[test]
fn any_company_gives_the_same_bits_with_windows() {
    with_card("engine::any_company_gives_the_same_bits_with_windows", |card| {
        for (kv, gpu_layers) in [(KvType::F16, 7), (KvType::Q8_0, 3)] {
            hold(card, &tiny::path("gemma3"), kv, gpu_layers, 2e-3);
        }
        let path = tiny::quantised("gemma3");
        hold(card, &path, KvType::Q8_0, 7, 0.2);
        std::fs::remove_file(path).unwrap();
    });
}

#[test]
fn a_warm_prefix_gives_what_a_cold_one_gives_and_a_forgotten_one_is_zeroed() {
    with_card(
        "engine::a_warm_prefix_gives_what_a_cold_one_gives_and_a_forgotten_one_is_zeroed",
        |card| {
            let file = PackedFile::read(&tiny::path("llama_tied_mha")).unwrap();
            let model = Model::from_image(file.image()).unwrap();
            let kept = Options { prefix_domains: 1, prefix_pages: 4, ..options(KvType::Q8_0, 1) };
            let mut engine = engine(&model, kept, card);
            let (domain, text) = (CacheDomain([1; 16]), prompt(70, 7));
            let mut read = |expected: usize| {
                let (seq, found) = engine.sequence_start_in(domain, &text, text.len()).unwrap();
                assert_eq!(found, expected);
                engine.prefill(seq, &text[found..]).unwrap();
                let seen = bits(engine.logits(0));
                // Tokens that are taken back leave nothing.
                engine.sequence_rewind(seq, 65).unwrap();
                engine.prefill(seq, &text[65..]).unwrap();
                assert!(bits(engine.logits(0)) == seen, "rewound");
                engine.sequence_keep(seq).unwrap();
                seen
            };
            let cold = read(0);
            assert!(read(64) == cold, "warm");
            assert!(!engine.card_cache_is_zero().unwrap(), "the prefix is kept");
            engine.forget(domain).unwrap();
            assert!(engine.card_cache_is_zero().unwrap(), "what is forgotten is zeroed");
        },
    );
}

#[test]
fn what_a_card_cannot_do_is_said_and_changes_nothing() {
    with_card("engine::what_a_card_cannot_do_is_said_and_changes_nothing", |card| {
        let path = tiny::quantised("llama");
        let file = PackedFile::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        let model = Model::from_image(file.image()).unwrap();
        let refusal = |options| {
            let made = Engine::on_card(Pool::new(1), &model, options, card);
            made.err().unwrap()
        };
        let isa = Isa::detect();
        let exact = Options { gpu_layers: 1, ..Options::exact(isa, 1, 64) };
        let error = refusal(exact);
        assert!(matches!(error, Error::Card(CardError::Unsupported(_))), "{error}");
        assert!(error.to_string().contains("gpu_layers = 0"), "{error}");
        let fast = Options { gpu_layers: 3, ..Options::fast(isa, 1, 64) };
        assert_eq!(refusal(fast), Error::BadOption("gpu_layers"));
        let huge = Options { cache_len: 1 << 22, ..Options { gpu_layers: 2, ..fast } };
        let error = refusal(huge);
        assert!(error.to_string().contains("lower gpu_layers"), "{error}");
        let no_card = Engine::new(&model, Options { gpu_layers: 2, ..fast });
        assert_eq!(no_card.err(), Some(Error::BadOption("gpu_layers")));
        // A batch that is refused leaves its sequence as it was.
        let mut engine = engine(&model, options(KvType::F16, 2), card);
        let seq = engine.sequence_start(4).unwrap();
        let token = |token| BatchToken { seq, token, logits: true };
        assert_eq!(engine.forward(&[token(1), token(9999)]), Err(Error::TokenOutOfRange));
        assert_eq!(engine.sequence_len(seq), Ok(0));
        engine.forward(&[]).unwrap();
        engine.forward(&[BatchToken { logits: false, ..token(1) }]).unwrap();
        assert_eq!(engine.sequence_len(seq), Ok(1));
    });
}

#[test]
fn a_card_that_fails_is_said_and_changes_nothing() {
    with_failing_card("engine::a_card_that_fails_is_said_and_changes_nothing", 100, |card| {
        let file = PackedFile::read(&tiny::path("llama")).unwrap();
        let model = Model::from_image(file.image()).unwrap();
        let kept = Options { prefix_domains: 1, prefix_pages: 4, ..options(KvType::F16, 2) };
        let mut engine = engine(&model, kept, card);
        // A domain has a page.
        let (domain, text) = (CacheDomain([1; 16]), prompt(33, 7));
        let (first, _) = engine.sequence_start_in(domain, &text, text.len()).unwrap();
        engine.prefill(first, &text).unwrap();
        engine.sequence_keep(first).unwrap();
        let seq = engine.sequence_start(100).unwrap();
        let token = BatchToken { seq, token: 3, logits: true };
        let computed = (0..100).take_while(|_| engine.forward(&[token]).is_ok()).count();
        assert!((1..50).contains(&computed), "{computed}");
        assert_eq!(engine.sequence_len(seq), Ok(computed));
        let failed = CudaError::Failed("cuStreamSynchronize", 719);
        let failed = Err(Error::Card(CardError::Cuda(failed)));
        assert_eq!(engine.forward(&[token]), failed, "it does not come back");
        assert_eq!(engine.sequence_len(seq), Ok(computed));
        assert_eq!(engine.sequence_end(seq), failed, "what cannot be zeroed is said");
        assert_eq!(engine.forget(domain), failed);
        assert_eq!(engine.erase(), failed);
        assert_eq!(engine.erase(), failed, "as long as it is not zero");
    });
}
