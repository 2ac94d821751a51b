//! The signed statement: which file a signature is about.
//!
//! An in-toto statement whose predicate lists files with their digests. A model is one file, so
//! exactly one resource is taken, named `.` (as the reference tool writes it) or like the subject
//! (as the specification says). Members that this version does not know are ignored, as in-toto
//! asks; a member that stands twice is refused.

use ring::digest::{SHA256, digest};

use super::error::{FIELD_HASH_TYPE, FIELD_METHOD, FIELD_SYMLINKS};
use super::json::{self, Json, Object};
use super::{Error, Fault, hex, unhex};
use crate::ipc::message::Digest;

const PART: &str = "signed payload";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
const METHOD: &str = "files";
const HASH_TYPE: &str = "sha256";
/// What the reference tool leaves out of a folder; written for it, without meaning for one file.
const IGNORE_PATHS: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];
const SUBJECT: &str = "subject";
const SUBJECT_NAME: &str = "subject[0].name";
const SUBJECT_DIGEST: &str = "subject[0].digest";
const SUBJECT_SHA256: &str = "subject[0].digest.sha256";
const PREDICATE: &str = "predicate";
const SERIALIZATION: &str = "predicate.serialization";
const RESOURCES: &str = "predicate.resources";
const RESOURCE_NAME: &str = "predicate.resources[0].name";
const RESOURCE_ALGORITHM: &str = "predicate.resources[0].algorithm";
const RESOURCE_DIGEST: &str = "predicate.resources[0].digest";

/// What a signature says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Statement {
    /// The name that the file had when it was signed. Not more than a name: it may be renamed.
    pub subject: String,
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Who signed: the label of the key or root in the trust folder.
    pub signer: String,
    /// Whether a certificate chain says so, which holds for a time only.
    pub has_chain: bool,
}

impl Statement {
    /// Holds the digest of the bytes that were read against the signed one.
    ///
    /// # Errors
    ///
    /// [`Error::DigestMismatch`].
    pub fn check(&self, observed: &Digest) -> Result<(), Error> {
        if self.digest == *observed { Ok(()) } else { Err(Error::DigestMismatch) }
    }
}

/// Parses a payload whose signature has been verified; `signer` is who signed, and whether by a chain.
pub(super) fn parse(
    payload: &[u8],
    (signer, has_chain): (String, bool),
) -> Result<Statement, Error> {
    let mut statement = json::parse(PART, payload)?.object("payload")?;
    statement.expect_text("_type", "_type", STATEMENT_TYPE)?;
    statement.expect_text("predicateType", "predicateType", PREDICATE_TYPE)?;
    let subject = statement.take(SUBJECT, SUBJECT)?.only(SUBJECT)?.object(SUBJECT)?;
    let predicate = statement.take(PREDICATE, PREDICATE)?.object(PREDICATE)?;
    let (subject, root) = parse_subject(subject)?;
    let (name, digest) = parse_predicate(predicate)?;
    if name.starts_with('/') || name.split(['/', '\\']).any(|part| part == "..") {
        return Err(Error::UnsafeName);
    }
    let basename = subject.rsplit('/').next().unwrap_or_default();
    if name != "." && name != basename {
        return Err(Error::ResourceName);
    }
    if root_digest(&digest) != root {
        return Err(Error::RootDigest);
    }
    Ok(Statement { subject, digest, signer, has_chain })
}

/// Writes the payload that states `digest` of a file called `name`.
pub(super) fn write(name: &str, digest: &Digest) -> Vec<u8> {
    let payload = serde_json::json!({
        "_type": STATEMENT_TYPE,
        "subject": [{ "name": name, "digest": { "sha256": hex(&root_digest(digest).0) } }],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": METHOD,
                "hash_type": HASH_TYPE,
                "allow_symlinks": false,
                "ignore_paths": IGNORE_PATHS,
            },
            "resources": [{ "name": ".", "algorithm": HASH_TYPE, "digest": hex(&digest.0) }],
        },
    });
    format!("{payload:#}").into_bytes()
}

/// `root = SHA-256(resource digest, ...)`, of which there is one.
fn root_digest(resource: &Digest) -> Digest {
    let root = digest(&SHA256, &resource.0);
    Digest(root.as_ref().try_into().expect("SHA-256 is 32 bytes"))
}

/// Returns name and root digest.
fn parse_subject(mut subject: Object) -> Result<(String, Digest), Error> {
    let name = subject.take_text("name", SUBJECT_NAME)?;
    let mut digest = subject.take("digest", SUBJECT_DIGEST)?.object(SUBJECT_DIGEST)?;
    let root = parse_digest(&digest.take_text("sha256", SUBJECT_SHA256)?, SUBJECT_SHA256)?;
    Ok((name, root))
}

/// Returns the resource's name and digest.
fn parse_predicate(mut predicate: Object) -> Result<(String, Digest), Error> {
    let serialization = predicate.take("serialization", SERIALIZATION)?;
    let mut serialization = serialization.object(SERIALIZATION)?;
    serialization.expect_text("method", FIELD_METHOD, METHOD)?;
    serialization.expect_text("hash_type", FIELD_HASH_TYPE, HASH_TYPE)?;
    match serialization.take_optional("allow_symlinks") {
        None | Some(Json::Bool(false)) => {}
        Some(_) => return Err(Error::Field { field: FIELD_SYMLINKS, fault: Fault::Unsupported }),
    }
    let mut resources = predicate.take("resources", RESOURCES)?.list(RESOURCES)?;
    let count = resources.len();
    let (Some(resource), 1) = (resources.pop(), count) else {
        return Err(Error::ResourceCount { count });
    };
    let mut resource = resource.object(RESOURCES)?;
    let name = resource.take_text("name", RESOURCE_NAME)?;
    resource.expect_text("algorithm", RESOURCE_ALGORITHM, HASH_TYPE)?;
    let digest = parse_digest(&resource.take_text("digest", RESOURCE_DIGEST)?, RESOURCE_DIGEST)?;
    Ok((name, digest))
}

fn parse_digest(text: &str, field: &'static str) -> Result<Digest, Error> {
    let bytes = unhex(text.as_bytes()).ok_or(Error::Field { field, fault: Fault::NotHex })?;
    Ok(Digest(bytes))
}
