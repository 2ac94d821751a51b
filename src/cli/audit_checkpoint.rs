//! `cloister audit checkpoint`: the log's newest checkpoint, for paper and other places that nobody
//! changes with the log.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::Args;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde_json::json;

use super::audit::{DEFAULT_KEY, read_key};
use super::{Outcome, Verdict, print, tell};
use crate::audit::Snapshot;

/// Arguments of `cloister audit checkpoint`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cloister audit checkpoint > /media/usb/checkpoint.txt\n  \
    cloister audit checkpoint --qr | lp\n\n\
    Keep it where the log cannot be changed: another machine, a disc, paper. Later,\n\
    `cloister audit verify --checkpoint FILE` shows that the log still holds all it held then. The QR\n\
    code is the same text; a photograph of it is read by any telephone.")]
pub struct Arguments {
    /// The log's folder.
    #[arg(value_name = "LOG", default_value = "/var/lib/cloister/audit")]
    folder: PathBuf,
    /// The log's public key (NAME+KEYID+BASE64).
    #[arg(long, value_name = "FILE", default_value = DEFAULT_KEY)]
    public_key: PathBuf,
    /// Print it as a QR code too.
    #[arg(long)]
    qr: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "qr")]
    json: bool,
}

/// Runs `cloister audit checkpoint`.
///
/// # Errors
///
/// A key that cannot be read.
pub fn run(arguments: &Arguments) -> Outcome {
    let verifier = read_key(&arguments.public_key)?;
    let reader = match Snapshot::open(&arguments.folder, &verifier) {
        Ok(reader) => reader,
        Err(error) => {
            tell(&format!("refused: {error}"));
            return Ok(Verdict::Refused);
        }
    };
    if arguments.json {
        let checkpoint = reader.checkpoint();
        let root: String = checkpoint.root.iter().map(|byte| format!("{byte:02x}")).collect();
        let value = json!({
            "origin": checkpoint.origin, "size": checkpoint.size, "root": root,
            "checkpoint": reader.note(),
        });
        print(&value.to_string());
        return Ok(Verdict::Holds);
    }
    print(reader.note().trim_end_matches('\n'));
    if arguments.qr {
        let code = QrCode::new(reader.note()).map_err(|error| format!("no QR code: {error}"))?;
        // Ink is dark on paper; letters are light on most terminals.
        let (dark, light) = match std::io::stdout().is_terminal() {
            true => (Dense1x2::Light, Dense1x2::Dark),
            false => (Dense1x2::Dark, Dense1x2::Light),
        };
        print(&code.render::<Dense1x2>().dark_color(dark).light_color(light).build());
    }
    Ok(Verdict::Holds)
}
