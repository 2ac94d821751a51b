//! Two copies of the log under the supervisor's own sandbox: one on a disk that fills up.

use super::full_disk::{Mounted, audit_status, fill};
use super::*;

fn faults(appliance: &Appliance) -> Vec<Value> {
    let copies = audit_status(appliance)["copies"].as_array().unwrap().clone();
    assert_eq!(copies.len(), 2);
    copies.into_iter().map(|copy| copy["fault"].clone()).filter(|fault| !fault.is_null()).collect()
}

#[test]
fn a_replica_that_fails_is_told_and_caught_up_or_stops_requests_as_configured() {
    if !is_root() {
        return support::tell("only root can mount a small disk: not tried here");
    }
    let tiny = support::golden().join("tiny/llama.gguf");
    let mut appliance = Appliance::start_with(As::Oneself, &tiny, "");
    let replica = appliance.folder.join("replica");
    let mounted = Mounted::tmpfs(&replica, "32m");
    let body = json!({ "model": "smol", "prompt": "a", "max_tokens": 1, "temperature": 0 });
    let asked = |appliance: &Appliance| {
        read_answer(appliance.post("/v1/completions", &body)).map_or(0, |answer| answer.0)
    };
    for mode in ["one", "both"] {
        appliance.stop();
        if mode == "one" {
            appliance.change_config(
                "[audit]\n",
                "[audit]\nreplica = \"replica\"\nreplica_mode = \"one\"\n",
            );
        } else {
            appliance.change_config("replica_mode = \"one\"", "replica_mode = \"both\"");
        }
        appliance.start_again();
        appliance.wait_until_ready();
        eventually("both copies", || asked(&appliance) == 200 && faults(&appliance).is_empty());
        let filler = fill(&replica);
        if mode == "one" {
            for _ in 0..20 {
                assert_eq!(asked(&appliance), 200, "{}", appliance.told());
            }
            let faults = faults(&appliance);
            assert!(faults[0].as_str().unwrap().contains("replica"), "{faults:?}");
        } else {
            assert_eq!(asked(&appliance), 503, "{}", appliance.told());
        }
        fs::remove_file(filler).unwrap();
        eventually("both copies again", || {
            asked(&appliance) == 200 && faults(&appliance).is_empty()
        });
    }
    appliance.stop();
    let key = appliance.path("audit.vkey");
    let root = |log: &str| {
        let words = ["audit", "verify", &appliance.path(log), "--public-key", &key, "--json"];
        let report: Value = serde_json::from_str(&cloister_ok(&words)).unwrap();
        (report["verdict"].clone(), report["size"].clone(), report["root"].clone())
    };
    assert_eq!(root("audit"), root("replica"));
    drop(mounted);
}
