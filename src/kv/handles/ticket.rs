//! Tickets of handles, and the address of the cache.

use super::shared::CacheShared;
use super::table::Body;
use crate::error::Result;
use crate::kv::format::{Address, Endpoint, KvId, Origin, Ticket, encode_address, encode_ticket};
use crate::sync::Instant;

/// Tickets of a cache's handles, and the cache's own address.
#[derive(Clone, Copy)]
pub(crate) struct Tickets<'a>(&'a CacheShared);

impl<'a> Tickets<'a> {
    pub(in crate::kv) fn new(shared: &'a CacheShared) -> Tickets<'a> {
        Tickets(shared)
    }

    /// Writes a ticket for a handle. It is valid until the handle ends.
    pub fn encode(self, id: KvId) -> Result<Vec<u8>> {
        let shared = self.0;
        let (snapshot, origin, streaming, chain) = shared.with(|state| {
            let (epoch, slot) = (shared.epoch, state.find(id)?);
            let origin = |left: std::time::Duration| {
                let lease_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
                Origin { epoch, handle: id.0, lease_ms }
            };
            if let Body::StreamingExport(progress) = state.handles.body(slot) {
                return Ok((progress.prompt.clone(), origin(shared.config.lease), true, None));
            }
            let (_, export) = state.ready(id)?;
            let left = export.deadline.saturating_duration_since(Instant::now());
            Ok((export.snapshot.clone(), origin(left), false, export.chain))
        })?;
        let endpoints = shared.endpoints.get();
        Ok(encode_ticket(&shared.own(), &snapshot, &origin, streaming, chain, &endpoints, &shared.keys))
    }

    /// Verifies a ticket, except for its hash chain.
    pub fn open(self, data: &[u8]) -> Result<Ticket> {
        Ticket::open(data, &self.0.keys, &self.0.own())
    }

    /// Writes this cache's address for a peer that wants to pair: endpoints, model and layout.
    pub fn encode_address(self) -> Vec<u8> {
        self.encode_address_of(&self.0.endpoints.get())
    }

    /// Writes this cache's address with the given endpoints.
    pub fn encode_address_of(self, endpoints: &[Endpoint]) -> Vec<u8> {
        let shared = self.0;
        let lease_ms = u32::try_from(shared.config.lease.as_millis()).unwrap_or(u32::MAX);
        let origin = Origin { epoch: shared.epoch, handle: 0, lease_ms };
        encode_address(&shared.own(), &origin, endpoints, &shared.keys)
    }

    /// Verifies an address. Does not check whether the two caches can exchange KV.
    pub fn open_address(self, data: &[u8]) -> Result<Address> {
        Address::open(data, &self.0.keys)
    }

    /// Sets the endpoints that tickets and addresses name from now on.
    pub fn set_endpoints(self, endpoints: &[Endpoint]) {
        self.0.endpoints.set(endpoints);
    }

    /// Sets the endpoints that tickets and addresses name, unless some are set already.
    pub fn set_default_endpoints(self, endpoints: &[Endpoint]) {
        self.0.endpoints.set_default(endpoints);
    }

    /// Corrects the lengths, tags, MAC and checksum of an image or ticket that a fuzzer has mutated.
    #[cfg(feature = "fuzzing")]
    pub fn reseal(self, data: &mut [u8]) {
        crate::kv::format::reseal(&self.0.keys, data);
    }
}
