//! Whether a model may be opened: its signature, the lists of the trust folder, admissions that stand.
//!
//! What came from a model's author is parsed here, after the powers went. The clock is the system's.

use std::path::Path;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::ipc::message::Digest;
use crate::package::Error;
use crate::package::admission::{Admissions, Admitted};
use crate::package::digest_lists::DigestLists;
use crate::package::trust::TrustStore;

/// The operator's rules for models.
pub(super) struct Intake {
    trust: Option<TrustStore>,
    admissions: Admissions,
}

impl Intake {
    /// Uses a trust folder, if there is one, and the folder of admissions.
    pub(super) fn new(trust: Option<TrustStore>, admissions: &Path) -> Self {
        Self { trust, admissions: Admissions::new(admissions) }
    }

    /// Verifies a model's bundle; nothing for a model that is served unsigned.
    pub(super) fn verify(&self, bundle: Option<&[u8]>) -> Result<Option<Admitted>, Error> {
        match (bundle, &self.trust) {
            (None, _) => Ok(None),
            (Some(_), None) => Err(Error::UnknownKey),
            (Some(bundle), Some(trust)) => {
                self.admissions.verify(bundle, trust, SystemTime::now()).map(Some)
            }
        }
    }

    /// Checks the digest of a model that nobody signed against the same lists.
    pub(super) fn check(&self, model: &Digest) -> Result<(), Error> {
        self.trust.as_ref().map_or(Ok(()), |trust| trust.lists().check_model(model))
    }

    /// Whether there is a trust folder, and with it lists.
    pub(super) fn has_lists(&self) -> bool {
        self.trust.is_some()
    }

    /// What the lists hold, in numbers.
    pub(super) fn lists_json(&self) -> Value {
        let lists = self.trust.as_ref().map(TrustStore::lists);
        json!({
            "allowed": lists.and_then(DigestLists::allowed_count),
            "revoked": lists.map_or(0, DigestLists::revoked_count),
        })
    }

    /// Takes other lists.
    pub(super) fn set_lists(&mut self, lists: DigestLists) {
        if let Some(trust) = &mut self.trust {
            trust.set_lists(lists);
        }
    }

    /// Checks a model that is served as a start would now.
    pub(super) fn check_again(&self, bundle: Option<&[u8]>, model: &Digest) -> Result<(), Error> {
        self.verify(bundle)?;
        self.check(model)
    }

    /// Keeps the admission of a model that was opened.
    pub(super) fn keep(&self, admitted: &Admitted) -> Result<(), Error> {
        self.admissions.keep(admitted, SystemTime::now())
    }
}
