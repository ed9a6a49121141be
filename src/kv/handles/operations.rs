//! Operations of engines and hosts on the handles of a cache.

use std::time::Duration;

use super::claim::Claim;
use super::consume::{Consumed, consume};
use super::export::export;
use super::info::{KvInfo, info};
use super::shared::CacheShared;
use super::state::CacheState;
use super::streaming::StreamingExport;
use super::table::{Body, End};
use crate::bail;
use crate::error::Result;
use crate::kv::format::KvId;
use crate::kv::pool::{BlockTable, HashChain, Owner, Waker};
use crate::sequence::{MAX_HOST_DATA, Snapshot};
use crate::sync::Arc;

/// The handles of a cache.
#[derive(Clone, Copy)]
pub struct Handles<'a>(&'a Arc<CacheShared>);

impl<'a> Handles<'a> {
    pub(in crate::kv) fn new(shared: &'a Arc<CacheShared>) -> Handles<'a> {
        Handles(shared)
    }

    /// Makes a handle of a sequence at a step boundary. The table moves into it, so no KV is copied, whatever the length. If
    /// this fails, the table's blocks return to the pool. A `lease` of None is the cache's.
    pub fn export(self, snapshot: Snapshot, table: BlockTable, lease: Option<Duration>) -> Result<KvId> {
        export(self.0, None, snapshot, table, lease)
    }

    /// Makes a handle of a prompt whose KV will be computed into `table`. It has no lease: it ends with the request.
    pub fn begin_streaming_export(self, prompt: Snapshot, table: &BlockTable) -> Result<StreamingExport> {
        StreamingExport::begin(self.0, prompt, table)
    }

    /// Takes the sequence out of a handle. If several callers try, exactly one gets it and the others get EXPIRED. If the
    /// handle's import failed, returns that failure.
    pub fn consume(self, id: KvId) -> Result<Consumed> {
        consume(self.0, id, CacheState::find)
    }

    /// Takes a handle whose KV may still be on the way. `waker` is called once when the KV arrives or fails or the handle
    /// ends, but not if that has happened already. If several callers try, exactly one gets it and the others get EXPIRED.
    pub fn claim(self, id: KvId, waker: Waker) -> Result<Claim> {
        Claim::new(self.0, id, waker)
    }

    /// Snapshot of a handle, without consuming it. None while its KV is being imported or computed.
    pub fn peek(self, id: KvId) -> Result<Option<Arc<Snapshot>>> {
        self.0.with(|state| {
            let slot = state.find(id)?;
            match state.handles.body(slot) {
                Body::Ready(export) => Ok(Some(export.snapshot.clone())),
                Body::Failed(failed) => Err(failed.error.clone()),
                Body::Importing(_) | Body::StreamingExport(_) | Body::Vacant => Ok(None),
            }
        })
    }

    /// Sequence of a handle: as its ticket gives it while the KV is being imported or after that failed, the prompt while its
    /// KV is being computed, else the exported snapshot.
    pub fn sequence(self, id: KvId) -> Result<Arc<Snapshot>> {
        self.0.with(|state| {
            let slot = state.find(id)?;
            match state.handles.body(slot).sequence() {
                Some(sequence) => Ok(sequence.clone()),
                None => bail!(Internal, "{id}: live, but its slot is empty"),
            }
        })
    }

    /// Sequence of a handle whose KV failed to arrive, so that the caller can compute it again. None for other handles.
    pub fn failed_sequence(self, id: KvId) -> Option<Arc<Snapshot>> {
        self.0.with(|state| {
            let slot = state.find(id).ok()?;
            match state.handles.body(slot) {
                Body::Failed(failed) => Some(failed.sequence.clone()),
                _ => None,
            }
        })
    }

    /// Describes a handle.
    pub fn info(self, id: KvId) -> Result<KvInfo> {
        info(self.0, id)
    }

    /// Replaces the host data of a handle's sequence. INVALID_ARGUMENT once the handle's image was read, because an image
    /// never changes.
    pub fn set_host_data(self, id: KvId, data: &[u8]) -> Result<()> {
        if data.len() > MAX_HOST_DATA {
            bail!(InvalidArgument, "host data: expected at most {MAX_HOST_DATA} bytes, found {}", data.len());
        }
        self.0.with(|state| {
            let slot = state.find(id)?;
            state.handles.set_host_data(id, slot, data)
        })
    }

    /// Stores with a handle the hash of its computed tokens, if `chain` goes that far.
    pub fn set_chain(self, id: KvId, chain: &HashChain) {
        self.0.with(|state| {
            if let Ok((slot, export)) = state.ready(id) {
                let chain = chain.prefix(export.snapshot.computed as usize);
                state.handles.set_chain(slot, chain);
            }
        });
    }

    /// Makes another handle of the same sequence, with a fresh lease. The blocks are shared and copied when written.
    pub fn duplicate(self, id: KvId) -> Result<KvId> {
        self.0.with(|state| {
            let (_, export) = state.ready(id)?;
            let (snapshot, blocks, lease) = (export.snapshot.clone(), export.blocks.clone(), export.lease);
            let chain = export.chain;
            let table = state.pool.share(Owner::Export, &blocks);
            let issued = state.export(snapshot, table, blocks, lease);
            match issued {
                Err(_) => state.pool.drop_table(table),
                Ok(id) => {
                    let (slot, _) = state.ready(id)?;
                    state.handles.set_chain(slot, chain);
                }
            }
            issued
        })
    }

    /// Makes the lease end `lease` from now. The lease of an import begins when its KV has arrived.
    pub fn renew(self, id: KvId, lease: Duration) -> Result<()> {
        self.0.with(|state| {
            let slot = state.find(id)?;
            state.handles.renew(slot, lease);
            Ok(())
        })
    }

    /// Ends a handle. Its blocks return to the pool once no transfer uses them. Succeeds on handles that have ended already;
    /// NOT_FOUND for a number that was never a handle of this cache.
    pub fn release(self, id: KvId) -> Result<()> {
        self.0.with(|state| {
            if !state.handles.was_issued(id) {
                bail!(NotFound, "{id}: never issued by this cache");
            }
            if let Ok(slot) = state.find(id) {
                state.end_and_free(slot, End::Released);
            }
            Ok(())
        })
    }
}
