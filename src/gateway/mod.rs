//! The network-facing process: TLS, HTTP, limits, streaming; holds no weights and no key.
//!
//! It accepts on inherited listeners, asks the supervisor before any work, and passes text to a
//! worker and back. It never opens a file, binds or connects, and one thread is all it has.

pub mod api;
mod auth;
mod control;
mod error;
mod failures;
mod generation;
mod http;
mod link;
mod listener;
mod param;
mod peers;
mod queue;
mod reply;
mod stream;
mod tls;

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

pub use self::error::{ApiError, Error, JsonFault, Rule};
pub use self::param::Param;

use self::control::{Control, Notice};
use self::http::{ANSWER_LEN_MAX_BYTES, Shared};
use self::listener::{Connections, Listener};
use self::peers::Peers;
use crate::ipc::Channel;
use crate::ipc::message::{FromGateway, GatewayConfig, ListenerKind, ToGateway};
use crate::sandbox::{self, Memory, Role};
use crate::sys::process::inherited_descriptor;

/// The control channel's descriptor, as the spawner places it.
const CONTROL_DESCRIPTOR: i32 = 3;

/// Memory of a connection, in bytes: buffers of TLS and HTTP, its task.
const CONNECTION_LEN_BYTES: u64 = 512 << 10;
/// How often a body is held at once: as it grows, as texts, as a frame.
const BODY_COPIES_COUNT: u64 = 5;
/// Memory for the parsed values of one body, and for frames of the workers, in bytes.
const WORK_LEN_BYTES: u64 = 1 << 30;

/// Runs the program. Its exit code names what failed; see [`Error::exit_code`].
pub fn main() -> ExitCode {
    // A panic ends it without a word: there is nobody to tell that may see a panic's text.
    sandbox::report_panics(|_, _| {});
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(error.exit_code()),
    }
}

fn start() -> Result<(), Error> {
    let control = inherited_descriptor(CONTROL_DESCRIPTOR)
        .map_err(|errno| Error::Io { action: "take the control channel", source: errno.into() })?;
    let channel = Channel::new(control);
    let begun = sandbox::begin(Role::Gateway, &channel).map_err(Error::Sandbox)?;
    run(channel, |memory| begun.seal(memory).map_err(Error::Sandbox))
}

/// Serves until the supervisor says to stop. `seal` gives up every power but those of serving within
/// some memory; what it returns is the proof.
///
/// # Errors
///
/// The step that failed, or that the supervisor is gone.
pub fn run<Proof>(
    channel: Channel,
    seal: impl FnOnce(Memory) -> Result<Proof, Error>,
) -> Result<(), Error> {
    // 1. What will be served, and how.
    let (config, descriptors) = receive_config(&channel)?;
    // 2. The runtime of one thread, the listeners, TLS: all that needs the system.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Io { action: "start the runtime", source })?;
    let entered = runtime.enter();
    let control = Arc::new(Control::new(channel)?);
    let (stop, draining) = watch::channel(false);
    let mut listeners = Vec::with_capacity(descriptors.len());
    for (kind, fd) in config.listeners.iter().zip(descriptors) {
        listeners.push(Listener::new(*kind, fd)?);
    }
    let connections = Arc::new(prepare(&config, &control, draining)?);
    drop(entered);
    // 3. Give up every power.
    let proof = seal(memory(&config))?;
    // 4. Serve.
    runtime.block_on(serve(&proof, &control, listeners, &connections, &stop))
}

fn receive_config(channel: &Channel) -> Result<(GatewayConfig, Vec<OwnedFd>), Error> {
    let (message, descriptors) = channel.recv::<ToGateway>().map_err(Error::Control)?;
    let ToGateway::Config(config) = message else {
        return Err(Error::Protocol("the first message is not the configuration"));
    };
    let (named, received) = (config.listeners.len(), descriptors.len());
    if named != received {
        return Err(Error::ListenersMismatch { named, received });
    }
    Ok((config, descriptors))
}

fn prepare(
    config: &GatewayConfig,
    control: &Arc<Control>,
    draining: watch::Receiver<bool>,
) -> Result<Connections, Error> {
    let tls = if config.listeners.contains(&ListenerKind::Tls) {
        Some(tls::acceptor(&config.certificates, config.tls_scheme, control)?)
    } else {
        None
    };
    let shared = Shared {
        control: Arc::clone(control),
        workers: Arc::default(),
        failures: Arc::default(),
        requests: Arc::new(Semaphore::new(usize::from(config.requests_max))),
        body_len_max_bytes: config.body_len_max_bytes as usize,
        read_deadline: Duration::from_millis(u64::from(config.read_deadline_ms)),
    };
    Ok(Connections {
        shared: Arc::new(shared),
        tls: Mutex::new(tls),
        room: Arc::new(Semaphore::new(usize::from(config.connections_max))),
        connections_max: u32::from(config.connections_max),
        peers: Arc::new(Peers::new(config.connections_per_peer_max)),
        write_deadline: Duration::from_millis(u64::from(config.write_deadline_ms)),
        draining,
    })
}

/// What it may hold: connections, requests with their bodies and answers, what waits for workers, and what is
/// parsed of one body at a time.
fn memory(config: &GatewayConfig) -> Memory {
    let body = u64::from(config.body_len_max_bytes);
    let request =
        body.saturating_mul(BODY_COPIES_COUNT).saturating_add(ANSWER_LEN_MAX_BYTES as u64);
    let connections = u64::from(config.connections_max) * CONNECTION_LEN_BYTES;
    let requests = u64::from(config.requests_max).saturating_mul(request);
    Memory {
        threads: 1,
        mapped_len_bytes: 0,
        more_len_bytes: connections.saturating_add(requests).saturating_add(WORK_LEN_BYTES),
        written_len_bytes: None,
    }
}

async fn serve<Proof>(
    _sealed: &Proof,
    control: &Arc<Control>,
    listeners: Vec<Listener>,
    connections: &Arc<Connections>,
    stop: &watch::Sender<bool>,
) -> Result<(), Error> {
    control.send(&FromGateway::Ready).await?;
    tokio::spawn(listener::accept(listeners, Arc::clone(connections)));
    let heed = heed_supervisor(control, connections, stop);
    tokio::select! {
        result = heed => result,
        () = connections.drained() => {
            connections.shared.failures.tell(control);
            Ok(())
        }
    }
}

/// Does what the supervisor says, until it is gone.
async fn heed_supervisor(
    control: &Arc<Control>,
    connections: &Arc<Connections>,
    stop: &watch::Sender<bool>,
) -> Result<(), Error> {
    let workers = &connections.shared.workers;
    loop {
        match control.next_notice().await? {
            Notice::ModelUp { model, info } => workers.model_up(model, info),
            Notice::ModelDown { model } => workers.model_down(model),
            Notice::WorkerUp { worker, data } => workers.up(worker, data, control)?,
            Notice::Certificates { certificates, tls_scheme } => {
                let tls = tls::acceptor(&certificates, tls_scheme, control)?;
                *locked(&connections.tls) = Some(tls);
            }
            // Sending fails only without connections, which hold a receiver.
            Notice::Drain => stop.send(true).unwrap_or_default(),
        }
    }
}

/// Locks what one thread alone ever locks: it never waits, and no panic leaves it half changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
