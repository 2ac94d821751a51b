//! A gateway, worker, opener or loader that has been taken over: it speaks the protocol as an attacker would.
//!
//! Installed by `tests/it/hostile.rs` in the place of a real program and started by the real spawner. It does
//! not even close its own sandbox: what holds it is what the others check.
//!
//! - The gateway takes orders from whoever connects to its listener: a line of JSON, answered by one.
//! - The worker takes them from the prompts that the real gateway brings, and one from its configuration.
//! - The loader takes them from the model file that it is to load, and is the real one for a real model.
//! - The opener takes them from the model file that it is to open. It is the supervisor's own program in another
//!   role, and so the supervisor is the real one.

#![expect(clippy::unwrap_used, reason = "a test program")]

mod gateway;
mod loader;
mod opener;
mod worker;

use std::io::IoSlice;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::ExitCode;

use cloister::ipc::Channel;
use cloister::sandbox::{self, Memory, Role};
use cloister::sys::process::inherited_descriptor;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Where the spawner puts the control channel.
const CONTROL_DESCRIPTOR: i32 = 3;
/// Longer than any packet on a control channel may be.
const OVERSIZED_LEN_BYTES: usize = 80 << 10;
/// What it may hold once it is sealed: enough to go on.
const MEMORY: Memory =
    Memory { threads: 1, mapped_len_bytes: 0, more_len_bytes: 64 << 20, written_len_bytes: None };

fn main() -> ExitCode {
    let role = std::env::args().nth(1).unwrap();
    if role == "--config" {
        return cloister::supervisor::main();
    }
    if role == "loader" && !loader::is_ordered(CONTROL_DESCRIPTOR) {
        return cloister::loader::main();
    }
    let control = Channel::new(inherited_descriptor(CONTROL_DESCRIPTOR).unwrap());
    match role.as_str() {
        "gateway" => gateway::run(&control),
        "worker" => worker::run(&control),
        "loader" => loader::run(&control),
        "opener" => opener::run(&control),
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

/// Waits until one of two ends can be read; returns which can.
fn either(first: BorrowedFd<'_>, second: BorrowedFd<'_>) -> (bool, bool) {
    let mut ends = [PollFd::new(first, PollFlags::POLLIN), PollFd::new(second, PollFlags::POLLIN)];
    poll(&mut ends, PollTimeout::NONE).unwrap();
    (ends[0].any().unwrap(), ends[1].any().unwrap())
}

/// Sends bytes past the types, with descriptors that nobody asked for.
fn send_raw(channel: &Channel, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(
        channel.as_raw_fd(),
        &[IoSlice::new(bytes)],
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .unwrap();
}

/// Closes its own sandbox, as the real one does, and then listens: what no rule allows.
fn break_filter(control: &Channel, role: Role) {
    let _sealed = sandbox::begin(role, control).unwrap().seal(MEMORY).unwrap();
    let _ = TcpListener::bind("127.0.0.1:0");
}

/// What every part can try on its control channel; whether `attack` names one of these.
fn attack_control(control: &Channel, attack: &str, valid: &[u8]) -> bool {
    match attack {
        "garbage" => send_raw(control, &[0xff; 100], &[]),
        "empty" => send_raw(control, &[], &[]),
        "oversized" => send_raw(control, &[1; OVERSIZED_LEN_BYTES], &[]),
        "longer" => send_raw(control, &[valid, &[0]].concat(), &[]),
        "shorter" => send_raw(control, &valid[..valid.len() - 1], &[]),
        "descriptor" => send_raw(control, valid, &[control.as_fd()]),
        "flood" => (0..100_000).for_each(|_| send_raw(control, valid, &[])),
        _ => return false,
    }
    true
}
