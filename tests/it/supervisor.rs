//! The real supervisor, its spawner, opener and loader, on a tiny model: opened, recorded, refused.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support;

mod intake;

/// Longest wait for a step of the appliance on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The user that a test under root drops to.
const NOBODY: u32 = 65534;

/// Who starts the supervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum User {
    /// Whoever runs the tests.
    Own,
    /// A plain user, by `setpriv`; only root can.
    Nobody,
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A folder with keys, a sealed and signed tiny model and a configuration.
struct Site {
    folder: PathBuf,
    user: User,
    child: Option<Child>,
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Site {
    fn new(name: &str, user: User) -> Self {
        let unique = format!("cloister-supervisor-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(unique);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("trust")).unwrap();
        let site = Self { folder, user, child: None };
        fs::copy(support::golden().join("tiny/llama.gguf"), site.path("tiny.gguf")).unwrap();
        site.cloister(&["keygen", "signing", "--out", "signing.pem"]);
        fs::copy(site.path("signing.pub.pem"), site.path("trust/test.pem")).unwrap();
        site.cloister(&["keygen", "model-identity", "--out", "identity.txt"]);
        site.cloister(&["keygen", "audit", "--name", "cloister/audit", "--out", "audit.pem"]);
        site.cloister(&["model", "sign", "tiny.gguf", "--key", "signing.pem"]);
        let identity = fs::read_to_string(site.path("identity.txt")).unwrap();
        let recipient = identity.lines().next().unwrap().rsplit(' ').next().unwrap();
        site.cloister(&["model", "seal", "tiny.gguf", "--recipient", recipient]);
        site.configure("tiny.gguf.age", "");
        site.cloister(&["token", "add", "alice", "--config", "cloister.toml"]);
        site.give_away();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn configure(&self, model: &str, more: &str) {
        let text = format!(
            "[server]\nlisten = [\"unix:api.sock\"]\n[[model]]\nname = \"tiny\"\n\
             file = \"{model}\"\nsignature = \"tiny.gguf.sig\"\n{more}\n\
             [keys]\nidentity = \"identity.txt\"\naudit = \"audit.pem\"\n\
             [audit]\nfolder = \"state/audit\"\n[control]\nsocket = \"run/control.sock\"\n"
        );
        fs::write(self.path("cloister.toml"), text).unwrap();
        self.give_away();
    }

    /// Makes everything the starting user's.
    fn give_away(&self) {
        let mut folders = vec![self.folder.clone()];
        while let Some(folder) = folders.pop() {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
            if self.user == User::Nobody {
                chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if self.user == User::Nobody && !path.is_symlink() {
                    chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
                }
            }
        }
    }

    fn cloister(&self, arguments: &[&str]) -> Output {
        let program = env!("CARGO_BIN_EXE_cloister");
        let output = Command::new(program).args(arguments).current_dir(&self.folder).output();
        let output = output.unwrap();
        assert!(output.status.code().is_some_and(|code| code < 2), "{arguments:?}: {output:?}");
        output
    }

    fn command(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_cloister-supervisor");
        let mut command = match self.user {
            User::Own => Command::new(program),
            User::Nobody => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", program]);
                command
            }
        };
        let errors = File::create(self.path("errors")).unwrap();
        command.args(["--config", "cloister.toml"]).current_dir(&self.folder);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        command
    }

    fn start(&mut self) {
        self.child = Some(self.command().spawn().unwrap());
        let start = Instant::now();
        // The socket answers once models are open; the first answer is awaited by `status`.
        while self.status().is_none() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.errors());
            assert!(start.elapsed() < PATIENCE, "no answer: {}", self.errors());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs the supervisor to its end, which must be a refusal.
    fn refusal(&self) -> String {
        let status = self.command().status().unwrap();
        assert_eq!(status.code(), Some(1), "{}", self.errors());
        self.errors()
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.path("errors")).unwrap_or_default()
    }

    fn status(&self) -> Option<Value> {
        let arguments = ["status", "--json", "--config", "cloister.toml"];
        let program = env!("CARGO_BIN_EXE_cloister");
        let output = Command::new(program).args(arguments).current_dir(&self.folder).output();
        serde_json::from_slice(&output.unwrap().stdout).ok()
    }

    /// Stops in order; returns the events of the log, which must be intact.
    fn stop(&mut self) -> Vec<Value> {
        let mut child = self.child.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{status:?}: {}", self.errors());
        self.events()
    }

    fn events(&self) -> Vec<Value> {
        let log = ["state/audit", "--public-key", "audit.vkey"];
        let verified = self.cloister(&["audit", "verify", log[0], log[1], log[2]]);
        assert!(verified.status.success(), "{verified:?}");
        let listed = self.cloister(&["audit", "list", log[0], log[1], log[2], "--json"]);
        let text = String::from_utf8(listed.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Whether any of the records is of this event.
fn has(events: &[Value], name: &str) -> bool {
    events.iter().any(|record| record.to_string().contains(&format!("\"{name}\":{{")))
}

fn sha256_hex(path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn opens_and_records(name: &str, user: User, profile: &str) {
    let mut site = Site::new(name, user);
    site.start();
    let status = site.status().unwrap();
    assert_eq!(status["profile"], profile, "{status}");
    let facts = &status["models"][0]["observed"];
    assert_eq!(facts["digest"], sha256_hex(&site.path("tiny.gguf")).as_str(), "{status}");
    assert_eq!(facts["signer"], "test.pem", "{status}");
    assert_eq!(facts["sealed"], true, "{status}");
    assert_eq!(status["tokens_valid"], 1, "{status}");
    let missing = status["missing_protections"].as_array().unwrap().len();
    assert_eq!(missing > 0, profile == "evaluation", "{status}");
    // A fresh token counts at once, by the descriptor that comes with the order to reload.
    if user == User::Own {
        site.cloister(&["token", "add", "bob", "--config", "cloister.toml"]);
        assert_eq!(site.status().unwrap()["tokens_valid"], 2);
    }
    let events = site.stop();
    for event in ["start", "model_opened", "tokens_loaded", "key_used", "stop"] {
        assert!(has(&events, event), "no {event}: {events:?}");
    }
    assert!(!events.iter().any(|record| record.to_string().contains("alice")));
}

#[test]
fn a_sealed_model_is_opened_recorded_and_shown() {
    let profile = if is_root() { "full" } else { "evaluation" };
    opens_and_records("opened", User::Own, profile);
}

#[test]
fn who_reads_the_log_is_on_the_record_or_is_told_that_it_is_not() {
    let mut site = Site::new("readers", User::Own);
    site.start();
    let log = ["state/audit", "--public-key", "audit.vkey", "--config"];
    let read = |site: &Site, command: &str, config: &str| {
        site.cloister(&[&["audit", command][..], &log, &[config]].concat())
    };
    let told = |done: &Output| String::from_utf8_lossy(&done.stderr).contains("not recorded");
    for command in ["list", "stats", "verify"] {
        let done = read(&site, command, "cloister.toml");
        assert!(done.status.success() && !told(&done), "{done:?}");
    }
    assert!(told(&read(&site, "list", "elsewhere.toml")), "no appliance that could record it");
    let events = site.stop();
    let uid = nix::unistd::geteuid().as_raw();
    let actions: Vec<&str> = events
        .iter()
        .map(|record| &record["event"]["log_read"])
        .filter(|read| read["observed"]["uid"] == uid)
        .filter_map(|read| read["declared"]["action"].as_str())
        .collect();
    assert_eq!(actions, ["list", "stats", "verify"]);
    assert!(told(&read(&site, "list", "cloister.toml")), "an appliance that has stopped");
}

#[test]
fn a_plain_user_gets_the_evaluation_profile() {
    if !is_root() {
        // The test above ran as one.
        return;
    }
    opens_and_records("plain-user", User::Nobody, "evaluation");
}

#[test]
fn a_changed_model_is_refused_with_the_check_that_failed() {
    let site = Site::new("changed", User::Own);
    let sealed = site.path("tiny.gguf.age");
    let good = fs::read(&sealed).unwrap();
    // In the header's MAC, in the first chunk, at a chunk's border, in the last byte; and cut.
    let header_len = good.windows(4).position(|window| window == b"--- ").unwrap();
    for at in [header_len + 8, header_len + 100, header_len + 64 + 65_552, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&sealed, bad).unwrap();
        let errors = site.refusal();
        assert!(errors.contains("age") && errors.contains("refused"), "{at}: {errors}");
    }
    fs::write(&sealed, &good[..good.len() - 70_000]).unwrap();
    assert!(site.refusal().contains("refused"));
    // Well sealed, but not what was signed.
    let mut other = fs::read(site.path("tiny.gguf")).unwrap();
    let last = other.len() - 1;
    other[last] ^= 1;
    fs::write(site.path("tiny.gguf"), other).unwrap();
    site.configure("tiny.gguf", "");
    let errors = site.refusal();
    assert!(errors.contains("not the one that was signed"), "{errors}");
    let events = site.events();
    assert!(has(&events, "model_refused") && !has(&events, "model_opened"), "{events:?}");
}

#[test]
fn a_kernel_with_less_landlock_than_asked_is_refused() {
    let site = Site::new("landlock", User::Own);
    site.configure("tiny.gguf.age", "[sandbox]\nlandlock_abi_min = 64");
    let why = site.refusal();
    assert!(why.contains("landlock ABI is") && why.contains("at least 64 is needed"), "{why}");
}

#[test]
fn unsigned_wrongly_signed_and_linked_models_are_refused() {
    let site = Site::new("unsigned", User::Own);
    let signature = site.path("tiny.gguf.sig");
    let good = fs::read_to_string(&signature).unwrap();
    fs::write(&signature, good.replacen("\"sig\":\"ME", "\"sig\":\"MF", 1)).unwrap();
    assert!(site.refusal().contains("model tiny is refused"));
    fs::remove_file(&signature).unwrap();
    let unsigned = site.refusal();
    assert!(unsigned.contains("model tiny is refused"), "{unsigned}");
    let missing = format!("there is no signature {}", signature.display());
    assert!(unsigned.contains(&missing) && unsigned.contains("cloister.toml"), "{unsigned}");
    assert!(has(&site.events(), "model_refused"));
    fs::write(&signature, good).unwrap();
    fs::rename(site.path("tiny.gguf"), site.path("elsewhere.gguf")).unwrap();
    symlink("elsewhere.gguf", site.path("tiny.gguf")).unwrap();
    site.configure("tiny.gguf", "");
    assert!(site.refusal().contains("link"));
}

#[test]
fn a_signed_file_that_is_no_model_is_refused_by_its_field() {
    let site = Site::new("no-model", User::Own);
    let mut bytes = fs::read(site.path("tiny.gguf")).unwrap();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(site.path("tiny.gguf"), bytes).unwrap();
    site.cloister(&["model", "sign", "tiny.gguf", "--key", "signing.pem", "--force"]);
    site.configure("tiny.gguf", "");
    let errors = site.refusal();
    assert!(errors.contains("model tiny is refused") && errors.contains("tensor"), "{errors}");
}

#[test]
fn without_a_trust_folder_it_says_what_to_put_there() {
    let site = Site::new("trust", User::Own);
    fs::remove_dir_all(site.path("trust")).unwrap();
    let errors = site.refusal();
    let what = format!("there is no trust folder {}; make it", site.path("trust").display());
    assert!(errors.contains(&what) && errors.contains("keys.trust"), "{errors}");
}

#[test]
fn an_unsigned_model_is_served_only_by_an_override_that_is_recorded() {
    let mut site = Site::new("override", User::Own);
    fs::remove_file(site.path("tiny.gguf.sig")).unwrap();
    site.configure("tiny.gguf.age", "allow_unsigned = true");
    site.start();
    let status = site.status().unwrap();
    assert_eq!(status["models"][0]["observed"]["signer"], "nobody (allow_unsigned)", "{status}");
    let events = site.stop();
    let text = format!("{events:?}");
    assert!(has(&events, "model_opened") && text.contains("allow_unsigned"), "{text}");
}

#[test]
fn secrets_that_others_may_read_stop_the_start() {
    let site = Site::new("modes", User::Own);
    for name in ["identity.txt", "audit.pem", "tokens.toml"] {
        let path = site.path(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let errors = site.refusal();
        assert!(errors.contains(name) && errors.contains("chmod 600"), "{errors}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn a_killed_supervisor_takes_its_children_along_and_the_next_start_says_so() {
    let mut site = Site::new("killed", User::Own);
    site.start();
    let mut child = site.child.take().unwrap();
    let pids: Vec<i64> = site.status().unwrap()["children"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|child| child["pid"].as_i64())
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    let start = Instant::now();
    for pid in pids {
        while Path::new(&format!("/proc/{pid}")).exists() {
            assert!(start.elapsed() < PATIENCE, "child {pid} outlives its supervisor");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    site.start();
    assert!(has(&site.stop(), "recovered"));
}
