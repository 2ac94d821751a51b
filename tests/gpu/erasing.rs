//! Of a prompt that an engine with a card has read and erased, no part is left anywhere in the process, the
//! emulated card's memory included; and memory that a card gives anew holds nothing of an engine that is gone.

use std::fs::{File, read_to_string};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use cloister::cli::golden::PackedFile;
use cloister::engine::{BatchToken, Model, Options};
use kernels::Isa;
use kernels::cuda::Memory;
use zeroize::Zeroize as _;

use crate::stand_in::with_card;
use crate::tiny;

/// Tokens of the prompt.
const PROMPT_LEN: usize = 60;
/// Tokens of it that are looked for, side by side: more than registers hold.
const SOUGHT: Range<usize> = 20..40;
/// Bytes that are looked at together.
const PART_LEN: usize = 1 << 20;
/// Bytes of a part that the next one has too: more than what is looked for takes in any layout.
const OVERLAP: usize = 4096;

fn token(index: usize) -> u32 {
    u32::try_from((index * index * 7 + index * 3 + 11) % 300).unwrap()
}

/// How often the tokens stand in memory that the process may write, by themselves or as a batch holds them.
fn copies() -> usize {
    let memory = File::open("/proc/self/mem").unwrap();
    let mut part = vec![0; PART_LEN];
    // What was read of other places is no place of its own.
    let own = part.as_ptr_range();
    let own = own.start.addr()..own.end.addr();
    let mut count = 0;
    for line in read_to_string("/proc/self/maps").unwrap().lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|at| usize::from_str_radix(at, 16).unwrap());
        if !rest.starts_with("rw") {
            continue;
        }
        for range in [start..end.min(own.start), start.max(own.end)..end] {
            for at in range.clone().step_by(PART_LEN - OVERLAP) {
                let len = PART_LEN.min(range.end - at);
                if memory.read_exact_at(&mut part[..len], at as u64).is_ok() {
                    count += copies_in(&part[..len]);
                }
            }
        }
    }
    part.zeroize();
    count
}

fn copies_in(bytes: &[u8]) -> usize {
    let (words, _) = bytes.as_chunks();
    let stands = |at: usize, stride: usize| {
        let is_there = |(i, index)| words.get(at + i * stride) == Some(&token(index).to_ne_bytes());
        SOUGHT.enumerate().all(is_there)
    };
    let batch = size_of::<BatchToken>() / size_of::<u32>();
    (0..words.len()).filter(|at| stands(*at, 1) || stands(*at, batch)).count()
}

#[test]
fn of_an_erased_prompt_nothing_is_left_in_the_process() {
    with_card("erasing::of_an_erased_prompt_nothing_is_left_in_the_process", |card| {
        let file = PackedFile::read(&tiny::path("llama")).unwrap();
        let model = Model::from_image(file.image()).unwrap();
        for gpu_layers in [1, model.config().n_layers] {
            let options = Options { gpu_layers, ..Options::fast(Isa::detect(), 1, 96) };
            let mut engine = tiny::engine(&model, options, card);
            let seq = engine.sequence_start(96).unwrap();
            let mut prompt: Vec<_> = (0..PROMPT_LEN).map(token).collect();
            engine.prefill(seq, &prompt).unwrap();
            engine.prefill(seq, &prompt[..1]).unwrap();
            prompt.zeroize();
            assert!(copies() > 0, "what is looked for is found");
            engine.sequence_end(seq).unwrap();
            engine.erase().unwrap();
            assert_eq!(copies(), 0, "with {gpu_layers} layers");
        }
    });
}

/// Bytes of an allocation of the card, and how many of those are looked through, of a real one and of the stand-in.
const GIVEN_LEN: usize = 16 << 20;
const GIVEN_COUNT: [usize; 2] = [512, 8];

fn holds(memory: &Memory<'_>, sought: &[u8]) -> bool {
    let mut bytes = vec![0; memory.size()];
    memory.read(0, &mut bytes).unwrap();
    memchr::memmem::find(&bytes, sought).is_some()
}

#[test]
fn memory_that_a_card_gives_anew_holds_nothing_of_a_request() {
    with_card("erasing::memory_that_a_card_gives_anew_holds_nothing_of_a_request", |card| {
        let file = PackedFile::read(&tiny::path("llama")).unwrap();
        let model = Model::from_image(file.image()).unwrap();
        let options =
            Options { gpu_layers: model.config().n_layers, ..Options::fast(Isa::detect(), 1, 96) };
        let mut engine = tiny::engine(&model, options, card);
        let seq = engine.sequence_start(96).unwrap();
        let prompt: Vec<_> = (0..PROMPT_LEN).map(token).collect();
        engine.prefill(seq, &prompt).unwrap();
        let logits = engine.logits(0).iter().take(SOUGHT.len());
        let logits: Vec<u8> = logits.flat_map(|logit| logit.to_ne_bytes()).collect();
        let tokens: Vec<u8> = SOUGHT.flat_map(|index| token(index).to_ne_bytes()).collect();
        drop(engine);
        let count = GIVEN_COUNT[usize::from(std::env::var_os("CLOISTER_CARD").is_none())];
        let given = (0..count).map_while(|_| card.allocate(GIVEN_LEN).ok());
        let mut given: Vec<_> = given.collect();
        for sought in [&logits, &tokens] {
            assert!(given.iter().all(|memory| !holds(memory, sought)), "what is gone is found");
            given[0].write(GIVEN_LEN / 2, sought).unwrap();
            assert!(holds(&given[0], sought), "what is looked for is found");
        }
    });
}
