//! A cache's side of all transfers.

use super::client::Peers;
use super::local;
use super::pair::{self, Report};
use super::pull;
use super::server::{Encryption, Server, advertised, parse};
use super::source::{Transport, Want};
use super::workers::{Place, Workers};
use crate::bail;
use crate::error::Result;
use crate::kv::format::{Endpoint, Envelope, Kind, MAX_ENDPOINTS, UnixName};
use crate::kv::{Cache, KvId, PendingImport};
use crate::sys::socket::boot_id;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Settings of a node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Peers on this machine may import: listen on a Unix socket. Of no use unless they have the cache's secret.
    pub serve: bool,
    /// A peer that is silent for so long in the middle of something is gone.
    pub peer_timeout: Duration,
}

impl Default for NodeConfig {
    fn default() -> Self {
        NodeConfig { serve: false, peer_timeout: Duration::from_secs(4) }
    }
}

/// One cache's side of all transfers: tickets, imports, listening, pairing.
pub struct Node {
    cache: Arc<Cache>,
    peers: Arc<Peers>,
    server: Server,
    workers: Workers,
    endpoints: Mutex<Vec<Endpoint>>,
}

impl Node {
    /// Makes the node of a cache. With `serve` it listens on a Unix socket at once.
    pub fn new(cache: &Arc<Cache>, config: NodeConfig) -> Result<Arc<Node>> {
        local::register(cache);
        let peers = Arc::new(Peers::new(cache.clone(), config.peer_timeout));
        let server = Server::new(cache.clone(), config.peer_timeout)?;
        let mut endpoints = vec![Endpoint::Process(local::process()?)];
        if config.serve {
            match server.listen_unix() {
                Ok(name) => endpoints.push(Endpoint::Unix(UnixName { boot: boot_id(), name })),
                // A sandbox may forbid Unix sockets. The other transports work without them.
                Err(error) => crate::log!(Warn, "transport", "no imports by shared memory: {error}"),
            }
        }
        cache.tickets().set_endpoints(&endpoints);
        let swept = peers.clone();
        let workers = Workers::new(Box::new(move || swept.sweep()));
        Ok(Arc::new(Node { cache: cache.clone(), peers, server, workers, endpoints: Mutex::new(endpoints) }))
    }

    /// Listens for peers on other machines at `address` (host:port, port 0: any). `advertise` is how they reach it, if
    /// that is another address. Gives the port.
    pub fn listen(&self, address: &str, advertise: Option<&str>, encryption: Encryption) -> Result<u16> {
        let (address, advertise) = (parse(address)?, advertise.map(parse).transpose()?);
        if advertise.is_some_and(|address| address.ip().is_unspecified()) {
            bail!(InvalidArgument, "advertise: expected an address that peers can connect to");
        }
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        // Found out before anything listens: what would be told of it must fit.
        let tcp = advertised(address, 1, advertise, encryption);
        if endpoints.len() + tcp.len() > MAX_ENDPOINTS {
            bail!(InvalidArgument, "{} endpoints: a cache has {MAX_ENDPOINTS} at most", endpoints.len() + tcp.len());
        }
        let port = self.server.listen_tcp(address, encryption)?;
        endpoints.extend(advertised(address, port, advertise, encryption));
        self.cache.tickets().set_endpoints(&endpoints);
        Ok(port)
    }

    /// Where this cache can be reached and what it holds, for [`Node::pair`] of a peer.
    pub fn address(&self) -> Vec<u8> {
        self.cache.tickets().encode_address()
    }

    /// An address with the TCP endpoints of this port alone, so that a peer has no choice: for measuring.
    pub fn address_of(&self, port: u16) -> Vec<u8> {
        let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let of_port = |e: &&Endpoint| matches!(e, Endpoint::Tcp { address, .. } if address.port() == port);
        self.cache.tickets().encode_address_of(&endpoints.iter().filter(of_port).cloned().collect::<Vec<_>>())
    }

    /// Could KV be imported from the cache at `address`, how, and how fast? What is found to work is used by imports
    /// from then on.
    pub fn pair(&self, address: &[u8], required: Option<Transport>) -> Report {
        // No thread looks after peers that are only paired with.
        self.peers.sweep();
        let open = || if self.cache.is_closed() { bail!(Shutdown, "the cache is closed") } else { Ok(()) };
        pair::pair(&self.cache, &self.peers, address, required, &open)
    }

    /// A ticket for a handle: with it a peer pulls the sequence itself, after which the handle is consumed.
    pub fn ticket(&self, id: KvId) -> Result<Vec<u8>> {
        self.cache.tickets().encode(id)
    }

    /// Takes a ticket or an image in. The handle of a ticket is there at once, and may be consumed as soon as its
    /// blocks have been pulled in the background. Whatever can be checked without the peer is checked before this
    /// returns; an image is taken in whole. `done` is called exactly once if this succeeds, after waiters of the handle
    /// were woken.
    pub fn import(&self, data: &[u8], done: impl FnOnce(KvId, Result<()>) + Send + 'static) -> Result<KvId> {
        if Envelope::peek(data)?.kind == Kind::Image {
            let id = self.cache.images().import(data)?;
            done(id, Ok(()));
            return Ok(id);
        }
        let ticket = self.cache.tickets().open(data)?;
        let import = self.cache.transfers().begin_import(Arc::new(ticket.snapshot.clone()))?;
        let (id, cache, peers) = (import.id(), self.cache.clone(), self.peers.clone());
        let epoch = ticket.epoch;
        let job = move |place: &Place| {
            let running = RunningImport { import: &import, place, timeout: peers.timeout };
            let pulled = crate::panics::catch(|| pull::pull(&cache, Some(&peers), &ticket, &running));
            let pulled = pulled.and_then(|pulled| pulled);
            // Counted before anybody is woken: who has seen the import end finds it counted.
            if pulled.is_err() {
                cache.counters().import_failed();
            }
            let outcome = import.finish(pulled);
            if let Err(error) = &outcome {
                crate::log!(Debug, "transport", "import of {}: {error}", ticket.handle);
            }
            done(id, outcome);
        };
        // A job that is refused is dropped, and its import with it.
        self.workers.submit(epoch, Box::new(job))?;
        Ok(id)
    }

    /// Ends the cache's handles, then every transfer in and out, and waits for them. Idempotent.
    pub fn close(&self) {
        self.cache.close();
        self.workers.close();
        self.peers.clear();
        self.server.close();
    }
}

/// An import that a thread works on.
struct RunningImport<'a> {
    import: &'a PendingImport,
    place: &'a Place,
    /// The peer timeout.
    timeout: Duration,
}

impl Want for RunningImport<'_> {
    fn check(&self) -> Result<()> {
        self.import.check()?;
        self.place.check()
    }

    fn check_silence(&self, silence: Duration) -> Result<()> {
        self.import.check()?;
        self.place.note_silence(silence)
    }

    fn heard(&self) {
        self.place.heard();
    }

    /// A request that has taken the handle waits for blocks as any other does; nobody else does for long.
    fn waits_for_blocks(&self, waited: Duration) -> bool {
        waited < self.timeout || self.import.is_claimed()
    }
}

/// A ticket of a cache that has no node: for caches of this process.
pub fn ticket(cache: &Arc<Cache>, id: KvId) -> Result<Vec<u8>> {
    local::register(cache);
    cache.tickets().set_default_endpoints(&[Endpoint::Process(local::process()?)]);
    cache.tickets().encode(id)
}

/// Takes a ticket or an image into a cache that has no node, and gives the handle of what landed. Copies block by block:
/// a ticket of `cache` itself copies nothing.
pub fn import(cache: &Arc<Cache>, data: &[u8]) -> Result<KvId> {
    if Envelope::peek(data)?.kind == Kind::Image {
        return cache.images().import(data);
    }
    let (snapshot, table) = pull::pull(cache, None, &cache.tickets().open(data)?, &|| Ok(()))?;
    cache.handles().export(snapshot, table, None)
}

impl Drop for Node {
    fn drop(&mut self) {
        self.close();
    }
}
