//! `cloister audit prune` asks the one writer of the log, which refuses what is too young.

use super::*;

#[test]
fn young_records_are_removed_by_force_alone() {
    let tiny = support::golden().join("tiny/llama.gguf");
    let appliance = Appliance::start_with(As::Oneself, &tiny, "");
    let config = appliance.path("cloister.toml");
    let prune = |more: &[&str]| {
        let done = cloister(&[&["audit", "prune", "--config", &config], more].concat());
        let told = [done.stdout.as_slice(), &done.stderr].concat();
        (done.status.code(), String::from_utf8(told).unwrap())
    };
    let (code, told) = prune(&["--older-than", "90d"]);
    assert_eq!((code, told.contains("six months")), (Some(1), true), "{told}");
    let (code, told) = prune(&["--older-than", "200d"]);
    assert_eq!((code, told.contains("audit.retention_min")), (Some(1), true), "{told}");
    let (code, told) = prune(&["--older-than", "7y"]);
    assert_eq!((code, told.as_str()), (Some(0), "removed 0 records\n"));
    let (code, told) = prune(&["--older-than", "90d", "--force", "--json"]);
    assert_eq!((code, told.as_str()), (Some(0), "{\"removed\":0}\n"));
    let (code, told) = prune(&[]);
    assert_eq!((code, told.contains("--older-than")), (Some(2), true), "{told}");
}
