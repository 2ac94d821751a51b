//! From the file's text to checked values, knowing on which line each stood.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde::de::{SeqAccess, Unexpected, Visitor};
use toml::Spanned;

use super::{
    Activations, Config, DEFAULT_AUDIT_FOLDER, DEFAULT_CONTROL_SOCKET, Devices,
    ERASURE_USERS_COUNT_MAX, Erasure, Error, Fault, Keys, Kv, LISTENERS_COUNT_MAX, Limits, Listen,
    MODELS_COUNT_MAX, Model, Profile, Sandbox, Users, WORKERS_COUNT_MAX, Worker,
};
use crate::audit::Mode;
use crate::audit::principal_keys::hex;
use crate::audit::record::RetentionPreset;
use crate::audit::retention::{RETENTION_FLOOR_S, Retention, parse_time_s};
use crate::ipc::message::{GpuLayers, NAME_LEN_MAX_BYTES};
use crate::sandbox::LANDLOCK_ABI_FLOOR;

/// Longest request body that fits a data frame after it was written anew as JSON, in bytes.
const BODY_LEN_MAX_BYTES: u32 = 8 << 20;
/// A landlock ABI that no kernel has yet.
const LANDLOCK_ABI_MAX: u32 = 64;
/// Prefix of a path that names a systemd credential.
const CREDENTIAL_PREFIX: &str = "credential:";

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct FileText {
    profile: Option<Spanned<Profile>>,
    server: ServerText,
    limits: Option<Spanned<Limits>>,
    model: Vec<Spanned<ModelText>>,
    keys: KeysText,
    audit: AuditText,
    tokens: TokensText,
    control: ControlText,
    worker: Option<Spanned<Worker>>,
    gpu: GpuText,
    sandbox: Option<Spanned<Sandbox>>,
    users: Option<Spanned<Users>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ServerText {
    listen: Option<Spanned<Vec<Spanned<String>>>>,
    certificate: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelText {
    name: Option<Spanned<String>>,
    file: Spanned<String>,
    signature: Option<String>,
    #[serde(default)]
    allow_unsigned: bool,
    gpu_layers: Option<LayersText>,
    gpu_device: Option<Spanned<DevicesText>>,
}

/// Layers on a card; none for 0.
struct LayersText(Option<GpuLayers>);

impl<'de> Deserialize<'de> for LayersText {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = LayersText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a number of layers, -1 for all of them, or \"auto\" for as many as fit",
                )
            }

            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<LayersText, E> {
                match (value, u16::try_from(value)) {
                    (0, _) => Ok(LayersText(None)),
                    (-1, _) => Ok(LayersText(Some(GpuLayers::All))),
                    (_, Ok(count)) => Ok(LayersText(Some(GpuLayers::Count(count)))),
                    _ => Err(E::invalid_value(Unexpected::Signed(value), &self)),
                }
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<LayersText, E> {
                match value {
                    "auto" => Ok(LayersText(Some(GpuLayers::Auto))),
                    _ => Err(E::invalid_value(Unexpected::Str(value), &self)),
                }
            }
        }
        from.deserialize_any(Either)
    }
}

/// The number of a card, or of several.
struct DevicesText(Vec<u32>);

impl<'de> Deserialize<'de> for DevicesText {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = DevicesText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the number of a card, or a list of such numbers")
            }

            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<DevicesText, E> {
                let number = u32::try_from(value);
                let number =
                    number.map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))?;
                Ok(DevicesText(vec![number]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<DevicesText, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = list.next_element()? {
                    numbers.push(number);
                }
                Ok(DevicesText(numbers))
            }
        }
        from.deserialize_any(Either)
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct GpuText {
    driver: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct KeysText {
    trust: Option<Spanned<String>>,
    identity: Option<Spanned<String>>,
    audit: Option<Spanned<String>>,
    audit_retired: Option<String>,
    tls: Option<Spanned<String>>,
    wrapping: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct AuditText {
    folder: Option<String>,
    origin: Option<Spanned<String>>,
    replica: Option<String>,
    replica_mode: Option<Spanned<Mode>>,
    readers_group: Option<u32>,
    tpm_counter: Option<String>,
    retention_preset: Option<Spanned<RetentionPreset>>,
    retention_min: Option<Spanned<String>>,
    retention_max: Option<Spanned<String>>,
    erase_confirmations: Option<Spanned<u32>>,
    erase_operators: Option<Spanned<Vec<u32>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct TokensText {
    file: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ControlText {
    socket: Option<String>,
}

impl Config {
    /// Checks the text of `file`.
    ///
    /// # Errors
    ///
    /// As [`Config::read`].
    pub fn parse(
        file: &Path,
        text: &str,
        is_root: bool,
        credentials: Option<&Path>,
    ) -> Result<Self, Error> {
        let reader = TextReader { file, text, credentials };
        let raw: FileText = toml::from_str(text).map_err(|error| reader.form(&error))?;
        let profile = reader.profile(raw.profile.as_ref(), is_root)?;
        let limits = reader.limits(raw.limits)?;
        let (certificate, tls) = reader.tls(&raw.server, &raw.keys)?;
        let listen = reader.listen(raw.server.listen.as_ref(), profile, certificate.is_some())?;
        let models = reader.models(&raw.model)?;
        let worker = reader.worker(raw.worker, models.len())?;
        let workers_len = models.len() * usize::from(worker.count());
        let audit_folder = raw.audit.folder.as_deref().unwrap_or(DEFAULT_AUDIT_FOLDER);
        let audit_folder = reader.path(audit_folder);
        let beside = audit_folder.parent().unwrap_or(Path::new("")).join("wrapping.key");
        let tokens_file = raw.tokens.file.as_deref().unwrap_or("tokens.toml");
        let socket = raw.control.socket.as_deref().unwrap_or(DEFAULT_CONTROL_SOCKET);
        let keys = Keys {
            trust_folder: reader.key_path(raw.keys.trust.as_ref(), "keys.trust", "trust")?,
            identity: reader.key_path(
                raw.keys.identity.as_ref(),
                "keys.identity",
                "identity.age",
            )?,
            audit: reader.key_path(raw.keys.audit.as_ref(), "keys.audit", "audit.key")?,
            audit_retired: raw.keys.audit_retired.as_deref().map(|path| reader.path(path)),
            tls,
            wrapping: match raw.keys.wrapping.as_ref() {
                Some(wrapping) => reader.key_path(Some(wrapping), "keys.wrapping", "")?,
                None => beside,
            },
        };
        Ok(Self {
            file: file.to_owned(),
            digest: hex(digest(&SHA256, text.as_bytes()).as_ref()),
            profile,
            listen,
            certificate,
            limits,
            keys,
            audit_folder,
            audit_replica: raw.audit.replica.as_deref().map(|path| reader.path(path)),
            audit_replica_mode: reader.replica_mode(&raw.audit)?,
            audit_retention: reader.retention(&raw.audit)?,
            audit_origin: reader.origin(raw.audit.origin.as_ref())?,
            audit_tpm_counter: raw.audit.tpm_counter.as_deref().map(|path| reader.path(path)),
            audit_readers_group: raw.audit.readers_group,
            erasure: reader.erasure(&raw.audit)?,
            tokens_file: reader.path(tokens_file),
            control_socket: reader.path(socket),
            worker,
            gpu_driver: raw.gpu.driver.as_deref().map(|path| reader.path(path)),
            sandbox: reader.sandbox(raw.sandbox)?,
            users: reader.users(raw.users, workers_len)?,
            models,
        })
    }
}

/// Turns raw values into checked ones, knowing where each stood.
struct TextReader<'a> {
    file: &'a Path,
    text: &'a str,
    credentials: Option<&'a Path>,
}

impl TextReader<'_> {
    fn error(&self, span: Option<Range<usize>>, key: &str, fault: Fault) -> Error {
        let line = span.map_or(0, |span| self.line(span.start));
        Error { file: self.file.to_owned(), line, key: key.to_owned(), fault }
    }

    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or_default();
        1 + before.iter().filter(|&&byte| byte == b'\n').count()
    }

    /// The TOML reader's own refusal, with the key on the line it points at.
    fn form(&self, error: &toml::de::Error) -> Error {
        let offset = error.span().map(|span| span.start);
        let line = offset.map_or(0, |offset| self.line(offset));
        let text = self.text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
        let key = text.split_once('=').map_or("", |(key, _)| key.trim());
        Error {
            file: self.file.to_owned(),
            line,
            key: key.to_owned(),
            fault: Fault::Form(error.message().trim().to_owned()),
        }
    }

    fn path(&self, value: &str) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(value)
    }

    fn key_path(
        &self,
        value: Option<&Spanned<String>>,
        key: &str,
        default: &str,
    ) -> Result<PathBuf, Error> {
        let Some(value) = value else { return Ok(self.path(default)) };
        let Some(name) = value.as_ref().strip_prefix(CREDENTIAL_PREFIX) else {
            return Ok(self.path(value.as_ref()));
        };
        self.credentials
            .map(|folder| folder.join(name))
            .ok_or_else(|| self.error(Some(value.span()), key, Fault::NoCredentials))
    }

    fn profile(&self, asked: Option<&Spanned<Profile>>, is_root: bool) -> Result<Profile, Error> {
        let ours = if is_root { Profile::Full } else { Profile::Evaluation };
        let Some(asked) = asked else { return Ok(ours) };
        if *asked.get_ref() == ours {
            return Ok(ours);
        }
        let fault = if is_root { Fault::EvaluationAsRoot } else { Fault::FullNeedsRoot };
        Err(self.error(Some(asked.span()), "profile", fault))
    }

    fn tls(
        &self,
        server: &ServerText,
        keys: &KeysText,
    ) -> Result<(Option<PathBuf>, Option<PathBuf>), Error> {
        let half = |span, key| Err(self.error(Some(span), key, Fault::TlsHalf));
        match (&server.certificate, &keys.tls) {
            (None, None) => Ok((None, None)),
            (Some(certificate), None) => half(certificate.span(), "server.certificate"),
            (None, Some(key)) => half(key.span(), "keys.tls"),
            (Some(certificate), Some(key)) => Ok((
                Some(self.path(certificate.as_ref())),
                Some(self.key_path(Some(key), "keys.tls", "")?),
            )),
        }
    }

    fn listen(
        &self,
        asked: Option<&Spanned<Vec<Spanned<String>>>>,
        profile: Profile,
        has_tls: bool,
    ) -> Result<Vec<Listen>, Error> {
        const KEY: &str = "server.listen";
        let Some(asked) = asked else {
            return Ok(vec![Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 8443)))]);
        };
        if asked.get_ref().is_empty() || asked.get_ref().len() > LISTENERS_COUNT_MAX {
            return Err(self.error(Some(asked.span()), KEY, Fault::ListenCount));
        }
        let mut listen = Vec::new();
        for one in asked.get_ref() {
            let fault = |fault| self.error(Some(one.span()), KEY, fault);
            if let Some(path) = one.as_ref().strip_prefix("unix:") {
                listen.push(Listen::Unix(self.path(path)));
                continue;
            }
            let address: SocketAddr = one.as_ref().parse().map_err(|_| fault(Fault::Listen))?;
            if !address.ip().is_loopback() {
                if profile == Profile::Evaluation {
                    return Err(fault(Fault::EvaluationNotLoopback));
                }
                if !has_tls {
                    return Err(fault(Fault::TlsRequired));
                }
            }
            listen.push(Listen::Tcp(address));
        }
        Ok(listen)
    }

    fn models(&self, asked: &[Spanned<ModelText>]) -> Result<Vec<Model>, Error> {
        if asked.is_empty() {
            return Err(self.error(None, "model", Fault::NoModel));
        }
        let mut models: Vec<Model> = Vec::new();
        for one in asked {
            if models.len() == MODELS_COUNT_MAX {
                return Err(self.error(Some(one.span()), "model", Fault::TooManyModels));
            }
            let model = self.model(one.get_ref())?;
            if models.iter().any(|other| other.name == model.name) {
                let name = one.get_ref().name.as_ref().map_or(one.span(), Spanned::span);
                return Err(self.error(Some(name), "model.name", Fault::ModelNameTwice));
            }
            models.push(model);
        }
        Ok(models)
    }

    fn model(&self, asked: &ModelText) -> Result<Model, Error> {
        let file = asked.file.as_ref();
        let plain = file.strip_suffix(".age").unwrap_or(file);
        let stem = plain.strip_suffix(".gguf").filter(|stem| !stem.is_empty());
        let Some(stem) = stem else {
            return Err(self.error(Some(asked.file.span()), "model.file", Fault::ModelFile));
        };
        let (name, span) = match &asked.name {
            Some(name) => (name.as_ref().as_str(), name.span()),
            None => (stem.rsplit('/').next().unwrap_or(stem), asked.file.span()),
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-:/".contains(c);
        if name.is_empty() || name.len() > NAME_LEN_MAX_BYTES || !name.chars().all(is_plain) {
            return Err(self.error(Some(span), "model.name", Fault::ModelName));
        }
        let devices = asked.gpu_device.as_ref();
        let gpu_devices = match devices.map(|devices| &devices.get_ref().0[..]) {
            Some(numbers) => Devices::of(numbers),
            None => Devices::of(&[0]),
        };
        let gpu_devices = gpu_devices
            .map_err(|fault| self.error(devices.map(Spanned::span), "model.gpu_device", fault))?;
        let default_signature = format!("{plain}.sig");
        Ok(Model {
            name: name.to_owned(),
            file: self.path(file),
            signature: self.path(asked.signature.as_ref().unwrap_or(&default_signature)),
            allow_unsigned: asked.allow_unsigned,
            gpu_layers: asked.gpu_layers.as_ref().and_then(|layers| layers.0),
            gpu_devices,
        })
    }

    fn origin(&self, asked: Option<&Spanned<String>>) -> Result<String, Error> {
        let Some(asked) = asked else { return Ok("cloister/audit".to_owned()) };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        let origin: &String = asked.as_ref();
        if origin.is_empty() || origin.len() > 128 || !origin.chars().all(is_plain) {
            return Err(self.error(Some(asked.span()), "audit.origin", Fault::Origin));
        }
        Ok(origin.clone())
    }

    fn replica_mode(&self, audit: &AuditText) -> Result<Mode, Error> {
        match (&audit.replica_mode, &audit.replica) {
            (Some(mode), None) => {
                Err(self.error(Some(mode.span()), "audit.replica_mode", Fault::NoReplica))
            }
            (mode, _) => Ok(mode.as_ref().map_or_else(Mode::default, |mode| *mode.get_ref())),
        }
    }

    fn retention(&self, audit: &AuditText) -> Result<Retention, Error> {
        let time = |asked: &Option<Spanned<String>>, key| match asked {
            None => Ok(None),
            Some(text) => match parse_time_s(text.get_ref()) {
                Some(time_s) if time_s >= RETENTION_FLOOR_S => Ok(Some(time_s)),
                _ => Err(self.error(Some(text.span()), key, Fault::Retention)),
            },
        };
        let preset = audit.retention_preset.as_ref().map(|preset| *preset.get_ref());
        let by_preset = preset.map_or_else(Retention::default, Retention::of);
        let min_s = time(&audit.retention_min, "audit.retention_min")?;
        let min_s = min_s.unwrap_or(by_preset.min_s);
        let max_s = time(&audit.retention_max, "audit.retention_max")?.or(by_preset.max_s);
        if max_s.is_some_and(|max_s| max_s < min_s) {
            // A maximum of a preset stands in no line: then the minimum is what goes beyond it.
            let (at, key, fault) = match (&audit.retention_max, &audit.retention_min) {
                (None, Some(min)) => {
                    (min.span(), "audit.retention_min", Fault::RetentionBeyondPreset)
                }
                (max, _) => {
                    let at = max.as_ref().map_or(0..0, Spanned::span);
                    (at, "audit.retention_max", Fault::RetentionOrder { min_s })
                }
            };
            return Err(self.error(Some(at), key, fault));
        }
        Ok(Retention { preset, min_s, max_s })
    }

    /// As many users must be able to ask as are needed: the configured ones and root.
    fn erasure(&self, asked: &AuditText) -> Result<Erasure, Error> {
        let confirmations = asked.erase_confirmations.as_ref();
        let needed = confirmations.map_or(1, |count| *count.get_ref());
        if !(1..=ERASURE_USERS_COUNT_MAX).contains(&needed) {
            let range = Fault::Range(1..=ERASURE_USERS_COUNT_MAX);
            let at = confirmations.map(Spanned::span);
            return Err(self.error(at, "audit.erase_confirmations", range));
        }
        let span = asked.erase_operators.as_ref().map(Spanned::span);
        let operators = asked.erase_operators.as_ref().map(|uids| uids.get_ref().clone());
        let mut operators = operators.unwrap_or_default();
        operators.sort_unstable();
        operators.dedup();
        let count = u32::try_from(operators.len()).unwrap_or(u32::MAX);
        let is_enough = operators.iter().filter(|uid| **uid != 0).count() + 1 >= needed as usize;
        if count > ERASURE_USERS_COUNT_MAX || !is_enough {
            let fault = Fault::ErasureUsers { needed };
            return Err(self.error(span, "audit.erase_operators", fault));
        }
        Ok(Erasure { confirmations: needed, operators })
    }

    fn limits(&self, asked: Option<Spanned<Limits>>) -> Result<Limits, Error> {
        let Some(asked) = asked else { return Ok(Limits::default()) };
        let span = asked.span();
        let limits = asked.into_inner();
        let ranges = [
            ("body_len_max_bytes", limits.body_len_max_bytes, 1024..=BODY_LEN_MAX_BYTES),
            ("read_deadline_ms", limits.read_deadline_ms, 100..=600_000),
            ("write_deadline_ms", limits.write_deadline_ms, 100..=600_000),
            ("connections_max", limits.connections_max.into(), 1..=16_384),
            ("connections_per_peer_max", limits.connections_per_peer_max.into(), 1..=16_384),
            ("requests_max", limits.requests_max.into(), 1..=4096),
            ("requests_per_key_max", limits.requests_per_key_max.into(), 1..=4096),
            ("request_deadline_ms", limits.request_deadline_ms, 1000..=86_400_000),
            ("hang_ms", limits.hang_ms, 1000..=3_600_000),
        ];
        self.check_ranges("limits", &span, ranges)?;
        Ok(limits)
    }

    fn worker(&self, asked: Option<Spanned<Worker>>, models_len: usize) -> Result<Worker, Error> {
        let Some(asked) = asked else { return Ok(Worker::default()) };
        let span = asked.span();
        let worker = asked.into_inner();
        let ranges = [
            ("threads", worker.threads.into(), 0..=1024),
            ("sequences", worker.sequences.into(), 1..=1024),
            ("spare", worker.spare.into(), 0..=16),
            ("prefix_tokens", worker.prefix_tokens, 0..=1 << 20),
            ("prefix_principals", worker.prefix_principals.into(), 1..=1024),
            ("prefix_keep_s", worker.prefix_keep_s, 1..=86_400),
            ("guess_tokens", worker.guess_tokens.into(), 0..=15),
        ];
        self.check_ranges("worker", &span, ranges)?;
        if worker.activations == Activations::F32 && worker.kv != Kv::F16 {
            let at = self.find_key(&span, "kv");
            return Err(self.error(Some(at), "worker.kv", Fault::KvInExactMode));
        }
        if models_len * usize::from(worker.count()) > WORKERS_COUNT_MAX {
            let at = self.find_key(&span, "lifetime");
            return Err(self.error(Some(at), "worker.lifetime", Fault::TooManyWorkers));
        }
        Ok(worker)
    }

    fn sandbox(&self, asked: Option<Spanned<Sandbox>>) -> Result<Sandbox, Error> {
        let Some(asked) = asked else { return Ok(Sandbox::default()) };
        let span = asked.span();
        let sandbox = asked.into_inner();
        let range = LANDLOCK_ABI_FLOOR..=LANDLOCK_ABI_MAX;
        self.check_ranges(
            "sandbox",
            &span,
            [("landlock_abi_min", sandbox.landlock_abi_min, range)],
        )?;
        Ok(sandbox)
    }

    fn check_ranges<const N: usize>(
        &self,
        section: &str,
        span: &Range<usize>,
        ranges: [(&str, u32, std::ops::RangeInclusive<u32>); N],
    ) -> Result<(), Error> {
        for (name, value, range) in ranges {
            if !range.contains(&value) {
                let at = self.find_key(span, name);
                let key = format!("{section}.{name}");
                return Err(self.error(Some(at), &key, Fault::Range(range)));
            }
        }
        Ok(())
    }

    /// Where `name` is set inside a table whose span is `span`.
    fn find_key(&self, span: &Range<usize>, name: &str) -> Range<usize> {
        let table = self.text.get(span.start..).unwrap_or_default();
        let mut offset = span.start;
        for line in table.split_inclusive('\n') {
            let is_it = line.split_once('=').is_some_and(|(key, _)| key.trim() == name);
            if is_it {
                return offset..offset + line.len();
            }
            offset += line.len();
        }
        span.clone()
    }

    fn users(&self, asked: Option<Spanned<Users>>, workers_len: usize) -> Result<Users, Error> {
        let span = asked.as_ref().map(Spanned::span);
        let users = asked.map_or_else(Users::default, Spanned::into_inner);
        let last =
            u32::try_from(workers_len).ok().and_then(|len| users.worker_first.checked_add(len));
        let Some(end) = last else { return Err(self.error(span, "users", Fault::Users)) };
        let mut ids = vec![users.supervisor, users.gateway, users.opener, users.loader];
        ids.extend(users.worker_first..end);
        ids.sort_unstable();
        if ids.first() == Some(&0) || ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(self.error(span, "users", Fault::Users));
        }
        Ok(users)
    }
}
