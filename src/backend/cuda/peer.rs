//! Direct reads of one device's memory by another, over NVLink or PCIe. CUDA has to be asked for that per context and per
//! mapping; otherwise copies go through the host at a fraction of the rate.

use super::device::Device;
use super::driver::check;
use super::memory::Allocation;
use crate::error::Result;
use cudarc::driver::sys::{self, CUresult};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Devices that have asked to read a piece of memory, and whether they can.
#[derive(Default)]
pub(super) struct Readers(Mutex<Vec<(Weak<Device>, bool)>>);

impl Readers {
    /// Lets another device read `memory` directly. False if it cannot.
    pub fn reach(&self, memory: &Allocation, reader: &Arc<Device>) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(device, _)| device.strong_count() > 0);
        if let Some((_, reaches)) = known.iter().find(|(device, _)| device.as_ptr() == Arc::as_ptr(reader)) {
            return *reaches;
        }
        let reaches = open(memory, reader).unwrap_or_else(|error| {
            crate::log!(Info, "cuda", "copies between devices go through the host: {error}");
            false
        });
        known.push((Arc::downgrade(reader), reaches));
        reaches
    }
}

/// Opens `memory` to `reader`. False if nothing connects the two devices.
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
