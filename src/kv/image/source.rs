//! Producing an image: any piece of it at any time, without making the whole.

use super::super::cache::{Cache, CacheIdentity};
use super::super::handle::{Body, ImageHead, KvId};
use super::envelope::{self, Keys, Kind, block_tag};
use super::layout::Layout;
use super::sections::{self, BlocksSection, Origin};
use super::wire::Writer;
use super::{LIBRARY_TEXT, TAG, record_len};
use crate::backend::{BlockId, BlockStore, KvGeometry};
use crate::error::Result;
use crate::kv::hash::HashChain;
use crate::sequence::Snapshot;
use crate::sync::Arc;

/// Everything of an image before the block records.
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
    sections::write_common(&mut w, library, identity, layout, origin);
    let chain = (chain.hashes().len() as u32, chain.head());
    sections::write_image(&mut w, snapshot, chain, &blocks);
    envelope::seal(Kind::Image, &w.0, u64::from(blocks.count) * blocks.record_len, keys)
}

/// The block records of one image.
pub(in crate::kv) struct Records<'a> {
    pub store: &'a dyn BlockStore,
    pub key: [u8; 32],
    /// Tokens of the sequence that are computed: slots of later ones are written as zeros, they may hold what
    /// other sequences left there.
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

/// Zeroes, in a piece at offset `at` of block `index`, the slots of tokens that are not computed, and what pads
/// stripes.
pub(crate) fn mask(geometry: &KvGeometry, index: usize, computed: u32, at: usize, piece: &mut [u8]) {
    let begin = index as u64 * u64::from(geometry.block_tokens);
    let valid = u64::from(computed).saturating_sub(begin).min(u64::from(geometry.block_tokens)) as usize;
    let unused = geometry.unused(valid);
    if unused.iter().all(|range| range.is_empty()) {
        return;
    }
    let stripe = geometry.stripe_bytes();
    let end = at + piece.len();
    for start in (at / stripe * stripe..end).step_by(stripe) {
        for range in &unused {
            let (from, to) = ((start + range.start).max(at), (start + range.end).min(end));
            if from < to {
                piece[from - at..to - at].fill(0);
            }
        }
    }
}

impl Cache {
    /// The head of a handle's image: made on first use, the same ever after.
    fn image_head(&self, id: KvId) -> Result<(ImageHead, Arc<Snapshot>)> {
        let (snapshot, origin, head) = self.origin(id)?;
        if let Some(head) = head {
            return Ok((head, snapshot));
        }
        let shared = &self.shared;
        let made = encode_head(LIBRARY_TEXT, &shared.identity, &shared.layout, &snapshot, &origin, &shared.keys);
        let head = shared.with(|state| {
            let (slot, _) = state.ready(id)?;
            let Body::Ready(export) = state.slots.body_mut(slot) else {
                crate::bail!(Internal, "{id}: ready, but without an export")
            };
            Ok(export.head.get_or_insert_with(|| Arc::new(made)).clone())
        })?;
        Ok((head, snapshot))
    }

    /// Key of the block tags, as the head's nonce says.
    fn block_key(&self, head: &[u8]) -> Result<[u8; 32]> {
        let sections = sections::Sections::parse(&head[envelope::ENVELOPE..head.len() - envelope::MAC])?;
        Ok(self.shared.keys.block_key(&sections.blocks()?.nonce))
    }

    /// Bytes of a handle's image.
    pub fn image_len(&self, id: KvId) -> Result<u64> {
        let (head, snapshot) = self.image_head(id)?;
        let blocks = snapshot.computed.div_ceil(self.shared.geometry.block_tokens) as usize;
        Ok((head.len() + blocks * record_len(&self.shared.geometry)) as u64)
    }

    /// Reads a piece of a handle's image from `offset` on and returns how much; 0 at the end. Repeated reads give
    /// the same bytes. The handle may be consumed or released meanwhile: a read that began is finished.
    pub fn read_image(&self, id: KvId, offset: u64, out: &mut [u8]) -> Result<usize> {
        let (head, snapshot) = self.image_head(id)?;
        let record = record_len(&self.shared.geometry);
        let blocks = snapshot.computed.div_ceil(self.shared.geometry.block_tokens) as usize;
        let total = head.len() + blocks * record;
        let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(total);
        let end = begin.saturating_add(out.len()).min(total);
        let (in_head, in_blocks) = out[..end - begin].split_at_mut(head.len().clamp(begin, end) - begin);
        in_head.copy_from_slice(&head[begin.min(head.len())..end.min(head.len())]);
        if in_blocks.is_empty() {
            return Ok(end - begin);
        }
        let from = begin.max(head.len()) - head.len();
        let first = from / record;
        let (_, pinned) = self.pin_range(id, first..(end - head.len()).div_ceil(record))?;
        let records = Records { store: &*self.shared.store, key: self.block_key(&head)?, computed: snapshot.computed };
        let (mut at, mut rest) = (from - first * record, in_blocks);
        for (i, &block) in pinned.blocks().iter().enumerate() {
            let (piece, next) = rest.split_at_mut(rest.len().min(record - at));
            records.copy(first + i, block, at, piece)?;
            self.count_out(piece.len().min((record - TAG).saturating_sub(at)));
            (at, rest) = (0, next);
        }
        Ok(end - begin)
    }

    /// Writes a whole image piece by piece. The handle is held from the beginning to the end.
    pub(in crate::kv) fn write_image(
        &self,
        id: KvId,
        mut sink: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<std::io::Result<()>> {
        let (snapshot, pinned) = self.pin(id)?;
        let (head, _) = self.image_head(id)?;
        let key = self.block_key(&head)?;
        let records = Records { store: &*self.shared.store, key, computed: snapshot.computed };
        let mut written = sink(&head);
        let mut record = vec![0; record_len(&self.shared.geometry)];
        for (index, &block) in pinned.blocks().iter().enumerate() {
            if written.is_err() {
                break;
            }
            records.copy(index, block, 0, &mut record)?;
            written = sink(&record);
            self.count_out(record.len() - TAG);
        }
        Ok(written)
    }
}
