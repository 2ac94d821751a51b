//! Whether a model may be opened: its signature, the lists of the trust folder, admissions that stand.
//!
//! What came from a model's author is parsed here, after the powers went. The clock is the system's.

use std::path::Path;
use std::time::SystemTime;

use crate::ipc::message::Digest;
use crate::package::Error;
use crate::package::admission::{Admissions, Admitted};
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

    /// Keeps the admission of a model that was opened.
    pub(super) fn keep(&self, admitted: &Admitted) -> Result<(), Error> {
        self.admissions.keep(admitted, SystemTime::now())
    }
}
