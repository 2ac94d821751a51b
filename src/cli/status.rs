//! `cloister status`: what the running supervisor says of itself.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use super::{Outcome, Verdict, print, tell};
use crate::supervisor::config::{self, Config};
use crate::supervisor::control::{Command, ask};

/// Where systemd keeps the running service's credentials, for root to see.
const SERVICE_CREDENTIALS: &str = "/run/credentials/cloister.service";

/// Which supervisor is meant.
#[derive(Args, Debug, Clone)]
pub struct Supervisor {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    pub config: PathBuf,
    /// The control socket, instead of the one that the configuration names.
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    pub socket: Option<PathBuf>,
}

impl Supervisor {
    /// The control socket.
    ///
    /// # Errors
    ///
    /// Those of the configuration.
    pub fn socket(&self) -> Result<PathBuf, config::Error> {
        match &self.socket {
            Some(path) => Ok(path.clone()),
            None => Ok(read_config(&self.config)?.control_socket),
        }
    }
}

/// Reads a configuration for either profile: the command line may be used by another user than
/// the supervisor's.
///
/// # Errors
///
/// Those of the configuration.
pub fn read_config(file: &Path) -> Result<Config, config::Error> {
    let is_root = nix::unistd::geteuid().is_root();
    let read = |is_root| Config::read(file, is_root, Some(Path::new(SERVICE_CREDENTIALS)));
    read(is_root).or_else(|error| read(!is_root).map_err(|_| error))
}

/// Arguments of `cloister status`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cloister status\n  \
    cloister status --config demo/cloister.toml --json\n\n\
    Exit code 0 when every part serves, 1 when not all do, 2 when there is no supervisor.")]
pub struct Arguments {
    #[command(flatten)]
    supervisor: Supervisor,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `cloister status`.
///
/// # Errors
///
/// No supervisor answers.
pub fn run(arguments: &Arguments) -> Outcome {
    let socket = arguments.supervisor.socket()?;
    let status = match ask(&socket, Command::Status {}, &[]) {
        Ok(status) => status,
        Err(error) => {
            tell(&explain(&socket, &error));
            return Err(Box::new(error));
        }
    };
    if arguments.json {
        print(&status.to_string());
    } else {
        show(&status);
    }
    let is_serving = status["state"] == "serving";
    Ok(if is_serving { Verdict::Holds } else { Verdict::Refused })
}

/// Whether a question failed because no supervisor runs.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// What a failed question means.
pub(super) fn explain(socket: &Path, error: &io::Error) -> String {
    let what = match error.kind() {
        _ if is_absent(error) => "no supervisor runs there",
        io::ErrorKind::PermissionDenied => "only root and the supervisor's own user may ask",
        io::ErrorKind::TimedOut => "the supervisor does not answer; it may be loading a model",
        _ => "the supervisor does not answer",
    };
    format!("{}: {what}", socket.display())
}

fn show(status: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    print(&format!(
        "cloister {}: {}, profile {}, up {} s, {} requests",
        text(&status["version"]),
        text(&status["state"]),
        text(&status["profile"]),
        status["uptime_s"],
        status["requests_open"],
    ));
    for listener in list(&status["listen"]) {
        print(&format!("  listens     {}", text(listener)));
    }
    for model in list(&status["models"]) {
        let node = model["numa_node"].as_u64();
        let node = node.map(|node| format!(", memory node {node}")).unwrap_or_default();
        print(&format!(
            "  model       {}: {}, context {}, signed by {}, {}{node}",
            text(&model["name"]),
            text(&model["state"]),
            model["context_len_tokens"],
            text(&model["observed"]["signer"]),
            text(&model["declared"]["engine"]),
        ));
        let opened = &model["opened"];
        let share = opened["share_percent"].as_u64();
        let share = share.map(|share| format!(", {share} % of what is possible"));
        print(&format!(
            "  opened      {} bytes in {} ms{}",
            opened["len_bytes"],
            opened["ms"],
            share.unwrap_or_default(),
        ));
        let workers = &model["workers"];
        if workers["lifetime"] == "request" {
            print(&format!(
                "  workers     one per request: {} ready, {} serving, {} requests waiting, {} ended; \
                 ready {} ms after a start",
                workers["ready"],
                workers["serving_one"],
                workers["requests_waiting"],
                workers["ended_after_one"],
                workers["ready_after_ms"],
            ));
        }
    }
    for child in list(&status["children"]) {
        print(&format!(
            "  process     {} pid {}: {}, {} restarts",
            text(&child["name"]),
            child["pid"],
            text(&child["state"]),
            child["restarts"],
        ));
    }
    print(&format!(
        "  audit log   {} records, {}",
        status["audit"]["records"],
        if status["audit"]["writable"] == true { "writable" } else { "NOT WRITABLE: no requests" },
    ));
    print(&format!("  tokens      {} valid", status["tokens_valid"]));
    for missing in list(&status["missing_protections"]) {
        print(&format!("  MISSING     {}", text(missing)));
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
