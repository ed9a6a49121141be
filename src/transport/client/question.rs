//! Questions to a peer: what they need besides the connection, and how long they wait for the answer.

use crate::backend::BlockStore;
use crate::bail;
use crate::error::Result;
use crate::kv::format::TransportKeys;
use crate::transport::net::Waiter;
use crate::transport::source::Wanted;
use std::sync::Arc;
use std::time::Duration;

/// The keys, the peer timeout and the rest that a question to a peer needs.
#[derive(Clone, Copy)]
pub(in crate::transport) struct Question<'a> {
    pub keys: TransportKeys,
    pub timeout: Duration,
    /// The pool in which reads by NIXL land.
    pub store: &'a Arc<dyn BlockStore>,
    pub wanted: Wanted<'a>,
}

/// Patience that ends when the peer has been silent for `timeout`, or the answer is no longer wanted.
pub(super) fn patience(timeout: Duration, wanted: Wanted<'_>) -> impl Waiter {
    Asker { timeout, wanted }
}

struct Asker<'a> {
    timeout: Duration,
    wanted: Wanted<'a>,
}

impl Waiter for Asker<'_> {
    fn wait(&self, silent: Duration) -> Result<()> {
        self.wanted.check_silence(silent)?;
        if silent >= self.timeout {
            bail!(Peer, "the peer has been silent for {} ms", silent.as_millis());
        }
        Ok(())
    }

    fn heard(&self) {
        self.wanted.heard();
    }
}
