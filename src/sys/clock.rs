//! Whether the machine's clock is held to a source.

/// Returns whether the kernel says that something keeps its clock right.
#[must_use]
pub fn is_synchronized() -> bool {
    let mut state = libc::timex { modes: 0, ..zeroed() };
    // SAFETY: with no mode set the call changes nothing and fills the structure that it is given.
    let code = unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &raw mut state) };
    code >= 0 && code != libc::TIME_ERROR
}

fn zeroed() -> libc::timex {
    // SAFETY: the structure has integers alone, for which zero is a value.
    unsafe { std::mem::zeroed() }
}
