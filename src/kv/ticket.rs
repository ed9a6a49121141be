//! Tickets and addresses: what a peer needs to pull a sequence itself, and to check beforehand whether it could.
//! docs/kv-image-format.md has every byte.

use super::cache::{Cache, CacheIdentity};
use super::endpoint::{self, Endpoint};
use super::handle::KvId;
use super::hash::{BlockHash, HashChain};
use super::image::{
    ENDPOINTS, ENVELOPE, Envelope, Kind, LIBRARY_TEXT, Layout, MAC, Origin, SEQUENCE, Sections, Writer, common_len,
    encode_sequence, seal, ticket_len, write_address, write_common, write_ticket,
};
use crate::backend::KvGeometry;
use crate::bail;
use crate::error::Result;
use crate::sequence::Snapshot;
use std::time::Instant;

/// A verified ticket of a cache with the same model.
pub(crate) struct Ticket {
    pub epoch: [u8; 16],
    pub handle: KvId,
    /// Layout of the exporter's blocks.
    pub geometry: KvGeometry,
    /// The sequence; of a prompt that is still being computed, as it was when that began.
    pub snapshot: Snapshot,
    /// Its KV is still being computed: more of it comes than `snapshot.computed` says.
    pub streaming: bool,
    /// Of the sequence: what the exporter compares with the handle's.
    pub digest: [u8; 32],
    pub endpoints: Vec<Endpoint>,
    /// When it was given.
    pub given: Instant,
    chain: (u32, BlockHash),
}

/// A verified address.
pub(crate) struct Address {
    pub identity: CacheIdentity,
    pub layout: Layout,
    pub epoch: [u8; 16],
    pub endpoints: Vec<Endpoint>,
    /// The library that wrote it, for messages.
    pub library: String,
}

/// Bytes of the ticket of a sequence.
pub(super) fn len(identity: &CacheIdentity, layout: &Layout, snapshot: &Snapshot, endpoints: &[Endpoint]) -> usize {
    let endpoints = endpoint::encode(endpoints).len();
    ENVELOPE + common_len(identity, layout) + ticket_len(snapshot, endpoints) + MAC
}

pub(crate) fn digest(snapshot: &Snapshot) -> [u8; 32] {
    *blake3::hash(&encode_sequence(snapshot)).as_bytes()
}

impl Ticket {
    /// The hash chain of the KV that will come: over the computed tokens, or over the prompt being computed. In blocks
    /// of the exporter's size it has to be the ticket's.
    pub fn check_chain(&self) -> Result<HashChain> {
        let chain = HashChain::of(self.snapshot.cache_salt, self.geometry.block_tokens, self.tokens());
        let (full, head) = self.chain;
        if full as usize != chain.hashes().len() || head != chain.head() {
            bail!(
                Corrupt,
                "KV ticket: hash chain: expected {} blocks up to {:?}, found {full} up to {head:?}",
                chain.hashes().len(),
                chain.head()
            );
        }
        Ok(chain)
    }

    /// The tokens whose KV will come.
    pub fn tokens(&self) -> &[u32] {
        chained(&self.snapshot, self.streaming)
    }
}

fn chained(snapshot: &Snapshot, streaming: bool) -> &[u32] {
    &snapshot.tokens[..if streaming { snapshot.tokens.len() } else { snapshot.computed as usize }]
}

impl Cache {
    /// A ticket for a handle, good as long as the handle and this cache's epoch are.
    pub(crate) fn encode_ticket(&self, id: KvId) -> Result<Vec<u8>> {
        let shared = &self.shared;
        let (snapshot, origin, streaming, known) = self.ticket_origin(id)?;
        let chain = known.unwrap_or_else(|| {
            let chain = HashChain::of(snapshot.cache_salt, shared.geometry.block_tokens, chained(&snapshot, streaming));
            (chain.hashes().len() as u32, chain.head())
        });
        let mut w = Writer::default();
        write_common(&mut w, LIBRARY_TEXT, &shared.identity, &shared.layout, &origin);
        let endpoints = endpoint::encode(&shared.endpoints());
        write_ticket(&mut w, &snapshot, chain, streaming, &endpoints);
        Ok(seal(Kind::Ticket, &w.0, 0, &shared.keys))
    }

    /// Verifies a ticket, in the order of docs/kv-image-format.md, but for its hash chain: that takes as long as all
    /// the rest, and can be done while the exporter is asked.
    pub(crate) fn open_ticket(&self, data: &[u8]) -> Result<Ticket> {
        let given = Instant::now();
        let sections = open(data, Kind::Ticket, self)?;
        let geometry = sections.check_compatible(&self.shared)?;
        let origin = sections.origin()?;
        let (snapshot, digest) = (sections.snapshot()?, *blake3::hash(sections.get(SEQUENCE)?).as_bytes());
        Ok(Ticket {
            epoch: origin.epoch,
            handle: KvId(origin.handle),
            geometry,
            snapshot,
            streaming: sections.streaming()?,
            digest,
            endpoints: endpoint::decode(sections.get(ENDPOINTS)?)?,
            given,
            chain: sections.chain()?,
        })
    }

    /// Where this cache can be reached, and what it holds: for a peer that wants to pair.
    pub(crate) fn encode_address(&self) -> Vec<u8> {
        self.encode_address_of(&self.shared.endpoints())
    }

    /// The same with these endpoints.
    pub(crate) fn encode_address_of(&self, endpoints: &[Endpoint]) -> Vec<u8> {
        let shared = &self.shared;
        let lease_ms = u32::try_from(shared.config.lease.as_millis()).unwrap_or(u32::MAX);
        let origin = Origin { epoch: self.epoch(), handle: 0, lease_ms };
        let mut w = Writer::default();
        write_common(&mut w, LIBRARY_TEXT, &shared.identity, &shared.layout, &origin);
        write_address(&mut w, &endpoint::encode(endpoints));
        seal(Kind::Address, &w.0, 0, &shared.keys)
    }

    /// Verifies an address. Whether the two caches can exchange KV is another question.
    pub(crate) fn open_address(&self, data: &[u8]) -> Result<Address> {
        let sections = open(data, Kind::Address, self)?;
        Ok(Address {
            identity: sections.identity()?,
            layout: sections.layout()?,
            epoch: sections.origin()?.epoch,
            endpoints: endpoint::decode(sections.get(ENDPOINTS)?)?,
            library: sections.library(),
        })
    }

    /// The same, unless there are any.
    pub(crate) fn set_default_endpoints(&self, endpoints: &[Endpoint]) {
        let mut known = self.shared.endpoints.lock().unwrap_or_else(crate::sync::PoisonError::into_inner);
        if known.is_empty() {
            *known = endpoints.into();
        }
    }

    /// What tickets and addresses name from now on.
    pub(crate) fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        *self.shared.endpoints.lock().unwrap_or_else(crate::sync::PoisonError::into_inner) = endpoints.into();
    }
}

/// The sections of a ticket or an address: all of it, signed and of a version that is understood.
fn open<'a>(data: &'a [u8], kind: Kind, cache: &Cache) -> Result<Sections<'a>> {
    let envelope = Envelope::peek(data)?;
    envelope.check_len(data.len() as u64)?;
    let name = kind.name();
    if envelope.kind != kind {
        bail!(InvalidArgument, "{name}: expected one, found another kind of thing: {}", envelope.kind.name());
    }
    if envelope.head_len != data.len() {
        bail!(Corrupt, "{name}: head length: expected {}, found {}", data.len(), envelope.head_len);
    }
    Sections::parse(envelope.open(data, &cache.shared.keys)?)
}
