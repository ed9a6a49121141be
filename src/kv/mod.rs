//! The paged KV cache: who owns which block, the prefix index, handles under leases, tickets and images.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `cache` | [`Cache`]: creation, closing, audit, waiting for blocks |
//! | `export` | handles: export, consume, duplicate, renew, release |
//! | `import` | handles whose KV is still coming, and tables being filled for them |
//! | `convert` | blocks of one layout as blocks of another |
//! | `claim` | handles that are taken while their KV is still coming |
//! | `table` | [`BlockTable`]: the blocks of one sequence, returned on drop |
//! | `state` | what the one mutex guards |
//! | `blocks`, `prefix`, `hash` | the pool, the prefix index and its eviction order, block names |
//! | `handle` | ids and their slots |
//! | `filling` | handles whose prompt is still being computed |
//! | `hold` | blocks of a handle that a transfer reads, and the handle's end after it |
//! | `lease` | the timer thread |
//! | `audit` | every block by owner, counted without the reference counts |
//! | `image`, `ticket`, `endpoint` | the formats of docs/kv-image-format.md |
//!
//! A block is owned by the union of request tables, exports, transfers and the prefix index, and returns to the
//! pool when all of them have let go. The mutex is never held while blocks are copied or a waker is called: a
//! copy holds a *transfer* table on its blocks instead.

mod audit;
mod blocks;
mod cache;
mod claim;
mod convert;
pub(crate) mod endpoint;
mod export;
mod handle;
mod hash;
pub(crate) mod hold;
pub(crate) mod image;
pub(crate) mod import;
mod lease;
mod prefix;
mod state;
mod streaming;
mod table;
pub(crate) mod ticket;

#[cfg(test)]
pub(crate) mod tests;

pub use audit::Audit;
pub use cache::{Cache, CacheConfig, CacheIdentity, CacheStats};
pub use claim::Claim;
pub use export::{Consumed, KvInfo};
pub use handle::KvId;
pub use hash::{BlockHash, HashChain};
pub use image::LayerKind;
pub use streaming::StreamingExport;
pub use table::BlockTable;

/// Called once, from whatever thread made true what was waited for, with no lock held. Must not block.
pub type Waker = crate::sync::Arc<dyn Fn() + Send + Sync>;
