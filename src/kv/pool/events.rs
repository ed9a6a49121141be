//! The event log: what entered and left the prefix index, numbered, for readers outside that follow the index.
//!
//! A log keeps a bounded number of events. The pool records each change under its own lock; readers take only the log's lock,
//! so they never wait for the pool nor hold it up for longer than a copy of [`MOST_AT_ONCE`] pointers takes.

use std::collections::VecDeque;
use std::time::Duration;

use super::hash::{BlockHash, HashChain};
use crate::bail;
use crate::error::Result;
use crate::sync::{Arc, Condvar, Instant, Mutex, MutexGuard, PoisonError};

/// Most events that one call of [`EventLog::read`] returns, which bounds how long it holds the log's lock.
pub const MOST_AT_ONCE: usize = 1024;

/// A block of the prefix index, as events describe it.
#[derive(Debug, PartialEq, Eq)]
pub struct IndexedBlock {
    /// Hash of the block, which covers all tokens up to its end.
    pub hash: BlockHash,
    /// Hash of the block before it in its sequence; None for the first block.
    pub parent: Option<BlockHash>,
    /// Number of the block in its sequence, from 0.
    pub position: u32,
    /// Salt of the sequence; 0 for none.
    pub salt: u64,
    /// The block's own tokens.
    pub tokens: Box<[u32]>,
}

impl IndexedBlock {
    /// Describes full block `position` of a sequence with these `tokens` and their hash chain.
    pub(super) fn new(chain: &HashChain, tokens: &[u32], position: usize) -> IndexedBlock {
        let block_tokens = chain.block_tokens();
        IndexedBlock {
            hash: chain.hashes()[position],
            parent: position.checked_sub(1).map(|before| chain.hashes()[before]),
            position: position as u32,
            salt: chain.salt(),
            tokens: tokens[position * block_tokens..][..block_tokens].into(),
        }
    }
}

/// Change of the prefix index.
#[derive(Clone, Debug)]
pub enum IndexEvent {
    /// The block is in the index from now on.
    Stored(Arc<IndexedBlock>),
    /// The block has left the index.
    Removed(Arc<IndexedBlock>),
    /// All blocks have left the index.
    Cleared,
}

/// Consecutive events from a log. They are missing, and `events` is empty, if `oldest` is above the number that was asked for.
#[derive(Debug)]
pub struct EventBatch {
    /// The events, of which the first has the number that was asked for.
    pub events: Vec<IndexEvent>,
    /// Number of the oldest event that the log still holds; `end` if it holds none.
    pub oldest: u64,
    /// Number that the next event to be recorded will get.
    pub end: u64,
}

/// Bounded log of the changes of one prefix index. Events are numbered from 1.
pub struct EventLog {
    state: Mutex<LogState>,
    more: Condvar,
}

struct LogState {
    kept: VecDeque<IndexEvent>,
    most: usize,
    /// Number of the next event.
    end: u64,
    /// A reader sleeps until there is another event, and was not woken yet.
    awaited: bool,
    closed: bool,
}

impl LogState {
    fn oldest(&self) -> u64 {
        self.end - self.kept.len() as u64
    }
}

impl EventLog {
    /// An empty log that keeps the last `most` events. OUT_OF_MEMORY if there is no memory for so many.
    pub fn new(most: usize) -> Result<EventLog> {
        let mut kept = VecDeque::new();
        if kept.try_reserve_exact(most).is_err() {
            bail!(OutOfMemory, "no memory for a log of {most} cache events");
        }
        Ok(EventLog {
            state: Mutex::new(LogState { kept, most, end: 1, awaited: false, closed: false }),
            more: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an event, in place of the oldest one if the log is full.
    pub(super) fn record(&self, event: IndexEvent) {
        let mut state = self.lock();
        let dropped = if state.kept.len() == state.most { state.kept.pop_front() } else { None };
        state.kept.push_back(event);
        state.end += 1;
        let awaited = std::mem::take(&mut state.awaited);
        drop(state);
        drop(dropped);
        if awaited {
            self.more.notify_all();
        }
    }

    /// Number of the oldest event that the log holds, or of the next one if it holds none.
    pub fn oldest(&self) -> u64 {
        self.lock().oldest()
    }

    /// Number that the next event will get.
    pub fn end(&self) -> u64 {
        self.lock().end
    }

    /// Returns events from number `from` on, at most `most` and [`MOST_AT_ONCE`], and waits at most `timeout` for the first one
    /// (None: for ever). No events after a timeout, or if event `from` is no longer kept. SHUTDOWN once the log is closed and
    /// its events are read.
    pub fn read(&self, from: u64, most: usize, timeout: Option<Duration>) -> Result<EventBatch> {
        let started = Instant::now();
        let mut state = self.lock();
        if from > state.end {
            bail!(InvalidArgument, "event {from} was asked for, but the next one will be {}", state.end);
        }
        while from == state.end {
            if state.closed {
                bail!(Shutdown, "the cache was destroyed");
            }
            let left = timeout.map(|most| {
                let waited = Instant::now().saturating_duration_since(started);
                most.saturating_sub(waited)
            });
            if most == 0 || left.is_some_and(|left| left.is_zero()) {
                break;
            }
            state.awaited = true;
            state = match left {
                None => self.more.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => self.more.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        let (oldest, end) = (state.oldest(), state.end);
        if from < oldest {
            return Ok(EventBatch { events: Vec::new(), oldest, end });
        }
        let first = (from - oldest) as usize;
        let most = most.min(MOST_AT_ONCE).min(state.kept.len() - first);
        let events = state.kept.range(first..first + most).cloned().collect();
        Ok(EventBatch { events, oldest, end })
    }

    /// Wakes all readers. Those that have read everything get SHUTDOWN from now on.
    pub fn close(&self) {
        self.lock().closed = true;
        self.more.notify_all();
    }
}
