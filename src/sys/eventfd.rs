//! Event descriptors, which wake whoever polls them.

use crate::error::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A counter that is readable (for poll, epoll, Go's netpoller) while it is not zero. Non-blocking, close-on-exec.
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Creates a counter that is not readable yet.
    pub fn new() -> Result<EventFd> {
        // SAFETY: the call takes no pointers, and the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(Error::io("eventfd", &std::io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just created, and nothing else owns it.
        Ok(EventFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The file descriptor. It remains owned by this object.
    pub fn raw(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Makes the descriptor readable.
    pub fn signal(&self) {
        let one = 1u64;
        // SAFETY: writes the 8 bytes of `one`. If the counter is full (EAGAIN), it is readable already.
        unsafe { libc::write(self.raw(), (&raw const one).cast(), 8) };
    }

    /// Makes the descriptor unreadable until the next signal.
    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: reads 8 bytes into `count`. EAGAIN means that the counter is already zero.
        unsafe { libc::read(self.raw(), (&raw mut count).cast(), 8) };
    }
}
