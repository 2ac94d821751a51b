//! Reading the log is itself recorded, by the appliance whose log it is, before the first record is shown.
//!
//! The supervisor asks the kernel who reads. A log that is no running appliance's, or a reader who may
//! not reach it, is said plainly: then only the host's own audit (`systemd/cloister-audit.rules`) tells.

use std::fs;

use super::super::status::read_config;
use super::super::tell;
use super::source::Log;
use crate::supervisor::control::{Command, ask};

pub(super) use crate::audit::record::LogAction as Reading;

/// Has the appliance record that up to `records` of its log are read, or says why that is not recorded.
pub(super) fn announce(log: &Log, reading: Reading, records: u64) {
    if let Err(why) = record(log, reading, records) {
        tell(&format!("cloister: this reading is not recorded: {why}"));
    }
}

fn record(log: &Log, action: Reading, records: u64) -> Result<(), String> {
    let config = read_config(&log.appliance.config)
        .map_err(|error| format!("no appliance is known here ({error})"))?;
    let is_its = match (fs::canonicalize(&log.folder), fs::canonicalize(&config.audit_folder)) {
        (Ok(asked), Ok(its)) => asked == its,
        _ => false,
    };
    if !is_its {
        let file = log.appliance.config.display();
        return Err(format!("{} is not the log of the appliance of {file}", log.folder.display()));
    }
    let answer = ask(&config.control_socket, Command::LogRead { action, records }, &[])
        .map_err(|error| format!("{}: {error}", config.control_socket.display()))?;
    match answer["ok"].as_bool() {
        Some(true) => Ok(()),
        _ => Err("the appliance cannot write its log".to_owned()),
    }
}
