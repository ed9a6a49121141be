//! The pool: the shards that its blocks lie in, blocks with their reference counts, the tables that hold them, and the prefix index.
//!
//! Knows block stores and wakers. Knows nothing of handles, tickets or images; the lock around its state belongs to the layer
//! above, which it reaches through [`PoolOwner`] only.

mod blocks;
mod convert;
mod events;
mod hash;
mod journal;
mod prefix;
mod shards;
mod state;
mod table;

pub(in crate::kv) use convert::Conversion;
pub(crate) use convert::mask;
pub use events::{EventBatch, EventLog, IndexEvent, IndexedBlock};
pub use hash::{BlockHash, HashChain};
pub use journal::IndexSnapshot;
pub(in crate::kv) use journal::{Journal, snapshot};
pub use shards::{Shard, ShardRange, Shards};
pub use state::Waker;
pub(in crate::kv) use state::{Owner, PoolState, Table, TableId, TableKey};
pub use table::BlockTable;
pub(in crate::kv) use table::PoolOwner;
