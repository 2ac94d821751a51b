//! `cloister model explain`: why a model is refused, check by check, and what to do.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use serde_json::json;

use super::model_checks::{CheckVerdict, Checks};
use super::model_package::ModelPackage;
use super::status::read_config;
use super::{Outcome, Verdict, print};
use crate::supervisor::config;

/// Arguments of `cloister model explain`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    cloister model explain\n  \
    cloister model explain --config demo/cloister.toml --json\n  \
    cloister model explain model.gguf.age --trust trust --identity identity.txt\n\n\
    Every check is made that can be made, also after one that fails. Exit code 0 when the models would \
    be admitted, 1 when one is refused, 2 when something is missing that a check needs.")]
pub struct Arguments {
    /// The model [default: each model of the configuration].
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The signature [default: FILE without .age, plus .sig].
    #[arg(long, value_name = "FILE", requires = "file")]
    signature: Option<PathBuf>,
    /// Folder of public keys and roots (PEM) whose signatures count [default: the configuration's].
    #[arg(long, value_name = "DIR")]
    trust: Option<PathBuf>,
    /// age identity that opens an encrypted model [default: the configuration's].
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// The models that are meant, with what the configuration says of them.
    fn packages(&self) -> Result<Vec<ModelPackage>, Box<dyn Error>> {
        if let (Some(file), Some(trust)) = (&self.file, &self.trust) {
            let (identity, signature) = (self.identity.clone(), self.signature.clone());
            let (file, trust) = (file.clone(), trust.clone());
            return Ok(vec![ModelPackage { file, signature, trust, identity }]);
        }
        let config = read_config(&self.config)?;
        let trust = self.trust.clone().unwrap_or(config.keys.trust_folder);
        let identity = self.identity.clone().or(Some(config.keys.identity));
        let package = |file: &Path, signature: Option<PathBuf>| ModelPackage {
            file: file.to_owned(),
            signature,
            trust: trust.clone(),
            identity: identity.clone(),
        };
        if let Some(file) = &self.file {
            return Ok(vec![package(file, self.signature.clone())]);
        }
        let models = config.models.iter();
        Ok(models.map(|model| package(&model.file, Some(model.signature.clone()))).collect())
    }
}

/// Runs `cloister model explain`.
///
/// # Errors
///
/// A configuration that cannot be read; something is missing that a check needs.
pub fn run(arguments: &Arguments) -> Outcome {
    let mut worst = CheckVerdict::Holds;
    let mut reports = Vec::new();
    for package in arguments.packages()? {
        let checks = Checks::make(&package, SystemTime::now());
        let verdict = checks.verdict();
        if arguments.json {
            let mut report = checks.to_json();
            report["file"] = json!(package.file);
            report["signature"] = json!(package.signature());
            report["verdict"] = json!(word(verdict));
            reports.push(report);
        } else {
            show(&package.file, &checks);
        }
        let is_worse = worst != CheckVerdict::Fails && verdict != CheckVerdict::Holds;
        worst = if is_worse { verdict } else { worst };
    }
    if arguments.json {
        print(&json!({ "models": reports }).to_string());
    }
    match worst {
        CheckVerdict::Holds => Ok(Verdict::Holds),
        CheckVerdict::Fails => Ok(Verdict::Refused),
        CheckVerdict::Missing | CheckVerdict::Unknown => {
            Err("not every check could be made: see what is missing".into())
        }
    }
}

/// The verdict on a model, in one word.
pub(super) fn word(verdict: CheckVerdict) -> &'static str {
    match verdict {
        CheckVerdict::Holds => "ADMISSIBLE",
        CheckVerdict::Fails => "REFUSED",
        CheckVerdict::Missing | CheckVerdict::Unknown => "INCOMPLETE",
    }
}

/// Prints the checks of a model.
pub(super) fn show(file: &Path, checks: &Checks) {
    print(&format!("{}: {}", word(checks.verdict()), file.display()));
    for check in &checks.list {
        let verdict = match check.verdict {
            CheckVerdict::Fails => "FAILS",
            verdict => verdict.name(),
        };
        print(&format!("  {verdict:<8} {:<11} {}", check.name, check.found));
        if let Some(fix) = check.fix {
            print(&format!("{:>23}do: {fix}", ""));
        }
    }
    for (title, lines) in
        [("trusted", &checks.trusted), ("certificates, the signer's first", &checks.certificates)]
    {
        if !lines.is_empty() {
            print(&format!("  {title}:"));
            lines.iter().for_each(|line| print(&format!("    {line}")));
        }
    }
}
