//! `cloister keygen`: every key that Cloister needs, written once and readable by its owner alone.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{Outcome, Verdict, print};
use crate::audit::{Signer, WrappingKey};
use crate::package::Error;
use crate::package::files::{Overwrite, write_new};
use crate::package::keys::{Identity, SigningKey, generate_ed25519};

/// Mode of a private key.
const PRIVATE: u32 = 0o600;
/// Mode of what others may know.
const PUBLIC: u32 = 0o644;
/// Time before now that a certificate is already valid, for clocks that are behind.
const CLOCK_SKEW_S: i64 = 3_600;
/// Longest validity that `--days` takes; browsers take no more.
const DAYS_MAX: i64 = 825;

/// Subcommands of `cloister keygen`.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// A P-256 key that signs models: OUT and OUT's public key (.pub.pem).
    #[command(after_help = "Examples:\n  cloister keygen signing --out signing.pem\n  \
        cp signing.pub.pem /etc/cloister/trust/")]
    Signing(Target),
    /// An age identity that opens sealed models; prints its age1... recipient.
    #[command(after_help = "Examples:\n  cloister keygen model-identity --out identity.txt\n  \
        cloister model seal model.gguf --recipient age1...")]
    ModelIdentity(Target),
    /// An Ed25519 key that signs the audit log's checkpoints: OUT and its verifier (.vkey).
    #[command(after_help = "Examples:\n  cloister keygen audit --name clinic-7.example/audit \
        --out audit.pem")]
    Audit(Audit),
    /// The key that the principals' keys of the audit log are wrapped under.
    #[command(after_help = "Examples:\n  cloister keygen wrapping --out wrapping.key\n  \
        cloister audit rotate-wrapping-key --new wrapping.key")]
    Wrapping(Target),
    /// A P-256 key and a self-signed certificate for TLS: OUT and .cert.pem.
    #[command(after_help = "Examples:\n  cloister keygen tls --host cloister.example \
        --host 10.0.0.7 --out tls.pem")]
    Tls(Tls),
}

/// Where a key goes.
#[derive(Args, Debug)]
pub struct Target {
    /// The private file (mode 0600).
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace existing files. The old key is lost.
    #[arg(long)]
    force: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `cloister keygen audit`.
#[derive(Args, Debug)]
pub struct Audit {
    /// The log's name (its origin line): unique, without spaces and `+`.
    #[arg(long, value_name = "NAME")]
    name: String,
    #[command(flatten)]
    target: Target,
}

/// Arguments of `cloister keygen tls`.
#[derive(Args, Debug)]
pub struct Tls {
    /// Names and addresses that clients use; may be given several times.
    #[arg(long, value_name = "HOST", default_values = ["localhost", "127.0.0.1", "::1"])]
    host: Vec<String>,
    /// Days that the certificate is valid.
    #[arg(long, value_name = "DAYS", default_value_t = 365,
        value_parser = clap::value_parser!(i64).range(1..=DAYS_MAX))]
    days: i64,
    #[command(flatten)]
    target: Target,
}

/// Runs `cloister keygen`.
///
/// # Errors
///
/// A file that exists or cannot be written.
pub fn run(command: &Command) -> Outcome {
    let made = match command {
        Command::Signing(target) => signing(target),
        Command::ModelIdentity(target) => model_identity(target),
        Command::Audit(arguments) => audit(arguments),
        Command::Wrapping(target) => wrapping(target),
        Command::Tls(arguments) => tls(arguments),
    };
    made.map_err(|error| {
        let hint = error.fix().map(|fix| format!("\n  {fix}")).unwrap_or_default();
        format!("{error}{hint}")
    })?;
    Ok(Verdict::Holds)
}

fn signing(target: &Target) -> Result<(), Error> {
    let public_path = target.beside("pub.pem");
    let (key, pem) = SigningKey::generate()?;
    target.write(pem.expose(), &public_path, key.public().to_pem().as_bytes())?;
    target.show("signing key", Some(&public_path), "hint", key.public().hint());
    Ok(())
}

fn model_identity(target: &Target) -> Result<(), Error> {
    let identity = Identity::generate();
    write_new(&target.out, PRIVATE, target.overwrite(), identity.to_file().expose())?;
    target.show("model identity", None, "recipient", &identity.recipient());
    Ok(())
}

fn audit(arguments: &Audit) -> Result<(), Error> {
    let public_path = arguments.target.beside("vkey");
    let pem = generate_ed25519()?;
    let signer = Signer::from_pem(&arguments.name, pem.expose())
        .map_err(|_| Error::Generate { what: "audit key with this name" })?;
    let verifier = signer.verifier().to_text();
    let line = format!("{verifier}\n");
    arguments.target.write(pem.expose(), &public_path, line.as_bytes())?;
    arguments.target.show("audit key", Some(&public_path), "verifier", &verifier);
    Ok(())
}

fn wrapping(target: &Target) -> Result<(), Error> {
    let failed = |_| Error::Generate { what: "wrapping key" };
    let text = WrappingKey::generate().map_err(failed)?;
    let id = WrappingKey::parse(text.expose()).map_err(failed)?.id().to_owned();
    write_new(&target.out, PRIVATE, target.overwrite(), text.expose())?;
    target.show("wrapping key", None, "id", &id);
    Ok(())
}

fn tls(arguments: &Tls) -> Result<(), Error> {
    let failed = |_| Error::Generate { what: "certificate for these names" };
    let public_path = arguments.target.beside("cert.pem");
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new(arguments.host.clone()).map_err(failed)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let now = OffsetDateTime::from_unix_timestamp(i64::try_from(now).unwrap_or(i64::MAX))
        .map_err(|_| Error::Generate { what: "certificate with this clock" })?;
    params.not_before = now - time::Duration::seconds(CLOCK_SKEW_S);
    params.not_after = now + time::Duration::days(arguments.days);
    params.distinguished_name = DistinguishedName::new();
    let name = arguments.host.iter().find(|host| host.parse::<IpAddr>().is_err());
    let name = name.map_or("cloister", String::as_str);
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.self_signed(&key).map_err(failed)?;
    let pem = Zeroizing::new(key.serialize_pem());
    arguments.target.write(pem.as_bytes(), &public_path, certificate.pem().as_bytes())?;
    arguments.target.show("TLS key", Some(&public_path), "names", &arguments.host.join(" "));
    Ok(())
}

impl Target {
    fn overwrite(&self) -> Overwrite {
        if self.force { Overwrite::Force } else { Overwrite::No }
    }

    /// Returns the public file's path: `signing.pem` and `pub.pem` make `signing.pub.pem`.
    fn beside(&self, extension: &str) -> PathBuf {
        self.out.with_extension(extension)
    }

    /// Writes the private file, then the public one.
    fn write(&self, private: &[u8], public_path: &Path, public: &[u8]) -> Result<(), Error> {
        if self.overwrite() == Overwrite::No && public_path.symlink_metadata().is_ok() {
            return Err(Error::Exists { path: public_path.to_owned() });
        }
        write_new(&self.out, PRIVATE, self.overwrite(), private)?;
        write_new(public_path, PUBLIC, self.overwrite(), public)
    }

    fn show(&self, what: &str, public_path: Option<&Path>, label: &str, value: &str) {
        if self.json {
            let mut report = serde_json::json!({ "private": self.out, "public": public_path });
            report[label] = value.into();
            print(&report.to_string());
            return;
        }
        print(&format!("{what}: {} (keep it secret)", self.out.display()));
        if let Some(path) = public_path {
            print(&format!("  public    {}", path.display()));
        }
        print(&format!("  {label:<9} {value}"));
    }
}
