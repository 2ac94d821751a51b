//! The state of one request while it is served; erased when it ends.

use std::time::Instant;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroize as _;

use super::guesses::Guess;
use super::prepare::{Digests, Prepared};
#[cfg(debug_assertions)]
use super::text::Text;
use super::turns::Need;
use crate::engine::{CacheDomain, Sampler, SeqId, TextStream};
use crate::ipc::message::{Digest, EndReport, Finish, Outcome, RequestId};

/// One request that the engine serves.
pub(super) struct Session {
    /// The request.
    pub(super) request: RequestId,
    /// Its place in the KV cache.
    pub(super) sequence: SeqId,
    /// Prompt and answer; has room for all of it, so that it never moves and leaves no copy.
    pub(super) tokens: Vec<u32>,
    /// How many of `tokens` the engine has read.
    pub(super) read_count: usize,
    /// Tokens of the prompt.
    pub(super) prompt_tokens: u32,
    /// Whose it is, as far as prefixes may be shared.
    pub(super) domain: Option<CacheDomain>,
    /// Tokens of the prompt that were there already.
    pub(super) cached_tokens: u32,
    /// Tokens of the answer so far.
    pub(super) completion_tokens: u32,
    /// Most tokens of the answer.
    pub(super) max_tokens: u32,
    /// When it must have ended.
    pub(super) deadline: Instant,
    /// Chooses tokens.
    pub(super) sampler: Sampler,
    /// Guesses them.
    pub(super) guess: Guess,
    /// Makes text of them.
    pub(super) text: TextStream,
    digests: Digests,
    answer: Sha256,
    #[cfg(debug_assertions)]
    seed: Option<u64>,
}

/// Test hook, in no release build: a request with this seed panics in the engine's thread.
#[cfg(debug_assertions)]
const PANIC_SEED: u64 = 0x7061_6e69_6373;

impl Session {
    /// Starts a session, whose sequence has so many tokens of the prompt already.
    #[must_use]
    pub(super) fn new(
        mut prepared: Prepared,
        (sequence, cached_len): (SeqId, usize),
        sampler: Sampler,
        guess: Guess,
        text: TextStream,
    ) -> Self {
        let mut tokens = Vec::with_capacity(prepared.tokens.len() + prepared.max_tokens as usize);
        tokens.extend_from_slice(&prepared.tokens);
        prepared.tokens.zeroize();
        Self {
            request: prepared.request,
            sequence,
            prompt_tokens: u32::try_from(tokens.len()).unwrap_or(u32::MAX),
            tokens,
            domain: prepared.right.ticket.cache_domain.map(CacheDomain),
            cached_tokens: u32::try_from(cached_len).unwrap_or(u32::MAX),
            read_count: cached_len,
            completion_tokens: 0,
            max_tokens: prepared.max_tokens,
            deadline: prepared.right.deadline,
            sampler,
            guess,
            text,
            digests: prepared.digests,
            answer: Sha256::new(),
            #[cfg(debug_assertions)]
            seed: prepared.sampling.seed,
        }
    }

    /// The worst panic there could be: its text holds the whole prompt.
    #[cfg(debug_assertions)]
    pub(super) fn panic_if_asked(&self, text: &Text) {
        let bytes: Vec<u8> =
            self.tokens.iter().flat_map(|&token| text.token_bytes(token).to_vec()).collect();
        assert!(self.seed != Some(PANIC_SEED), "{}", String::from_utf8_lossy(&bytes));
    }

    /// Tokens that the engine has not read yet.
    #[must_use]
    pub(super) fn unread(&self) -> &[u32] {
        &self.tokens[self.read_count..]
    }

    /// Notes text that goes to the client.
    pub(super) fn observe(&mut self, text: &str) {
        self.answer.update(text);
    }

    /// What it could read in the next step.
    #[must_use]
    pub(super) fn need(&self) -> Need {
        match self.completion_tokens {
            0 => Need::Prompt(self.unread().len()),
            _ => Need::Answer,
        }
    }

    /// Guesses how the answer goes on, by at most `room` tokens, and never past its longest.
    pub(super) fn make_guess(&mut self, room: usize) {
        // Each guess that comes true is a token of the answer, and so is the one after it.
        let left = self.max_tokens.saturating_sub(self.completion_tokens + 1) as usize;
        self.guess.make(&self.tokens, room.min(left));
    }

    /// Takes a generated token as the next to be read.
    pub(super) fn feed_back(&mut self, token: u32) {
        self.tokens.push(token);
    }

    /// What the supervisor is told at the end.
    #[must_use]
    pub(super) fn report(&mut self, outcome: Outcome) -> EndReport {
        EndReport {
            request: self.request,
            outcome,
            messages: std::mem::take(&mut self.digests.messages),
            answer: Digest(self.answer.clone().finalize().into()),
            parameters: self.digests.parameters,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.tokens.zeroize();
    }
}

/// How an end is told to the supervisor.
#[must_use]
pub(super) fn outcome(finish: Finish) -> Outcome {
    match finish {
        Finish::Stop => Outcome::Stop,
        Finish::Length => Outcome::Length,
        Finish::Cancelled => Outcome::Cancelled,
    }
}
