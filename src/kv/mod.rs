//! The paged KV cache: who owns which block, the prefix index, handles under leases, tickets and images.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `cache` | [`Cache`]: creation, closing, audit, waiting for blocks |
//! | `export` | handles: export, consume, duplicate, renew, release |
//! | `import` | handles whose KV is still coming, and tables being filled for them |
//! | `claim` | handles that are taken while their KV is still coming |
//! | `table` | [`BlockTable`]: the blocks of one sequence, returned on drop |
//! | `state` | what the one mutex guards |
//! | `blocks`, `prefix`, `hash` | the pool, the prefix index and its eviction order, block names |
//! | `handle` | ids and their slots |
//! | `lease`, `worker` | the timer thread and the transfer thread |
//! | `audit` | every block by owner, counted without the reference counts |
//! | `image`, `ticket` | the formats of docs/kv-image-format.md |
//!
//! A block is owned by the union of request tables, exports, transfers and the prefix index, and returns to the
//! pool when all of them have let go. The mutex is never held while blocks are copied or a waker is called: a
//! copy holds a *transfer* table on its blocks instead.

mod audit;
mod blocks;
mod cache;
mod claim;
mod export;
mod handle;
mod hash;
pub(crate) mod image;
pub(crate) mod import;
mod lease;
mod prefix;
mod state;
mod table;
pub(crate) mod ticket;
mod worker;

#[cfg(test)]
pub(crate) mod tests;

pub use audit::Audit;
pub use cache::{Cache, CacheConfig, CacheIdentity, CacheStats};
pub use claim::Claim;
pub use export::{Consumed, KvInfo};
pub use handle::KvId;
pub use hash::{BlockHash, HashChain};
pub use table::BlockTable;

/// Called once, from whatever thread made true what was waited for, with no lock held. Must not block.
pub type Waker = crate::sync::Arc<dyn Fn() + Send + Sync>;
