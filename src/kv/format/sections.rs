//! The sections of a head: their tags, and reading them.

use super::identity::CacheIdentity;
use super::layout::Layout;
use super::sequence;
use super::wire::Reader;
use crate::bail;
use crate::error::{Result, Status};
use crate::kv::pool::BlockHash;
use crate::sequence::{MAX_HOST_DATA, Snapshot};

/// Flag: a reader that does not know the section must refuse the whole head.
pub(super) const CRITICAL: u16 = 1;
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

/// Bit 0 of the state: the prompt is still being computed.
pub(super) const STREAMING: u32 = 1;

/// Origin of a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kv) struct Origin {
    pub epoch: [u8; 16],
    pub handle: u64,
    pub lease_ms: u32,
}

/// Description of an image's block records.
pub(in crate::kv) struct BlocksSection {
    pub nonce: [u8; 32],
    pub count: u32,
    pub groups: u32,
    pub record_len: u64,
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
}
