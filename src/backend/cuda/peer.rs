//! Memory of one device that another reads directly, over NVLink or PCIe. CUDA gives that to who asks for it, context by
//! context and mapping by mapping; a copy without it goes through the host, at a small part of the rate.

use super::device::Device;
use super::driver::check;
use super::memory::Allocation;
use crate::error::Result;
use cudarc::driver::sys::{self, CUresult};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The devices that have asked for a piece of memory, and whether they reach it.
#[derive(Default)]
pub(super) struct Readers(Mutex<Vec<(Weak<Device>, bool)>>);

impl Readers {
    /// Whether `reader`, another device, reads `memory` directly: from now on, if it can.
    pub fn reach(&self, memory: &Allocation, reader: &Arc<Device>) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(device, _)| device.strong_count() > 0);
        if let Some((_, reaches)) = known.iter().find(|(device, _)| device.as_ptr() == Arc::as_ptr(reader)) {
            return *reaches;
        }
        let reaches = open(memory, reader).unwrap_or_else(|error| {
            crate::log!(Info, "cuda", "through the host: {error}");
            false
        });
        known.push((Arc::downgrade(reader), reaches));
        reaches
    }
}

/// False if there is no way between the two.
fn open(memory: &Allocation, reader: &Arc<Device>) -> Result<bool> {
    let owner = memory.device();
    let doing = format!("read CUDA device {} from {}", owner.ordinal(), reader.ordinal());
    let mut can = 0;
    // SAFETY: writes one int.
    check(unsafe { sys::cuDeviceCanAccessPeer(&mut can, reader.raw(), owner.raw()) }, &doing)?;
    if can == 0 {
        return Ok(false);
    }
    if let Some(mapped) = memory.mapped() {
        mapped.open_to(reader)?;
        return Ok(true);
    }
    let _current = reader.enter()?;
    // SAFETY: both contexts are retained. It is for all that is allocated there, so somebody may have asked already.
    match unsafe { sys::cuCtxEnablePeerAccess(owner.context(), 0) } {
        CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => {}
        result => check(result, &doing)?,
    }
    Ok(true)
}
