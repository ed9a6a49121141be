//! Connections of peers that have proved themselves.

use super::gate::Origin;
use crate::sys::monotonic_ns;
use crate::transport::net::Stream;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// All connections of a server.
#[derive(Default)]
pub(super) struct Connections {
    /// Those of peers that have proved themselves.
    pub open: HashMap<u64, Arc<Connection>>,
    /// Threads that serve connections, including those that are still in their handshake.
    pub threads: usize,
}

/// A connection of a peer that has proved itself.
pub(super) struct Connection {
    pub stream: Arc<Stream>,
    pub origin: Origin,
    /// Since when nothing has been under way on it; 0 while something is.
    pub idle_since: AtomicU64,
}

impl Connection {
    /// How long nothing has been under way on it.
    pub fn idle(&self) -> Duration {
        match self.idle_since.load(Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_nanos(monotonic_ns().saturating_sub(since)),
        }
    }
}
