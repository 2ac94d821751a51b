//! Cloister as a service: the shipped units, under a systemd that was really booted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use super::support;
use cloister::cli::fetch::SMOLLM2;

/// How much is open of what `systemd-analyze security` counts, at most, times ten.
const EXPOSURE_MAX: u32 = 23;
/// The same of the unit that counts starts in the TPM, as root and with that device alone.
const COUNTER_EXPOSURE_MAX: u32 = 11;
/// The same of the forwarder, which needs no power.
const FORWARDER_EXPOSURE_MAX: u32 = 3;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok()
}

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = PathBuf::from("/var/tmp")
            .join(format!("cloister-systemd-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap_or_else(|error| format!("{name}: {error}"))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.text(name)).unwrap_or(Value::Null)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(command: &mut Command) -> Output {
    let done = command.output().unwrap();
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{command:?}: {told}");
    done
}

fn cloister(words: &[&str]) -> String {
    let done = run(Command::new(env!("CARGO_BIN_EXE_cloister")).args(words));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn the_units_hold_nothing_that_systemd_ignores() {
    if !has("systemd-analyze") {
        return support::skip("the units", "systemd-analyze is not installed (package systemd)");
    }
    let folder = Folder::new("verify");
    let system = "usr/lib/systemd/system";
    let programs = [
        "usr/lib/cloister/cloister-supervisor",
        "usr/lib/cloister/cloister-tpm-counter",
        "usr/bin/cloister",
    ];
    for program in programs {
        let path = folder.0.join(program);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy("/bin/true", path).unwrap();
    }
    fs::create_dir_all(folder.path("usr/lib/systemd")).unwrap();
    run(Command::new("cp").args([
        "-r",
        "/usr/lib/systemd/system",
        &folder.path("usr/lib/systemd"),
    ]));
    std::os::unix::fs::symlink("usr/lib", folder.path("lib")).unwrap();
    let units = [
        "cloister.service",
        "cloister.socket",
        "cloister-forward.service",
        "cloister-tpm-counter.service",
        "cloister-witness.service",
        "cloister-witness.timer",
    ];
    for unit in units {
        fs::copy(root().join("systemd").join(unit), folder.path(&format!("{system}/{unit}")))
            .unwrap();
    }
    let drop_ins = folder.path(&format!("{system}/cloister.service.d"));
    fs::create_dir_all(&drop_ins).unwrap();
    fs::copy(root().join("systemd/cloister-gpu.conf"), format!("{drop_ins}/gpu.conf")).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).args(units);
    let done = run(verify.arg(format!("--root={}", folder.0.display())));
    // It says what it ignores, and calls it a success.
    assert_eq!(String::from_utf8_lossy(&done.stderr), "");
    for (unit, threshold) in [
        ("cloister.service", EXPOSURE_MAX),
        ("cloister-forward.service", FORWARDER_EXPOSURE_MAX),
        ("cloister-tpm-counter.service", COUNTER_EXPOSURE_MAX),
    ] {
        let mut security = Command::new("systemd-analyze");
        security.args(["security", "--offline=true", "--no-pager"]);
        security.arg(format!("--threshold={threshold}"));
        run(security.arg(root().join("systemd").join(unit)));
    }
}

/// A machine's configuration: keys, a sealed model, a token.
fn configure(folder: &Folder, model: &Path) {
    let path = |name: &str| folder.path(name);
    fs::create_dir_all(path("trust")).unwrap();
    cloister(&["keygen", "signing", "--out", &path("signing.pem")]);
    fs::rename(path("signing.pub.pem"), path("trust/test.pem")).unwrap();
    cloister(&["keygen", "model-identity", "--out", &path("identity.age")]);
    let audit = path("audit.key");
    cloister(&["keygen", "audit", "--name", "test.example/audit", "--out", &audit]);
    let model = model.display().to_string();
    let (key, signature) = (path("signing.pem"), path("m.gguf.sig"));
    cloister(&["model", "sign", &model, "--key", &key, "--out", &signature]);
    let identity = folder.text("identity.age");
    let recipient = identity.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
    cloister(&["model", "seal", &model, "--recipient", recipient, "--out", &path("m.gguf.age")]);
    let shipped = fs::read_to_string(root().join("systemd/cloister.toml")).unwrap();
    let config = [
        ("file = \"model.gguf.age\"", "file = \"m.gguf.age\"\nname = \"smol\""),
        ("#! identity = \"identity.age\"", "identity = \"credential:identity\""),
        ("#! origin = \"cloister/audit\"", "origin = \"test.example/audit\""),
        ("#! hang_ms = 120000", "hang_ms = 2000"),
        ("#! context = 8192", "context = 1024"),
    ];
    let config = config.into_iter().fold(shipped, |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    });
    fs::write(path("cloister.toml"), config).unwrap();
    let (tokens, socket) = (path("tokens.toml"), path("none.sock"));
    let token = cloister(&["token", "add", "test", "--file", &tokens, "--socket", &socket]);
    fs::write(path("key.txt"), token.trim()).unwrap();
    run(Command::new("chmod").args(["600", &path("key.txt")]));
}

/// A configured folder with `tests/systemd/service.sh` in it, and one for what that leaves.
fn prepare(name: &str, model: &Path, settings: &str) -> (Folder, Folder) {
    let (config, out) = (Folder::new(&format!("{name}-etc")), Folder::new(&format!("{name}-out")));
    configure(&config, model);
    // Without Go's library no witness is asked.
    super::log::go::build(&config.0, "witness");
    let script = fs::read_to_string(root().join("tests/systemd/service.sh")).unwrap();
    fs::write(config.path("script"), format!("{settings}\n{script}")).unwrap();
    (config, out)
}

/// Boots, runs `tests/systemd/service.sh`, and returns what it left.
fn boot(kind: &str, more: &[String], beside: impl FnOnce(&Folder, &mut Child)) -> Folder {
    let settings = format!("KIND={kind} TPM=swtpm:path=/tpm/s.sock");
    let (config, out) = prepare(kind, &support::model(&SMOLLM2), &settings);
    let programs = Path::new(env!("CARGO_BIN_EXE_cloister")).parent().unwrap();
    let mut command = Command::new(root().join("tests/systemd/boot.sh"));
    command.arg(programs).args([&config.0, &out.0]).arg(config.path("script")).args(more);
    let mut booted = command.spawn().unwrap();
    beside(&out, &mut booted);
    let status = booted.wait().unwrap();
    let journal = out.text("journal.log");
    // After date, time and the machine's name comes who says it.
    let is_its = |line: &&str| {
        let who = line.split_whitespace().nth(4).unwrap_or_default();
        who.starts_with("cloister") || line.contains("cloister.service")
    };
    let journal: Vec<&str> = journal.lines().filter(is_its).collect();
    let told = [out.text("script.log"), journal.join("\n"), out.text("console.log")].join("\n");
    assert!(status.success(), "{status}:\n{told}");
    out
}

/// Whether a system can be booted here; says why not.
fn can_boot() -> bool {
    let tools = ["systemd-nspawn", "systemd-creds", "unshare"];
    if !nix::unistd::geteuid().is_root() {
        support::skip("the service under systemd", "the tests run as a plain user");
    } else if let Some(tool) = tools.into_iter().find(|tool| !has(tool)) {
        support::skip("the service under systemd", &format!("{tool} is not installed"));
    } else if !nests() {
        support::tell("containers and overlays are forbidden here: no service was booted");
    } else {
        return true;
    }
    false
}

/// Whether the host lets a container start at all, without anything of Cloister in it.
fn nests() -> bool {
    let empty = "mount -t overlay overlay -o lowerdir=/etc:/usr /mnt && systemd-nspawn --quiet \
         --directory=/ --volatile=yes --register=no --keep-unit --pipe --private-network /bin/true";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", empty]).stdin(Stdio::null()).stderr(Stdio::null());
    command.env("SYSTEMD_SECCOMP", "0").env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
    command.status().is_ok_and(|status| status.success())
}

fn assert_served(out: &Folder) {
    let started = out.text("started.txt");
    assert!(started.contains("ActiveState=active"), "{started}");
    assert!(started.contains("StatusText=serving: smol"), "{started}");
    assert_eq!(out.json("status.json")["profile"], "full");
    for answer in ["answer.json", "after-reload.json", "after-hang.json"] {
        assert!(out.text(answer).len() > 20, "{answer}: {}", out.text(answer));
    }
    let after = out.text("after-hang.txt");
    assert!(after.contains("ActiveState=active") && after.contains("NRestarts=0"), "{after}");
    assert_eq!(out.json("verdict.json")["verdict"], "INTACT");
    assert_eq!(out.text("stopped.txt").trim(), "Result=success");
    assert_reviewed(out);
    let processes = out.text("processes.txt");
    // The spawner alone is root; the others have nothing left.
    for line in processes.lines().filter(|line| !line.contains("spawner")) {
        let is_bare = line.contains("CapEff: 0000000000000000") && line.contains("Seccomp: 2");
        assert!(is_bare && !line.contains("Uid: 0 "), "{processes}");
    }
    assert_eq!(processes.lines().count(), 4, "{processes}");
}

/// The auditor's part: who reads is on the record, records come to the journal, a witness has seen the log.
fn assert_reviewed(out: &Folder) {
    assert!(out.text("auditor.json").starts_with('{'), "{}", out.text("auditor.txt"));
    assert_eq!(out.text("auditor.txt"), "");
    assert_eq!(out.text("stranger.json"), "");
    let refused = out.text("stranger.txt");
    assert!(!refused.is_empty() && !refused.contains("panic"), "{refused}");
    let readings = out.text("readings.json");
    let auditors = readings.lines().filter(|line| line.contains("\"uid\":65533"));
    assert_eq!(auditors.count(), 1, "{readings}");

    let forward = out.text("forward.txt");
    assert!(forward.contains("ActiveState=active") && forward.contains("NRestarts=0"), "{forward}");
    let forwarded: Vec<Value> = out
        .text("forwarded.json")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for event in ["start", "model_opened", "begin", "end"] {
        assert!(forwarded.iter().any(|one| one["CLOISTER_EVENT"] == event), "{event}");
    }
    // Each field is journald's own, the unit's, or one of ours, and the whole record is of the log's schema.
    let schema = serde_json::from_str(cloister::audit::record::SCHEMA).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    for one in &forwarded {
        let text = one.to_string();
        assert!(!text.contains("Hello"), "what was asked: {text}");
        let record = one["CLOISTER_RECORD"].as_str().unwrap();
        let mut record: Value = serde_json::from_str(record).unwrap();
        record.as_object_mut().unwrap().remove("index");
        assert!(validator.is_valid(&record), "{record}");
        assert_eq!(one["_UID"], "60804", "{text}");
    }

    if !Path::new(&out.path("timer.txt")).exists() {
        return support::tell("no Go library: the witness's timer was not tried");
    }
    let timer = out.text("timer.txt");
    assert!(
        timer.contains("ActiveState=active") && !timer.contains("LastTriggerUSec=n/a"),
        "{timer}"
    );
    assert!(!timer.contains("LastTriggerUSec=\n"), "{timer}");
    let witness = out.text("witness.txt");
    assert!(
        witness.contains("Result=success") && witness.contains("ExecMainStatus=0"),
        "{witness}"
    );
    let verdict = out.json("witnessed.json");
    assert_eq!(verdict["verdict"], "INTACT");
    let anchor = verdict["anchor"].as_str().unwrap();
    assert!(anchor.starts_with("ANCHORED by witness witness.example/tests"), "{anchor}");
}

#[test]
fn the_service_starts_answers_reloads_survives_a_hang_and_stops() {
    if can_boot() {
        assert_served(&boot("host", &[], |_, _| {}));
    }
}

#[test]
fn a_key_sealed_to_the_tpm_opens_the_model_until_the_machine_is_tampered_with() {
    if !can_boot() {
        return;
    }
    if !has("swtpm") || !has("tpm2_pcrextend") {
        return support::skip("a key in a TPM", "swtpm or tpm2-tools is not installed");
    }
    let tpm = Folder::new("tpm");
    let at = |name: &str| tpm.path(name);
    fs::create_dir_all(at("state")).unwrap();
    let (control, server) = (at("s.sock.ctrl"), at("s.sock"));
    run(Command::new("swtpm")
        .args(["socket", "--tpm2", "--tpmstate", &format!("dir={}", at("state"))])
        .args(["--ctrl", &format!("type=unixio,path={control}")])
        .args(["--server", &format!("type=unixio,path={server}")])
        .args(["--flags", "not-need-init,startup-clear", "--daemon"])
        .args(["--pid", &format!("file={}", at("pid"))]));
    let extend = |digit: &str| {
        let mut command = Command::new("tpm2_pcrextend");
        command.arg(format!("11:sha256={}", digit.repeat(64)));
        run(command.env("TPM2TOOLS_TCTI", format!("swtpm:path={server}")));
    };
    // A register that was never extended binds nothing.
    extend("1");
    let more = [
        format!("--bind={}:/tpm", tpm.0.display()),
        "--setenv=SYSTEMD_TPM2_DEVICE=swtpm:path=/tpm/s.sock".to_owned(),
    ];
    let out = boot("tpm2", &more, |out, booted| {
        while !out.0.join("tamper").exists() && booted.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        extend("2");
        fs::write(out.path("tampered"), "").unwrap();
    });
    let pid = tpm.text("pid");
    run(Command::new("kill").arg(pid.trim()));
    assert_served(&out);
    let refused = out.text("tampered.txt");
    // 243: the credentials could not be set up.
    assert!(refused.contains("ExecMainStatus=243"), "{refused}");
    assert_counted(&out);
}

/// Three starts were counted, and a log whose last start is not the TPM's last is named.
fn assert_counted(out: &Folder) {
    let counted = out.json("counted.json");
    assert_eq!(
        (&counted["verdict"], &counted["is_last_start_of_tpm"]),
        (&"INTACT".into(), &true.into())
    );
    let counter = &counted["tpm_counter"];
    assert_eq!((&counter["starts"], &counter["unrecorded"]), (&3.into(), &0.into()), "{counted}");
    let refused = out.json("rolled-back.json");
    assert!(refused.to_string().contains("rolled back to before the last start"), "{refused}");
}

/// By hand, since it makes a system first: `cargo test --test it whole_machine -- --ignored`.
#[test]
#[ignore = "fetches a Debian and boots it whole, which takes minutes"]
fn a_whole_machine_with_a_tpm_and_two_nodes_serves() {
    // A model that an emulator is quick with.
    let tiny = support::golden().join("tiny/llama.gguf");
    let settings = "KIND=tpm2\ntpm2_pcrextend 11:sha256=$(printf '1%.0s' {1..64})";
    let (config, out) = prepare("machine", &tiny, settings);
    let text = config.text("cloister.toml");
    let text = text.replace("#! numa_node = \"any\"", "numa_node = 1");
    fs::write(config.path("cloister.toml"), text.replace("hang_ms = 2000", "hang_ms = 5000"))
        .unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_cloister")).parent().unwrap();
    let mut command = Command::new(root().join("tests/machine/service.sh"));
    command.arg(root().join("target/kernels/vmlinuz-6.1")).arg(programs).arg(&config.0);
    let done = command.arg(&out.0).arg(config.path("script")).output().unwrap();
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    let logs = ["script.log", "journal.log", "console.log"].map(|name| out.text(name)).join("\n");
    assert!(done.status.success(), "{told}\n{logs}");
    assert_served(&out);
    let refused = out.text("tampered.txt");
    assert!(refused.contains("ExecMainStatus=243"), "{refused}");
    assert_counted(&out);
    let maps = out.text("numa_maps.txt");
    let weights: Vec<&str> =
        maps.lines().filter(|line| line.contains("memfd:cloister-model")).collect();
    assert!(!weights.is_empty(), "{maps}");
    assert!(weights.iter().all(|line| line.contains(" N1=") && !line.contains(" N0=")), "{maps}");
}
