//! Imports by ticket: handles whose KV has not arrived yet.

use super::shared::CacheShared;
use super::table::{Body, End, Importing};
use crate::bail;
use crate::error::Result;
use crate::kv::format::KvId;
use crate::kv::pool::BlockTable;
use crate::sequence::Snapshot;
use crate::sync::Arc;

/// The importer's side of a handle whose KV has not arrived. Dropping it releases the handle, unless the import was finished.
pub(crate) struct PendingImport {
    shared: Arc<CacheShared>,
    id: KvId,
    finished: bool,
}

impl PendingImport {
    /// Makes a handle for an import that is about to start.
    pub(super) fn begin(shared: &Arc<CacheShared>, sequence: Arc<Snapshot>) -> Result<PendingImport> {
        let id = shared.with(|state| state.expect(Body::Importing(Importing { sequence, wakers: Vec::new() })))?;
        Ok(PendingImport { shared: shared.clone(), id, finished: false })
    }

    /// Handle of this import.
    pub fn id(&self) -> KvId {
        self.id
    }

    /// Whether a request has taken the handle.
    pub fn is_claimed(&self) -> bool {
        self.shared.with(|state| state.find_claimed(self.id).is_ok_and(|slot| state.handles.is_claimed(slot)))
    }

    /// Checks that [`PendingImport::finish`] would accept the KV. Called before the exporter's handle is ended.
    pub fn check(&self) -> Result<()> {
        self.shared.with(|state| state.find_claimed(self.id).map(drop))
    }

    /// Ends the import: the handle becomes ready or stores the failure, its lease begins, and its waiters are woken. Returns
    /// the outcome, which is an error too if the handle ended meanwhile.
    pub fn finish(mut self, outcome: Result<(Snapshot, BlockTable)>) -> Result<()> {
        self.finished = true;
        // Taken apart here, because a table must not be dropped under the lock.
        let outcome = outcome.and_then(|(snapshot, table)| match table.into_parts() {
            (Some(key), blocks) => Ok((Arc::new(snapshot), key, blocks)),
            (None, _) => bail!(Internal, "{}: its block table was exported already", self.id),
        });
        self.shared.with(|state| {
            let slot = match state.find_claimed(self.id) {
                Ok(slot) => slot,
                Err(error) => {
                    if let Ok((_, key, _)) = outcome {
                        state.pool.drop_table(key);
                    }
                    return Err(error);
                }
            };
            let lease = self.shared.config.lease;
            match outcome {
                Ok((snapshot, key, blocks)) => {
                    state.arrive(slot, snapshot, key, blocks, lease);
                    Ok(())
                }
                Err(error) => {
                    state.fail(slot, error.clone(), lease);
                    Err(error)
                }
            }
        })
    }
}

impl Drop for PendingImport {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.shared.with(|state| {
            if let Ok(slot) = state.find_claimed(self.id) {
                state.end_and_free(slot, End::Released);
            }
        });
    }
}
