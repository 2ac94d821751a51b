//! The configuration file. Its owner is trusted; a mistake in it must still be a named error.
#![no_main]

use std::path::Path;

use cloister::supervisor::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for is_root in [false, true] {
        if let Err(error) = Config::parse(Path::new("/c/cloister.toml"), text, is_root, None) {
            assert!(error.to_string().starts_with("/c/cloister.toml"));
        }
    }
});
