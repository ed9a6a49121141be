//! Streaming exports: handles whose prompt is still being computed, and whose finished blocks a peer can pull meanwhile.

use crate::sync::Arc;

use super::shared::CacheShared;
use super::slots::{Body, KvId, Progress};
use crate::bail;
use crate::error::{Error, Result, Status};
use crate::kv::pool::BlockTable;
use crate::sequence::Snapshot;

/// The engine's side of a handle whose prompt is still being computed. The engine keeps it beside the sequence's block table.
/// Dropping it fails the handle; once the table is dropped, peers get no more blocks of it.
pub struct StreamingExport {
    shared: Arc<CacheShared>,
    id: Option<KvId>,
}

impl CacheShared {
    /// Makes a handle of a prompt whose KV will be computed into `table`. It has no lease: it ends with the request.
    pub fn begin_streaming_export(self: &Arc<Self>, prompt: Snapshot, table: &BlockTable) -> Result<StreamingExport> {
        let Some(table) = table.key().filter(|_| table.belongs_to(&**self)) else {
            bail!(InvalidArgument, "KV export: the block table is another cache's, or was exported already");
        };
        let prompt = Arc::new(Snapshot { computed: 0, ..prompt });
        let id = self.with(|state| {
            if state.pool.closed {
                bail!(Shutdown, "KV export: the cache is closed");
            }
            state.pool.tables[table as usize].computed = 0;
            let table = state.pool.table_id(table);
            Ok(state.slots.issue(Body::StreamingExport(Progress { prompt, table, wakers: Vec::new() }))?.0)
        })?;
        Ok(StreamingExport { shared: self.clone(), id: Some(id) })
    }
}

impl StreamingExport {
    /// Handle of this export.
    pub fn id(&self) -> KvId {
        self.id.unwrap_or(KvId(0))
    }

    /// Announces that the KV of tokens `0..computed` in the table is final, until the table is cleared or reserves them again.
    pub fn advance(&self, computed: u32) {
        let id = self.id();
        let grew = self.shared.with(|state| {
            let Ok(slot) = state.find_claimed(id) else { return false };
            let Body::StreamingExport(Progress { table, .. }) = *state.slots.body(slot) else { return false };
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
        let finished = self.shared.export_as(self.id, snapshot, table, None);
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
                && let Body::StreamingExport(progress) = state.slots.body_mut(slot)
            {
                let (wakers, prompt) = (std::mem::take(&mut progress.wakers), progress.prompt.clone());
                state.pool.fire.extend(wakers);
                state.fail(slot, error, self.shared.config.lease, Some(prompt));
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
