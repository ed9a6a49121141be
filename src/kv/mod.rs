//! The paged KV cache: who owns which block, the prefix index, handles under leases, tickets and images.
//!
//! | room | what is in it | uses |
//! | --- | --- | --- |
//! | `pool` | blocks, block tables, the prefix index, conversion between layouts | block stores |
//! | `format` | images, tickets and addresses as bytes | hash chains and masks of `pool` |
//! | `handles` | the one lock; slots, leases, export, import, streaming, transfers, audit | `pool`, `format` |
//! | `cache` | [`Cache`]: creation, closing, and what is asked about a cache as a whole | all of them |
//!
//! A block is owned by the union of request tables, exports, transfers and the prefix index, and returns to the
//! pool when all of them have let go. The lock is never held while blocks are copied or a waker is called: a
//! copy holds a *transfer* table on its blocks instead.

mod cache;
pub(crate) mod format;
mod handles;
mod pool;

#[cfg(test)]
pub(crate) mod tests;

pub use cache::{Cache, CacheStats};
pub use format::{CacheIdentity, KvId, LayerKind};
pub use handles::{Audit, CacheConfig, Claim, Consumed, KvInfo, StreamingExport};
pub(crate) use handles::{Incoming, TransferHold};
pub(crate) use pool::mask;
pub use pool::{BlockHash, BlockTable, HashChain, Waker};
