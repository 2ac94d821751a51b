//! Files that are taken anew while everything runs: the token table, the TLS certificate and its key.
//!
//! They come as descriptors from root's command line, since the supervisor may no longer open them,
//! and pass the same checks as at the start. A file that is refused changes nothing.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::{fmt, io};

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::control::Question;
use super::material::{KEY_LEN_MAX_BYTES, owner_uid};
use super::secret_file;
use super::serve::{Supervisor, now};
use super::tls::{self, ECDSA_P256_SHA256, TlsKey};
use super::tokens::{self, TokenTable};
use crate::audit::Event;
use crate::audit::record::{CertificateFacts, ReloadFacts, ReloadOutcome};
use crate::ipc::message::ToGateway;

/// Why nothing is taken.
#[derive(Debug)]
enum Refusal {
    /// A descriptor is missing, or the configuration has no TLS.
    Files,
    Tokens(tokens::Error),
    Key(secret_file::Error),
    Certificate(io::Error),
    Tls(tls::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files => write!(f, "the files do not fit what was started; restart instead"),
            Self::Tokens(error) => write!(f, "token table: {error}"),
            Self::Key(error) => write!(f, "keys.tls: {error}"),
            Self::Certificate(error) => write!(f, "server.certificate: {error}"),
            Self::Tls(error) => write!(f, "server.certificate: {error}"),
        }
    }
}

impl Supervisor {
    /// Takes the files that came with the question.
    pub(super) fn reload(&mut self, question: &mut Question, certificate: bool) -> Value {
        self.tell_reload(true);
        let mut next = || question.descriptors.pop_front();
        let taken = match (next(), next(), next()) {
            (Some(table), None, None) if !certificate => self.take(table, None),
            (Some(table), Some(chain), Some(key)) if certificate => {
                self.take(table, Some((chain, key)))
            }
            _ => Err(Refusal::Files),
        };
        self.tell_reload(false);
        let check = taken.err().map(|refusal| refusal.to_string());
        self.record_reload(Some(question.uid), check.clone());
        match check {
            None => json!({ "ok": true }),
            Some(check) => json!({ "ok": false, "error": check }),
        }
    }

    fn record_reload(&mut self, uid: Option<u32>, check: Option<String>) {
        let outcome = match check {
            None => ReloadOutcome::Taken,
            Some(_) => ReloadOutcome::Refused,
        };
        self.ledger.append(Event::Reloaded { observed: ReloadFacts { outcome, uid, check } });
    }

    /// Tells the service manager that a reload begins or has ended; one that comes before all parts serve
    /// must not be taken for their readiness.
    fn tell_reload(&self, begins: bool) {
        match (self.is_announced, begins) {
            (false, _) => {}
            (true, true) => self.manager.reloading(),
            (true, false) => self.manager.ready(&self.summary()),
        }
    }

    fn take(&mut self, table: OwnedFd, tls: Option<(OwnedFd, OwnedFd)>) -> Result<(), Refusal> {
        let owner = owner_uid(self.config.profile);
        let table = secret_file::adopt(table, owner)
            .map_err(tokens::Error::Guard)
            .and_then(TokenTable::read_open)
            .map_err(Refusal::Tokens)?;
        let tls = match tls {
            Some((chain, key)) => Some(read_tls(chain, key, owner)?),
            None => None,
        };
        if tls.is_some() && self.certificates.is_empty() {
            return Err(Refusal::Files);
        }
        self.dispatch.set_tokens(table, &mut self.ledger, now());
        super::say("token table reloaded");
        if let Some((key, chain)) = tls {
            self.set_certificate(key, chain);
        }
        Ok(())
    }

    /// From now on handshakes show this chain. A handshake that has begun may fail once.
    fn set_certificate(&mut self, key: TlsKey, chain: Vec<Vec<u8>>) {
        if chain == self.certificates {
            return;
        }
        let before = Some(leaf_digest(&self.certificates));
        let observed = CertificateFacts { digest: leaf_digest(&chain), before };
        self.ledger.append(Event::CertificateLoaded { observed });
        self.dispatch.set_tls(key);
        self.certificates.clone_from(&chain);
        let scheme = ECDSA_P256_SHA256;
        let message = ToGateway::Certificates { certificates: chain, tls_scheme: scheme };
        // A gateway that is gone is told at its next start; one that does not listen is killed.
        let _ = self.gateway.send(message, Vec::new(), &self.nursery);
        super::say("certificate reloaded");
    }

    /// Reads the token table by its name, as far as the supervisor's own user may.
    pub(super) fn reload_from_file(&mut self) {
        self.tell_reload(true);
        let owner = owner_uid(self.config.profile);
        let check = match TokenTable::read(&self.config.tokens_file, owner) {
            Ok(table) => {
                self.dispatch.set_tokens(table, &mut self.ledger, now());
                super::say("token table reloaded");
                None
            }
            Err(error) => {
                super::say(&format!(
                    "token table not reloaded: {error}; as root, use: cloister reload"
                ));
                Some(Refusal::Tokens(error).to_string())
            }
        };
        self.record_reload(None, check);
        self.tell_reload(false);
    }
}

/// SHA-256 of the first certificate of a chain, in hex.
fn leaf_digest(chain: &[Vec<u8>]) -> String {
    let leaf = chain.first().map(Vec::as_slice).unwrap_or_default();
    crate::audit::principal_keys::hex(digest(&SHA256, leaf).as_ref())
}

fn read_tls(chain: OwnedFd, key: OwnedFd, owner: u32) -> Result<(TlsKey, Vec<Vec<u8>>), Refusal> {
    let key = secret_file::adopt(key, owner).map_err(Refusal::Key)?;
    let key = key.read_to_end(KEY_LEN_MAX_BYTES).map_err(Refusal::Key)?;
    let (mut pem, chain) = (Vec::new(), File::from(chain));
    // A pipe in its place would hold everybody up.
    let is_file = chain.metadata().map_err(Refusal::Certificate)?.is_file();
    let limit = KEY_LEN_MAX_BYTES as u64;
    let read = is_file.then(|| chain.take(limit + 1).read_to_end(&mut pem));
    let len = read.ok_or(Refusal::Files)?.map_err(Refusal::Certificate)?;
    if len as u64 > limit {
        return Err(Refusal::Tls(tls::Error::TooLong));
    }
    TlsKey::read(&key, &pem).map_err(Refusal::Tls)
}
