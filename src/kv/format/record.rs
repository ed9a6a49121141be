//! Images as bytes: the head, and block records that can be produced piece by piece.

use super::envelope::{self, ENVELOPE, Keys, Kind, MAC, block_tag};
use super::identity::CacheIdentity;
use super::layout::Layout;
use super::sections::{BlocksSection, Origin};
use super::wire::Writer;
use super::writing;
use crate::backend::{BlockId, BlockStore, KvGeometry};
use crate::error::Result;
use crate::kv::pool::{HashChain, mask};
use crate::sequence::Snapshot;

/// Bytes of a block record's tag.
pub(in crate::kv) const TAG: usize = 32;

/// Bytes of a block record.
pub(in crate::kv) fn record_len(geometry: &KvGeometry) -> usize {
    geometry.block_bytes() + TAG
}

/// Size of an image's head in bytes: everything before the block records.
pub(in crate::kv) fn head_len(identity: &CacheIdentity, layout: &Layout, snapshot: &Snapshot) -> usize {
    ENVELOPE + writing::common_len(identity, layout) + writing::image_len(snapshot, layout) + MAC
}

/// Writes the head of an image: everything before the block records.
pub(in crate::kv) fn encode_head(
    library: &str,
    identity: &CacheIdentity,
    layout: &Layout,
    snapshot: &Snapshot,
    origin: &Origin,
    keys: &Keys,
) -> Vec<u8> {
    let geometry = &layout.geometry;
    let computed = &snapshot.tokens[..snapshot.computed as usize];
    let chain = HashChain::of(snapshot.cache_salt, geometry.block_tokens, computed);
    let blocks = BlocksSection {
        nonce: keys.image_nonce(&origin.epoch, origin.handle),
        count: snapshot.computed.div_ceil(geometry.block_tokens),
        groups: layout.n_groups() as u32,
        record_len: record_len(geometry) as u64,
    };
    let mut w = Writer::default();
    writing::write_common(&mut w, library, identity, layout, origin);
    let chain = (chain.hashes().len() as u32, chain.head());
    writing::write_image(&mut w, snapshot, chain, &blocks);
    envelope::seal(Kind::Image, &w.0, u64::from(blocks.count) * blocks.record_len, keys)
}

/// The block records of one image.
pub(in crate::kv) struct Records<'a> {
    pub store: &'a dyn BlockStore,
    pub key: [u8; 32],
    /// Number of computed tokens. Slots of later tokens are written as zeros, because they may hold another sequence's KV.
    pub computed: u32,
}

impl Records<'_> {
    /// Fills `out` with bytes of record `index` from offset `at`; `block` holds its data.
    pub fn copy(&self, index: usize, block: BlockId, at: usize, out: &mut [u8]) -> Result<()> {
        let size = self.store.geometry().block_bytes();
        let end = at + out.len();
        if at < size {
            let data = &mut out[..end.min(size) - at];
            self.read(index, block, at, data)?;
        }
        if end > size {
            let tag = if at == 0 {
                block_tag(&self.key, index, &out[..size])
            } else {
                let mut whole = vec![0; size];
                self.read(index, block, 0, &mut whole)?;
                block_tag(&self.key, index, &whole)
            };
            let from = at.max(size);
            out[from - at..].copy_from_slice(&tag.as_bytes()[from - size..end - size]);
        }
        Ok(())
    }

    fn read(&self, index: usize, block: BlockId, at: usize, out: &mut [u8]) -> Result<()> {
        self.store.read(block, at, out)?;
        mask(self.store.geometry(), index, self.computed, at, out);
        Ok(())
    }
}
