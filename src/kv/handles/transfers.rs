//! Transfers between caches, as the two sides see them.

use super::hold::TransferHold;
use super::import::PendingImport;
use super::incoming::Incoming;
use super::shared::CacheShared;
use crate::backend::KvGeometry;
use crate::error::Result;
use crate::kv::format::KvId;
use crate::kv::pool::HashChain;
use crate::sequence::Snapshot;
use crate::sync::Arc;

/// The transfers into and out of a cache.
#[derive(Clone, Copy)]
pub(crate) struct Transfers<'a>(&'a Arc<CacheShared>);

impl<'a> Transfers<'a> {
    pub(in crate::kv) fn new(shared: &'a Arc<CacheShared>) -> Transfers<'a> {
        Transfers(shared)
    }

    /// Exporter: begins a transfer of a handle and renews its lease. `digest` is the ticket's digest of the sequence; CORRUPT
    /// unless it is the handle's too.
    pub fn hold(self, id: KvId, epoch: &[u8; 16], digest: &[u8; 32]) -> Result<TransferHold> {
        TransferHold::new(self.0, id, epoch, digest)
    }

    /// Exporter: holds free blocks for a self-test, at least one, at most `most` and half of the free ones, so that requests
    /// can continue.
    pub fn hold_scratch(self, most: usize) -> Result<TransferHold> {
        TransferHold::scratch(self.0, most)
    }

    /// Importer: makes a handle for an import that is about to start.
    pub fn begin_import(self, sequence: Arc<Snapshot>) -> Result<PendingImport> {
        PendingImport::begin(self.0, sequence)
    }

    /// Importer: allocates the blocks that the KV of `snapshot` comes into, from blocks of layout `from`, of whose size are
    /// the blocks of `chain`.
    pub fn receive(self, snapshot: Snapshot, chain: HashChain, from: &KvGeometry) -> Result<Incoming> {
        Incoming::new(self.0, snapshot, chain, from)
    }
}
