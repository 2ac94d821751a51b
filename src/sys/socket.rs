//! Receiving descriptors without leaking one; nix forgets those of a packet that was cut.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;

/// Most descriptors that the kernel lets one packet carry (`SCM_MAX_FD`), so that none is cut.
const SCM_MAX_FD: usize = 253;
/// Room for one control message of that many descriptors, in `u64` words for its alignment.
const CONTROL_LEN_WORDS: usize = (size_of::<libc::cmsghdr>() + SCM_MAX_FD * 4).div_ceil(8) + 1;

/// What one packet brought.
#[derive(Debug)]
pub struct Packet {
    /// Bytes of the packet that were stored.
    pub len: usize,
    /// Its descriptors, all close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// Whether bytes or control data did not fit.
    pub cut: bool,
}

/// Receives one packet into `bytes`; waits for it when `wait`.
///
/// # Errors
///
/// What `recvmsg` says.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8], wait: bool) -> Result<Packet, Errno> {
    let mut control = [0_u64; CONTROL_LEN_WORDS];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: `msghdr` is integers and pointers, for which all zeros is a value.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_CMSG_CLOEXEC | if wait { 0 } else { libc::MSG_DONTWAIT };
    // SAFETY: `header` points to `part` and `control`, which live to the end of this function and
    // whose lengths it states.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let len = usize::try_from(count).map_err(|_| Errno::last())?;
    let descriptors = descriptors(&header);
    let cut = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    Ok(Packet { len, descriptors, cut })
}

/// Takes every descriptor that `recvmsg` stored behind `header`.
fn descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: `recvmsg` filled `header`, and its control buffer is alive in `receive`.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while let Some(message) = {
        // SAFETY: the `CMSG_` functions return null or a header inside the control buffer, which
        // is aligned for one.
        unsafe { next.as_ref() }
    } {
        if message.cmsg_level == libc::SOL_SOCKET && message.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: `message` is a control header of the buffer.
            let data = unsafe { libc::CMSG_DATA(message) };
            let size = message.cmsg_len.saturating_sub(data.addr() - next.addr());
            for index in 0..size / size_of::<RawFd>() {
                // SAFETY: `index` is below the descriptors that `cmsg_len` says are there.
                let at = unsafe { data.cast::<RawFd>().add(index) };
                // SAFETY: `at` is inside the data; its alignment is not relied on.
                let raw = unsafe { ptr::read_unaligned(at) };
                // SAFETY: the kernel just made this descriptor for us, and nobody else has it.
                found.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
        // SAFETY: as for the first header.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    found
}

/// Returns the process, user and group that connected or made the pair.
///
/// # Errors
///
/// What `getsockopt` says.
pub fn peer(socket: BorrowedFd<'_>) -> io::Result<(i32, u32, u32)> {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    let peer = getsockopt(&socket, PeerCredentials)?;
    Ok((peer.pid(), peer.uid(), peer.gid()))
}
