//! A TPM counts the starts: a log that was put back is named, and nothing starts on a count that did not rise.

use std::os::unix::fs::PermissionsExt as _;

use super::records::{complete, facts, tiny};
use super::*;

/// A software TPM in a folder of its own; both end with the test.
struct Tpm(PathBuf);

impl Tpm {
    fn start() -> Option<Self> {
        let has = |program| Command::new(program).arg("--version").output().is_ok();
        if !has("swtpm") || !has("tpm2_nvincrement") {
            support::skip("a counter in a TPM", "swtpm or tpm2-tools is not installed");
            return None;
        }
        let folder = PathBuf::from("/var/tmp").join(format!("cloister-tpm-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("state")).unwrap();
        let at = |name: &str| folder.join(name).display().to_string();
        let started = Command::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate", &format!("dir={}", at("state"))])
            .args(["--ctrl", &format!("type=unixio,path={}", at("s.sock.ctrl"))])
            .args(["--server", &format!("type=unixio,path={}", at("s.sock"))])
            .args(["--flags", "not-need-init,startup-clear", "--daemon"])
            .args(["--pid", &format!("file={}", at("pid"))])
            .status();
        assert!(started.unwrap().success());
        Some(Self(folder))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("TPM2TOOLS_TCTI", format!("swtpm:path={}", self.0.join("s.sock").display()));
        command
    }

    /// Runs the shipped script.
    fn script(&self, words: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/cloister-tpm-counter");
        self.command("sh").arg(script).args(words).output().unwrap()
    }

    fn undefine(&self) {
        let gone = self.command("tpm2_nvundefine").args(["-Q", "-C", "o", "0x1800c10"]).status();
        assert!(gone.unwrap().success());
    }

    /// Puts memory, which can be set to anything, where the counter was.
    fn define_memory(&self, number: u64) {
        let define = ["-Q", "-C", "o", "-s", "8", "-a", "ownerread|ownerwrite", "0x1800c10"];
        assert!(self.command("tpm2_nvdefine").args(define).status().unwrap().success());
        let file = self.0.join("number");
        fs::write(&file, number.to_be_bytes()).unwrap();
        let write = ["-Q", "-C", "o", "-i", file.to_str().unwrap(), "0x1800c10"];
        assert!(self.command("tpm2_nvwrite").args(write).status().unwrap().success());
    }

    fn read(&self) -> String {
        String::from_utf8(self.script(&["read"]).stdout).unwrap().trim().to_owned()
    }

    /// Counts up, and writes the count where the appliance reads it.
    fn count(&self, appliance: &Appliance) {
        let done = self.script(&["count", &appliance.path("tpm-counter")]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        if let Ok(pid) = fs::read_to_string(self.0.join("pid")) {
            let _ = Command::new("kill").arg(pid.trim()).status();
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Starts it, serves a request, and stops it.
fn run(appliance: &mut Appliance) {
    appliance.start_again();
    appliance.wait_until_ready();
    assert_eq!(complete(appliance), 200);
    appliance.stop();
}

fn must_not_start(appliance: &mut Appliance, why: &str) {
    let (before, starts) = (appliance.told().len(), facts(appliance, "start").len());
    appliance.start_again();
    assert!(!appliance.child.wait().unwrap().success(), "{why}");
    let told = appliance.told()[before..].to_owned();
    assert!(told.contains(why), "{told}");
    assert_eq!(facts(appliance, "start").len(), starts, "{why}");
}

fn verify(appliance: &Appliance, counter: &str) -> (Option<i32>, String) {
    let (log, key) = (appliance.path("audit"), appliance.path("audit.vkey"));
    let words = ["audit", "verify", &log, "--public-key", &key, "--tpm-counter", counter];
    let done = cloister(&words);
    (done.status.code(), String::from_utf8(done.stdout).unwrap())
}

fn copy(from: &str, to: &str) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").args(["-a", from, to]).status().unwrap().success());
}

#[test]
fn a_log_that_was_put_back_to_before_a_start_is_named_by_the_tpm() {
    let Some(tpm) = Tpm::start() else { return };
    let mut appliance = tiny(As::Oneself, "");
    appliance.stop();
    let (code, told) = verify(&appliance, "1");
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("no start in this log recorded a counter"), "{told}");
    appliance.change_config("[audit]\n", "[audit]\ntpm_counter = \"tpm-counter\"\n");
    tpm.count(&appliance);
    run(&mut appliance);
    tpm.count(&appliance);
    run(&mut appliance);
    let count = tpm.read();
    let (code, told) = verify(&appliance, &count);
    assert_eq!(code, Some(0), "{told}");
    let line = told.lines().next().unwrap();
    assert!(
        line.starts_with("INTACT") && line.ends_with(&format!("{count} is that of the last start"))
    );

    // An older state of the whole log, with its checkpoint and journal.
    let (log, old) = (appliance.path("audit"), appliance.path("old"));
    copy(&log, &old);
    tpm.count(&appliance);
    run(&mut appliance);
    assert_eq!(verify(&appliance, &tpm.read()).0, Some(0));
    copy(&old, &log);
    assert_eq!(appliance.verify_log()["verdict"], "INTACT", "the log alone does not tell");
    let (code, told) = verify(&appliance, &tpm.read());
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("the log was rolled back to before the last start"), "{told}");
    // It goes on from there: the count that stands in no record stays to be seen.
    tpm.count(&appliance);
    run(&mut appliance);
    let (code, told) = verify(&appliance, &tpm.read());
    assert_eq!(code, Some(0), "{told}");
    assert!(told.lines().next().unwrap().contains(", 1 of its values in no record"), "{told}");
    assert!(told.contains("    1 of its values stand in no record"), "{told}");
    let page = appliance.path("report.html");
    let key = appliance.path("audit.vkey");
    cloister_ok(&["audit", "report", &log, "--public-key", &key, "--out", &page]);
    let page = fs::read_to_string(page).unwrap();
    let row = "start that failed, or a log that was put back</th><td data-head=\"Count\">1</td>";
    assert!(page.contains(row), "{page}");
    // Taking the counter away does not set it back.
    let before: u64 = tpm.read().parse().unwrap();
    tpm.undefine();
    tpm.count(&appliance);
    assert!(tpm.read().parse::<u64>().unwrap() > before);
    // Memory in its place, with the count of an older start, is taken for no counter.
    tpm.undefine();
    tpm.define_memory(before - 1);
    for words in [&["read"][..], &["count", &appliance.path("tpm-counter")]] {
        let done = tpm.script(words);
        assert_eq!((done.status.success(), &done.stdout[..]), (false, &b""[..]), "{words:?}");
    }
    tpm.undefine();
    tpm.count(&appliance);
    assert!(tpm.read().parse::<u64>().unwrap() > before, "the control");
}

#[test]
fn nothing_starts_without_a_count_that_rose() {
    let mut appliance = tiny(As::Oneself, "");
    appliance.stop();
    appliance.change_config("[audit]\n", "[audit]\ntpm_counter = \"tpm-counter\"\n");
    let path = appliance.path("tpm-counter");
    must_not_start(&mut appliance, "No such file");
    for text in ["", "-1", "1 ", "0x10", "18446744073709551616", "eleven"] {
        fs::write(&path, text).unwrap();
        must_not_start(&mut appliance, "it holds no number");
    }
    fs::write(&path, "1".repeat(22)).unwrap();
    must_not_start(&mut appliance, "longer than 21 bytes");
    fs::write(&path, "7\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    must_not_start(&mut appliance, "could be changed by another user");
    fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    must_not_start(&mut appliance, "no regular file");
    fs::remove_file(&path).unwrap();
    fs::write(&path, "7\n").unwrap();
    run(&mut appliance);
    assert_eq!(facts(&appliance, "start").last().unwrap()["observed"]["tpm_counter"], 7);
    for stale in ["7\n", "6\n"] {
        fs::write(&path, stale).unwrap();
        must_not_start(&mut appliance, "and the last start recorded 7");
    }
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
    let on = "[audit]\ntpm_counter = \"tpm-counter\"\n";
    appliance.change_config(on, "[audit]\n");
    run(&mut appliance);
    appliance.change_config("[audit]\n", on);
    must_not_start(&mut appliance, "and the last start recorded 7");
    fs::write(&path, "8\n").unwrap();
    run(&mut appliance);
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
}
