//! A log of a month, made for the tests: every kind of event, at chosen times, as plain tlog-tiles files.

use std::fs;
use std::path::Path;

use cloister::audit::merkle::{Edge, TILE_WIDTH, leaf_hash};
use cloister::audit::tiles::{Kind, tile_path};
use cloister::audit::{Checkpoint, Record, Signer};
use serde_json::{Value, json};

/// The first second of the story: 2026-10-28T00:00:00Z.
pub(crate) const START_S: u64 = 1_793_145_600;
/// A model's name that would be markup, a formula and an escape sequence if it were let.
pub(crate) const HOSTILE: &str = "=cmd|'<img src=x onerror=alert(1)>\u{1b}[2J\u{202e}\"";

/// Writes records into a log.
pub(crate) struct Writer<'a> {
    folder: &'a Path,
    edge: Edge,
    bundle: Vec<u8>,
    width: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(folder: &'a Path) -> Self {
        Self { folder, edge: Edge::default(), bundle: Vec::new(), width: 0 }
    }

    pub(crate) fn push(&mut self, record: &[u8]) {
        self.bundle.extend_from_slice(&u16::try_from(record.len()).unwrap().to_be_bytes());
        self.bundle.extend_from_slice(record);
        self.width += 1;
        let full = self.edge.push(leaf_hash(record));
        if self.width == TILE_WIDTH {
            self.write_bundle();
        }
        for tile in full {
            self.write(
                Kind::Hashes(tile.level),
                tile.index,
                TILE_WIDTH,
                tile.hashes.as_flattened(),
            );
        }
    }

    fn write(&self, kind: Kind, index: u64, width: usize, bytes: &[u8]) {
        let path = tile_path(self.folder, kind, index, width);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn write_bundle(&mut self) {
        let index = (self.edge.size() - 1) / TILE_WIDTH as u64;
        self.write(Kind::Entries, index, self.width, &self.bundle);
        self.bundle.clear();
        self.width = 0;
    }

    /// Writes what is open and the signed checkpoint; more records may follow.
    pub(crate) fn publish(&mut self, signer: &Signer) {
        let (bundle, width) = (self.bundle.clone(), self.width);
        if width > 0 {
            self.write_bundle();
            (self.bundle, self.width) = (bundle, width);
        }
        let mut count = self.edge.size();
        for (level, hashes) in (0_u8..).zip(self.edge.open_tiles()) {
            count /= TILE_WIDTH as u64;
            if !hashes.is_empty() {
                self.write(Kind::Hashes(level), count, hashes.len(), hashes.as_flattened());
            }
        }
        let origin = signer.verifier().name().to_owned();
        let checkpoint = Checkpoint { origin, size: self.edge.size(), root: self.edge.root() };
        fs::write(self.folder.join("checkpoint"), signer.sign(&checkpoint.to_text())).unwrap();
    }
}

/// A record's bytes, as the log writes them.
pub(crate) fn record(time_s: u64, boot: &str, event: Value) -> Vec<u8> {
    let record: Record = serde_json::from_value(json!({
        "v": 1, "time_s": time_s, "clock": "synchronized", "monotonic_s": time_s - START_S + 40,
        "boot": boot, "event": event,
    }))
    .unwrap();
    serde_json::to_vec(&record).unwrap()
}

/// Numbers that are the same at each run.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let at = usize::try_from(self.below(from.len() as u64)).unwrap();
        from[at].clone()
    }

    pub(crate) fn hex(&mut self, bytes: usize) -> String {
        (0..bytes).map(|_| format!("{:02x}", self.below(256))).collect()
    }
}

fn start(version: &str, config: &str) -> Value {
    let hash = |byte: &str| byte.repeat(32);
    json!({ "start": { "observed": {
        "version": version, "profile": "full", "config_digest": hash(config), "policy_digest": hash("2b"),
        "build_digest": hash("3c"), "landlock_abi": 7,
        "retention": { "preset": "eu", "min_s": 183 * 86_400, "max_s": 366 * 86_400 },
        "programs": { "supervisor": hash("4d"), "gateway": hash("5e"), "worker": hash("6f") } } } })
}

/// The records of a month, in order; the same at each call.
pub(crate) fn story() -> Vec<Vec<u8>> {
    let mut numbers = Numbers::new(7);
    let principals: Vec<String> = (0..5).map(|_| numbers.hex(8)).collect();
    let mut out = Vec::new();
    let mut boot = "a1".repeat(16);
    out.push(record(START_S, &boot, start("0.1.0", "1a")));
    for model in ["qwen2.5-7b", HOSTILE] {
        out.push(record(START_S + 40, &boot, json!({ "model_opened": { "observed": {
            "model": model, "digest": "7a".repeat(32), "signer": "vendor.pem", "sealed": true } } })));
    }
    out.push(record(
        START_S + 41,
        &boot,
        json!({ "tokens_loaded": { "observed": { "digest": "8b".repeat(32), "count": 5 } } }),
    ));
    for day in 0..30 {
        let day_s = START_S + day * 86_400;
        if day == 11 {
            boot = "b2".repeat(16);
            out.push(record(day_s + 60, &boot, start("0.1.0", "1a")));
            out.push(record(
                day_s + 60,
                &boot,
                json!({ "recovered": { "observed": { "dropped_bytes": 318 } } }),
            ));
        }
        if day == 19 {
            out.push(record(day_s + 60, &boot, json!({ "stop": {} })));
            out.push(record(day_s + 90, &boot, start("0.2.0", "9c")));
            out.push(record(day_s + 91, &boot, json!({ "config_changed": { "observed": { "part": "configuration", "before": "1a".repeat(32), "after": "9c".repeat(32) } } })));
        }
        let is_weekend = matches!(day % 7, 3 | 4);
        let count = if is_weekend { 6 } else { 40 + numbers.below(30) };
        let mut times: Vec<u64> =
            (0..count).map(|_| day_s + 25_200 + numbers.below(36_000)).collect();
        times.sort_unstable();
        // One request at a time: each ends before the next begins.
        times.dedup_by(|next, before| *next < *before + 10);
        for at in times {
            let (request, principal) = (numbers.hex(16), numbers.pick(&principals));
            let model = if numbers.below(9) == 0 { HOSTILE } else { "qwen2.5-7b" };
            out.push(record(at, &boot, json!({ "begin": { "request": request,
                "observed": { "principal": principal, "role": "user", "model": model, "model_digest": "7a".repeat(32),
                    "policy_digest": "2b".repeat(32), "build_digest": "3c".repeat(32) },
                "declared": { "endpoint": "chat", "max_tokens": 512, "stream": true } } })));
            if numbers.below(200) == 0 {
                out.push(record(at + 9, &boot, json!({ "end_missing": { "request": request, "observed": { "cause": "worker_gone" } } })));
                continue;
            }
            let keyed = |numbers: &mut Numbers| json!({ "nonce": numbers.hex(16), "hmac": numbers.hex(32) });
            let outcome =
                numbers.pick(&["stop", "stop", "stop", "stop", "length", "cancelled", "failed"]);
            let (message, answer, parameters) =
                (keyed(&mut numbers), keyed(&mut numbers), keyed(&mut numbers));
            out.push(record(at + 8, &boot, json!({ "end": { "request": request, "observed": { "duration_s_max": 8 },
                "declared": { "outcome": outcome, "messages": [message], "answer": answer, "parameters": parameters,
                    "prompt_tokens_max": 256, "completion_tokens_max": 128 } } })));
        }
        out.extend(incidents(day, day_s, &boot, &principals));
    }
    out
}

/// What does not happen every day.
fn incidents(day: u64, day_s: u64, boot: &str, principals: &[String]) -> Vec<Vec<u8>> {
    let at = |second: u64, event: Value| record(day_s + second, boot, event);
    match day {
        5 => vec![
            at(70_000, json!({ "child_died": { "observed": { "child": "worker qwen2.5-7b", "cause": "signal 11" } } })),
            at(70_001, json!({ "child_started": { "observed": { "child": "worker qwen2.5-7b" } } })),
        ],
        8 => (0..12)
            .map(|minute| at(71_000 + minute * 60, json!({ "authentication_failed": { "observed": { "cause": "unknown", "count": 1 + minute * 7 } } })))
            .collect(),
        13 => vec![at(71_000, json!({ "sandbox_violation": { "observed": { "child": "gateway", "signal": 31 } } }))],
        15 => vec![
            at(71_000, json!({ "refused": { "observed": { "reason": "too_many_requests", "count": 23, "principal": principals[1] } } })),
            at(71_500, json!({ "refused": { "observed": { "reason": "model_unknown", "count": 2, "principal": principals[2] } } })),
        ],
        17 => vec![
            at(72_000, json!({ "clock_jump": { "observed": { "direction": "back", "by_s_max": 4096 } } })),
            at(69_000, json!({ "key_used": { "observed": { "key": "tls", "count": 412 } } })),
        ],
        21 => vec![at(72_000, json!({ "log_read": { "observed": { "uid": 0 }, "declared": { "action": "export", "records_max": 4096 } } }))],
        23 => vec![
            at(72_000, json!({ "erasure_asked": { "observed": { "principal": principals[4], "uid": 0, "confirmations": 1, "needed": 2 } } })),
            at(72_900, json!({ "erased": { "observed": { "principal": principals[4], "by": [0, 1001] } } })),
            at(72_901, json!({ "key_destroyed": { "observed": { "key": "principal", "id": principals[4] } } })),
        ],
        24 => vec![
            at(69_000, json!({ "key_rotated": { "observed": { "key": "wrapping", "before": "0a".repeat(8), "after": "0b".repeat(8), "uid": 0, "count": 4 } } })),
            at(69_900, json!({ "key_created": { "observed": { "key": "principal", "id": "c3".repeat(8) } } })),
        ],
        25 => vec![at(70_000, json!({ "events_dropped": { "observed": { "count": 3 } } }))],
        _ => Vec::new(),
    }
}
