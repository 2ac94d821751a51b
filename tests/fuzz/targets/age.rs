//! The header of an age file, as the opener reads it, and an identity file.
#![no_main]

use cloister::package::age_header::Header;
use cloister::package::keys::Identity;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut source = bytes;
    if let Ok(header) = Header::read(&mut source) {
        assert_eq!(header.len_bytes() as usize + source.len(), bytes.len());
    }
    let _ = Identity::parse(bytes);
});
