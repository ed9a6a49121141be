//! Tickets of handles, the address of the cache, and the endpoints that both contain.

use super::shared::CacheShared;
use super::slots::KvId;
use crate::error::Result;
use crate::kv::format::{Address, Endpoint, Origin, Ticket, encode_address, encode_ticket};

impl CacheShared {
    /// Writes a ticket for a handle. It is valid until the handle ends or the cache's epoch changes.
    pub(crate) fn encode_ticket(&self, id: KvId) -> Result<Vec<u8>> {
        let (snapshot, origin, streaming, chain) = self.ticket_origin(id)?;
        let endpoints = self.endpoints();
        Ok(encode_ticket(&self.own(), &snapshot, &origin, streaming, chain, &endpoints, &self.keys))
    }

    /// Verifies a ticket, except for its hash chain.
    pub(crate) fn open_ticket(&self, data: &[u8]) -> Result<Ticket> {
        Ticket::open(data, &self.keys, &self.own())
    }

    /// Writes this cache's address for a peer that wants to pair: endpoints, model and layout.
    pub(crate) fn encode_address(&self) -> Vec<u8> {
        self.encode_address_of(&self.endpoints())
    }

    /// Writes this cache's address with the given endpoints.
    pub(crate) fn encode_address_of(&self, endpoints: &[Endpoint]) -> Vec<u8> {
        let lease_ms = u32::try_from(self.config.lease.as_millis()).unwrap_or(u32::MAX);
        let origin = Origin { epoch: self.lock().epoch, handle: 0, lease_ms };
        encode_address(&self.own(), &origin, endpoints, &self.keys)
    }

    /// Verifies an address. Does not check whether the two caches can exchange KV.
    pub(crate) fn open_address(&self, data: &[u8]) -> Result<Address> {
        Address::open(data, &self.keys)
    }

    /// Sets the endpoints that tickets and addresses name, unless some are set already.
    pub(crate) fn set_default_endpoints(&self, endpoints: &[Endpoint]) {
        let mut known = self.endpoints.lock().unwrap_or_else(crate::sync::PoisonError::into_inner);
        if known.is_empty() {
            *known = endpoints.into();
        }
    }

    /// Sets the endpoints that tickets and addresses name from now on.
    pub(crate) fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        *self.endpoints.lock().unwrap_or_else(crate::sync::PoisonError::into_inner) = endpoints.into();
    }
}
