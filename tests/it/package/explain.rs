//! `cloister model explain` and `quarantine`: each fault under its check, and nothing loaded from there.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::chains::Authority;
use super::commands::cloister;
use super::{Folder, Random, samples};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A signed and sealed package with its trust folder and identity.
struct Site {
    folder: Folder,
    recipient: String,
}

impl Site {
    fn new() -> Self {
        let folder = Folder::new();
        let at = |name: &str| text(&folder.path(name));
        let made = cloister(&["keygen", "model-identity", "--out", &at("id.txt"), "--json"], 0);
        let made: Value = serde_json::from_str(&made).unwrap();
        let recipient = made["recipient"].as_str().unwrap().to_owned();
        folder.signer("me");
        let model = [b"GGUF".to_vec(), Random(3).bytes(200_000)].concat();
        folder.write("m.gguf", model);
        let site = Self { folder, recipient };
        site.sign();
        site.seal();
        site
    }

    fn at(&self, name: &str) -> String {
        text(&self.folder.path(name))
    }

    fn sign(&self) {
        cloister(&["model", "sign", &self.at("m.gguf"), "--key", &self.at("me.key"), "--force"], 0);
    }

    fn seal(&self) {
        let model = self.at("m.gguf");
        cloister(&["model", "seal", &model, "--recipient", &self.recipient, "--force"], 0);
    }

    /// Explains a file; returns the verdict of each check.
    fn explain(&self, file: &str, code: i32) -> Vec<(String, String, String)> {
        let (file, trust, identity) = (self.at(file), self.at("trust"), self.at("id.txt"));
        let words = ["model", "explain", &file, "--trust", &trust, "--identity", &identity];
        let shown = cloister(&words, code);
        let printed = cloister(&[&words[..], &["--json"]].concat(), code);
        // An incomplete report is followed by a sentence on standard error.
        let report: Value = serde_json::from_str(printed.lines().next().unwrap()).unwrap();
        let model = &report["models"][0];
        let verdict = ["ADMISSIBLE", "REFUSED", "INCOMPLETE"][usize::try_from(code).unwrap()];
        assert_eq!(model["verdict"], verdict, "{report}");
        assert!(shown.starts_with(&format!("{verdict}: ")), "{shown}");
        let field = |check: &Value, name: &str| check[name].as_str().unwrap_or_default().to_owned();
        let checks = model["checks"].as_array().unwrap().iter();
        let checks = checks.map(|check| {
            let found = field(check, "found");
            assert!(shown.contains(&found), "{found} is not in {shown}");
            (field(check, "check"), field(check, "verdict"), found + &field(check, "fix"))
        });
        checks.collect()
    }

    /// Explains a file that must be refused for `check`, in words that hold `why`.
    fn refused(&self, file: &str, check: &str, why: &str) {
        let checks = self.explain(file, 1);
        let (name, _, found) = checks.iter().find(|(_, verdict, _)| verdict == "fails").unwrap();
        assert!(name == check && found.contains(why), "not {check}, {why}: {checks:?}");
    }
}

const ALL: [&str; 13] = [
    "file",
    "quarantine",
    "form",
    "trust",
    "bundle",
    "signer",
    "revocation",
    "signature",
    "statement",
    "lists",
    "identity",
    "content",
    "digest",
];

#[test]
fn a_good_package_passes_every_check_and_says_what_was_found() {
    let site = Site::new();
    for file in ["m.gguf", "m.gguf.age"] {
        let checks = site.explain(file, 0);
        let names: Vec<_> = checks.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ALL);
        assert!(checks.iter().all(|(_, verdict, _)| verdict == "holds"), "{checks:?}");
    }
    let shown =
        cloister(&["model", "explain", &site.at("m.gguf"), "--trust", &site.at("trust")], 0);
    assert!(shown.contains("key me.pem: ") && shown.contains("as signed"), "{shown}");
}

#[test]
fn every_fault_is_named_under_its_check_with_what_to_do() {
    let site = Site::new();
    let folder = &site.folder;
    let good_bundle = fs::read_to_string(folder.path("m.gguf.sig")).unwrap();
    let good_sealed = fs::read(folder.path("m.gguf.age")).unwrap();
    let good_key = fs::read_to_string(folder.path("trust/me.pem")).unwrap();

    // The model file.
    std::os::unix::fs::symlink(folder.path("m.gguf"), folder.path("l.gguf")).unwrap();
    site.refused("l.gguf", "file", "link");
    assert!(
        site.explain("none.gguf", 2)
            .iter()
            .any(|(name, verdict, _)| { name == "file" && verdict == "missing" })
    );
    folder.write("x.gguf", "not a model");
    site.refused("x.gguf", "form", "neither an age file nor GGUF");
    folder.write("x.gguf", &good_sealed);
    site.refused("x.gguf", "form", "does not end in .age");
    folder.write("m.gguf.age", "not sealed");
    site.refused("m.gguf.age", "form", "age header");
    let mut changed = good_sealed.clone();
    changed[100_000] ^= 1;
    folder.write("m.gguf.age", &changed);
    site.refused("m.gguf.age", "content", "chunk 1 does not authenticate");
    folder.write("m.gguf.age", &good_sealed);
    let identity = fs::read(folder.path("id.txt")).unwrap();
    cloister(&["keygen", "model-identity", "--out", &site.at("id.txt"), "--force"], 0);
    site.refused("m.gguf.age", "identity", "opens none of the 1 X25519 recipients");
    folder.write("id.txt", identity);

    // The signature.
    folder.write("m.gguf.sig", "{}");
    site.refused("m.gguf.age", "bundle", "mediaType");
    folder.write("m.gguf.sig", good_bundle.replacen("\"keyid\"", "\"keyid\":\"\",\"keyid\"", 1));
    site.refused("m.gguf.age", "bundle", "twice");
    folder.write("m.gguf.sig", good_bundle.replacen("\"sig\":\"ME", "\"sig\":\"MF", 1));
    site.refused("m.gguf.age", "signature", "does not verify");
    folder.write("m.gguf.sig", &good_bundle);
    fs::copy(samples().join("p256.pub.pem"), folder.path("trust/me.pem")).unwrap();
    site.refused("m.gguf.age", "signer", "not in the trust folder");
    folder.write("trust/me.pem", &good_key);
    fs::copy(samples().join("p521.pub.pem"), folder.path("trust/p521.pem")).unwrap();
    fs::copy(samples().join("p521.sig"), folder.path("m.gguf.sig")).unwrap();
    site.refused("m.gguf.age", "signature", "P-521");
    folder.write("m.gguf.sig", &good_bundle);

    // The lists.
    let sha256 = site.explain("m.gguf", 0).pop().unwrap().2;
    let sha256 = sha256.trim_start_matches("SHA-256 ")[..64].to_owned();
    folder.write("trust/revoked.sha256", format!("{sha256}  withdrawn by its maker\n"));
    site.refused("m.gguf.age", "lists", "withdrawn by its maker");
    folder.write("trust/revoked.sha256", "");
    folder.write("trust/allowed.sha256", "");
    site.refused("m.gguf.age", "lists", "not on the list");
    folder.write("trust/allowed.sha256", "nonsense");
    assert!(site.explain("m.gguf", 2).iter().any(|(name, verdict, found)| {
        name == "trust" && verdict == "missing" && found.contains("line 1")
    }));
    fs::remove_file(folder.path("trust/allowed.sha256")).unwrap();

    // Other bytes than those that were signed.
    folder.write("m.gguf", [b"GGUF".to_vec(), Random(4).bytes(200_000)].concat());
    site.refused("m.gguf", "digest", &sha256);
}

#[test]
fn certificates_are_shown_with_their_dates() {
    let site = Site::new();
    let authority = Authority::new();
    site.folder.write("trust/root.pem", &authority.root_pem);
    let model = super::chains::sha256(&fs::read(site.folder.path("m.gguf")).unwrap());
    let leaf = authority.leaf(1_600_000_000, 1_700_000_000);
    site.folder.write("m.gguf.sig", leaf.sign(&model));
    site.refused("m.gguf", "signer", "has expired");
    let words = ["model", "explain", &site.at("m.gguf"), "--trust", &site.at("trust")];
    let shown = cloister(&words, 1);
    for what in
        ["root root.pem: CN=Test root", "CN=Test signer", "from 2020-09-13", "to 2023-11-14"]
    {
        assert!(shown.contains(what), "{what}: {shown}");
    }
    // A name in a certificate cannot write on the terminal.
    assert!(shown.chars().all(|c| c == '\n' || (' '..='~').contains(&c)), "{shown:?}");
}

#[test]
fn nothing_is_loaded_from_quarantine_and_what_is_mended_comes_back() {
    let site = Site::new();
    let at = |name: &str| site.at(name);
    let trust = at("trust");
    let identity = at("id.txt");
    let base = ["--trust", &trust, "--identity", &identity];
    let sealed = at("m.gguf.age");
    // A model that passes needs a reason.
    let add = [&["model", "quarantine", "add", &sealed][..], &base].concat();
    assert!(cloister(&add, 2).contains("--reason"));
    let good_key = fs::read(site.folder.path("trust/me.pem")).unwrap();
    fs::copy(samples().join("p256.pub.pem"), site.folder.path("trust/me.pem")).unwrap();
    let moved = cloister(&add, 0);
    assert!(moved.contains("quarantined: ") && moved.contains("why: signer: "), "{moved}");
    assert!(!site.folder.path("m.gguf.age").exists() && !site.folder.path("m.gguf.sig").exists());

    let folder = at("quarantine");
    let listed = cloister(&["model", "quarantine", "list", "--folder", &folder, "--json"], 0);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let note = &listed["packages"][0]["note"];
    assert_eq!(listed["packages"][0]["name"], "m.gguf.age", "{listed}");
    assert_eq!(note["file"], sealed.as_str(), "{listed}");
    assert_eq!(note["checks"].as_array().unwrap().len(), ALL.len(), "{listed}");
    let shown = cloister(&["model", "quarantine", "list", "--folder", &folder], 0);
    assert!(shown.contains("not in the trust folder") && shown.contains(&sealed), "{shown}");

    // Whatever is tried with it, and whatever the trust folder says.
    fs::write(site.folder.path("trust/me.pem"), &good_key).unwrap();
    let held = at("quarantine/m.gguf.age/m.gguf.age");
    let verify = [&["model", "verify", &held][..], &base].concat();
    assert!(cloister(&verify, 1).contains("quarantined"));
    let explain = [&["model", "explain", &held][..], &base].concat();
    assert!(cloister(&explain, 1).contains("FAILS    quarantine"));
    fs::copy(site.folder.path("m.gguf"), site.folder.path("quarantine/m.gguf.age/m.gguf")).unwrap();
    let plain = at("quarantine/m.gguf.age/m.gguf");
    for words in [
        &["model", "sign", &plain, "--key", &at("me.key")][..],
        &["model", "seal", &plain, "--recipient", &site.recipient],
    ] {
        assert!(cloister(words, 1).contains("quarantined"), "{words:?}");
    }
    assert!(cloister(&["bench", &plain], 2).contains("quarantined"));
    // The control: without the note the same files pass.
    let note = site.folder.path("quarantine/m.gguf.age/quarantine.json");
    let noted = fs::read(&note).unwrap();
    fs::remove_file(&note).unwrap();
    cloister(&verify, 0);
    fs::write(&note, noted).unwrap();
    fs::remove_file(&plain).unwrap();

    // It comes back when it passes, and not over another file.
    let release =
        [&["model", "quarantine", "release", "m.gguf.age", "--folder", &folder][..], &base];
    let release = release.concat();
    fs::copy(samples().join("p256.pub.pem"), site.folder.path("trust/me.pem")).unwrap();
    assert!(cloister(&release, 1).contains("still in quarantine"));
    fs::write(site.folder.path("trust/me.pem"), &good_key).unwrap();
    fs::write(&sealed, "another").unwrap();
    assert!(cloister(&release, 2).contains("exists already"));
    fs::remove_file(&sealed).unwrap();
    cloister(&release, 0);
    cloister(&[&["model", "verify", &sealed][..], &base].concat(), 0);
    assert!(!Path::new(&folder).join("m.gguf.age").exists());
    for name in ["m.gguf.age", "..", "a/b", ""] {
        let words = ["model", "quarantine", "release", name, "--folder", &folder];
        assert!(cloister(&words, 2).contains("holds no"), "{name}");
    }
}

#[test]
fn two_packages_of_one_name_and_one_without_a_signature_lie_side_by_side() {
    let site = Site::new();
    let (model, trust, folder) = (site.at("m.gguf"), site.at("trust"), site.at("q"));
    let add = ["model", "quarantine", "add", &model, "--trust", &trust, "--folder", &folder];
    let add = [&add[..], &["--reason", "a line\nand another"]].concat();
    cloister(&add, 0);
    site.folder.write("m.gguf", "GGUF");
    let shown = cloister(&add, 0);
    assert!(shown.contains("q/m.gguf.2") && shown.contains("a line\\nand another"), "{shown}");
    let listed = cloister(&["model", "quarantine", "list", "--folder", &folder, "--json"], 0);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["packages"][1]["note"]["signature"], Value::Null, "{listed}");
    // A note that was spoiled releases nothing, and is still a note.
    site.folder.write("q/m.gguf/quarantine.json", "{}");
    assert!(
        cloister(&["model", "quarantine", "release", "m.gguf", "--folder", &folder], 2)
            .contains("no note")
    );
    assert!(cloister(&["model", "quarantine", "list", "--folder", &folder], 0).contains("no note"));
    let held = site.at("q/m.gguf/m.gguf");
    assert!(cloister(&["model", "verify", &held, "--trust", &trust], 1).contains("quarantined"));
}
