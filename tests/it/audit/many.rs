//! A log of ten million records is opened and searched without an index: a time is found by halving, a name
//! by proving every record on all processors.

use std::time::{Duration, Instant};

use serde_json::json;

use super::story::{Numbers, START_S, Writer, record};
use super::{Site, Snapshot};
use crate::support;

const RECORDS_COUNT: u64 = 10_000_000;
/// Longest time to open the log and to find a minute of it.
const LIMIT: Duration = Duration::from_secs(2);

/// Run it alone: `cargo test --release --test it many -- --ignored --nocapture`.
#[test]
#[ignore = "writes four gigabytes"]
fn ten_million_records_are_searched_without_an_index() {
    let site = Site::new("many");
    let log = site.folder.join("log");
    let mut writer = Writer::new(&log);
    let (mut numbers, boot) = (Numbers::new(3), "c3".repeat(16));
    let keyed = json!({ "nonce": numbers.hex(16), "hmac": numbers.hex(32) });
    let (mut wanted, seldom) = (String::new(), "0123456789abcdef");
    for index in 0..RECORDS_COUNT / 2 {
        let request = format!("{index:032x}");
        let time_s = START_S + index * 10;
        let is_seldom = index == RECORDS_COUNT / 3;
        let principal = if is_seldom { seldom } else { "5d7058d9c570e89d" };
        let observed = json!({ "principal": principal, "role": "user", "model": "m",
            "model_digest": "7a".repeat(32), "policy_digest": "2b".repeat(32), "build_digest": "3c".repeat(32) });
        let declared = json!({ "endpoint": "chat", "max_tokens": 512, "stream": true });
        writer.push(&record(
            time_s,
            &boot,
            json!({ "begin": { "request": request, "observed": observed, "declared": declared } }),
        ));
        let declared = json!({ "outcome": "stop", "messages": [keyed], "answer": keyed, "parameters": keyed,
            "prompt_tokens_max": 256, "completion_tokens_max": 128 });
        writer.push(&record(
            time_s + 8,
            &boot,
            json!({ "end": { "request": request, "observed": { "duration_s_max": 8 }, "declared": declared } }),
        ));
        if is_seldom {
            wanted = request;
        }
    }
    writer.publish(&site.signer);
    let time = |what: &str, words: &[&str], count: usize| {
        let start = Instant::now();
        let found = site.lines("list", &[&["--json"], words].concat());
        let took = start.elapsed();
        assert_eq!(found.len(), count, "{what}");
        support::tell(&format!("{what}: {took:.2?}"));
        took
    };
    let start = Instant::now();
    let size = Snapshot::open(&log, &site.verifier()).unwrap().size();
    support::tell(&format!("open {size} records: {:.2?}", start.elapsed()));
    assert!(start.elapsed() < LIMIT);
    let minute = ["--from", "2027-02-01T12:00:00Z", "--to", "2027-02-01T12:00:59Z"];
    assert!(time("a minute of 19 months, by time", &minute, 12) < LIMIT);
    assert!(time("the newest hundred", &["--newest", "--limit", "100"], 100) < LIMIT);
    for (what, words) in [
        ("a request, every record proven", ["--request", &wanted]),
        ("a principal, every record proven", ["--principal", seldom]),
    ] {
        let took = time(what, &words, 2);
        support::tell(&format!("{:.0} records/s", RECORDS_COUNT as f64 / took.as_secs_f64()));
    }
}
