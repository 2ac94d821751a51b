//! Tokens from logits on the card, without bias or penalties: what those count is the host's.

use core::mem::size_of;

use super::buffer::{Buffer, HostSource, HostTarget, NULL, Struct, dim, int};
use super::{Card, CudaError};
use crate::ops::Choice;

/// Words of a row: SplitMix64's state, `Sampling` of `select.cu`.
const RANDOM_LEN: usize = 2;
const SAMPLING_LEN: usize = 7;

/// The best token.
const BEST: Choice = Choice { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, random: 0 };

fn random(choice: &Choice) -> [u32; RANDOM_LEN] {
    let bytes = choice.random.to_ne_bytes();
    bytes.as_chunks().0.first_chunk().expect("eight bytes are two words").map(u32::from_ne_bytes)
}

fn sampling(choice: &Choice) -> [u32; SAMPLING_LEN] {
    let min_p_log = if choice.min_p > 0.0 { choice.min_p.min(1.0).ln() } else { f32::NEG_INFINITY };
    let [temperature, top_p, min_p_log] =
        [choice.temperature, choice.top_p, min_p_log].map(f32::to_bits);
    let [one, zero] = [1.0_f32, 0.0].map(f32::to_bits);
    // A top-k beyond the vocabulary is off.
    let top_k = choice.top_k.min(i32::MAX.unsigned_abs());
    [temperature, top_p, min_p_log, one, zero, zero, top_k]
}

/// Chooses tokens of rows of logits.
#[derive(Debug)]
pub struct Selection<'c> {
    card: &'c Card<'c>,
    vocab: usize,
    /// `[rows][vocab]`
    weights: Buffer<'c, f32>,
    /// `[rows][2]`, then `[rows][7]`: how each token is chosen.
    choices: Buffer<'c, u32>,
    staged: HostSource<'c, u32>,
    /// `[rows]`
    tokens: Buffer<'c, u32>,
    chosen: HostTarget<'c, u32>,
}

impl<'c> Selection<'c> {
    /// Allocates for so many rows of a vocabulary.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfMemory`] and [`CudaError::NoPinnedMemory`] with what is needed.
    pub fn new(card: &'c Card<'c>, rows: usize, vocab: usize) -> Result<Self, CudaError> {
        let choices_len = rows * (RANDOM_LEN + SAMPLING_LEN);
        Ok(Self {
            card,
            vocab,
            weights: Buffer::new(card, rows * vocab)?,
            choices: Buffer::new(card, choices_len)?,
            staged: HostSource::new(card, choices_len)?,
            tokens: Buffer::new(card, rows)?,
            chosen: HostTarget::new(card, rows)?,
        })
    }

    /// Returns the bytes that it takes on the card.
    #[must_use]
    pub fn size(rows: usize, vocab: usize) -> usize {
        rows * (vocab + RANDOM_LEN + SAMPLING_LEN + 1) * size_of::<u32>()
    }

    /// Zeroes what it holds of the last tokens.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    pub fn erase(&mut self) -> Result<(), CudaError> {
        self.weights.erase()?;
        self.choices.erase()?;
        self.staged.values_mut()?.fill(0);
        self.tokens.erase()?;
        self.chosen.values_mut().fill(0);
        Ok(())
    }

    /// Chooses a token of each of the first rows of `logits: [rows][vocab]` that has a choice, and copies the
    /// others to the same rows of `to`; waits once, for both. Returns a token for each row, of which those
    /// without a choice mean nothing. The logits stay as they are, but for a NaN, which becomes minus infinity.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`] if the card fails.
    ///
    /// # Panics
    ///
    /// Panics if there are more choices than rows were allocated for.
    pub fn choose(
        &mut self,
        choices: &[Option<Choice>],
        logits: &mut Buffer<'_, f32>,
        to: &mut HostTarget<'_, f32>,
    ) -> Result<&[u32], CudaError> {
        let rows = choices.len();
        logits.has(rows * self.vocab);
        self.weights.has(rows * self.vocab);
        self.tokens.has(rows);
        if rows == 0 {
            return Ok(&[]);
        }
        let asked = self.ask(choices, logits, to);
        // Copies may be under way whatever happened.
        self.card.finish()?;
        asked?;
        Ok(&self.chosen.values()[..rows])
    }

    /// Asks for everything that [`Selection::choose`] waits for.
    fn ask(
        &mut self,
        choices: &[Option<Choice>],
        logits: &mut Buffer<'_, f32>,
        to: &mut HostTarget<'_, f32>,
    ) -> Result<(), CudaError> {
        let (rows, card) = (choices.len(), self.card);
        let select = Struct::new()
            .with(&logits.pointer(card))
            .with(&self.weights.pointer(card))
            .with(&NULL)
            .with(&NULL)
            .with(&NULL)
            .with(&NULL)
            .with(&self.choices.pointer_at(card, rows * RANDOM_LEN))
            .with(&self.choices.pointer(card))
            .with(&self.tokens.pointer(card))
            .with(&int(self.vocab));
        let each = choices.iter().map(|choice| choice.unwrap_or(BEST));
        let words = each.clone().flat_map(|choice| random(&choice));
        let words = words.chain(each.flat_map(|choice| sampling(&choice)));
        self.staged.values_mut()?.iter_mut().zip(words).for_each(|(to, word)| *to = word);
        self.choices.start_write(&self.staged, rows * (RANDOM_LEN + SAMPLING_LEN))?;
        for (row, _) in choices.iter().enumerate().filter(|(_, choice)| choice.is_none()) {
            // SAFETY: `choose` has `to` until the copy is over.
            unsafe { logits.start_read_to(to, row * self.vocab..(row + 1) * self.vocab) }?;
        }
        // SAFETY: every buffer has so many rows; nothing is counted, so that no counts are followed.
        unsafe { card.launch("select_token", [dim(rows), 1, 1], 1024, 0, &[select.bytes()]) }?;
        // SAFETY: `choose` has `chosen` until the copy is over.
        unsafe { self.tokens.start_read_to(&mut self.chosen, 0..rows) }
    }
}
