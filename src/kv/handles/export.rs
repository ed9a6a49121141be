//! Handles of sequences in the cache: a snapshot and its blocks under a lease.

use std::time::Duration;

use super::shared::CacheShared;
use super::slots::{Body, End, Export, ImageHead, KvId, Progress};
use super::state::CacheState;
use crate::bail;
use crate::error::Result;
use crate::kv::format::{self, Origin};
use crate::kv::pool::{BlockHash, BlockTable, HashChain, Owner, Waker};
use crate::sequence::{MAX_HOST_DATA, Snapshot};
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{Arc, Instant};

/// Result of [`CacheShared::consume`].
#[expect(clippy::large_enum_variant, reason = "the large one is the rule, and a box would cost the handoff")]
pub enum Consumed {
    /// The sequence; the handle is used up.
    Ready(Snapshot, BlockTable),
    /// The KV has not arrived, and the handle stays valid. Ask again after [`CacheShared::on_landed`] has called.
    Pending,
}

/// Description of a handle: its sequence, its sizes and the state of its KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvInfo {
    /// Tokens of the sequence.
    pub n_tokens: u32,
    /// Tokens whose KV the handle holds.
    pub computed: u32,
    /// Blocks with that KV; 0 while it is being imported or computed.
    pub n_blocks: u32,
    /// Size of the handle's image in bytes; 0 while its KV is being imported or computed.
    pub image_bytes: u64,
    /// Size of the handle's ticket in bytes; 0 while its KV is being imported.
    pub ticket_bytes: u64,
    /// Time until the lease ends. The cache's whole lease while the KV is being imported or computed.
    pub lease_left: Duration,
    /// The KV is being imported and has not all arrived.
    pub importing: bool,
    /// The prompt's KV is still being computed.
    pub streaming: bool,
}

/// Where a handle's KV comes from, and how much of it is there.
enum Landing {
    Import,
    Prompt(u32),
    Done,
}

impl CacheShared {
    /// Makes a handle of a sequence at a step boundary. The table moves into it, so no KV is copied, whatever the length. If
    /// this fails, the table's blocks return to the pool. A `lease` of None is the cache's.
    pub fn export(self: &Arc<Self>, snapshot: Snapshot, table: BlockTable, lease: Option<Duration>) -> Result<KvId> {
        self.export_as(None, snapshot, table, lease)
    }

    /// Like [`CacheShared::export`], but completes the streaming handle `streaming` if it is still live.
    pub(in crate::kv) fn export_as(
        self: &Arc<Self>,
        streaming: Option<KvId>,
        snapshot: Snapshot,
        table: BlockTable,
        lease: Option<Duration>,
    ) -> Result<KvId> {
        if !table.belongs_to(&**self) {
            bail!(InvalidArgument, "KV export: the block table is another cache's");
        }
        if let Err(text) = format::validate(&snapshot) {
            bail!(InvalidArgument, "KV export: {text}");
        }
        let need = snapshot.computed.div_ceil(self.geometry.block_tokens) as usize;
        if table.blocks().len() < need {
            let found = table.blocks().len();
            bail!(
                InvalidArgument,
                "KV export: {} computed tokens need {need} blocks, found {found}",
                snapshot.computed
            );
        }
        let snapshot = Arc::new(snapshot);
        let (Some(key), mut blocks) = table.into_parts() else {
            bail!(InvalidArgument, "KV export: the block table was exported already");
        };
        self.with(|state| {
            // Blocks that were reserved ahead hold no KV yet.
            if blocks.len() > need {
                state.pool.blocks.release_all(&blocks[need..]);
                blocks.truncate(need);
                state.pool.tables[key as usize].blocks.truncate(need);
            }
            let lease = lease.unwrap_or(self.config.lease);
            let waiting = streaming.and_then(|id| Some((id, state.find_claimed(id).ok()?)));
            let issued = match waiting {
                _ if state.pool.closed => Err(crate::error!(Shutdown, "KV export: the cache is closed")),
                Some((id, slot)) => {
                    state.fill(slot, snapshot, key, blocks, lease);
                    Ok(id)
                }
                None => state.export(snapshot, key, blocks, lease),
            };
            if issued.is_err() {
                state.pool.drop_table(key);
            }
            issued
        })
    }

    /// Takes the sequence out of the handle in the slot that `find` returns.
    pub(in crate::kv) fn consume_found(
        self: &Arc<Self>,
        id: KvId,
        find: impl FnOnce(&mut CacheState, KvId) -> Result<u32>,
    ) -> Result<Consumed> {
        let taken = self.with(|state| {
            let slot = find(state, id)?;
            match state.slots.body(slot) {
                Body::Importing { .. } | Body::StreamingExport(_) => return Ok(None),
                Body::Failed { error, .. } => return Err(error.clone()),
                Body::Ready(export) => {
                    let key = export.table as usize;
                    state.pool.tables[key].owner = Owner::Request;
                }
                Body::Vacant => {}
            }
            match state.end(slot, End::Consumed) {
                Body::Ready(export) => Ok(Some(export)),
                _ => bail!(Internal, "{id}: live, but its slot is empty"),
            }
        })?;
        let Some(Export { snapshot, table, blocks, .. }) = taken else { return Ok(Consumed::Pending) };
        let table = BlockTable::new(self.clone(), table, blocks);
        Ok(Consumed::Ready(Arc::unwrap_or_clone(snapshot), table))
    }
}

impl CacheShared {
    /// Takes the sequence out of a handle. If several callers try, exactly one gets it and the others get EXPIRED. If the
    /// handle's import failed, returns that failure.
    pub fn consume(self: &Arc<Self>, id: KvId) -> Result<Consumed> {
        self.consume_found(id, CacheState::find)
    }

    /// Snapshot of a handle, without consuming it. None while its KV is being imported or computed.
    pub fn peek(&self, id: KvId) -> Result<Option<Arc<Snapshot>>> {
        self.with(|state| {
            let slot = state.find(id)?;
            match state.slots.body(slot) {
                Body::Ready(export) => Ok(Some(export.snapshot.clone())),
                Body::Failed { error, .. } => Err(error.clone()),
                Body::Importing { .. } | Body::StreamingExport(_) | Body::Vacant => Ok(None),
            }
        })
    }

    /// Sequence of a handle whose KV failed to arrive, so that the caller can compute it again. None for other handles.
    pub fn failed_sequence(&self, id: KvId) -> Option<Arc<Snapshot>> {
        self.with(|state| {
            let slot = state.find(id).ok()?;
            let failed = matches!(state.slots.body(slot), Body::Failed { .. });
            state.sequence(slot).filter(|_| failed)
        })
    }

    /// Sequence of a handle: as its ticket gives it while the KV is being imported or after that failed, the prompt while its
    /// KV is being computed, else the exported snapshot.
    pub fn sequence(&self, id: KvId) -> Result<Arc<Snapshot>> {
        self.with(|state| {
            let slot = state.find(id)?;
            match state.sequence(slot) {
                Some(sequence) => Ok(sequence),
                None => state.ready(id).map(|(_, export)| export.snapshot.clone()),
            }
        })
    }

    /// Replaces the host data of a handle's sequence. INVALID_ARGUMENT once the handle's image was read, because an image
    /// never changes.
    pub fn set_host_data(&self, id: KvId, data: &[u8]) -> Result<()> {
        if data.len() > MAX_HOST_DATA {
            bail!(InvalidArgument, "host data: expected at most {MAX_HOST_DATA} bytes, found {}", data.len());
        }
        self.with(|state| {
            let slot = state.find(id)?;
            let sequence = match state.slots.body_mut(slot) {
                Body::Ready(export) if export.head.is_some() => bail!(
                    InvalidArgument,
                    "{id}: host data: its image was read and cannot change; set it on a duplicate of the handle"
                ),
                Body::Ready(export) => &mut export.snapshot,
                Body::Importing { sequence, .. } => sequence,
                Body::StreamingExport(progress) => &mut progress.prompt,
                Body::Failed { error, .. } => return Err(error.clone()),
                Body::Vacant => bail!(Internal, "{id}: live, but its slot is empty"),
            };
            Arc::make_mut(sequence).host_data = data.to_vec();
            Ok(())
        })
    }

    /// Stores with a handle the hash of its computed tokens, if `chain` goes that far.
    pub fn set_chain(&self, id: KvId, chain: &HashChain) {
        self.with(|state| {
            if let Ok((_, export)) = state.ready(id) {
                export.chain = chain.prefix(export.snapshot.computed as usize);
            }
        });
    }

    /// Makes another handle of the same sequence, with a fresh lease. The blocks are shared and copied when written.
    pub fn duplicate(&self, id: KvId) -> Result<KvId> {
        self.with(|state| {
            let (_, export) = state.ready(id)?;
            let (snapshot, blocks, lease) = (export.snapshot.clone(), export.blocks.clone(), export.lease);
            let chain = export.chain;
            let table = state.pool.share(Owner::Export, &blocks);
            let issued = state.export(snapshot, table, blocks, lease);
            match issued {
                Err(_) => state.pool.drop_table(table),
                Ok(id) => state.ready(id)?.1.chain = chain,
            }
            issued
        })
    }

    /// Describes a handle.
    pub fn info(&self, id: KvId) -> Result<KvInfo> {
        let shared = self;
        let found = shared.with(|state| {
            let slot = state.find(id)?;
            let landing = match state.slots.body(slot) {
                Body::Importing { sequence, .. } => Some((sequence.clone(), Landing::Import)),
                Body::StreamingExport(progress) => {
                    let computed = state.pool.table(progress.table).map_or(0, |table| table.computed);
                    Some((progress.prompt.clone(), Landing::Prompt(computed)))
                }
                _ => None,
            };
            match landing {
                Some((snapshot, landing)) => Ok((snapshot, None, landing)),
                None => {
                    let (_, export) = state.ready(id)?;
                    Ok((export.snapshot.clone(), Some(export.deadline), Landing::Done))
                }
            }
        })?;
        let (snapshot, deadline, landing) = found;
        let Some(deadline) = deadline else {
            let (computed, streaming) = match landing {
                Landing::Prompt(computed) => (computed, true),
                _ => (0, false),
            };
            return Ok(KvInfo {
                n_tokens: snapshot.tokens.len() as u32,
                computed,
                n_blocks: 0,
                image_bytes: 0,
                ticket_bytes: if streaming { self.ticket_len(&snapshot) } else { 0 },
                lease_left: shared.config.lease,
                importing: !streaming,
                streaming,
            });
        };
        let n_blocks = snapshot.computed.div_ceil(shared.geometry.block_tokens);
        let head = format::head_len(&shared.identity, &shared.layout, &snapshot) as u64;
        Ok(KvInfo {
            n_tokens: snapshot.tokens.len() as u32,
            computed: snapshot.computed,
            n_blocks,
            image_bytes: head + u64::from(n_blocks) * format::record_len(&shared.geometry) as u64,
            ticket_bytes: self.ticket_len(&snapshot),
            lease_left: deadline.saturating_duration_since(Instant::now()),
            importing: false,
            streaming: false,
        })
    }

    fn ticket_len(&self, snapshot: &Snapshot) -> u64 {
        format::ticket_len(&self.identity, &self.layout, snapshot, &self.endpoints()) as u64
    }

    /// Makes the lease end `lease` from now. The lease of an import begins when its KV has arrived.
    pub fn renew(&self, id: KvId, lease: Duration) -> Result<()> {
        self.with(|state| {
            let slot = state.find(id)?;
            state.renew(slot, lease);
            Ok(())
        })
    }

    /// Ends a handle. Its blocks return to the pool once no transfer uses them. Succeeds on handles that have ended already;
    /// NOT_FOUND for a number that was never a handle of this cache.
    pub fn release(&self, id: KvId) -> Result<()> {
        self.with(|state| {
            if !state.slots.was_issued(id) {
                bail!(NotFound, "{id}: never issued by this cache");
            }
            if let Ok(slot) = state.find(id) {
                state.end_and_free(slot, End::Released);
            }
            Ok(())
        })
    }

    /// Arranges one call of `waker` when the KV behind `id` has arrived, has failed or is released. Returns false, and
    /// registers nothing, if the KV is not being imported or computed.
    pub fn on_landed(&self, id: KvId, waker: Waker) -> bool {
        self.with(|state| {
            let Ok(slot) = state.find(id) else { return false };
            match state.slots.body_mut(slot) {
                Body::Importing { wakers, .. } | Body::StreamingExport(Progress { wakers, .. }) => {
                    wakers.push(waker);
                    true
                }
                _ => false,
            }
        })
    }

    /// Snapshot of a handle, and a table that keeps all of its blocks alive during a transfer.
    pub(in crate::kv) fn pin(self: &Arc<Self>, id: KvId) -> Result<(Arc<Snapshot>, BlockTable)> {
        self.pin_range(id, 0..usize::MAX)
    }

    /// Like [`CacheShared::pin`], for the blocks in `range`, which is clamped to those there are.
    pub(in crate::kv) fn pin_range(
        self: &Arc<Self>,
        id: KvId,
        range: std::ops::Range<usize>,
    ) -> Result<(Arc<Snapshot>, BlockTable)> {
        let (snapshot, key, blocks) = self.with(|state| {
            let (_, export) = state.ready(id)?;
            let (begin, end) = (range.start.min(export.blocks.len()), range.end.min(export.blocks.len()));
            let (snapshot, blocks) = (export.snapshot.clone(), export.blocks[begin..end].to_vec());
            let key = state.pool.share(Owner::Transfer, &blocks);
            Ok((snapshot, key, blocks))
        })?;
        Ok((snapshot, BlockTable::new(self.clone(), key, blocks)))
    }

    /// Content of a handle's ticket: its sequence, its origin, whether its prompt is still being computed, and its chain.
    #[expect(clippy::type_complexity, reason = "told apart by their types")]
    pub(in crate::kv) fn ticket_origin(
        &self,
        id: KvId,
    ) -> Result<(Arc<Snapshot>, Origin, bool, Option<(u32, BlockHash)>)> {
        let streaming = self.with(|state| {
            let slot = state.find(id)?;
            let Body::StreamingExport(progress) = state.slots.body(slot) else { return Ok(None) };
            let lease_ms = u32::try_from(self.config.lease.as_millis()).unwrap_or(u32::MAX);
            Ok(Some((progress.prompt.clone(), Origin { epoch: state.epoch, handle: id.0, lease_ms })))
        })?;
        match streaming {
            Some((prompt, origin)) => Ok((prompt, origin, true, None)),
            None => {
                let (snapshot, origin, _) = self.origin(id)?;
                let chain = self.with(|state| state.ready(id).map(|(_, export)| export.chain))?;
                Ok((snapshot, origin, false, chain))
            }
        }
    }

    /// Snapshot of a handle, its origin as tickets and images state it, and the head of its image if that was read.
    pub(in crate::kv) fn origin(&self, id: KvId) -> Result<(Arc<Snapshot>, Origin, Option<ImageHead>)> {
        self.with(|state| {
            let epoch = state.epoch;
            let (_, export) = state.ready(id)?;
            let left = export.deadline.saturating_duration_since(Instant::now());
            let lease_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
            let origin = Origin { epoch, handle: id.0, lease_ms };
            Ok((export.snapshot.clone(), origin, export.head.clone()))
        })
    }

    /// Counts KV bytes that were copied out of the cache.
    pub(in crate::kv) fn count_out(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
    }
}
