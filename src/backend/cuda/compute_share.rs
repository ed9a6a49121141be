//! An engine's streams: one for each priority, so that a change of role takes another and makes nothing.

use super::device::Device;
use super::partition::Partition;
use super::stream::{Priority, Stream};
use crate::error::Result;
use std::sync::Arc;

/// The streams of one engine, on all of a device's multiprocessors or on some.
pub struct ComputeShare {
    urgent: Arc<Stream>,
    patient: Arc<Stream>,
    /// Last: it goes after its streams.
    partition: Option<Arc<Partition>>,
}

impl ComputeShare {
    /// `percent` of the multiprocessors, 0 for all; instead of the share `leaving`. UNSUPPORTED where the driver or the
    /// device has no parts.
    pub fn new(device: &Arc<Device>, percent: u32, leaving: u32) -> Result<ComputeShare> {
        let partition = if percent == 0 { None } else { Some(Partition::of(device, percent, leaving)?) };
        let stream = |priority| Stream::within(device, partition.as_deref(), priority).map(Arc::new);
        Ok(ComputeShare { urgent: stream(Priority::High)?, patient: stream(Priority::Low)?, partition })
    }

    pub(super) fn of(&self, urgent: bool) -> &Arc<Stream> {
        if urgent { &self.urgent } else { &self.patient }
    }

    /// Of a part; None if it is all of the device.
    pub(super) fn multiprocessors(&self) -> Option<u32> {
        self.partition.as_ref().map(|partition| partition.multiprocessors)
    }
}
