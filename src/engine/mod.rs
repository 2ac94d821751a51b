//! The model: from packed weights and tokens to logits, and from logits to text.
//!
//! No file, socket, clock or process is known here. After [`Engine::new`] the token path allocates
//! nothing, whatever a card's driver does for a launch. Every sum has one order that does not depend on the batch, on chunks or on threads, so
//! that a sequence's tokens are the same whoever else is in the batch.

mod activations;
mod config;
mod draft;
mod error;
mod forward;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(not(feature = "cuda"))]
#[path = "gpu_absent.rs"]
mod gpu;
mod image;
mod kv_cache;
mod prefixes;
mod random;
mod sampler;
#[cfg(test)]
mod tests;
mod text_stream;
mod weights;

use kernels::{Isa, Pool, Precision};
use zeroize::Zeroize;

pub use config::{Architecture, LocalLayers, ModelConfig};
pub use draft::draft;
pub use error::Error;
#[cfg(feature = "cuda")]
pub use gpu::{CardError, CardPart, GpuLayers, Needs, Plan};
pub use image::{IMAGE_ALIGNMENT, ImageLayout, Model, PART_SIZE, Part};
pub use kv_cache::{KvType, SeqId};
pub use prefixes::CacheDomain;
pub(crate) use random::Random;
pub use sampler::{Choice, Sampler, SamplingParams, argmax};
pub use text_stream::{TextStream, TextStreamEnd};

use activations::Activations;
use forward::Contents;
use gpu::Gpu;
use kv_cache::KvCache;

/// Most tokens of a batch that an engine may be made for.
const TOKENS_MAX: usize = 8192;
/// Most sequences that an engine may be made for.
const SEQUENCES_MAX: usize = 4096;
/// Most positions of a sequence, and of the cache.
const POSITIONS_MAX: usize = 1 << 26;
/// Most cache domains that an engine may keep prefixes of.
const DOMAINS_MAX: usize = 4096;
/// Most pages that a domain may keep.
const PREFIX_PAGES_MAX: usize = 1 << 16;
/// Most threads.
const THREADS_MAX: usize = 1024;

/// How an engine computes, and for how much at once.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The instruction set.
    pub isa: Isa,
    /// Threads, the caller's included.
    pub threads: usize,
    /// How activations take part in products.
    pub precision: Precision,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Positions that a sequence may have; at most the model's.
    pub context_len: usize,
    /// Positions of all sequences together.
    pub cache_len: usize,
    /// Sequences at a time.
    pub sequences_max: usize,
    /// Tokens of a batch.
    pub tokens_max: usize,
    /// Logits of a batch.
    pub logits_max: usize,
    /// Cache domains of which prefixes outlive their sequences; 0 keeps none.
    pub prefix_domains: usize,
    /// Pages of 32 positions that each of them may keep, beside those of `cache_len`.
    pub prefix_pages: usize,
    /// Layers that cards compute: the last so many, and then the output too. 0 is no card.
    pub gpu_layers: usize,
    /// Whether a card repeats the launches of a step of answers as one; it computes the same without.
    pub gpu_graphs: bool,
}

impl Options {
    /// The exact mode: 32-bit floats everywhere. One sequence of `context_len`.
    pub fn exact(isa: Isa, threads: usize, context_len: usize) -> Self {
        Self {
            isa,
            threads,
            precision: Precision::F32,
            kv: KvType::F32,
            context_len,
            cache_len: context_len,
            sequences_max: 1,
            tokens_max: 512,
            logits_max: 1,
            prefix_domains: 0,
            prefix_pages: 0,
            gpu_layers: 0,
            gpu_graphs: true,
        }
    }

    /// The fast mode: activations as bytes, a cache of 16-bit floats, which may be set to one of
    /// 8-bit integers. One sequence.
    pub fn fast(isa: Isa, threads: usize, context_len: usize) -> Self {
        let exact = Self::exact(isa, threads, context_len);
        Self { precision: Precision::Int8, kv: KvType::F16, ..exact }
    }

    fn check(&self, model: &ModelConfig) -> Result<(), Error> {
        let bounds = [
            ("threads", self.threads, THREADS_MAX),
            ("context_len", self.context_len, model.context_len.min(POSITIONS_MAX)),
            ("cache_len", self.cache_len, POSITIONS_MAX),
            ("sequences_max", self.sequences_max, SEQUENCES_MAX),
            ("tokens_max", self.tokens_max, TOKENS_MAX),
            ("logits_max", self.logits_max, self.tokens_max),
        ];
        let prefixes = [
            ("prefix_domains", self.prefix_domains, DOMAINS_MAX),
            ("prefix_pages", self.prefix_pages, PREFIX_PAGES_MAX),
            ("gpu_layers", self.gpu_layers, model.n_layers),
        ];
        let is_bad = |&&(_, value, max): &&(&str, usize, usize)| value == 0 || value > max;
        let mut bad = bounds.iter().filter(is_bad).map(|(name, ..)| *name);
        let mut too_many = prefixes.iter().filter(|(_, value, max)| value > max);
        match bad.next().or_else(|| too_many.next().map(|(name, ..)| *name)) {
            Some(name) => Err(Error::BadOption(name)),
            None => Ok(()),
        }
    }
}

/// One token of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchToken {
    /// Its sequence, in which it takes the next position.
    pub seq: SeqId,
    /// The token.
    pub token: u32,
    /// Whether the logits of what follows it are wanted.
    pub logits: bool,
}

/// A list of them is erased with the room that it has beyond its end.
impl Zeroize for BatchToken {
    fn zeroize(&mut self) {
        self.token.zeroize();
    }
}

/// A model, ready to compute.
pub struct Engine<'m> {
    model: &'m Model<'m>,
    options: Options,
    pool: Pool,
    cache: KvCache,
    activations: Activations,
    /// The layers that cards compute.
    gpu: Option<Gpu<'m>>,
    /// Reused by `prefill`.
    chunk: Vec<BatchToken>,
    /// Whether the buffers hold nothing of a batch.
    is_erased: bool,
}

impl<'m> Engine<'m> {
    /// Allocates everything that the options ask for and starts the threads.
    ///
    /// # Errors
    ///
    /// [`Error::BadOption`] names an option that is 0 or too large; [`Error::KvBlocks`] if the
    /// model's keys and values cannot be kept as asked.
    pub fn new(model: &'m Model<'m>, options: Options) -> Result<Self, Error> {
        options.check(model.config())?;
        Self::on(Pool::new(options.threads), model, options)
    }

    /// As [`Engine::new`], on threads that are there already.
    ///
    /// # Errors
    ///
    /// As [`Engine::new`]; the number of threads is an option too.
    pub fn on(pool: Pool, model: &'m Model<'m>, options: Options) -> Result<Self, Error> {
        Self::with(pool, model, options, None)
    }

    /// Does the same with the layers that a card computes.
    fn with(
        pool: Pool,
        model: &'m Model<'m>,
        options: Options,
        gpu: Option<Gpu<'m>>,
    ) -> Result<Self, Error> {
        let config = model.config();
        options.check(config)?;
        options.kv.check(config)?;
        Self::cache_size(config, &options)?;
        if pool.threads() != options.threads {
            return Err(Error::BadOption("threads"));
        }
        if gpu.is_none() && options.gpu_layers > 0 {
            return Err(Error::BadOption("gpu_layers"));
        }
        Ok(Self {
            model,
            options,
            pool,
            cache: KvCache::new(config, &options),
            activations: Activations::new(model, &options),
            gpu,
            chunk: Vec::with_capacity(options.tokens_max),
            is_erased: true,
        })
    }

    /// Returns the bytes of memory that the cache of an engine with these options takes; what is on a
    /// card comes beside them.
    ///
    /// # Errors
    ///
    /// [`Error::BadOption`] if that does not fit the address space.
    pub fn cache_size(config: &ModelConfig, options: &Options) -> Result<usize, Error> {
        KvCache::size(config, options).ok_or(Error::BadOption("cache_len"))
    }

    /// Calls `task` once on each compute thread but the caller's.
    pub fn on_each_thread(&self, task: &(dyn Fn() + Sync)) {
        self.pool.on_each_worker(task);
    }

    /// Returns the options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Returns the model.
    pub fn model(&self) -> &'m Model<'m> {
        self.model
    }

    /// Starts a sequence of at most `len_max` positions, whose pages are set aside at once.
    ///
    /// # Errors
    ///
    /// [`Error::NoFreeSequence`] and [`Error::NoFreePages`] pass when other sequences end;
    /// [`Error::SequenceFull`] if `len_max` is more than the context.
    pub fn sequence_start(&mut self, len_max: usize) -> Result<SeqId, Error> {
        self.start(None, &[], len_max).map(|(seq, _)| seq)
    }

    /// Starts a sequence that may share what its domain keeps of the prompt. Returns how many of
    /// the prompt's tokens it has already, which are never all: the next is the first to compute.
    ///
    /// # Errors
    ///
    /// As [`Engine::sequence_start`], whatever was found.
    pub fn sequence_start_in(
        &mut self,
        domain: CacheDomain,
        prompt: &[u32],
        len_max: usize,
    ) -> Result<(SeqId, usize), Error> {
        self.start(Some(domain), prompt, len_max)
    }

    fn start(
        &mut self,
        domain: Option<CacheDomain>,
        prompt: &[u32],
        len_max: usize,
    ) -> Result<(SeqId, usize), Error> {
        if let Some(gpu) = &mut self.gpu {
            gpu.sequences_changed();
        }
        self.cache.start(domain, prompt, len_max)
    }

    /// Zeroes pages on the card that nobody needs any more.
    fn zero_freed(&mut self) -> Result<(), Error> {
        if let (Some(gpu), freed @ [_, ..]) = (&mut self.gpu, self.cache.freed()) {
            gpu.zero(freed)?;
            self.cache.freed_are_zero();
        }
        Ok(())
    }

    /// Ends a sequence; its part of the cache is zeroed.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSequence`] if it has ended; what a card says if it fails.
    pub fn sequence_end(&mut self, seq: SeqId) -> Result<(), Error> {
        self.cache.end(seq, false)?;
        self.zero_freed()
    }

    /// Ends a sequence; its domain, if it has one, keeps as many whole pages of its prefix as
    /// it has room for, and gives up the longest unused of its own for them. All else is zeroed.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSequence`] if it has ended; what a card says if it fails.
    pub fn sequence_keep(&mut self, seq: SeqId) -> Result<(), Error> {
        self.cache.end(seq, true)?;
        self.zero_freed()
    }

    /// Zeroes all that a domain keeps; running sequences go on, and are not kept when they end.
    ///
    /// # Errors
    ///
    /// What a card says if it fails.
    pub fn forget(&mut self, domain: CacheDomain) -> Result<(), Error> {
        self.cache.forget(domain);
        self.zero_freed()
    }

    /// Takes the positions from `len` on back, as if their tokens had never been computed.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSequence`] if it has ended; [`Error::NoSuchPosition`] if some of them are
    /// not its own, but were there when it started.
    pub fn sequence_rewind(&mut self, seq: SeqId, len: usize) -> Result<(), Error> {
        self.cache.rewind(seq, len)
    }

    /// Returns how many positions a sequence has.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSequence`] if it has ended.
    pub fn sequence_len(&self, seq: SeqId) -> Result<usize, Error> {
        self.cache.len(seq)
    }

    /// Returns how many pages of 32 positions sequences could still be given.
    pub fn free_pages(&self) -> usize {
        self.cache.free_pages()
    }

    /// Computes a batch: any mix of tokens of any sequences, those of one sequence in order.
    ///
    /// # Errors
    ///
    /// Nothing was computed, and no sequence has changed, if the batch is too large, names a
    /// sequence, position or token that does not exist, or a card failed.
    pub fn forward(&mut self, batch: &[BatchToken]) -> Result<(), Error> {
        self.forward_choosing(batch, &[])
    }

    /// Computes a batch as [`Engine::forward`] does; a card that computes its logits chooses their tokens
    /// too, where `choices` says how: one for each token that wants logits, or none at all.
    ///
    /// # Errors
    ///
    /// As [`Engine::forward`].
    pub fn forward_choosing(
        &mut self,
        batch: &[BatchToken],
        choices: &[Option<Choice>],
    ) -> Result<(), Error> {
        let Options { tokens_max, logits_max, .. } = self.options;
        if batch.len() > tokens_max {
            return Err(Error::BatchTooLarge { what: "tokens", max: tokens_max });
        }
        if batch.iter().filter(|token| token.logits).count() > logits_max {
            return Err(Error::BatchTooLarge { what: "logits", max: logits_max });
        }
        let vocab_size = self.model.config().vocab_size;
        if batch.iter().any(|token| token.token as usize >= vocab_size) {
            return Err(Error::TokenOutOfRange);
        }
        self.zero_freed()?;
        self.place(batch)?;
        let wanted = batch.iter().enumerate().filter(|(_, token)| token.logits);
        self.activations.wanted.clear();
        self.activations.wanted.extend(wanted.map(|(i, _)| i));
        let outcome = self.compute(batch, choices);
        if outcome.is_err() {
            batch.iter().for_each(|token| self.cache.retreat(token.seq));
        }
        outcome
    }

    /// Gives every token its place, or none.
    fn place(&mut self, batch: &[BatchToken]) -> Result<(), Error> {
        self.activations.places.clear();
        for (i, token) in batch.iter().enumerate() {
            match self.cache.advance(token.seq, token.token) {
                Ok(place) => self.activations.places.push(place),
                Err(error) => {
                    batch[..i].iter().for_each(|token| self.cache.retreat(token.seq));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Computes a prompt in chunks and wants the logits of its last token.
    ///
    /// # Errors
    ///
    /// As [`Engine::forward`]; the chunks before the fault were computed.
    pub fn prefill(&mut self, seq: SeqId, prompt: &[u32]) -> Result<(), Error> {
        let mut left = prompt.len();
        self.is_erased = false;
        let mut chunk = std::mem::take(&mut self.chunk);
        for tokens in prompt.chunks(self.options.tokens_max) {
            left -= tokens.len();
            let last = |i: usize| left == 0 && i + 1 == tokens.len();
            chunk.clear();
            let batch = tokens.iter().enumerate();
            chunk.extend(batch.map(|(i, &token)| BatchToken { seq, token, logits: last(i) }));
            let outcome = self.forward(&chunk);
            if outcome.is_err() {
                self.chunk = chunk;
                return outcome;
            }
        }
        self.chunk = chunk;
        Ok(())
    }

    /// Zeroes what the last batches left in the buffers, logits included; the cache stays. To be
    /// called when there is nothing to compute: it takes the time of a few megabytes, once.
    ///
    /// # Errors
    ///
    /// What a card says if it fails.
    pub fn erase(&mut self) -> Result<(), Error> {
        if !self.is_erased {
            self.activations.erase();
            self.chunk.zeroize();
            self.gpu.as_mut().map_or(Ok(()), Gpu::erase)?;
            self.is_erased = true;
        }
        Ok(())
    }

    /// Returns whether a card computes logits, so that it may choose their tokens.
    pub fn chooses(&self) -> bool {
        self.gpu.is_some()
    }

    /// Returns the token that a card chose for the last batch's `index`-th token that wanted logits, if one
    /// did.
    pub fn chosen(&self, index: usize) -> Option<u32> {
        self.gpu.as_ref().and_then(|gpu| gpu.chosen(index))
    }

    /// Panics if there are no logits: too few tokens wanted them, or a card chose already.
    fn check_logits(&self, index: usize) {
        assert!(index < self.activations.wanted.len(), "the token wanted logits");
        assert!(self.chosen(index).is_none(), "the logits of a token that is chosen stay there");
    }

    /// Returns the logits of the last batch's `index`-th token that wanted them.
    ///
    /// # Panics
    ///
    /// Panics if fewer tokens wanted logits, or a card has chosen the token.
    pub fn logits(&self, index: usize) -> &[f32] {
        self.check_logits(index);
        let vocab_size = self.model.config().vocab_size;
        let logits = self.gpu.as_ref().map_or(&self.activations.logits[..], Gpu::logits);
        &logits[index * vocab_size..][..vocab_size]
    }

    /// Returns the same to be changed, as a sampler does.
    ///
    /// # Panics
    ///
    /// Panics if fewer tokens wanted logits, or a card has chosen the token.
    pub fn logits_mut(&mut self, index: usize) -> &mut [f32] {
        self.check_logits(index);
        let vocab_size = self.model.config().vocab_size;
        let logits = match &mut self.gpu {
            Some(gpu) => gpu.logits_mut(),
            None => &mut self.activations.logits[..],
        };
        &mut logits[index * vocab_size..][..vocab_size]
    }
}

/// Checks that a prompt and the longest answer fit the window.
///
/// # Errors
///
/// [`Error::ContextExceeded`] with all numbers; nothing is ever cut.
pub fn check_context(
    prompt_len: usize,
    answer_len_max: usize,
    context_len: usize,
) -> Result<(), Error> {
    match prompt_len.checked_add(answer_len_max) {
        Some(sum) if sum <= context_len => Ok(()),
        _ => Err(Error::ContextExceeded { prompt_len, answer_len_max, context_len }),
    }
}
