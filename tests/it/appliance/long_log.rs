//! A log of several tiles, written by a supervisor in its sandbox: what a day of requests leaves.

use std::os::unix::fs::MetadataExt as _;

use cloister::audit::record::{RefusalReason, RefusedFacts};
use cloister::audit::{Event, Log, Signer};

use super::*;

/// Each leaves two records, and a tile holds 256.
const REQUESTS_COUNT: usize = 300;

#[test]
fn a_log_of_several_tiles_is_written_inside_the_sandbox() {
    for user in users() {
        let tiny = support::golden().join("tiny/llama.gguf");
        let mut appliance = Appliance::start_with(user, &tiny, "");
        let body = json!({ "model": "smol", "prompt": "a", "max_tokens": 1, "temperature": 0 });
        for count in 0..REQUESTS_COUNT {
            let (status, answer) = read_answer(appliance.post("/v1/completions", &body)).unwrap();
            assert_eq!(status, 200, "request {count}: {answer}\n{}", appliance.told());
            if count == REQUESTS_COUNT / 2 {
                appliance.stop();
                appliance.start_again();
                appliance.wait_until_ready();
            }
        }
        appliance.stop();
        let report = appliance.verify_log();
        assert_eq!((&report["verdict"], &report["open_requests"]), (&json!("INTACT"), &json!(0)));
        assert!(report["size"].as_u64().unwrap() > 2 * REQUESTS_COUNT as u64, "{report}");
    }
}

/// The journal lets go of what a thread of the supervisor settled: under its filter and landlock.
#[test]
fn whole_tiles_are_settled_inside_the_sandbox() {
    for user in users() {
        let tiny = support::golden().join("tiny/llama.gguf");
        let mut appliance = Appliance::start_with(user, &tiny, "");
        appliance.stop();
        let folder = appliance.folder.join("audit");
        let owner = fs::metadata(&folder).unwrap();
        let pem = fs::read(appliance.path("audit.key")).unwrap();
        let signer = Signer::from_pem("test.example/audit", &pem).unwrap();
        let (mut log, _) = Log::open(&folder, signer).unwrap();
        for count in 0..9000 {
            let reason = RefusalReason::TooManyRequests;
            log.append(Event::Refused {
                observed: RefusedFacts { reason, count, principal: None },
            })
            .unwrap();
        }
        log.append(Event::Stop {}).unwrap();
        log.commit().unwrap();
        drop(log);
        let ids = format!("{}:{}", owner.uid(), owner.gid());
        assert!(Command::new("chown").args(["-R", &ids]).arg(&folder).status().unwrap().success());
        let base = || {
            let journal = fs::read(folder.join("journal")).unwrap();
            u64::from_le_bytes(journal[8..16].try_into().unwrap())
        };
        assert_eq!(base(), 0, "the journal holds all of it");
        appliance.start_again();
        appliance.wait_until_ready();
        let body = json!({ "model": "smol", "prompt": "a", "max_tokens": 1, "temperature": 0 });
        eventually("a journal without what was settled", || {
            assert_eq!(read_answer(appliance.post("/v1/completions", &body)).unwrap().0, 200);
            base() >= 8192
        });
        appliance.stop();
        assert_eq!(appliance.verify_log()["verdict"], "INTACT");
    }
}
