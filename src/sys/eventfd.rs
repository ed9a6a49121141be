use crate::error::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A counter that is readable (for poll, epoll, Go's netpoller) while it is not zero. Non-blocking, close-on-exec.
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Makes one that is clear.
    pub fn new() -> Result<EventFd> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(Error::io("eventfd", &std::io::Error::last_os_error()));
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(EventFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The descriptor, which stays this object's own.
    pub fn raw(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Makes it readable.
    pub fn signal(&self) {
        let one = 1u64;
        // SAFETY: writes the 8 bytes of `one`. A full counter (EAGAIN) is as readable as it can be.
        unsafe { libc::write(self.raw(), (&raw const one).cast(), 8) };
    }

    /// Makes it unreadable until the next signal.
    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: reads 8 bytes into `count`. EAGAIN means that it is clear already.
        unsafe { libc::read(self.raw(), (&raw mut count).cast(), 8) };
    }
}
