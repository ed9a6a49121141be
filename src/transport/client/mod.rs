//! Peers that this cache imports from: how to reach them, their connections, and their mapped memory.
//!
//! Knows tickets, endpoints and the protocol. Does not know what lands where in this cache: that is `pull`.

mod answering;
mod carrier;
mod connect;
mod mapped;
mod peer;
mod question;
mod remote;
mod streams;

use super::source::{TransferSource, Transport, Wanted};
use crate::error::{Error, Result, Status};
use crate::kv::Cache;
use crate::kv::format::{Endpoint, Ticket, TransportKeys, UnixName};
use crate::sys::socket::boot_id;
pub(super) use carrier::DataPlane;
pub(super) use peer::Peer;
pub(super) use question::Question;
pub(super) use remote::RemoteTransfer;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A peer that has not been used for this long is forgotten.
const FORGET: Duration = Duration::from_secs(60);
/// The most results of pairing that are remembered; the latest stay.
const MOST_CHOICES: usize = 1024;

pub(super) struct Peers {
    pub keys: TransportKeys,
    /// The peer timeout: a peer that is silent for this long after a question is gone.
    pub timeout: Duration,
    cache: Arc<Cache>,
    known: Mutex<HashMap<Endpoint, Arc<Peer>>>,
    /// Results of pairing, by the exporting cache's epoch and by its TCP endpoints: the latter stay when it restarts.
    choices: Mutex<Vec<(ChosenFor, Choice)>>,
}

/// The transport that pairing found to work, and the endpoint.
#[derive(Clone)]
struct Choice {
    transport: Transport,
    endpoint: Option<Endpoint>,
}

#[derive(Clone, PartialEq)]
enum ChosenFor {
    Epoch([u8; 16]),
    At(Endpoint),
}

impl Peers {
    pub fn new(cache: Arc<Cache>, timeout: Duration) -> Peers {
        Peers { keys: cache.transport_keys(), timeout, cache, known: Mutex::default(), choices: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Endpoint, Arc<Peer>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer at an endpoint; a new one if the endpoint is not known.
    pub fn at(&self, endpoint: &Endpoint) -> Arc<Peer> {
        let mut known = self.known();
        known.entry(endpoint.clone()).or_insert_with(|| Arc::new(Peer::new(endpoint.clone()))).clone()
    }

    /// Frees connections and mappings of peers that are gone: a dead peer's memory stays in use while it is mapped here.
    /// True while there are any peers.
    pub fn sweep(&self) -> bool {
        let known: Vec<Arc<Peer>> = self.known().values().cloned().collect();
        known.iter().for_each(|peer| peer.sweep(self.timeout));
        let mut known = self.known();
        known.retain(|_, peer| Arc::strong_count(peer) > 2 || peer.idle_for() < FORGET);
        !known.is_empty()
    }

    /// Forgets every peer.
    pub fn clear(&self) {
        // Dropped outside the lock, as it takes long.
        let known = std::mem::take(&mut *self.known());
        drop(known);
    }

    // ---- results of pairing ----

    pub fn choose(&self, epoch: &[u8; 16], endpoints: &[Endpoint], transport: Transport, endpoint: Option<&Endpoint>) {
        let mut choices = self.choices.lock().unwrap_or_else(PoisonError::into_inner);
        let tcp = endpoints.iter().filter(|e| matches!(e, Endpoint::Tcp { .. })).cloned().map(ChosenFor::At);
        for who in std::iter::once(ChosenFor::Epoch(*epoch)).chain(tcp) {
            choices.retain(|(known, _)| *known != who);
            choices.push((who, Choice { transport, endpoint: endpoint.cloned() }));
        }
        let excess = choices.len().saturating_sub(MOST_CHOICES);
        choices.drain(..excess);
    }

    fn choice(&self, epoch: &[u8; 16], endpoints: &[Endpoint]) -> Option<Choice> {
        let choices = self.choices.lock().unwrap_or_else(PoisonError::into_inner);
        let find = |who: ChosenFor| choices.iter().find(|(known, _)| *known == who).map(|choice| choice.1.clone());
        find(ChosenFor::Epoch(*epoch)).or_else(|| endpoints.iter().find_map(|e| find(ChosenFor::At(e.clone()))))
    }

    /// True if pairing chose sockets although the exporter is in this process.
    pub fn prefers_other_than_process(&self, epoch: &[u8; 16]) -> bool {
        self.choice(epoch, &[]).is_some_and(|choice| choice.transport != Transport::Process)
    }

    // ---- transfers ----

    /// Begins the transfer of a ticket, by the transport that pairing chose, or by the best that reaches the exporter.
    pub fn open(&self, ticket: &Ticket, wanted: Wanted<'_>) -> Result<Box<dyn TransferSource>> {
        let choice = self.choice(&ticket.epoch, &ticket.endpoints);
        let chosen = choice.as_ref().map(|choice| choice.transport);
        let mut routes = routes(&ticket.endpoints, chosen);
        // The endpoint that pairing chose is tried first.
        routes.sort_by_key(|(endpoint, _)| choice.as_ref().is_none_or(|c| c.endpoint.as_ref() != Some(endpoint)));
        let mut last = None;
        for (endpoint, plane) in routes {
            let peer = self.at(&endpoint);
            let opened = peer
                .answering
                .turn(wanted)
                .and_then(|_turn| RemoteTransfer::open(&peer, ticket, plane, self.question(wanted)));
            match opened {
                Ok(remote) => {
                    let asked = remote.asked.saturating_duration_since(ticket.given);
                    self.cache.counters().asked(asked.as_nanos() as u64);
                    return Ok(Box::new(remote));
                }
                // Not reachable, or not by this transport: the next endpoint may be. Any other error is the peer's answer.
                Err(error) if matches!(error.status, Status::Peer | Status::Unsupported) => {
                    let error = error.context(describe(&endpoint));
                    if peer.is_stopped() {
                        return Err(error);
                    }
                    last = Some(error);
                    wanted.check()?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| unreachable_from_here(chosen)))
    }

    pub fn question<'a>(&'a self, wanted: Wanted<'a>) -> Question<'a> {
        Question { keys: self.keys, timeout: self.timeout, store: self.cache.store_handle(), wanted }
    }
}

fn unreachable_from_here(chosen: Option<Transport>) -> Error {
    let how = chosen.map_or(String::new(), |transport| format!(" by {}, which pairing chose", transport.name()));
    let text = "its cache cannot be reached from this process";
    Error::new(Status::Peer, format!("KV ticket: {text}{how}: let it listen (cleave_cache_listen), or use an image"))
}

/// Ways to reach an exporter, best first: the endpoint to connect to, and what carries the blocks.
pub(super) fn routes(endpoints: &[Endpoint], chosen: Option<Transport>) -> Vec<(Endpoint, DataPlane)> {
    let allowed = |transport| chosen.is_none_or(|chosen| chosen == transport);
    let boot = boot_id();
    let here = |unix: &UnixName| unix.boot == boot && boot != [0; 16];
    let mut routes = Vec::new();
    for endpoint in endpoints {
        // Whether it is host or device memory turns out when the pool is mapped.
        let maps = allowed(Transport::SharedMemory) || allowed(Transport::DeviceMemory);
        if matches!(endpoint, Endpoint::Unix(unix) if here(unix)) && maps {
            routes.push((endpoint.clone(), DataPlane::Mapped));
        }
    }
    // NIXL is used only where pairing required it.
    if chosen == Some(Transport::Nixl) {
        let reachable =
            |e: &&Endpoint| matches!(e, Endpoint::Unix(unix) if here(unix)) || matches!(e, Endpoint::Tcp { .. });
        routes.extend(endpoints.iter().filter(reachable).map(|e| (e.clone(), DataPlane::Nixl)));
    }
    for endpoint in endpoints {
        if matches!(endpoint, Endpoint::Tcp { .. }) && allowed(Transport::Tcp) {
            routes.push((endpoint.clone(), DataPlane::Streams));
        }
    }
    routes
}

pub(super) fn describe(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Process(process) => format!("process {}", process.pid),
        Endpoint::Unix(unix) => format!("@{}", unix.name.escape_ascii()),
        Endpoint::Tcp { address, .. } => address.to_string(),
    }
}
