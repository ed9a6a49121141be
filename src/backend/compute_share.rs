//! The part of a device that an engine computes on.

use crate::bail;
use crate::error::Result;
use std::any::Any;

/// An engine's share of a device's multiprocessors, with whatever it takes to run there. Made by the device, carried by the
/// engine, and understood only by the backend that it is handed to.
pub struct ComputeShare(Box<dyn Any + Send>);

impl ComputeShare {
    /// Wraps a backend's own description of a share.
    pub(super) fn new(share: impl Any + Send) -> ComputeShare {
        ComputeShare(Box::new(share))
    }

    /// The backend's own description. INTERNAL if another kind of device made it.
    pub(super) fn into_inner<T: Any>(self) -> Result<T> {
        match self.0.downcast() {
            Ok(share) => Ok(*share),
            Err(_) => bail!(Internal, "a compute share of another kind of device"),
        }
    }
}
