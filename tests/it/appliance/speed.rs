//! How fast a model was opened: said at the start and by `cloister status`.
//!
//! ```text
//! cargo test --release --test it speed -- --include-ignored    # prints the share of what is possible
//! ```

use cloister::cli::fetch::QWEN25_CODER;

use super::*;

fn opened(appliance: &Appliance) -> Value {
    let text = cloister_ok(&["status", "--json", "--socket", &appliance.path("control.sock")]);
    serde_json::from_str::<Value>(&text).unwrap()["models"][0]["opened"].clone()
}

#[test]
fn the_opening_is_told_and_its_share_where_that_means_something() {
    let tiny = support::golden().join("tiny/llama.gguf");
    let appliance = Appliance::start_with(As::Oneself, &tiny, "");
    let len = fs::metadata(&tiny).unwrap().len();
    let (opened, told) = (opened(&appliance), appliance.told());
    assert_eq!(opened["len_bytes"], len);
    assert!(opened["ms"].is_u64() && opened["share_percent"].is_null(), "{opened}");
    assert!(told.contains(&format!("cloister: model smol: opened {len} bytes in ")), "{told}");
    let shown = cloister_ok(&["status", "--socket", &appliance.path("control.sock")]);
    let line = format!("  opened      {len} bytes in {} ms\n", opened["ms"]);
    assert!(shown.contains(&line), "{shown}");
}

#[test]
#[ignore = "a larger model, sealed first; the figure means something with --release and a quiet machine"]
fn the_share_of_a_larger_model_is_told() {
    let mut appliance = Appliance::start_with(As::Oneself, &support::model(&QWEN25_CODER), "");
    let mut best = 0;
    for _ in 0..5 {
        appliance.stop();
        appliance.start_again();
        appliance.wait_until_ready();
        let opened = opened(&appliance);
        support::tell(&format!("opened: {opened}"));
        best = best.max(opened["share_percent"].as_u64().unwrap());
    }
    let shown = cloister_ok(&["status", "--socket", &appliance.path("control.sock")]);
    assert!(shown.contains(" % of what is possible\n"), "{shown}");
    support::tell(&format!("opened at {best} % of what is possible, at best"));
    assert!(best > 0);
}
