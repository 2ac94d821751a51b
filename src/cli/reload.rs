//! `cloister reload`: hands the running supervisor the files that it takes without a restart.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;

use clap::Args;

use super::status::{explain, read_config};
use super::{Outcome, Verdict, tell};
use crate::package::files::open_regular;
use crate::supervisor::config;
use crate::supervisor::control::{Command, List, ask};

/// Arguments of `cloister reload`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  cloister reload\n  cloister reload --config demo/cloister.toml\n\n\
    It takes the token table, the certificate, and the trust folder's lists of allowed and revoked digests; a
    \
    model that they forbid is withdrawn, and the command says so. Other answers go on. Exit code 0 when the files were taken, 1 when they were refused, 2 when there \
    is no supervisor or a file cannot be opened."
)]
pub struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
}

/// Runs `cloister reload`.
///
/// # Errors
///
/// A file that cannot be opened; no supervisor.
pub fn run(arguments: &Arguments) -> Outcome {
    let config = read_config(&arguments.config)?;
    let mut files = vec![open_regular(&config.tokens_file)?];
    let tls = config.certificate.as_ref().zip(config.keys.tls.as_ref());
    if let Some((certificate, key)) = tls {
        files.extend([open_regular(certificate)?, open_regular(key)?]);
    }
    let mut lists = None;
    if config.keys.trust_folder.is_dir() {
        let mut names = Vec::new();
        for list in [List::Allowed, List::Revoked] {
            let path = config.keys.trust_folder.join(list.file());
            if path.exists() {
                files.push(open_regular(&path)?);
                names.push(list);
            }
        }
        lists = Some(names);
    }
    let descriptors: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
    let command = Command::Reload { certificate: tls.is_some(), lists };
    let answer = ask(&config.control_socket, command, &descriptors)
        .map_err(|error| explain(&config.control_socket, &error))?;
    if answer["ok"] == true {
        tell(if tls.is_some() { "taken: tokens, certificate" } else { "taken: tokens" });
        if let Some(lists) = answer["lists"].as_object() {
            let allowed = match lists["allowed"].as_u64() {
                Some(count) => format!("{count} models are allowed"),
                None => "every signed model is allowed".to_owned(),
            };
            tell(&format!("taken: lists: {allowed}, {} revoked", lists["revoked"]));
        }
        for model in answer["withdrawn"].as_array().into_iter().flatten() {
            let text = |key: &str| model[key].as_str().unwrap_or_default().to_owned();
            tell(&format!("withdrawn: model {}: {}", text("model"), text("why")));
        }
        return Ok(Verdict::Holds);
    }
    let error = answer["error"].as_str().unwrap_or("no reason was given");
    tell(&format!("refused: {error}"));
    Ok(Verdict::Refused)
}
