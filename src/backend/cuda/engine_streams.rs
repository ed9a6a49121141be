//! An engine's streams: one per priority, so that a change of role only switches between them.

use super::device::Device;
use super::partition::Partition;
use super::stream::{Priority, Stream};
use crate::error::Result;
use std::sync::Arc;

/// The streams of one engine, on all of a device's multiprocessors or on some of them.
pub(super) struct EngineStreams {
    urgent: Arc<Stream>,
    patient: Arc<Stream>,
    /// Declared last: it is dropped after its streams.
    partition: Option<Arc<Partition>>,
}

impl EngineStreams {
    /// Streams on `percent` of the multiprocessors, 0 for all; for an engine that gives up the share `leaving`.
    /// UNSUPPORTED where the driver or the device cannot be partitioned.
    pub fn new(device: &Arc<Device>, percent: u32, leaving: u32) -> Result<EngineStreams> {
        let partition = if percent == 0 { None } else { Some(device.partition(percent, leaving)?) };
        let stream = |priority| Stream::within(device, partition.as_deref(), priority).map(Arc::new);
        Ok(EngineStreams { urgent: stream(Priority::High)?, patient: stream(Priority::Low)?, partition })
    }

    /// The stream of one priority.
    pub fn of(&self, urgent: bool) -> &Arc<Stream> {
        if urgent { &self.urgent } else { &self.patient }
    }

    /// Multiprocessors of the partition; None where the streams use the whole device.
    pub fn multiprocessors(&self) -> Option<u32> {
        self.partition.as_ref().map(|partition| partition.multiprocessors)
    }
}
