//! Tickets: what a peer needs to pull a sequence itself. docs/kv-image-format.md has every byte.

use super::cache::{Cache, CacheIdentity};
use super::handle::KvId;
use super::image::{
    ENDPOINTS, ENVELOPE, Envelope, Kind, LIBRARY_TEXT, MAC, Reader, Sections, Writer, common_len, encode_sequence,
    seal, ticket_len, write_common, write_ticket,
};
use crate::bail;
use crate::error::Result;
use crate::sequence::Snapshot;

/// Endpoint of a cache in the importer's own process.
const LOCAL_PROCESS: u16 = 1;
const LOCAL_LEN: usize = 20;
/// Count, then kind and length of the one endpoint.
const ENDPOINTS_LEN: usize = 4 + 4 + LOCAL_LEN;

/// A process, told from all others that ever bore its pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessId {
    pub pid: u32,
    pub nonce: [u8; 16],
}

/// A verified ticket of a compatible cache.
pub(crate) struct Ticket {
    pub epoch: [u8; 16],
    pub handle: KvId,
    /// The exporter's process, if the ticket can be used within one.
    pub process: Option<ProcessId>,
    n_tokens: u32,
    computed: u32,
    digest: [u8; 32],
}

/// Bytes of every ticket of this cache.
pub(super) fn len(identity: &CacheIdentity) -> usize {
    ENVELOPE + common_len(identity) + ticket_len(ENDPOINTS_LEN) + MAC
}

fn digest(snapshot: &Snapshot) -> [u8; 32] {
    *blake3::hash(&encode_sequence(snapshot)).as_bytes()
}

impl Ticket {
    /// Does the handle hold what the ticket was written for?
    pub fn check_sequence(&self, snapshot: &Snapshot) -> Result<()> {
        if digest(snapshot) != self.digest {
            bail!(
                Corrupt,
                "KV ticket: sequence: expected {} tokens, {} computed; {} has {} and {}, or other ones",
                self.n_tokens,
                self.computed,
                self.handle,
                snapshot.tokens.len(),
                snapshot.computed
            );
        }
        Ok(())
    }
}

impl Cache {
    /// A ticket for a handle, good as long as the handle and this cache's epoch are.
    pub(crate) fn encode_ticket(&self, id: KvId, process: ProcessId) -> Result<Vec<u8>> {
        let (snapshot, origin, _) = self.origin(id)?;
        let mut endpoints = Writer::default();
        endpoints.u32(1).u16(LOCAL_PROCESS).u16(LOCAL_LEN as u16).u32(process.pid).bytes(&process.nonce);
        let mut w = Writer::default();
        write_common(&mut w, LIBRARY_TEXT, &self.shared.identity, &self.shared.geometry, &origin);
        write_ticket(&mut w, snapshot.tokens.len() as u32, snapshot.computed, &digest(&snapshot), &endpoints.0);
        Ok(seal(Kind::Ticket, &w.0, 0, &self.shared.keys))
    }

    /// Verifies a ticket, in the order of docs/kv-image-format.md.
    pub(crate) fn open_ticket(&self, data: &[u8]) -> Result<Ticket> {
        let envelope = Envelope::peek(data)?;
        envelope.check_len(data.len() as u64)?;
        if envelope.kind != Kind::Ticket {
            bail!(InvalidArgument, "KV ticket: expected a ticket, found an image");
        }
        if envelope.head_len != data.len() {
            bail!(Corrupt, "KV ticket: head length: expected {}, found {}", data.len(), envelope.head_len);
        }
        let sections = Sections::parse(envelope.open(data, &self.shared.keys)?)?;
        sections.check_compatible(&self.shared)?;
        let origin = sections.origin()?;
        let (n_tokens, computed, digest) = sections.digest()?;
        let process = local_process(sections.get(ENDPOINTS)?)?;
        Ok(Ticket { epoch: origin.epoch, handle: KvId(origin.handle), process, n_tokens, computed, digest })
    }
}

/// The endpoint of this kind of transport; others are skipped.
fn local_process(section: &[u8]) -> Result<Option<ProcessId>> {
    let mut r = Reader::new("endpoints", section);
    let mut local = None;
    for _ in 0..r.u32("count")? {
        let (kind, len) = (r.u16("kind")?, r.u16("length")?);
        let payload = r.bytes(len as usize, "endpoint")?;
        if kind == LOCAL_PROCESS {
            let mut r = Reader::new("local endpoint", payload);
            local = Some(ProcessId { pid: r.u32("pid")?, nonce: r.array("process nonce")? });
            r.end()?;
        }
    }
    r.end()?;
    Ok(local)
}
