//! OpenSSF Model Signing v1: who vouches for which bytes.
//!
//! 1. Parse the bundle's form. Nothing in it is trusted.
//! 2. Find the signer in the trust folder: by key hint, or by certificate chain at the given time.
//! 3. Refuse a revoked key or certificate.
//! 4. Verify `ECDSA(PAE(payloadType, payload))` over the bytes received.
//! 5. Only then parse the payload: one file, SHA-256, the root digest recomputed.
//! 6. Hold the digest against the lists of the trust folder: not revoked, and allowed.
//!
//! The old pre-authentication encoding that the reference tool falls back to is not accepted.

use std::time::SystemTime;

use super::bundle::{Bundle, Material, PAYLOAD_TYPE};
use super::keys::SigningKey;
use super::statement::{self, Statement};
use super::trust::{PublicKey, TrustStore};
use super::{Error, chain};
use crate::ipc::message::Digest;

/// A value whose signature has been verified; only [`verify`] makes one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified<T>(T);

impl<T> std::ops::Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Verifies a bundle and returns what it states.
///
/// `name` is the file name that the statement must be about; `None` takes any, as the reference
/// tool does, which calls the name informational. `now` is what certificates are held against.
///
/// # Errors
///
/// One variant for each check that can fail.
pub fn verify(
    bundle: &[u8],
    trust: &TrustStore,
    name: Option<&str>,
    now: SystemTime,
) -> Result<Verified<Statement>, Error> {
    let bundle = Bundle::parse(bundle)?;
    let (signer, key) = signer(&bundle.material, trust, now)?;
    key.verify(&pre_authentication_encoding(&bundle.payload), &bundle.signature)?;
    let has_chain = matches!(bundle.material, Material::Chain(_));
    let statement = statement::parse(&bundle.payload, (signer, has_chain))?;
    trust.lists().check_model(&statement.digest)?;
    if name.is_some_and(|name| name != statement.subject) {
        return Err(Error::SubjectName);
    }
    Ok(Verified(statement))
}

/// Returns label and key of the signer, if trusted at `now` and not revoked.
fn signer(
    material: &Material,
    trust: &TrustStore,
    now: SystemTime,
) -> Result<(String, PublicKey), Error> {
    let lists = trust.lists();
    let (label, key) = match material {
        Material::KeyHint(hint) => {
            let (label, key) = trust.key(hint).ok_or(Error::UnknownKey)?;
            (label.to_owned(), key.clone())
        }
        Material::Chain(ders) => {
            let (root, key) = chain::verify(ders, trust.roots(), now)?;
            ders.iter().try_for_each(|der| lists.check_certificate(der))?;
            lists.check_certificate(&root.certificate)?;
            (root.label.clone(), key)
        }
    };
    lists.check_key(&key.to_pem())?;
    Ok((label, key))
}

/// Returns what a bundle claims, whoever signed it: for explanations, never for a decision.
///
/// # Errors
///
/// When bundle or payload have the wrong form.
pub fn claimed(bundle: &[u8]) -> Result<Statement, Error> {
    let bundle = Bundle::parse(bundle)?;
    statement::parse(
        &bundle.payload,
        (String::new(), matches!(bundle.material, Material::Chain(_))),
    )
}

/// Signs the digest of a file called `name`; returns the bundle's text.
///
/// # Errors
///
/// [`Error::Generate`] when the system has no randomness.
pub fn sign(key: &SigningKey, name: &str, digest: &Digest) -> Result<String, Error> {
    let payload = statement::write(name, digest);
    let signature = key.sign(&pre_authentication_encoding(&payload))?;
    let material = Material::KeyHint(key.public().hint().to_owned());
    Ok(Bundle { material, payload, signature }.to_json())
}

/// `PAE = "DSSEv1" SP len(type) SP type SP len(payload) SP payload`
fn pre_authentication_encoding(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len());
    [head.as_bytes(), payload].concat()
}
