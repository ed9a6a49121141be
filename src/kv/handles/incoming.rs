//! Block tables that imported KV is copied into.

use super::shared::CacheShared;
use crate::backend::{BlockId, DeviceMemory, KvGeometry};
use crate::bail;
use crate::error::Result;
use crate::kv::pool::{BlockTable, Conversion, HashChain, Owner};
use crate::sequence::Snapshot;
use crate::sync::Arc;
use crate::sys::bytes::ByteTarget;
use std::ops::Range;

/// Blocks being filled with imported KV, owned by a transfer until they are complete. Dropping it returns them to the pool.
pub(crate) struct Incoming {
    shared: Arc<CacheShared>,
    snapshot: Snapshot,
    chain: HashChain,
    table: BlockTable,
    conversion: Conversion,
    /// Number of blocks at the front that the prefix index had already, and that need no data.
    present: usize,
    share: bool,
}

impl Incoming {
    /// Allocates blocks for the computed tokens of `snapshot`, reusing those of its prefix that this cache has. The KV will
    /// come in blocks of layout `from`, and `chain` is of the computed tokens in blocks of that size.
    ///
    /// KV that is rounded by the conversion shares no blocks: otherwise results would depend on which blocks were here.
    pub(super) fn new(
        shared: &Arc<CacheShared>,
        mut snapshot: Snapshot,
        chain: HashChain,
        from: &KvGeometry,
    ) -> Result<Incoming> {
        let shared = shared.clone();
        let block_tokens = shared.geometry.block_tokens;
        let chain = match from.block_tokens == block_tokens {
            true => chain,
            false => HashChain::of(snapshot.cache_salt, block_tokens, &snapshot.tokens[..snapshot.computed as usize]),
        };
        let conversion = Conversion::new(from, &shared.geometry)?;
        snapshot.converted |= !conversion.is_exact();
        let share = snapshot.tokens.len() <= shared.config.share_up_to_tokens as usize && !snapshot.converted;
        let mut table = shared.table(Owner::Transfer);
        let present = if share { table.adopt_prefix(chain.hashes()) } else { 0 };
        let first_new = present as u32 * block_tokens;
        if !table.reserve(first_new, snapshot.computed) {
            let need = snapshot.computed.div_ceil(block_tokens) as usize;
            let available = shared.lock().pool.blocks.available();
            bail!(OutOfMemory, "KV import: needs {} blocks, {available} available", need - present);
        }
        Ok(Incoming { shared, snapshot, chain, table, conversion, present, share })
    }

    /// Number of the source's blocks that hold computed tokens.
    pub fn n_source_blocks(&self) -> usize {
        self.snapshot.computed.div_ceil(self.conversion.source().block_tokens) as usize
    }

    /// Index of the first source block that is needed, at least in part; [`Self::n_source_blocks`] if none is.
    pub fn first_needed(&self) -> usize {
        match self.first_token() {
            first if first >= self.snapshot.computed => self.n_source_blocks(),
            first => (first / self.conversion.source().block_tokens) as usize,
        }
    }

    /// Position of the first token whose KV is not here yet.
    fn first_token(&self) -> u32 {
        self.present as u32 * self.shared.geometry.block_tokens
    }

    /// Imports the whole block `index` of the source. Tokens that are here already are not written.
    pub fn write_block(&self, index: usize, source_block: &[u8]) -> Result<()> {
        let (store, table) = (&**self.shared.shards.store(), self.table.blocks());
        self.conversion.write(index, source_block, self.snapshot.computed, self.first_token(), store, table)?;
        self.count(source_block.len());
        Ok(())
    }

    /// Imports `blocks` of a source on a device by copies between devices. `ids` are the source's blocks from the sequence's
    /// first on. Returns false, having done nothing, if the devices cannot do that.
    pub fn take_from_device(&self, pool: &dyn DeviceMemory, ids: &[BlockId], blocks: Range<usize>) -> Result<bool> {
        let Some(own) = self.shared.shards.store().device_memory() else { return Ok(false) };
        let (tokens, bytes) = (self.first_token()..self.snapshot.computed, self.conversion.source().block_bytes());
        let count = blocks.len();
        let taken = self.conversion.write_on_device(blocks, tokens, (pool, ids), (own, self.table.blocks()))?;
        if taken {
            self.count(count * bytes);
        }
        Ok(taken)
    }

    /// Memory into which the source's block `index` can be copied as it is. None if it needs conversion or the pool is not in
    /// host memory.
    pub fn direct(&self, index: usize) -> Option<ByteTarget<'_>> {
        self.conversion.is_identity().then(|| self.shared.shards.store().target(self.table.blocks()[index])).flatten()
    }

    /// Counts KV bytes that arrived without [`Incoming::write_block`].
    pub fn count(&self, bytes: usize) {
        self.shared.counters.received(bytes);
    }

    /// Completes the import once all blocks of `whole` are here, and enters the full ones into the prefix index. `whole` is
    /// the expected sequence or a later state of it, with no more tokens computed.
    pub fn finish(mut self, mut whole: Snapshot) -> (Snapshot, BlockTable) {
        whole.converted |= self.snapshot.converted;
        let full = (whole.computed / self.shared.geometry.block_tokens) as usize;
        if self.share {
            let full = full.min(self.chain.hashes().len());
            self.table.publish(self.present..full, &self.chain, &whole.tokens);
        }
        (whole, self.table)
    }

    /// The expected sequence.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}
