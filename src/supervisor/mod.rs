//! Keys, audit log, tickets, children; no async runtime; never sees content.
//!
//! The start, in this order:
//!
//! 1. Read the configuration, and what the service manager says.
//! 2. Find the drivers of cards, if a model asks for one; fork the spawners, while there is one thread and no key in
//!    memory.
//! 3. Bind the listeners and the control socket; read keys; open models, read their signatures.
//! 4. Give up every power: own user, no capabilities, landlock, seccomp, no dump.
//! 5. Open the audit log; record the start and what the last run left open.
//! 6. Verify each model's signature, open it through opener and loader; record it, or refuse to start.
//! 7. Start workers and gateway, and serve.

mod beginning;
mod build;
mod cache_domains;
mod cards;
mod children;
mod clock;
mod closer;
mod compute;
pub mod config;
pub mod control;
mod deaths;
mod dispatch;
mod erasure;
mod error;
mod intake;
mod ledger;
mod manager;
mod material;
mod nursery;
mod opening;
mod operators;
pub mod readings;
mod records;
mod refusals;
mod reload;
mod retention;
mod rotation;
mod seat;
pub mod secret_file;
mod serve;
mod speed;
mod start;
mod swap;
mod table;
mod tls;
pub mod tokens;
mod workers;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use self::cards::Cards;
use self::config::{Config, Swap};
use self::error::Error;
use self::manager::Manager;
use self::nursery::Nursery;
use crate::sandbox::Thread;
use crate::sys::erasing::erase_stack;

/// Runs the program. Under the name `opener` it is that child: the same file, another role.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|argument| argument == "opener") {
        return start::opener();
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[OsString]) -> Result<(), Error> {
    // 1. Read the configuration.
    let file = config_file(arguments)?;
    let is_root = nix::unistd::geteuid().is_root();
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let config = Config::read(&file, is_root, credentials.as_deref()).map_err(Error::Config)?;
    let manager = Manager::find()?;
    if config.sandbox.swap == Swap::Lock {
        swap::let_all_lock()?;
    }
    // 2. Fork the spawners, while there is one thread and no key in memory.
    let mut cards = Cards::find(&config)?;
    let nursery = Nursery::start(&config, &mut cards)?;
    // 3. Bind, read, open.
    let opened = start::open_all(&config, manager, cards)?;
    // 4. Give up every power.
    let sandboxed = start::give_up_powers(&config)?;
    // 5. to 7. From here on nothing is reached but the own folders and the children.
    let supervisor = start::begin(config, nursery, opened, &sandboxed)?;
    // The models are open: the identity is gone, with what reading and using keys left behind.
    erase_stack();
    // No more threads.
    sandboxed.narrow(Thread::SupervisorServing).map_err(Error::Sandbox)?;
    supervisor.serve()
}

fn config_file(arguments: &[OsString]) -> Result<PathBuf, Error> {
    match arguments {
        [] => Ok(PathBuf::from(config::DEFAULT_FILE)),
        [flag, file] if flag == "--config" => {
            // Children and reloads must not depend on where it was started.
            let file = PathBuf::from(file);
            std::path::absolute(&file).map_err(|source| Error::Folder(file, source))
        }
        _ => Err(Error::Argument("unknown argument".to_owned())),
    }
}

/// Prints a line about the work itself on standard error. A closed stream is no fault.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "cloister: {line}");
}
