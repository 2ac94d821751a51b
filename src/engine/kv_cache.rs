//! Keys and values of every sequence, in pages of 32 positions.
//!
//! The pool is allocated once. A sequence is given all pages that it may ever need when it starts,
//! so that it never fails midway; where a page lies depends on positions only. Pages are zeroed
//! when they are given back.
//!
//! Beside the pages of sequences each cache domain has a fixed number in which prefixes outlive
//! their sequence (`prefixes`). A sequence is charged for all its pages, shared or not, so that
//! neither kind is ever short of the other's, and who is admitted says nothing of what was found:
//!
//! ```text
//! pages in use <= charged + domains * quota       pages = sequence_pages + domains * quota
//! ```

use half::f16;
use half::vec::HalfBitsVecExt as _;
use kernels::ops::{KV_BLOCK_LEN, KvPages, KvPagesMut, PAGE_LEN, Place};

use super::prefixes::{CacheDomain, Keep, PlaceIndex, Prefixes};
use super::{Error, ModelConfig, Options};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// As 32-bit floats: the exact mode.
    F32,
    /// As 16-bit floats.
    F16,
    /// As 8-bit integers, 32 of a head with a 16-bit scale: 34/64 of the bytes.
    Q8_0,
}

impl KvType {
    /// Returns the name that llama.cpp gives it too.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Returns the bytes of so many values, which are whole blocks.
    fn size(self, len: usize) -> Option<usize> {
        match self {
            Self::F32 => len.checked_mul(size_of::<f32>()),
            Self::F16 => len.checked_mul(size_of::<f16>()),
            Self::Q8_0 => len.checked_add(len / KV_BLOCK_LEN * size_of::<f16>()),
        }
    }

    /// Checks that a model's keys and values can be kept so.
    ///
    /// # Errors
    ///
    /// [`Error::KvBlocks`] if a head has no whole number of blocks.
    pub fn check(self, config: &ModelConfig) -> Result<(), Error> {
        let head_dim = config.head_dim;
        match self {
            Self::Q8_0 if !head_dim.is_multiple_of(KV_BLOCK_LEN) => {
                Err(Error::KvBlocks { head_dim })
            }
            _ => Ok(()),
        }
    }
}

/// Zeros that the system gives when they are first used: `vec![f16::ZERO; len]` writes them all.
fn untouched(len: usize) -> Vec<f16> {
    vec![0_u16; len].reinterpret_into()
}

/// A running sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeqId {
    slot: u32,
    /// Counts the sequences of a slot, so that an old name finds nothing.
    turn: u32,
}

/// What a slot holds.
#[derive(Clone, Debug, Default)]
struct Slot {
    turn: u32,
    is_taken: bool,
    n_pages: usize,
    /// Positions that the sequence may have.
    len_max: usize,
    /// Positions that it has.
    len: usize,
    /// Positions that it ever had: what was written.
    reached: usize,
    /// Positions that were found when it started; never written.
    shared: usize,
    /// Where its prefix may be kept.
    place: Option<PlaceIndex>,
}

enum Store {
    F32(Vec<f32>),
    F16(Vec<f16>),
    /// The second vector has a scale for each [`KV_BLOCK_LEN`] of the first.
    Q8_0(Vec<i8>, Vec<f16>),
}

/// The pool of pages and the sequences that own them.
pub(super) struct KvCache {
    /// `[layer][page][kv_head][K, V][32 * head_dim]`: the layers that are not a card's.
    store: Store,
    /// Pages that are still to be zeroed on the card, if there is one.
    freed: Option<Vec<u32>>,
    layer_len: usize,
    /// Values of a page in one layer.
    page_len: usize,
    free: Vec<u32>,
    prefixes: Prefixes,
    /// Pages of sequences.
    sequence_pages: usize,
    /// Those that running sequences may need.
    charged: usize,
    slots: Vec<Slot>,
    /// `[slot][pages_a_sequence]`
    tables: Vec<u32>,
    pages_a_sequence: usize,
}

impl KvCache {
    /// Returns the bytes of the pool in memory; `None` if they cannot be addressed.
    pub(super) fn size(config: &ModelConfig, options: &Options) -> Option<usize> {
        let n_layers = config.n_layers.checked_sub(options.gpu_layers)?;
        let a_position = options.kv.size(n_layers.checked_mul(2 * config.kv_dim())?)?;
        let size = n_pages(options)?.checked_mul(PAGE_LEN)?.checked_mul(a_position)?;
        isize::try_from(size).ok().map(|_| size)
    }

    /// Allocates the pool, whose size is known.
    pub(super) fn new(config: &ModelConfig, options: &Options) -> Self {
        let n_pages = n_pages(options).and_then(|pages| u32::try_from(pages).ok());
        let n_pages = n_pages.expect("the options are bounded");
        let page_len = 2 * PAGE_LEN * config.kv_dim();
        let layer_len = page_len * n_pages as usize;
        let len = layer_len * (config.n_layers - options.gpu_layers);
        let pages_a_sequence = pages_a_sequence(options);
        let (domains, quota) = (options.prefix_domains, options.prefix_pages);
        Self {
            store: match options.kv {
                KvType::F32 => Store::F32(vec![0.0; len]),
                KvType::F16 => Store::F16(untouched(len)),
                KvType::Q8_0 => Store::Q8_0(vec![0; len], untouched(len / KV_BLOCK_LEN)),
            },
            freed: (options.gpu_layers > 0).then(|| Vec::with_capacity(n_pages as usize)),
            layer_len,
            page_len,
            free: (0..n_pages).rev().collect(),
            prefixes: Prefixes::new(n_pages as usize, domains, quota),
            sequence_pages: options.cache_len.div_ceil(PAGE_LEN),
            charged: 0,
            slots: vec![Slot::default(); options.sequences_max],
            tables: vec![0; tables_len(options)],
            pages_a_sequence,
        }
    }

    /// Starts a sequence that may have `len_max` positions. Returns how many it has already:
    /// those of whole pages that `domain` keeps of `prompt`, but never all of it.
    pub(super) fn start(
        &mut self,
        domain: Option<CacheDomain>,
        prompt: &[u32],
        len_max: usize,
    ) -> Result<(SeqId, usize), Error> {
        let needed = len_max.div_ceil(PAGE_LEN);
        if needed > self.pages_a_sequence {
            return Err(Error::SequenceFull);
        }
        let index = self.slots.iter().position(|slot| !slot.is_taken);
        let index = index.ok_or(Error::NoFreeSequence)?;
        let free = self.free_pages();
        if needed > free {
            return Err(Error::NoFreePages { needed, free });
        }
        let place = domain.and_then(|domain| self.prefixes.place(domain));
        let prompt = &prompt[..prompt.len().saturating_sub(1).min(len_max)];
        let found = self.find(place, prompt, index);
        let table = &mut self.tables[index * self.pages_a_sequence..][..needed];
        for entry in &mut table[found..] {
            *entry = self.free.pop().expect("a charged page is there");
        }
        table.iter().for_each(|page| self.prefixes.take(*page));
        self.charged += needed;
        let (turn, shared) = (self.slots[index].turn.wrapping_add(1), found * PAGE_LEN);
        self.slots[index] = Slot {
            turn,
            is_taken: true,
            n_pages: needed,
            len_max,
            len: shared,
            reached: shared,
            shared,
            place,
        };
        let slot = u32::try_from(index).expect("the options are bounded");
        Ok((SeqId { slot, turn }, shared))
    }

    /// Writes the kept pages of a prompt to the table of a slot; returns how many there are.
    fn find(&mut self, place: Option<PlaceIndex>, prompt: &[u32], index: usize) -> usize {
        let Some(place) = place else { return 0 };
        let table = &mut self.tables[index * self.pages_a_sequence..][..self.pages_a_sequence];
        self.prefixes.tick();
        let (mut found, mut before) = (0, None);
        for tokens in prompt.chunks_exact(PAGE_LEN) {
            let Some(page) = self.prefixes.find(place, before, tokens) else { break };
            table[found] = page;
            before = Some(page);
            found += 1;
        }
        found
    }

    /// Ends a sequence. Its whole pages are kept if `is_kept` and it has a domain with room for
    /// them; all others that no sequence needs are zeroed and given back.
    pub(super) fn end(&mut self, seq: SeqId, is_kept: bool) -> Result<(), Error> {
        let index = self.index(seq)?;
        let slot = std::mem::take(&mut self.slots[index]);
        self.slots[index].turn = slot.turn;
        self.charged -= slot.n_pages;
        self.prefixes.tick();
        let mut place = slot.place.filter(|_| is_kept);
        let mut before = None;
        for i in 0..slot.n_pages {
            let page = self.tables[index * self.pages_a_sequence + i];
            if (i + 1) * PAGE_LEN > slot.len {
                place = None;
            }
            match place.map(|place| self.prefixes.keep(place, before, page)) {
                Some(Keep::Kept) => before = Some(page),
                Some(Keep::Already(same)) => before = Some(same),
                Some(Keep::Replacing(old)) => {
                    before = Some(page);
                    self.free_page(old, true);
                }
                Some(Keep::NoRoom) | None => place = None,
            }
            if self.prefixes.give_back(page) {
                self.free_page(page, i * PAGE_LEN < slot.reached);
            }
        }
        Ok(())
    }

    /// Zeroes what a domain keeps, but for pages that running sequences read: those go with them.
    pub(super) fn forget(&mut self, domain: CacheDomain) {
        let mut given_back = Vec::new();
        let place = self.prefixes.forget(domain, |page| given_back.push(page));
        given_back.into_iter().for_each(|page| self.free_page(page, true));
        if place.is_some() {
            let its = self.slots.iter_mut().filter(|slot| slot.place == place);
            its.for_each(|slot| slot.place = None);
        }
    }

    /// Gives a page back that nobody needs, and zeroes it if it was written.
    fn free_page(&mut self, page: u32, was_written: bool) {
        if was_written {
            self.erase(page);
            self.prefixes.erase(page);
        }
        self.free.push(page);
    }

    fn erase(&mut self, page: u32) {
        if let Some(freed) = &mut self.freed {
            freed.push(page);
        }
        let page = page as usize;
        let pages = Pages { layer_len: self.layer_len, page, page_len: self.page_len };
        match &mut self.store {
            Store::F32(store) => pages.fill(store, 0.0),
            Store::F16(store) => pages.fill(store, f16::ZERO),
            Store::Q8_0(quants, scales) => {
                pages.fill(quants, 0);
                pages.of_scales().fill(scales, f16::ZERO);
            }
        }
    }

    /// Returns the pages that are still to be zeroed on a card.
    pub(super) fn freed(&self) -> &[u32] {
        self.freed.as_deref().unwrap_or_default()
    }

    /// Takes note that they are zero.
    pub(super) fn freed_are_zero(&mut self) {
        if let Some(freed) = &mut self.freed {
            freed.clear();
        }
    }

    fn index(&self, seq: SeqId) -> Result<usize, Error> {
        let index = seq.slot as usize;
        let slot = self.slots.get(index).ok_or(Error::UnknownSequence)?;
        if slot.is_taken && slot.turn == seq.turn { Ok(index) } else { Err(Error::UnknownSequence) }
    }

    /// Returns the number of positions that a sequence has.
    pub(super) fn len(&self, seq: SeqId) -> Result<usize, Error> {
        Ok(self.slots[self.index(seq)?].len)
    }

    /// Gives a sequence its next position, for this token.
    pub(super) fn advance(&mut self, seq: SeqId, token: u32) -> Result<Place, Error> {
        let index = self.index(seq)?;
        let slot = &mut self.slots[index];
        if slot.len == slot.len_max {
            return Err(Error::SequenceFull);
        }
        let (table, position) = (index * self.pages_a_sequence, slot.len);
        slot.len += 1;
        slot.reached = slot.reached.max(slot.len);
        if slot.place.is_some() {
            let page = self.tables[table + position / PAGE_LEN];
            self.prefixes.record(page, position % PAGE_LEN, token);
        }
        Ok(Place { table, position })
    }

    /// Takes back the positions from `len` on; what they hold is never read again. What was
    /// found is not the sequence's to change.
    pub(super) fn rewind(&mut self, seq: SeqId, len: usize) -> Result<(), Error> {
        let index = self.index(seq)?;
        let slot = &mut self.slots[index];
        if len < slot.shared {
            return Err(Error::NoSuchPosition);
        }
        slot.len = slot.len.min(len);
        Ok(())
    }

    /// Takes back the last position of a sequence whose batch was refused.
    pub(super) fn retreat(&mut self, seq: SeqId) {
        if let Ok(index) = self.index(seq) {
            self.slots[index].len -= 1;
        }
    }

    /// Returns the pages that sequences could still be given.
    pub(super) fn free_pages(&self) -> usize {
        self.sequence_pages - self.charged
    }

    /// Returns the page numbers of all sequences.
    pub(super) fn tables(&self) -> &[u32] {
        &self.tables
    }

    /// Returns the pages of a layer.
    pub(super) fn layer(&self, layer: usize) -> KvPages<'_> {
        let at = layer * self.layer_len;
        match &self.store {
            Store::F32(store) => KvPages::F32(&store[at..][..self.layer_len]),
            Store::F16(store) => KvPages::F16(&store[at..][..self.layer_len]),
            Store::Q8_0(quants, scales) => KvPages::Q8_0(
                &quants[at..][..self.layer_len],
                &scales[at / KV_BLOCK_LEN..][..self.layer_len / KV_BLOCK_LEN],
            ),
        }
    }

    /// Returns the pages of a layer, to be written, and the page numbers.
    pub(super) fn layer_mut(&mut self, layer: usize) -> (KvPagesMut<'_>, &[u32]) {
        let at = layer * self.layer_len;
        let pages = match &mut self.store {
            Store::F32(store) => KvPagesMut::F32(&mut store[at..][..self.layer_len]),
            Store::F16(store) => KvPagesMut::F16(&mut store[at..][..self.layer_len]),
            Store::Q8_0(quants, scales) => KvPagesMut::Q8_0(
                &mut quants[at..][..self.layer_len],
                &mut scales[at / KV_BLOCK_LEN..][..self.layer_len / KV_BLOCK_LEN],
            ),
        };
        (pages, &self.tables)
    }

    /// Returns whether every value of the pool is zero, and no token is known.
    #[cfg(test)]
    pub(super) fn is_zero(&self) -> bool {
        let is_zero = match &self.store {
            Store::F32(store) => store.iter().all(|value| value.to_bits() == 0),
            Store::F16(store) => store.iter().all(|value| value.to_bits() == 0),
            Store::Q8_0(quants, scales) => {
                quants.iter().all(|quant| *quant == 0)
                    && scales.iter().all(|scale| scale.to_bits() == 0)
            }
        };
        is_zero && self.prefixes.is_zero()
    }

    /// Returns where a page of a sequence lies.
    #[cfg(test)]
    pub(super) fn page(&self, seq: SeqId, page: usize) -> Result<u32, Error> {
        Ok(self.tables[self.index(seq)? * self.pages_a_sequence + page])
    }

    /// Returns how many positions a sequence may have.
    #[cfg(test)]
    pub(super) fn len_max(&self, seq: SeqId) -> usize {
        self.index(seq).map_or(0, |index| self.slots[index].len_max)
    }

    /// Returns the pages that nobody uses or keeps.
    #[cfg(test)]
    pub(super) fn unused_pages(&self) -> usize {
        self.free.len()
    }
}

/// One page in every layer of a store.
struct Pages {
    layer_len: usize,
    page: usize,
    page_len: usize,
}

impl Pages {
    fn of_scales(&self) -> Self {
        let Self { layer_len, page, page_len } = *self;
        Self { layer_len: layer_len / KV_BLOCK_LEN, page, page_len: page_len / KV_BLOCK_LEN }
    }

    fn fill<T: Copy>(&self, store: &mut [T], value: T) {
        let at = self.page * self.page_len;
        for layer in store.chunks_exact_mut(self.layer_len) {
            layer[at..][..self.page_len].fill(value);
        }
    }
}

/// The pages that the options ask for; `None` if that is no number.
pub(super) fn n_pages(options: &Options) -> Option<usize> {
    let kept = options.prefix_domains.checked_mul(options.prefix_pages)?;
    options.cache_len.div_ceil(PAGE_LEN).checked_add(kept)
}

fn pages_a_sequence(options: &Options) -> usize {
    options.context_len.div_ceil(PAGE_LEN)
}

/// The page numbers of all sequences.
pub(super) fn tables_len(options: &Options) -> usize {
    options.sequences_max * pages_a_sequence(options)
}
