//! Audit of block ownership: walks the owners and compares what it finds with the reference counts.

use super::state::CacheState;
use super::table::Body;
use crate::backend::BlockId;
use crate::kv::pool::Owner;

/// Number of blocks by kind of owner. A shared block counts once for every kind that holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Blocks held by requests.
    pub by_requests: usize,
    /// Blocks held by transfers in progress.
    pub by_transfers: usize,
    /// Blocks held by handles.
    pub by_exports: usize,
    /// Blocks held by the prefix index.
    pub by_prefix_index: usize,
    /// Blocks that are neither free nor owned, or both, or whose reference count differs from the number of their owners.
    pub leaked: usize,
    /// Blocks in the pool.
    pub total: usize,
    /// Blocks on the free list.
    pub free: usize,
}

const REQUEST: u8 = 1;
const TRANSFER: u8 = 2;
const EXPORT: u8 = 4;
const PREFIX: u8 = 8;
const FREE: u8 = 16;

/// Owners of one block, counted by walking them.
#[derive(Clone, Copy, Default)]
struct Seen {
    kinds: u8,
    owners: u32,
    times_free: u32,
}

fn walk(state: &CacheState) -> Vec<Seen> {
    let mut seen = vec![Seen::default(); state.pool.blocks.refs.len()];
    let mut own = |block: BlockId, kind: u8| {
        seen[block as usize].kinds |= kind;
        seen[block as usize].owners += 1;
    };
    for table in &state.pool.tables {
        let kind = match table.owner {
            Owner::Request => REQUEST,
            Owner::Transfer => TRANSFER,
            // An export's table counts only through its handle.
            Owner::Export | Owner::Vacant => continue,
        };
        table.blocks.iter().for_each(|&block| own(block, kind));
    }
    for (_, body) in state.handles.live() {
        if let Body::Ready(export) = body {
            state.pool.tables[export.table as usize].blocks.iter().for_each(|&block| own(block, EXPORT));
        }
    }
    state.pool.blocks.index.blocks().for_each(|block| own(block, PREFIX));
    for &block in &state.pool.blocks.free {
        seen[block as usize].kinds |= FREE;
        seen[block as usize].times_free += 1;
    }
    seen
}

pub(in crate::kv) fn audit(state: &CacheState) -> Audit {
    let mut audit =
        Audit { total: state.pool.blocks.refs.len(), free: state.pool.blocks.free.len(), ..Audit::default() };
    for (seen, &refs) in walk(state).iter().zip(&state.pool.blocks.refs) {
        let count = |kind: u8| usize::from(seen.kinds & kind != 0);
        audit.by_requests += count(REQUEST);
        audit.by_transfers += count(TRANSFER);
        audit.by_exports += count(EXPORT);
        audit.by_prefix_index += count(PREFIX);
        let sound = seen.owners == refs && seen.times_free == u32::from(refs == 0);
        audit.leaked += usize::from(!sound);
    }
    audit
}

/// Checks every invariant; the error describes the first broken one.
pub(in crate::kv) fn check(state: &CacheState) -> Result<(), String> {
    let seen = walk(state);
    for (block, (seen, &refs)) in seen.iter().zip(&state.pool.blocks.refs).enumerate() {
        if seen.owners != refs || seen.times_free != u32::from(refs == 0) {
            let Seen { kinds, owners, times_free } = seen;
            return Err(format!("block {block}: refs {refs}, owners {owners} ({kinds:#b}), {times_free} times free"));
        }
    }
    let index = &state.pool.blocks.index;
    let mut idle: Vec<BlockId> = index.idle_blocks().collect();
    let mut alone: Vec<BlockId> = index.blocks().filter(|&block| state.pool.blocks.refs[block as usize] == 1).collect();
    if idle.len() != index.idle() {
        return Err(format!("prefix index: {} blocks in the idle list, counted {}", idle.len(), index.idle()));
    }
    idle.sort_unstable();
    alone.sort_unstable();
    if idle != alone {
        return Err(format!("prefix index: idle {idle:?}, but nobody else holds {alone:?}"));
    }
    if let Some(block) = index.blocks().find(|&block| !index.is_consistent(block)) {
        return Err(format!("prefix index: block {block} does not bear the name it is filed under"));
    }
    check_slots(state)
}

fn check_slots(state: &CacheState) -> Result<(), String> {
    let (mut deadlines, mut exports) = (0, 0);
    let leases = state.handles.leases();
    for (slot, body) in state.handles.live() {
        if let Body::Ready(export) = body {
            let table = &state.pool.tables[export.table as usize];
            if table.owner != Owner::Export || table.blocks != export.blocks {
                return Err(format!("handle slot {slot}: its table is {:?} of {:?}", table.owner, table.blocks));
            }
            exports += 1;
        }
        let Some(deadline) = body.deadline() else { continue };
        deadlines += 1;
        if !leases.has(slot, deadline) {
            return Err(format!("handle slot {slot}: its deadline is not in the timer's list"));
        }
    }
    let count = |owner| state.pool.tables.iter().filter(|table| table.owner == owner).count();
    if deadlines != leases.len() {
        return Err(format!("{} deadlines for {deadlines} leases", leases.len()));
    }
    if exports != count(Owner::Export) {
        return Err(format!("{} export tables for {exports} handles", count(Owner::Export)));
    }
    if count(Owner::Vacant) != state.pool.vacant.len() {
        return Err(format!("{} vacant tables, listed {}", count(Owner::Vacant), state.pool.vacant.len()));
    }
    Ok(())
}
