//! Signed notes and checkpoints: what an auditor compares, and other tools can open.
//!
//! A note is text, a blank line, and lines `— NAME BASE64(KEYID || SIGNATURE)`. A checkpoint
//! is a note of three lines: origin, size in decimal, root in base64.
//! Source: C2SP signed-note, tlog-checkpoint, tlog-cosignature.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pki_types::PrivatePkcs8KeyDer;
use pki_types::pem::PemObject as _;
use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use super::Error;
use super::merkle::Hash;
use super::rotation::Rotation;

/// Longest note that is read, in bytes; 16 signatures and three lines fit many times.
pub const NOTE_LEN_MAX_BYTES: usize = 64 << 10;
/// Ed25519 in the signed-note registry.
const ALGORITHM_ED25519: u8 = 0x01;
/// Cosignatures with a time, by Ed25519.
const ALGORITHM_COSIGNATURE: u8 = 0x04;

/// Signs checkpoints under one name.
pub struct Signer {
    name: String,
    key: Ed25519KeyPair,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.name)
    }
}

impl Signer {
    /// Reads an Ed25519 key in PKCS#8 PEM; `name` is the log's origin.
    ///
    /// # Errors
    ///
    /// [`Error::KeyMalformed`] for any other text, or a name that a note cannot hold.
    pub fn from_pem(name: &str, pem: &[u8]) -> Result<Self, Error> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| Error::KeyMalformed)?;
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
            .map_err(|_| Error::KeyMalformed)?;
        if !name_is_valid(name) {
            return Err(Error::KeyMalformed);
        }
        Ok(Self { name: name.to_owned(), key })
    }

    /// The verifier of what this signs.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        let mut public = [0; 32];
        public.copy_from_slice(self.key.public_key().as_ref());
        let keys = vec![Key { public, until: None }];
        Verifier { name: self.name.clone(), keys, changes: Vec::new() }
    }

    /// Signs `text`, which ends in a newline.
    #[must_use]
    pub fn sign(&self, text: &str) -> String {
        format!("{text}\n{}", self.line(text))
    }

    /// Signs the text of a note that another signed already.
    ///
    /// # Errors
    ///
    /// [`Error::NoteMalformed`].
    pub fn sign_too(&self, note: &str) -> Result<String, Error> {
        let (text, _) = split(note.as_bytes())?;
        Ok(format!("{note}{}", self.line(text)))
    }

    /// The line of signature under `text`.
    fn line(&self, text: &str) -> String {
        let mut public = [0; 32];
        public.copy_from_slice(self.key.public_key().as_ref());
        let mut signed = key_id(&self.name, ALGORITHM_ED25519, &public).to_vec();
        signed.extend_from_slice(self.key.sign(text.as_bytes()).as_ref());
        format!("\u{2014} {} {}\n", self.name, STANDARD.encode(signed))
    }
}

/// A key of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    public: [u8; 32],
    /// Records that it may sign for: up to the change of the key that both keys signed, if there was one.
    until: Option<u64>,
}

/// Verifies checkpoints of one name by its key, and older ones by the keys before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    /// The newest first.
    keys: Vec<Key>,
    /// The changes of the key that the log proves, oldest first.
    changes: Vec<Rotation>,
}

impl Verifier {
    /// Parses lines of `NAME+KEYID+BASE64`: the log's key, and below it those that it had before.
    ///
    /// # Errors
    ///
    /// [`Error::VerifierKeyMalformed`] for anything else, also when a key id is wrong or the names
    /// differ.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut lines = text.trim().lines();
        let (name, public) = parse_key(lines.next().unwrap_or_default(), ALGORITHM_ED25519)?;
        let mut keys = vec![Key { public, until: None }];
        for line in lines {
            let (other, public) = parse_key(line, ALGORITHM_ED25519)?;
            if other != name {
                return Err(Error::VerifierKeyMalformed);
            }
            keys.push(Key { public, until: None });
        }
        Ok(Self { name, keys, changes: Vec::new() })
    }

    /// This verifier, which takes the keys of `retired` for those before its own.
    ///
    /// # Errors
    ///
    /// [`Error::CheckpointOrigin`] when they are of another log.
    pub fn after(mut self, retired: &Self) -> Result<Self, Error> {
        if retired.name != self.name {
            return Err(Error::CheckpointOrigin);
        }
        let newest = self.keys[0].public;
        self.keys.extend(retired.keys.iter().filter(|key| key.public != newest));
        Ok(self)
    }

    /// This verifier with the keys that `changes`, oldest first, lead to from any key of its own, and
    /// with those before them. Each key may sign up to its change and no further.
    ///
    /// # Errors
    ///
    /// [`Error::RotationWrong`] unless each follows the one before it, and all lead to or from a key of
    /// this verifier.
    pub(super) fn through(mut self, changes: Vec<Rotation>) -> Result<Self, Error> {
        let Some(last) = changes.last() else { return Ok(self) };
        for (change, next) in changes.iter().zip(&changes[1..]) {
            if change.after.keys[0].public != next.before.keys[0].public
                || change.checkpoint.size >= next.checkpoint.size
            {
                return Err(next.wrong("it does not follow the change of the key before it"));
            }
        }
        let newest = last.after.keys[0];
        let chain: Vec<Key> = changes
            .iter()
            .rev()
            .map(|one| Key { public: one.before.keys[0].public, until: Some(one.checkpoint.size) })
            .collect();
        let mut publics: Vec<_> = chain.iter().chain([&newest]).map(|key| key.public).collect();
        publics.sort_unstable();
        publics.dedup();
        if publics.len() <= chain.len() {
            return Err(last.wrong("the changes lead back to a key that was replaced"));
        }
        let is_in_chain = |key: &Key| {
            key.public == newest.public || chain.iter().any(|one| one.public == key.public)
        };
        if !self.keys.iter().any(is_in_chain) || last.after.name != self.name {
            return Err(last.wrong("neither of its keys is the log's"));
        }
        // A key that is not of the chain was put behind its end by hand.
        let own: Vec<Key> = self.keys.iter().filter(|key| !is_in_chain(key)).copied().collect();
        let is_behind = !is_in_chain(&self.keys[0]);
        if is_behind && !self.keys.iter().any(|key| key.public == newest.public) {
            return Err(last.wrong("it leads to a key that is not the log's"));
        }
        let (first, others) = if is_behind { own.split_at(1) } else { (&own[..0], &own[..]) };
        self.keys = [first, &[newest], &chain, others].concat();
        self.changes = changes;
        Ok(self)
    }

    /// This verifier with what the changes of the key in the log in `folder` prove.
    ///
    /// # Errors
    ///
    /// [`Error::RotationWrong`] for a change that does not hold.
    pub fn follow(&self, folder: &Path) -> Result<Self, Error> {
        self.clone().through(super::rotation::read(folder)?)
    }

    /// The changes of the key that were followed, oldest first.
    #[must_use]
    pub fn changes(&self) -> &[Rotation] {
        &self.changes
    }

    /// The newest key alone, as [`Verifier::parse`] reads it.
    #[must_use]
    pub fn newest(&self) -> String {
        key_text(&self.name, ALGORITHM_ED25519, &self.keys[0].public)
    }

    /// Whether the newest key is that of `other`.
    #[must_use]
    pub fn is_newest_of(&self, other: &Self) -> bool {
        self.name == other.name && self.keys[0].public == other.keys[0].public
    }

    /// The text that [`Verifier::parse`] reads; for the auditor.
    #[must_use]
    pub fn to_text(&self) -> String {
        let lines =
            self.keys.iter().map(|key| key_text(&self.name, ALGORITHM_ED25519, &key.public));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The log's origin.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the text of a note that the newest key signed.
    ///
    /// # Errors
    ///
    /// A malformed note, none of our signature, or a wrong one.
    pub fn open<'n>(&self, note: &'n [u8]) -> Result<&'n str, Error> {
        Ok(self.open_by(&self.keys[..1], note)?.0)
    }

    /// Returns what a log's newest checkpoint says: one that the newest key signed, or the last that
    /// the key before it might.
    ///
    /// # Errors
    ///
    /// Those of [`Verifier::open`] and [`Checkpoint::parse`]; [`Error::CheckpointOrigin`];
    /// [`Error::KeyRetired`] and [`Error::Truncated`] for what the key before signed behind and before
    /// its change.
    pub fn checkpoint(&self, note: &[u8]) -> Result<Checkpoint, Error> {
        let (signed, key) = self.signed(note)?;
        let is_before_newest = self.keys.get(1) == Some(&key);
        match key.until {
            None if key == self.keys[0] => Ok(signed),
            Some(until) if is_before_newest && signed.size == until => Ok(signed),
            None => Err(Error::NoteUnsigned),
            Some(_) => {
                let changed = self.changes.last().map_or(0, |change| change.checkpoint.size);
                Err(Error::Truncated { signed: changed, found: signed.size })
            }
        }
    }

    /// Returns what a checkpoint says that was kept: one that the newest key or one before it signed.
    ///
    /// # Errors
    ///
    /// Those of [`Verifier::open`] and [`Checkpoint::parse`]; [`Error::CheckpointOrigin`];
    /// [`Error::KeyRetired`] for one that a key signed behind its change.
    pub fn kept(&self, note: &[u8]) -> Result<Checkpoint, Error> {
        Ok(self.signed(note)?.0)
    }

    /// A checkpoint, and the newest key that signed it.
    fn signed(&self, note: &[u8]) -> Result<(Checkpoint, Key), Error> {
        let (text, key) = self.open_by(&self.keys, note)?;
        let signed = Checkpoint::parse(text)?;
        if signed.origin != self.name {
            return Err(Error::CheckpointOrigin);
        }
        match key.until {
            Some(size) if signed.size > size => Err(Error::KeyRetired { size }),
            _ => Ok((signed, key)),
        }
    }

    /// The text of a note, and the first of `keys` that signed it.
    fn open_by<'n>(&self, keys: &[Key], note: &'n [u8]) -> Result<(&'n str, Key), Error> {
        let (text, signatures) = split(note)?;
        let mut by: Option<usize> = None;
        for signature in signatures {
            let at = keys.iter().position(|key| {
                signature.name == self.name
                    && signature.id == key_id(&self.name, ALGORITHM_ED25519, &key.public)
            });
            let Some(at) = at else { continue };
            UnparsedPublicKey::new(&ED25519, keys[at].public)
                .verify(text.as_bytes(), &signature.bytes)
                .map_err(|_| Error::NoteSignature)?;
            by = Some(by.map_or(at, |by| by.min(at)));
        }
        by.map(|at| (text, keys[at])).ok_or(Error::NoteUnsigned)
    }
}

/// Verifies the cosignatures of a witness: that it saw a checkpoint, and when. Source: C2SP
/// tlog-cosignature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    name: String,
    key: [u8; 32],
}

impl Witness {
    /// Parses `NAME+KEYID+BASE64` of a witness.
    ///
    /// # Errors
    ///
    /// [`Error::VerifierKeyMalformed`] for anything else.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (name, key) = parse_key(text.trim(), ALGORITHM_COSIGNATURE)?;
        Ok(Self { name, key })
    }

    /// The witness's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns when this witness saw the checkpoint, in seconds since 1970.
    ///
    /// # Errors
    ///
    /// A malformed note, none of its cosignature, or a wrong one.
    pub fn seen_s(&self, note: &[u8]) -> Result<u64, Error> {
        let (text, signatures) = split(note)?;
        let id = key_id(&self.name, ALGORITHM_COSIGNATURE, &self.key);
        let ours = signatures.iter().find(|one| one.name == self.name && one.id == id);
        let ours = ours.ok_or(Error::NoteUnsigned)?;
        let (time, signature) = ours.bytes.split_first_chunk::<8>().ok_or(Error::NoteSignature)?;
        let time_s = u64::from_be_bytes(*time);
        let signed = format!("cosignature/v1\ntime {time_s}\n{text}");
        UnparsedPublicKey::new(&ED25519, &self.key)
            .verify(signed.as_bytes(), signature)
            .map_err(|_| Error::NoteSignature)?;
        Ok(time_s)
    }
}

/// A line of signature.
struct Signature<'n> {
    name: &'n str,
    id: [u8; 4],
    bytes: Vec<u8>,
}

/// The size that a note names, whoever signed it; `None` for what is no checkpoint.
pub(super) fn named_size(note: &[u8]) -> Option<u64> {
    let (text, _) = split(note).ok()?;
    Checkpoint::parse(text).ok().map(|checkpoint| checkpoint.size)
}

/// Splits a note into its text and its signatures, which nobody has verified yet.
fn split(note: &[u8]) -> Result<(&str, Vec<Signature<'_>>), Error> {
    if note.len() > NOTE_LEN_MAX_BYTES {
        return Err(Error::NoteMalformed);
    }
    let note = std::str::from_utf8(note).map_err(|_| Error::NoteMalformed)?;
    if note.chars().any(|c| c.is_control() && c != '\n') {
        return Err(Error::NoteMalformed);
    }
    let at = note.rfind("\n\n").ok_or(Error::NoteMalformed)?;
    let (text, lines) = (&note[..=at], &note[at + 2..]);
    if !lines.ends_with('\n') {
        return Err(Error::NoteMalformed);
    }
    let mut signatures = Vec::new();
    for line in lines.lines() {
        let rest = line.strip_prefix("\u{2014} ").ok_or(Error::NoteMalformed)?;
        let (name, value) = rest.split_once(' ').ok_or(Error::NoteMalformed)?;
        let value = STANDARD.decode(value).map_err(|_| Error::NoteMalformed)?;
        let (id, bytes) = value.split_first_chunk::<4>().ok_or(Error::NoteMalformed)?;
        signatures.push(Signature { name, id: *id, bytes: bytes.to_vec() });
    }
    Ok((text, signatures))
}

fn parse_key(text: &str, want: u8) -> Result<(String, [u8; 32]), Error> {
    let malformed = || Error::VerifierKeyMalformed;
    let (name, rest) = text.trim().split_once('+').ok_or_else(malformed)?;
    let (id, key) = rest.split_once('+').ok_or_else(malformed)?;
    let key = STANDARD.decode(key).map_err(|_| malformed())?;
    let (&algorithm, key) = key.split_first().ok_or_else(malformed)?;
    let key = <[u8; 32]>::try_from(key).map_err(|_| malformed())?;
    let is_right = algorithm == want
        && name_is_valid(name)
        && id == format!("{:08x}", u32::from_be_bytes(key_id(name, algorithm, &key)));
    if is_right { Ok((name.to_owned(), key)) } else { Err(malformed()) }
}

fn key_text(name: &str, algorithm: u8, key: &[u8; 32]) -> String {
    let mut bytes = vec![algorithm];
    bytes.extend_from_slice(key);
    let id = u32::from_be_bytes(key_id(name, algorithm, key));
    format!("{name}+{id:08x}+{}", STANDARD.encode(bytes))
}

/// `SHA-256(name || 0x0A || algorithm || key)[..4]`.
fn key_id(name: &str, algorithm: u8, key: &[u8; 32]) -> [u8; 4] {
    let mut text = name.as_bytes().to_vec();
    text.extend_from_slice(&[0x0a, algorithm]);
    text.extend_from_slice(key);
    let full = digest(&SHA256, &text);
    let mut id = [0; 4];
    id.copy_from_slice(&full.as_ref()[..4]);
    id
}

/// Note names hold no space, no plus sign and no control character.
fn name_is_valid(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+')
}

/// What a log commits to: this many records, this tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// Records.
    pub size: u64,
    /// Root of the tree.
    pub root: Hash,
}

impl Checkpoint {
    /// The note's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// Parses a note's text.
    ///
    /// # Errors
    ///
    /// [`Error::CheckpointMalformed`] unless it is exactly origin, size and root.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut lines = text.split('\n');
        let mut next = || lines.next().ok_or(Error::CheckpointMalformed);
        let (origin, size, root, end) = (next()?, next()?, next()?, next()?);
        let plain =
            size == "0" || (!size.starts_with('0') && size.bytes().all(|b| b.is_ascii_digit()));
        let parsed = size.parse().ok().filter(|_| plain).ok_or(Error::CheckpointMalformed)?;
        let root = STANDARD.decode(root).map_err(|_| Error::CheckpointMalformed)?;
        let root = Hash::try_from(root).map_err(|_| Error::CheckpointMalformed)?;
        if origin.is_empty() || !end.is_empty() || lines.next().is_some() {
            return Err(Error::CheckpointMalformed);
        }
        Ok(Self { origin: origin.to_owned(), size: parsed, root })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the signed-note specification, made by another implementation.
    #[test]
    fn opens_a_note_of_the_go_implementation() {
        let vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let note = "If you think cryptography is the answer to your problem,\n\
            then you don't know what your problem is.\n\n\
            \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
        let verifier = Verifier::parse(vkey).unwrap();
        assert!(verifier.open(note.as_bytes()).is_ok());
        assert_eq!(verifier.to_text(), vkey);
        let two = Verifier::parse(&format!("{vkey}\n{vkey}")).unwrap();
        assert_eq!(two.to_text().lines().count(), 2);
        let other = vkey.replace("PeterNeumann", "Someone");
        assert!(Verifier::parse(&format!("{vkey}\n{other}")).is_err());
        let forged = note.replace("answer", "anwser");
        assert!(matches!(verifier.open(forged.as_bytes()), Err(Error::NoteSignature)));
    }

    #[test]
    fn checkpoints_round_trip_and_refuse_variants() {
        let checkpoint = Checkpoint { origin: "a/b".into(), size: 7, root: [9; 32] };
        let text = checkpoint.to_text();
        assert_eq!(Checkpoint::parse(&text).unwrap(), checkpoint);
        for bad in ["", "a\n", "a\n07\nAA==\n", &text.replace("\n7\n", "\n+7\n"), &(text + "x\n")] {
            assert!(matches!(Checkpoint::parse(bad), Err(Error::CheckpointMalformed)), "{bad:?}");
        }
    }
}
