//! `cloister model inspect`: what a GGUF file says about itself, before anything trusts it.
//!
//! Only the header is read. Text from the file is shown escaped, so that it cannot steer the
//! terminal.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::{error, fmt};

use clap::Args;
use kernels::TensorType;
use serde_json::{Value, json};

use super::{Outcome, Verdict, print, tell};
use crate::gguf::{self, Header, ValueRef};

/// How much of a file is read first, in bytes; the rest of a longer header follows.
const FIRST_READ: u64 = 1 << 20;
/// Most characters shown of a text from the file.
const TEXT_CHARS_MAX: usize = 120;
/// Most elements shown of an array.
const ELEMENTS_MAX: usize = 8;

/// Arguments of `cloister model inspect`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  cloister model inspect model.gguf\n  \
    cloister model inspect model.gguf --metadata --tensors\n  \
    cloister model inspect model.gguf --json\n\n\
    Exit codes: 0 the header is right, 1 it is refused, 2 the file cannot be read.")]
pub struct Arguments {
    /// The GGUF file.
    file: PathBuf,
    /// List every metadata entry.
    #[arg(long)]
    metadata: bool,
    /// List every tensor.
    #[arg(long)]
    tensors: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Why a header could not be had.
#[derive(Debug)]
pub enum Error {
    /// The file cannot be read.
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is a folder, a device or a pipe.
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// It is sealed.
    Sealed {
        /// The file.
        path: PathBuf,
    },
    /// The header is wrong.
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: gguf::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Self::NotAFile { path } => write!(f, "{}: not a regular file", path.display()),
            Self::Sealed { path } => write!(
                f,
                "{}: sealed with age; inspect the GGUF file it was made from, or open it with \
                 `age --decrypt`",
                path.display()
            ),
            Self::Gguf { path, source } => {
                write!(f, "{}: {source}; {}", path.display(), remedy(source))
            }
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Gguf { source, .. } => Some(source),
            Self::NotAFile { .. } | Self::Sealed { .. } => None,
        }
    }
}

/// Returns what the operator can do about a refused file.
fn remedy(error: &gguf::Error) -> &'static str {
    match error {
        gguf::Error::BadMagic => "give a model in the GGUF format",
        gguf::Error::BigEndian => "convert it with gguf-py's `gguf-convert-endian`",
        gguf::Error::UnsupportedVersion { version: 1 } => {
            "convert the original model again with a current llama.cpp"
        }
        gguf::Error::UnsupportedVersion { .. } => "a newer cloister may read it",
        gguf::Error::Truncated { .. } | gguf::Error::PastEnd { .. } => {
            "the file is cut short or damaged: fetch it again and compare its SHA-256"
        }
        gguf::Error::UnsupportedTensorType { .. } => {
            "quantise the original model to a supported type, such as Q8_0 or Q4_K_M"
        }
        _ => "the file is damaged or hostile: fetch it again and compare its SHA-256",
    }
}

/// Reads and parses the header of a GGUF file; returns the file's length too.
///
/// # Errors
///
/// [`Error`], which names the file, the field and a remedy.
pub fn read_header(path: &Path) -> Result<(Header, u64), Error> {
    let io_error = |source| Error::Io { path: path.to_owned(), source };
    let kind = std::fs::metadata(path).map_err(io_error)?;
    if !kind.is_file() {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    let mut file = File::open(path).map_err(io_error)?;
    let file_len = file.metadata().map_err(io_error)?.len();
    let mut bytes = Vec::new();
    let mut want = FIRST_READ;
    loop {
        let more = want - bytes.len() as u64;
        let got = file.by_ref().take(more).read_to_end(&mut bytes).map_err(io_error)?;
        match gguf::parse(&bytes, file_len) {
            Ok(header) => return Ok((header, file_len)),
            Err(gguf::Error::Incomplete { .. }) if got > 0 => want *= 2,
            Err(gguf::Error::BadMagic) if bytes.starts_with(b"age-encryption.org/") => {
                return Err(Error::Sealed { path: path.to_owned() });
            }
            Err(source) => return Err(Error::Gguf { path: path.to_owned(), source }),
        }
    }
}

/// Runs `cloister model inspect`.
///
/// # Errors
///
/// [`Error`] if the file cannot be read. A header that is read and found wrong is a verdict.
pub fn run(arguments: &Arguments) -> Outcome {
    match inspect(arguments) {
        Ok(description) => {
            print(description.trim_end());
            Ok(Verdict::Holds)
        }
        Err(error @ (Error::Gguf { .. } | Error::Sealed { .. })) => {
            if arguments.json {
                let said = json!({ "file": shown_path(arguments), "error": error.to_string() });
                print(&said.to_string());
            }
            tell(&format!("cloister: {error}"));
            Ok(Verdict::Refused)
        }
        Err(error) => Err(error.into()),
    }
}

fn inspect(arguments: &Arguments) -> Result<String, Error> {
    let (header, file_len) = read_header(&arguments.file)?;
    let summary = Summary::new(&header, file_len)
        .map_err(|source| Error::Gguf { path: arguments.file.clone(), source })?;
    Ok(if arguments.json { summary.json(arguments).to_string() } else { summary.text(arguments) })
}

fn shown_path(arguments: &Arguments) -> String {
    arguments.file.display().to_string()
}

/// How much of a model has one tensor type.
#[derive(Default)]
struct Share {
    tensors: u64,
    weights: u64,
    size: u64,
}

/// What is worth knowing of a header.
struct Summary<'a> {
    header: &'a Header,
    file_len: u64,
    architecture: Option<&'a str>,
    name: Option<&'a str>,
    license: Option<&'a str>,
    context_len: Option<u64>,
    tokenizer: Option<&'a str>,
    pre_tokenizer: Option<&'a str>,
    vocab_size: Option<usize>,
    template: Option<&'a str>,
    shares: BTreeMap<TensorType, Share>,
}

impl<'a> Summary<'a> {
    fn new(header: &'a Header, file_len: u64) -> Result<Self, gguf::Error> {
        let metadata = &header.metadata;
        let architecture = metadata.string("general.architecture")?;
        let mut shares = BTreeMap::<TensorType, Share>::new();
        for tensor in &header.tensors {
            let share = shares.entry(tensor.ty).or_default();
            share.tensors += 1;
            share.weights += tensor.len();
            share.size += tensor.size;
        }
        Ok(Self {
            header,
            file_len,
            architecture,
            name: metadata.string("general.name")?,
            license: metadata.string("general.license")?,
            context_len: match architecture {
                Some(architecture) => metadata.u64(&format!("{architecture}.context_length"))?,
                None => None,
            },
            tokenizer: metadata.string("tokenizer.ggml.model")?,
            pre_tokenizer: metadata.string("tokenizer.ggml.pre")?,
            vocab_size: metadata.strings("tokenizer.ggml.tokens")?.map(|tokens| tokens.len()),
            template: metadata.string("tokenizer.chat_template")?,
            shares,
        })
    }

    fn parameters(&self) -> u64 {
        self.shares.values().map(|share| share.weights).sum()
    }

    fn text(&self, arguments: &Arguments) -> String {
        let header = self.header;
        let text = |text: Option<&str>| text.map_or_else(|| "not given".to_owned(), shown);
        let mut out = String::new();
        let mut line = |label: &str, value: String| {
            writeln!(out, "{label:<14}{value}").expect("writing to a string");
        };
        line("file", format!("{} ({} bytes)", shown_path(arguments), grouped(self.file_len)));
        line(
            "format",
            format!(
                "GGUF v{}, alignment {}, header {} bytes",
                header.version,
                header.alignment,
                grouped(header.data_offset)
            ),
        );
        line("name", text(self.name));
        line("license", text(self.license));
        line("architecture", text(self.architecture));
        line("parameters", grouped(self.parameters()));
        line(
            "context",
            self.context_len
                .map_or_else(|| "not given".to_owned(), |len| format!("{} tokens", grouped(len))),
        );
        line(
            "tokenizer",
            match self.vocab_size {
                None => text(self.tokenizer),
                Some(size) => format!(
                    "{} ({}), {} tokens",
                    text(self.tokenizer),
                    text(self.pre_tokenizer),
                    grouped(size as u64)
                ),
            },
        );
        line(
            "chat template",
            self.template.map_or_else(
                || "none".to_owned(),
                |template| format!("present, {} bytes", template.len()),
            ),
        );
        line("tensors", header.tensors.len().to_string());
        for (ty, share) in &self.shares {
            line(
                &format!("  {}", ty.name()),
                format!(
                    "{:>5} tensors  {:>16} weights  {:>16} bytes",
                    share.tensors,
                    grouped(share.weights),
                    grouped(share.size)
                ),
            );
        }
        if arguments.metadata {
            out.push_str(&self.metadata_text());
        }
        if arguments.tensors {
            out.push_str(&self.tensors_text());
        }
        out
    }

    fn metadata_text(&self) -> String {
        let mut out = format!("\nmetadata ({} entries)\n", self.header.metadata.len());
        for (key, value) in self.header.metadata.iter() {
            let shown_value = match value.array_len() {
                None => value_text(value),
                Some(len) => {
                    let first: Vec<String> = (0..len.min(ELEMENTS_MAX))
                        .filter_map(|index| value.element(index).map(value_text))
                        .collect();
                    let rest = if len > ELEMENTS_MAX { ", …" } else { "" };
                    format!("{len}: [{}{rest}]", first.join(", "))
                }
            };
            writeln!(out, "  {} ({}) {shown_value}", shown(key), value.type_name())
                .expect("writing to a string");
        }
        out
    }

    fn tensors_text(&self) -> String {
        let mut out = format!("\ntensors ({})\n", self.header.tensors.len());
        for tensor in &self.header.tensors {
            let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
            writeln!(
                out,
                "  {:<40} {:<8} {:<20} at {:>14} {:>14} bytes",
                shown(&tensor.name),
                tensor.ty.name(),
                shape.join(" x "),
                self.header.data_range(tensor).start,
                tensor.size
            )
            .expect("writing to a string");
        }
        out
    }

    fn json(&self, arguments: &Arguments) -> Value {
        let header = self.header;
        let types = self.shares.iter().map(|(ty, share)| {
            json!({
                "type": ty.name(),
                "tensors": share.tensors,
                "weights": share.weights,
                "bytes": share.size,
            })
        });
        let mut out = json!({
            "file": shown_path(arguments),
            "bytes": self.file_len,
            "format": "gguf",
            "version": header.version,
            "alignment": header.alignment,
            "header_bytes": header.data_offset,
            "name": self.name,
            "license": self.license,
            "architecture": self.architecture,
            "parameters": self.parameters(),
            "context_length": self.context_len,
            "tokenizer": {
                "model": self.tokenizer,
                "pre": self.pre_tokenizer,
                "tokens": self.vocab_size,
            },
            "chat_template_bytes": self.template.map(str::len),
            "tensor_count": header.tensors.len(),
            "tensor_types": types.collect::<Vec<_>>(),
        });
        if arguments.metadata {
            let entries = header.metadata.iter().map(|(key, value)| entry_json(key, value));
            out["metadata"] = entries.collect();
        }
        if arguments.tensors {
            let tensors = header.tensors.iter().map(|tensor| {
                json!({
                    "name": tensor.name,
                    "type": tensor.ty.name(),
                    "shape": tensor.shape,
                    "offset": header.data_range(tensor).start,
                    "bytes": tensor.size,
                })
            });
            out["tensors"] = tensors.collect();
        }
        out
    }
}

/// Shows text from the file escaped and cut to a readable length.
fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(TEXT_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(TEXT_CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}

/// Groups the digits of a number by three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Shows a single value.
fn value_text(value: ValueRef) -> String {
    match value {
        ValueRef::String(text) => format!("\"{}\"", shown(text)),
        // As short as the width of the number allows.
        ValueRef::F32(value) => value.to_string(),
        ValueRef::F64(value) => value.to_string(),
        other => value_json(other).to_string(),
    }
}

/// A metadata entry as JSON: arrays as their length and first elements.
fn entry_json(key: &str, value: ValueRef) -> Value {
    match value.array_len() {
        None => json!({ "key": key, "type": value.type_name(), "value": value_json(value) }),
        Some(len) => {
            let first = (0..len.min(ELEMENTS_MAX)).filter_map(|index| value.element(index));
            let first: Vec<Value> = first.map(value_json).collect();
            json!({ "key": key, "type": value.type_name(), "len": len, "first": first })
        }
    }
}

fn value_json(value: ValueRef) -> Value {
    match value {
        ValueRef::U8(value) => value.into(),
        ValueRef::I8(value) => value.into(),
        ValueRef::U16(value) => value.into(),
        ValueRef::I16(value) => value.into(),
        ValueRef::U32(value) => value.into(),
        ValueRef::I32(value) => value.into(),
        ValueRef::F32(value) => value.into(),
        ValueRef::Bool(value) => value.into(),
        ValueRef::String(value) => value.into(),
        ValueRef::U64(value) => value.into(),
        ValueRef::I64(value) => value.into(),
        ValueRef::F64(value) => value.into(),
        ValueRef::Strings(_) | ValueRef::Numbers(..) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(file: &Path) -> Arguments {
        Arguments { file: file.to_owned(), metadata: true, tensors: true, json: false }
    }

    #[test]
    fn describes_a_tiny_model() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny/qwen2.gguf");
        let (header, file_len) = read_header(&path).unwrap();
        let summary = Summary::new(&header, file_len).unwrap();
        let arguments = arguments(&path);
        let text = summary.text(&arguments);
        assert!(text.contains("architecture  qwen2"), "{text}");
        assert!(text.contains("general.architecture (string) \"qwen2\""), "{text}");
        assert!(text.contains("token_embd.weight"), "{text}");
        let json = summary.json(&arguments);
        assert_eq!(json["architecture"], "qwen2");
        assert_eq!(json["tensors"].as_array().map(Vec::len), Some(header.tensors.len()));
        assert_eq!(json["metadata"].as_array().map(Vec::len), Some(header.metadata.len()));
    }

    #[test]
    fn an_error_names_file_field_and_remedy() {
        let folder = std::env::temp_dir().join(format!("cloister-inspect-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let said = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).unwrap();
            read_header(&path).unwrap_err().to_string()
        };
        let cut = said("cut.gguf", b"GGUF\x03\0\0\0");
        assert!(cut.contains("cut.gguf: the file ends inside the number of tensors; the"), "{cut}");
        let sealed = said("sealed", b"age-encryption.org/v1\n-> X25519 ");
        assert!(sealed.contains("sealed with age"), "{sealed}");
        let other = said("other", b"PK\x03\x04 something else");
        assert!(other.contains("not a GGUF file"), "{other}");
        let missing = read_header(&folder.join("missing")).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }));
        assert!(matches!(read_header(&folder).unwrap_err(), Error::NotAFile { .. }));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn numbers_are_grouped_and_text_is_escaped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(shown("a\u{1b}[2J"), "a\\u{1b}[2J");
        assert_eq!(shown(&"x".repeat(500)).chars().count(), TEXT_CHARS_MAX + 1);
    }
}
