//! Which programs run: their digests, read once before the powers go.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use ring::digest::{Context, SHA256};

use super::cards::WORKER_GPU;
use super::error::Error;
use crate::audit::principal_keys::hex;
use crate::audit::record::ProgramFacts;

/// Bytes that are read at once.
const CHUNK_LEN_BYTES: usize = 1 << 20;

/// The digests of this program and of those that the spawners start, which lie beside it; that of the worker with a
/// card, where one is used.
pub(super) fn programs(uses_cards: bool) -> Result<ProgramFacts, Error> {
    let own = std::env::current_exe();
    let own = own.map_err(|source| Error::Folder("/proc/self/exe".into(), source))?;
    Ok(ProgramFacts {
        supervisor: file_digest(&own)?,
        gateway: file_digest(&own.with_file_name("cloister-gateway"))?,
        worker: file_digest(&own.with_file_name("cloister-worker"))?,
        worker_gpu: match uses_cards {
            true => Some(file_digest(&own.with_file_name(WORKER_GPU))?),
            false => None,
        },
    })
}

/// SHA-256 over the digests in hex, one after the other: supervisor, gateway, worker, worker with a card.
pub(super) fn digest_of(programs: &ProgramFacts) -> String {
    let mut context = Context::new(&SHA256);
    let ProgramFacts { supervisor, gateway, worker, worker_gpu } = programs;
    for digest in [supervisor, gateway, worker].into_iter().chain(worker_gpu) {
        context.update(digest.as_bytes());
    }
    hex(context.finish().as_ref())
}

fn file_digest(path: &Path) -> Result<String, Error> {
    let fault = |source| Error::Folder(path.to_owned(), source);
    let mut file = File::open(path).map_err(fault)?;
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK_LEN_BYTES];
    loop {
        match file.read(&mut chunk).map_err(fault)? {
            0 => return Ok(hex(context.finish().as_ref())),
            len => context.update(&chunk[..len]),
        }
    }
}
