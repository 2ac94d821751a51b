//! The steps of the start, in the order of `mod.rs`.

use std::cell::Cell;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ring::digest::{SHA256, digest};
use zeroize::Zeroizing;

use super::cards::{self, Cards};
use super::compute::{self, Place};
use super::config::{Config, Model, Profile, Swap};
use super::control::BoundSocket;
use super::deaths::violation;
use super::dispatch::Dispatch;
use super::erasure::Erasures;
use super::error::{Error, ModelFault};
use super::intake::Intake;
use super::ledger::Ledger;
use super::manager::Manager;
use super::material::{self, Keys, ModelFile};
use super::nursery::Nursery;
use super::opening::{self, Job, Opened, Opening, Refusal, Step};
use super::operators::missing_protections;
use super::readings::{self, ReadersSocket, Readings};
use super::serve::{Supervisor, gateway_seat, now};
use super::speed::Speed;
use super::workers::{Served, worker_seats};
use super::{beginning, build, swap};
use crate::audit::Event;
use crate::audit::principal_keys::hex;
use crate::audit::record::{
    KeyRole, KeyUseFacts, LoaderFacts, ModelFacts, ModelRefusedFacts, ProgramFacts, StartFacts,
};
use crate::ipc::Channel;
use crate::ipc::message::{KvFormat, ListenerKind, ModelIndex, SEGMENT_LEN_BYTES};
use crate::opener::SEGMENTS_PER_THREAD;
use crate::package::age_stream::Decryptor;
use crate::package::keys::Identity;
use crate::package::trust::TrustStore;
use crate::sandbox::{self, Access, Allow, Ids, Memory, Role, Sandboxed, Thread};
use crate::sys::memory::file_len;
use crate::sys::process::{exit_now, inherited_descriptor};

/// The number of a child's control channel.
const CONTROL_DESCRIPTOR: i32 = 3;
/// Time between two lines about a load on a standard error that is no terminal.
const PROGRESS_STEP: Duration = Duration::from_secs(10);
/// Most threads that decrypt; more are no faster than the hash behind them.
const OPENER_THREADS_MAX: usize = 8;

/// Memory of an opener, in bytes: the header of its file.
const OPENER_LEN_BYTES: u64 = 64 << 20;
/// Memory of each of its threads, in bytes: its heap.
const OPENER_THREAD_LEN_BYTES: u64 = 1 << 20;
/// Bytes that it maps for each of its threads: segments, each with room for the place of a huge page's begin.
const OPENER_MAPPED_LEN_BYTES: u64 = 2 * (SEGMENTS_PER_THREAD * SEGMENT_LEN_BYTES) as u64;

/// What was bound, read and opened before the powers went.
pub(super) struct OpenedAll {
    listeners: Vec<(ListenerKind, OwnedFd)>,
    control: BoundSocket,
    readers: Option<ReadersSocket>,
    signals: SignalFd,
    keys: Keys,
    models: Vec<ModelFile>,
    trust: Option<TrustStore>,
    programs: ProgramFacts,
    /// Of each model.
    places: Vec<Place>,
    cards: Cards,
    manager: Manager,
    /// Protections that are missing with or without a card, in sentences.
    missing: Vec<String>,
    /// Whether standard error is a terminal; to ask later is not allowed.
    has_terminal: bool,
}

/// Binds the sockets, reads the keys, opens the models.
pub(super) fn open_all(
    config: &Config,
    mut manager: Manager,
    cards: Cards,
) -> Result<OpenedAll, Error> {
    if config.sandbox.swap == Swap::Refuse && swap::is_possible() {
        return Err(Error::Swap);
    }
    material::make_folders(config)?;
    let control_path = &config.control_socket;
    let control = BoundSocket::bind(control_path, &config.erasure.operators)
        .map_err(|source| Error::Control(control_path.clone(), source))?;
    let readers_path = readings::socket_beside(control_path);
    let readers = config.audit_readers_group.map(|group| ReadersSocket::bind(&readers_path, group));
    let readers = readers.transpose().map_err(|source| Error::Readers(readers_path, source))?;
    let listeners = material::bind_listeners(config, &mut manager)?;
    let keys = material::read_keys(config)?;
    let (trust, models) = material::open_models(config)?;
    let lens_bytes: Result<Vec<u64>, _> =
        models.iter().map(|model| file_len(&model.file)).collect();
    let lens_bytes = lens_bytes.map_err(|errno| Error::System("look at a model", errno))?;
    let places = compute::place(config, &lens_bytes).map_err(Error::Node)?;
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    signals.thread_block().map_err(|errno| Error::System("block signals", errno))?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals = SignalFd::with_flags(&signals, flags)
        .map_err(|errno| Error::System("watch signals", errno))?;
    Ok(OpenedAll {
        listeners,
        control,
        readers,
        signals,
        keys,
        models,
        trust,
        programs: build::programs(cards.is_used())?,
        places,
        missing: missing_protections(config),
        cards,
        manager,
        has_terminal: std::io::stderr().is_terminal(),
    })
}

/// Becomes the supervisor's own user without capabilities, under landlock and seccomp.
pub(super) fn give_up_powers(config: &Config) -> Result<Sandboxed, Error> {
    if config.profile == Profile::Full {
        let uid = config.users.supervisor;
        sandbox::assume(Ids { uid, gid: uid }, true).map_err(Error::Sandbox)?;
    }
    let principals = config.principals_folder();
    let admissions = material::admissions_folder(config);
    let parent = |path: &std::path::Path| path.parent().map(ToOwned::to_owned).unwrap_or_default();
    let (tokens, control) = (parent(&config.tokens_file), parent(&config.control_socket));
    let allow = |path, access| Allow { path, access };
    let mut allowed = vec![
        allow(config.audit_folder.as_path(), Access::Write),
        allow(principals.as_path(), Access::Write),
        allow(admissions.as_path(), Access::Write),
        allow(control.as_path(), Access::Write),
        allow(tokens.as_path(), Access::Read),
        allow(std::path::Path::new("/proc/self/fdinfo"), Access::Read),
        allow(std::path::Path::new("/proc/sys/kernel/random/boot_id"), Access::Read),
    ];
    if config.keys.trust_folder.is_dir() {
        // Its lists are read again at a reload.
        allowed.push(allow(config.keys.trust_folder.as_path(), Access::Read));
    }
    allowed.extend(config.audit_replica.iter().map(|path| allow(path.as_path(), Access::Write)));
    let begun = sandbox::begin_supervisor(&allowed).map_err(Error::Sandbox)?;
    // The first thread of all has glibc install a signal handler; the filter allows none later.
    let first = std::thread::Builder::new().spawn(|| {}).map(std::thread::JoinHandle::join);
    first.map_err(|_| Error::System("make the first thread", nix::errno::Errno::EAGAIN))?.ok();
    let sandboxed =
        begun.seal_supervisor(config.sandbox.swap == Swap::Lock).map_err(Error::Sandbox)?;
    let (abi, floor) = (sandboxed.landlock_abi, config.sandbox.landlock_abi_min);
    if abi < floor {
        return Err(Error::Sandbox(sandbox::Error::LandlockTooOld { abi, floor }));
    }
    Ok(sandboxed)
}

/// Opens the log and the models; returns what serves.
pub(super) fn begin(
    config: Config,
    mut nursery: Nursery,
    opened: OpenedAll,
    sandboxed: &Sandboxed,
) -> Result<Supervisor, Error> {
    let OpenedAll {
        listeners,
        control,
        readers,
        signals,
        keys,
        models,
        trust,
        programs,
        places,
        cards,
        manager,
        missing,
        has_terminal,
    } = opened;
    let of_cards = cards.is_used().then_some(cards::MISSING);
    for missing in missing.iter().map(String::as_str).chain(of_cards) {
        super::say(&format!("missing protection: {missing}"));
    }
    // 5. Open the audit log.
    let start = start_facts(&config, programs, sandboxed, keys.tpm_counter);
    let log_keys = (keys.audit, keys.audit_retired, keys.wrapping, keys.is_wrapping_fresh);
    let (mut ledger, clocks) = beginning::open_log(&config, log_keys, start, &missing)
        .map_err(|error| Error::Audit(config.audit_folder.clone(), error))?;
    // 6. Verify and open each model.
    let intake = Intake::new(trust, &material::admissions_folder(&config));
    let (served, unwraps_count) = open_each(
        &config,
        (models, &places),
        (&intake, keys.identity.as_ref()),
        (&mut nursery, &signals),
        (has_terminal, &manager),
        &mut ledger,
    )?;
    let control = control.serve();
    let control =
        control.map_err(|source| Error::Control(config.control_socket.clone(), source))?;
    let erasures = Erasures::new(config.erasure.confirmations);
    let names = served.iter().map(|model| (model.facts.model.clone(), model.digest));
    let (limits, worker) = (config.limits, config.worker);
    let dispatch = Dispatch::new(limits, worker, keys.tokens, keys.tls, names.collect());
    let mut dispatch = dispatch.ok_or(Error::NotReady("random number generator"))?;
    dispatch.record_tokens(None, &mut ledger, now());
    (0..unwraps_count).for_each(|_| dispatch.identity_used());
    Ok(Supervisor {
        workers: worker_seats(&config, &served),
        config,
        nursery,
        dispatch,
        ledger,
        control,
        readers,
        readings: Readings::default(),
        signals,
        listeners,
        certificates: keys.certificates,
        gateway: gateway_seat(),
        models: served,
        intake,
        places,
        cards,
        manager,
        missing,
        started: now().instant,
        stop: None,
        refused: None,
        is_announced: false,
        told_state: "",
        log_retry: None,
        clocks,
        erasures,
    })
}

/// What starts, and under which protections.
fn start_facts(
    config: &Config,
    programs: ProgramFacts,
    sandboxed: &Sandboxed,
    tpm_counter: Option<u64>,
) -> StartFacts {
    StartFacts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        profile: config.profile.name().to_owned(),
        config_digest: config.digest.clone(),
        policy_digest: policy_digest(),
        build_digest: build::digest_of(&programs),
        programs,
        landlock_abi: sandboxed.landlock_abi,
        retention: Some(config.audit_retention.into()),
        tpm_counter,
    }
}

/// SHA-256 of the policy that this binary was built with.
fn policy_digest() -> String {
    hex(digest(&SHA256, sandbox::policy_bytes().as_slice()).as_ref())
}

/// Opens the models in order; the first that is refused ends the start, on the record.
fn open_each(
    config: &Config,
    (models, places): (Vec<ModelFile>, &[Place]),
    (intake, identity): (&Intake, Option<&Identity>),
    (nursery, signals): (&mut Nursery, &SignalFd),
    (has_terminal, manager): (bool, &Manager),
    ledger: &mut Ledger,
) -> Result<(Vec<Served>, usize), Error> {
    let mut served = Vec::new();
    let unwraps_count = Cell::new(0);
    for (index, (file, place)) in models.into_iter().zip(places).enumerate() {
        let index = ModelIndex(u16::try_from(index).unwrap_or(u16::MAX));
        let model = &config.models[usize::from(index.0)];
        let terminal = Terminal::new(&model.name, has_terminal, manager);
        let kv = config.worker.kv.format();
        match open_model(
            (model, kv, place),
            file,
            (intake, identity, &unwraps_count),
            (nursery, signals),
            &terminal,
            ledger,
        )? {
            Ok((opened, bundle, facts, speed)) => {
                super::say(&format!("model {}: {}", model.name, speed.line()));
                ledger.append(Event::ModelOpened { observed: facts.clone() });
                let (its, when) = ((index, facts), (now().wall_s, speed));
                served.push(Served::new(its, (opened, bundle), when));
            }
            Err(fault) => {
                if unwraps_count.get() > 0 {
                    let (key, count) = (KeyRole::ModelIdentity, unwraps_count.get() as u64);
                    ledger.append(Event::KeyUsed { observed: KeyUseFacts { key, count } });
                }
                ledger.append(refused_event(&model.name, &fault));
                ledger.append(Event::Stop {});
                let audit = |error| Error::Audit(config.audit_folder.clone(), error);
                ledger.commit().map_err(audit)?;
                return Err(Error::Model(model.name.clone(), fault));
            }
        }
    }
    Ok((served, unwraps_count.get()))
}

/// The signature of a model; none for one that is served unsigned.
type Bundle = Option<Zeroizing<Vec<u8>>>;
/// A model that was opened, its signature, what is recorded of it, and how fast that went.
type Entry = (Opened, Bundle, ModelFacts, Speed);

/// The record of a refused model; what the loader said of it is kept apart.
fn refused_event(model: &str, fault: &ModelFault) -> Event {
    let (check, declared) = match fault {
        ModelFault::Refused(Refusal::Loader(check)) => {
            ("the loader refused it".to_owned(), Some(LoaderFacts { check: check.clone() }))
        }
        fault => (fault.to_string(), None),
    };
    Event::ModelRefused { observed: ModelRefusedFacts { model: model.to_owned(), check }, declared }
}

/// Opens one model through an opener and a loader of its own.
fn open_model(
    (model, kv, place): (&Model, KvFormat, &Place),
    file: ModelFile,
    (intake, identity, unwraps_count): (&Intake, Option<&Identity>, &Cell<usize>),
    (nursery, signals): (&mut Nursery, &SignalFd),
    terminal: &Terminal<'_>,
    ledger: &mut Ledger,
) -> Result<Result<Entry, ModelFault>, Error> {
    let admitted = file.bundle.and_then(|bundle| {
        let admitted = intake.verify(bundle.as_ref().map(|bundle| bundle.as_slice()))?;
        Ok((admitted, bundle))
    });
    let (admitted, bundle) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => return Ok(Err(ModelFault::Signature(error))),
    };
    let statement = admitted.as_ref().map(|admitted| &admitted.statement);
    let opener = nursery.spawn(Role::Opener, 0, None, Some(signals.as_fd()))?;
    let loader = nursery.spawn(Role::Loader, 0, place.node, Some(signals.as_fd()))?;
    let len_bytes =
        file_len(&file.file).map_err(|errno| Error::System("look at a model", errno))?;
    let opening = Opening {
        opener: &opener.channel,
        loader: &loader.channel,
        signals: signals.as_fd(),
        progress: &|step| terminal.show(step),
        unwraps_count: Cell::new(0),
        deadline: opening::deadline(len_bytes),
    };
    let is_encrypted = model.is_encrypted();
    let job = Job { file: &file.file, is_encrypted, statement, intake, identity, kv };
    let opened = opening.run(&job);
    unwraps_count.set(unwraps_count.get() + opening.unwraps_count.get());
    terminal.end();
    // They have done their work or are not believed any more.
    let exits = nursery.end([opener.id, loader.id])?;
    let mut broken = None;
    for (child, exit) in ["opener", "loader"].into_iter().zip(exits) {
        let violation = exit.and_then(|exit| violation(child, exit));
        broken = broken.or(violation.is_some().then_some(child));
        ledger.append_all(violation);
    }
    let opened = match (opened, broken) {
        (Err(Refusal::Stopped), _) => Err(Refusal::Stopped),
        // Also if it had handed its work over before: nothing of it is believed.
        (_, Some(child)) => Err(Refusal::Violation(child)),
        (opened, None) => opened,
    };
    Ok(match opened {
        Ok(opened) => {
            if let Some(admitted) = &admitted {
                intake.keep(admitted).map_err(Error::Package)?;
            }
            let signer = statement.map_or("nobody (allow_unsigned)", |it| it.signer.as_str());
            let facts = ModelFacts {
                model: model.name.clone(),
                digest: hex(&opened.digest.0),
                signer: signer.to_owned(),
                sealed: model.is_encrypted(),
                admitted_s: admitted.as_ref().and_then(|admitted| admitted.since_s),
            };
            let speed = Speed::of(&opened, &file.file, is_encrypted);
            Ok((opened, bundle, facts, speed))
        }
        Err(Refusal::Stopped) => return Err(Error::Stopped),
        Err(refusal) => Err(ModelFault::Refused(refusal)),
    })
}

/// Progress on the operator's terminal, a line now and then where there is none, and word to the
/// service manager that the start goes on.
struct Terminal<'a> {
    name: &'a str,
    manager: &'a Manager,
    is_there: bool,
    shown: Cell<(u8, u64)>,
    /// When the last line was written.
    told: Cell<Instant>,
}

impl<'a> Terminal<'a> {
    fn new(name: &'a str, is_there: bool, manager: &'a Manager) -> Self {
        let (shown, told) = (Cell::new((0, u64::MAX)), Cell::new(Instant::now()));
        Self { name, manager, is_there, shown, told }
    }

    fn show(&self, step: Step) {
        let (kind, word, done, total) = match step {
            Step::Reading(done, total) => (0, "reading and hashing", done, total),
            Step::Packing(done, total) => (1, "packing", done, total),
        };
        let percent = done.saturating_mul(100) / total.max(1);
        self.manager.still_starting(&format!("{}: {word} {percent} %", self.name));
        if !self.is_there && self.told.get().elapsed() < PROGRESS_STEP {
            return;
        }
        if !self.is_there {
            self.told.set(Instant::now());
            let _ = writeln!(std::io::stderr(), "cloister: {}: {word} {percent} %", self.name);
            return;
        }
        if self.shown.replace((kind, percent)) != (kind, percent) {
            let _ =
                write!(std::io::stderr(), "\rcloister: {}: {word} {percent:>3} %\x1b[K", self.name);
        }
    }

    fn end(&self) {
        if self.is_there {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// The opener: this program in another role, started by the spawner.
pub(super) fn opener() -> ExitCode {
    sandbox::report_panics(|_, _| {});
    let Ok(channel) = inherited_descriptor(CONTROL_DESCRIPTOR) else { return ExitCode::from(2) };
    let channel = Channel::new(channel);
    let Ok(begun) = sandbox::begin(Role::Opener, &channel) else { return ExitCode::from(3) };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // The main thread decrypts too.
    let helpers = (threads - 1).min(OPENER_THREADS_MAX);
    let sealed = Arc::new(OnceLock::<Sandboxed>::new());
    let seal = Arc::clone(&sealed);
    let enter = move || narrow(seal.wait(), Thread::OpenerDecrypt);
    let Ok(mut decryptor) = Decryptor::entering(helpers, enter) else {
        return ExitCode::from(4);
    };
    let memory = Memory {
        threads: helpers + 1,
        mapped_len_bytes: OPENER_MAPPED_LEN_BYTES * (helpers as u64 + 1),
        more_len_bytes: OPENER_LEN_BYTES + (helpers as u64 + 1) * OPENER_THREAD_LEN_BYTES,
        written_len_bytes: Some(SEGMENT_LEN_BYTES as u64),
    };
    // Not by a return, which would wait for threads that wait for the seal.
    let Ok(sandboxed) = begun.seal(memory) else { exit_now(5) };
    narrow(sealed.get_or_init(|| sandboxed), Thread::OpenerMain);
    match crate::opener::serve(&channel, &mut decryptor) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Puts the filter of its kind on this thread of the opener; the process does not go on without.
fn narrow(sandboxed: &Sandboxed, thread: Thread) {
    if sandboxed.narrow(thread).is_err() {
        exit_now(5);
    }
}
