//! The process that runs the engine; no network, no file, no key.
//!
//! It serves what has a ticket of the supervisor and nothing else. No text that it sees goes
//! anywhere but to the gateway: the supervisor gets digests and counts, a panic tells file and
//! line. The same binary, started as `loader`, packs a model (see `crate::loader`). A worker whose model has
//! layers on a card is a binary of its own, with NVIDIA's driver in its process (`card`).

#[cfg(feature = "cuda")]
mod card;
mod guesses;
mod link;
mod prefixes;
mod prepare;
mod scheduler;
#[cfg(test)]
mod scheduler_tests;
mod session;
#[cfg(test)]
mod tests;
mod text;
mod tickets;
mod turns;

use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::thread::{self, Scope};
use std::time::Duration;

use kernels::ops::PAGE_LEN;
use kernels::{Isa, Pool, Precision};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use self::link::{Link, Mouth};
use self::scheduler::Scheduler;
use self::text::Text;
use crate::engine::{Engine, Model, Options};
use crate::ipc::message::{ToWorkerControl, WorkerConfig, WorkerReport};
use crate::ipc::{Channel, DataChannel};
use crate::sandbox::{self, Begun, Memory, Role, Sandboxed, Thread};
use crate::sys::memory::SealedMemory;
use crate::sys::process::{exit_now, inherited_descriptor};
use crate::sys::processors::run_on;

/// Where the spawner puts the control channel.
const CONTROL_DESCRIPTOR: i32 = 3;

/// Threads that do not compute.
const OTHER_THREADS_COUNT: usize = 2;
/// How often a request's text is held at once: as it comes, as a frame, as tokens.
const TEXT_COPIES_COUNT: u64 = 4;
/// Memory for what is made of one request at a time (parsed messages, a rendered prompt), and for what
/// waits to be sent, in bytes.
const WORK_LEN_BYTES: u64 = 512 << 20;

/// A step of the start that failed; told by the exit code alone, since there is nobody to read
/// a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Failed {
    /// No control channel.
    Control = 10,
    /// The first half of the sandbox.
    Begin = 11,
    /// The configuration.
    Config = 12,
    /// The image is not sealed, or cannot be mapped.
    Image = 13,
    /// The model in the image.
    Model = 14,
    /// The tokenizer.
    Tokenizer = 15,
    /// The chat template.
    Template = 19,
    /// Memory or threads of the engine.
    Engine = 16,
    /// The second half of the sandbox.
    Seal = 17,
    /// The supervisor is gone.
    Ready = 18,
    /// No card computes what was asked for, or it failed.
    Card = 20,
}

/// Runs the program.
pub fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("loader") => crate::loader::main(),
        Some("worker") => code(serve(Role::Worker)),
        _ => ExitCode::from(2),
    }
}

/// Runs the program of a worker that uses a card. It ends without what the driver's library would do at an end, which
/// no filter knows of; what it took of the card is given back by then.
#[cfg(feature = "cuda")]
pub fn gpu_main() -> ! {
    match std::env::args().nth(1).as_deref() {
        Some("worker-gpu") => match serve(Role::WorkerGpu) {
            Ok(()) => exit_now(0),
            Err(failed) => exit_now(failed as i32),
        },
        _ => exit_now(2),
    }
}

fn code(ended: Result<(), Failed>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => ExitCode::from(failed as u8),
    }
}

/// What a worker serves with, beside its engine.
struct Start<'a> {
    begun: Begun,
    control: &'a Arc<Channel>,
    /// To the gateway.
    data: OwnedFd,
    config: &'a WorkerConfig,
    text: &'a Text,
    image_len: usize,
    processors: Arc<[u16]>,
}

/// Starts in the order of the design; after step 5 the worker can reach its channels, its own memory and
/// the card that it has, if any, and nothing else.
fn serve(role: Role) -> Result<(), Failed> {
    // 1. The control channel; landlock, before there is a second thread.
    let control = inherited_descriptor(CONTROL_DESCRIPTOR).map_err(|_| Failed::Control)?;
    let control = Arc::new(Channel::new(control));
    let begun = sandbox::begin(role, &control).map_err(|_| Failed::Begin)?;
    report_panics_to(&control);
    // 2. Configuration, image and data channel.
    let (message, mut descriptors) = control.recv().map_err(|_| Failed::Config)?;
    let (ToWorkerControl::Config(config), Some(data), Some(memfd)) =
        (message, descriptors.pop(), descriptors.pop())
    else {
        return Err(Failed::Config);
    };
    let image = SealedMemory::open(memfd.as_fd()).map_err(|_| Failed::Image)?;
    // What is mapped needs no descriptor.
    drop(memfd);
    // 3. Everything that takes memory or makes threads.
    let model = Model::from_image(image.as_ref()).map_err(|_| Failed::Model)?;
    let text = Text::from_metadata(&model.header().metadata).map_err(|error| match error {
        text::Error::Tokenizer => Failed::Tokenizer,
        text::Error::Template => Failed::Template,
    })?;
    let options = options(&config, &model);
    let processors: Arc<[u16]> = Arc::from(config.processors.as_slice());
    let (config, text, image_len) = (&config, &text, image.len());
    let control = &control;
    let start = Start { begun, control, data, config, text, image_len, processors };
    match (role, config.gpu_layers) {
        (Role::Worker, None) => {
            let engine = Engine::on(start.pool(options.threads), &model, options);
            serve_with(start, engine.map_err(|_| Failed::Engine)?, "")
        }
        #[cfg(feature = "cuda")]
        (Role::WorkerGpu, Some(asked)) => card::serve(start, &model, options, asked),
        _ => Err(Failed::Config),
    }
}

/// Makes the other threads, gives up every power and serves. `plan` is what the worker says of the card.
fn serve_with(start: Start<'_>, engine: Engine<'_>, plan: &str) -> Result<(), Failed> {
    let Start { begun, control, data, config, text, image_len, processors } = start;
    let options = *engine.options();
    let context_len_tokens = u32::try_from(options.context_len).map_err(|_| Failed::Config)?;
    let ready = WorkerReport::Ready { context_len_tokens, engine: describe(&options, text, plan) };
    // A thread that starts under the filter would die of what the C library does first.
    let running = &Barrier::new(3);
    thread::scope(|scope| {
        let (said, woken, mouth) = mouths().map_err(|_| Failed::Engine)?;
        let (heard_sender, heard) = mpsc::channel();
        let (admitted_sender, admitted) = mpsc::channel();
        let (link_go, link_wait) = mpsc::channel::<Arc<Sandboxed>>();
        let (text_go, text_wait) = mpsc::channel::<Arc<Sandboxed>>();
        let engine_sender = heard_sender.clone();
        let [engine_mouth, text_mouth] = mouth;
        self::start(scope, "text", move || {
            running.wait();
            if let Ok(sandboxed) = text_wait.recv() {
                narrow(&sandboxed, Thread::WorkerText);
                prepare::run(text, context_len_tokens, &admitted, &engine_sender, &text_mouth);
            }
        });
        let link = Link {
            control: Arc::clone(control),
            data: DataChannel::new(data),
            said,
            woken,
            admitted: admitted_sender,
            heard: heard_sender,
            one_request: config.one_request,
        };
        // The link ends the other threads by dropping its ends.
        self::start(scope, "link", move || {
            running.wait();
            if let Ok(sandboxed) = link_wait.recv() {
                narrow(&sandboxed, Thread::WorkerLink);
                link.run();
            }
        });
        running.wait();
        // After the threads that do not compute have started, which may run anywhere.
        keep_to(processors.first());
        // 4. Give up every power, on every thread.
        let memory = memory(config, options.threads, image_len);
        let sandboxed = Arc::new(begun.seal(memory).map_err(|_| Failed::Seal)?);
        engine.on_each_thread(&|| narrow(&sandboxed, Thread::WorkerCompute));
        narrow(&sandboxed, engine_thread(sandboxed.role));
        // 5. Serve.
        control.send(&ready, &[]).map_err(|_| Failed::Ready)?;
        text_go.send(Arc::clone(&sandboxed)).map_err(|_| Failed::Ready)?;
        link_go.send(sandboxed).map_err(|_| Failed::Ready)?;
        let keep = Duration::from_secs(config.prefix_keep_s.into());
        let guess_max = config.guess_tokens.into();
        Scheduler::new(engine, text, engine_mouth, (keep, guess_max)).run(&heard);
        Ok(())
    })
}

/// The kind of this process's first thread.
fn engine_thread(role: Role) -> Thread {
    match role {
        Role::WorkerGpu => Thread::WorkerGpuEngine,
        _ => Thread::WorkerEngine,
    }
}

/// Starts a thread. Where the system gives none, the process ends: others wait for it.
fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    life: impl FnOnce() + Send + 'scope,
) {
    if thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, life).is_err() {
        exit_now(Failed::Engine as i32);
    }
}

/// Puts the filter of its kind on this thread; the process does not go on without.
fn narrow(sandboxed: &Sandboxed, thread: Thread) {
    if sandboxed.narrow(thread).is_err() {
        exit_now(Failed::Seal as i32);
    }
}

impl Start<'_> {
    /// The compute threads, each on a processor of its own if there is one; this thread is the first.
    fn pool(&self, threads: usize) -> Pool {
        let processors = Arc::clone(&self.processors);
        Pool::starting(threads, move |index| keep_to(processors.get(index)))
    }
}

/// Lets this thread run on one processor alone. Where the system refuses, it runs on any.
fn keep_to(processor: Option<&u16>) {
    if let Some(processor) = processor {
        let _ = run_on(&[*processor]);
    }
}

/// Two mouths, what is said into them, and the pipe that wakes the listener.
fn mouths() -> nix::Result<(Arc<link::Sayings>, OwnedFd, [Mouth; 2])> {
    let (woken, wake) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let said = Arc::<link::Sayings>::default();
    let wake = Arc::new(wake);
    let mouth = || Mouth::new(Arc::clone(&said), Arc::clone(&wake));
    let mouths = [mouth(), mouth()];
    Ok((said, woken, mouths))
}

/// What it may hold. The engine's memory is taken by now; texts come, and what is made of one of them.
fn memory(config: &WorkerConfig, threads: usize, image_len: usize) -> Memory {
    let texts = config.texts_len_max_bytes.saturating_mul(TEXT_COPIES_COUNT);
    Memory {
        threads: threads + OTHER_THREADS_COUNT,
        mapped_len_bytes: image_len as u64,
        more_len_bytes: texts.saturating_add(WORK_LEN_BYTES),
        // Only the driver of a card may have written a file, at its start, and no more from here on.
        written_len_bytes: config.gpu_layers.map(|_| 0),
    }
}

/// The cache has room for every sequence at its longest, so an admitted request never waits for
/// another to end, and beside that for every domain's prefixes, so that none gives way.
fn options(config: &WorkerConfig, model: &Model<'_>) -> Options {
    let threads = usize::from(config.threads.max(1));
    let model_len = model.config().context_len;
    let context_len = match config.context_len_tokens as usize {
        0 => model_len,
        asked => asked.min(model_len),
    };
    let sequences_max = usize::from(config.sequences_max.max(1));
    let isa = Isa::detect();
    let one = if config.exact {
        Options::exact(isa, threads, context_len)
    } else {
        let kv = config.kv.into();
        Options { kv, ..Options::fast(isa, threads, context_len) }
    };
    Options {
        cache_len: context_len.saturating_mul(sequences_max),
        sequences_max,
        tokens_max: turns::STEP_TOKENS_MAX,
        prefix_domains: match config.prefix_len_tokens {
            0 => 0,
            _ => config.prefix_domains.into(),
        },
        prefix_pages: config.prefix_len_tokens as usize / PAGE_LEN,
        logits_max: match config.guess_tokens {
            0 => sequences_max.min(turns::STEP_TOKENS_MAX),
            _ => sequences_max.clamp(guesses::GUESSING_STEP_TOKENS_MAX, turns::STEP_TOKENS_MAX),
        },
        ..one
    }
}

/// What the worker says of itself in `status`.
fn describe(options: &Options, text: &Text, plan: &str) -> String {
    let activations = match options.precision {
        Precision::F32 => "f32 activations",
        Precision::Int8 => "int8 activations",
    };
    let template =
        if text.has_no_template() { "; the model has no chat template: plain roles" } else { "" };
    let Options { isa, threads, kv, .. } = options;
    let plan = if plan.is_empty() { String::new() } else { format!("; {plan}") };
    format!("{}, {threads} threads, {activations}, {} cache{plan}{template}", isa.name(), kv.name())
}

/// A panic tells the supervisor where, never what.
fn report_panics_to(control: &Arc<Channel>) {
    let control = Arc::clone(control);
    sandbox::report_panics(move |file, line| {
        // The process ends whether or not the report goes out.
        let _ = control.send(&WorkerReport::Panicked { file: file.to_owned(), line }, &[]);
    });
}
