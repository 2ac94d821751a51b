//! The body of a request. The first byte chooses the endpoint.
#![no_main]

use cloister::gateway::api::parse;
use cloister::ipc::message::Endpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let [endpoint, body @ ..] = bytes else { return };
    let endpoint = if endpoint % 2 == 0 { Endpoint::Chat } else { Endpoint::Completion };
    let _ = parse(endpoint, body);
});
