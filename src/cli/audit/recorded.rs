//! Reading the log is itself recorded, by the appliance whose log it is, before the first record is shown.
//!
//! The supervisor asks the kernel who reads: root and the log's owner by the operators' socket, members of
//! `audit.readers_group` by the auditors'. A log that is no appliance's here is read without, which is said.
//! Of the appliance's own log, who is neither root nor its owner is shown no record that is not recorded,
//! unless they say so: then only the host's own audit (`systemd/cloister-audit.rules`) tells.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::super::status::read_config;
use super::super::tell;
use super::filter::Filter;
use super::source::Log;
use crate::supervisor::config::{self, Fault};
use crate::supervisor::control::{Command, ask};
use crate::supervisor::readings::{self, Reading as Said};

pub(super) use crate::audit::record::LogAction as Reading;

/// Why a reading is not on the record.
struct Unrecorded {
    why: String,
    /// Whether the log is that of the appliance here.
    is_its: bool,
}

/// Where an appliance's log and its operators' socket are.
struct Appliance {
    folder: PathBuf,
    socket: PathBuf,
}

/// Has the appliance record that up to `records` of its log are read, those that `filter` wants, or says
/// why that is not recorded.
///
/// # Errors
///
/// A reading that must be recorded and cannot be.
pub(super) fn announce(
    log: &Log,
    action: Reading,
    records: u64,
    filter: &Filter,
) -> Result<(), String> {
    let said = Said { action, records, from_s: filter.from, to_s: filter.to };
    let Err(Unrecorded { why, is_its }) = record(log, said) else { return Ok(()) };
    // Who checks the log sees no record of it.
    let must = is_its && action != Reading::Verify && !is_operator(&log.folder);
    if must && !log.appliance.unrecorded {
        return Err(format!(
            "refused: this reading cannot be recorded ({why}); have the service started, or read with \
             --unrecorded and account for it elsewhere"
        ));
    }
    tell(&format!("cloister: this reading is not recorded: {why}"));
    Ok(())
}

fn record(log: &Log, said: Said) -> Result<(), Unrecorded> {
    let elsewhere = |why| Unrecorded { why, is_its: false };
    let appliance = appliance(&log.appliance.config).map_err(|error| match &error.fault {
        Fault::Io(io) if io.kind() == ErrorKind::NotFound => elsewhere(format!(
            "there is no appliance here ({} is not there; --config names another)",
            log.appliance.config.display()
        )),
        _ => elsewhere(error.to_string()),
    })?;
    let is_its = match (fs::canonicalize(&log.folder), fs::canonicalize(&appliance.folder)) {
        (Ok(asked), Ok(its)) => asked == its,
        _ => false,
    };
    if !is_its {
        let file = log.appliance.config.display();
        let folder = log.folder.display();
        return Err(elsewhere(format!("{folder} is not the log of the appliance of {file}")));
    }
    let (path, answer) = match is_operator(&log.folder) {
        true => {
            let Said { action, records, from_s, to_s } = said;
            let command = Command::LogRead { action, records, from_s, to_s };
            let answer = ask(&appliance.socket, command, &[]).map(|answer| answer["ok"] == true);
            (appliance.socket, answer)
        }
        false => {
            let path = readings::socket_beside(&appliance.socket);
            let answer = readings::announce(&path, &said);
            (path, answer)
        }
    };
    let its = |why| Unrecorded { why, is_its };
    match answer {
        Ok(true) => Ok(()),
        Ok(false) => Err(its("the appliance cannot write its log".to_owned())),
        Err(error) => Err(its(format!("{}: {error}", path.display()))),
    }
}

/// The appliance of a configuration. One that this user may not read is taken for one of the usual places.
fn appliance(file: &Path) -> Result<Appliance, config::Error> {
    match read_config(file) {
        Ok(config) => Ok(Appliance { folder: config.audit_folder, socket: config.control_socket }),
        Err(error) => match &error.fault {
            Fault::Io(io) if io.kind() == ErrorKind::PermissionDenied => Ok(Appliance {
                folder: config::DEFAULT_AUDIT_FOLDER.into(),
                socket: config::DEFAULT_CONTROL_SOCKET.into(),
            }),
            _ => Err(error),
        },
    }
}

/// Whether this user is root or owns the log.
fn is_operator(folder: &Path) -> bool {
    let uid = nix::unistd::geteuid().as_raw();
    uid == 0 || fs::metadata(folder).is_ok_and(|facts| facts.uid() == uid)
}
