//! The journal of a pool: describes the blocks of the prefix index, and records their coming and going in the event log.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use super::events::{EventLog, IndexEvent, IndexedBlock};
use super::hash::BlockHash;
use crate::backend::BlockId;
use crate::error::Result;
use crate::sync::Arc;

/// Blocks looked at under one hold of the pool's lock while a snapshot is taken.
const BLOCKS_AT_ONCE: usize = 1024;

/// Number of times that a snapshot is begun anew because the log did not keep all events that came meanwhile. After that the
/// pool is held still.
const TRIES: usize = 3;

/// Descriptions of the indexed blocks of a pool.
pub(in crate::kv) struct Journal {
    log: Arc<EventLog>,
    /// By block; None for blocks that are not in the index.
    indexed: Vec<Option<Arc<IndexedBlock>>>,
}

impl Journal {
    pub fn new(log: Arc<EventLog>, n_blocks: usize) -> Journal {
        Journal { log, indexed: vec![None; n_blocks] }
    }

    pub(super) fn stored(&mut self, block: BlockId, indexed: Arc<IndexedBlock>) {
        self.indexed[block as usize] = Some(indexed.clone());
        self.log.record(IndexEvent::Stored(indexed));
    }

    pub(super) fn removed(&mut self, block: BlockId) {
        if let Some(indexed) = self.indexed[block as usize].take() {
            self.log.record(IndexEvent::Removed(indexed));
        }
    }

    /// Records that the index is empty.
    pub(super) fn cleared(&mut self) {
        self.indexed.fill(None);
        self.log.record(IndexEvent::Cleared);
    }

    /// Descriptions of the indexed ones among `blocks`.
    pub fn indexed(&self, blocks: Range<usize>) -> impl Iterator<Item = &Arc<IndexedBlock>> {
        self.indexed[blocks].iter().flatten()
    }
}

/// The blocks of a prefix index at one moment.
#[derive(Debug)]
pub struct IndexSnapshot {
    /// The blocks, each after the one before it in its sequence if that is in the index too.
    pub blocks: Vec<Arc<IndexedBlock>>,
    /// Number of the first event that is not contained in `blocks`.
    pub next: u64,
    /// Number of the oldest event that the log holds.
    pub oldest: u64,
}

/// Takes a snapshot of the index behind `log`, which has `n_blocks` blocks. `look` holds the pool's lock, appends the indexed
/// ones of a range of blocks to a list, and returns the number of the next event.
///
/// The pool is looked at piece by piece while it changes. Replaying the events of that time on what was seen gives the state
/// at their end: a block without an event was there all the time or never, and for the others the last event decides.
pub(in crate::kv) fn snapshot(
    log: &EventLog,
    n_blocks: usize,
    mut look: impl FnMut(Range<usize>, &mut Vec<Arc<IndexedBlock>>) -> u64,
) -> Result<IndexSnapshot> {
    let mut tries = 0;
    loop {
        // One look at everything needs no events, so the last try succeeds.
        let at_once = if tries < TRIES { BLOCKS_AT_ONCE } else { n_blocks };
        tries += 1;
        let mut seen = Vec::new();
        let mut events = None;
        for first in (0..n_blocks).step_by(at_once) {
            let piece = first..(first + at_once).min(n_blocks);
            seen.reserve(piece.len());
            let next = look(piece, &mut seen);
            events = Some(events.map_or(next..next, |events: Range<u64>| events.start..next));
        }
        let Range { start, end } = events.unwrap_or(1..1);
        let mut blocks = seen.into_iter().map(|block| (block.hash, block)).collect();
        if replay(log, start..end, &mut blocks)? {
            return Ok(IndexSnapshot { blocks: parents_first(blocks), next: end, oldest: log.oldest() });
        }
    }
}

/// Applies `events` to `blocks`. Returns false if the log does not hold all of them any more.
fn replay(log: &EventLog, events: Range<u64>, blocks: &mut HashMap<BlockHash, Arc<IndexedBlock>>) -> Result<bool> {
    let mut next = events.start;
    while next < events.end {
        let batch = log.read(next, (events.end - next) as usize, Some(Duration::ZERO))?;
        if next < batch.oldest {
            return Ok(false);
        }
        next += batch.events.len() as u64;
        for event in batch.events {
            match event {
                IndexEvent::Stored(block) => _ = blocks.insert(block.hash, block),
                IndexEvent::Removed(block) => _ = blocks.remove(&block.hash),
                IndexEvent::Cleared => blocks.clear(),
            }
        }
    }
    Ok(true)
}

/// The blocks chain by chain, so that each follows its parent if that is among them.
fn parents_first(blocks: HashMap<BlockHash, Arc<IndexedBlock>>) -> Vec<Arc<IndexedBlock>> {
    let mut children: HashMap<BlockHash, Vec<&Arc<IndexedBlock>>> = HashMap::new();
    let mut due = Vec::new();
    for block in blocks.values() {
        match block.parent.filter(|parent| blocks.contains_key(parent)) {
            Some(parent) => children.entry(parent).or_default().push(block),
            None => due.push(block),
        }
    }
    let mut ordered = Vec::with_capacity(blocks.len());
    while let Some(block) = due.pop() {
        ordered.push(block.clone());
        due.extend(children.remove(&block.hash).into_iter().flatten());
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::super::hash::HashChain;
    use super::*;

    const BLOCKS: usize = 3 * BLOCKS_AT_ONCE;

    fn block(token: u32) -> Arc<IndexedBlock> {
        Arc::new(IndexedBlock::new(&HashChain::of(0, 1, &[token]), &[token], 0))
    }

    /// Takes a snapshot of an index of which many blocks change places before each look, and compares it with the index. Returns
    /// the number of looks.
    fn snapshot_of_a_changing_index(events_kept: usize) -> usize {
        let log = Arc::new(EventLog::new(events_kept).unwrap());
        let mut journal = Journal::new(log.clone(), BLOCKS);
        (0..BLOCKS as u32).for_each(|id| journal.stored(id, block(id)));
        let mut looks = 0;
        let taken = snapshot(&log, BLOCKS, |range, seen| {
            looks += 1;
            for id in (0..BLOCKS as u32).step_by(7) {
                let other = BLOCKS as u32 - 1 - id;
                let moved = journal.indexed(id as usize..id as usize + 1).next().cloned();
                journal.removed(id);
                journal.removed(other);
                journal.stored(other, moved.unwrap_or_else(|| block(id + 1_000_000)));
            }
            seen.extend(journal.indexed(range).cloned());
            log.end()
        })
        .unwrap();
        let hashes = |blocks: &mut dyn Iterator<Item = &Arc<IndexedBlock>>| {
            let mut hashes: Vec<_> = blocks.map(|block| block.hash.0).collect();
            hashes.sort_unstable();
            hashes
        };
        assert_eq!(hashes(&mut taken.blocks.iter()), hashes(&mut journal.indexed(0..BLOCKS)));
        assert_eq!(taken.next, log.end());
        looks
    }

    #[test]
    fn changes_while_a_snapshot_is_taken_are_in_it() {
        assert_eq!(snapshot_of_a_changing_index(1 << 20), 3);
    }

    #[test]
    fn a_log_too_small_for_the_changes_ends_in_one_look_at_everything() {
        assert_eq!(snapshot_of_a_changing_index(10), 3 * TRIES + 1);
    }
}
