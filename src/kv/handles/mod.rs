//! Handles: snapshots of sequences under leases, and how they come, go and end.
//!
//! Owns the cache's one lock, the lease timer, and everything about a handle. Uses the pool below and the formats; knows nothing
//! of connections, engines and models.
//!
//! | file | contents |
//! | --- | --- |
//! | `table` | [`HandleTable`](table::HandleTable): ids, states and leases of all handles |
//! | `state` | everything under the lock: the pool, the table, and the changes that concern both |
//! | `shared` | the core of a cache: lock, identity, keys, block memory |
//! | `timer`, `audit`, `counters`, `endpoints` | small parts of the core |
//! | `operations` | [`Handles`]: operations of engines and hosts; `export`, `consume`, `claim`, `streaming` and `info` are its longer parts |
//! | `image` | [`Images`]: reading and importing images, and keeping them in files |
//! | `ticket` | [`Tickets`]: tickets of handles, the cache's address |
//! | `transfers` | [`Transfers`]: `hold` is the exporter's side of a transfer, `import` and `incoming` the importer's |

mod audit;
mod claim;
mod consume;
mod counters;
mod endpoints;
mod export;
mod hold;
mod image;
mod import;
mod incoming;
mod info;
mod operations;
mod shared;
mod state;
mod streaming;
mod table;
mod ticket;
mod timer;
mod transfers;

pub use audit::Audit;
pub(in crate::kv) use audit::{audit, check};
pub use claim::Claim;
pub use consume::Consumed;
pub(crate) use counters::Counters;
pub use counters::{BlockCounts, CacheStats};
pub(crate) use hold::TransferHold;
pub use image::Images;
pub(crate) use import::PendingImport;
pub(crate) use incoming::Incoming;
pub use info::KvInfo;
pub use operations::Handles;
pub use shared::CacheConfig;
pub(in crate::kv) use shared::CacheShared;
pub(in crate::kv) use state::CacheState;
pub use streaming::StreamingExport;
pub(in crate::kv) use table::Body;
pub(crate) use ticket::Tickets;
pub(in crate::kv) use timer::run as run_leases;
pub(crate) use transfers::Transfers;
