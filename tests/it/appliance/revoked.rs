//! A revocation and a list of allowed models take effect at a reload, and both ways of asking for one say so.

use ring::digest::{SHA256, digest};

use super::*;

fn tiny() -> PathBuf {
    support::golden().join("tiny/llama.gguf")
}

/// SHA-256 of a file, as `sha256sum` writes it.
fn line_of(file: &Path, remark: &str) -> String {
    let sum = digest(&SHA256, &fs::read(file).unwrap());
    let hex: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}  {remark}\n")
}

/// `cloister reload`: its exit code and what it said.
fn reload(appliance: &Appliance) -> (Option<i32>, String) {
    let done = cloister(&["reload", "--config", &appliance.path("cloister.toml")]);
    (done.status.code(), String::from_utf8(done.stderr).unwrap())
}

fn complete(appliance: &Appliance) -> u16 {
    let body = json!({ "model": "smol", "prompt": "abc", "max_tokens": 2, "temperature": 0 });
    read_answer(appliance.post("/v1/completions", &body)).map_or(0, |(status, _)| status)
}

fn status(appliance: &Appliance) -> Value {
    // Its exit code says whether all is served.
    let done = cloister(&["status", "--json", "--socket", &appliance.path("control.sock")]);
    serde_json::from_slice(&done.stdout).unwrap()
}

/// The model is served no more, for this reason, and the log says so; nor does it start again.
fn assert_withdrawn(appliance: &mut Appliance, why: &str) {
    assert_ne!(complete(appliance), 200);
    eventually("the worker's end", || appliance.children("cloister-worker").is_empty());
    let told = status(appliance);
    assert_eq!(
        (&told["state"], &told["models"][0]["state"]),
        (&json!("degraded"), &json!("withdrawn"))
    );
    assert!(told["models"][0]["withdrawn"].as_str().unwrap().contains(why), "{told}");
    let told = appliance.told();
    assert!(told.contains("cloister: model smol is withdrawn: ") && told.contains(why), "{told}");
    appliance.stop();
    let refused = appliance.records("model_refused");
    let [record] = &refused[..] else { panic!("{refused:?}") };
    let observed = &record["event"]["model_refused"]["observed"];
    assert!(observed["check"].as_str().unwrap().contains(why), "{record}");
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
    appliance.start_again();
    assert!(!appliance.child.wait().unwrap().success());
    assert!(appliance.told().contains(why), "{}", appliance.told());
}

#[test]
fn a_reload_withdraws_what_was_revoked_since_the_start() {
    let mut appliance = Appliance::start_with(As::Oneself, &tiny(), "");
    let revoked = appliance.path("trust/revoked.sha256");
    fs::write(&revoked, "no digest\n").unwrap();
    let (code, told) = reload(&appliance);
    assert_eq!((code, told.contains("revoked.sha256")), (Some(1), true), "{told}");
    // Of another file: nothing is withdrawn.
    fs::write(&revoked, line_of(Path::new("/proc/self/exe"), "another")).unwrap();
    let (code, told) = reload(&appliance);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("taken: lists: every signed model is allowed, 1 revoked"), "{told}");
    assert!(!told.contains("withdrawn"), "{told}");
    assert_eq!(complete(&appliance), 200);
    assert_eq!(status(&appliance)["models"][0]["state"], "serving");

    fs::write(&revoked, line_of(&tiny(), "recall of 2026")).unwrap();
    let (code, told) = reload(&appliance);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("withdrawn: model smol: ") && told.contains("recall of 2026"), "{told}");
    assert_withdrawn(&mut appliance, "recall of 2026");
    let outcomes: Vec<_> = appliance.records("reloaded");
    let outcome = |it: &Value| it["event"]["reloaded"]["observed"]["outcome"].clone();
    let outcomes: Vec<_> = outcomes.iter().map(outcome).collect();
    assert_eq!(outcomes, ["refused", "taken", "taken"]);
}

#[test]
fn a_hang_up_withdraws_a_revoked_signer_and_what_is_not_allowed() {
    for (list, file, why) in
        [("revoked", "trust/test.pem", "left the company"), ("allowed", "identity.age", "")]
    {
        let mut appliance = Appliance::start_with(As::Oneself, &tiny(), "");
        let text = line_of(Path::new(&appliance.path(file)), "left the company");
        fs::write(appliance.path(&format!("trust/{list}.sha256")), text).unwrap();
        kill(appliance.child.id().cast_signed(), "HUP");
        let model = || status(&appliance)["models"][0]["state"].clone();
        eventually("a withdrawn model", || model() == "withdrawn");
        let why = if list == "allowed" { "not on the list of allowed ones" } else { why };
        assert_withdrawn(&mut appliance, why);
    }
}
