//! Reading the image of a handle piece by piece, without building all of it in memory.

use super::shared::CacheShared;
use super::slots::{Body, ImageHead, KvId};
use crate::error::Result;
use crate::kv::format::{ENVELOPE, LIBRARY_TEXT, MAC, Records, Sections, TAG, encode_head, record_len};
use crate::sequence::Snapshot;
use crate::sync::Arc;

impl CacheShared {
    /// Head of a handle's image, made on first use and never changed.
    fn image_head(&self, id: KvId) -> Result<(ImageHead, Arc<Snapshot>)> {
        let (snapshot, origin, head) = self.origin(id)?;
        if let Some(head) = head {
            return Ok((head, snapshot));
        }
        let shared = self;
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

    /// Key of the block tags, derived from the nonce in the head.
    fn block_key(&self, head: &[u8]) -> Result<[u8; 32]> {
        let sections = Sections::parse(&head[ENVELOPE..head.len() - MAC])?;
        Ok(self.keys.block_key(&sections.blocks()?.nonce))
    }

    /// Size of a handle's image in bytes.
    pub fn image_len(&self, id: KvId) -> Result<u64> {
        let (head, snapshot) = self.image_head(id)?;
        let blocks = snapshot.computed.div_ceil(self.geometry.block_tokens) as usize;
        Ok((head.len() + blocks * record_len(&self.geometry)) as u64)
    }

    /// Reads a piece of a handle's image at byte `offset` into `out`, and returns its length; 0 at the end. Repeated reads
    /// give the same bytes. A read that has begun completes even if the handle is consumed or released meanwhile.
    pub fn read_image(self: &Arc<Self>, id: KvId, offset: u64, out: &mut [u8]) -> Result<usize> {
        let (head, snapshot) = self.image_head(id)?;
        let record = record_len(&self.geometry);
        let blocks = snapshot.computed.div_ceil(self.geometry.block_tokens) as usize;
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
        let records =
            Records { store: &**self.shards.store(), key: self.block_key(&head)?, computed: snapshot.computed };
        let (mut at, mut rest) = (from - first * record, in_blocks);
        for (i, &block) in pinned.blocks().iter().enumerate() {
            let (piece, next) = rest.split_at_mut(rest.len().min(record - at));
            records.copy(first + i, block, at, piece)?;
            self.count_out(piece.len().min((record - TAG).saturating_sub(at)));
            (at, rest) = (0, next);
        }
        Ok(end - begin)
    }

    /// Writes a whole image piece by piece, and holds the handle's blocks from the beginning to the end.
    pub(in crate::kv) fn write_image(
        self: &Arc<Self>,
        id: KvId,
        mut sink: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<std::io::Result<()>> {
        let (snapshot, pinned) = self.pin(id)?;
        let (head, _) = self.image_head(id)?;
        let key = self.block_key(&head)?;
        let records = Records { store: &**self.shards.store(), key, computed: snapshot.computed };
        let mut written = sink(&head);
        let mut record = vec![0; record_len(&self.geometry)];
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
