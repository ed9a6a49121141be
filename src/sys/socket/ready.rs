//! Whether sockets have something to read, and their end.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Waits until one of the sockets has something to read or is closed, for at most `timeout`; says which.
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
        // A handler of the host's that ran on this thread is no event.
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

/// Looks whether bytes have come, and leaves them there; waits for nothing.
pub fn peek(socket: BorrowedFd<'_>) -> PeekedBytes {
    let mut byte = 0u8;
    // SAFETY: one byte to look at, in a local.
    let got = unsafe { libc::recv(socket.as_raw_fd(), (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    match got {
        0 => PeekedBytes::Closed,
        n if n > 0 => PeekedBytes::Some,
        _ if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => PeekedBytes::NotYet,
        _ => PeekedBytes::Closed,
    }
}

/// True if the peer has closed the connection, the socket has failed, or unexpected bytes have arrived. Reads nothing and
/// does not wait.
pub fn is_closed(socket: BorrowedFd<'_>) -> bool {
    // Bytes that nobody asked for mean that the two sides are out of step: this is as good as closed.
    peek(socket) != PeekedBytes::NotYet
}

/// Ends a socket for both sides and wakes whoever waits on it, also in `accept`.
pub fn shutdown(socket: BorrowedFd<'_>) {
    // SAFETY: no pointers; one that is closed already is an error of no consequence.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}
