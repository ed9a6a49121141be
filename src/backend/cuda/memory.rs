//! Memory on a device, and pinned host memory that it copies from and to.

use super::device::Device;
use super::driver::check;
use super::shareable::Shareable;
use super::stream::Stream;
use crate::bail;
use crate::error::{Result, Status};
use cudarc::driver::sys;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Bytes on a device, with unspecified initial contents.
pub struct Allocation {
    device: Arc<Device>,
    at: sys::CUdeviceptr,
    bytes: usize,
    /// None for memory of this process alone.
    shareable: Option<Shareable>,
}

impl Allocation {
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Allocation> {
        let _current = device.enter()?;
        let mut at = 0;
        // SAFETY: writes one address; freed when self is dropped.
        let result = unsafe { sys::cuMemAlloc_v2(&mut at, bytes.max(1)) };
        check(result, &format!("allocate {bytes} bytes on CUDA device {}", device.ordinal()))?;
        Ok(Allocation { device: device.clone(), at, bytes, shareable: None })
    }

    /// Allocates memory that other processes can map, or ordinary memory where the device does not support that.
    pub fn shareable(device: &Arc<Device>, bytes: usize) -> Result<Allocation> {
        match Shareable::new(device, bytes) {
            Ok(memory) => Ok(Self::of(device, memory, bytes)),
            // Also where it says that it can, but a sandbox does not let it.
            Err(error) if error.status != Status::OutOfMemory => {
                crate::log!(Info, "cuda", "memory for this process alone: {error}");
                Self::new(device, bytes)
            }
            Err(error) => Err(error),
        }
    }

    /// Allocates memory that other processes can map, or fails.
    pub fn only_shareable(device: &Arc<Device>, bytes: usize) -> Result<Allocation> {
        Ok(Self::of(device, Shareable::new(device, bytes)?, bytes))
    }

    /// Maps another process's memory read-only, from what [`Allocation::descriptor`] returned there.
    pub fn open(device: &Arc<Device>, fd: OwnedFd, bytes: usize) -> Result<Allocation> {
        Ok(Self::of(device, Shareable::open(device, fd, bytes)?, bytes))
    }

    fn of(device: &Arc<Device>, memory: Shareable, bytes: usize) -> Allocation {
        Allocation { device: device.clone(), at: memory.address(), bytes, shareable: Some(memory) }
    }

    /// A descriptor of the memory, and the size to map. UNSUPPORTED for memory of this process alone.
    pub fn descriptor(&self) -> Result<(OwnedFd, usize)> {
        match &self.shareable {
            Some(memory) => Ok((memory.descriptor()?, memory.bytes())),
            None => bail!(Unsupported, "CUDA device {}: this memory cannot be shared", self.device.ordinal()),
        }
    }

    /// The mapping of shareable memory; None for memory of this process alone.
    pub(super) fn mapped(&self) -> Option<&Shareable> {
        self.shareable.as_ref()
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of `len` bytes at `offset`. Panics out of range.
    pub fn at(&self, offset: usize, len: usize) -> sys::CUdeviceptr {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.bytes), "{len} bytes at {offset} of {} on the device", self.bytes);
        self.at + offset as u64
    }

    /// The address of the first byte.
    pub fn address(&self) -> sys::CUdeviceptr {
        self.at
    }

    /// Copies `data` to `offset` in stream order, and waits.
    pub fn write(&self, offset: usize, data: &[u8], stream: &Stream) -> Result<()> {
        let to = self.at(offset, data.len());
        let _current = self.device.enter()?;
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: in range on both sides; `data` lives until the stream was waited for.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to, data.as_ptr().cast(), data.len(), stream.raw()) };
        check(result, &format!("copy {} bytes to CUDA device {}", data.len(), self.device.ordinal()))?;
        stream.synchronize()
    }

    /// Copies `out.len()` bytes from `offset` to the host in stream order, and waits.
    pub fn read(&self, offset: usize, out: &mut [u8], stream: &Stream) -> Result<()> {
        let from = self.at(offset, out.len());
        let _current = self.device.enter()?;
        if out.is_empty() {
            return Ok(());
        }
        // SAFETY: in range on both sides; `out` is borrowed until the stream was waited for.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(out.as_mut_ptr().cast(), from, out.len(), stream.raw()) };
        check(result, &format!("copy {} bytes from CUDA device {}", out.len(), self.device.ordinal()))?;
        stream.synchronize()
    }

    /// Copies bytes within the allocation in stream order, and waits. The two ranges must not overlap.
    pub fn copy(&self, from: usize, to: usize, bytes: usize, stream: &Stream) -> Result<()> {
        let (source, target) = (self.at(from, bytes), self.at(to, bytes));
        let _current = self.device.enter()?;
        // SAFETY: both in range.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(target, source, bytes, stream.raw()) };
        check(result, &format!("copy {bytes} bytes on CUDA device {}", self.device.ordinal()))?;
        stream.synchronize()
    }

    /// Zeroes the allocation, and waits.
    pub fn clear(&self, stream: &Stream) -> Result<()> {
        let _current = self.device.enter()?;
        // SAFETY: all of it, and nothing else.
        let result = unsafe { sys::cuMemsetD8Async(self.at, 0, self.bytes, stream.raw()) };
        check(result, &format!("clear {} bytes on CUDA device {}", self.bytes, self.device.ordinal()))?;
        stream.synchronize()
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.shareable.is_none()
            && let Ok(_current) = self.device.enter()
        {
            // SAFETY: allocated in `new`, freed once. Work that still uses it is waited for by the driver.
            unsafe { sys::cuMemFree_v2(self.at) };
        }
    }
}

/// Pinned host memory, in words of four bytes, which the device copies from and to in the background.
pub struct PinnedMemory {
    device: Arc<Device>,
    at: *mut u32,
    words: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    pub fn new(device: &Arc<Device>, words: usize) -> Result<PinnedMemory> {
        let _current = device.enter()?;
        let Some(bytes) = words.max(1).checked_mul(4) else { bail!(OutOfMemory, "{words} words of pinned memory") };
        let mut at = std::ptr::null_mut();
        // SAFETY: writes one address; freed when self is dropped.
        check(unsafe { sys::cuMemHostAlloc(&mut at, bytes, 0) }, &format!("allocate {bytes} bytes of pinned memory"))?;
        // SAFETY: just allocated with this size.
        unsafe { at.cast::<u8>().write_bytes(0, bytes) };
        Ok(PinnedMemory { device: device.clone(), at: at.cast(), words })
    }

    pub fn words(&self) -> usize {
        self.words
    }

    /// The words. The device must not be using them.
    pub fn as_mut_slice(&mut self) -> &mut [u32] {
        // SAFETY: allocated with this length, initialised, and ours alone.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.words) }
    }

    /// The words. The device must not be using them.
    pub fn as_slice(&self) -> &[u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.at, self.words) }
    }

    /// The bytes. The device must not be using them.
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast(), self.words * 4) }
    }

    /// Copies the first `bytes` to `offset` of `to` in stream order, without waiting. The contents must stay unchanged until
    /// the stream has been waited for.
    pub fn send(&self, bytes: usize, to: &Allocation, offset: usize, stream: &Stream) -> Result<()> {
        assert!(bytes <= self.words * 4);
        let at = to.at(offset, bytes);
        let _current = self.device.enter()?;
        // SAFETY: in range on both sides. Freeing either waits for the copy.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(at, self.at.cast(), bytes, stream.raw()) };
        check(result, &format!("copy {bytes} bytes to CUDA device {}", self.device.ordinal()))
    }

    /// Copies the first `words` of `from` to this memory in stream order, without waiting.
    pub fn fetch(&mut self, words: usize, from: &Allocation, stream: &Stream) -> Result<()> {
        self.receive(0, words * 4, from, 0, stream)
    }

    /// Copies `bytes` from `offset` of `from` to byte `to` of this memory, in stream order, without waiting.
    pub fn receive(
        &mut self,
        to: usize,
        bytes: usize,
        from: &Allocation,
        offset: usize,
        stream: &Stream,
    ) -> Result<()> {
        assert!(to.checked_add(bytes).is_some_and(|end| end <= self.words * 4));
        let at = from.at(offset, bytes);
        let _current = self.device.enter()?;
        // SAFETY: in range on both sides. Freeing either waits for the copy.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(self.at.cast::<u8>().add(to).cast(), at, bytes, stream.raw()) };
        check(result, &format!("copy {bytes} bytes from CUDA device {}", self.device.ordinal()))
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: allocated in `new`, freed once; the driver waits for copies that use it.
            unsafe { sys::cuMemFreeHost(self.at.cast()) };
        }
    }
}
