//! How many tokens of an answer are guessed: the policy, and one request's guess.
//!
//! A guess that comes true saves a pass over the weights; one that does not costs its
//! arithmetic. What is written never depends on it (see `crate::engine::draft`).

use zeroize::Zeroize as _;

use crate::engine::draft;

/// Most tokens of a step that reads guesses, in tokens: it takes about three times as long as a
/// step for one token, which waits for the weights, so that it pays if a third comes true.
pub(super) const GUESSING_STEP_TOKENS_MAX: usize = 16;

/// The guess of one request.
#[derive(Debug)]
pub(super) struct Guess {
    /// Most tokens that may ever be guessed at once; 0 guesses nothing.
    max: usize,
    /// Most that will be next: more after guesses that came true, fewer after others.
    next_max: usize,
    tokens: Vec<u32>,
}

impl Guess {
    /// Guesses at most `max` tokens at once.
    #[must_use]
    pub(super) fn new(max: usize) -> Self {
        Self { max, next_max: max.min(2), tokens: Vec::with_capacity(max) }
    }

    /// The guessed tokens.
    #[must_use]
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Guesses how `text` goes on, by at most `room` tokens.
    pub(super) fn make(&mut self, text: &[u32], room: usize) {
        self.tokens.clear();
        draft(text, self.next_max.min(room), &mut self.tokens);
    }

    /// Learns how many of the guessed tokens came true.
    pub(super) fn learn(&mut self, true_count: usize) {
        if true_count == self.tokens.len() {
            self.next_max = self.max.min(self.next_max.max(true_count * 2));
        } else {
            self.next_max = self.max.min(true_count + 1);
        }
        self.tokens.clear();
    }
}

impl Drop for Guess {
    fn drop(&mut self) {
        self.tokens.zeroize();
    }
}

/// Most tokens that each of so many answers may guess in a step that reads no prompt.
#[must_use]
pub(super) fn room(answers: usize) -> usize {
    GUESSING_STEP_TOKENS_MAX.checked_div(answers).map_or(0, |tokens| tokens.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_grow_with_success_and_shrink_without() {
        let mut guess = Guess::new(8);
        let mut lens = Vec::new();
        for _ in 0..4 {
            guess.make(&[1; 9], 15);
            lens.push(guess.tokens().len());
            guess.learn(guess.tokens().len());
        }
        assert_eq!(lens, [2, 4, 8, 8]);
        guess.make(&[1; 9], 15);
        guess.learn(2);
        guess.make(&[1; 9], 15);
        assert_eq!(guess.tokens().len(), 3);
        guess.learn(0);
        guess.make(&[1; 9], 15);
        assert_eq!(guess.tokens().len(), 1);
        guess.learn(1);
        guess.make(&[1, 2, 3], 15);
        assert!(guess.tokens().is_empty(), "nothing to go by");
        guess.learn(0);
        guess.make(&[1; 9], 1);
        assert_eq!(guess.tokens().len(), 1, "no more than there is room for");
        let mut off = Guess::new(0);
        off.make(&[1; 9], 15);
        assert!(off.tokens().is_empty());
    }

    #[test]
    fn a_step_of_guesses_stays_short() {
        assert_eq!([0, 1, 4, 8, 9, 100].map(room), [0, 15, 3, 1, 0, 0]);
    }
}
