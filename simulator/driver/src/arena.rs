//! The memory of one device: a sparse memfd, mapped whole at a fixed address. Allocations can be read and written; the
//! gaps between them cannot. Addresses are never reused, so freed memory stays inaccessible.

use crate::{Error, OPERATING_SYSTEM, OUT_OF_MEMORY, Result};
use std::ffi::CStr;

pub const PAGE: usize = 4096;
const SPAN: usize = 1 << 40;
const RED: u8 = 0xA5;
static RED_BYTES: [u8; 2 * PAGE] = [RED; 2 * PAGE];
/// Larger allocations start as zeros, because filling them takes too long.
const FILL_MAX: usize = 64 << 20;

pub struct Arena {
    pub fd: i32,
    base: usize,
    next: usize,
}

/// Creates a memfd of `size` zero bytes.
pub fn memfd(name: &CStr, size: usize) -> Result<i32> {
    // SAFETY: the name ends with NUL, and the descriptor is new.
    unsafe {
        let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(OPERATING_SYSTEM);
        }
        if libc::ftruncate(fd, size as libc::off_t) != 0 {
            libc::close(fd);
            return Err(OPERATING_SYSTEM);
        }
        Ok(fd)
    }
}

/// Maps `bytes` bytes of `fd`; -1 maps anonymous memory. If `at` is not 0, the mapping replaces whatever is there.
pub fn map(at: usize, bytes: usize, access: i32, fd: i32, offset: usize) -> Result<usize> {
    let private = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
    let flags = private | libc::MAP_NORESERVE | if at != 0 { libc::MAP_FIXED } else { 0 };
    // SAFETY: a fixed address lies in an earlier mapping of this library.
    let found = unsafe { libc::mmap(at as *mut _, bytes, access, flags, fd, offset as libc::off_t) };
    if found == libc::MAP_FAILED { Err(OUT_OF_MEMORY) } else { Ok(found as usize) }
}

pub const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

pub fn protect(at: usize, bytes: usize, access: i32) -> Result<()> {
    // SAFETY: the range lies within a mapping of this library.
    match unsafe { libc::mprotect(at as *mut _, bytes, access) } {
        0 => Ok(()),
        _ => Err(Error(OPERATING_SYSTEM.0)),
    }
}

pub fn unmap(at: usize, bytes: usize) {
    // SAFETY: the range is a mapping of this library, and nobody refers to it any more.
    unsafe { libc::munmap(at as *mut _, bytes) };
}

/// Fills memory with bytes that are NaN in every floating-point type.
pub fn poison(at: usize, bytes: usize) {
    if bytes <= FILL_MAX {
        // SAFETY: the caller has just allocated this memory.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0xFF, bytes) };
    }
}

/// Size of an allocation with the rest of its last page and a red page.
fn whole(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE) + PAGE
}

impl Arena {
    pub fn new() -> Result<Arena> {
        let fd = memfd(c"simulated-cuda", SPAN)?;
        let base = map(0, SPAN, libc::PROT_NONE, fd, 0)?;
        Ok(Arena { fd, base, next: PAGE })
    }

    pub fn allocate(&mut self, bytes: usize) -> Result<usize> {
        let span = whole(bytes);
        if span > SPAN - self.next - PAGE {
            return Err(OUT_OF_MEMORY);
        }
        let at = self.base + self.next;
        protect(at, span, READ_WRITE)?;
        self.next += span + PAGE;
        poison(at, bytes);
        // SAFETY: this is the rest of the range that was just made accessible.
        unsafe { std::ptr::write_bytes((at + bytes) as *mut u8, RED, span - bytes) };
        Ok(at)
    }

    /// Checks that nobody wrote past the end of the allocation.
    pub fn intact(&self, at: usize, bytes: usize) -> bool {
        // SAFETY: the allocation is alive.
        let red = unsafe { std::slice::from_raw_parts((at + bytes) as *const u8, whole(bytes) - bytes) };
        *red == RED_BYTES[..red.len()]
    }

    pub fn free(&mut self, at: usize, bytes: usize) {
        let span = whole(bytes);
        let _ = protect(at, span, libc::PROT_NONE);
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: nobody uses the allocation any more.
        unsafe { libc::fallocate(self.fd, mode, self.offset(at) as libc::off_t, span as libc::off_t) };
    }

    pub fn offset(&self, at: usize) -> usize {
        at - self.base
    }
}
