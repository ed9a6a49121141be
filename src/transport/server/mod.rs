//! The exporter: listens, and lends blocks to peers that know the secret.
//!
//! A connection is accepted by `listen`, has to prove that it knows the secret under the limits of `gate`, and is then
//! served by a `session` until it closes, is idle for long, or makes place for another. What self-tests may take of the
//! pool is in `self_tests`. Nothing here knows what engines do with the KV.

mod addresses;
mod gate;
mod listen;
mod self_tests;
mod session;

use super::net::{Channel, Stream, accept};
use super::nixl::OwnAgent;
use crate::bail;
use crate::error::Result;
use crate::kv::Cache;
use crate::kv::hold::TransferHold;
use crate::sys::{max_open_files, monotonic_ns};
use gate::{Handshakes, Origin};
use listen::{Listener, Unproven};
use self_tests::{SelfTestShare, SelfTests};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(super) use addresses::{advertised, parse};
pub use listen::Encryption;
pub(super) use session::pattern;

/// The most connections of peers that have proved themselves, if the process may have twice as many descriptors.
const MOST_CONNECTIONS: usize = 4096;
/// The time that a peer has to prove itself.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A connection on which nothing is under way is closed after this many peer timeouts.
const IDLE_TIMEOUTS: u32 = 30;
/// A connection that has been idle for this long makes place for another one if there are too many.
const MAKES_PLACE: Duration = Duration::from_secs(1);

pub(super) struct Server {
    shared: Arc<ServerShared>,
    listeners: Mutex<Vec<Listener>>,
}

thread_local! {
    /// The server that this thread belongs to, by the address of its `ServerShared`.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

/// State that the threads of a server share.
struct ServerShared {
    cache: Arc<Cache>,
    /// The peer timeout: a peer with an open transfer that is silent for this long is gone.
    timeout: Duration,
    /// Descriptors that this process may have.
    files: u64,
    closed: AtomicBool,
    connections: Mutex<Connections>,
    none_left: Condvar,
    self_tests: Arc<SelfTests>,
    transfers: Mutex<HashMap<u64, Arc<OpenTransfer>>>,
    next: AtomicU64,
    nixl: OwnAgent,
}

#[derive(Default)]
struct Connections {
    /// Those of peers that have proved themselves.
    open: HashMap<u64, Arc<Connection>>,
    /// Threads that serve connections, including those that are still in their handshake.
    threads: usize,
}

/// A connection of a peer that has proved itself.
struct Connection {
    stream: Arc<Stream>,
    origin: Origin,
    /// Since when nothing has been under way on it; 0 while something is.
    idle_since: AtomicU64,
}

impl Connection {
    fn idle(&self) -> Duration {
        match self.idle_since.load(Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_nanos(monotonic_ns().saturating_sub(since)),
        }
    }
}

/// A transfer, held by the connection that began it and read by others of the same peer.
struct OpenTransfer {
    id: u64,
    hold: Mutex<TransferHold>,
    /// The share of a self-test; None for a transfer of a handle.
    self_test: Option<SelfTestShare>,
    /// When its blocks were last asked for or sent, in nanoseconds of the monotonic clock.
    heard: AtomicU64,
}

impl OpenTransfer {
    fn hold(&self) -> MutexGuard<'_, TransferHold> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        self.heard.store(monotonic_ns(), Relaxed);
    }

    fn silent(&self) -> Duration {
        Duration::from_nanos(monotonic_ns().saturating_sub(self.heard.load(Relaxed)))
    }

    /// True for a self-test that has taken longer than any honest one.
    fn is_overdue(&self) -> bool {
        self.self_test.as_ref().is_some_and(SelfTestShare::is_over)
    }
}

impl ServerShared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transfers(&self) -> MutexGuard<'_, HashMap<u64, Arc<OpenTransfer>>> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    fn lend(&self, hold: TransferHold, self_test: Option<SelfTestShare>) -> Arc<OpenTransfer> {
        let (id, heard) = (self.id(), AtomicU64::new(monotonic_ns()));
        let transfer = Arc::new(OpenTransfer { id, hold: Mutex::new(hold), self_test, heard });
        self.transfers().insert(transfer.id, transfer.clone());
        transfer
    }

    fn find(&self, id: u64) -> Result<Arc<OpenTransfer>> {
        match self.transfers().get(&id) {
            Some(transfer) => Ok(transfer.clone()),
            None => bail!(Expired, "transfer {id}: over, or given up because its importer was silent"),
        }
    }

    /// Serves one connection on a thread of its own, which counts among `handshakes` until the peer has proved itself.
    fn serve(self: &Arc<Self>, unproven: Unproven, handshakes: &Arc<Handshakes>) -> Result<()> {
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

impl Server {
    pub fn new(cache: Arc<Cache>, timeout: Duration) -> Result<Server> {
        // Transfer ids begin at a random number, so that one of an earlier process is not taken for one of this process.
        let first = u64::from_le_bytes(crate::sys::random_bytes()?) >> 1;
        let shared = ServerShared {
            cache,
            timeout,
            files: max_open_files(),
            closed: AtomicBool::new(false),
            connections: Mutex::default(),
            none_left: Condvar::new(),
            self_tests: Arc::default(),
            transfers: Mutex::default(),
            next: AtomicU64::new(first),
            nixl: OwnAgent::default(),
        };
        Ok(Server { shared: Arc::new(shared), listeners: Mutex::default() })
    }

    /// Listens on a Unix socket with a random name in the abstract namespace, which leaves no file behind whatever ends
    /// the process. Returns the name.
    pub fn listen_unix(&self) -> Result<Vec<u8>> {
        let (listener, name) = Listener::unix(&self.shared)?;
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
        Ok(name)
    }

    /// Listens for TCP and returns the port. Plain connections that `encryption` does not allow are refused.
    pub fn listen_tcp(&self, address: std::net::SocketAddr, encryption: Encryption) -> Result<u16> {
        let (listener, port) = Listener::tcp(&self.shared, address, encryption)?;
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
        Ok(port)
    }

    /// Ends every connection, and the transfers with them, and waits for their threads. One of these threads may be the
    /// caller, if it drops the last reference to the cache; then it waits for the others.
    pub fn close(&self) {
        let own = usize::from(OWN.get() == Arc::as_ptr(&self.shared) as usize);
        self.shared.closed.store(true, Relaxed);
        let listeners = std::mem::take(&mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner));
        listeners.into_iter().for_each(Listener::close);
        let mut connections = self.shared.connections();
        connections.open.values().for_each(|open| open.stream.shutdown());
        while connections.threads > own {
            connections = self.shared.none_left.wait(connections).unwrap_or_else(PoisonError::into_inner);
        }
        drop(connections);
        self.shared.nixl.end();
    }
}
