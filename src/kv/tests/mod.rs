//! Tests of what a cache does; those of images that need no internals are in `tests/kv_image.rs`.

mod claims;
mod convert;
mod events;
mod format;
mod handles;
pub(crate) mod held;
pub(crate) mod model;
mod ownership;
mod random;
mod shards;
#[cfg(feature = "shuttle")]
mod shuttle;
pub(crate) mod store;
mod streaming;

use crate::backend::{BlockId, BlockStore, KvGeometry};
use crate::error::Result;
use crate::kv::{Audit, BlockTable, Cache, CacheConfig, CacheIdentity, Consumed, HashChain, KvId, Shards};
use crate::sequence::{SamplingParams, Snapshot};
use crate::tensor::Dtype;
use model::{Seq, cache};

/// Asserts that the bookkeeping holds together.
pub(crate) fn sound(cache: &Cache) -> Audit {
    cache.check().unwrap();
    let audit = cache.audit();
    assert_eq!(audit.leaked, 0);
    audit
}

/// Consumes a handle that must be ready.
pub(crate) fn consume(cache: &Cache, id: KvId) -> crate::error::Result<Seq> {
    match cache.handles().consume(id)? {
        Consumed::Ready(snapshot, table) => Ok(Seq { snapshot, table }),
        Consumed::Pending => panic!("{id} is pending"),
    }
}
