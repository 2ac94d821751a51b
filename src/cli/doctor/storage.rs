//! Clock and disk: when something happened, and whether it can be written down.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::host::Host;
use super::{Finding, Weight};
use crate::cli::status::read_config;

/// Free space under which the log is soon full, in MiB.
const FREE_MIN_MIB: u64 = 1024;
/// Where the audit log goes when there is no configuration yet.
const AUDIT_FOLDER: &str = "/var/lib/cloister";

pub(super) fn examine(host: &Host, config_file: &Path) -> Vec<Finding> {
    let mut findings = vec![clock(host)];
    let mut audit = host.path(AUDIT_FOLDER);
    if config_file.exists() {
        match read_config(config_file) {
            Ok(config) => {
                findings.push(Finding::good("configuration", config_file.display().to_string()));
                audit = config.audit_folder;
            }
            Err(error) => findings.push(
                Finding::new("configuration", Weight::Fault, error.to_string())
                    .advise("correct the file; every key is described in systemd/cloister.toml"),
            ),
        }
    } else {
        let found = format!("{}: not there yet", config_file.display());
        findings.push(
            Finding::new("configuration", Weight::Note, found)
                .advise("start with systemd/cloister.toml; `cloister demo` makes one for a trial"),
        );
    }
    findings.push(disk(&audit));
    findings
}

fn clock(host: &Host) -> Finding {
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = host.read(path).unwrap_or("unknown".to_owned());
    let is_held = host.clock_is_synchronized;
    let weight = if is_held { Weight::Good } else { Weight::Warning };
    let found = if is_held { "synchronised" } else { "not synchronised" };
    Finding::new("clock", weight, format!("{found}, source {source}")).advise(
        "records carry the machine's time: run a time service (PTP or GPS in an air gap), or note \
         the difference at each review",
    )
}

fn disk(audit: &Path) -> Finding {
    let check = "disk of the log";
    // The folder itself may come with the first start.
    let there = audit.ancestors().find(|folder| folder.exists()).unwrap_or(audit);
    let Ok(disk) = statvfs(there) else {
        return Finding::new(
            check,
            Weight::Warning,
            format!("{}: cannot be read", there.display()),
        )
        .advise("without a log there are no answers");
    };
    let free = disk.blocks_available().saturating_mul(disk.fragment_size()) >> 20;
    let weight = if free < FREE_MIN_MIB { Weight::Warning } else { Weight::Good };
    Finding::new(check, weight, format!("{}: {free} MiB are free", there.display()))
        .advise("a full disk stops all answers")
}
