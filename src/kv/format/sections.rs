//! The sections of a head: writing them, and an importer's checks on them.

use super::identity::{CacheIdentity, LIBRARY_TEXT};
use super::layout::Layout;
use super::sequence;
use super::wire::{Reader, Writer};
use crate::backend::KvGeometry;
use crate::bail;
use crate::error::{Result, Status};
use crate::kv::pool::BlockHash;
use crate::sequence::{MAX_HOST_DATA, Snapshot};

/// Flag: a reader that does not know the section must refuse the whole head.
const CRITICAL: u16 = 1;
pub(in crate::kv) const LIBRARY: u16 = 1;
pub(in crate::kv) const IDENTITY: u16 = 2;
pub(in crate::kv) const LAYOUT: u16 = 3;
pub(in crate::kv) const SEQUENCE: u16 = 4;
pub(in crate::kv) const CHAIN: u16 = 5;
pub(in crate::kv) const ORIGIN: u16 = 6;
pub(in crate::kv) const BLOCKS: u16 = 7;
pub(in crate::kv) const STATE: u16 = 8;
pub(in crate::kv) const ENDPOINTS: u16 = 9;
pub(in crate::kv) const HOST_DATA: u16 = 10;
const KNOWN: usize = 11;

const SECTION_HEADER: usize = 8;
/// Payload sizes in bytes of the sections of fixed size.
const CHAIN_LEN: usize = 36;
const ORIGIN_LEN: usize = 28;
/// Payload size of the layout section in bytes, without its groups.
const BLOCKS_LEN: usize = 48;
const STATE_LEN: usize = 4;
/// Bit 0 of the state: the prompt is still being computed.
const STREAMING: u32 = 1;

/// The cache that writes a ticket, an image or an address, or checks one against itself.
#[derive(Clone, Copy)]
pub(in crate::kv) struct Own<'a> {
    pub identity: &'a CacheIdentity,
    pub layout: &'a Layout,
    /// Refuses KV of another layout instead of converting it.
    pub no_convert: bool,
}

/// Origin of a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kv) struct Origin {
    pub epoch: [u8; 16],
    pub handle: u64,
    pub lease_ms: u32,
}

/// Writes the sections that tickets and images have in common.
pub(in crate::kv) fn write_common(
    w: &mut Writer,
    library: &str,
    identity: &CacheIdentity,
    layout: &Layout,
    origin: &Origin,
) {
    w.section(LIBRARY, 0, clip(library).as_bytes());
    let mut section = Writer::default();
    let name = clip(&identity.name);
    section.bytes(&identity.fingerprint).bytes(&identity.tokenizer_digest);
    section.u16(name.len() as u16).bytes(name.as_bytes());
    w.section(IDENTITY, CRITICAL, &section.0);
    w.section(LAYOUT, CRITICAL, &layout.encode());
    let mut section = Writer::default();
    section.bytes(&origin.epoch).u64(origin.handle).u32(origin.lease_ms);
    w.section(ORIGIN, CRITICAL, &section.0);
}

/// Bytes of [`write_common`] for the text of this library version.
pub(in crate::kv) fn common_len(identity: &CacheIdentity, layout: &Layout) -> usize {
    let texts = clip(LIBRARY_TEXT).len() + 66 + clip(&identity.name).len();
    4 * SECTION_HEADER + texts + layout.encoded_len() + ORIGIN_LEN
}

/// Bytes of the sections about a sequence.
fn sequence_len(snapshot: &Snapshot) -> usize {
    let host_data = match snapshot.host_data.len() {
        0 => 0,
        n => SECTION_HEADER + n,
    };
    2 * SECTION_HEADER + sequence::encoded_len(snapshot) + CHAIN_LEN + host_data
}

/// Bytes of the sections that only an image has, those about its sequence included.
pub(in crate::kv) fn image_len(snapshot: &Snapshot, layout: &Layout) -> usize {
    sequence_len(snapshot) + SECTION_HEADER + BLOCKS_LEN + 4 * layout.n_groups()
}

/// Bytes of the sections that only a ticket has, those about its sequence included.
pub(in crate::kv) fn ticket_len(snapshot: &Snapshot, endpoints: usize) -> usize {
    sequence_len(snapshot) + 2 * SECTION_HEADER + STATE_LEN + endpoints
}

fn write_sequence(w: &mut Writer, snapshot: &Snapshot, chain: (u32, BlockHash)) {
    w.section(SEQUENCE, CRITICAL, &sequence::encode(snapshot));
    let mut section = Writer::default();
    section.u32(chain.0).bytes(&chain.1.0);
    w.section(CHAIN, CRITICAL, &section.0);
    if !snapshot.host_data.is_empty() {
        w.section(HOST_DATA, 0, &snapshot.host_data);
    }
}

pub(in crate::kv) fn write_image(w: &mut Writer, snapshot: &Snapshot, chain: (u32, BlockHash), blocks: &BlocksSection) {
    write_sequence(w, snapshot, chain);
    let mut section = Writer::default();
    section.bytes(&blocks.nonce).u32(blocks.count).u32(blocks.groups).u64(blocks.record_len);
    // Each group has its KV from the first block on.
    (0..blocks.groups).for_each(|_| _ = section.u32(0));
    w.section(BLOCKS, CRITICAL, &section.0);
}

pub(in crate::kv) fn write_ticket(
    w: &mut Writer,
    snapshot: &Snapshot,
    chain: (u32, BlockHash),
    streaming: bool,
    endpoints: &[u8],
) {
    write_sequence(w, snapshot, chain);
    w.section(STATE, CRITICAL, &(if streaming { STREAMING } else { 0 }).to_le_bytes());
    w.section(ENDPOINTS, CRITICAL, endpoints);
}

pub(in crate::kv) fn write_address(w: &mut Writer, endpoints: &[u8]) {
    w.section(ENDPOINTS, CRITICAL, endpoints);
}

pub(in crate::kv) struct BlocksSection {
    pub nonce: [u8; 32],
    pub count: u32,
    pub groups: u32,
    pub record_len: u64,
}

/// First 255 bytes of a text at most, cut between characters.
fn clip(text: &str) -> &str {
    let end = (0..=text.len().min(255)).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// The payload of each known section.
pub(in crate::kv) struct Sections<'a>([Option<&'a [u8]>; KNOWN]);

impl<'a> Sections<'a> {
    /// Finds the known sections; skips unknown ones unless they are marked as critical.
    pub fn parse(data: &'a [u8]) -> Result<Sections<'a>> {
        let mut found = [None; KNOWN];
        let mut r = Reader::new("sections", data);
        while r.left() > 0 {
            let (tag, flags, len) = (r.u16("tag")?, r.u16("flags")?, r.u32("length")?);
            let payload = r.bytes(len as usize, "payload")?;
            match found.get_mut(tag as usize).filter(|_| tag != 0) {
                Some(Some(_)) => bail!(Corrupt, "sections: tag {tag} twice"),
                Some(section) => *section = Some(payload),
                None if flags & CRITICAL != 0 => bail!(
                    Incompatible,
                    "section {tag}: marked as one that must be understood; this library knows 1 to {}",
                    KNOWN - 1
                ),
                None => {}
            }
        }
        Ok(Sections(found))
    }

    pub fn get(&self, tag: u16) -> Result<&'a [u8]> {
        match self.0[tag as usize] {
            Some(payload) => Ok(payload),
            None => bail!(Corrupt, "sections: tag {tag} is missing"),
        }
    }

    /// Name and version of the library that wrote the head, for messages.
    pub fn library(&self) -> String {
        self.0[LIBRARY as usize].map_or_else(|| "unknown".into(), |text| text.escape_ascii().to_string())
    }

    /// The snapshot, with the host's own data.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut snapshot = sequence::decode(self.get(SEQUENCE)?)?;
        let host_data = self.0[HOST_DATA as usize].unwrap_or_default();
        if host_data.len() > MAX_HOST_DATA {
            bail!(Corrupt, "host data: expected at most {MAX_HOST_DATA} bytes, found {}", host_data.len());
        }
        snapshot.host_data = host_data.to_vec();
        Ok(snapshot)
    }

    pub fn origin(&self) -> Result<Origin> {
        let mut r = Reader::new("origin", self.get(ORIGIN)?);
        let origin = Origin { epoch: r.array("epoch")?, handle: r.u64("handle")?, lease_ms: r.u32("lease")? };
        r.end()?;
        Ok(origin)
    }

    pub fn chain(&self) -> Result<(u32, BlockHash)> {
        let mut r = Reader::new("hash chain", self.get(CHAIN)?);
        let chain = (r.u32("full blocks")?, BlockHash(r.array("head")?));
        r.end()?;
        Ok(chain)
    }

    pub fn blocks(&self) -> Result<BlocksSection> {
        let mut r = Reader::new("blocks", self.get(BLOCKS)?);
        let (nonce, count, groups) = (r.array("nonce")?, r.u32("count")?, r.u32("cache groups")?);
        let record_len = r.u64("record length")?;
        for group in 0..groups {
            let first = r.u32("first block of a group")?;
            if first != 0 {
                bail!(Incompatible, "blocks: cache group {group}: first block: expected 0, found {first}");
            }
        }
        r.end()?;
        Ok(BlocksSection { nonce, count, groups, record_len })
    }

    /// Whether the KV of a ticket's prompt was still being computed when the ticket was written.
    pub fn streaming(&self) -> Result<bool> {
        let mut r = Reader::new("state", self.get(STATE)?);
        let flags = r.u32("flags")?;
        r.end()?;
        if flags & !STREAMING != 0 {
            bail!(Incompatible, "state: flags: expected 0 or {STREAMING}, found {flags:#x}");
        }
        Ok(flags & STREAMING != 0)
    }

    pub fn identity(&self) -> Result<CacheIdentity> {
        let mut r = Reader::new("identity", self.get(IDENTITY)?);
        let (fingerprint, tokenizer_digest) = (r.array("fingerprint")?, r.array("tokenizer digest")?);
        let n = r.u16("name length")?;
        let name = r.bytes(n as usize, "name")?.escape_ascii().to_string();
        r.end()?;
        Ok(CacheIdentity { fingerprint, tokenizer_digest, name })
    }

    /// Layout of the writer's KV. This version can read it, but a given cache may still refuse it.
    pub fn layout(&self) -> Result<Layout> {
        Layout::decode(self.get(LAYOUT)?).map_err(|error| match error.status {
            Status::Incompatible => crate::error!(Incompatible, "{error} (written by {})", self.library()),
            _ => error,
        })
    }

    fn differ<T>(&self, field: &str, expected: String, found: String) -> Result<T> {
        let (name, wrote) = (self.identity().map_or_else(|_| "unknown".into(), |id| id.name), self.library());
        bail!(Incompatible, "{field}: expected {expected}, found {found} (KV of {name:?}, written by {wrote})")
    }

    /// Geometry of the writer's KV, checked against `cache`. INCOMPATIBLE if model or tokenizer differ, if the KV cannot be
    /// converted, or if it differs from the cache's and the cache refuses to convert.
    pub fn check_compatible(&self, cache: &Own<'_>) -> Result<KvGeometry> {
        let (own, peer) = (cache.identity, self.identity()?);
        if peer.fingerprint != own.fingerprint {
            let expected = format!("{} ({})", hex(&own.fingerprint), own.name);
            return self.differ("model fingerprint", expected, hex(&peer.fingerprint));
        }
        if peer.tokenizer_digest != own.tokenizer_digest {
            return self.differ("tokenizer digest", hex(&own.tokenizer_digest), hex(&peer.tokenizer_digest));
        }
        let layout = self.layout()?;
        let (own, found) = (&cache.layout.geometry, layout.geometry);
        let strict = cache.no_convert;
        if strict && own.dtype != found.dtype {
            return self.differ("KV dtype", own.dtype.to_string(), found.dtype.to_string());
        }
        for (field, checked, expected, found) in [
            ("layers", true, own.layers, found.layers),
            ("KV heads", true, own.kv_heads, found.kv_heads),
            ("head dimension", true, own.head_dim, found.head_dim),
            ("block tokens", strict, own.block_tokens, found.block_tokens),
            ("tensor-parallel shards", strict, own.shards, found.shards),
        ] {
            if checked && expected != found {
                return self.differ(field, expected.to_string(), found.to_string());
            }
        }
        let mut kinds = cache.layout.kinds.iter().zip(&layout.kinds).enumerate();
        if let Some((layer, (own, found))) = kinds.find(|(_, (own, found))| own != found) {
            return self.differ(&format!("layer {layer}"), own.to_string(), found.to_string());
        }
        Ok(found)
    }
}

/// First eight bytes of a digest in hexadecimal, for messages.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>() + "…"
}
