//! Reading the image of a handle piece by piece, without building all of it in memory.

use crate::error::Result;
use crate::kv::format::{ENVELOPE, KvId, LIBRARY_TEXT, MAC, Origin, Records, Sections, TAG, encode_head, record_len};
use crate::kv::handles::shared::CacheShared;
use crate::kv::handles::table::ImageHead;
use crate::kv::pool::{BlockTable, Owner};
use crate::sequence::Snapshot;
use crate::sync::{Arc, Instant};
use std::ops::Range;

/// The image of one handle.
pub struct ImageReader<'a> {
    shared: &'a Arc<CacheShared>,
    id: KvId,
    snapshot: Arc<Snapshot>,
    head: ImageHead,
}

impl<'a> ImageReader<'a> {
    /// The image of `id`. Its head is made on first use and never changes.
    pub fn new(shared: &'a Arc<CacheShared>, id: KvId) -> Result<ImageReader<'a>> {
        let (snapshot, origin, head) = shared.with(|state| {
            let (_, export) = state.ready(id)?;
            let left = export.deadline.saturating_duration_since(Instant::now());
            let lease_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
            Ok((export.snapshot.clone(), Origin { epoch: shared.epoch, handle: id.0, lease_ms }, export.head.clone()))
        })?;
        let head = match head {
            Some(head) => head,
            None => {
                let (identity, layout) = (&shared.identity, &shared.layout);
                let made = encode_head(LIBRARY_TEXT, identity, layout, &snapshot, &origin, &shared.keys);
                shared.with(|state| {
                    let (slot, _) = state.ready(id)?;
                    Ok(state.handles.keep_head(slot, made))
                })?
            }
        };
        Ok(ImageReader { shared, id, snapshot, head })
    }

    /// Size of the image in bytes.
    pub fn len(&self) -> usize {
        let blocks = self.snapshot.computed.div_ceil(self.shared.geometry.block_tokens) as usize;
        self.head.len() + blocks * record_len(&self.shared.geometry)
    }

    /// Copies the image from byte `offset` on into `out`, and returns how much; 0 at the end. A read that has begun completes
    /// even if the handle is consumed or released meanwhile.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let (head, record) = (&self.head, record_len(&self.shared.geometry));
        let total = self.len();
        let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(total);
        let end = begin.saturating_add(out.len()).min(total);
        let (in_head, in_blocks) = out[..end - begin].split_at_mut(head.len().clamp(begin, end) - begin);
        in_head.copy_from_slice(&head[begin.min(head.len())..end.min(head.len())]);
        if in_blocks.is_empty() {
            return Ok(end - begin);
        }
        let from = begin.max(head.len()) - head.len();
        let first = from / record;
        let pinned = self.pin(first..(end - head.len()).div_ceil(record))?;
        let records = self.records()?;
        let (mut at, mut rest) = (from - first * record, in_blocks);
        for (i, &block) in pinned.blocks().iter().enumerate() {
            let (piece, next) = rest.split_at_mut(rest.len().min(record - at));
            records.copy(first + i, block, at, piece)?;
            self.shared.counters.sent(piece.len().min((record - TAG).saturating_sub(at)));
            (at, rest) = (0, next);
        }
        Ok(end - begin)
    }

    /// Writes the whole image piece by piece, and holds the handle's blocks from the beginning to the end.
    pub fn write_to(&self, mut sink: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<std::io::Result<()>> {
        let pinned = self.pin(0..usize::MAX)?;
        let records = self.records()?;
        let mut written = sink(&self.head);
        let mut record = vec![0; record_len(&self.shared.geometry)];
        for (index, &block) in pinned.blocks().iter().enumerate() {
            if written.is_err() {
                break;
            }
            records.copy(index, block, 0, &mut record)?;
            written = sink(&record);
            self.shared.counters.sent(record.len() - TAG);
        }
        Ok(written)
    }

    /// The block records. Their tags depend on the nonce in the head.
    fn records(&self) -> Result<Records<'a>> {
        let sections = Sections::parse(&self.head[ENVELOPE..self.head.len() - MAC])?;
        let key = self.shared.keys.block_key(&sections.blocks()?.nonce);
        Ok(Records { store: &**self.shared.shards.store(), key, computed: self.snapshot.computed })
    }

    /// A table that keeps the handle's blocks in `range`, clamped to those there are, alive during a transfer.
    fn pin(&self, range: Range<usize>) -> Result<BlockTable> {
        let (key, blocks) = self.shared.with(|state| {
            let (_, export) = state.ready(self.id)?;
            let (begin, end) = (range.start.min(export.blocks.len()), range.end.min(export.blocks.len()));
            let blocks = export.blocks[begin..end].to_vec();
            Ok((state.pool.share(Owner::Transfer, &blocks), blocks))
        })?;
        Ok(BlockTable::new(self.shared.clone(), key, blocks))
    }
}
