//! Who uses each page of the cache, and the pages that outlive their sequence.
//!
//! A kept page is known by its 32 tokens and the page before it, so that the kept pages of a
//! cache domain are a tree of prefixes. A domain has a place with a fixed number of pages; only
//! its own sequences find them, fill them and push the longest unused of them out. What one
//! domain does never changes what another finds.

use kernels::ops::PAGE_LEN;
use zeroize::Zeroize as _;

/// Sequences of one domain may share what is kept of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheDomain(pub [u8; 16]);

/// An index into the places of the domains.
pub(super) type PlaceIndex = usize;

/// What is known of one page.
#[derive(Clone, Default)]
struct Entry {
    tokens: [u32; PAGE_LEN],
    /// Running sequences that read it.
    users: u32,
    /// The domain that keeps it.
    keeper: Option<PlaceIndex>,
    /// The page before it in its prefix, and how many there are.
    before: Option<u32>,
    depth: usize,
    /// When it was last kept or found. A page is found only after the one before it, so none
    /// is older than the one after it.
    used: u64,
}

/// What to do with a full page of a sequence that has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// It is kept.
    Kept,
    /// It is kept once another page was given back, which is no longer kept.
    Replacing(u32),
    /// This page holds the same and is kept.
    Already(u32),
    /// The domain's pages are all needed for this prefix.
    NoRoom,
}

/// All pages, and the domains that keep some.
pub(super) struct Prefixes {
    entries: Vec<Entry>,
    places: Vec<Option<CacheDomain>>,
    /// Pages that a domain keeps at most.
    quota: usize,
    clock: u64,
}

impl Prefixes {
    /// `n_pages` of which so many `domains` may keep `quota` each.
    pub(super) fn new(n_pages: usize, domains: usize, quota: usize) -> Self {
        let entries = vec![Entry::default(); n_pages];
        Self { entries, places: vec![None; domains], quota, clock: 0 }
    }

    /// Notes a token that a sequence reads.
    pub(super) fn record(&mut self, page: u32, offset: usize, token: u32) {
        self.entries[page as usize].tokens[offset] = token;
    }

    /// One more sequence reads a page.
    pub(super) fn take(&mut self, page: u32) {
        self.entries[page as usize].users += 1;
    }

    /// One sequence less reads a page. Returns whether nobody needs it.
    pub(super) fn give_back(&mut self, page: u32) -> bool {
        let entry = &mut self.entries[page as usize];
        entry.users -= 1;
        entry.users == 0 && entry.keeper.is_none()
    }

    /// Forgets the tokens of a page that is given back.
    pub(super) fn erase(&mut self, page: u32) {
        self.entries[page as usize].tokens.zeroize();
    }

    /// The place of a domain; a free one is given to it. `None` if there is none.
    pub(super) fn place(&mut self, domain: CacheDomain) -> Option<PlaceIndex> {
        let is_its = |place: &Option<CacheDomain>| *place == Some(domain);
        let found = self.places.iter().position(is_its);
        let index = found.or_else(|| self.places.iter().position(Option::is_none))?;
        self.places[index] = Some(domain);
        Some(index)
    }

    /// Starts a walk: all that it finds and keeps is newer than what was kept before.
    pub(super) fn tick(&mut self) {
        self.clock += 1;
    }

    /// The page of a domain that holds these tokens after the page `before`.
    pub(super) fn find(
        &mut self,
        place: PlaceIndex,
        before: Option<u32>,
        tokens: &[u32],
    ) -> Option<u32> {
        let is_it = |entry: &Entry| {
            entry.keeper == Some(place) && entry.before == before && entry.tokens == *tokens
        };
        let index = self.entries.iter().position(is_it)?;
        self.entries[index].used = self.clock;
        u32::try_from(index).ok()
    }

    /// Keeps a page of a sequence that has ended, after the page `before`.
    pub(super) fn keep(&mut self, place: PlaceIndex, before: Option<u32>, page: u32) -> Keep {
        let entry = &mut self.entries[page as usize];
        if entry.keeper == Some(place) {
            entry.used = self.clock;
            return Keep::Kept;
        }
        let tokens = entry.tokens;
        if let Some(same) = self.find(place, before, &tokens) {
            return Keep::Already(same);
        }
        let count = self.entries.iter().filter(|entry| entry.keeper == Some(place)).count();
        let oldest = match count < self.quota {
            true => None,
            false => match self.oldest(place) {
                Some(oldest) => Some(oldest),
                None => return Keep::NoRoom,
            },
        };
        if let Some(oldest) = oldest {
            self.entries[oldest as usize].keeper = None;
        }
        let depth = before.map_or(0, |before| self.entries[before as usize].depth + 1);
        let used = self.clock;
        let entry = &mut self.entries[page as usize];
        (entry.keeper, entry.before, entry.depth, entry.used) = (Some(place), before, depth, used);
        oldest.map_or(Keep::Kept, Keep::Replacing)
    }

    /// The longest unused page that no sequence reads and no prefix goes on after.
    ///
    /// Of pages of one age it is the last of its prefix; none after it can be older.
    fn oldest(&self, place: PlaceIndex) -> Option<u32> {
        let can_go = |entry: &Entry| {
            entry.keeper == Some(place) && entry.users == 0 && entry.used < self.clock
        };
        let pages = (0_u32..).zip(&self.entries).filter(|(_, entry)| can_go(entry));
        let oldest = pages.min_by_key(|(_, entry)| (entry.used, usize::MAX - entry.depth));
        oldest.map(|(page, _)| page)
    }

    /// Takes a domain's place away. The pages that nobody needs any more go to `give_back`.
    pub(super) fn forget(
        &mut self,
        domain: CacheDomain,
        mut give_back: impl FnMut(u32),
    ) -> Option<PlaceIndex> {
        let place = self.places.iter().position(|place| *place == Some(domain))?;
        self.places[place] = None;
        for (page, entry) in (0_u32..).zip(&mut self.entries) {
            if entry.keeper == Some(place) {
                entry.keeper = None;
                if entry.users == 0 {
                    entry.tokens.zeroize();
                    give_back(page);
                }
            }
        }
        Some(place)
    }

    /// Whether no token is known of any page.
    #[cfg(test)]
    pub(super) fn is_zero(&self) -> bool {
        self.entries.iter().all(|entry| entry.tokens == [0; PAGE_LEN])
    }
}

impl Drop for Prefixes {
    fn drop(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.tokens.zeroize());
    }
}
