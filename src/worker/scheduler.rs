//! Which sequence runs next: every step reads a bounded number of tokens, of all that run.
//!
//! Who reads how much is dealt out in `turns`. Cancels are looked at before each step, so a
//! request that is cancelled costs at most the step that runs. No text is looked at here but to
//! pass it on, and a step allocates nothing, whatever a card's driver does for a launch.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use zeroize::Zeroize as _;

use super::Failed;
use super::guesses::{self, Guess};
use super::link::{Mouth, Said};
use super::prefixes::Prefixes;
use super::prepare::{Prepared, refuse};
use super::session::{Session, outcome};
use super::text::Text;
use super::turns::{Need, STEP_TOKENS_MAX, Turns};
use crate::engine::{
    self, BatchToken, CacheDomain, Choice, Engine, Options, Sampler, SamplingParams, TextStream,
    TextStreamEnd,
};
use crate::ipc::message::{Failure, Finish, FromWorker, Outcome, RequestId, WorkerReport};
use crate::sys::process::exit_now;
use crate::sys::random::random_u64;

/// Most requests that wait for a place in the KV cache.
const WAITING_COUNT_MAX: usize = 64;
/// Most cancels that are kept for requests that are being prepared; of those that ended meanwhile the
/// oldest are forgotten.
const EARLY_CANCELS_COUNT_MAX: usize = 4096;

/// What the engine's thread is told.
#[derive(Debug)]
pub(super) enum Heard {
    /// Serve this request.
    Start(Box<Prepared>),
    /// Stop this request.
    Cancel(RequestId),
    /// Keep nothing of this domain.
    Forget(CacheDomain),
    /// Answer that this thread works.
    AreYouThere,
    /// Finish what runs, then exit.
    Drain,
}

/// The engine's thread.
pub(super) struct Scheduler<'m> {
    engine: Engine<'m>,
    text: &'m Text,
    mouth: Mouth,
    running: Vec<Session>,
    waiting: VecDeque<Prepared>,
    early_cancels: VecDeque<RequestId>,
    batch: Vec<BatchToken>,
    prefixes: Prefixes,
    turns: Turns,
    /// What each session could read.
    needs: Vec<Need>,
    /// Most tokens that an answer may guess at once.
    guess_max: usize,
    /// Which session wants logits, and how many rows of them.
    wanted: Vec<(usize, usize)>,
    /// How the token of each of those rows is chosen, if a card may.
    choices: Vec<Option<Choice>>,
    /// Which sessions ended in a step, in order.
    ended: Vec<(usize, Finish)>,
    draining: bool,
}

impl<'m> Scheduler<'m> {
    /// A scheduler with nothing to do.
    #[must_use]
    pub(super) fn new(
        engine: Engine<'m>,
        text: &'m Text,
        mouth: Mouth,
        (prefix_keep, guess_max): (Duration, usize),
    ) -> Self {
        let Options { sequences_max, logits_max, .. } = *engine.options();
        Self {
            engine,
            text,
            mouth,
            running: Vec::with_capacity(sequences_max),
            waiting: VecDeque::new(),
            early_cancels: VecDeque::new(),
            batch: Vec::with_capacity(STEP_TOKENS_MAX),
            prefixes: Prefixes::new(prefix_keep),
            turns: Turns::new(sequences_max),
            needs: Vec::with_capacity(sequences_max),
            guess_max,
            wanted: Vec::with_capacity(sequences_max),
            choices: Vec::with_capacity(logits_max),
            ended: Vec::with_capacity(sequences_max),
            draining: false,
        }
    }

    /// Serves until the link is gone, or drained and nothing runs.
    pub(super) fn run(mut self, heard: &Receiver<Heard>) {
        while self.turn(heard) {}
        self.erase();
    }

    /// Zeroes what the last steps left.
    fn erase(&mut self) {
        self.batch.zeroize();
        // Nothing but a card fails here.
        let _ = or_end(self.engine.erase());
    }

    /// What memory holds of the steps' tokens.
    #[cfg(test)]
    pub(super) fn held(&self) -> Vec<u8> {
        crate::sys::erasing::held(&self.batch)
    }

    /// Listens, and runs the engine once. Returns whether there may be more to do.
    pub(super) fn turn(&mut self, heard: &Receiver<Heard>) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() {
            if self.draining {
                return false;
            }
            self.erase();
            match heard.recv_timeout(self.prefixes.wait(Instant::now())) {
                Ok(message) => self.hear(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match heard.try_recv() {
                Ok(message) => self.hear(message),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        self.admit();
        self.expire();
        self.forget_old_prefixes();
        self.step();
        true
    }

    fn hear(&mut self, message: Heard) {
        match message {
            Heard::Start(prepared) => self.enqueue(*prepared),
            Heard::Cancel(request) => self.cancel(request),
            Heard::Forget(domain) => self.forget(domain),
            Heard::AreYouThere => self.mouth.say(Said::Supervisor(WorkerReport::Alive)),
            Heard::Drain => self.draining = true,
        }
    }

    fn enqueue(&mut self, prepared: Prepared) {
        let early = self.early_cancels.iter().position(|one| *one == prepared.request);
        let is_cancelled = early.and_then(|at| self.early_cancels.remove(at)).is_some();
        if is_cancelled || self.waiting.len() >= WAITING_COUNT_MAX {
            refuse(&self.mouth, prepared.request, prepared.digests, Failure::Busy);
        } else {
            self.waiting.push_back(prepared);
        }
    }

    fn cancel(&mut self, request: RequestId) {
        if let Some(at) = self.running.iter().position(|session| session.request == request) {
            self.finish(at, Finish::Cancelled);
        } else if let Some(at) = self.waiting.iter().position(|one| one.request == request) {
            if let Some(prepared) = self.waiting.remove(at) {
                refuse(&self.mouth, request, prepared.digests, Failure::Busy);
            }
        } else {
            if self.early_cancels.len() >= EARLY_CANCELS_COUNT_MAX {
                self.early_cancels.pop_front();
            }
            self.early_cancels.push_back(request);
        }
    }

    /// Gives waiting requests a place, as long as there is one.
    fn admit(&mut self) {
        while let Some(prepared) = self.waiting.front() {
            let needed = prepared.tokens.len() + prepared.max_tokens as usize;
            let started = match prepared.right.ticket.cache_domain.map(CacheDomain) {
                Some(domain) => self.engine.sequence_start_in(domain, &prepared.tokens, needed),
                None => self.engine.sequence_start(needed).map(|sequence| (sequence, 0)),
            };
            let Ok(started) = started else {
                if self.running.is_empty()
                    && let Some(prepared) = self.waiting.pop_front()
                {
                    refuse(&self.mouth, prepared.request, prepared.digests, Failure::Busy);
                    continue;
                }
                return;
            };
            let Some(prepared) = self.waiting.pop_front() else { return };
            let sampler = self.sampler(&prepared);
            let text = TextStream::new(&prepared.stop);
            self.mouth.say(Said::Gateway(FromWorker::Started {
                request: prepared.request,
                prompt_tokens: u32::try_from(prepared.tokens.len()).unwrap_or(u32::MAX),
            }));
            let guess = Guess::new(self.guess_max);
            self.running.push(Session::new(prepared, started, sampler, guess, text));
        }
    }

    /// Zeroes what is kept of a domain, and keeps nothing of its requests that have not ended.
    fn forget(&mut self, domain: CacheDomain) {
        self.forget_pages(domain);
        self.prefixes.forget(domain);
        self.running.iter_mut().for_each(|session| {
            session.domain.take_if(|one| *one == domain);
        });
        self.waiting.iter_mut().for_each(|prepared| {
            prepared.right.ticket.cache_domain.take_if(|one| *one == domain.0);
        });
    }

    /// Zeroes what is kept of domains that have asked nothing for too long.
    fn forget_old_prefixes(&mut self) {
        let now = Instant::now();
        for session in &self.running {
            if let Some(domain) = session.domain {
                self.prefixes.used(domain, now);
            }
        }
        while let Some(domain) = self.prefixes.take_old(now) {
            self.forget_pages(domain);
        }
    }

    fn forget_pages(&mut self, domain: CacheDomain) {
        // Nothing but a card fails here.
        let _ = or_end(self.engine.forget(domain));
    }

    fn sampler(&self, prepared: &Prepared) -> Sampler {
        let asked = &prepared.sampling;
        let params = SamplingParams {
            temperature: asked.temperature,
            top_k: asked.top_k,
            top_p: asked.top_p,
            min_p: asked.min_p,
            repeat_penalty: asked.repeat_penalty,
            presence_penalty: asked.presence_penalty,
            frequency_penalty: asked.frequency_penalty,
            logit_bias: asked.logit_bias.clone(),
            seed: asked.seed.unwrap_or_else(|| random_u64().unwrap_or_default()),
        };
        let mut sampler = Sampler::new(
            params,
            self.engine.model().config().vocab_size,
            self.engine.options().isa,
        );
        sampler.observe_prompt(&prepared.tokens);
        sampler
    }

    fn expire(&mut self) {
        let now = Instant::now();
        for at in (0..self.running.len()).rev() {
            if self.running[at].deadline <= now {
                self.finish(at, Finish::Length);
            }
        }
    }

    /// Runs the engine once and deals with the tokens that it chose.
    fn step(&mut self) {
        self.fill_batch();
        if self.batch.is_empty() {
            return;
        }
        if or_end(self.engine.forward_choosing(&self.batch, &self.choices)).is_err() {
            for at in (0..self.running.len()).rev() {
                self.fail(at);
            }
            return;
        }
        let mut first_row = 0;
        for &(at, rows) in &self.wanted {
            let session = &mut self.running[at];
            #[cfg(debug_assertions)]
            session.panic_if_asked(self.text);
            let logits = first_row..first_row + rows;
            let finish = take_rows(session, &mut self.engine, logits, self.text, &self.mouth);
            if let Some(finish) = finish {
                self.ended.push((at, finish));
            }
            first_row += rows;
        }
        // The last first, so that those before it stay where they are.
        while let Some((at, finish)) = self.ended.pop() {
            self.finish(at, finish);
        }
    }

    /// Reads the next tokens of every session, as many as are dealt to it, and those that it
    /// guesses will follow.
    fn fill_batch(&mut self) {
        self.batch.clear();
        self.wanted.clear();
        self.choices.clear();
        self.needs.clear();
        self.needs.extend(self.running.iter().map(Session::need));
        // Beside a prompt a guess is not free: such a step is long of its arithmetic.
        let reads_prompts = self.needs.iter().any(|need| *need != Need::Answer);
        let guess_room = if reads_prompts { 0 } else { guesses::room(self.needs.len()) };
        let chooses = self.engine.chooses();
        let shares = self.turns.deal(&self.needs);
        for (at, (session, &share)) in self.running.iter_mut().zip(shares).enumerate() {
            let (first, last) = (session.read_count, session.tokens.len());
            session.read_count += share;
            let (seq, is_read) = (session.sequence, session.read_count == last);
            for index in first..session.read_count {
                let (token, logits) = (session.tokens[index], index + 1 == last);
                self.batch.push(BatchToken { seq, token, logits });
            }
            if is_read && share > 0 {
                session.make_guess(guess_room);
                let guessed = session.guess.tokens();
                self.wanted.push((at, 1 + guessed.len()));
                if chooses {
                    self.choices.extend((0..=guessed.len()).map(|i| session.sampler.choice(i)));
                }
                let guessed = guessed.iter();
                self.batch.extend(guessed.map(|&token| BatchToken { seq, token, logits: true }));
            }
        }
    }

    fn finish(&mut self, at: usize, finish: Finish) {
        let mut session = self.take_session(at, true);
        if finish != Finish::Cancelled {
            let mut rest = self.mouth.blank();
            session.text.finish(&mut rest);
            tell(&mut session, &self.mouth, rest);
        }
        let report = session.report(outcome(finish));
        self.mouth.say(Said::Supervisor(WorkerReport::End(report)));
        self.mouth.say(Said::Gateway(FromWorker::Done {
            request: session.request,
            finish,
            prompt_tokens: session.prompt_tokens,
            completion_tokens: session.completion_tokens,
            cached_tokens: session.cached_tokens,
        }));
    }

    /// Takes a session away and gives its place in the cache back, zeroed but for what its
    /// domain may keep.
    fn take_session(&mut self, at: usize, is_kept: bool) -> Session {
        let session = self.running.remove(at);
        self.turns.removed(at);
        let ended = or_end(match is_kept {
            true => self.engine.sequence_keep(session.sequence),
            false => self.engine.sequence_end(session.sequence),
        });
        debug_assert!(ended.is_ok(), "a session has a sequence");
        session
    }

    fn fail(&mut self, at: usize) {
        let mut session = self.take_session(at, false);
        let report = session.report(Outcome::Failed);
        self.mouth.say(Said::Supervisor(WorkerReport::End(report)));
        let failure = Failure::Internal;
        self.mouth.say(Said::Gateway(FromWorker::Failed { request: session.request, failure }));
    }
}

/// What the engine did. Where a card has failed, the process ends: what the card holds is given to nobody unerased,
/// and another worker opens it anew.
fn or_end<T>(done: Result<T, engine::Error>) -> Result<T, engine::Error> {
    if done.as_ref().is_err_and(engine::Error::is_final) {
        exit_now(Failed::Card as i32);
    }
    done
}

/// Chooses tokens from a session's logits as long as the next was guessed, and takes back what
/// was guessed otherwise. Returns how the answer ends, if it does.
fn take_rows(
    session: &mut Session,
    engine: &mut Engine<'_>,
    rows: Range<usize>,
    text: &Text,
    mouth: &Mouth,
) -> Option<Finish> {
    let mut finish = None;
    let mut true_count = 0;
    for row in rows {
        let token = match engine.chosen(row) {
            Some(token) => {
                session.sampler.was_chosen();
                token
            }
            None => session.sampler.sample(engine.logits_mut(row)),
        };
        finish = take_token(session, text, mouth, token);
        if finish.is_some() || session.guess.tokens().get(true_count) != Some(&token) {
            break;
        }
        true_count += 1;
    }
    if !session.guess.tokens().is_empty() {
        session.read_count += true_count;
        session.guess.learn(true_count);
        let taken_back = engine.sequence_rewind(session.sequence, session.read_count);
        debug_assert!(taken_back.is_ok(), "a guess comes after what is shared");
    }
    finish
}

/// Deals with one chosen token; returns how the answer ends, if it does.
fn take_token(session: &mut Session, text: &Text, mouth: &Mouth, token: u32) -> Option<Finish> {
    session.completion_tokens += 1;
    if text.ends_generation(token) {
        return Some(Finish::Stop);
    }
    session.sampler.accept(token);
    let mut delta = mouth.blank();
    let end = session.text.push(text.token_bytes(token), &mut delta);
    tell(session, mouth, delta);
    if end != TextStreamEnd::Open {
        return Some(Finish::Stop);
    }
    session.feed_back(token);
    (session.completion_tokens >= session.max_tokens).then_some(Finish::Length)
}

/// Sends text to the gateway, if there is any.
fn tell(session: &mut Session, mouth: &Mouth, text: String) {
    if text.is_empty() {
        mouth.give_back(text);
    } else {
        session.observe(&text);
        mouth.say(Said::Gateway(FromWorker::Delta { request: session.request, text }));
    }
}
