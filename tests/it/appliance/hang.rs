//! A part that hangs, rather than ends, is noticed, killed, recorded and started again.

use super::*;

#[test]
fn a_part_that_hangs_is_killed_recorded_and_started_again() {
    let mut appliance = Appliance::start(As::Oneself);
    appliance.stop();
    // Keys and values in 8 bits on the way: the whole appliance answers with them too.
    appliance.change_config("[limits]\n", "[limits]\nhang_ms = 2000\n");
    appliance.change_config("[worker]\n", "[worker]\nkv = \"q8_0\"\n");
    appliance.start_again();
    appliance.wait_until_ready();
    assert_eq!(appliance.chat(&ask("hi", 4)).0, 200);
    for (part, name) in [("cloister-worker", "worker smol"), ("cloister-gateway", "gateway")] {
        let hung = appliance.only_child(part);
        kill(hung, "STOP");
        eventually(&format!("{part} is started again"), || {
            appliance.children(part).iter().any(|pid| *pid != hung)
        });
        appliance.wait_until_ready();
        eventually(&format!("an answer after {part} hung"), || {
            appliance.chat(&ask("hi", 4)).0 == 200
        });
        let died = appliance.records("child_died");
        let told = |record: &Value| {
            let event = &record["event"]["child_died"];
            event["observed"]["child"] == name
                && event["observed"]["cause"].as_str().unwrap().contains("hangs")
        };
        assert!(died.iter().any(told), "{part}: {died:?}");
    }
    appliance.stop();
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}
