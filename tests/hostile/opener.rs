//! The opener that was taken over. The model file is its order.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;

use cloister::ipc::message::{FromOpener, ToOpener};
use cloister::ipc::{Channel, Message};
use cloister::sandbox::Role;
use cloister::sys::memory::UnsealedMemory;

use super::{attack_control, break_filter};

pub(super) fn run(control: &Channel) {
    let (ToOpener::OpenPlain, mut fds) = control.recv().unwrap() else { panic!() };
    let mut order = String::new();
    // Taken: a whole file's reader would ask where in it it stands, and die of the spawner's filter.
    File::from(fds.pop().unwrap()).take(1 << 20).read_to_string(&mut order).unwrap();
    let len_bytes = order.len() as u64;
    if order == "more-than-the-file" {
        let mut segment = UnsealedMemory::new("segment", order.len() + 1).unwrap();
        segment.fill(7);
        control.send(&FromOpener::Segment, &[segment.seal().unwrap().as_fd()]).unwrap();
    }
    match order.as_str() {
        "break-filter" => return break_filter(control, Role::Opener),
        "more-than-the-file" | "other-length" => {
            let finished = FromOpener::Finished { len_bytes: len_bytes + 1 };
            control.send(&finished, &[]).unwrap();
        }
        // "unwrap" is one that is well-formed: whoever has no key to ask for asks for one.
        other => {
            let unwrap = FromOpener::Unwrap { ephemeral: [9; 32], body: [0; 32] };
            let valid = unwrap.encode().unwrap();
            match other {
                "unwrap" => control.send(&unwrap, &[]).unwrap(),
                other => assert!(attack_control(control, other, &valid), "{other}"),
            }
        }
    }
    // What comes next is the end.
    let _ = control.recv::<ToOpener>();
}
