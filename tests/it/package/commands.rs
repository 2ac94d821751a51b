//! The operator's commands: exit codes, errors that name file, field and fix, no secret shown.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{Folder, Random, samples};

/// Runs `cloister`, expects an exit code, returns what it printed (both streams).
pub(super) fn cloister(arguments: &[&str], code: i32) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_cloister")).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_package_is_made_and_verified_and_any_change_is_refused() {
    let folder = Folder::new();
    let at = |name: &str| text(&folder.path(name));
    let (key, id) = (at("signing.pem"), at("id.txt"));
    cloister(&["keygen", "signing", "--out", &key], 0);
    let made = cloister(&["keygen", "model-identity", "--out", &id, "--json"], 0);
    let made: Value = serde_json::from_str(&made).unwrap();
    let recipient = made["recipient"].as_str().unwrap().to_owned();
    fs::create_dir(folder.path("trust")).unwrap();
    fs::copy(folder.path("signing.pub.pem"), folder.path("trust/me.pem")).unwrap();
    let model = text(&folder.write("m.gguf", Random(3).bytes(200_000)));
    cloister(&["model", "sign", &model, "--key", &key], 0);
    cloister(&["model", "seal", &model, "--recipient", &recipient], 0);
    let sealed = at("m.gguf.age");
    let trust = at("trust");
    let verify = ["model", "verify", &sealed, "--trust", &trust, "--identity", &id, "--json"];
    let report: Value = serde_json::from_str(&cloister(&verify, 0)).unwrap();
    assert_eq!((&report["verdict"], &report["signer"]), (&"VERIFIED".into(), &"me.pem".into()));
    assert_eq!(report["len_bytes"], 200_000);
    let shown = cloister(&["model", "verify", &model, "--trust", &trust, "--timing"], 0);
    assert!(shown.contains("VERIFIED") && shown.contains("% of what is possible"), "{shown}");
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let program = env!("CARGO_BIN_EXE_cloister");
    let output = Command::new(program).args(verify).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(why.contains("the result cannot be written: No space left"), "{why}");
    let mut timed = verify.to_vec();
    timed.push("--timing");
    let report: Value = serde_json::from_str(&cloister(&timed, 0)).unwrap();
    let limits = &report["limits_bytes_per_s"];
    assert!(report["share"].as_f64().unwrap() > 0.0, "{report}");
    assert!(limits["least"].as_f64() <= limits["hash"].as_f64(), "{report}");
    assert!(limits["decrypt_and_hash"].as_f64().unwrap() > 0.0, "{report}");

    let mut changed = fs::read(&sealed).unwrap();
    changed[100_000] ^= 1;
    folder.write("m.gguf.age", &changed);
    let shown = cloister(&verify[..7], 1);
    assert!(shown.contains("m.gguf.age") && shown.contains("chunk 1"), "{shown}");
    assert!(shown.contains("seal it again"), "{shown}");
    folder.write("m.gguf", Random(4).bytes(200_000));
    let shown = cloister(&["model", "verify", &model, "--trust", &trust], 1);
    assert!(shown.contains("not the one that was signed"), "{shown}");
    symlink(&model, folder.path("link.gguf")).unwrap();
    let signature = at("m.gguf.sig");
    let link = ["model", "verify", &at("link.gguf"), "--signature", &signature, "--trust", &trust];
    assert!(cloister(&link, 1).contains("symbolic link"));
    fs::remove_file(folder.path("trust/me.pem")).unwrap();
    fs::copy(samples().join("p256.pub.pem"), folder.path("trust/other.pem")).unwrap();
    let shown = cloister(&["model", "verify", &model, "--trust", &trust], 1);
    assert!(shown.contains("m.gguf.sig") && shown.contains("not in the trust folder"), "{shown}");
}

#[test]
fn faults_are_not_refusals() {
    let folder = Folder::new();
    let key = text(&folder.signer("a"));
    let trust = text(&folder.path("trust"));
    let model = text(&folder.write("m.gguf", "model"));
    let id = text(&folder.path("id.txt"));
    cloister(&["model", "sign", &text(&folder.path("none")), "--key", &key], 2);
    cloister(&["model", "sign", &model, "--key", &model], 2);
    cloister(&["model", "sign", &model], 2);
    let unsigned = cloister(&["model", "verify", &model, "--trust", &trust], 2);
    assert!(unsigned.contains(&format!("there is no signature {model}.sig")), "{unsigned}");
    assert!(unsigned.contains("or name another: --signature FILE"), "{unsigned}");
    cloister(&["model", "sign", &model, "--key", &key], 0);
    let again = cloister(&["model", "sign", &model, "--key", &key], 2);
    assert!(again.contains("m.gguf.sig exists already") && again.contains("--force"), "{again}");
    let nowhere = text(&folder.path("nowhere"));
    for (command, code) in [("verify", 2), ("explain", 1)] {
        let shown = cloister(&["model", command, &model, "--trust", &nowhere], code);
        assert!(shown.contains(&format!("there is no trust folder {nowhere}")), "{shown}");
        assert!(
            shown.contains("public key (PEM) into it, or name another: --trust DIR"),
            "{shown}"
        );
    }
    cloister(&["model", "seal", &model, "--recipient", "age1pq1xyz"], 2);
    cloister(&["keygen", "model-identity", "--out", &id], 0);
    let again = cloister(&["keygen", "model-identity", "--out", &id], 2);
    assert!(again.contains("id.txt exists already"), "{again}");
}

#[test]
fn a_disk_that_is_full_is_blamed_on_the_file_that_was_written() {
    let folder = Folder::new();
    let at = |name: &str| text(&folder.path(name));
    let model = text(&folder.write("m.gguf", Random(5).bytes(200_000)));
    let made = cloister(&["keygen", "model-identity", "--out", &at("id.txt"), "--json"], 0);
    let made: Value = serde_json::from_str(&made).unwrap();
    // A limit on the size of files stands for the end of the disk.
    let limited = "trap '' XFSZ; ulimit -f 64; exec \"$@\"";
    let output = Command::new("bash")
        .args(["-c", limited, "bash", env!("CARGO_BIN_EXE_cloister"), "model", "seal", &model])
        .args(["--recipient", made["recipient"].as_str().unwrap()])
        .output()
        .unwrap();
    let shown = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{shown}");
    assert!(shown.contains("write") && shown.contains("m.gguf.age: File too large"), "{shown}");
    let left: Vec<_> =
        fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.iter().all(|path| !text(path).contains(".age")), "{left:?}");
}

#[test]
fn every_key_is_made_for_its_use_and_is_private() {
    let folder = Folder::new();
    let at = |name: &str| text(&folder.path(name));
    cloister(&["keygen", "signing", "--out", &at("signing.pem")], 0);
    cloister(&["keygen", "model-identity", "--out", &at("id.txt")], 0);
    cloister(&["keygen", "audit", "--name", "box.example/audit", "--out", &at("audit.pem")], 0);
    cloister(
        &["keygen", "tls", "--host", "box.example", "--host", "10.0.0.7", "--out", &at("tls.pem")],
        0,
    );
    for name in ["signing.pem", "id.txt", "audit.pem", "tls.pem"] {
        let mode = fs::metadata(folder.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let pem = fs::read(folder.path("audit.pem")).unwrap();
    let signer = cloister::audit::Signer::from_pem("box.example/audit", &pem).unwrap();
    let verifier = fs::read_to_string(folder.path("audit.vkey")).unwrap();
    assert_eq!(verifier.trim(), signer.verifier().to_text());
    let certificate = fs::read_to_string(folder.path("tls.cert.pem")).unwrap();
    assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"));
    cloister(&["keygen", "tls", "--host", "not a name\u{e9}", "--out", &at("x.pem")], 2);
    cloister(&["keygen", "audit", "--name", "with space", "--out", &at("x.pem")], 2);
    assert!(!folder.path("x.pem").exists());
}

#[test]
fn no_output_shows_a_secret() {
    let folder = Folder::new();
    let at = |name: &str| text(&folder.path(name));
    let mut shown = String::new();
    shown += &cloister(&["keygen", "signing", "--out", &at("signing.pem")], 0);
    shown += &cloister(&["keygen", "model-identity", "--out", &at("id.txt"), "--json"], 0);
    shown += &cloister(&["keygen", "audit", "--name", "a", "--out", &at("audit.pem"), "--json"], 0);
    shown += &cloister(&["keygen", "tls", "--out", &at("tls.pem")], 0);
    let model = text(&folder.write("m.gguf", "model"));
    shown += &cloister(&["model", "sign", &model, "--key", &at("signing.pem")], 0);
    // Keys in the wrong place, cut or changed: the errors must not quote them.
    let files = ["signing.pem", "id.txt", "audit.pem", "tls.pem"];
    for name in files {
        let secret = fs::read_to_string(folder.path(name)).unwrap();
        for (i, wrong) in [
            secret[..secret.len() - 40].to_owned(),
            format!("{secret}{secret}"),
            secret.to_lowercase(),
        ]
        .iter()
        .enumerate()
        {
            let path = text(&folder.write(&format!("wrong-{i}-{name}"), wrong));
            let out = at("out.sig");
            shown += &run(&["model", "sign", &model, "--key", &path, "--out", &out, "--force"]);
            shown += &run(&["model", "verify", &model, "--trust", &folder.0.to_string_lossy()]);
            shown += &run(&[
                "model",
                "verify",
                &model,
                "--signature",
                &path,
                "--trust",
                &at("trust"),
                "--identity",
                &path,
            ]);
        }
    }
    for name in files {
        let secret = fs::read_to_string(folder.path(name)).unwrap();
        let lines = secret.lines().filter(|line| !line.starts_with(['-', '#']));
        for line in lines.filter(|line| line.len() >= 20) {
            for piece in line.as_bytes().chunks(20).filter(|piece| piece.len() == 20) {
                let piece = std::str::from_utf8(piece).unwrap();
                // The head of every PKCS#8 key is the same and is no secret.
                let shows = shown.to_lowercase().contains(&piece.to_lowercase());
                assert!(!shows, "a piece of {name} was shown");
            }
        }
    }
}

/// Runs `cloister`, whatever the exit code.
fn run(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_cloister")).args(arguments).output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn every_command_has_examples() {
    for command in [
        &["model", "sign"][..],
        &["model", "seal"],
        &["model", "verify"],
        &["model", "explain"],
        &["model", "quarantine", "add"],
        &["model", "quarantine", "list"],
        &["model", "quarantine", "release"],
        &["keygen", "signing"],
        &["keygen", "model-identity"],
        &["keygen", "audit"],
        &["keygen", "tls"],
    ] {
        let help = cloister(&[command, &["--help"]].concat(), 0);
        assert!(help.contains("Examples:\n"), "{command:?}");
    }
}

#[test]
fn a_timing_is_the_share_of_the_least_of_its_limits() {
    let folder = Folder::new();
    let at = |name: &str| text(&folder.path(name));
    let (key, id, trust) = (at("signing.pem"), at("id.txt"), at("trust"));
    cloister(&["keygen", "signing", "--out", &key], 0);
    let made = cloister(&["keygen", "model-identity", "--out", &id, "--json"], 0);
    let made: Value = serde_json::from_str(&made).unwrap();
    fs::create_dir(&trust).unwrap();
    fs::copy(folder.path("signing.pub.pem"), folder.path("trust/me.pem")).unwrap();
    let model = text(&folder.write("m.gguf", Random(3).bytes(3 << 20)));
    cloister(&["model", "sign", &model, "--key", &key], 0);
    cloister(&["model", "seal", &model, "--recipient", made["recipient"].as_str().unwrap()], 0);
    for (file, is_sealed) in [(model.clone(), false), (format!("{model}.age"), true)] {
        let words = ["model", "verify", &file, "--trust", &trust, "--identity", &id, "--json"];
        let plain: Value = serde_json::from_str(&cloister(&words, 0)).unwrap();
        let report = cloister(&[&words[..], &["--timing"]].concat(), 0);
        let report: Value = serde_json::from_str(&report).unwrap();
        let limits = &report["limits_bytes_per_s"];
        let number = |value: &Value| value.as_f64().filter(|number| *number > 0.0);
        let (read, hash) = (number(&limits["read"]).unwrap(), number(&limits["hash"]).unwrap());
        let both = number(&limits["decrypt_and_hash"]);
        assert_eq!(both.is_some(), is_sealed, "{report}");
        let least = read.min(hash).min(both.unwrap_or(f64::INFINITY));
        let rate = f64::from(3 << 20) / number(&report["seconds"]).unwrap();
        for (told, want) in [
            (&limits["least"], least),
            (&report["bytes_per_s"], rate),
            (&report["share"], rate / least),
        ] {
            let told = number(told).unwrap();
            assert!((told / want - 1.0).abs() < 1e-9, "{told}, not {want}: {report}");
        }
        for member in ["seconds", "bytes_per_s", "limits_bytes_per_s", "share"] {
            assert!(plain.get(member).is_none(), "{plain}");
        }
        for member in ["verdict", "sha256", "signer", "len_bytes"] {
            assert_eq!(plain[member], report[member], "{member}");
        }
    }
}
