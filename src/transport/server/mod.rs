//! The exporter: listens, and lends blocks to peers that know the secret.
//!
//! A connection is accepted by `listen` and gets a thread in `serve`. It has to prove that it knows the secret, under the
//! limits of `gate`, and is then answered by a `session` until it closes, is idle for long, or makes place for another. What self-tests may take of the
//! pool is in `self_tests`. Nothing here knows what engines do with the KV.

mod addresses;
mod blocks;
mod connection;
mod gate;
mod listen;
mod self_tests;
mod serve;
mod session;
mod shared;
mod transfers;

use super::nixl::OwnAgent;
use crate::error::Result;
use crate::kv::Cache;
use crate::sys::max_open_files;
use listen::Listener;
use shared::{OWN, ServerShared};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

pub use addresses::Encryption;
pub(super) use addresses::{advertised, parse};
pub(super) use blocks::pattern;

pub(super) struct Server {
    shared: Arc<ServerShared>,
    listeners: Mutex<Vec<Listener>>,
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
