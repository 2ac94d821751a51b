//! Every check that a model passes before it is served, each with what it found and what to do.
//!
//! The verdicts are those of the code that admits models; what is parsed again here is shown, no more.
//! A check that needs what another did not find is `unknown`.

use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::SystemTime;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::model_package::ModelPackage;
use crate::ipc::message::Digest;
use crate::package::age_header::Header;
use crate::package::bundle::{Bundle, Material};
use crate::package::certificate::CertificateFacts;
use crate::package::digest_lists::Revocable;
use crate::package::files::open_regular;
use crate::package::open::is_age;
use crate::package::quarantine::{self, NotedCheck};
use crate::package::signature::{Verified, claimed, verify};
use crate::package::statement::Statement;
use crate::package::trust::TrustStore;
use crate::package::{Error, hex};

/// What a GGUF file begins with.
const GGUF_MAGIC: &[u8; 4] = b"GGUF";

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CheckVerdict {
    Holds,
    /// The model is refused for it.
    Fails,
    /// Something is not there that the check needs.
    Missing,
    /// Another check stands before it.
    Unknown,
}

impl CheckVerdict {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Fails => "fails",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        }
    }
}

/// One check.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) verdict: CheckVerdict,
    /// What was found, in one sentence.
    pub(super) found: String,
    /// What to do about it.
    pub(super) fix: Option<&'static str>,
}

/// All checks of one model.
#[derive(Debug)]
pub(super) struct Checks {
    pub(super) list: Vec<Check>,
    /// The trust folder's keys and roots, a sentence each.
    pub(super) trusted: Vec<String>,
    /// The signer's certificates, a sentence each.
    pub(super) certificates: Vec<String>,
}

/// The steps of `signature::verify`, in its order.
const STEPS: [&str; 5] = ["signer", "revocation", "signature", "statement", "lists"];

impl Checks {
    /// Makes every check that can be made, at the time `now`.
    pub(super) fn make(package: &ModelPackage, now: SystemTime) -> Self {
        let mut checks = Self { list: Vec::new(), trusted: Vec::new(), certificates: Vec::new() };
        let is_readable = checks.file(&package.file);
        checks.quarantine(&package.file);
        let has_form = checks.form(&package.file, is_readable);
        let trust = package.trust_store();
        checks.trust(&trust, &package.trust);
        let bundle = package.bundle();
        let is_form = checks.bundle(bundle.as_ref().map(|bundle| bundle.as_slice()));
        let bundle = bundle.ok().filter(|_| is_form);
        let statement =
            checks.signature(bundle.as_deref().map(Vec::as_slice), trust.as_ref().ok(), now);
        let digest = checks.content(package, has_form);
        let claim = bundle.as_ref().and_then(|bundle| claimed(bundle).ok());
        checks.digest(digest, statement.as_ref(), claim.as_ref());
        checks.list_by_content(digest, trust.as_ref().ok());
        checks
    }

    /// The worst verdict: failed, then missing, then unknown.
    pub(super) fn verdict(&self) -> CheckVerdict {
        let has = |verdict| self.list.iter().any(|check| check.verdict == verdict);
        [CheckVerdict::Fails, CheckVerdict::Missing, CheckVerdict::Unknown]
            .into_iter()
            .find(|verdict| has(*verdict))
            .unwrap_or(CheckVerdict::Holds)
    }

    /// The first check that failed, as a sentence.
    pub(super) fn reason(&self) -> Option<String> {
        let failed = self.list.iter().find(|check| check.verdict == CheckVerdict::Fails)?;
        Some(format!("{}: {}", failed.name, failed.found))
    }

    pub(super) fn to_json(&self) -> Value {
        let check = |check: &Check| {
            json!({
                "check": check.name, "verdict": check.verdict.name(),
                "found": check.found, "fix": check.fix,
            })
        };
        json!({
            "checks": self.list.iter().map(check).collect::<Vec<_>>(),
            "trusted": self.trusted,
            "certificates": self.certificates,
        })
    }

    pub(super) fn noted(&self) -> Vec<NotedCheck> {
        let noted = |check: &Check| NotedCheck {
            check: check.name.to_owned(),
            verdict: check.verdict.name().to_owned(),
            found: check.found.clone(),
        };
        self.list.iter().map(noted).collect()
    }

    fn holds(&mut self, name: &'static str, found: String) {
        self.list.push(Check { name, verdict: CheckVerdict::Holds, found, fix: None });
    }

    fn unknown(&mut self, name: &'static str, found: &str) {
        let found = found.to_owned();
        self.list.push(Check { name, verdict: CheckVerdict::Unknown, found, fix: None });
    }

    fn fails(&mut self, name: &'static str, found: String, fix: &'static str) {
        self.list.push(Check { name, verdict: CheckVerdict::Fails, found, fix: Some(fix) });
    }

    fn refused(&mut self, name: &'static str, error: &Error) {
        let verdict = if error.is_refusal() { CheckVerdict::Fails } else { CheckVerdict::Missing };
        self.list.push(Check { name, verdict, found: error.to_string(), fix: error.fix() });
    }

    /// A regular file that can be read.
    fn file(&mut self, path: &Path) -> bool {
        let facts = open_regular(path).and_then(|file| {
            let source = |source| Error::Io { action: "look at", path: path.to_owned(), source };
            file.metadata().map_err(source)
        });
        match facts {
            Ok(facts) => {
                let (len, mode, uid) = (facts.len(), facts.mode() & 0o7777, facts.uid());
                self.holds("file", format!("{len} bytes, owner {uid}, mode {mode:03o}"));
                true
            }
            Err(error) => {
                self.refused("file", &error);
                false
            }
        }
    }

    fn quarantine(&mut self, path: &Path) {
        match quarantine::check(path) {
            Ok(()) => self.holds("quarantine", "no note beside it".to_owned()),
            Err(error) => self.refused("quarantine", &error),
        }
    }

    /// age or GGUF, as its name says.
    fn form(&mut self, path: &Path, is_readable: bool) -> bool {
        const NAME: &str = "form";
        if !is_readable {
            self.unknown(NAME, "the file cannot be read");
            return false;
        }
        const RENAME: &str = "name a sealed model .gguf.age and a plain one .gguf";
        let is_named_age = path.extension().is_some_and(|extension| extension == "age");
        let form = open_regular(path).and_then(|file| Ok((is_age(&file)?, file)));
        let (is_age, file) = match form {
            Ok(form) => form,
            Err(error) => {
                self.refused(NAME, &error);
                return false;
            }
        };
        match (is_age, is_named_age) {
            (true, true) => return self.age_header(file),
            (true, false) => {
                self.fails(NAME, "an age file whose name does not end in .age".to_owned(), RENAME);
            }
            (false, true) => match Header::read(&mut BufReader::new(file)) {
                Err(error) => self.refused(NAME, &error),
                Ok(_) => self.unknown(NAME, "the file changed while it was looked at"),
            },
            (false, false) => {
                let mut magic = [0; 4];
                let is_read = file.read_exact_at(&mut magic, 0).is_ok();
                if is_read && magic == *GGUF_MAGIC {
                    self.holds(NAME, "not sealed; begins as GGUF does".to_owned());
                    return true;
                }
                let fix = "fetch the model again: a model is a GGUF file, plain or sealed with age";
                self.fails(NAME, "neither an age file nor GGUF".to_owned(), fix);
            }
        }
        false
    }

    fn age_header(&mut self, file: File) -> bool {
        match Header::read(&mut BufReader::new(file)) {
            Ok(header) => {
                let (ours, others) = (header.x25519.len(), header.other_count);
                let found =
                    format!("an age file for {ours} X25519 recipients and {others} of other kinds");
                self.holds("form", found);
                true
            }
            Err(error) => {
                self.refused("form", &error);
                false
            }
        }
    }

    fn trust(&mut self, trust: &Result<TrustStore, Error>, folder: &Path) {
        let trust = match trust {
            Ok(trust) => trust,
            Err(error) => return self.refused("trust", error),
        };
        let keys = trust
            .labels()
            .filter_map(|(label, hint)| hint.map(|hint| format!("key {label}: {hint}")));
        self.trusted.extend(keys);
        for (label, der) in trust.root_certificates() {
            let facts = CertificateFacts::read(der);
            self.trusted.push(format!("root {label}: {}", certificate(facts.as_ref())));
        }
        let lists = trust.lists();
        let allowed = lists
            .allowed_count()
            .map_or("any signed model".to_owned(), |count| format!("{count} allowed models"));
        let (keys, revoked) = (self.trusted.len(), lists.revoked_count());
        let found = format!(
            "{}: {keys} keys and roots, {allowed}, {revoked} revocations",
            folder.display()
        );
        self.holds("trust", found);
    }

    fn bundle(&mut self, bundle: Result<&[u8], &Error>) -> bool {
        let parsed = match bundle {
            Ok(bundle) => Bundle::parse(bundle),
            Err(error) => {
                self.refused("bundle", error);
                return false;
            }
        };
        match parsed {
            Ok(Bundle { material: Material::KeyHint(hint), .. }) => {
                let hint: String = hint.chars().take(64).flat_map(char::escape_debug).collect();
                self.holds("bundle", format!("a signature by the key {hint}"));
                true
            }
            Ok(Bundle { material: Material::Chain(ders), .. }) => {
                let facts =
                    ders.iter().map(|der| certificate(CertificateFacts::read(der).as_ref()));
                self.certificates.extend(facts);
                let count = ders.len();
                self.holds("bundle", format!("a signature with {count} certificates"));
                true
            }
            Err(error) => {
                self.refused("bundle", &error);
                false
            }
        }
    }

    /// The five steps of `verify`; returns what is stated when all hold.
    fn signature(
        &mut self,
        bundle: Option<&[u8]>,
        trust: Option<&TrustStore>,
        now: SystemTime,
    ) -> Option<Verified<Statement>> {
        let (Some(bundle), Some(trust)) = (bundle, trust) else {
            for step in STEPS {
                self.unknown(step, "there is no signature of the right form, or no trust folder");
            }
            return None;
        };
        let verdict = verify(bundle, trust, None, now);
        let failed = verdict.as_ref().err().map_or(STEPS.len(), failed_step);
        let claim = claimed(bundle).ok();
        for (index, step) in STEPS.into_iter().enumerate() {
            match &verdict {
                Err(error) if index == failed => self.refused(step, error),
                _ if index > failed => self.unknown(step, "a check before it fails"),
                Ok(statement) => self.holds(step, told(step, statement)),
                Err(_) => self
                    .holds(step, claim.as_ref().map_or(String::new(), |claim| told(step, claim))),
            }
        }
        verdict.ok()
    }

    /// The identity and the decryption; returns the digest of the plaintext.
    fn content(&mut self, package: &ModelPackage, has_form: bool) -> Option<Digest> {
        if !has_form {
            self.unknown("identity", "the file has not the right form");
            self.unknown("content", "the file has not the right form");
            return None;
        }
        let opened = package.hash();
        let is_key = matches!(
            &opened,
            Err(Error::NoMatchingIdentity { .. }
                | Error::HeaderMac
                | Error::IdentityMissing
                | Error::Key { .. }
                | Error::KeyExposed { .. }
                | Error::NotX25519 { .. })
        );
        match &opened {
            Err(error) if is_key => {
                self.refused("identity", error);
                self.unknown("content", "it cannot be decrypted without its key");
            }
            _ => {
                let name = package.identity.as_ref().filter(|_| {
                    package.file.extension().is_some_and(|extension| extension == "age")
                });
                let found = name
                    .map_or("not needed".to_owned(), |path| format!("{} opens it", path.display()));
                self.holds("identity", found);
                match &opened {
                    Ok((_, len_bytes)) => {
                        self.holds("content", format!("{len_bytes} bytes, whole"))
                    }
                    Err(error) => self.refused("content", error),
                }
            }
        }
        opened.ok().map(|(digest, _)| digest)
    }

    /// The bytes are those that were signed.
    fn digest(
        &mut self,
        digest: Option<Digest>,
        statement: Option<&Verified<Statement>>,
        claim: Option<&Statement>,
    ) {
        const NAME: &str = "digest";
        let Some(digest) = digest else {
            return self.unknown(NAME, "the content could not be read");
        };
        let sha256 = hex(&digest.0);
        match (statement, claim) {
            (Some(statement), _) => match statement.check(&digest) {
                Ok(()) => self.holds(NAME, format!("SHA-256 {sha256}, as signed")),
                Err(error) => {
                    let signed = hex(&statement.digest.0);
                    let found = format!("{error}: SHA-256 {sha256}, signed {signed}");
                    self.fails(NAME, found, error.fix().unwrap_or_default());
                }
            },
            (None, Some(claim)) if claim.digest == digest => self.unknown(
                NAME,
                &format!("SHA-256 {sha256}, as the signature claims, which does not hold"),
            ),
            (None, Some(claim)) => {
                let claimed = hex(&claim.digest.0);
                let error = Error::DigestMismatch;
                let found = format!("SHA-256 {sha256}, while the signature claims {claimed}");
                self.fails(NAME, found, error.fix().unwrap_or_default());
            }
            (None, None) => {
                self.unknown(NAME, &format!("SHA-256 {sha256}; nothing to hold it against"))
            }
        }
    }

    /// The lists can be looked up without a signature too.
    fn list_by_content(&mut self, digest: Option<Digest>, trust: Option<&TrustStore>) {
        let lists = self.list.iter_mut().find(|check| check.name == "lists");
        let (Some(lists), Some(digest), Some(trust)) = (lists, digest, trust) else { return };
        if lists.verdict != CheckVerdict::Unknown {
            return;
        }
        if let Err(error) = trust.lists().check_model(&digest) {
            lists.verdict = CheckVerdict::Fails;
            lists.found = error.to_string();
            lists.fix = error.fix();
        }
    }
}

/// Which of [`STEPS`] an error of `verify` belongs to; the bundle's form was checked before.
fn failed_step(error: &Error) -> usize {
    match error {
        Error::UnknownKey | Error::Chain(_) => 0,
        Error::CurveUnsupported { curve } if *curve != "P-521" => 0,
        Error::Revoked { what: Revocable::Key | Revocable::Certificate, .. } => 1,
        Error::Signature | Error::CurveUnsupported { .. } => 2,
        Error::Revoked { what: Revocable::Model, .. } | Error::NotAllowed { .. } => 4,
        _ => 3,
    }
}

/// What a step found that holds.
fn told(step: &str, statement: &Statement) -> String {
    let signer = match statement.signer.as_str() {
        "" => "trusted".to_owned(),
        label => {
            format!("{} {label}", if statement.has_chain { "a certificate of" } else { "key" })
        }
    };
    match step {
        "signer" => signer,
        "revocation" => "the signer is not revoked".to_owned(),
        "signature" => "verifies".to_owned(),
        "statement" => format!(
            "one file, signed as {}, SHA-256 {}",
            statement.subject.escape_debug(),
            hex(&statement.digest.0)
        ),
        _ => "the model is not revoked, and allowed".to_owned(),
    }
}

fn certificate(facts: Option<&CertificateFacts>) -> String {
    let Some(facts) = facts else { return "does not parse".to_owned() };
    format!(
        "{}, issued by {}, from {} to {}, SHA-256 {}",
        facts.subject,
        facts.issuer,
        day(facts.not_before_s),
        day(facts.not_after_s),
        facts.sha256,
    )
}

/// A date in UTC, as `2026-11-28 09:00`.
fn day(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds).map_or("an impossible date".to_owned(), |time| {
        format!("{} {:02}:{:02}", time.date(), time.hour(), time.minute())
    })
}
