//! Whose requests may share what workers keep of them: a domain for each of the first principals.
//!
//! Who has one follows from the token table alone, so that what a principal finds does not depend
//! on what others do. A domain is a keyed digest of the principal's name under a key of this
//! start; a worker learns no name.

use ring::hmac;
use ring::rand::SystemRandom;

use super::tokens::TokenTable;

/// The domains until Cloister stops.
pub(super) struct CacheDomains {
    key: hmac::Key,
    /// How many principals have one: as many as workers have room for.
    count_max: u16,
}

impl CacheDomains {
    /// `None` when the system gives no random bytes.
    pub(super) fn new(count_max: u16, random: &SystemRandom) -> Option<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, random).ok()?;
        Some(Self { key, count_max })
    }

    /// The domain of a principal.
    pub(super) fn find(&self, tokens: &TokenTable, principal: &str) -> Option<[u8; 16]> {
        let mut names = tokens.first_names(self.count_max.into());
        names.any(|name| name == principal).then(|| self.tag(principal))
    }

    /// The domains that principals had by the table `before` and have no more.
    pub(super) fn lost<'a>(
        &'a self,
        before: &'a TokenTable,
        now: &'a TokenTable,
    ) -> impl Iterator<Item = [u8; 16]> + 'a {
        let names = before.first_names(self.count_max.into());
        names.filter(|name| self.find(now, name).is_none()).map(|name| self.tag(name))
    }

    fn tag(&self, principal: &str) -> [u8; 16] {
        let tag = hmac::sign(&self.key, principal.as_bytes());
        let mut domain = [0; 16];
        domain.copy_from_slice(&tag.as_ref()[..16]);
        domain
    }
}
