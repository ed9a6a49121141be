//! Blocks that are sent over a connection, and the pattern of those of a self-test.

use super::shared::ServerShared;
use super::transfers::OpenTransfer;
use crate::backend::{BlockId, BlockStore};
use crate::error::Result;
use crate::kv::BlockTable;
use crate::kv::mask;
use crate::sys::bytes::ByteSource;
use crate::transport::net::message::Message;
use crate::transport::net::{Channel, Patience};
use std::sync::Arc;

/// The content of block number `index` of a self-test.
pub(in crate::transport) fn pattern(seed: &[u8; 32], index: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new_keyed(seed);
    hasher.update(&(index as u64).to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Blocks that are being sent.
pub(super) struct Blocks {
    pub shared: Arc<ServerShared>,
    pub transfer: Arc<OpenTransfer>,
    pub pinned: BlockTable,
    pub first: usize,
    /// Computed tokens of the sequence, once all of it is there. Slots beyond them are sent as zeros.
    pub computed: Option<u32>,
}

impl Blocks {
    pub fn send(&self, channel: &mut Channel, patience: Patience<'_>) -> Result<()> {
        let store = self.shared.cache.store();
        let ids = self.pinned.blocks();
        let copies = match self.copies(store) {
            Ok(copies) => copies,
            Err(error) => return channel.send(&Message::Failed(error), patience),
        };
        let bytes = (ids.len() * store.geometry().block_bytes()) as u64;
        channel.send(&Message::Data { bytes }, patience)?;
        let sources: Vec<ByteSource<'_>> = ids
            .iter()
            .zip(&copies)
            .filter_map(|(&id, copy)| copy.as_deref().map(ByteSource::of).or_else(|| store.source(id)))
            .collect();
        let sent = |bytes| {
            self.transfer.touch();
            self.shared.cache.counters().sent(bytes);
        };
        channel.send_blocks(&sources, sent, patience)
    }

    /// Copies of the blocks that cannot be sent from where they lie: those with unused slots, and those that are not in
    /// host memory.
    fn copies(&self, store: &dyn BlockStore) -> Result<Vec<Option<Vec<u8>>>> {
        let geometry = *store.geometry();
        let (size, tokens) = (geometry.block_bytes(), u64::from(geometry.block_tokens));
        let partial = |index: usize| self.computed.is_some_and(|n| (index as u64 + 1) * tokens > u64::from(n));
        let copy = |(i, &id): (usize, &BlockId)| {
            let index = self.first + i;
            if !partial(index) && store.source(id).is_some() {
                return Ok(None);
            }
            let mut copy = vec![0; size];
            store.read(id, 0, &mut copy)?;
            if let Some(computed) = self.computed {
                mask(&geometry, index, computed, 0, &mut copy);
            }
            Ok(Some(copy))
        };
        self.pinned.blocks().iter().enumerate().map(copy).collect()
    }
}
