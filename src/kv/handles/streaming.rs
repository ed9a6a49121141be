//! Streaming exports: handles whose prompt is still being computed, and whose finished blocks a peer can pull meanwhile.

use super::export::export;
use super::shared::CacheShared;
use super::table::{Body, Progress};
use crate::bail;
use crate::error::{Error, Result, Status};
use crate::kv::format::KvId;
use crate::kv::pool::BlockTable;
use crate::sequence::Snapshot;
use crate::sync::Arc;

/// The engine's side of a handle whose prompt is still being computed. The engine keeps it beside the sequence's block table.
/// Dropping it fails the handle; once the table is dropped, peers get no more blocks of it.
pub struct StreamingExport {
    shared: Arc<CacheShared>,
    id: Option<KvId>,
}

impl StreamingExport {
    pub(super) fn begin(shared: &Arc<CacheShared>, prompt: Snapshot, table: &BlockTable) -> Result<StreamingExport> {
        let Some(table) = table.key().filter(|_| table.belongs_to(&**shared)) else {
            bail!(InvalidArgument, "KV export: the block table is another cache's, or was exported already");
        };
        let prompt = Arc::new(Snapshot { computed: 0, ..prompt });
        let id = shared.with(|state| {
            state.pool.tables[table as usize].computed = 0;
            let table = state.pool.table_id(table);
            state.expect(Body::StreamingExport(Progress { prompt, table, wakers: Vec::new() }))
        })?;
        Ok(StreamingExport { shared: shared.clone(), id: Some(id) })
    }

    /// Handle of this export.
    pub fn id(&self) -> KvId {
        self.id.unwrap_or(KvId(0))
    }

    /// Announces that the KV of tokens `0..computed` in the table is final, until the table is cleared or reserves them again.
    pub fn advance(&self, computed: u32) {
        let id = self.id();
        let grew = self.shared.with(|state| {
            let Ok(slot) = state.find_claimed(id) else { return false };
            let Body::StreamingExport(Progress { table, .. }) = *state.handles.body(slot) else { return false };
            state.pool.table_mut(table).is_some_and(|table| std::mem::replace(&mut table.computed, computed) < computed)
        });
        if grew {
            self.shared.progress.notify_all();
        }
    }

    /// Completes the export once the prompt is computed: the handle becomes an ordinary one, under a lease. If the host has
    /// released it meanwhile, the sequence gets a new handle.
    pub fn finish(mut self, snapshot: Snapshot, table: BlockTable) -> Result<KvId> {
        // `self.id` stays set until the export has succeeded, so that dropping `self` in between fails the handle.
        let finished = export(&self.shared, self.id, snapshot, table, None);
        match &finished {
            Ok(_) => {
                self.id = None;
                self.shared.progress.notify_all();
            }
            Err(error) => self.end(error.clone()),
        }
        finished
    }

    /// Ends the handle because its request ended before the prompt was computed. Importers get `error`.
    pub fn fail(mut self, error: Error) {
        self.end(error);
    }

    fn end(&mut self, error: Error) {
        let Some(id) = self.id.take() else { return };
        self.shared.with(|state| {
            if let Ok(slot) = state.find_claimed(id)
                && matches!(state.handles.body(slot), Body::StreamingExport(_))
            {
                state.fail(slot, error, self.shared.config.lease);
            }
        });
        self.shared.progress.notify_all();
    }
}

impl Drop for StreamingExport {
    fn drop(&mut self) {
        self.end(Error::new(Status::Internal, "the request that computed this handle's KV was lost"));
    }
}
