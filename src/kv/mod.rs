//! The paged KV cache: who owns which block, the prefix index, handles under leases, tickets and images.
//!
//! | module | contents | uses |
//! | --- | --- | --- |
//! | `pool` | shards (one per device), blocks, block tables, the prefix index, conversion between layouts | block stores |
//! | `format` | images, tickets and addresses as bytes | hash chains and masks of `pool` |
//! | `handles` | the lock; slots, leases, export, import, streaming, transfers, audit | `pool`, `format` |
//! | `cache` | [`Cache`]: creation, closing, and questions about a cache as a whole | all of them |
//!
//! Requests, exports, transfers and the prefix index can own a block together; it returns to the pool when all of them
//! have released it. The lock is never held while blocks are copied or a waker is called: a copy keeps its blocks alive
//! with a *transfer* table instead.

mod cache;
pub(crate) mod format;
mod handles;
mod pool;

#[cfg(test)]
pub(crate) mod tests;

pub use cache::Cache;
pub use format::{CacheIdentity, KvId, LayerKind};
pub use handles::{
    Audit, BlockCounts, CacheConfig, CacheStats, Claim, Consumed, Handles, Images, KvInfo, StreamingExport,
};
pub(crate) use handles::{Incoming, PendingImport, TransferHold};
pub(crate) use pool::mask;
pub use pool::{
    BlockHash, BlockTable, EventBatch, HashChain, IndexEvent, IndexSnapshot, IndexedBlock, Shard, ShardRange, Shards,
    Waker,
};
