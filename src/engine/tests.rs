//! The cache, the checks of metadata and tensors, and the context check.

use super::kv_cache::{KvCache, KvType};
use super::*;
use crate::cli::packed_file::PackedFile;
use crate::sys::erasing::held;

#[test]
fn the_context_check_names_all_numbers() {
    assert_eq!(check_context(10, 22, 32), Ok(()));
    let error = check_context(10, 23, 32).unwrap_err();
    assert_eq!(
        error,
        Error::ContextExceeded { prompt_len: 10, answer_len_max: 23, context_len: 32 }
    );
    let text = error.to_string();
    assert!(["33", "10", "23", "32"].iter().all(|number| text.contains(number)), "{text}");
    assert!(check_context(usize::MAX, 1, 32).is_err());
}

fn config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        n_layers: 2,
        embed_dim: 32,
        ffn_dim: 32,
        n_heads: 2,
        n_kv_heads: 2,
        head_dim: 32,
        vocab_size: 8,
        context_len: 128,
        norm_epsilon: 1e-5,
        rope_pairs: kernels::ops::RopePairs::Halves,
        rope_dims: 16,
        rope_base: 1e4,
        local: None,
        embed_scale: None,
        query_scale: 0.25,
        gate: kernels::ops::Gate::Silu,
        extra_norms: false,
    }
}

fn options(kv: KvType) -> Options {
    Options { kv, cache_len: 96, sequences_max: 2, ..Options::exact(Isa::Reference, 1, 96) }
}

#[test]
fn sequences_are_admitted_by_pages_and_leave_zeros() {
    for ty in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let config = config();
        let mut cache = KvCache::new(&config, &options(ty));
        let start = |cache: &mut KvCache, len| cache.start(None, &[], len).map(|(seq, _)| seq);
        let first = start(&mut cache, 33).unwrap();
        let none_free = Err(Error::NoFreePages { needed: 2, free: 1 });
        assert_eq!(start(&mut cache, 64), none_free);
        assert_eq!(start(&mut cache, 97), Err(Error::SequenceFull));
        let second = start(&mut cache, 1).unwrap();
        assert_eq!(start(&mut cache, 1), Err(Error::NoFreeSequence));
        for seq in [first, second] {
            write(&mut cache, &config, seq, 1, 1.0);
        }
        assert_eq!(cache.advance(second, 1), Err(Error::SequenceFull));
        assert!(!cache.is_zero());
        cache.end(first, true).unwrap();
        assert_eq!(cache.end(first, true), Err(Error::UnknownSequence));
        assert_eq!(cache.advance(first, 1), Err(Error::UnknownSequence));
        cache.end(second, true).unwrap();
        assert!(cache.is_zero(), "freed pages are zeroed");
        assert_eq!(cache.free_pages(), 3);
        let third = start(&mut cache, 96).unwrap();
        assert_ne!(third, first, "an old name finds nothing");
    }
}

#[test]
fn positions_are_taken_back_but_not_those_that_are_shared() {
    let (config, options) = (config(), keeping(KvType::F16));
    let mut cache = KvCache::new(&config, &options);
    let prompt: Vec<u32> = (0..70).collect();
    let (first, _) = cache.start(Some(domain(1)), &prompt, 96).unwrap();
    fill(&mut cache, &config, first, &prompt);
    cache.rewind(first, 40).unwrap();
    assert_eq!(cache.rewind(first, 41), Ok(()));
    assert_eq!(cache.len(first), Ok(40));
    fill(&mut cache, &config, first, &prompt[..70]);
    cache.end(first, true).unwrap();
    assert_eq!(cache.rewind(first, 0), Err(Error::UnknownSequence));
    let (second, shared) = cache.start(Some(domain(1)), &prompt, 96).unwrap();
    assert_eq!(shared, 64);
    fill(&mut cache, &config, second, &prompt);
    assert_eq!(cache.rewind(second, 63), Err(Error::NoSuchPosition));
    cache.rewind(second, 64).unwrap();
    cache.end(second, false).unwrap();
    cache.forget(domain(1));
    assert!(cache.is_zero(), "what was taken back is zeroed too");
}

#[test]
fn eight_bits_take_34_bytes_for_64_and_whole_blocks_only() {
    let config = config();
    let size = |kv| KvCache::size(&config, &options(kv)).unwrap();
    // Three pages of two layers, two heads of 32 keys and values each.
    assert_eq!(size(KvType::F16), 96 * 2 * 2 * 64 * 2);
    assert_eq!(size(KvType::Q8_0) * 64, size(KvType::F16) * 34);
    assert_eq!(KvType::Q8_0.check(&config), Ok(()));
    let config = ModelConfig { head_dim: 48, ..config };
    assert_eq!(KvType::F16.check(&config), Ok(()));
    let error = KvType::Q8_0.check(&config).unwrap_err();
    assert_eq!(error, Error::KvBlocks { head_dim: 48 });
    let text = error.to_string();
    assert!(["48", "worker.kv", "--kv f16"].iter().all(|word| text.contains(word)), "{text}");
}

fn domain(number: u8) -> CacheDomain {
    CacheDomain([number; 16])
}

/// Two domains may keep three pages each.
fn keeping(kv: KvType) -> Options {
    Options { prefix_domains: 2, prefix_pages: 3, ..options(kv) }
}

/// Writes one position as a forward pass does.
fn write(cache: &mut KvCache, config: &ModelConfig, seq: SeqId, token: u32, value: f32) {
    let place = cache.advance(seq, token).unwrap();
    for layer in 0..config.n_layers {
        let (pages, tables) = cache.layer_mut(layer);
        let values = [value; 64];
        let shape = config.attention(layer);
        let isa = Isa::Reference;
        kernels::ops::store_kv(isa, &shape, pages, tables, &[place], &values, &values);
    }
}

/// What stands for the keys and values of a position: they depend on all tokens up to it.
fn value(tokens: &[u32]) -> f32 {
    let mix = |hash: u32, token: &u32| (hash * 31 + token + 1) % 2039;
    tokens.iter().fold(7, mix) as f32
}

/// Writes the tokens that the sequence does not have yet.
fn fill(cache: &mut KvCache, config: &ModelConfig, seq: SeqId, tokens: &[u32]) {
    for len in cache.len(seq).unwrap()..tokens.len() {
        write(cache, config, seq, tokens[len], value(&tokens[..=len]));
    }
}

/// Whether a sequence holds what these tokens give, in every layer.
fn holds(cache: &KvCache, config: &ModelConfig, seq: SeqId, tokens: &[u32]) -> bool {
    let page_len = 64 * config.kv_dim();
    (0..cache.len(seq).unwrap()).all(|position| {
        let page = cache.page(seq, position / 32).unwrap() as usize;
        (0..config.n_layers).all(|layer| {
            let at = page * page_len + position % 32;
            let want = value(&tokens[..=position]);
            match cache.layer(layer) {
                kernels::ops::KvPages::F32(pages) => pages[at] == want,
                kernels::ops::KvPages::F16(pages) => pages[at].to_f32() == want,
                kernels::ops::KvPages::Q8_0(quants, scales) => {
                    let scale = scales[page * page_len / 32 + position % 32];
                    quants[at] == 127 && scale == half::f16::from_f32(want / 127.0)
                }
            }
        })
    })
}

#[test]
fn a_prefix_is_found_in_whole_pages_by_its_own_domain_alone() {
    for ty in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let config = config();
        let mut cache = KvCache::new(&config, &keeping(ty));
        let text: Vec<u32> = (0..96).collect();
        let (seq, shared) = cache.start(Some(domain(1)), &text, 96).unwrap();
        assert_eq!(shared, 0);
        fill(&mut cache, &config, seq, &text[..80]);
        cache.end(seq, true).unwrap();
        let mut found = |number, prompt: &[u32]| {
            let (seq, shared) = cache.start(Some(domain(number)), prompt, 96).unwrap();
            assert!(holds(&cache, &config, seq, prompt));
            cache.end(seq, false).unwrap();
            shared
        };
        assert_eq!(found(1, &text), 64, "pages that were full");
        assert_eq!(found(1, &text[..65]), 64);
        assert_eq!(found(1, &text[..64]), 32, "the last token is left to be computed");
        assert_eq!(found(1, &text[..33]), 32);
        assert_eq!(found(1, &text[..32]), 0);
        assert_eq!(found(1, &[]), 0);
        assert_eq!(found(1, &text[1..]), 0);
        assert_eq!(found(2, &text), 0, "another domain");
        let mut other = text.clone();
        other[40] = 0;
        assert_eq!(found(1, &other), 32);
        let (seq, _) = cache.start(None, &text, 96).unwrap();
        assert_eq!(cache.len(seq), Ok(0), "without a domain");
        cache.end(seq, true).unwrap();
        assert!(!cache.is_zero());
        cache.forget(domain(2));
        cache.forget(domain(1));
        assert!(cache.is_zero(), "a forgotten domain leaves nothing");
        assert_eq!(cache.unused_pages(), 9);
    }
}

#[test]
fn a_domain_pushes_out_only_its_own_and_what_is_pushed_out_is_zeroed() {
    let config = config();
    let mut cache = KvCache::new(&config, &keeping(KvType::F16));
    let text = |first: u32, len: u32| (first..first + len).collect::<Vec<u32>>();
    let run = |cache: &mut KvCache, number, text: &[u32]| {
        let (seq, shared) = cache.start(Some(domain(number)), text, 96).unwrap();
        fill(cache, &config, seq, text);
        cache.end(seq, true).unwrap();
        shared
    };
    // Two of one page and one of the other domain; then one of two pages.
    assert_eq!(run(&mut cache, 1, &text(0, 33)), 0);
    assert_eq!(run(&mut cache, 1, &text(100, 33)), 0);
    assert_eq!(run(&mut cache, 2, &text(0, 33)), 0);
    assert_eq!(cache.unused_pages(), 6);
    assert_eq!(run(&mut cache, 1, &text(0, 33)), 32, "used again: now the younger one");
    assert_eq!(run(&mut cache, 1, &text(200, 65)), 0);
    assert_eq!(cache.unused_pages(), 5);
    assert_eq!(run(&mut cache, 1, &text(100, 33)), 0, "the longest unused went");
    assert_eq!(run(&mut cache, 2, &text(0, 33)), 32, "the other domain lost nothing");
    // The end of a prefix goes before its start.
    assert_eq!(run(&mut cache, 1, &text(300, 33)), 0);
    assert_eq!(run(&mut cache, 1, &text(200, 65)), 32);
    // A third domain finds no place, and changes nothing.
    assert_eq!(run(&mut cache, 3, &text(0, 96)), 0);
    assert_eq!(run(&mut cache, 3, &text(0, 96)), 0);
    assert_eq!(run(&mut cache, 2, &text(0, 33)), 32);
    // One text longer than the quota keeps its start.
    let mut cache = KvCache::new(&config, &Options { prefix_pages: 2, ..keeping(KvType::F16) });
    assert_eq!(run(&mut cache, 1, &text(0, 96)), 0);
    assert_eq!(run(&mut cache, 1, &text(0, 96)), 64);
    assert_eq!(cache.unused_pages(), 5);
    cache.forget(domain(1));
    assert!(cache.is_zero());
}

#[test]
fn a_forgotten_domain_stays_with_those_who_read_it_until_they_end() {
    let config = config();
    let mut cache = KvCache::new(&config, &keeping(KvType::F16));
    let text: Vec<u32> = (0..65).collect();
    let (seq, _) = cache.start(Some(domain(1)), &text, 96).unwrap();
    fill(&mut cache, &config, seq, &text);
    cache.end(seq, true).unwrap();
    let (seq, shared) = cache.start(Some(domain(1)), &text, 96).unwrap();
    assert_eq!(shared, 64);
    cache.forget(domain(1));
    assert!(holds(&cache, &config, seq, &text));
    cache.end(seq, true).unwrap();
    assert!(cache.is_zero(), "it is not kept for a domain that was forgotten");
}

/// Any order of starts, tokens, ends and forgets, in three domains of which two have a place.
#[test]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers")]
fn pages_are_never_lost_mixed_up_or_left_unzeroed() {
    let config = config();
    let mut random = Random::new(1);
    let mut below = move |end: usize| (random.uniform() * end as f64) as usize;
    let options = Options { sequences_max: 3, cache_len: 6 * 32, ..keeping(KvType::F16) };
    let mut cache = KvCache::new(&config, &options);
    let mut running: Vec<(SeqId, Vec<u32>)> = Vec::new();
    let mut hits = 0;
    for _ in 0..5000 {
        match below(12) {
            0..=3 => {
                // Texts differ in one token of each page, so that many share a start.
                let text: Vec<u32> =
                    (0..96).map(|i| if i % 32 == 5 { below(2) as u32 } else { i }).collect();
                let number = below(4) as u8;
                let domain = (number > 0).then(|| domain(number));
                if let Ok((seq, shared)) = cache.start(domain, &text, 1 + below(96)) {
                    assert!(shared == 0 || number > 0);
                    hits += shared / 32;
                    running.push((seq, text));
                }
            }
            4..=7 if !running.is_empty() => {
                let (seq, text) = &running[below(running.len())];
                let len = cache.len(*seq).unwrap();
                let more = (len + below(60)).min(cache.len_max(*seq));
                fill(&mut cache, &config, *seq, &text[..more]);
            }
            8 if !running.is_empty() => {
                let (seq, _) = &running[below(running.len())];
                let _ = cache.rewind(*seq, below(cache.len(*seq).unwrap() + 1));
            }
            9..=10 if !running.is_empty() => {
                let (seq, _) = running.swap_remove(below(running.len()));
                cache.end(seq, below(4) > 0).unwrap();
            }
            11 if below(10) == 0 => cache.forget(domain(below(4) as u8)),
            _ => {}
        }
        for (seq, text) in &running {
            assert!(holds(&cache, &config, *seq, text));
        }
        assert!(cache.unused_pages() >= cache.free_pages());
    }
    assert!(hits > 100, "{hits}");
    running.iter().for_each(|(seq, _)| cache.end(*seq, true).unwrap());
    (1..4).for_each(|number| cache.forget(domain(number)));
    assert_eq!((cache.unused_pages(), cache.free_pages()), (12, 6));
    assert!(cache.is_zero());
}

#[test]
fn erased_buffers_hold_nothing_of_a_batch() {
    let path = std::path::Path::new("tests/golden/tiny/gemma3.gguf");
    let file = PackedFile::read(path).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    for options in [Options::fast(Isa::detect(), 3, 64), Options::exact(Isa::Reference, 1, 64)] {
        let mut engine = Engine::new(&model, options).unwrap();
        let seq = engine.sequence_start(64).unwrap();
        engine.prefill(seq, &[1; 40]).unwrap();
        engine.forward(&[BatchToken { seq, token: 2, logits: true }]).unwrap();
        let before = engine.logits(0).to_vec();
        assert!(!engine.activations.is_zero());
        engine.erase().unwrap();
        assert!(engine.activations.is_zero());
        engine.sequence_rewind(seq, 40).unwrap();
        engine.forward(&[BatchToken { seq, token: 2, logits: true }]).unwrap();
        assert_eq!(engine.logits(0), before);
    }
}

#[test]
fn erased_chunks_hold_no_token_of_a_longer_one() {
    const TOKEN: u32 = 0x77;
    let file = PackedFile::read(std::path::Path::new("tests/golden/tiny/llama.gguf")).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let mut engine = Engine::new(&model, Options::exact(Isa::Reference, 1, 64)).unwrap();
    let seq = engine.sequence_start(64).unwrap();
    engine.prefill(seq, &[TOKEN; 40]).unwrap();
    engine.prefill(seq, &[2]).unwrap();
    let count = |engine: &Engine<'_>| {
        let bytes = held(&engine.chunk);
        bytes.chunks_exact(4).filter(|word| *word == TOKEN.to_ne_bytes()).count()
    };
    assert_eq!(count(&engine), 39);
    engine.erase().unwrap();
    assert_eq!(count(&engine), 0);
    // What was refused was there, too.
    assert_eq!(engine.prefill(seq, &[TOKEN, u32::MAX]), Err(Error::TokenOutOfRange));
    engine.erase().unwrap();
    assert_eq!(count(&engine), 0);
}
