//! Which models use a card, and what of the host the driver of a card needs to see.
//!
//! Looked for once, before the spawners are forked; nothing is loaded here: the driver runs in the worker alone,
//! which says itself what it finds. What a worker's root holds is this list and no more. A model that asks for
//! `"auto"` goes to the processors where there is no driver, and stays there.

use std::fs;
use std::path::{Path, PathBuf};

use super::config::{Config, Devices, Model};
use super::error::Error;
use super::nursery::Child;
use super::seat::Doom;
use super::serve::Supervisor;
use super::workers::WorkerSeat;
use crate::audit::Event;
use crate::audit::record::ModelRefusedFacts;
use crate::ipc::message::{GpuLayers, ModelIndex, WorkerIndex};
use crate::sandbox::{Placed, Role};
use crate::spawner::message::Stage;

/// The worker that is linked dynamically and loads the driver; it lies beside the supervisor.
pub(super) const WORKER_GPU: &str = "cloister-worker-gpu";
/// What a card takes away, said at start and in `status`.
pub(super) const MISSING: &str = "a worker without a driver: NVIDIA's driver runs in the worker of a model with layers on \
                                  a card, and the card reads and writes memory by itself; what of the jail is wider for \
                                  that stands in SECURITY.md.";

/// The program that the kernel starts before a dynamically linked one.
#[cfg(target_arch = "x86_64")]
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
#[cfg(target_arch = "aarch64")]
const LOADER: &str = "/lib/ld-linux-aarch64.so.1";
/// Where libraries lie; the first that has one is taken.
#[cfg(target_arch = "x86_64")]
const FOLDERS: [&str; 5] =
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/lib64", "/usr/local/nvidia/lib64", "/usr/lib"];
#[cfg(target_arch = "aarch64")]
const FOLDERS: [&str; 5] =
    ["/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/lib64", "/usr/local/nvidia/lib64", "/usr/lib"];
/// The driver.
const DRIVER: &str = "libcuda.so.1";
/// The libraries of libc, which the worker and the driver are linked to; newer releases lack some.
const LIBC: [&str; 6] =
    ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0", "librt.so.1"];
/// The beginnings of what else the driver loads, for a card that is newer than the kernels: their compiler.
const COMPILERS: [&str; 2] = ["libnvidia-ptxjitcompiler.so.1", "libnvidia-gpucomp.so."];
/// The devices of the driver itself; the last is not there on every machine.
const DEVICES: [&str; 3] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"];
/// What the driver reads of itself.
const TEXTS: [&str; 3] = ["params", "version", "registry"];
const TEXTS_FOLDER: &str = "/proc/driver/nvidia";
/// Longest of these texts, in bytes.
const TEXT_LEN_MAX_BYTES: usize = 16 << 10;

/// Which models use a card.
pub(super) struct Cards {
    of_models: Vec<Option<Devices>>,
    /// Cards that are used together, with what their workers' root holds.
    roots: Vec<(Devices, Vec<Placed>)>,
}

impl Cards {
    /// Looks for the driver, if a model asks for a card.
    ///
    /// # Errors
    ///
    /// [`Error::Card`] where layers are asked for by number, and the worker or the driver is not installed.
    pub(super) fn find(config: &Config) -> Result<Self, Error> {
        let mut cards = Self { of_models: vec![None; config.models.len()], roots: Vec::new() };
        let models = config.models.iter().enumerate();
        let mut asking = models.filter(|(_, model)| model.gpu_layers.is_some()).peekable();
        if asking.peek().is_none() {
            return Ok(cards);
        }
        let files = find_files(config);
        for (at, model) in asking {
            match (&files, model.gpu_layers) {
                (Ok(files), _) => cards.give(at, &model.gpu_devices, files),
                (Err(why), Some(GpuLayers::Auto)) => say_none(model, why),
                (Err(why), _) => return Err(fault(config, model, why.clone())),
            }
        }
        Ok(cards)
    }

    fn give(&mut self, model: usize, cards: &Devices, files: &[Placed]) {
        self.of_models[model] = Some(cards.clone());
        if self.roots.iter().all(|(others, _)| others != cards) {
            let devices = devices(cards, Path::exists);
            let root = files.iter().cloned().chain(devices).chain(texts(TEXTS_FOLDER));
            self.roots.push((cards.clone(), root.collect()));
        }
    }

    /// The cards of a model.
    pub(super) fn of(&self, model: usize) -> Option<&Devices> {
        self.of_models.get(model).and_then(Option::as_ref)
    }

    /// Whether any model uses one.
    pub(super) fn is_used(&self) -> bool {
        self.of_models.iter().any(Option::is_some)
    }

    /// Cards have no spawner: their models go to the processors.
    ///
    /// # Errors
    ///
    /// [`Error::Card`], where one of them asks for layers by number.
    pub(super) fn lose(
        &mut self,
        config: &Config,
        cards: &Devices,
        why: &str,
    ) -> Result<(), Error> {
        for (model, its) in config.models.iter().zip(&mut self.of_models) {
            if its.as_ref() != Some(cards) {
                continue;
            }
            if model.gpu_layers != Some(GpuLayers::Auto) {
                return Err(fault(config, model, with_remedy(why)));
            }
            *its = None;
            say_none(model, why);
        }
        Ok(())
    }

    /// Cards that are used together, with what their workers' root holds.
    pub(super) fn roots(&self) -> &[(Devices, Vec<Placed>)] {
        &self.roots
    }
}

fn fault(config: &Config, model: &Model, why: String) -> Error {
    Error::Card(config.file.clone(), model.name.clone(), why)
}

/// Returns the reason with what to do about it.
fn with_remedy(why: &str) -> String {
    format!("{why}; mend that, or set gpu_layers = 0")
}

/// Whether this stage of a start needs what a worker with a card alone has: its root, its program.
fn is_of_a_card(stage: Stage) -> bool {
    matches!(stage, Stage::Files | Stage::Exec)
}

fn say_none(model: &Model, why: &str) {
    super::say(&format!("model {}: no layer on a card: {why}", model.name));
}

/// The libraries of worker and driver, or what is not installed and what to do.
fn find_files(config: &Config) -> Result<Vec<Placed>, String> {
    let own = std::env::current_exe().map_err(|error| format!("/proc/self/exe: {error}"))?;
    let worker = own.with_file_name(WORKER_GPU);
    if !worker.is_file() {
        return Err(format!(
            "{} is not installed; build and install it (README.md), or set gpu_layers = 0",
            worker.display()
        ));
    }
    let folders: Vec<PathBuf> =
        config.gpu_driver.iter().cloned().chain(FOLDERS.map(PathBuf::from)).collect();
    let first = |name: &str| folders.iter().map(|folder| folder.join(name)).find(|it| it.is_file());
    let driver = first(DRIVER).ok_or_else(|| {
        let folders: Vec<String> = folders.iter().map(|it| it.display().to_string()).collect();
        format!(
            "no CUDA driver: {DRIVER} is in none of {}; install NVIDIA's driver (580 or later), name its folder in \
             gpu.driver, or set gpu_layers = 0",
            folders.join(", ")
        )
    })?;
    let compilers = compilers(driver.parent().unwrap_or(Path::new("/")));
    let libraries = LIBC.into_iter().filter_map(first).chain([driver]).chain(compilers);
    let mut placed: Vec<Placed> = libraries.filter_map(|path| library(&path, None)).collect();
    placed.extend(library(Path::new(LOADER), Some(LOADER)));
    Ok(placed)
}

/// The libraries of the driver's folder that compile kernels.
fn compilers(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_one = |name: &str| COMPILERS.iter().any(|start| name.starts_with(start));
    let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_one));
    named.map(|entry| entry.path()).collect()
}

/// A library in the one folder of libraries, or at `at`.
fn library(path: &Path, at: Option<&str>) -> Option<Placed> {
    let at = match at {
        Some(at) => PathBuf::from(at),
        None => Path::new("/lib").join(path.file_name()?),
    };
    Some(Placed::Library { from: fs::canonicalize(path).ok()?, at })
}

/// The devices of cards and of their driver, as far as they are there.
fn devices(cards: &Devices, is_there: impl Fn(&Path) -> bool) -> impl Iterator<Item = Placed> {
    let devices = DEVICES.map(PathBuf::from).into_iter();
    let own = cards.numbers().iter().map(|card| PathBuf::from(format!("/dev/nvidia{card}")));
    devices.chain(own).filter(move |path| is_there(path)).map(Placed::Device)
}

/// What the driver says of itself in a folder, to be read at the place of the kernel's.
fn texts(folder: &str) -> impl Iterator<Item = Placed> {
    TEXTS.into_iter().filter_map(move |name| {
        let mut text = fs::read(Path::new(folder).join(name)).ok()?;
        text.truncate(TEXT_LEN_MAX_BYTES);
        let at = Path::new(TEXTS_FOLDER).join(name);
        Some(Placed::Text { at, text: without_device_files(&text) })
    })
}

/// The driver's parameters, but that it makes no device files: it would have a program of the host do that.
fn without_device_files(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    text.replace("ModifyDeviceFiles: 1", "ModifyDeviceFiles: 0").into_bytes()
}

impl Supervisor {
    /// Protections that are missing now: a worker that is still to end has the driver too.
    pub(super) fn missing_now(&self) -> impl Iterator<Item = &str> {
        let has_driver = self.workers.iter().any(|worker| worker.cards.is_some());
        let has_driver = has_driver || self.cards.is_used();
        self.missing.iter().map(String::as_str).chain(has_driver.then_some(MISSING))
    }

    /// The cards that a model's workers use, or that the next of them will.
    pub(super) fn cards_of(&self, model: ModelIndex) -> Option<&Devices> {
        let mut its = self.workers.iter().filter(|worker| worker.model == model);
        let own = self.cards.of(usize::from(model.0));
        own.or_else(|| its.find_map(|worker| worker.cards.as_ref()))
    }

    /// Tells the operator what goes to a card, by the word of a model's first worker that serves.
    pub(super) fn say_plan(&self, model: ModelIndex) {
        let is_first = |worker: &&WorkerSeat| {
            worker.model == model && self.dispatch.is_worker_serving(worker.index)
        };
        let cards = self.workers.iter().find(is_first).and_then(|worker| worker.cards.as_ref());
        if let (Some(cards), Some(engine)) = (cards, self.dispatch.engine(model)) {
            let name = &self.config.models[usize::from(model.0)].name;
            super::say(&format!("model {name}: {cards}: {engine}"));
        }
    }

    /// Starts a worker's process, on its model's cards if that has some, which are returned too. With `"auto"` the model
    /// goes to the processors where the driver's files, the program or a spawner that is gone keep it from starting;
    /// with a number the start is refused, and there is no process.
    pub(super) fn spawn_worker(
        &mut self,
        at: usize,
    ) -> Result<Option<(Child, Option<Devices>)>, Error> {
        let worker = &self.workers[at];
        let (index, model) = (worker.index.0, usize::from(worker.model.0));
        let node = self.places[model].node;
        if let Some(cards) = self.cards.of(model).cloned() {
            match self.nursery.spawn_on(&cards, index, node) {
                Ok(Some(child)) => return Ok(Some((child, Some(cards)))),
                Ok(None) => self.lose_cards()?,
                Err(Error::Spawn(_, failed))
                    if is_of_a_card(failed.stage) && self.is_auto(model) =>
                {
                    let name = self.workers[at].seat.name.clone();
                    self.leave_card(model, &failed.to_string());
                    self.record_death(name, None, failed.to_string(), None);
                }
                Err(Error::Spawn(_, failed))
                    if is_of_a_card(failed.stage) && self.is_starting() =>
                {
                    self.refuse(model, with_remedy(&failed.to_string()));
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some((self.nursery.spawn(Role::Worker, index, node, None)?, None)))
    }

    /// Models whose cards' spawner is gone go to the processors.
    ///
    /// # Errors
    ///
    /// As [`Cards::lose`].
    pub(super) fn lose_cards(&mut self) -> Result<(), Error> {
        let mut gone = self.nursery.gone();
        gone.try_for_each(|cards| self.cards.lose(&self.config, cards, "its spawner is gone"))
    }

    /// Whether a start may still be refused.
    fn is_starting(&self) -> bool {
        !self.is_announced && self.stop.is_none()
    }

    /// Refuses the start for what a model asks of its cards, by a stop like any other.
    fn refuse(&mut self, model: usize, why: String) {
        let model = &self.config.models[model];
        let check = "no card computes the layers that it is to have there".to_owned();
        let observed = ModelRefusedFacts { model: model.name.clone(), check };
        self.ledger.append(Event::ModelRefused { observed, declared: None });
        self.refused = Some(fault(&self.config, model, why));
        self.begin_stop();
    }

    fn is_auto(&self, model: usize) -> bool {
        self.config.models[model].gpu_layers == Some(GpuLayers::Auto)
    }

    /// The workers of a model that are started from now on compute on the processors.
    fn leave_card(&mut self, model: usize, why: &str) {
        if self.cards.of_models[model].take().is_some() {
            say_none(&self.config.models[model], why);
        }
    }

    /// No card computes what a model asks for, by the word of a worker that has not served. With `"auto"` the model
    /// goes to the processors; with a number the start is refused, by a stop like any other, or that worker has died.
    pub(super) fn no_card(&mut self, index: WorkerIndex, why: String) -> Result<(), Error> {
        let Some(worker) = self.workers.get(usize::from(index.0)) else { return Ok(()) };
        let at = usize::from(worker.model.0);
        if self.is_auto(at) {
            self.leave_card(at, &why);
            return self.doom_worker(index, Doom::Replaced("found no card for its layers"));
        }
        if self.is_starting() {
            self.refuse(at, why);
        } else {
            super::say(&format!("model {}: {why}", self.config.models[at].name));
        }
        self.doom_worker(index, Doom::Fault("found no card for its layers".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(gpu_layers: &str) -> Result<Cards, Error> {
        let text = format!("[[model]]\nfile = \"m.gguf\"\ngpu_layers = {gpu_layers}\n");
        Cards::find(&Config::parse(Path::new("/c/cloister.toml"), &text, true, None).unwrap())
    }

    #[test]
    fn a_number_without_the_worker_is_refused_by_file_field_and_fix_and_auto_goes_on() {
        // Beside the test program there is no worker.
        let refused = find("-1").err().unwrap().to_string();
        assert!(
            refused.starts_with("/c/cloister.toml: model.gpu_layers of model m: "),
            "{refused}"
        );
        assert!(refused.contains(WORKER_GPU) && refused.contains("gpu_layers = 0"), "{refused}");
        for without in ["\"auto\"", "0"] {
            let cards = find(without).unwrap();
            assert!(!cards.is_used() && cards.of(0).is_none() && cards.roots().is_empty());
        }
    }

    #[test]
    fn a_card_without_a_spawner_is_refused_to_a_number_and_left_by_auto() {
        let models = [("\"auto\"", 0), ("-1", 1), ("\"auto\"", 1), ("\"auto\"", 0)];
        let model = |(at, (layers, card)): (usize, &(&str, u16))| {
            format!("[[model]]\nfile = \"{at}.gguf\"\ngpu_layers = {layers}\ngpu_device = {card}\n")
        };
        let text: String = models.iter().enumerate().map(model).collect();
        let config = Config::parse(Path::new("/c/cloister.toml"), &text, true, None).unwrap();
        let only = |card: u16| Devices::of(&[card.into()]).unwrap();
        let of_models = models.map(|(_, card)| Some(only(card))).to_vec();
        let mut cards = Cards { of_models, roots: Vec::new() };
        cards.lose(&config, &only(0), "no spawner").unwrap();
        assert_eq!(cards.of_models, [None, Some(only(1)), Some(only(1)), None]);
        let refused = cards.lose(&config, &only(1), "no spawner").unwrap_err().to_string();
        let why = "model.gpu_layers of model 1: no spawner; mend that, or set gpu_layers = 0";
        assert_eq!(refused, format!("/c/cloister.toml: {why}"));
    }

    #[test]
    fn the_driver_is_told_to_make_no_device_files() {
        let text = b"Mobile: 4294967295\nModifyDeviceFiles: 1\nDeviceFileMode: 438\n";
        let told = b"Mobile: 4294967295\nModifyDeviceFiles: 0\nDeviceFileMode: 438\n";
        assert_eq!(without_device_files(text), told);
    }

    #[test]
    fn a_root_holds_the_files_behind_links_and_the_compilers_beside_the_driver() {
        let folder = std::env::temp_dir().join(format!("cloister-cards-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let folder = fs::canonicalize(folder).unwrap();
        let (file, link) = (folder.join("libcuda.so.580.1"), folder.join(DRIVER));
        fs::write(&file, "driver").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let compiler = folder.join("libnvidia-gpucomp.so.580.1");
        fs::write(&compiler, "compiler").unwrap();
        fs::write(folder.join("libnvidia-ml.so.1"), "another").unwrap();
        let of_driver = library(&link, None);
        let of_loader = library(&link, Some(LOADER));
        let (found, absent) = (compilers(&folder), library(&folder.join("absent"), None));
        fs::remove_dir_all(&folder).unwrap();
        let library = |at: &str| Some(Placed::Library { from: file.clone(), at: at.into() });
        assert_eq!(of_driver, library("/lib/libcuda.so.1"));
        assert_eq!(of_loader, library(LOADER));
        assert_eq!((found, absent), (vec![compiler], None));
    }

    #[test]
    fn a_root_holds_the_devices_that_are_there_and_the_drivers_texts() {
        let is_there = |path: &Path| path != Path::new("/dev/nvidia-uvm-tools");
        let of_cards = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia3"];
        let of_cards = of_cards.map(|path| Placed::Device(path.into()));
        let cards = Devices::of(&[3, 0]).unwrap();
        assert_eq!(devices(&cards, is_there).collect::<Vec<_>>(), of_cards);

        let folder = std::env::temp_dir().join(format!("cloister-texts-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("params"), "Mobile: 1\nModifyDeviceFiles: 1\n").unwrap();
        fs::write(folder.join("version"), vec![b'5'; TEXT_LEN_MAX_BYTES + 1]).unwrap();
        fs::write(folder.join("warnings"), "another").unwrap();
        let found: Vec<Placed> = texts(folder.to_str().unwrap()).collect();
        fs::remove_dir_all(&folder).unwrap();
        let text = |at: &str, text: &[u8]| Placed::Text { at: at.into(), text: text.to_vec() };
        let params = b"Mobile: 1\nModifyDeviceFiles: 0\n";
        let wanted = [
            text("/proc/driver/nvidia/params", params),
            text("/proc/driver/nvidia/version", &[b'5'; TEXT_LEN_MAX_BYTES]),
        ];
        assert_eq!(found, wanted);
    }
}
