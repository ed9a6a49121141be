//! Tickets, with which a peer can pull a sequence, and addresses, with which it can check beforehand whether it could.
//! docs/kv-image-format.md defines every byte.

use super::compatible::{Own, check_compatible};
use super::endpoint::{self, Endpoint};
use super::envelope::{ENVELOPE, Envelope, Keys, Kind, MAC, seal};
use super::identity::{CacheIdentity, KvId, LIBRARY_TEXT};
use super::layout::Layout;
use super::sections::{ENDPOINTS, Origin, SEQUENCE, Sections};
use super::sequence;
use super::wire::Writer;
use super::writing::{self, common_len, write_common};
use crate::backend::KvGeometry;
use crate::bail;
use crate::error::Result;
use crate::kv::pool::{BlockHash, HashChain};
use crate::sequence::Snapshot;
use std::time::Instant;

/// A verified ticket of a cache with the same model.
pub(crate) struct Ticket {
    pub epoch: [u8; 16],
    pub handle: KvId,
    /// Layout of the exporter's blocks.
    pub geometry: KvGeometry,
    /// The sequence. For a streaming export, the prompt with no token computed.
    pub snapshot: Snapshot,
    /// The prompt is still being computed: more KV will come than `snapshot.computed` says.
    pub streaming: bool,
    /// Digest of the sequence, which the exporter compares with its handle's.
    pub digest: [u8; 32],
    pub endpoints: Vec<Endpoint>,
    /// Time at which this process received the ticket.
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
pub(in crate::kv) fn ticket_len(
    identity: &CacheIdentity,
    layout: &Layout,
    snapshot: &Snapshot,
    endpoints: &[Endpoint],
) -> usize {
    let endpoints = endpoint::encode(endpoints).len();
    ENVELOPE + common_len(identity, layout) + writing::ticket_len(snapshot, endpoints) + MAC
}

pub(crate) fn digest(snapshot: &Snapshot) -> [u8; 32] {
    *blake3::hash(&sequence::encode(snapshot)).as_bytes()
}

impl Ticket {
    /// Hash chain of the KV that will come, over the computed tokens or the prompt being computed, in blocks of the exporter's
    /// size. CORRUPT if it differs from the ticket's.
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

    /// Tokens whose KV will come.
    pub fn tokens(&self) -> &[u32] {
        chained(&self.snapshot, self.streaming)
    }
}

fn chained(snapshot: &Snapshot, streaming: bool) -> &[u32] {
    &snapshot.tokens[..if streaming { snapshot.tokens.len() } else { snapshot.computed as usize }]
}

/// Sections of a ticket or an address, after its length, version, checksum and MAC were verified.
fn open<'a>(data: &'a [u8], kind: Kind, keys: &Keys) -> Result<Sections<'a>> {
    let envelope = Envelope::peek(data)?;
    envelope.check_len(data.len() as u64)?;
    let name = kind.name();
    if envelope.kind != kind {
        bail!(InvalidArgument, "{name}: expected one, found another kind of thing: {}", envelope.kind.name());
    }
    if envelope.head_len != data.len() {
        bail!(Corrupt, "{name}: head length: expected {}, found {}", data.len(), envelope.head_len);
    }
    Sections::parse(envelope.open(data, keys)?)
}

impl Ticket {
    /// Verifies a ticket in the order of docs/kv-image-format.md, except for its hash chain. That takes as long as all the
    /// rest, and the caller can do it while waiting for the exporter's reply.
    pub(in crate::kv) fn open(data: &[u8], keys: &Keys, own: &Own<'_>) -> Result<Ticket> {
        let given = Instant::now();
        let sections = open(data, Kind::Ticket, keys)?;
        let geometry = check_compatible(&sections, own)?;
        let origin = sections.origin()?;
        Ok(Ticket {
            epoch: origin.epoch,
            handle: KvId(origin.handle),
            geometry,
            snapshot: sections.snapshot()?,
            streaming: sections.streaming()?,
            digest: *blake3::hash(sections.get(SEQUENCE)?).as_bytes(),
            endpoints: endpoint::decode(sections.get(ENDPOINTS)?)?,
            given,
            chain: sections.chain()?,
        })
    }
}

/// Writes the ticket of a sequence. `chain`: number of full blocks and the hash of the last, if they are known.
pub(in crate::kv) fn encode_ticket(
    own: &Own<'_>,
    snapshot: &Snapshot,
    origin: &Origin,
    streaming: bool,
    chain: Option<(u32, BlockHash)>,
    endpoints: &[Endpoint],
    keys: &Keys,
) -> Vec<u8> {
    let chain = chain.unwrap_or_else(|| {
        let block_tokens = own.layout.geometry.block_tokens;
        let chain = HashChain::of(snapshot.cache_salt, block_tokens, chained(snapshot, streaming));
        (chain.hashes().len() as u32, chain.head())
    });
    let mut w = Writer::default();
    write_common(&mut w, LIBRARY_TEXT, own.identity, own.layout, origin);
    writing::write_ticket(&mut w, snapshot, chain, streaming, &endpoint::encode(endpoints));
    seal(Kind::Ticket, &w.0, 0, keys)
}

impl Address {
    /// Verifies an address. Does not check whether the two caches can exchange KV.
    pub(in crate::kv) fn open(data: &[u8], keys: &Keys) -> Result<Address> {
        let sections = open(data, Kind::Address, keys)?;
        Ok(Address {
            identity: sections.identity()?,
            layout: sections.layout()?,
            epoch: sections.origin()?.epoch,
            endpoints: endpoint::decode(sections.get(ENDPOINTS)?)?,
            library: sections.library(),
        })
    }
}

/// Writes the address of a cache that can be reached at `endpoints`.
pub(in crate::kv) fn encode_address(own: &Own<'_>, origin: &Origin, endpoints: &[Endpoint], keys: &Keys) -> Vec<u8> {
    let mut w = Writer::default();
    write_common(&mut w, LIBRARY_TEXT, own.identity, own.layout, origin);
    writing::write_address(&mut w, &endpoint::encode(endpoints));
    seal(Kind::Address, &w.0, 0, keys)
}
