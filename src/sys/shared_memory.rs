//! Memory that can be shared with another process: a sealed memfd and its mapping.

use super::bytes::{ByteSource, ByteTarget};
use crate::error::{Error, Result, Status};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicU8;

const HUGE: usize = 2 << 20;

/// A mapping of a memfd: writable if this process made it, read-only if another did.
pub struct SharedMemory {
    fd: OwnedFd,
    ptr: *mut u8,
    len: usize,
    writable: bool,
}

// SAFETY: plain memory; the mapping's owner decides who may touch which part.
unsafe impl Send for SharedMemory {}
// SAFETY: for the same reason as Send.
unsafe impl Sync for SharedMemory {}

fn os(what: &str) -> Error {
    Error::io(what, &io::Error::last_os_error())
}

impl SharedMemory {
    /// Allocates `len` zero bytes, on huge pages if the system has them for shared memory. Each page is allocated when
    /// it is first written. Size and write access are sealed: a process that receives the descriptor can only map it
    /// read-only.
    pub fn create(len: usize) -> Result<SharedMemory> {
        let len = len.max(1).next_multiple_of(4096);
        // SAFETY: the name is NUL-terminated, and the result is checked.
        let fd = unsafe { libc::memfd_create(c"cleave-kv".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(os("memfd_create"));
        }
        // SAFETY: the descriptor was just created, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let size = libc::off_t::try_from(len).map_err(|_| out_of_memory(len))?;
        // SAFETY: the call takes no pointers.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } != 0 {
            return Err(os("memfd: size"));
        }
        let memory = Self::map(fd, len, libc::PROT_READ | libc::PROT_WRITE)?;
        // The seal is added after the mapping, which therefore stays writable.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;
        // SAFETY: the call takes no pointers.
        if unsafe { libc::fcntl(memory.fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(os("memfd: seals"));
        }
        Ok(memory)
    }

    /// Maps another process's memory read-only. Fails unless its size is sealed: if a peer could shrink the memory,
    /// this process would fault.
    pub fn open(fd: OwnedFd, len: usize) -> Result<SharedMemory> {
        // SAFETY: the call takes no pointers.
        let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
            crate::bail!(Peer, "shared memory of the peer: its size is not sealed");
        }
        // SAFETY: zero is a valid stat; the descriptor is open.
        let found = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            if libc::fstat(fd.as_raw_fd(), &mut stat) != 0 {
                return Err(os("shared memory of the peer"));
            }
            stat.st_size as u64
        };
        if len == 0 || (len as u64) > found {
            crate::bail!(Peer, "shared memory of the peer: expected {len} bytes, found {found}");
        }
        Self::map(fd, len, libc::PROT_READ)
    }

    fn map(fd: OwnedFd, len: usize, protection: i32) -> Result<SharedMemory> {
        // Reserve room to align to a huge page, then map the file over the aligned part.
        let total = len.checked_add(HUGE).ok_or_else(|| out_of_memory(len))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the system's choice.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), total, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(out_of_memory(len));
        }
        let start = (base as usize).next_multiple_of(HUGE);
        let mapped = len.next_multiple_of(4096);
        // SAFETY: [start, start + mapped) lies in the reservation just made, and nothing points to it.
        let ptr = unsafe {
            let fixed = libc::MAP_SHARED | libc::MAP_FIXED;
            libc::mmap(start as *mut libc::c_void, mapped, protection, fixed, fd.as_raw_fd(), 0)
        };
        let failed = ptr == libc::MAP_FAILED;
        let error = if failed { Some(os("mapping shared memory")) } else { None };
        let (before, after) = (start - base as usize, base as usize + total - (start + mapped));
        // SAFETY: the parts of the reservation outside the mapping, or all of it, are unmapped once.
        unsafe {
            if failed {
                libc::munmap(base, total);
            } else {
                if before > 0 {
                    libc::munmap(base, before);
                }
                if after > 0 {
                    libc::munmap((start + mapped) as *mut libc::c_void, after);
                }
                // If the kernel refuses, only speed suffers.
                libc::madvise(ptr, mapped, libc::MADV_HUGEPAGE);
            }
        }
        match error {
            Some(error) => Err(error),
            None => Ok(SharedMemory { fd, ptr: ptr.cast(), len: mapped, writable: protection & libc::PROT_WRITE != 0 }),
        }
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A duplicate of the descriptor, for another process.
    pub fn descriptor(&self) -> Result<OwnedFd> {
        self.fd.try_clone().map_err(|error| Error::io("shared memory: a descriptor", &error))
    }

    /// All bytes, for reading.
    pub fn source(&self) -> ByteSource<'_> {
        // SAFETY: mapped readable for this length as long as self lives.
        unsafe { ByteSource::new(self.ptr, self.len) }
    }

    /// A writable view of memory made by [`SharedMemory::create`]. Panics out of range, and on another process's
    /// memory.
    pub fn target(&self, offset: usize, len: usize) -> ByteTarget<'_> {
        assert!(self.writable, "another process's memory is not written");
        // SAFETY: mapped writable for this length as long as self lives.
        unsafe { ByteTarget::new(self.ptr, self.len) }.slice(offset, len)
    }

    /// All bytes of this process's own memory, which other threads may be writing. Panics on another process's memory.
    pub fn atomic(&self) -> &[AtomicU8] {
        assert!(self.writable, "another process's memory is not written");
        // SAFETY: mapped writable for this length as long as self lives.
        unsafe { std::slice::from_raw_parts(self.ptr.cast(), self.len) }
    }

    /// Address of the first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// Allocates every page now and fills the page tables. `write` prepares this process's own memory for writing;
    /// without it, pages are prepared for reading, including those that their owner never touched.
    pub fn populate(&self, write: bool) -> Result<()> {
        const MADV_POPULATE_READ: i32 = 22;
        const MADV_POPULATE_WRITE: i32 = 23;
        let advice = if write { MADV_POPULATE_WRITE } else { MADV_POPULATE_READ };
        // SAFETY: the range is this mapping; contents do not change.
        if unsafe { libc::madvise(self.ptr.cast(), self.len, advice) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Kernels before 5.14 fault pages in as they are used.
            Some(libc::EINVAL) => Ok(()),
            Some(libc::ENOMEM) => Err(out_of_memory(self.len)),
            _ => Err(Error::io("backing shared memory", &error)),
        }
    }
}

fn out_of_memory(len: usize) -> Error {
    Error::new(Status::OutOfMemory, format!("cannot map {len} bytes of shared memory"))
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map` and is unmapped once.
        unsafe { libc::munmap(self.ptr.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_writes_the_other_reads_and_cannot_write() {
        let own = SharedMemory::create(10_000).unwrap();
        super::super::bytes::copy(ByteSource::of(b"abc"), own.target(4096, 3));
        let fd = own.descriptor().unwrap();
        let other = SharedMemory::open(fd, 10_000).unwrap();
        other.populate(false).unwrap();
        let mut seen = [0; 3];
        other.source().slice(4096, 3).read(&mut seen);
        assert_eq!(&seen, b"abc");
        let fd = own.descriptor().unwrap();
        assert!(SharedMemory::map(fd, 4096, libc::PROT_READ | libc::PROT_WRITE).is_err(), "sealed against writing");
        let fd = own.descriptor().unwrap();
        let error = SharedMemory::open(fd, 1 << 30).err().unwrap();
        assert!(error.message.contains("expected 1073741824 bytes, found 12288"), "{error}");
    }
}
