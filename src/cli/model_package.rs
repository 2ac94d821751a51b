//! A model package as the commands are given it: files, trust folder, identity; nothing is decided here.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::thread;

use clap::Args;
use nix::unistd::geteuid;
use ring::digest::{Context, SHA256};
use zeroize::Zeroizing;

use super::model_report::{Counted, progress_bar, with_suffix};
use crate::ipc::message::Digest;
use crate::package::Error;
use crate::package::age_stream::Decryptor;
use crate::package::bundle::read_bundle;
use crate::package::digest::hash_through;
use crate::package::files::{Ownership, open_regular};
use crate::package::keys::Identity;
use crate::package::open::{is_age, open_age};
use crate::package::pieces::Passed;
use crate::package::trust::TrustStore;

/// A model, its signature, and what both are held against.
#[derive(Args, Clone, Debug)]
pub(super) struct ModelPackage {
    /// The model, encrypted (age) or not.
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// The signature [default: FILE without .age, plus .sig].
    #[arg(long, value_name = "FILE")]
    pub(super) signature: Option<PathBuf>,
    /// Folder of public keys and roots (PEM) whose signatures count.
    #[arg(long, value_name = "DIR", default_value = "/etc/cloister/trust")]
    pub(super) trust: PathBuf,
    /// age identity that opens an encrypted model.
    #[arg(long, value_name = "FILE")]
    pub(super) identity: Option<PathBuf>,
}

impl ModelPackage {
    /// Where the signature is.
    pub(super) fn signature(&self) -> PathBuf {
        self.signature.clone().unwrap_or_else(|| {
            let is_age = self.file.extension().is_some_and(|extension| extension == "age");
            let plain = if is_age { self.file.with_extension("") } else { self.file.clone() };
            with_suffix(&plain, ".sig")
        })
    }

    /// Reads the trust folder.
    pub(super) fn trust_store(&self) -> Result<TrustStore, Error> {
        TrustStore::open(&self.trust, &Ownership::of(&[geteuid().as_raw()]))
    }

    /// Reads the signature.
    pub(super) fn bundle(&self) -> Result<Zeroizing<Vec<u8>>, Error> {
        read_bundle(&self.signature())
    }

    /// Returns digest and length of the plaintext.
    pub(super) fn hash(&self) -> Result<(Digest, u64), Error> {
        let file = open_regular(&self.file)?;
        let bar = progress_bar("verifying", file.metadata().map_or(0, |metadata| metadata.len()));
        let outcome = if is_age(&file)? {
            self.hash_encrypted(file, &mut |n| bar.set_position(n))
        } else {
            hash_through(&mut Counted { file: &file, bar: bar.clone() }, &mut io::sink())
        };
        bar.finish_and_clear();
        outcome
    }

    fn hash_encrypted(
        &self,
        file: File,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(Digest, u64), Error> {
        let Some(path) = &self.identity else {
            return Err(Error::IdentityMissing);
        };
        let identity = Identity::open(path)?;
        // This thread hashes, and decrypts while there is nothing to hash.
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let mut decryptor = Decryptor::new(processors.saturating_sub(1))?;
        let mut hash = Hash(Context::new(&SHA256));
        let mut sink = Passed::to(&mut hash);
        let len_bytes = open_age(file, &mut &identity, &mut decryptor, &mut sink, progress)?;
        let digest = hash.0.finish();
        Ok((Digest(digest.as_ref().try_into().expect("SHA-256 is 32 bytes")), len_bytes))
    }
}

/// Hashes what is written, while other threads decrypt what comes next.
struct Hash(Context);

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
