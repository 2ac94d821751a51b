//! Which programs run: their digests, read once before the powers go.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use ring::digest::{Context, SHA256};

use super::error::Error;
use crate::audit::principal_keys::hex;
use crate::audit::record::ProgramFacts;

/// Bytes that are read at once.
const CHUNK_LEN_BYTES: usize = 1 << 20;

/// The digests of this program and of those that the spawner starts, which lie beside it.
pub(super) fn programs() -> Result<ProgramFacts, Error> {
    let own = std::env::current_exe();
    let own = own.map_err(|source| Error::Folder("/proc/self/exe".into(), source))?;
    Ok(ProgramFacts {
        supervisor: file_digest(&own)?,
        gateway: file_digest(&own.with_file_name("cloister-gateway"))?,
        worker: file_digest(&own.with_file_name("cloister-worker"))?,
    })
}

/// SHA-256 over the three digests in hex, one after the other: supervisor, gateway, worker.
pub(super) fn digest_of(programs: &ProgramFacts) -> String {
    let mut context = Context::new(&SHA256);
    for digest in [&programs.supervisor, &programs.gateway, &programs.worker] {
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
