//! Messages between the processes: each kind, whole, and in frames that come in pieces. The first byte
//! chooses the kind, the second the length of a piece.
#![no_main]

use cloister::ipc::Message;
use cloister::ipc::frames::FrameDecoder;
use cloister::ipc::message::{
    FromGateway, FromLoader, FromOpener, FromWorker, ToGateway, ToLoader, ToOpener, ToWorker,
    ToWorkerControl, WorkerReport,
};
use cloister::spawner::message::{FromSpawner, ToSpawner};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let [kind, step, rest @ ..] = bytes else { return };
    let step = usize::from(*step).max(1);
    match kind % 12 {
        0 => read::<FromGateway>(rest, step),
        1 => read::<ToGateway>(rest, step),
        2 => read::<ToWorker>(rest, step),
        3 => read::<FromWorker>(rest, step),
        4 => read::<WorkerReport>(rest, step),
        5 => read::<ToWorkerControl>(rest, step),
        6 => read::<FromOpener>(rest, step),
        7 => read::<ToOpener>(rest, step),
        8 => read::<ToLoader>(rest, step),
        9 => read::<FromLoader>(rest, step),
        10 => read::<ToSpawner>(rest, step),
        _ => read::<FromSpawner>(rest, step),
    }
});

fn read<M: Message>(bytes: &[u8], step: usize) {
    if let Ok(message) = M::decode(bytes) {
        // There is one encoding of each message.
        assert_eq!(message.encode().unwrap().as_slice(), bytes, "{}", M::NAME);
    }
    let mut decoder = FrameDecoder::<M>::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = decoder.space();
        let count = space.len().min(step).min(rest.len());
        let (now, later) = rest.split_at(count);
        space[..count].copy_from_slice(now);
        rest = later;
        if decoder.advance(count).is_err() {
            return;
        }
    }
}
