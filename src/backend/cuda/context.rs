//! The primary context of a device, in which this backend's memory and streams are.

use super::driver::check;
use super::machine;
use crate::error::Result;
use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute as Attribute};
use std::marker::PhantomData;

/// A device and its primary context, which is held until this is dropped.
pub(super) struct Context {
    pub ordinal: i32,
    pub handle: CUdevice,
    pub raw: sys::CUcontext,
}

// SAFETY: the driver takes handles from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// Keeps a device's context current on this thread.
pub(super) struct Current(PhantomData<*const ()>);

impl Drop for Current {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: this thread has pushed it; the handle is of no further use.
        unsafe { sys::cuCtxPopCurrent_v2(&mut context) };
    }
}

impl Context {
    /// Opens a device: its primary context is there as long as somebody of this process holds it.
    pub fn open(ordinal: i32) -> Result<Context> {
        let handle = machine::handle(ordinal)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle; it is released when the context is dropped.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut raw, handle) }, "open a CUDA device")?;
        Ok(Context { ordinal, handle, raw })
    }

    pub fn attribute(&self, which: Attribute) -> Result<i32> {
        machine::attribute(self.handle, which)
    }

    /// Makes the context current on this thread while the result lives, and restores the host's own afterwards.
    pub fn enter(&self) -> Result<Current> {
        // SAFETY: the context is held as long as self lives.
        check(unsafe { sys::cuCtxPushCurrent_v2(self.raw) }, "use a CUDA device")?;
        Ok(Current(PhantomData))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained by `open`, released once.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.handle) };
    }
}
