//! The rounds of `cloister bench`: a row is prepared once, and then timed as often as asked.

use std::fmt;
use std::time::Instant;

use kernels::{Isa, Pool};

use crate::engine::{
    BatchToken, CacheDomain, Engine, Error, KvType, Model, Options, SeqId, argmax,
};
use crate::sys::processors::run_on;

/// Tokens that are computed before the clock runs, to touch every page of the weights.
const WARM_TOKENS: usize = 64;
/// Steps of an answer before the clock runs.
const WARM_STEPS: usize = 2;

/// Whose prompts these are.
const DOMAIN: CacheDomain = CacheDomain([0; 16]);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// Reading a prompt.
    Prefill {
        /// Threads.
        threads: usize,
        /// Its tokens.
        prompt: usize,
    },
    /// Reading a prompt whose start is kept from an earlier one.
    Warm {
        /// Threads.
        threads: usize,
        /// Its tokens.
        prompt: usize,
        /// Those that it has in common with the earlier one.
        common: usize,
    },
    /// Writing an answer to each sequence of a batch.
    Decode {
        /// Threads.
        threads: usize,
        /// Positions of each sequence before the answer.
        depth: usize,
        /// Sequences.
        batch: usize,
    },
}

impl Row {
    pub(super) fn threads(self) -> usize {
        match self {
            Self::Prefill { threads, .. }
            | Self::Warm { threads, .. }
            | Self::Decode { threads, .. } => threads,
        }
    }

    /// Returns the same row with other threads.
    pub(super) fn with_threads(self, threads: usize) -> Self {
        match self {
            Self::Prefill { prompt, .. } => Self::Prefill { threads, prompt },
            Self::Warm { prompt, common, .. } => Self::Warm { threads, prompt, common },
            Self::Decode { depth, batch, .. } => Self::Decode { threads, depth, batch },
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefill { prompt, .. } => write!(f, "prefill {prompt}"),
            Self::Warm { prompt, common, .. } => write!(f, "prefill {prompt}, warm to {common}"),
            Self::Decode { depth, batch: 1, .. } => write!(f, "decode at depth {depth}"),
            Self::Decode { depth, batch, .. } => {
                write!(f, "decode of {batch} at depth {depth}")
            }
        }
    }
}

/// What all rows have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting<'a> {
    pub(super) isa: Isa,
    /// The processors that threads are put on, if there is one for each.
    pub(super) processors: &'a [u16],
    /// How keys and values are kept.
    pub(super) kv: KvType,
    /// Tokens of each answer.
    pub(super) generate: usize,
    /// Most tokens of a prompt in one pass.
    pub(super) chunk: usize,
    /// Cards, and how many layers go there.
    #[cfg(feature = "cuda")]
    pub(super) cards: Option<(&'a [kernels::cuda::Card<'a>], crate::engine::GpuLayers)>,
}

impl<'a> Setting<'a> {
    /// Makes an engine.
    fn engine(self, model: &'a Model<'a>, options: Options) -> Result<Engine<'a>, Error> {
        let pool = self.pool(options.threads);
        #[cfg(feature = "cuda")]
        if let Some(asked) = self.cards {
            return crate::cli::card::engine(pool, asked, model, options);
        }
        Engine::on(pool, model, options)
    }

    /// Returns whether layers are on a card.
    pub(super) fn is_on_card(&self) -> bool {
        #[cfg(feature = "cuda")]
        return self.cards.is_some();
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// Returns threads as a worker has them; this thread is the first.
    pub(super) fn pool(self, threads: usize) -> Pool {
        // What this thread starts begins where it runs.
        put_on(self.processors);
        let Some(own) = self.processors.get(..threads).map(<[u16]>::to_vec) else {
            return Pool::new(threads);
        };
        let pool = Pool::starting(threads, move |index| put_on(&own[index..=index]));
        put_on(&self.processors[..1]);
        pool
    }

    /// Returns the engine's options for one sequence.
    pub(super) fn options(self, threads: usize, context_len: usize) -> Options {
        let tokens_max = self.chunk.min(context_len);
        Options { tokens_max, kv: self.kv, ..Options::fast(self.isa, threads, context_len) }
    }
}

/// The system may leave a thread where it is: then it is timed there.
fn put_on(processors: &[u16]) {
    let _ = run_on(processors);
}

/// What one round took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    pub(super) seconds: f64,
    /// Tokens of all sequences.
    pub(super) tokens: usize,
    /// From the start of a prompt to the choice of the first token of the answer.
    pub(super) first_token_s: Option<f64>,
}

/// A row that is ready to be timed.
pub(super) struct Prepared<'m> {
    engine: Engine<'m>,
    row: Row,
    generate: usize,
    /// The sequences of a decode row, each `depth` long.
    seqs: Vec<SeqId>,
    /// Reused by every step of an answer.
    batch: Vec<BatchToken>,
}

impl<'m> Prepared<'m> {
    /// Makes an engine whose cache is no larger than the row needs, and warms it up.
    pub(super) fn new(model: &'m Model<'m>, row: Row, setting: Setting<'m>) -> Result<Self, Error> {
        let generate = setting.generate;
        let options = match row {
            Row::Prefill { threads, prompt } => setting.options(threads, prompt),
            Row::Warm { threads, prompt, common } => Options {
                prefix_domains: 1,
                prefix_pages: common / kernels::ops::PAGE_LEN,
                ..setting.options(threads, prompt)
            },
            Row::Decode { threads, depth, batch } => {
                let one = setting.options(threads, depth + generate);
                // Each sequence has pages of its own.
                let cache_len = one.context_len.next_multiple_of(kernels::ops::PAGE_LEN) * batch;
                let tokens_max = one.tokens_max.max(batch);
                Options { cache_len, sequences_max: batch, tokens_max, logits_max: batch, ..one }
            }
        };
        let engine = setting.engine(model, options)?;
        let mut prepared = Self { engine, row, generate, seqs: Vec::new(), batch: Vec::new() };
        prepared.warm()?;
        Ok(prepared)
    }

    fn warm(&mut self) -> Result<(), Error> {
        match self.row {
            Row::Prefill { prompt, .. } => {
                let warm = self.engine.sequence_start(prompt)?;
                let tokens = self.tokens(0, prompt.min(WARM_TOKENS));
                self.engine.prefill(warm, &tokens)?;
                self.engine.sequence_end(warm)
            }
            Row::Warm { common, .. } => {
                let tokens = self.tokens(0, common);
                let (seq, _) = self.engine.sequence_start_in(DOMAIN, &tokens, common)?;
                self.engine.prefill(seq, &tokens)?;
                self.engine.sequence_keep(seq)
            }
            Row::Decode { depth, batch, .. } => {
                for index in 0..batch {
                    let seq = self.engine.sequence_start(depth + self.generate)?;
                    let tokens = self.tokens(index, depth);
                    self.engine.prefill(seq, &tokens)?;
                    self.seqs.push(seq);
                }
                self.answer(depth, self.generate.min(WARM_STEPS)).map(|_| ())
            }
        }
    }

    /// Times one round.
    pub(super) fn round(&mut self) -> Result<Round, Error> {
        match self.row {
            Row::Prefill { prompt, .. } | Row::Warm { prompt, .. } => self.read(prompt),
            Row::Decode { depth, .. } => self.answer(depth, self.generate),
        }
    }

    /// Returns the bytes of the cache.
    pub(super) fn cache_bytes(&self) -> Result<u64, Error> {
        let config = self.engine.model().config();
        Ok(Engine::cache_size(config, self.engine.options())? as u64)
    }

    fn read(&mut self, prompt: usize) -> Result<Round, Error> {
        let tokens = self.tokens(0, prompt);
        let start = Instant::now();
        let (seq, found) = self.engine.sequence_start_in(DOMAIN, &tokens, prompt)?;
        self.engine.prefill(seq, &tokens[found..])?;
        let seconds = start.elapsed().as_secs_f64();
        std::hint::black_box(argmax(self.engine.logits(0)));
        let first_token_s = Some(start.elapsed().as_secs_f64());
        self.engine.sequence_end(seq)?;
        Ok(Round { seconds, tokens: prompt - found, first_token_s })
    }

    fn answer(&mut self, depth: usize, steps: usize) -> Result<Round, Error> {
        let tokens = self.tokens(7, steps);
        let start = Instant::now();
        for &token in &tokens {
            self.batch.clear();
            let one = |&seq: &SeqId| BatchToken { seq, token, logits: true };
            self.batch.extend(self.seqs.iter().map(one));
            self.engine.forward(&self.batch)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        for &seq in &self.seqs {
            self.engine.sequence_rewind(seq, depth)?;
        }
        Ok(Round { seconds, tokens: steps * self.seqs.len(), first_token_s: None })
    }

    /// Returns tokens that differ from each other and from sequence to sequence.
    fn tokens(&self, sequence: usize, len: usize) -> Vec<u32> {
        let vocab_size = self.engine.model().config().vocab_size;
        let token = |i: usize| u32::try_from((100 + (sequence * 31 + i) % 1000) % vocab_size);
        (0..len).map(|i| token(i).unwrap_or(0)).collect()
    }
}
