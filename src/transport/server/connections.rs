//! Connections of a server: each is served by a thread of its own, first for the handshake and then, among a limited
//! number, for the session.

use super::gate::{Handshakes, Origin};
use super::listen::Unproven;
use super::{HANDSHAKE, OWN, ServerShared, session};
use crate::bail;
use crate::error::Result;
use crate::sys::monotonic_ns;
use crate::transport::net::{Channel, Stream, accept};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The most connections of peers that have proved themselves, if the process may have twice as many descriptors.
const MOST_CONNECTIONS: usize = 4096;
/// A connection that has been idle for this long makes place for another one if there are too many.
const MAKES_PLACE: Duration = Duration::from_secs(1);

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
    fn idle(&self) -> Duration {
        match self.idle_since.load(Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_nanos(monotonic_ns().saturating_sub(since)),
        }
    }
}

impl ServerShared {
    /// Serves one connection on a thread of its own, which counts among `handshakes` until the peer has proved itself.
    pub fn serve(self: &Arc<Self>, unproven: Unproven, handshakes: &Arc<Handshakes>) -> Result<()> {
        let Unproven { stream, origin, must_encrypt, .. } = unproven;
        let stream = Arc::new(stream);
        let handshake = handshakes.begin(origin, &stream);
        {
            let mut connections = self.connections();
            if self.closed.load(Relaxed) {
                bail!(Shutdown, "the cache is closed");
            }
            connections.threads += 1;
        }
        let shared = self.clone();
        let body = move || {
            OWN.set(Arc::as_ptr(&shared) as usize);
            let served = crate::panics::catch(|| {
                let channel = shared.prove(&stream, must_encrypt)?;
                drop(handshake);
                shared.admitted(&stream, origin, |connection| session::run(&shared, channel, connection))
            });
            if let Err(error) = served.and_then(|served| served) {
                crate::log!(Debug, "transport", "a peer's connection ended: {error}");
            }
            stream.shutdown();
            drop(stream);
            shared.thread_ends();
        };
        crate::sys::spawn("cleave-serve", body).map(|_| ()).inspect_err(|_| self.thread_ends())
    }

    fn thread_ends(&self) {
        self.connections().threads -= 1;
        self.none_left.notify_all();
    }

    /// The handshake: the peer proves that it knows the secret.
    fn prove(&self, stream: &Arc<Stream>, must_encrypt: bool) -> Result<Channel> {
        let soon = |taken: Duration| {
            if self.closed.load(Relaxed) {
                bail!(Shutdown, "the cache is closed");
            }
            if taken > HANDSHAKE {
                bail!(Timeout, "a peer did not finish its handshake in {} s", HANDSHAKE.as_secs());
            }
            Ok(())
        };
        accept(stream.clone(), &self.cache.transport_keys(), must_encrypt, &soon)
    }

    /// Runs `session` with the connection among those that are open. If they are too many, the one that has been idle
    /// for longest is closed.
    fn admitted(
        &self,
        stream: &Arc<Stream>,
        origin: Origin,
        session: impl FnOnce(&Connection) -> Result<()>,
    ) -> Result<()> {
        let id = self.id();
        let connection = Arc::new(Connection { stream: stream.clone(), origin, idle_since: AtomicU64::new(0) });
        {
            let mut connections = self.connections();
            if self.closed.load(Relaxed) {
                bail!(Shutdown, "the cache is closed");
            }
            if connections.open.len() >= MOST_CONNECTIONS.min(self.files as usize / 2) {
                let idlest = connections.open.iter().max_by_key(|(_, open)| open.idle()).map(|(id, _)| *id);
                let idle = idlest.and_then(|id| connections.open.get(&id)).filter(|open| open.idle() >= MAKES_PLACE);
                let Some(idle) = idle else { bail!(WouldBlock, "{} connections are open", connections.open.len()) };
                idle.stream.shutdown();
                if let Some(id) = idlest {
                    connections.open.remove(&id);
                }
            }
            connections.open.insert(id, connection.clone());
        }
        /// Takes the connection out again, after a panic as well.
        struct Open<'a>(&'a ServerShared, u64);
        impl Drop for Open<'_> {
            fn drop(&mut self) {
                self.0.connections().open.remove(&self.1);
            }
        }
        let _open = Open(self, id);
        session(&connection)
    }
}
