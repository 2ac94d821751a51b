//! A log whose disk is full, or that the system has made read-only: no token, no new request, the ends
//! of what ran are kept, and all goes on once there is room.

use super::*;

/// A file system of its own in the place of a folder.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    pub(super) fn tmpfs(folder: &Path, size: &str) -> Self {
        fs::create_dir_all(folder).unwrap();
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder));
        Self(folder.to_owned())
    }

    fn image(image: &Path, folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(folder));
        Self(folder.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Fills a file system to its last byte.
pub(super) fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    let mut len = 1 << 20;
    while len > 0 {
        match file.write_all(&vec![7; len]) {
            Ok(()) => {}
            Err(_) => len /= 2,
        }
    }
    path
}

fn assert_denied(appliance: &Appliance) {
    let (status, answer) = appliance.chat(&ask("hi", 4));
    assert_eq!(status, 503, "{answer}");
    assert_eq!(answer["error"]["code"], "audit_log_unavailable", "{answer}");
    assert!(answer.get("choices").is_none(), "{answer}");
}

/// Reads a stream to its end, which must come long before the whole answer.
fn assert_cut(stream: TcpStream) {
    let start = Instant::now();
    let mut rest = Vec::new();
    let mut stream = stream;
    let _ = stream.read_to_end(&mut rest);
    let text = String::from_utf8_lossy(&rest);
    assert!(start.elapsed() < Duration::from_secs(30), "the stream goes on");
    assert!(!text.contains("\"finish_reason\":\"length\""), "{text}");
    assert!(!text.contains("\"finish_reason\":\"stop\""), "{text}");
}

/// What the supervisor says of its log; `cloister status` also says by its exit code that it is degraded.
pub(super) fn audit_status(appliance: &Appliance) -> Value {
    let done = cloister(&["status", "--json", "--config", &appliance.path("cloister.toml")]);
    let status: Value = serde_json::from_slice(&done.stdout).unwrap();
    status["audit"].clone()
}

fn is_writable(appliance: &Appliance) -> bool {
    audit_status(appliance)["writable"] == true
}

#[test]
fn a_full_disk_stops_requests_and_keeps_the_ends_of_those_that_run() {
    if !is_root() {
        return support::tell("only root can mount a small disk: not tried here");
    }
    let mut appliance = Appliance::start(As::Oneself);
    appliance.stop();
    let log = appliance.folder.join("audit");
    let kept = appliance.folder.join("kept");
    fs::rename(&log, &kept).unwrap();
    let mounted = Mounted::tmpfs(&log, "40m");
    appliance.start_again();
    appliance.wait_until_ready();
    assert_eq!(appliance.chat(&ask("hi", 4)).0, 200);
    let stream = start_stream(&appliance);
    let filler = fill(&log);
    assert_denied(&appliance);
    assert_cut(stream);
    assert!(!is_writable(&appliance));
    // Without a restart.
    fs::remove_file(&filler).unwrap();
    eventually("an answer once there is room", || appliance.chat(&ask("hi", 4)).0 == 200);
    assert!(is_writable(&appliance));
    assert_eq!(appliance.verify_log()["verdict"], "INTACT");
    assert_eq!(appliance.verify_log()["open_requests"], 0);

    // The end that was written on the full disk outlives the process.
    let ends = appliance.records("end").len();
    let stream = start_stream(&appliance);
    let filler = fill(&log);
    assert_denied(&appliance);
    assert_cut(stream);
    std::thread::sleep(Duration::from_secs(3));
    appliance.child.kill().unwrap();
    appliance.child.wait().unwrap();
    fs::remove_file(&filler).unwrap();
    appliance.start_again();
    appliance.wait_until_ready();
    assert_eq!(appliance.records("end").len(), ends + 1, "{}", appliance.told());
    // A begin that was denied has its end too; none was left to the next start.
    let missing = appliance.records("end_missing");
    let is_late = |record: &Value| record.to_string().contains("supervisor_gone");
    assert!(!missing.iter().any(is_late), "{missing:?}");
    appliance.stop();
    let report = appliance.verify_log();
    assert_eq!((&report["verdict"], &report["open_requests"]), (&json!("INTACT"), &json!(0)));
    drop(mounted);
}

/// What ext4 does after a fault of its disk: every write is refused from then on.
#[test]
fn a_file_system_that_turned_read_only_stops_requests() {
    if !is_root() {
        return support::tell("only root can mount a disk: not tried here");
    }
    let mut appliance = Appliance::start(As::Oneself);
    appliance.stop();
    let (log, image) = (appliance.folder.join("audit"), appliance.folder.join("disk.img"));
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    run(Command::new("mkfs.ext4").arg("-q").arg(&image));
    fs::rename(&log, appliance.folder.join("kept")).unwrap();
    let mounted = Mounted::image(&image, &log);
    appliance.start_again();
    appliance.wait_until_ready();
    assert_eq!(appliance.chat(&ask("hi", 4)).0, 200);
    let stream = start_stream(&appliance);
    run(Command::new("mount").args(["-o", "remount,abort"]).arg(&log));
    assert_denied(&appliance);
    assert_cut(stream);
    assert!(!is_writable(&appliance));
    appliance.child.kill().unwrap();
    appliance.child.wait().unwrap();
    drop(mounted);
    // As an operator would: check the file system, mount it, start.
    let _ = Command::new("fsck.ext4").args(["-p", "-f"]).arg(&image).output().unwrap();
    let mounted = Mounted::image(&image, &log);
    appliance.start_again();
    appliance.wait_until_ready();
    assert_eq!(appliance.chat(&ask("hi", 4)).0, 200);
    appliance.stop();
    let report = appliance.verify_log();
    assert_eq!((&report["verdict"], &report["open_requests"]), (&json!("INTACT"), &json!(0)));
    drop(mounted);
}
