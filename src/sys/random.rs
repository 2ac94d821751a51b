//! Random bytes from the kernel, for a process that links no cryptography.

use nix::errno::Errno;

/// Returns a random number.
///
/// # Errors
///
/// What `getrandom` says; it does not fail for so few bytes once the system is up.
pub fn random_u64() -> Result<u64, Errno> {
    let mut bytes = [0_u8; 8];
    // SAFETY: `bytes` is eight writable bytes, and the length is theirs.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match Errno::result(count)? {
        8 => Ok(u64::from_ne_bytes(bytes)),
        _ => Err(Errno::EIO),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_numbers_differ() {
        assert_ne!(super::random_u64().unwrap(), super::random_u64().unwrap());
    }
}
