//! A `.tlog-proof` file: one record, its way to the root and the signed root, for a third party.
//!
//! The record's bytes stand in the `extra` line. They are believed only after their hash was found in
//! the tree, and the tree's root under the signature. Source: C2SP tlog-proof.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::merkle::{Hash, leaf_hash};
use super::note::{Checkpoint, NOTE_LEN_MAX_BYTES, Verifier};
use super::proof::{PROOF_LEN_MAX, root_of_inclusion};
use super::tiles::RECORD_LEN_MAX_BYTES;
use super::{Error, Record};

const HEAD: &str = "c2sp.org/tlog-proof@v1";
/// Longest proof file, in bytes: a record and a note of the greatest length, and every hash.
pub const PROOF_FILE_LEN_MAX_BYTES: usize =
    RECORD_LEN_MAX_BYTES * 4 / 3 + NOTE_LEN_MAX_BYTES + PROOF_LEN_MAX * 48 + 256;

/// The content of a proof file; nothing in it is believed before [`ProofFile::check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofFile {
    /// The record's bytes.
    pub record: Vec<u8>,
    /// Its place in the log.
    pub index: u64,
    /// From the leaf's sibling up to the root's child.
    pub path: Vec<Hash>,
    /// The signed checkpoint, as it stands in the log.
    pub note: String,
}

impl ProofFile {
    /// The file's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let extra = STANDARD.encode(&self.record);
        let mut text = format!("{HEAD}\nextra {extra}\nindex {}\n", self.index);
        for hash in &self.path {
            text.push_str(&STANDARD.encode(hash));
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.note);
        text
    }

    /// Parses a file's text.
    ///
    /// # Errors
    ///
    /// [`Error::ProofMalformed`] for anything but exactly the format, with the record in `extra`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let malformed = || Error::ProofMalformed;
        if text.len() > PROOF_FILE_LEN_MAX_BYTES {
            return Err(malformed());
        }
        let (head, note) = text.split_once("\n\n").ok_or_else(malformed)?;
        let mut lines = head.split('\n');
        if lines.next() != Some(HEAD) {
            return Err(malformed());
        }
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let record = field("extra").ok_or_else(malformed)?;
        let record = STANDARD.decode(record).map_err(|_| malformed())?;
        let digits = field("index").ok_or_else(malformed)?;
        let index: u64 = digits.parse().map_err(|_| malformed())?;
        let path: Result<Vec<Hash>, Error> = lines.map(parse_hash).collect();
        let path = path?;
        if index.to_string() != digits || path.len() > PROOF_LEN_MAX {
            return Err(malformed());
        }
        Ok(Self { record, index, path, note: note.to_owned() })
    }

    /// Proves that the record stands in the log that `verifier` signs.
    ///
    /// # Errors
    ///
    /// The note's faults; [`Error::ProofWrong`] when the record does not lead to the signed root.
    pub fn check(&self, verifier: &Verifier) -> Result<(Checkpoint, Record), Error> {
        let signed = verifier.kept(self.note.as_bytes())?;
        let leaf = leaf_hash(&self.record);
        if root_of_inclusion(leaf, self.index, signed.size, &self.path) != Some(signed.root) {
            return Err(Error::ProofWrong { index: self.index });
        }
        let record = super::snapshot::parse(&self.record, self.index)?;
        Ok((signed, record))
    }
}

/// A hash in base64, as it stands in a line.
///
/// # Errors
///
/// [`Error::ProofMalformed`].
pub fn parse_hash(line: &str) -> Result<Hash, Error> {
    let bytes = STANDARD.decode(line).map_err(|_| Error::ProofMalformed)?;
    Hash::try_from(bytes).map_err(|_| Error::ProofMalformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> ProofFile {
        let path = vec![[1; 32], [2; 32]];
        ProofFile {
            record: b"{}".to_vec(),
            index: 7,
            path,
            note: "a\n9\nx\n\n\u{2014} a y\n".into(),
        }
    }

    #[test]
    fn files_round_trip_and_variants_are_refused() {
        let text = file().to_text();
        assert_eq!(ProofFile::parse(&text).unwrap(), file());
        let bad = [
            text.replace("@v1", "@v2"),
            text.replace("index 7", "index 07"),
            text.replace("index 7", "index +7"),
            text.replace("index 7", "index 18446744073709551616"),
            text.replace("extra e30=\n", ""),
            text.replace("extra e30=", "extra e30"),
            text.replace("\n\n", "\n"),
            format!("\n{text}"),
            text.replacen("AQEB", "AQE", 1),
            "a".repeat(PROOF_FILE_LEN_MAX_BYTES + 1),
        ];
        for text in bad {
            assert!(matches!(ProofFile::parse(&text), Err(Error::ProofMalformed)), "{text:.80}");
        }
    }
}
