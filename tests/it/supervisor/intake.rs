//! Model intake as the real supervisor does it: lists, quarantine, expired certificates, changing files.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::*;
use crate::appliance::scalar;
use crate::package::chains::{Authority, hex, sha256};

/// The reason of each refusal that the log holds.
fn refusals(events: &[Value]) -> Vec<String> {
    let checks = events.iter().filter_map(|record| {
        record.pointer("/event/model_refused/observed/check")?.as_str().map(ToOwned::to_owned)
    });
    checks.collect()
}

fn opened(events: &[Value]) -> Vec<&Value> {
    events.iter().filter_map(|record| record.pointer("/event/model_opened/observed")).collect()
}

#[test]
fn revoked_unlisted_and_quarantined_models_are_refused_by_name_and_recorded() {
    let mut site = Site::new("lists", User::Own);
    let model = sha256_hex(&site.path("tiny.gguf"));
    let revoked = site.path("trust/revoked.sha256");
    let allowed = site.path("trust/allowed.sha256");
    fs::write(&revoked, format!("{model}  withdrawn\n")).unwrap();
    assert!(site.refusal().contains("the model is revoked: withdrawn"), "{}", site.errors());
    let key = sha256_hex(&site.path("trust/test.pem"));
    fs::write(&revoked, format!("{key}  stolen\n")).unwrap();
    assert!(site.refusal().contains("the signer's key is revoked: stolen"), "{}", site.errors());
    fs::write(&revoked, "").unwrap();
    fs::write(&allowed, format!("{key}  another model\n")).unwrap();
    let why = site.refusal();
    assert!(why.contains("not on the list of allowed ones") && why.contains(&model), "{why}");
    assert!(why.contains("cloister model explain"), "{why}");

    // Who has no signature is held against the lists too, by the bytes that came.
    let signature = fs::read(site.path("tiny.gguf.sig")).unwrap();
    fs::remove_file(site.path("tiny.gguf.sig")).unwrap();
    site.configure("tiny.gguf.age", "allow_unsigned = true");
    assert!(site.refusal().contains("not on the list of allowed ones"), "{}", site.errors());
    fs::write(site.path("tiny.gguf.sig"), signature).unwrap();
    site.configure("tiny.gguf.age", "");

    fs::write(&allowed, format!("{model}  tiny.gguf\n")).unwrap();
    fs::write(site.path("quarantine.json"), "{}").unwrap();
    assert!(site.refusal().contains("quarantine"), "{}", site.errors());
    fs::remove_file(site.path("quarantine.json")).unwrap();

    // The control: the same model on the list is served.
    site.start();
    let events = site.stop();
    assert_eq!(opened(&events).len(), 1);
    let checks = refusals(&events);
    let words = ["withdrawn", "stolen", "not on the list", "not on the list", "quarantine"];
    assert!(
        checks.len() == words.len()
            && checks.iter().zip(words).all(|(check, word)| check.contains(word)),
        "{checks:?}"
    );
}

#[test]
fn an_admitted_model_is_served_after_its_certificate_expired_and_no_other() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut site = Site::new("expired", User::Own);
    let authority = Authority::new();
    fs::write(site.path("trust/root.pem"), &authority.root_pem).unwrap();
    let model = sha256(&fs::read(site.path("tiny.gguf")).unwrap());
    let admission = |bundle: &str| {
        let name = hex(&sha256(bundle.as_bytes()));
        site.path("state/admissions").join(name)
    };

    // A valid certificate: the admission is kept by the supervisor itself.
    let valid = authority.leaf(now - 3600, now + 86_400).sign(&model);
    fs::write(site.path("tiny.gguf.sig"), &valid).unwrap();
    let kept_path = admission(&valid);
    // An expired one that was never admitted is refused ...
    let expired = authority.leaf(now - 7200, now - 3600).sign(&model);
    let expired_path = admission(&expired);
    site.start();
    let status = site.status().unwrap();
    assert_eq!(status["models"][0]["observed"]["signer"], "root.pem", "{status}");
    site.stop();
    let kept: Value = serde_json::from_slice(&fs::read(&kept_path).unwrap()).unwrap();
    assert_eq!(kept["model"], hex(&model).as_str());
    assert!(kept["admitted_s"].as_u64().unwrap() >= now);
    fs::write(site.path("tiny.gguf.sig"), &expired).unwrap();
    assert!(site.refusal().contains("certificate has expired"), "{}", site.errors());

    // ... and is served where it was admitted while it was valid, which the log says.
    let text = format!("{{\"model\":\"{}\",\"admitted_s\":{}}}", hex(&model), now - 5000);
    fs::write(&expired_path, text).unwrap();
    if is_root() {
        chown(&expired_path, Some(60_800), Some(60_800)).unwrap();
    }
    site.start();
    let events = site.stop();
    let last = opened(&events).pop().unwrap().clone();
    assert_eq!((&last["admitted_s"], &last["signer"]), (&(now - 5000).into(), &"root.pem".into()));
    // Not what was signed then.
    fs::write(site.path("trust/revoked.sha256"), hex(&model)).unwrap();
    assert!(site.refusal().contains("revoked"), "{}", site.errors());
}

#[test]
fn what_is_served_is_what_was_signed_whatever_becomes_of_the_file_meanwhile() {
    let site = Site::new("race", User::Own);
    let signed = sha256_hex(&site.path("tiny.gguf"));
    let mut other = fs::read(site.path("tiny.gguf")).unwrap();
    let last = other.len() - 1;
    other[last] ^= 1;
    fs::write(site.path("other.gguf"), &other).unwrap();
    fs::copy(site.path("tiny.gguf"), site.path("good.gguf")).unwrap();
    site.configure("tiny.gguf", "");
    let (good, bad, path) =
        (site.path("good.gguf"), site.path("other.gguf"), site.path("tiny.gguf"));
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Another file takes its place, and bytes change within it, as fast as can be.
            while !is_done.load(Ordering::Relaxed) {
                for source in [&good, &bad] {
                    let next = source.with_extension("next");
                    fs::copy(source, &next).unwrap();
                    fs::rename(&next, &path).unwrap();
                }
                fs::copy(&good, path.with_extension("next")).unwrap();
                fs::rename(path.with_extension("next"), &path).unwrap();
                let mut file = File::options().write(true).read(true).open(&path).unwrap();
                let at = file.seek(SeekFrom::End(-1)).unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all(&[byte[0] ^ 1]).unwrap();
            }
        });
        let (mut served, mut refused) = (0, 0);
        let start = Instant::now();
        while (served == 0 || refused == 0) && start.elapsed() < PATIENCE {
            let mut child = site.command().spawn().unwrap();
            let digest = loop {
                if let Some(status) = site.status() {
                    break Some(status["models"][0]["observed"]["digest"].clone());
                }
                if let Some(status) = child.try_wait().unwrap() {
                    assert_eq!(status.code(), Some(1), "{}", site.errors());
                    break None;
                }
                std::thread::sleep(Duration::from_millis(20));
            };
            let digest_is_there = digest.is_some();
            match digest {
                Some(digest) => {
                    assert_eq!(digest, signed.as_str());
                    served += 1;
                }
                None => {
                    assert!(
                        site.errors().contains("not the one that was signed"),
                        "{}",
                        site.errors()
                    );
                    refused += 1;
                }
            }
            if digest_is_there {
                let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
            }
            child.wait().unwrap();
        }
        is_done.store(true, Ordering::Relaxed);
        assert!(served > 0 && refused > 0, "{served} served, {refused} refused");
    });
    let events = site.events();
    assert!(opened(&events).iter().all(|facts| facts["digest"] == signed.as_str()), "{events:?}");
}

/// All files below a folder that hold these bytes.
fn files_with(folder: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(facts) = path.symlink_metadata() else { continue };
        if facts.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if facts.is_file() {
            let text = fs::read(&path).unwrap_or_default();
            if support::holds(&text, bytes) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn no_weight_of_a_sealed_model_reaches_a_file() {
    let mut site = Site::new("weights", User::Own);
    let plain = fs::read(site.path("tiny.gguf")).unwrap();
    // Out of the tensors' data, which is the end of the file.
    let weights = plain[plain.len() - 4096..plain.len() - 4064].to_vec();
    assert!(weights.iter().any(|byte| *byte != 0));
    assert_eq!(files_with(&site.folder, &weights), [site.path("tiny.gguf")], "the control");
    fs::remove_file(site.path("tiny.gguf")).unwrap();
    site.start();
    for place in [site.folder.as_path(), Path::new("/dev/shm")] {
        assert_eq!(files_with(place, &weights), [""; 0].map(PathBuf::from), "while it is served");
    }
    site.stop();
    assert_eq!(files_with(&site.folder, &weights), [""; 0].map(PathBuf::from), "afterwards");
}

#[test]
fn the_identity_is_in_no_child_no_environment_and_no_command_line() {
    let mut site = Site::new("identity", User::Own);
    let file = fs::read_to_string(site.path("identity.txt")).unwrap();
    let line = file.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).unwrap();
    let secret = scalar(line);
    site.start();
    let supervisor = i32::try_from(site.child.as_ref().unwrap().id()).unwrap();
    let status = site.status().unwrap();
    let children: Vec<i32> = status["children"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|child| i32::try_from(child["pid"].as_i64()?).ok())
        .collect();
    assert!(children.len() >= 2, "{status}");
    for pid in children.iter().copied().chain([supervisor]) {
        for name in ["environ", "cmdline"] {
            let text = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            assert!(!text.windows(40).any(|window| line.as_bytes().starts_with(window)), "{name}");
        }
    }
    if !is_root() {
        return support::skip("the memory of living processes", "the tests run as a plain user");
    }
    let holds = |pid: i32| {
        [line.as_bytes(), &secret]
            .into_iter()
            .any(|text| !crate::appliance::found_in(pid, text).is_empty())
    };
    assert!(holds(std::process::id().cast_signed()), "the control: this test has it");
    // The supervisor had it while it opened the model: `appliance::keys`.
    for pid in children.into_iter().chain([supervisor]) {
        assert!(!holds(pid), "process {pid}");
    }
    site.stop();
}
