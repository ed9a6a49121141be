//! Aligned memory whose allocation can fail without aborting: activations, scratch and anonymous mappings.

use crate::error::{Error, Result, Status};
use std::alloc::Layout;
use std::marker::PhantomData;

/// Alignment of every allocation in bytes: one cache line, which is also one row of an AMX tile.
const ALIGN: usize = 64;
/// Size in bytes from which on huge pages are requested.
const HUGE: usize = 2 << 20;

/// Numbers for which every bit pattern, including all zeros, is a valid value.
pub(super) trait Plain: Copy + Send + Sync + 'static {}
impl Plain for f32 {}
impl Plain for u16 {}
impl Plain for u8 {}
impl Plain for u32 {}

/// A zeroed, aligned array that grows without aborting. Contents do not survive growth.
pub(super) struct Aligned<T: Plain> {
    ptr: *mut T,
    len: usize,
    capacity: usize,
    own: PhantomData<T>,
}

// SAFETY: Aligned owns its memory like a Vec does, and T is Send and Sync.
unsafe impl<T: Plain> Send for Aligned<T> {}
// SAFETY: for the same reason as Send; shared access only reads.
unsafe impl<T: Plain> Sync for Aligned<T> {}

impl<T: Plain> Default for Aligned<T> {
    fn default() -> Self {
        Aligned { ptr: ALIGN as *mut T, len: 0, capacity: 0, own: PhantomData }
    }
}

impl<T: Plain> Aligned<T> {
    pub fn new(len: usize) -> Result<Self> {
        let mut array = Self::default();
        array.resize(len)?;
        Ok(array)
    }

    /// Sets the length to `len` elements. Their values are unspecified but initialised.
    pub fn resize(&mut self, len: usize) -> Result<()> {
        if len > self.capacity {
            let layout = Self::layout(len).ok_or_else(|| out_of_memory(len.saturating_mul(size_of::<T>())))?;
            self.release();
            // SAFETY: the layout's size is not zero, since len > capacity >= 0 and T is not zero-sized.
            let ptr = unsafe { std::alloc::alloc(layout) };
            if ptr.is_null() {
                return Err(out_of_memory(layout.size()));
            }
            if layout.align() == HUGE {
                advise_huge(ptr, layout.size());
            }
            // SAFETY: the memory was just allocated with this size, and all zeros is a valid value of every T.
            unsafe { ptr.write_bytes(0, layout.size()) };
            self.ptr = ptr.cast();
            self.capacity = len;
        }
        self.len = len;
        Ok(())
    }

    pub fn as_slice(&self) -> &[T] {
        // SAFETY: ptr is valid for len initialised elements (dangling but aligned when len is 0).
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: ptr is valid for len initialised elements, and &mut self makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }

    pub fn as_ptr(&self) -> *const T {
        self.ptr
    }

    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.ptr
    }

    fn layout(capacity: usize) -> Option<Layout> {
        let bytes = capacity.checked_mul(size_of::<T>())?;
        Layout::from_size_align(bytes, if bytes >= HUGE { HUGE } else { ALIGN }).ok()
    }

    fn release(&mut self) {
        if self.capacity > 0 {
            let layout = Self::layout(self.capacity).expect("it was allocated with this layout");
            // SAFETY: the memory was allocated with this layout, and the pointer is overwritten below.
            unsafe { std::alloc::dealloc(self.ptr.cast(), layout) };
            (self.ptr, self.len, self.capacity) = (ALIGN as *mut T, 0, 0);
        }
    }
}

impl<T: Plain> Drop for Aligned<T> {
    fn drop(&mut self) {
        self.release();
    }
}

/// Requests huge pages for the whole pages of a range. If the kernel refuses, only speed suffers.
fn advise_huge(ptr: *mut u8, len: usize) {
    let start = (ptr as usize).next_multiple_of(4096);
    let end = (ptr as usize + len) & !4095;
    if end > start {
        // SAFETY: the range is page-aligned and inside one of our allocations; the advice keeps the contents.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

pub(super) fn out_of_memory(bytes: usize) -> Error {
    Error::new(Status::OutOfMemory, format!("cannot allocate {bytes} bytes of host memory"))
}

/// An anonymous private mapping: zeroed, allocated as it is touched, and on huge pages where the system has them.
pub(super) struct Mapping {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: plain memory; the mapping's owner decides who may touch which part.
unsafe impl Send for Mapping {}
// SAFETY: for the same reason as Send.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub fn anonymous(len: usize) -> Result<Mapping> {
        let mapped = len.max(1).checked_next_multiple_of(4096).ok_or_else(|| out_of_memory(len))?;
        // Aligned to a huge page, so that the first blocks use one too: map more than needed and cut off both ends.
        let slack = if mapped >= HUGE { HUGE } else { 0 };
        let total = mapped.checked_add(slack).ok_or_else(|| out_of_memory(len))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at an address of the system's choice.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), total, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(out_of_memory(len));
        }
        let address = base as usize;
        let start = if slack > 0 { address.next_multiple_of(HUGE) } else { address };
        let (before, after) = (start - address, address + total - (start + mapped));
        // SAFETY: both ends are whole pages of the mapping just made, and nothing points to them.
        unsafe {
            if before > 0 {
                libc::munmap(base, before);
            }
            if after > 0 {
                libc::munmap((start + mapped) as *mut libc::c_void, after);
            }
        }
        advise_huge(start as *mut u8, mapped);
        Ok(Mapping { ptr: start as *mut u8, len: mapped })
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `anonymous` and is unmapped once.
        unsafe { libc::munmap(self.ptr.cast(), self.len) };
    }
}
