//! The exporter: listens, and lends blocks to peers that know the secret.

mod listen;
mod session;

use super::net::Stream;
use super::nixl::OwnAgent;
use crate::bail;
use crate::error::Result;
use crate::kv::Cache;
use crate::kv::hold::TransferHold;
use crate::sys::monotonic_ns;
use listen::Listener;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use listen::Encryption;
pub(super) use listen::{advertised, parse};
pub(super) use session::pattern;

/// Connections at once: five for each transfer of a peer over TCP.
const MOST_CONNECTIONS: usize = 4096;

pub(super) struct Server {
    shared: Arc<ServerShared>,
    listeners: Mutex<Vec<Listener>>,
}

thread_local! {
    /// Whose thread this is: the address of its `ServerShared`.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

/// What the threads of a server share.
struct ServerShared {
    cache: Arc<Cache>,
    /// A peer with an open transfer that is silent for so long is gone.
    timeout: Duration,
    closed: AtomicBool,
    connections: Mutex<HashMap<u64, Arc<Stream>>>,
    none_left: Condvar,
    holds: Mutex<HashMap<u64, Arc<Lent>>>,
    next: AtomicU64,
    nixl: OwnAgent,
}

/// A transfer, held by the connection that began it and read by others of the same peer.
struct Lent {
    id: u64,
    hold: Mutex<TransferHold>,
    scratch: bool,
    /// When something of it went out or was asked for last.
    heard: AtomicU64,
}

impl Lent {
    fn hold(&self) -> MutexGuard<'_, TransferHold> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        self.heard.store(monotonic_ns(), Relaxed);
    }

    fn silent(&self) -> Duration {
        Duration::from_nanos(monotonic_ns().saturating_sub(self.heard.load(Relaxed)))
    }
}

impl ServerShared {
    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Arc<Stream>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holds(&self) -> MutexGuard<'_, HashMap<u64, Arc<Lent>>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    fn lend(&self, hold: TransferHold, scratch: bool) -> Arc<Lent> {
        let lent =
            Arc::new(Lent { id: self.id(), hold: Mutex::new(hold), scratch, heard: AtomicU64::new(monotonic_ns()) });
        self.holds().insert(lent.id, lent.clone());
        lent
    }

    fn find(&self, id: u64) -> Result<Arc<Lent>> {
        match self.holds().get(&id) {
            Some(lent) => Ok(lent.clone()),
            None => bail!(Expired, "transfer {id}: over, or given up because its importer was silent"),
        }
    }

    /// Serves one connection on a thread of its own.
    fn serve(self: &Arc<Self>, stream: Stream, must_encrypt: bool) -> Result<()> {
        let stream = Arc::new(stream);
        let id = self.id();
        {
            let mut connections = self.connections();
            if self.closed.load(Relaxed) || connections.len() >= MOST_CONNECTIONS {
                bail!(WouldBlock, "{} connections are open", connections.len());
            }
            connections.insert(id, stream.clone());
        }
        let shared = self.clone();
        let body = move || {
            OWN.set(Arc::as_ptr(&shared) as usize);
            let served =
                crate::panics::catch(|| session::run(&shared, &stream, must_encrypt)).and_then(|served| served);
            if let Err(error) = served {
                crate::log!(Debug, "transport", "a peer's connection ended: {error}");
            }
            stream.shutdown();
            let mut connections = shared.connections();
            connections.remove(&id);
            shared.none_left.notify_all();
        };
        crate::sys::spawn("cleave-serve", body).map(|_| ()).inspect_err(|_| _ = self.connections().remove(&id))
    }
}

impl Server {
    pub fn new(cache: Arc<Cache>, timeout: Duration) -> Result<Server> {
        // Numbers of transfers begin anywhere: one of an earlier process is not taken for one of this.
        let first = u64::from_le_bytes(crate::sys::random_bytes()?) >> 1;
        let shared = ServerShared {
            cache,
            timeout,
            closed: AtomicBool::new(false),
            connections: Mutex::default(),
            none_left: Condvar::new(),
            holds: Mutex::default(),
            next: AtomicU64::new(first),
            nixl: OwnAgent::default(),
        };
        Ok(Server { shared: Arc::new(shared), listeners: Mutex::default() })
    }

    /// Listens on a Unix socket with a name of its own in the abstract namespace: it leaves no file behind, whatever
    /// ends the process.
    pub fn listen_unix(&self) -> Result<Vec<u8>> {
        let (listener, name) = Listener::unix(&self.shared)?;
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
        Ok(name)
    }

    /// Listens for TCP; gives the port. Plain connections that `encryption` does not allow are refused.
    pub fn listen_tcp(&self, address: std::net::SocketAddr, encryption: Encryption) -> Result<u16> {
        let (listener, port) = Listener::tcp(&self.shared, address, encryption)?;
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
        Ok(port)
    }

    /// Ends every connection, and the transfers with them, and waits for their threads; on one of these, which drops the
    /// last of what it woke, for the others.
    pub fn close(&self) {
        let own = usize::from(OWN.get() == Arc::as_ptr(&self.shared) as usize);
        self.shared.closed.store(true, Relaxed);
        let listeners = std::mem::take(&mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner));
        listeners.into_iter().for_each(Listener::close);
        let mut connections = self.shared.connections();
        connections.values().for_each(|stream| stream.shutdown());
        while connections.len() > own {
            connections = self.shared.none_left.wait(connections).unwrap_or_else(PoisonError::into_inner);
        }
        drop(connections);
        self.shared.nixl.end();
    }
}
