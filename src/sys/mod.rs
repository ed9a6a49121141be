//! Thin safe wrappers over the operating system: the only `unsafe` that is neither a kernel nor the C API.

pub mod bytes;
mod eventfd;
pub mod handout;
mod host;
pub mod nixl;
pub mod shared_memory;
pub mod socket;
mod thread;

pub use eventfd::EventFd;
pub use host::{HostInfo, host_info, max_open_files};
pub use thread::{run_with_stack, spawn, spawn_scoped};

/// Nanoseconds of CLOCK_MONOTONIC: the clock of event timestamps.
pub fn monotonic_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid timespec to write to; CLOCK_MONOTONIC always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Raises a signal in this thread, for tests. Returns only after the signal has taken effect; after SIGSTOP, that is
/// when the process continues.
#[cfg(feature = "failpoints")]
pub fn raise(signal: i32) {
    // SAFETY: the call takes no pointers, and the caller wants the signal's effect.
    unsafe { libc::raise(signal) };
}

/// Bytes from the kernel's random generator: secrets, epochs, seeds.
pub fn random_bytes<const N: usize>() -> crate::error::Result<[u8; N]> {
    let mut bytes = [0u8; N];
    // SAFETY: the pointer and length describe `bytes`; requests of up to 256 bytes are never cut short.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    if got != N as isize {
        return Err(crate::error::Error::io("getrandom", &std::io::Error::last_os_error()));
    }
    Ok(bytes)
}
