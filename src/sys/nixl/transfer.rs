//! Transfers: reads in progress, as their caller and their agent see them.

use super::live::LiveAgent;
use super::request::Request;
use crate::error::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A read in progress. **The destination must not be used for anything else until `poll` reports the end of the
/// read**, with success or an error. There is no cancel, because UCX may still write after NIXL accepts a cancellation.
/// Dropping a transfer leaves it to its agent, which keeps the memory until the read ends.
///
/// Dropping the agent ends all its reads for certain, even if a peer hangs rather than dies. Use one agent per peer, so
/// that this does not affect other peers.
pub struct Transfer {
    reads: Arc<Reads>,
    request: Arc<Request>,
}

impl Transfer {
    pub(super) fn new(reads: Arc<Reads>, request: Arc<Request>) -> Transfer {
        Transfer { reads, request }
    }

    /// Whether all bytes have arrived. An error means that the read ended without them: PEER if the peer is gone,
    /// SHUTDOWN if the agent is. Later calls return the same result. A call may do work, up to copying everything (see
    /// the module).
    pub fn poll(&self) -> Result<bool> {
        self.reads.poll(&self.request)
    }

    /// Number of bytes to read.
    pub fn bytes(&self) -> usize {
        self.request.bytes
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // If the read has ended, its memory is released now. Otherwise later calls of the agent take care of it.
        let _ = self.poll();
    }
}

/// An agent's reads that may still be in flight, including those whose transfer was dropped.
pub(super) struct Reads {
    agent: Arc<LiveAgent>,
    requests: Mutex<Vec<Arc<Request>>>,
}

impl Reads {
    pub fn new(agent: Arc<LiveAgent>) -> Reads {
        Reads { agent, requests: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Request>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, request: Arc<Request>) {
        self.lock().push(request);
    }

    /// Number of reads that have not ended: those from `peer`, or all.
    pub fn in_flight(&self, peer: Option<&str>) -> usize {
        let of_peer = |request: &&Arc<Request>| peer.is_none_or(|peer| request.peer == peer);
        self.lock().iter().filter(of_peer).filter(|request| request.ended().is_none()).count()
    }

    /// Implements `Transfer::poll`.
    fn poll(&self, request: &Arc<Request>) -> Result<bool> {
        if request.ended().is_none() {
            // If the agent was destroyed meanwhile, that has ended the request.
            let _ = self.agent.with(|functions, agent| {
                request.poll(functions, agent);
                Ok(())
            });
        }
        let Some(result) = request.ended() else { return Ok(false) };
        self.lock().retain(|other| !Arc::ptr_eq(other, request));
        result.map(|()| true)
    }

    /// Polls requests whose transfer was dropped, and removes those that have ended.
    pub fn reap(&self) {
        // Poll outside the lock, because a poll may copy data for a long time.
        let dropped: Vec<_> = self.lock().iter().filter(|r| Arc::strong_count(r) == 1).cloned().collect();
        for request in dropped {
            let _ = self.poll(&request);
        }
    }

    /// Ends all reads with `error`, and destroys the agent.
    pub fn destroy_agent(&self, error: &Error) {
        let mut requests = Vec::new();
        // Requests refer to the agent's backend, so they are released first.
        self.agent.destroy(|functions, agent| {
            requests = std::mem::take(&mut *self.lock());
            requests.iter().for_each(|request| request.abandon(functions, agent, error.clone()));
        });
        // `requests` is dropped here, and with it the memory it kept alive: UCX no longer writes there.
    }
}
