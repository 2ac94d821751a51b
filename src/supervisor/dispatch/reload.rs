//! What changes while requests run: the token table, the TLS key.

use super::{Dispatch, Effect, Ledger, ModelIndex, Now, Phase, TlsKey, TokenTable, revoke};
use crate::audit::Event;
use crate::ipc::message::ToWorkerControl;

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
        self.record_tokens(ledger, now);
        let (tokens, grace) = (&self.tokens, self.end_grace());
        for (id, request) in &mut self.requests {
            if !request.is_stopping && !tokens.is_valid_name(&request.principal, now.wall_s) {
                revoke(*id, request, grace, now, &mut self.effects);
            }
        }
        // After the revocations, so that what they end is forgotten too.
        for cache_domain in self.cache_domains.lost(&before, &self.tokens) {
            let serving = (0_u16..).zip(&self.models);
            let serving = serving.filter(|(_, model)| model.worker.phase == Phase::Serving);
            let forget = || ToWorkerControl::Forget { cache_domain };
            let effect = |(index, _)| Effect::Worker(ModelIndex(index), forget());
            self.effects.extend(serving.map(effect));
        }
    }

    /// Takes a fresh TLS key.
    pub(in crate::supervisor) fn set_tls(&mut self, key: TlsKey) {
        self.tls = Some(key);
    }

    /// Records which tokens count.
    pub(in crate::supervisor) fn record_tokens(&self, ledger: &mut Ledger, now: Now) {
        ledger.append(Event::TokensLoaded {
            digest: crate::audit::principal_keys::hex(&self.tokens.digest().0),
            count: self.tokens.valid_count(now.wall_s) as u64,
        });
    }
}
