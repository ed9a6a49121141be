//! The state of one handle: where its KV is, and what is kept with it.

use std::time::Duration;

use crate::backend::BlockId;
use crate::error::Error;
use crate::kv::pool::{BlockHash, TableId, TableKey, Waker};
use crate::sequence::Snapshot;
use crate::sync::{Arc, Instant};

/// How a handle ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kv) enum End {
    Consumed,
    LeaseOver,
    Released,
}

/// State of a handle.
pub(in crate::kv) enum Body {
    Vacant,
    /// The KV is being imported.
    Importing(Importing),
    /// The prompt is being computed here.
    StreamingExport(Progress),
    /// The import or the computation failed. Kept until the handle is released or its lease ends, so that callers learn why.
    Failed(Failed),
    Ready(Export),
}

/// An import whose KV has not all arrived.
pub(in crate::kv) struct Importing {
    /// The sequence as the ticket states it.
    pub sequence: Arc<Snapshot>,
    pub wakers: Vec<Waker>,
}

/// A prompt whose KV is being computed. The block table records how many tokens are done.
pub(in crate::kv) struct Progress {
    /// The prompt as it was submitted, with 0 tokens computed.
    pub prompt: Arc<Snapshot>,
    /// The request's table. A preemption may replace its blocks, but the KV of a computed token stays the same.
    pub table: TableId,
    pub wakers: Vec<Waker>,
}

/// A handle whose KV did not arrive.
pub(in crate::kv) struct Failed {
    pub error: Error,
    pub deadline: Instant,
    /// The sequence that the handle would have had.
    pub sequence: Arc<Snapshot>,
}

/// Head of an image: everything before its block records.
pub(in crate::kv) type ImageHead = Arc<Vec<u8>>;

/// A snapshot and its blocks, under a lease.
pub(in crate::kv) struct Export {
    pub snapshot: Arc<Snapshot>,
    pub table: TableKey,
    /// Blocks of the table, moved out of the `BlockTable`: a handoff within a cache moves this list and copies nothing.
    pub blocks: Vec<BlockId>,
    pub lease: Duration,
    pub deadline: Instant,
    /// Head of the image, kept after the first read because it must not change between reads.
    pub head: Option<ImageHead>,
    /// Number of full blocks and the hash of the last, if the exporter knows them. Hashing them again would take longer than
    /// the rest of a ticket.
    pub chain: Option<(u32, BlockHash)>,
    /// The prompt as stated by tickets that were written while it was being computed.
    pub prompt: Option<Arc<Snapshot>>,
}

impl Body {
    /// Sequence of the handle, whatever the state of its KV.
    pub fn sequence(&self) -> Option<&Arc<Snapshot>> {
        match self {
            Body::Vacant => None,
            Body::Importing(import) => Some(&import.sequence),
            Body::StreamingExport(progress) => Some(&progress.prompt),
            Body::Failed(failed) => Some(&failed.sequence),
            Body::Ready(export) => Some(&export.snapshot),
        }
    }

    /// End of the lease. None while the KV is on its way, because the lease begins when it has arrived.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Body::Failed(failed) => Some(failed.deadline),
            Body::Ready(export) => Some(export.deadline),
            Body::Vacant | Body::Importing(_) | Body::StreamingExport(_) => None,
        }
    }

    /// Those who wait for the KV while it is on its way.
    pub(super) fn wakers(&mut self) -> Option<&mut Vec<Waker>> {
        match self {
            Body::Importing(Importing { wakers, .. }) | Body::StreamingExport(Progress { wakers, .. }) => Some(wakers),
            Body::Vacant | Body::Failed(_) | Body::Ready(_) => None,
        }
    }
}
