//! What changes while requests run: the token table, the TLS key.

use super::{Dispatch, Effect, Ledger, Now, Phase, Request, TlsKey, TokenTable};
use crate::audit::Event;
use crate::audit::principal_keys::hex;
use crate::audit::record::{MissingCause, TokensFacts};
use crate::ipc::message::{ToWorkerControl, WorkerIndex};

impl Dispatch {
    /// Takes a fresh token table; ends the requests of keys that are no longer valid.
    ///
    /// What workers keep of principals who have lost their cache domain is forgotten.
    pub(in crate::supervisor) fn set_tokens(
        &mut self,
        tokens: TokenTable,
        ledger: &mut Ledger,
        now: Now,
    ) {
        let before = std::mem::replace(&mut self.tokens, tokens);
        self.record_tokens(Some(&before), ledger, now);
        let tokens = self.tokens.clone();
        let has_lost = |one: &Request| !tokens.is_valid_name(&one.principal.name, now.wall_s);
        self.cut(has_lost, MissingCause::Revoked, ledger, now);
        // After the revocations, so that what they end is forgotten too.
        let lost: Vec<_> = self.cache_domains.lost(&before, &self.tokens).collect();
        lost.into_iter().for_each(|cache_domain| self.forget(cache_domain));
    }

    /// Ends the requests of a principal whose key is gone, and has workers forget what they keep of it.
    pub(in crate::supervisor) fn end_principal(
        &mut self,
        name: &str,
        ledger: &mut Ledger,
        now: Now,
    ) {
        let is_its = |one: &Request| one.principal.name == name;
        self.cut(is_its, MissingCause::KeyUnavailable, ledger, now);
        if let Some(cache_domain) = self.cache_domains.find(&self.tokens, name) {
            self.forget(cache_domain);
        }
    }

    fn forget(&mut self, cache_domain: [u8; 16]) {
        let serving = (0..).map(WorkerIndex).zip(&self.workers);
        let serving = serving.filter(|(_, worker)| worker.place.phase == Phase::Serving);
        let forget = || ToWorkerControl::Forget { cache_domain };
        let effect = |(index, _)| Effect::Worker(index, forget());
        self.effects.extend(serving.map(effect));
    }

    /// Takes a fresh TLS key.
    pub(in crate::supervisor) fn set_tls(&mut self, key: TlsKey) {
        self.tls = Some(key);
    }

    /// Records which tokens count, and which table they were read after.
    pub(in crate::supervisor) fn record_tokens(
        &self,
        before: Option<&TokenTable>,
        ledger: &mut Ledger,
        now: Now,
    ) {
        let digest = |table: &TokenTable| hex(&table.digest().0);
        ledger.append(Event::TokensLoaded {
            observed: TokensFacts {
                digest: digest(&self.tokens),
                before: before.map(digest),
                count: self.tokens.valid_count(now.wall_s) as u64,
            },
        });
    }
}
