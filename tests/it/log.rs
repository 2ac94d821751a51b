//! The audit log as others see it: read by another implementation, and written by a process that is
//! killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cloister::audit::record::{KeyRole, KeyUseFacts, RefusalReason, RefusedFacts};
use cloister::audit::{Event, Log, Signer};

pub(crate) mod go;
mod killed;
mod witness;

/// A folder that goes with the test, with a log's key in it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = PathBuf::from("/var/tmp")
            .join(format!("cloister-log-it-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        let folder = Self(path);
        let key = folder.path("audit.key");
        let done = Command::new(env!("CARGO_BIN_EXE_cloister"))
            .args(["keygen", "audit", "--name", "test.example/audit", "--out", &key])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        folder
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    fn signer(&self) -> Signer {
        let pem = fs::read(self.path("audit.key")).unwrap();
        Signer::from_pem("test.example/audit", &pem).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn some_event(count: u64) -> Event {
    let reason = RefusalReason::TooManyRequests;
    match count % 2 {
        0 => Event::KeyUsed { observed: KeyUseFacts { key: KeyRole::Tls, count } },
        _ => Event::Refused { observed: RefusedFacts { reason, count, principal: None } },
    }
}

/// Appends until the log has `size` records, and keeps the checkpoint as `name`.
fn grow(log: &mut Log, folder: &Path, size: u64, name: &Path) {
    while log.size() < size {
        for count in log.size()..size.min(log.size() + 500) {
            log.append(some_event(count)).unwrap();
        }
        log.commit().unwrap();
    }
    fs::copy(folder.join("checkpoint"), name).unwrap();
}
