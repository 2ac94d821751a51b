//! What the commands on model packages share: refusals, progress, names.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{Outcome, Verdict, print, tell};
use crate::package::Error;

/// Says why a file was refused (exit code 1), or hands the fault up (exit code 2).
pub(super) fn fail(path: &Path, error: &Error, json: bool) -> Outcome {
    let fix = error.fix();
    let place =
        if error.path().is_some() { String::new() } else { format!("{}: ", path.display()) };
    if !error.is_refusal() {
        let hint = fix.map(|fix| format!("\n  {fix}")).unwrap_or_default();
        return Err(format!("{place}{error}{hint}").into());
    }
    if json {
        let report = serde_json::json!({
            "verdict": "REFUSED", "file": error.path().unwrap_or(path),
            "error": error.to_string(), "fix": fix,
        });
        print(&report.to_string());
    } else {
        tell(&format!("REFUSED: {place}{error}"));
        if let Some(fix) = fix {
            tell(&format!("  {fix}"));
        }
    }
    Ok(Verdict::Refused)
}

/// A progress bar over bytes on standard error; nothing when that is no terminal.
pub(super) fn progress_bar(what: &'static str, len_bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(len_bytes).with_message(what);
    let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Counts what is read from a file on a progress bar.
pub(super) struct Counted<'f> {
    pub(super) file: &'f File,
    pub(super) bar: ProgressBar,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.bar.inc(n as u64);
        Ok(n)
    }
}

/// Appends to a file name: `model.gguf` and `.sig` make `model.gguf.sig`.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}
