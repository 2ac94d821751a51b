//! A log of several tiles, written by a supervisor in its sandbox: what a day of requests leaves.

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
