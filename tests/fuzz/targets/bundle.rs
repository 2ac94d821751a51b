//! A signature bundle, and the statement in it.
#![no_main]

use cloister::package::bundle::Bundle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(bundle) = Bundle::parse(bytes) {
        // What was read can be written and read again.
        assert!(Bundle::parse(bundle.to_json().as_bytes()).is_ok());
    }
});
