//! From logits to a token.
//!
//! In this order, as llama.cpp does: logit bias, penalties, top-k, top-p, min-p, temperature, draw.
//!
//! | step | meaning |
//! |---|---|
//! | logit bias | `l += bias[token]` |
//! | repeat penalty | for each token among the last 64 of prompt and answer: `l / p` if `l > 0`, else `l * p` |
//! | presence, frequency | `l -= presence * (count > 0) + frequency * count`, counts of the answer alone (OpenAI) |
//! | top-k | keeps the k largest logits, and those equal to the k-th |
//! | top-p | keeps the fewest largest whose probability is at least p, and those equal to the last |
//! | min-p | keeps tokens of at least p times the probability of the best |
//! | temperature | `l / t`; 0 takes the best token, of equals the lowest id, before top-k |
//!
//! A NaN counts as minus infinity. After [`Sampler::new`] nothing is allocated, and apart from the
//! record of tokens that were chosen no branch or address depends on a logit.

use std::collections::VecDeque;

pub use kernels::ops::Choice;
use kernels::{Isa, ops};

use super::random::Random;

/// Tokens that the repeat penalty looks back on.
const REPEAT_WINDOW: usize = 64;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// 1 is off.
    pub repeat_penalty: f32,
    /// 0 is off.
    pub presence_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens; tokens that do not exist are passed over.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, same text.
    pub seed: u64,
}

impl SamplingParams {
    /// The best token, always.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// Chooses the tokens of one sequence.
pub struct Sampler {
    params: SamplingParams,
    isa: Isa,
    random: Random,
    /// The last tokens of prompt and answer.
    recent: VecDeque<u32>,
    /// How often each token is in `recent`; empty if there is no repeat penalty.
    recent_counts: Vec<u32>,
    /// How often each token is in the answer; empty if there is no penalty that asks.
    answer_counts: Vec<u32>,
    /// The weight of each token.
    weights: Vec<f32>,
}

impl Sampler {
    /// Makes a sampler for a vocabulary.
    pub fn new(params: SamplingParams, vocab_size: usize, isa: Isa) -> Self {
        let if_on = |is_on: bool| if is_on { vocab_size } else { 0 };
        let has_counts = params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
        Self {
            isa,
            random: Random::new(params.seed),
            recent: VecDeque::with_capacity(REPEAT_WINDOW + 1),
            recent_counts: vec![0; if_on(params.repeat_penalty != 1.0)],
            answer_counts: vec![0; if_on(has_counts)],
            weights: vec![0.0; if_on(params.temperature > 0.0)],
            params,
        }
    }

    /// Takes note of the prompt, for the repeat penalty.
    pub fn observe_prompt(&mut self, prompt: &[u32]) {
        let start = prompt.len().saturating_sub(REPEAT_WINDOW);
        prompt[start..].iter().for_each(|&token| self.remember(token));
    }

    /// Takes note of a token of the answer.
    pub fn accept(&mut self, token: u32) {
        self.remember(token);
        if let Some(count) = self.answer_counts.get_mut(token as usize) {
            *count += 1;
        }
    }

    fn remember(&mut self, token: u32) {
        let Some(count) = self.recent_counts.get_mut(token as usize) else { return };
        *count += 1;
        self.recent.push_back(token);
        if self.recent.len() > REPEAT_WINDOW
            && let Some(old) = self.recent.pop_front()
        {
            self.recent_counts[old as usize] -= 1;
        }
    }

    /// Returns how the token is chosen that follows `ahead` others; nothing if a bias or a penalty takes
    /// part.
    pub fn choice(&self, ahead: usize) -> Option<Choice> {
        let params = &self.params;
        let is_plain = self.recent_counts.is_empty()
            && self.answer_counts.is_empty()
            && params.logit_bias.is_empty();
        is_plain.then(|| Choice {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            random: self.random.state_after(ahead as u64),
        })
    }

    /// Takes note that the next token was chosen as [`Sampler::choice`] said.
    pub fn was_chosen(&mut self) {
        if self.params.temperature > 0.0 {
            self.random.uniform();
        }
    }

    /// Chooses the next token; the logits are changed.
    ///
    /// The token is not taken note of: see [`Sampler::accept`].
    ///
    /// # Panics
    ///
    /// Panics if the logits are not of the vocabulary.
    pub fn sample(&mut self, logits: &mut [f32]) -> u32 {
        self.adjust(logits);
        // Also for a temperature that is negative or NaN.
        if self.params.temperature > 0.0 { self.draw(logits) } else { argmax(logits) }
    }

    /// Applies bias and penalties.
    fn adjust(&self, logits: &mut [f32]) {
        for logit in &mut *logits {
            *logit = if logit.is_nan() { f32::NEG_INFINITY } else { *logit };
        }
        for &(token, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        let penalty = self.params.repeat_penalty;
        for (logit, count) in logits.iter_mut().zip(&self.recent_counts) {
            let punished = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            *logit = if *count > 0 { punished } else { *logit };
        }
        let (presence, frequency) = (self.params.presence_penalty, self.params.frequency_penalty);
        for (logit, count) in logits.iter_mut().zip(&self.answer_counts) {
            let is_present = if *count > 0 { 1.0 } else { 0.0 };
            #[expect(clippy::cast_precision_loss, reason = "answers are shorter than 2^24")]
            let count = *count as f32;
            *logit -= presence * is_present + frequency * count;
        }
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        let largest = logits[argmax(logits) as usize];
        let floor = self.floor(logits, largest);
        let factor = 1.0 / self.params.temperature;
        ops::weigh(self.isa, logits, floor, largest, factor, &mut self.weights);
        let total: f64 = self.weights.iter().map(|&weight| f64::from(weight)).sum();
        let target = self.random.uniform() * total;
        // The token before which the weights have not reached the target; the last one that
        // weighs anything if rounding kept all from it.
        let (mut sum, mut token, mut last) = (0.0, 0_u32, 0_u32);
        for (id, &weight) in (0_u32..).zip(&self.weights) {
            sum += f64::from(weight);
            token += u32::from(sum <= target);
            last = if weight > 0.0 { id } else { last };
        }
        token.min(last)
    }

    /// Returns the smallest logit that top-k, top-p and min-p keep.
    fn floor(&mut self, logits: &[f32], largest: f32) -> f32 {
        let mut floor = f32::NEG_INFINITY;
        let params = &self.params;
        if params.top_k > 0 && (params.top_k as usize) < logits.len() {
            floor = ops::nth_largest(self.isa, logits, params.top_k as usize);
        }
        if params.top_p < 1.0 {
            let total = ops::weigh(self.isa, logits, floor, largest, 1.0, &mut self.weights);
            let target = total * params.top_p.max(f32::MIN_POSITIVE);
            let threshold = ops::threshold_of_weight(self.isa, logits, &self.weights, target);
            floor = if threshold > floor { threshold } else { floor };
        }
        if params.min_p > 0.0 {
            let threshold = largest + params.min_p.min(1.0).ln();
            floor = if threshold > floor { threshold } else { floor };
        }
        floor
    }
}

/// Returns the token of the largest logit, of equals the lowest id; NaN is passed over.
pub fn argmax(logits: &[f32]) -> u32 {
    let (mut best, mut token) = (f32::NEG_INFINITY, 0);
    for (id, &logit) in (0_u32..).zip(logits) {
        let is_better = logit > best;
        best = if is_better { logit } else { best };
        token = if is_better { id } else { token };
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(change: impl Fn(&mut SamplingParams)) -> Sampler {
        let mut params = SamplingParams { temperature: 1.0, seed: 7, ..SamplingParams::greedy() };
        change(&mut params);
        Sampler::new(params, 6, Isa::detect())
    }

    const LOGITS: [f32; 6] = [1.0, 3.0, 2.0, 3.0, f32::NAN, -1.0];

    /// Which tokens come in 2,000 draws, and how often.
    fn draws(sampler: &mut Sampler) -> [u32; 6] {
        let mut counts = [0; 6];
        for _ in 0..2000 {
            counts[sampler.sample(&mut LOGITS.clone()) as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_passes_nan_over() {
        let mut greedy = sampler(|params| params.temperature = 0.0);
        assert_eq!(greedy.sample(&mut LOGITS.clone()), 1);
        assert_eq!(argmax(&[f32::NAN; 3]), 0);
        assert_eq!(argmax(&[]), 0);
    }

    #[test]
    fn draws_follow_the_probabilities_at_a_temperature() {
        for temperature in [0.5, 1.0, 2.0] {
            let counts = draws(&mut sampler(|params| params.temperature = temperature));
            assert_eq!(counts[4], 0, "a NaN is never drawn");
            let weights = LOGITS.map(|l| if l.is_nan() { 0.0 } else { (l / temperature).exp() });
            let total: f32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(weights) {
                let want = 2000.0 * weight / total;
                assert!((*count as f32 - want).abs() < 5.0 * want.sqrt() + 3.0, "{counts:?}");
            }
        }
    }

    #[test]
    fn equal_seeds_draw_equal_tokens_and_others_do_not() {
        let run = |seed| {
            let mut sampler = sampler(|params| params.seed = seed);
            (0..64).map(|_| sampler.sample(&mut LOGITS.clone())).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn cuts_keep_what_they_promise() {
        let kept = |change: &dyn Fn(&mut SamplingParams)| {
            draws(&mut sampler(change)).map(|count| count > 0)
        };
        let [t, f] = [true, false];
        assert_eq!(kept(&|params| params.top_k = 1), [f, t, f, t, f, f], "equals stay");
        assert_eq!(kept(&|params| params.top_k = 3), [f, t, t, t, f, f]);
        assert_eq!(kept(&|params| params.top_k = 100), [t, t, t, t, f, t]);
        assert_eq!(kept(&|params| params.top_p = 0.1), [f, t, f, t, f, f]);
        assert_eq!(kept(&|params| params.top_p = 0.9), [f, t, t, t, f, f]);
        assert_eq!(kept(&|params| params.top_p = 0.0), [f, t, f, t, f, f]);
        assert_eq!(kept(&|params| params.min_p = 0.3), [f, t, t, t, f, f]);
        assert_eq!(kept(&|params| params.min_p = 1.0), [f, t, f, t, f, f]);
    }

    #[test]
    fn bias_and_penalties_move_logits_as_stated() {
        let mut biased = sampler(|params| {
            params.temperature = 0.0;
            params.logit_bias = vec![(5, 100.0), (99, 1.0)];
        });
        assert_eq!(biased.sample(&mut LOGITS.clone()), 5);

        let mut counted = sampler(|params| {
            params.presence_penalty = 0.5;
            params.frequency_penalty = 0.25;
        });
        counted.observe_prompt(&[0, 0]);
        counted.accept(1);
        counted.accept(1);
        let mut logits = LOGITS;
        counted.adjust(&mut logits);
        assert_eq!(logits[..4], [1.0, 2.0, 2.0, 3.0]);

        let mut repeated = sampler(|params| params.repeat_penalty = 2.0);
        repeated.observe_prompt(&[0]);
        repeated.accept(5);
        let mut logits = LOGITS;
        repeated.adjust(&mut logits);
        assert_eq!(logits[..4], [0.5, 3.0, 2.0, 3.0]);
        assert_eq!(logits[5], -2.0);
        (0..REPEAT_WINDOW).for_each(|_| repeated.accept(3));
        let mut logits = LOGITS;
        repeated.adjust(&mut logits);
        assert_eq!(logits[..4], [1.0, 3.0, 2.0, 1.5], "the window has passed the others");
    }
}
