//! Streams of work on a device, and events in them.

use super::device::Device;
use super::driver::check;
use super::partition::Partition;
use crate::error::Result;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::Arc;

/// A queue of work that runs in order. Streams run side by side, and do not synchronise with the null stream.
pub struct Stream {
    device: Arc<Device>,
    raw: sys::CUstream,
}

// SAFETY: a handle of the driver, which may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// Launch shape of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub grid: [u32; 3],
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
}

impl Shape {
    /// Blocks of `threads` threads, one thread per item.
    pub fn over(items: usize, threads: u32) -> Shape {
        Shape { grid: [items.div_ceil(threads as usize) as u32, 1, 1], threads, shared: 0 }
    }
}

/// Types that kernels take as arguments: numbers, device addresses, and the structs of [`super::layout`].
///
/// # Safety
///
/// The type has the size and layout of its C counterpart.
pub(super) unsafe trait Argument {}
// SAFETY: plain data of the size that C gives it.
unsafe impl Argument for u32 {}
// SAFETY: as above.
unsafe impl Argument for u64 {}
// SAFETY: as above.
unsafe impl Argument for f32 {}

/// The address of an argument, for use within the same expression.
pub(super) fn arg<T: Argument>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}

/// Priority of a stream: whose waiting blocks start first. Running blocks are never interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    Low,
    High,
}

impl Stream {
    /// A stream on the whole device.
    pub fn new(device: &Arc<Device>) -> Result<Stream> {
        Stream::within(device, None, Priority::Low)
    }

    /// A stream on a partition, which the caller must keep alive.
    pub fn within(device: &Arc<Device>, partition: Option<&Partition>, priority: Priority) -> Result<Stream> {
        let _current = device.enter()?;
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: writes two ints, of the current device.
        check(unsafe { sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest) }, "ask for priorities")?;
        let priority = if priority == Priority::High { greatest } else { least };
        // SAFETY: write one handle; destroyed when self is dropped.
        let made = unsafe {
            match partition {
                None => sys::cuStreamCreateWithPriority(&mut raw, flags, priority),
                Some(partition) => sys::cuGreenCtxStreamCreate(&mut raw, partition.raw(), flags, priority),
            }
        };
        check(made, "make a CUDA stream")?;
        Ok(Stream { device: device.clone(), raw })
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Waits for all work so far, and reports its errors.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.device.enter()?;
        // SAFETY: a stream that lives.
        let result = unsafe { sys::cuStreamSynchronize(self.raw) };
        check(result, &format!("run work on CUDA device {}", self.device.ordinal()))
    }

    /// Appends a kernel launch. The arguments must match the entry point in kernels/, and memory that they point at must live
    /// until the stream has been waited for.
    pub(super) fn launch(&self, kernel: &str, shape: Shape, arguments: &mut [*mut c_void]) -> Result<()> {
        let [x, y, z] = shape.grid;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let _current = self.device.enter()?;
        let function = self.device.kernel(kernel, shape.shared)?;
        let (threads, shared, arguments) = (shape.threads, shape.shared, arguments.as_mut_ptr());
        // SAFETY: a loaded kernel; its arguments are copied during the call, and are right as the caller has them.
        let result = unsafe {
            sys::cuLaunchKernel(function, x, y, z, threads, 1, 1, shared, self.raw, arguments, std::ptr::null_mut())
        };
        check(result, &format!("launch {kernel}"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: made in `new`, destroyed once; its work is done or goes on without it.
            unsafe {
                sys::cuStreamSynchronize(self.raw);
                sys::cuStreamDestroy_v2(self.raw);
            }
        }
    }
}

/// A marker in a stream's work.
pub(super) struct Event {
    device: Arc<Device>,
    raw: sys::CUevent,
}

// SAFETY: a handle of the driver, which may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    pub fn new(device: &Arc<Device>) -> Result<Event> {
        let _current = device.enter()?;
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes one handle; destroyed when self is dropped.
        check(unsafe { sys::cuEventCreate(&mut raw, flags) }, "make a CUDA event")?;
        Ok(Event { device: device.clone(), raw })
    }

    /// Appends the marker to the stream.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        let _current = self.device.enter()?;
        // SAFETY: both live.
        check(unsafe { sys::cuEventRecord(self.raw, stream.raw) }, "mark a place in a CUDA stream")
    }

    /// Waits for the work before the marker; returns at once if it was never recorded.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.device.enter()?;
        // SAFETY: it lives.
        let result = unsafe { sys::cuEventSynchronize(self.raw) };
        check(result, &format!("run work on CUDA device {}", self.device.ordinal()))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: made in `new`, destroyed once.
            unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}
