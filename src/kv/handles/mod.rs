//! Handles: snapshots of sequences under leases, and how they come, go and end.
//!
//! Owns the cache's one lock, the lease timer, and everything about a handle: export, streaming, claims, imports, transfers,
//! tickets and images of it. Uses the pool below and the formats; knows nothing of connections, engines and models.

mod audit;
mod claim;
mod export;
mod file;
mod hold;
mod image;
mod import;
mod landing;
mod lease;
mod shared;
mod slots;
mod state;
mod streaming;
mod ticket;

pub use audit::Audit;
pub(in crate::kv) use audit::{audit, check};
pub use claim::Claim;
pub use export::{Consumed, KvInfo};
pub(crate) use hold::TransferHold;
pub(crate) use import::Incoming;
pub(in crate::kv) use lease::run as run_leases;
pub use shared::{CacheConfig, CacheShared};
pub(in crate::kv) use slots::{Body, End};
pub(in crate::kv) use state::CacheState;
pub use streaming::StreamingExport;
