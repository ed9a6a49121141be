//! Memory that others may write at any time: KV blocks, and memory mapped from another process. Bounds are checked.
//! Bytes read during a write have unspecified values; the protocols built on this module detect and discard them.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::AtomicU8;

/// Bytes that may be read.
#[derive(Clone, Copy)]
pub struct ByteSource<'a> {
    ptr: *const u8,
    len: usize,
    life: PhantomData<&'a ()>,
}

/// Bytes that the holder may write.
#[derive(Clone, Copy)]
pub struct ByteTarget<'a> {
    ptr: *mut u8,
    len: usize,
    life: PhantomData<&'a ()>,
}

// SAFETY: the type is only a pointer and a length. Its holders agree on who may access the memory when.
unsafe impl Send for ByteSource<'_> {}
// SAFETY: for the same reason as ByteSource.
unsafe impl Send for ByteTarget<'_> {}

/// Largest number of pieces in one vectored send or receive (IOV_MAX is 1024).
const MAX_PIECES: usize = 512;

impl<'a> ByteSource<'a> {
    /// # Safety
    /// `ptr` must be valid for reads of `len` bytes during `'a`.
    pub unsafe fn new(ptr: *const u8, len: usize) -> ByteSource<'a> {
        ByteSource { ptr, len, life: PhantomData }
    }

    /// The bytes of a slice.
    pub fn of(bytes: &'a [u8]) -> ByteSource<'a> {
        ByteSource { ptr: bytes.as_ptr(), len: bytes.len(), life: PhantomData }
    }

    /// Bytes that others may write at the same time.
    pub fn of_atomic(bytes: &'a [AtomicU8]) -> ByteSource<'a> {
        ByteSource { ptr: bytes.as_ptr().cast(), len: bytes.len(), life: PhantomData }
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from `offset`. Panics out of range.
    pub fn slice(&self, offset: usize, len: usize) -> ByteSource<'a> {
        check(self.len, offset, len);
        // SAFETY: the range was checked above.
        ByteSource { ptr: unsafe { self.ptr.add(offset) }, len, life: PhantomData }
    }

    /// Copies all bytes to `out`. Panics if the lengths differ.
    pub fn read(&self, out: &mut [u8]) {
        assert_eq!(self.len, out.len());
        // SAFETY: valid for reads by construction, and `out` does not overlap it.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr, out.as_mut_ptr(), self.len) };
    }

    /// CRC-32 (IEEE) of the bytes, continued from `before`, the CRC-32 of the bytes preceding them.
    pub fn crc32(&self, before: u32) -> u32 {
        // SAFETY: valid for reads by construction. If another process changes the bytes meanwhile, the CRC matches no
        // state they ever had, and the caller's comparison fails.
        let bytes = unsafe { std::slice::from_raw_parts(self.ptr, self.len) };
        crc32(before, bytes)
    }

    /// Address of the first byte.
    pub fn address(&self) -> usize {
        self.ptr as usize
    }
}

impl<'a> ByteTarget<'a> {
    /// # Safety
    /// `ptr` must be valid for reads and writes of `len` bytes during `'a`.
    pub unsafe fn new(ptr: *mut u8, len: usize) -> ByteTarget<'a> {
        ByteTarget { ptr, len, life: PhantomData }
    }

    /// The bytes of a slice.
    pub fn of(bytes: &'a mut [u8]) -> ByteTarget<'a> {
        ByteTarget { ptr: bytes.as_mut_ptr(), len: bytes.len(), life: PhantomData }
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from `offset`. Panics out of range.
    pub fn slice(&self, offset: usize, len: usize) -> ByteTarget<'a> {
        check(self.len, offset, len);
        // SAFETY: the range was checked above.
        ByteTarget { ptr: unsafe { self.ptr.add(offset) }, len, life: PhantomData }
    }

    /// The same bytes, for reading.
    pub fn source(&self) -> ByteSource<'a> {
        ByteSource { ptr: self.ptr, len: self.len, life: PhantomData }
    }

    /// Address of the first byte.
    pub fn address(&self) -> usize {
        self.ptr as usize
    }
}

/// CRC-32 (IEEE) of `bytes`, continued from `before`, the CRC-32 of the bytes preceding them.
pub fn crc32(before: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(before);
    hasher.update(bytes);
    hasher.finalize()
}

fn check(len: usize, offset: usize, n: usize) {
    let fits = offset.checked_add(n).is_some_and(|end| end <= len);
    assert!(fits, "{n} bytes at {offset} of {len}");
}

/// Copies bytes, in large pieces with stores that bypass the caches. The copy is not read again soon, and ordinary
/// stores would first read the lines they overwrite, at a cost of a third of the bandwidth. Panics if the lengths
/// differ. The pieces must not overlap.
pub fn copy(from: ByteSource<'_>, to: ByteTarget<'_>) {
    assert_eq!(from.len, to.len);
    // SAFETY: both are valid for their length by construction, and do not overlap by this function's contract.
    unsafe { stream(from.ptr, to.ptr, from.len) }
}

#[cfg(target_arch = "x86_64")]
unsafe fn stream(mut from: *const u8, mut to: *mut u8, mut len: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const LINE: usize = 64;
    // SAFETY: every access stays within `len` bytes; the targets of streaming stores are aligned to 16.
    unsafe {
        let head = to.align_offset(LINE).min(len);
        std::ptr::copy_nonoverlapping(from, to, head);
        (from, to, len) = (from.add(head), to.add(head), len - head);
        while len >= LINE {
            let (source, target) = (from.cast::<__m128i>(), to.cast::<__m128i>());
            let line = [0, 1, 2, 3].map(|i| _mm_loadu_si128(source.add(i)));
            for (i, word) in line.into_iter().enumerate() {
                _mm_stream_si128(target.add(i), word);
            }
            (from, to, len) = (from.add(LINE), to.add(LINE), len - LINE);
        }
        std::ptr::copy_nonoverlapping(from, to, len);
        _mm_sfence();
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn stream(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller upholds this function's contract.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
}

fn result(n: isize) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Sends as much of `pieces` as the socket takes, in order and without an intermediate copy; returns the number of
/// bytes. Never raises SIGPIPE.
pub fn send(socket: BorrowedFd<'_>, pieces: &[ByteSource<'_>]) -> io::Result<usize> {
    let vectors: Vec<libc::iovec> = pieces
        .iter()
        .take(MAX_PIECES)
        .map(|p| libc::iovec { iov_base: p.ptr as *mut libc::c_void, iov_len: p.len })
        .collect();
    // SAFETY: zero is a valid msghdr; the vectors are valid for reads by construction and live through the call.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = vectors.as_ptr() as *mut libc::iovec;
        message.msg_iovlen = vectors.len() as _;
        result(libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL))
    }
}

/// Receives into `pieces`, in order and without an intermediate copy; returns the number of bytes, 0 at the end of the
/// stream.
pub fn receive(socket: BorrowedFd<'_>, pieces: &[ByteTarget<'_>]) -> io::Result<usize> {
    let vectors: Vec<libc::iovec> =
        pieces.iter().take(MAX_PIECES).map(|p| libc::iovec { iov_base: p.ptr.cast(), iov_len: p.len }).collect();
    // SAFETY: zero is a valid msghdr; the vectors are valid for writes by construction and live through the call.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = vectors.as_ptr() as *mut libc::iovec;
        message.msg_iovlen = vectors.len() as _;
        result(libc::recvmsg(socket.as_raw_fd(), &mut message, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_any_length_and_alignment() {
        let from: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        for (at, len) in [(0, 0), (0, 1), (3, 63), (1, 64), (5, 65), (16, 512), (7, 900)] {
            for shift in [0, 1, 15, 16, 33] {
                let mut to = vec![0u8; 1000];
                copy(ByteSource::of(&from).slice(at, len), ByteTarget::of(&mut to).slice(shift, len));
                assert_eq!(to[shift..shift + len], from[at..at + len]);
                assert!(to[..shift].iter().chain(&to[shift + len..]).all(|&b| b == 0));
            }
        }
    }

    #[test]
    fn a_sum_goes_on() {
        let text = b"123456789";
        assert_eq!(ByteSource::of(text).crc32(0), 0xcbf4_3926);
        assert_eq!(ByteSource::of(text).slice(4, 5).crc32(crc32(0, &text[..4])), 0xcbf4_3926);
    }

    #[test]
    #[should_panic(expected = "3 bytes at 8 of 10")]
    fn out_of_range_is_noticed() {
        ByteSource::of(&[0; 10]).slice(8, 3);
    }
}
