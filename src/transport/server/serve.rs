//! Serves connections, each on a thread of its own: first the handshake, then, among a limited number, the session.

use super::connection::Connection;
use super::gate::{HANDSHAKE, Handshakes, Origin, Unproven};
use super::session;
use super::shared::{OWN, ServerShared};
use crate::bail;
use crate::error::Result;
use crate::transport::net::{Channel, Stream, accept};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The most connections of peers that have proved themselves, if the process may have twice as many descriptors.
const MOST_CONNECTIONS: usize = 4096;
/// A connection that has been idle for this long makes place for another one if there are too many.
const MAKES_PLACE: Duration = Duration::from_secs(1);

/// Serves one connection on a thread of its own, which counts among `handshakes` until the peer has proved itself.
pub(super) fn serve(shared: &Arc<ServerShared>, unproven: Unproven, handshakes: &Arc<Handshakes>) -> Result<()> {
    let Unproven { stream, origin, must_encrypt, .. } = unproven;
    let stream = Arc::new(stream);
    let handshake = handshakes.begin(origin, &stream);
    {
        let mut connections = shared.connections();
        if shared.closed.load(Relaxed) {
            bail!(Shutdown, "the cache is closed");
        }
        connections.threads += 1;
    }
    let own = shared.clone();
    let body = move || {
        let shared = own;
        OWN.set(Arc::as_ptr(&shared) as usize);
        let served = crate::panics::catch(|| {
            let channel = prove(&shared, &stream, must_encrypt)?;
            drop(handshake);
            admitted(&shared, &stream, origin, |connection| session::run(&shared, channel, connection))
        });
        if let Err(error) = served.and_then(|served| served) {
            crate::log!(Debug, "transport", "a peer's connection ended: {error}");
        }
        stream.shutdown();
        drop(stream);
        thread_ends(&shared);
    };
    crate::sys::spawn("cleave-serve", body).map(|_| ()).inspect_err(|_| thread_ends(shared))
}

fn thread_ends(shared: &ServerShared) {
    shared.connections().threads -= 1;
    shared.none_left.notify_all();
}

/// The handshake: the peer proves that it knows the secret.
fn prove(shared: &ServerShared, stream: &Arc<Stream>, must_encrypt: bool) -> Result<Channel> {
    let soon = |taken: Duration| {
        if shared.closed.load(Relaxed) {
            bail!(Shutdown, "the cache is closed");
        }
        if taken > HANDSHAKE {
            bail!(Timeout, "a peer did not finish its handshake in {} s", HANDSHAKE.as_secs());
        }
        Ok(())
    };
    accept(stream.clone(), &shared.cache.transport_keys(), must_encrypt, &soon)
}

/// Runs `session` with the connection among those that are open. If they are too many, the one that has been idle
/// for longest is closed.
fn admitted(
    shared: &ServerShared,
    stream: &Arc<Stream>,
    origin: Origin,
    session: impl FnOnce(&Connection) -> Result<()>,
) -> Result<()> {
    let id = shared.id();
    let connection = Arc::new(Connection { stream: stream.clone(), origin, idle_since: AtomicU64::new(0) });
    {
        let mut connections = shared.connections();
        if shared.closed.load(Relaxed) {
            bail!(Shutdown, "the cache is closed");
        }
        if connections.open.len() >= MOST_CONNECTIONS.min(shared.files as usize / 2) {
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
    let _open = Open(shared, id);
    session(&connection)
}
