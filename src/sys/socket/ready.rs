//! Waits for sockets to become readable, checks whether they are closed, and shuts them down.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Waits for at most `timeout` until one of the sockets is readable or closed. Returns which ones are.
pub fn wait_readable<'a>(
    sockets: impl Iterator<Item = BorrowedFd<'a>>,
    timeout: std::time::Duration,
) -> io::Result<Vec<bool>> {
    poll(sockets, libc::POLLIN, timeout)
}

pub(super) fn poll<'a>(
    sockets: impl Iterator<Item = BorrowedFd<'a>>,
    events: libc::c_short,
    timeout: std::time::Duration,
) -> io::Result<Vec<bool>> {
    let polled = |socket: BorrowedFd<'_>| libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    let mut polled: Vec<libc::pollfd> = sockets.map(polled).collect();
    let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the pointer and the length are those of `polled`, whose descriptors are borrowed for the call.
    if unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, ms) } < 0 {
        let error = io::Error::last_os_error();
        // A signal handler of the host interrupted the wait. That counts as no event.
        return if error.kind() == io::ErrorKind::Interrupted { Ok(vec![false; polled.len()]) } else { Err(error) };
    }
    Ok(polled.iter().map(|polled| polled.revents != 0).collect())
}

/// Result of [`peek`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeekedBytes {
    /// At least one byte can be read.
    Some,
    /// Nothing has arrived yet.
    NotYet,
    /// The peer closed the connection, or it broke.
    Closed,
}

/// Checks whether bytes have arrived, without consuming them and without waiting.
pub fn peek(socket: BorrowedFd<'_>) -> PeekedBytes {
    let mut byte = 0u8;
    // SAFETY: at most one byte is written, to a local.
    let got = unsafe { libc::recv(socket.as_raw_fd(), (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    match got {
        0 => PeekedBytes::Closed,
        n if n > 0 => PeekedBytes::Some,
        _ if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => PeekedBytes::NotYet,
        _ => PeekedBytes::Closed,
    }
}

/// True if the peer has closed the connection, the socket has failed, or unexpected bytes have arrived. Reads nothing
/// and does not wait.
pub fn is_closed(socket: BorrowedFd<'_>) -> bool {
    // Bytes that were not requested mean that the two sides are out of step, so the connection counts as closed.
    peek(socket) != PeekedBytes::NotYet
}

/// Shuts a socket down in both directions and wakes every thread that waits on it, also in `accept`.
pub fn shutdown(socket: BorrowedFd<'_>) {
    // SAFETY: the call takes no pointers; an error on a socket that is already closed can be ignored.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}
