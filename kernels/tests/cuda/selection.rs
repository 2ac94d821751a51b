//! From logits to a token: the choices of the plain sampler.

use kernels::{Isa, ops};

use crate::data::Random;
use crate::emulator::{Argument, Buffer, Emulator, Request};

/// How one sequence is sampled, as `Sampling` of `select.cu` has it.
#[derive(Clone, Copy)]
struct Sampling {
    temperature: f32,
    top_p: f32,
    min_p: f32,
    repeat: f32,
    presence: f32,
    frequency: f32,
    top_k: i32,
}

const GREEDY: Sampling = Sampling {
    temperature: 0.0,
    top_p: 1.0,
    min_p: 0.0,
    repeat: 1.0,
    presence: 0.0,
    frequency: 0.0,
    top_k: 0,
};

/// A sequence: its parameters, random state, history, counts.
#[derive(Clone)]
struct Sequence {
    sampling: Sampling,
    random: u64,
    history: Vec<u32>,
    recent: Vec<u32>,
    answer: Vec<u32>,
    logits: Vec<f32>,
    bias: Vec<f32>,
}

impl Sequence {
    fn new(random: &mut Random, sampling: Sampling, vocab: usize) -> Self {
        // Coarse logits: there are equals.
        let mut logits: Vec<f32> =
            random.units(vocab).iter().map(|x| (x * 40.0).round() / 8.0).collect();
        logits[vocab / 2] = f32::NAN;
        let history: Vec<u32> = (0..70).map(|_| random.bits() % vocab as u32).collect();
        let mut sequence = Self {
            sampling,
            random: u64::from(random.bits()),
            history: Vec::new(),
            recent: vec![0; vocab],
            answer: vec![0; vocab],
            logits,
            bias: vec![0.0; vocab],
        };
        sequence.bias[3] = 2.5;
        history.iter().for_each(|token| sequence.accept(*token));
        sequence
    }

    /// `src/engine/sampler.rs`: takes note of a token.
    fn accept(&mut self, token: u32) {
        self.answer[token as usize] += 1;
        self.recent[token as usize] += 1;
        if self.history.len() >= 64 {
            self.recent[self.history[self.history.len() - 64] as usize] -= 1;
        }
        self.history.push(token);
    }

    /// The same page: adjusts the logits.
    fn adjusted(&self) -> Vec<f32> {
        let s = &self.sampling;
        let adjust = |i: usize| {
            let x = self.logits[i];
            let x = if x.is_nan() { f32::NEG_INFINITY } else { x } + self.bias[i];
            let punished = if x > 0.0 { x / s.repeat } else { x * s.repeat };
            let x = if self.recent[i] > 0 { punished } else { x };
            let present = if self.answer[i] > 0 { 1.0 } else { 0.0 };
            x - (s.presence * present + s.frequency * self.answer[i] as f32)
        };
        (0..self.logits.len()).map(adjust).collect()
    }

    /// The same page: the token of adjusted logits.
    fn choose(&mut self, logits: &[f32]) -> u32 {
        let s = self.sampling;
        let best = logits
            .iter()
            .enumerate()
            .fold((0, f32::NEG_INFINITY), |best, (i, x)| if *x > best.1 { (i, *x) } else { best });
        if s.temperature <= 0.0 {
            return best.0 as u32;
        }
        let (isa, largest) = (Isa::Reference, best.1);
        let mut weights = vec![0.0; logits.len()];
        let mut floor = f32::NEG_INFINITY;
        if s.top_k > 0 && (s.top_k as usize) < logits.len() {
            floor = ops::nth_largest(isa, logits, s.top_k as usize);
        }
        if s.top_p < 1.0 {
            let total = ops::weigh(isa, logits, floor, largest, 1.0, &mut weights);
            let share = s.top_p.max(f32::MIN_POSITIVE);
            let threshold = ops::threshold_of_weight(isa, logits, &weights, total * share);
            floor = floor.max(threshold);
        }
        if s.min_p > 0.0 {
            floor = floor.max(largest + s.min_p.ln());
        }
        ops::weigh(isa, logits, floor, largest, 1.0 / s.temperature, &mut weights);
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        let target = self.uniform() * total;
        let mut sum = 0.0;
        let passed = weights.iter().filter(|weight| {
            sum += f64::from(**weight);
            sum <= target
        });
        let (passed, last) = (passed.count(), weights.iter().rposition(|weight| *weight > 0.0));
        passed.min(last.unwrap_or(0)) as u32
    }

    /// SplitMix64.
    fn uniform(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mix = self.random;
        mix = (mix ^ (mix >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mix = (mix ^ (mix >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mix ^ (mix >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn history_words(&self) -> Vec<i32> {
        let mut words = vec![0; 65];
        words[0] = self.history.len() as i32;
        for (i, token) in self.history.iter().enumerate() {
            words[1 + i % 64] = *token as i32;
        }
        words
    }
}

/// What a launch leaves.
struct Chosen {
    tokens: Vec<u32>,
    logits: Vec<f32>,
    recent: Vec<u32>,
    answer: Vec<u32>,
    history: Vec<i32>,
    random: Vec<u64>,
}

fn launch(emulator: &Emulator, sequences: &[Sequence], has_penalties: bool) -> Chosen {
    let vocab = sequences[0].logits.len();
    let mut request = Request::new(vocab as u64);
    let floats =
        |of: &dyn Fn(&Sequence) -> Vec<f32>| sequences.iter().flat_map(of).collect::<Vec<_>>();
    let counts =
        |of: &dyn Fn(&Sequence) -> Vec<u32>| sequences.iter().flat_map(of).collect::<Vec<_>>();
    let mut sampling = Vec::new();
    for sequence in sequences {
        let s = sequence.sampling;
        let numbers = [s.temperature, s.top_p, s.min_p.ln(), s.repeat, s.presence, s.frequency];
        sampling.extend(numbers.map(f32::to_bits));
        sampling.push(s.top_k as u32);
    }
    let logits = request.changed(&floats(&|s| s.logits.clone()));
    let weights: Buffer<f32> = request.output(sequences.len() * vocab);
    let bias = request.input(&floats(&|s| s.bias.clone()));
    let recent = request.changed(&counts(&|s| s.recent.clone()));
    let answer = request.changed(&counts(&|s| s.answer.clone()));
    let history =
        request.changed(&sequences.iter().flat_map(Sequence::history_words).collect::<Vec<_>>());
    let sampling = request.input(&sampling);
    let random = request.changed(&sequences.iter().map(|s| s.random).collect::<Vec<_>>());
    let tokens = request.output::<u32>(sequences.len());
    let argument = Argument::new()
        .pointer(logits)
        .pointer(weights)
        .pointer(bias)
        .maybe(has_penalties.then_some(recent))
        .maybe(has_penalties.then_some(answer))
        .maybe(has_penalties.then_some(history))
        .pointer(sampling)
        .pointer(random)
        .pointer(tokens)
        .number(vocab as i32);
    request.launch("select_token", [sequences.len(), 1, 1], 1024, &[argument]);
    let outputs = request.run(emulator);
    Chosen {
        tokens: outputs.get(tokens),
        logits: outputs.get(logits),
        recent: outputs.get(recent),
        answer: outputs.get(answer),
        history: outputs.get(history),
        random: outputs.get(random),
    }
}

fn all_kinds() -> Vec<Sampling> {
    let warm = Sampling { temperature: 0.8, ..GREEDY };
    vec![
        GREEDY,
        Sampling { repeat: 1.3, presence: 0.4, frequency: 0.2, ..GREEDY },
        warm,
        Sampling { top_k: 1, ..warm },
        Sampling { top_k: 17, ..warm },
        Sampling { top_p: 0.3, ..warm },
        Sampling { min_p: 0.2, ..warm },
        Sampling { top_k: 40, top_p: 0.9, min_p: 0.05, repeat: 1.1, ..warm },
        Sampling { temperature: 1.7, top_k: 5000, top_p: 0.0, ..warm },
    ]
}

#[test]
fn tokens_are_those_of_the_plain_sampler() {
    let Some(emulator) = Emulator::get() else { return };
    let mut random = Random(9);
    for vocab in [5, 1000, 3001] {
        let mut sequences: Vec<_> = (0..3)
            .flat_map(|_| all_kinds())
            .map(|sampling| Sequence::new(&mut random, sampling, vocab))
            .collect();
        let chosen = launch(emulator, &sequences, true);
        for (i, sequence) in sequences.iter_mut().enumerate() {
            let logits = sequence.adjusted();
            assert_eq!(chosen.logits[i * vocab..][..vocab], logits, "sequence {i}");
            let token = sequence.choose(&logits);
            assert_eq!(chosen.tokens[i], token, "sequence {i} of {vocab}");
            sequence.accept(token);
            assert_eq!(chosen.recent[i * vocab..][..vocab], sequence.recent, "sequence {i}");
            assert_eq!(chosen.answer[i * vocab..][..vocab], sequence.answer, "sequence {i}");
            assert_eq!(chosen.history[i * 65..][..65], sequence.history_words(), "sequence {i}");
            assert_eq!(chosen.random[i], sequence.random, "sequence {i}");
        }
    }
}

#[test]
fn without_penalties_nothing_is_counted_and_a_text_of_nothing_takes_token_0() {
    let Some(emulator) = Emulator::get() else { return };
    let mut sequence = Sequence::new(&mut Random(10), GREEDY, 64);
    sequence.logits.fill(f32::NAN);
    sequence.bias.fill(0.0);
    let chosen = launch(emulator, std::slice::from_ref(&sequence), false);
    assert_eq!(chosen.tokens, [0]);
    assert_eq!((chosen.recent, chosen.answer), (sequence.recent, sequence.answer));
}
