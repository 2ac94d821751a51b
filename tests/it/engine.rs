//! The engine computes a sequence alike in any company, and refuses what it cannot compute by name.

use cloister::cli::golden::PackedFile;
use cloister::cli::model_distance::measure;
use cloister::engine::{
    BatchToken, CacheDomain, Engine, Error, ImageLayout, KvType, Model, Options, Sampler,
    SamplingParams, argmax,
};
use cloister::gguf::{self, Name};
use kernels::{Isa, Pool};

use crate::gguf_file::{self, File};
use crate::support;

/// Prompts whose lengths cross pages, windows and chunks.
fn prompts(vocab_size: u32) -> Vec<Vec<u32>> {
    let prompt = |len: u32, step: u32| (0..len).map(|i| (i * step + step) % vocab_size).collect();
    vec![prompt(70, 7), prompt(3, 11), prompt(33, 5)]
}

/// The bits of the logits after the prompt and after each of four greedy tokens.
fn alone(model: &Model<'_>, options: Options, prompt: &[u32]) -> Vec<Vec<u32>> {
    let mut engine = Engine::new(model, options).unwrap();
    let seq = engine.sequence_start(prompt.len() + 4).unwrap();
    engine.prefill(seq, prompt).unwrap();
    let mut seen = vec![bits(engine.logits(0))];
    for _ in 0..4 {
        let token = argmax(engine.logits(0));
        engine.forward(&[BatchToken { seq, token, logits: true }]).unwrap();
        seen.push(bits(engine.logits(0)));
    }
    seen
}

/// The fast mode with keys and values in 8 bits.
fn fast_q8_0(isa: Isa, threads: usize, context_len: usize) -> Options {
    Options { kv: KvType::Q8_0, ..Options::fast(isa, threads, context_len) }
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// The same for all prompts at once: each batch holds up to `stride` tokens of every sequence,
/// so that prompts and answers mix.
fn together(
    model: &Model<'_>,
    options: Options,
    prompts: &[Vec<u32>],
    stride: usize,
) -> Vec<Vec<Vec<u32>>> {
    let mut engine = Engine::new(model, options).unwrap();
    let mut texts = prompts.to_vec();
    let seqs: Vec<_> =
        texts.iter().map(|text| engine.sequence_start(text.len() + 4).unwrap()).collect();
    let mut done = vec![0; texts.len()];
    let mut seen = vec![Vec::new(); texts.len()];
    while seen.iter().any(|seen| seen.len() < 5) {
        let (mut batch, mut owners) = (Vec::new(), Vec::new());
        for (i, text) in texts.iter().enumerate().filter(|(i, _)| seen[*i].len() < 5) {
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
            seen[i].push(bits(engine.logits(row)));
            texts[i].push(argmax(engine.logits(row)));
        }
    }
    seen
}

fn hold_in_company(path: &std::path::Path, isas: &[Isa]) {
    let file = PackedFile::read(path).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let prompts = prompts(300);
    for make in [Options::exact, Options::fast, fast_q8_0] {
        let first = Options { tokens_max: 512, ..make(isas[0], 1, 128) };
        let want: Vec<_> = prompts.iter().map(|prompt| alone(&model, first, prompt)).collect();
        for &isa in isas {
            for threads in [1, 3] {
                let one = Options { tokens_max: 7, ..make(isa, threads, 128) };
                assert!(alone(&model, one, &prompts[0]) == want[0], "{} in chunks", isa.name());
                let all = Options {
                    sequences_max: 3,
                    cache_len: 384,
                    tokens_max: 256,
                    logits_max: 3,
                    ..make(isa, threads, 128)
                };
                for stride in [1, 10, 64] {
                    let found = together(&model, all, &prompts, stride);
                    assert!(found == want, "{} with {threads} threads by {stride}", isa.name());
                }
            }
        }
    }
}

/// Sixteen at once, the longest of more than a whole step, in chunks of every size.
fn hold_sixteen(path: &std::path::Path, makes: &[fn(Isa, usize, usize) -> Options], by: &[usize]) {
    let file = PackedFile::read(path).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let lens = [530, 150, 70, 3, 33, 1, 31, 32, 64, 65, 96, 5, 17, 130, 40, 8];
    let prompts: Vec<Vec<u32>> = (3..)
        .zip(lens)
        .map(|(step, len)| (0..len).map(|i| (i * step * 2 + step) % 300).collect())
        .collect();
    for make in makes {
        let one = |tokens_max| Options { tokens_max, ..make(Isa::detect(), 2, 576) };
        let want: Vec<_> = prompts.iter().map(|prompt| alone(&model, one(512), prompt)).collect();
        let all = Options {
            sequences_max: 16,
            cache_len: 16 * 576,
            tokens_max: 2048,
            logits_max: 16,
            ..one(512)
        };
        for &stride in by {
            assert!(alone(&model, one(stride), &prompts[1]) == want[1], "in chunks of {stride}");
            assert!(together(&model, all, &prompts, stride) == want, "sixteen by {stride}");
        }
    }
}

#[test]
fn sixteen_sequences_do_not_depend_on_the_size_of_a_step() {
    for name in ["llama3_ropefreqs", "qwen2", "gemma3"] {
        let makes = [Options::exact, Options::fast, fast_q8_0];
        hold_sixteen(&tiny(name), &makes, &[1, 7, 32, 128, 512]);
    }
}

#[test]
fn sixteen_sequences_of_a_quantised_model_do_not_either() {
    let path = support::model(&cloister::cli::fetch::SMOLLM2);
    hold_sixteen(&path, &[Options::fast, fast_q8_0], &[7, 128]);
}

#[test]
fn a_sequence_does_not_depend_on_company_chunks_threads_or_instruction_set() {
    for name in ["llama3_ropefreqs", "qwen2", "gemma3"] {
        hold_in_company(&tiny(name), &Isa::available());
    }
}

#[test]
fn a_quantised_model_does_not_depend_on_company_either() {
    let path = support::model(&cloister::cli::fetch::SMOLLM2);
    hold_in_company(&path, &[Isa::detect()]);
}

/// A conversation in three turns, each with what was said before: warm as cold, bit for bit.
fn hold_warm(path: &std::path::Path, makes: &[fn(Isa, usize, usize) -> Options]) {
    let file = PackedFile::read(path).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let [mine, others] = [CacheDomain([1; 16]), CacheDomain([2; 16])];
    for make in makes {
        let cold = make(Isa::detect(), 2, 256);
        let options = Options { prefix_domains: 2, prefix_pages: 8, ..cold };
        let mut engine = Engine::new(&model, options).unwrap();
        let mut text: Vec<u32> = (0..70).map(|i| (i * 7 + 7) % 300).collect();
        for (turn, shared) in [(0, 0), (1, 64), (2, 96)] {
            let want = alone(&model, cold, &text);
            let (seq, found) = engine.sequence_start_in(mine, &text, text.len() + 4).unwrap();
            assert_eq!(found, shared, "turn {turn}");
            engine.prefill(seq, &text[found..]).unwrap();
            let mut answer = Vec::new();
            for step in &want {
                assert!(bits(engine.logits(0)) == *step, "turn {turn}");
                let token = argmax(engine.logits(0));
                if engine.sequence_len(seq).unwrap() < text.len() + 4 {
                    engine.forward(&[BatchToken { seq, token, logits: true }]).unwrap();
                }
                answer.push(token);
            }
            text.append(&mut answer);
            engine.sequence_keep(seq).unwrap();
            text.extend((0..35).map(|i| (i * 11 + turn) % 300));
        }
        let found = |engine: &mut Engine<'_>, domain| {
            let (seq, found) = engine.sequence_start_in(domain, &text, text.len()).unwrap();
            engine.sequence_end(seq).unwrap();
            found
        };
        assert_eq!(found(&mut engine, others), 0);
        assert_eq!(found(&mut engine, mine), 128);
        engine.forget(mine).unwrap();
        assert_eq!(found(&mut engine, mine), 0);
    }
}

#[test]
fn a_warm_prefix_gives_what_a_cold_one_gives() {
    for name in ["llama3_ropefreqs", "qwen2", "gemma3"] {
        hold_warm(&tiny(name), &[Options::exact, Options::fast, fast_q8_0]);
    }
    hold_warm(&support::model(&cloister::cli::fetch::SMOLLM2), &[Options::fast, fast_q8_0]);
}

#[test]
fn a_rewound_sequence_answers_as_if_nothing_had_followed() {
    let file = PackedFile::read(&tiny("gemma3")).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    for make in [Options::fast, fast_q8_0] {
        let mut engine = Engine::new(&model, make(Isa::detect(), 1, 64)).unwrap();
        let seq = engine.sequence_start(64).unwrap();
        let prompt: Vec<u32> = (0..40).map(|i| i * 7 % 300).collect();
        engine.prefill(seq, &prompt[..30]).unwrap();
        let want = bits(engine.logits(0));
        engine.prefill(seq, &prompt[30..]).unwrap();
        engine.sequence_rewind(seq, 50).unwrap();
        assert_eq!(engine.sequence_len(seq), Ok(40), "nothing is added");
        engine.sequence_rewind(seq, 29).unwrap();
        engine.prefill(seq, &prompt[29..30]).unwrap();
        assert!(bits(engine.logits(0)) == want);
        engine.sequence_end(seq).unwrap();
        assert_eq!(engine.sequence_rewind(seq, 0), Err(Error::UnknownSequence));
    }
}

/// Eight bits change the distributions, by little: a scale that is wrong changes them by a lot.
#[test]
fn keys_and_values_in_8_bits_stay_near_those_in_16() {
    let smollm2 = support::model(&cloister::cli::fetch::SMOLLM2);
    let text = include_str!("../../LICENSE");
    let cases = [
        (tiny("llama3_ropefreqs"), 0.001, 0.015),
        (tiny("qwen2"), 0.001, 0.015),
        (tiny("gemma3"), 0.0001, 0.0005),
        (smollm2, 0.006, 0.5),
    ];
    let found = cases.each_ref().map(|(path, ..)| {
        let file = PackedFile::read(path).unwrap();
        let model = Model::from_image(file.image()).unwrap();
        // 32-bit activations, so that nothing but the cache differs.
        let exact = Options::exact(Isa::detect(), 2, 128);
        let modes = [KvType::F16, KvType::Q8_0].map(|kv| Options { kv, ..exact });
        let found = measure(&model, modes, text, 256, |_| {}).unwrap();
        (found.kl_mean, found.kl_max)
    });
    for ((path, mean, most), (found_mean, found_most)) in cases.iter().zip(&found) {
        assert!(*found_mean > 0.0, "{}: 8 bits are not 16", path.display());
        assert!(found_mean < mean && found_most < most, "{}: {found:?}", path.display());
    }
}

#[test]
fn equal_seeds_write_equal_text() {
    let file = PackedFile::read(&tiny("llama")).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let write = |seed: u64| {
        let isa = Isa::detect();
        let mut engine = Engine::new(&model, Options::fast(isa, 1, 64)).unwrap();
        let greedy = SamplingParams::greedy();
        let params = SamplingParams { temperature: 1.0, top_k: 40, top_p: 0.9, seed, ..greedy };
        let mut sampler = Sampler::new(params, model.config().vocab_size, isa);
        let seq = engine.sequence_start(40).unwrap();
        engine.prefill(seq, &[1, 2, 3]).unwrap();
        let mut text = Vec::new();
        for _ in 0..32 {
            let token = sampler.sample(engine.logits_mut(0));
            sampler.accept(token);
            text.push(token);
            engine.forward(&[BatchToken { seq, token, logits: true }]).unwrap();
        }
        text
    };
    assert_eq!(write(5), write(5));
    assert_ne!(write(5), write(6));
}

#[test]
fn a_refused_batch_changes_nothing() {
    let file = PackedFile::read(&tiny("llama")).unwrap();
    let model = Model::from_image(file.image()).unwrap();
    let options = Options { tokens_max: 4, ..Options::exact(Isa::Reference, 1, 32) };
    let mut engine = Engine::new(&model, options).unwrap();
    let seq = engine.sequence_start(3).unwrap();
    let token = |token, logits| BatchToken { seq, token, logits };
    let refused = [
        (vec![token(1, false); 5], Error::BatchTooLarge { what: "tokens", max: 4 }),
        (vec![token(1, true); 2], Error::BatchTooLarge { what: "logits", max: 1 }),
        (vec![token(1, false), token(320, true)], Error::TokenOutOfRange),
        (vec![token(1, false); 4], Error::SequenceFull),
    ];
    for (batch, error) in refused {
        assert_eq!(engine.forward(&batch), Err(error));
        assert_eq!(engine.sequence_len(seq), Ok(0));
    }
    engine.forward(&[token(1, false), token(2, false), token(3, true)]).unwrap();
    engine.sequence_end(seq).unwrap();
    assert_eq!(engine.forward(&[token(1, true)]), Err(Error::UnknownSequence));
    for options in [
        Options { threads: 0, ..options },
        Options { context_len: 5000, ..options },
        Options { logits_max: 5, ..options },
        Options { cache_len: usize::MAX, ..options },
    ] {
        assert!(matches!(Engine::new(&model, options), Err(Error::BadOption(_))));
    }
}

fn tiny(name: &str) -> std::path::PathBuf {
    support::golden().join(format!("tiny/{name}.gguf"))
}

/// The tiny model with one more metadata entry, and one that fills the header up.
fn with_entry(name: &str, entry: File) -> Vec<u8> {
    let mut file = std::fs::read(tiny(name)).unwrap();
    let n_keys = u64::from_le_bytes(file[16..24].try_into().unwrap());
    file[16..24].copy_from_slice(&(n_keys + 2).to_le_bytes());
    let filler = File::empty().key("general.note", gguf_file::STRING);
    let mut bytes = [entry.bytes(), filler.bytes()].concat();
    // The data keep their alignment if the header grows by a multiple of 32.
    let text_len = 32 - (bytes.len() + 8) % 32;
    bytes = File::empty().raw(&bytes).text(&"x".repeat(text_len)).bytes();
    file.splice(24..24, bytes);
    file
}

fn refusal(file: &[u8]) -> Error {
    let header = gguf::parse(file, file.len() as u64).unwrap();
    ImageLayout::new(&header).unwrap_err()
}

#[test]
fn metadata_that_change_the_mathematics_are_refused_by_name() {
    let number =
        |key: &str, value: f32| File::empty().key(key, gguf_file::F32).raw(&value.to_le_bytes());
    let count = |key: &str, value| File::empty().key(key, gguf_file::U32).u32(value);
    let flag = |key: &str, value: u8| File::empty().key(key, gguf_file::BOOL).raw(&[value]);
    let text = |key: &str, value| File::empty().key(key, gguf_file::STRING).text(value);
    let cases = [
        ("llama.rope.scaling.type", text("llama.rope.scaling.type", "linear")),
        ("llama.rope.scaling.type", text("llama.rope.scaling.type", "yarn")),
        ("llama.rope.scaling.factor", number("llama.rope.scaling.factor", 8.0)),
        ("llama.rope.scaling.attn_factor", number("llama.rope.scaling.attn_factor", 1.0)),
        ("llama.attention.scale", number("llama.attention.scale", 0.5)),
        ("llama.attention.causal", flag("llama.attention.causal", 0)),
        ("llama.attention.clamp_kqv", number("llama.attention.clamp_kqv", 8.0)),
        ("llama.attn_logit_softcapping", number("llama.attn_logit_softcapping", 50.0)),
        ("llama.final_logit_softcapping", number("llama.final_logit_softcapping", 30.0)),
        ("llama.expert_count", count("llama.expert_count", 4)),
        ("llama.attention.sliding_window", count("llama.attention.sliding_window", 16)),
        ("llama.some_new_mathematics", flag("llama.some_new_mathematics", 1)),
        ("llama.attention.value_length", count("llama.attention.key_length", 24)),
        ("split.count", count("split.count", 2)),
    ];
    for (key, entry) in cases {
        match refusal(&with_entry("llama", entry)) {
            Error::UnsupportedKey(name) | Error::UnsupportedValue { key: name, .. } => {
                assert_eq!(name, Name::from(key));
            }
            other => panic!("{key}: {other}"),
        }
    }
    for entry in [
        text("llama.rope.scaling.type", "none"),
        flag("llama.attention.causal", 1),
        count("llama.expert_count", 0),
    ] {
        let file = with_entry("llama", entry);
        let header = gguf::parse(&file, file.len() as u64).unwrap();
        ImageLayout::new(&header).unwrap();
    }
}

/// The tiny model with some bytes replaced by as many others, wherever they are.
fn with_bytes(from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut file = std::fs::read(tiny("llama")).unwrap();
    let starts: Vec<usize> =
        (0..file.len() - from.len()).filter(|&at| file[at..].starts_with(from)).collect();
    assert!(!starts.is_empty(), "the bytes are there");
    starts.iter().for_each(|&at| file[at..][..to.len()].copy_from_slice(to));
    file
}

#[test]
fn tensors_that_are_missing_unknown_or_misshaped_are_refused_by_name() {
    assert_eq!(
        refusal(&with_bytes(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight")),
        Error::UnexpectedTensor(Name::from("blk.1.ffn_xx.weight"))
    );
    assert_eq!(
        refusal(&with_bytes(b"token_embd.weight", b"token_xxxx.weight")),
        Error::MissingTensor(Name::from("token_embd.weight"))
    );
    let row = |dim: u64| File::empty().text("output_norm.weight").u32(1).u64(dim).bytes();
    assert_eq!(
        refusal(&with_bytes(&row(128), &row(96))),
        Error::WrongShape {
            tensor: Name::from("output_norm.weight"),
            expected: vec![128],
            found: vec![96]
        }
    );
    // A model of one layer leaves the tensors of the second without a place.
    let layers = |n| File::empty().key("llama.block_count", gguf_file::U32).u32(n).bytes();
    assert!(matches!(refusal(&with_bytes(&layers(2), &layers(1))), Error::UnexpectedTensor(_)));
    assert!(matches!(refusal(&with_bytes(&layers(2), &layers(3))), Error::MissingTensor(_)));
    assert!(matches!(refusal(&with_bytes(&layers(2), &layers(0))), Error::OutOfBounds { .. }));
}

#[test]
fn architectures_without_a_forward_pass_are_refused_by_name() {
    let name = |name: &str| {
        File::empty().key("general.architecture", gguf_file::STRING).text(name).bytes()
    };
    let error = refusal(&with_bytes(&name("llama"), &name("mamba")));
    assert_eq!(error, Error::UnsupportedArchitecture(Name::from("mamba")));
}

#[test]
fn an_image_that_was_cut_is_refused() {
    let file = PackedFile::read(&tiny("llama")).unwrap();
    let image = file.image();
    assert!(Model::from_image(image).is_ok());
    let cut = &image[..image.len() - 64 * 1024];
    assert!(matches!(Model::from_image(cut), Err(Error::ImageTruncated { .. })));
    assert!(matches!(Model::from_image(&image[..100]), Err(Error::Gguf(_))));
}

#[test]
fn a_tensor_packed_in_parts_by_any_number_of_threads_is_the_tensor_packed_whole() {
    let path = support::model(&cloister::cli::fetch::SMOLLM2);
    let file = std::fs::read(&path).unwrap();
    let header = gguf::parse(&file, file.len() as u64).unwrap();
    let layout = ImageLayout::new(&header).unwrap();
    let packed = PackedFile::read(&path).unwrap();
    for (index, tensor) in header.tensors.iter().enumerate().filter(|(_, t)| t.shape.len() > 1) {
        let range = header.data_range(tensor);
        let len = |len: u64| usize::try_from(len).unwrap();
        let source = &file[len(range.start)..len(range.end)];
        let mut whole = vec![1; layout.tensor_range(index).len()];
        let (rows, cols) = (len(tensor.rows()), len(tensor.cols()));
        let size = kernels::packed_size(tensor.ty, rows, cols).unwrap();
        kernels::pack(tensor.ty, rows, cols, source, &mut whole[..size]);
        whole[size..].fill(0);
        assert!(whole == packed.image()[layout.tensor_range(index)], "{}", tensor.name);
    }
    for threads in [1, 2, 5] {
        let groups = layout.groups(&header, threads);
        let parts: usize = groups.iter().map(Vec::len).sum();
        assert!(parts > header.tensors.len() && groups.len() > 1, "tensors are cut");
        let mut image = vec![0; layout.total_len()];
        layout.pack(&Pool::new(threads), &header, &file, &mut image);
        assert!(image == packed.image(), "{threads} threads");
    }
}
