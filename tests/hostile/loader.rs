//! The loader that was taken over. The model file is its order.

use std::os::fd::{AsFd, OwnedFd};

use cloister::ipc::message::{FromLoader, ToLoader};
use cloister::ipc::{Channel, Message};
use cloister::sandbox::Role;
use cloister::sys::memory::{SealedMemory, UnsealedMemory};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{MsgFlags, recv};

use super::{attack_control, break_filter};

const LEN: usize = 4096;
const LEN_BYTES: u64 = LEN as u64;

/// Longest model that is an order.
const ORDER_LEN_MAX_BYTES: u64 = 64;

/// Whether what is to be loaded is an order; it stays to be received.
pub(super) fn is_ordered(control: i32) -> bool {
    let mut packet = [0; 256];
    let len = recv(control, &mut packet, MsgFlags::MSG_PEEK).unwrap();
    let load = ToLoader::decode(&packet[..len]);
    matches!(load, Ok(ToLoader::Load { len_max_bytes, .. }) if len_max_bytes <= ORDER_LEN_MAX_BYTES)
}

pub(super) fn run(control: &Channel) {
    let (ToLoader::Load { .. }, _) = control.recv().unwrap() else { panic!() };
    let (ToLoader::Segment, segment) = control.recv().unwrap() else { panic!() };
    let segment = SealedMemory::open(segment[0].as_fd()).unwrap();
    let model = std::str::from_utf8(&segment).unwrap();
    let received = FromLoader::Received { len_bytes: model.len() as u64 };
    let attack = model.trim();
    match attack {
        "sealed-too-early" => return seal(control, sealed()),
        "other-length" => {
            let len_bytes = model.len() as u64 + 1;
            control.send(&FromLoader::Received { len_bytes }, &[]).unwrap();
        }
        _ => control.send(&received, &[]).unwrap(),
    }
    let (ToLoader::Verified, _) = control.recv().unwrap() else { panic!() };
    match attack {
        "unsealed" => {
            let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
            seal(control, memfd_create("open", flags).unwrap());
        }
        "no-memfd" => seal(control, std::io::pipe().unwrap().0.into()),
        "wrong-length" => {
            let len_bytes = LEN_BYTES + 1;
            control.send(&FromLoader::Sealed { len_bytes }, &[sealed().as_fd()]).unwrap();
        }
        "received-twice" => control.send(&received, &[]).unwrap(),
        "no-progress" => {
            let progress = FromLoader::Progress { done_bytes: 1, total_bytes: 2 };
            control.send(&progress, &[]).unwrap();
            control.send(&progress, &[]).unwrap();
        }
        "break-filter" => break_filter(control, Role::Loader),
        "words" => {
            let check = "the patient's name\nis in here".to_owned();
            control.send(&FromLoader::Refused { check }, &[]).unwrap();
        }
        other => {
            let valid = FromLoader::Progress { done_bytes: 1, total_bytes: 2 }.encode().unwrap();
            assert!(attack_control(control, other, &valid), "{other}");
        }
    }
    // What comes next is the end.
    let _ = control.recv::<ToLoader>();
}

fn sealed() -> OwnedFd {
    UnsealedMemory::new("cloister-model", LEN).unwrap().seal().unwrap()
}

fn seal(control: &Channel, image: OwnedFd) {
    control.send(&FromLoader::Sealed { len_bytes: LEN_BYTES }, &[image.as_fd()]).unwrap();
}
