//! Files that are taken anew while everything runs: the token table, the TLS certificate and its key, the lists
//! of allowed and revoked digests.
//!
//! They come as descriptors from root's command line, since the supervisor may no longer open them,
//! and pass the same checks as at the start. A file that is refused changes nothing. A model that the lists
//! forbid is served no more; one that they allow again takes a restart.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::{fmt, io};

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::control::{List, Question};
use super::material::{KEY_LEN_MAX_BYTES, owner_uid};
use super::secret_file;
use super::serve::{Supervisor, now};
use super::tls::{self, ECDSA_P256_SHA256, TlsKey};
use super::tokens::{self, TokenTable};
use crate::audit::Event;
use crate::audit::record::{CertificateFacts, ReloadFacts, ReloadOutcome};
use crate::ipc::message::ToGateway;
use crate::package::digest_lists::DigestLists;
use crate::package::files::Ownership;

/// Why nothing is taken.
#[derive(Debug)]
enum Refusal {
    /// A descriptor is missing, or the configuration has no TLS.
    Files,
    Tokens(tokens::Error),
    Key(secret_file::Error),
    Certificate(io::Error),
    Tls(tls::Error),
    Lists(crate::package::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files => write!(f, "the files do not fit what was started; restart instead"),
            Self::Tokens(error) => write!(f, "token table: {error}"),
            Self::Key(error) => write!(f, "keys.tls: {error}"),
            Self::Certificate(error) => write!(f, "server.certificate: {error}"),
            Self::Tls(error) => write!(f, "server.certificate: {error}"),
            Self::Lists(error) => write!(f, "{error}"),
        }
    }
}

impl Supervisor {
    /// Takes the files that came with the question.
    pub(super) fn reload(
        &mut self,
        question: &mut Question,
        certificate: bool,
        lists: Option<&[List]>,
    ) -> Value {
        self.tell_reload(true);
        let taken = self.sort(&mut question.descriptors, certificate, lists);
        let taken = taken.map(|files| self.take(files));
        self.tell_reload(false);
        let check = taken.as_ref().err().map(ToString::to_string);
        self.record_reload(Some(question.uid), check);
        match taken {
            Ok(lists) => {
                let mut answer = json!({ "ok": true });
                if lists {
                    answer["lists"] = self.intake.lists_json();
                    answer["withdrawn"] = self.withdraw_forbidden();
                }
                answer
            }
            Err(refusal) => json!({ "ok": false, "error": refusal.to_string() }),
        }
    }

    /// Reads what came, in the order of the command.
    fn sort(
        &self,
        descriptors: &mut VecDeque<OwnedFd>,
        certificate: bool,
        lists: Option<&[List]>,
    ) -> Result<Files, Refusal> {
        let owner = owner_uid(self.config.profile);
        let mut next = || descriptors.pop_front().ok_or(Refusal::Files);
        let table = secret_file::adopt(next()?, owner)
            .map_err(tokens::Error::Guard)
            .and_then(TokenTable::read_open)
            .map_err(Refusal::Tokens)?;
        let tls = match certificate {
            true => Some(read_tls(next()?, next()?, owner)?),
            false => None,
        };
        let lists = match lists {
            Some(names) => {
                let files: Result<Vec<_>, _> =
                    names.iter().map(|list| Ok((list.file(), File::from(next()?)))).collect();
                Some(self.read_lists(&files?)?)
            }
            None => None,
        };
        let is_more = !descriptors.is_empty();
        let fits = (lists.is_none() || self.intake.has_lists())
            && (tls.is_none() || !self.certificates.is_empty());
        if is_more || !fits {
            return Err(Refusal::Files);
        }
        Ok(Files { table: Some(table), tls, lists })
    }

    fn read_lists(&self, files: &[(&str, File)]) -> Result<DigestLists, Refusal> {
        let ownership = Ownership::of(&[owner_uid(self.config.profile)]);
        let folder = &self.config.keys.trust_folder;
        DigestLists::read_open(files, folder, &ownership).map_err(Refusal::Lists)
    }

    /// Withdraws the models that the lists forbid now; returns them, each with the reason.
    fn withdraw_forbidden(&mut self) -> Value {
        let served = self.models.iter().enumerate().filter(|(_, model)| model.withdrawn.is_none());
        let checked = served.filter_map(|(at, model)| {
            let bundle = model.bundle.as_ref().map(|bundle| bundle.as_slice());
            self.intake.check_again(bundle, &model.digest).err().map(|error| (at, error))
        });
        let forbidden: Vec<_> = checked.map(|(at, error)| (at, error.to_string())).collect();
        let mut withdrawn = Vec::new();
        for (at, why) in forbidden {
            let model = self.models[at].facts.model.clone();
            super::say(&format!("model {model} is withdrawn: {why}"));
            withdrawn.push(json!({ "model": model, "why": why }));
            self.withdraw(at, why);
        }
        withdrawn.into()
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

    /// Takes what was read; returns whether there were lists.
    fn take(&mut self, files: Files) -> bool {
        if let Some(table) = files.table {
            self.dispatch.set_tokens(table, &mut self.ledger, now());
            super::say("token table reloaded");
        }
        if let Some((key, chain)) = files.tls {
            self.set_certificate(key, chain);
        }
        let Some(lists) = files.lists else { return false };
        self.intake.set_lists(lists);
        super::say("lists of digests reloaded");
        true
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

    /// Reads the token table and the lists by their names, each as far as the supervisor's own user may. One
    /// record says that something was taken, one that something was not.
    pub(super) fn reload_from_file(&mut self) {
        self.tell_reload(true);
        let owner = owner_uid(self.config.profile);
        let table = TokenTable::read(&self.config.tokens_file, owner).map_err(Refusal::Tokens);
        let lists = self.intake.has_lists().then(|| self.read_lists_by_name()).transpose();
        let mut refused = Vec::new();
        let mut files = Files::default();
        match table {
            Ok(table) => files.table = Some(table),
            Err(refusal) => refused.push(refusal.to_string()),
        }
        match lists {
            Ok(lists) => files.lists = lists,
            Err(refusal) => refused.push(refusal.to_string()),
        }
        if !refused.is_empty() {
            let refused = refused.join("; ");
            super::say(&format!("not reloaded: {refused}; as root, use: cloister reload"));
            self.record_reload(None, Some(refused));
        }
        if files.table.is_some() || files.lists.is_some() {
            let has_lists = self.take(files);
            self.record_reload(None, None);
            if has_lists {
                self.withdraw_forbidden();
            }
        }
        self.tell_reload(false);
    }

    fn read_lists_by_name(&self) -> Result<DigestLists, Refusal> {
        let files = DigestLists::open_files(&self.config.keys.trust_folder);
        self.read_lists(&files.map_err(Refusal::Lists)?)
    }
}

/// What was read and passed its checks.
#[derive(Default)]
struct Files {
    table: Option<TokenTable>,
    tls: Option<(TlsKey, Vec<Vec<u8>>)>,
    lists: Option<DigestLists>,
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
