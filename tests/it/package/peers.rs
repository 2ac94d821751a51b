//! Other people's tools read what Cloister writes, and the other way round.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::SystemTime;

use cloister::package::digest::hash_through;
use cloister::package::files::Ownership;
use cloister::package::keys::Identity;
use cloister::package::signature::verify;
use cloister::package::trust::TrustStore;

use super::commands::cloister;
use super::{Folder, Random};
use crate::support::skip;

/// Python with `model_signing`, or none.
static PYTHON: LazyLock<Option<String>> = LazyLock::new(|| {
    let python = std::env::var("CLOISTER_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    succeeds(Command::new(&python).args(["-m", "model_signing", "--version"])).then_some(python)
});

fn succeeds(command: &mut Command) -> bool {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn python(what: &str) -> Option<Command> {
    let Some(python) = PYTHON.as_ref() else {
        skip(what, "no Python with model-signing and pyOpenSSL (CLOISTER_PYTHON)");
        return None;
    };
    let mut command = Command::new(python);
    command.args(["-m", "model_signing"]);
    Some(command)
}

fn age(what: &str) -> bool {
    let found = succeeds(Command::new("age").arg("--version"));
    if !found {
        skip(what, "no `age`");
    }
    found
}

#[test]
fn model_signing_verifies_our_signature_and_refuses_another_file() {
    let Some(mut tool) = python("model_signing verifies our signature") else {
        return;
    };
    let folder = Folder::new();
    let key = folder.signer("a");
    let model = folder.write("m.gguf", Random(1).bytes(300_000));
    cloister(&["model", "sign", &text(&model), "--key", &text(&key)], 0);
    let signature = folder.path("m.gguf.sig");
    tool.args(["verify", "key", "--signature", &text(&signature), "--public_key"]);
    tool.arg(folder.path("trust/a.pem")).arg(&model);
    assert!(succeeds(&mut tool));
    folder.write("m.gguf", Random(2).bytes(300_000));
    assert!(!succeeds(&mut tool));
}

#[test]
fn we_verify_a_signature_of_model_signing() {
    let folder = Folder::new();
    let key = folder.signer("a");
    let model = folder.write("m.gguf", Random(1).bytes(300_000));
    let signature = folder.path("theirs.sig");
    let Some(mut tool) = python("we verify a signature of model_signing") else {
        return;
    };
    tool.args(["sign", "key", "--signature", &text(&signature), "--private_key"]);
    assert!(succeeds(tool.arg(&key).arg(&model)));
    let ownership = Ownership::of(&[nix::unistd::getuid().as_raw()]);
    let trust = TrustStore::open(&folder.path("trust"), &ownership).unwrap();
    let bundle = fs::read(&signature).unwrap();
    let statement = verify(&bundle, &trust, Some("m.gguf"), SystemTime::now()).unwrap();
    let mut file = fs::File::open(&model).unwrap();
    let (digest, _) = hash_through(&mut file, &mut std::io::sink()).unwrap();
    statement.check(&digest).unwrap();
}

#[test]
fn age_opens_what_we_seal_and_we_open_what_age_seals() {
    if !age("age opens what we seal") {
        return;
    }
    let folder = Folder::new();
    let identity = Identity::generate();
    let id = folder.write("id.txt", identity.to_file().expose());
    let key = folder.signer("a");
    let trust = text(&folder.path("trust"));
    for len in [0, 1, 65_536, 1_000_003] {
        let model = folder.write("m.gguf", Random(7).bytes(len));
        cloister(&["model", "sign", &text(&model), "--key", &text(&key), "--force"], 0);
        let recipient = identity.recipient();
        cloister(&["model", "seal", &text(&model), "--recipient", &recipient, "--force"], 0);
        let ours = folder.path("m.gguf.age");
        let opened = Command::new("age").arg("-d").arg("-i").arg(&id).arg(&ours).output().unwrap();
        assert!(opened.status.success() && opened.stdout == fs::read(&model).unwrap(), "{len}");
        fs::remove_file(&ours).unwrap();
        assert!(succeeds(
            Command::new("age").args(["-r", &recipient, "-o"]).arg(&ours).arg(&model)
        ));
        let verified =
            ["model", "verify", &text(&ours), "--trust", &trust, "--identity", &text(&id)];
        cloister(&verified, 0);
    }
}

#[test]
fn an_identity_of_age_keygen_is_read() {
    if !age("an identity of age-keygen is read") {
        return;
    }
    let folder = Folder::new();
    let path = folder.path("id.txt");
    let made = Command::new("age-keygen").arg("-o").arg(&path).output().unwrap();
    let told = String::from_utf8(made.stderr).unwrap();
    let identity = Identity::open(&path).unwrap();
    assert!(told.trim().ends_with(&identity.recipient()), "{told}");
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
