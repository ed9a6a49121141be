//! An accepted request that is not a running sequence yet.

use super::guard::RequestGuard;
use super::request::Request;
use crate::error::Error;
use crate::kv::{BlockTable, Claim};
use crate::sequence::Snapshot;
use std::time::Instant;

/// The sequence of a pending request, or the claim on a handle that will give it.
pub(super) enum SequenceSource {
    /// The sequence can run.
    Ready(ReadySequence),
    /// A handle taken by this request while its KV is still on its way.
    Importing(Claim),
}

/// A sequence that has passed every check and can run.
pub(super) struct ReadySequence {
    /// Tokens and sampling state of the sequence.
    pub snapshot: Box<Snapshot>,
    /// Blocks that hold the computed KV.
    pub table: BlockTable,
    /// The KV of the request's handle did not arrive and is computed here instead.
    pub recomputed: bool,
}

/// A request on its way to the step thread, or waiting there for its KV.
pub(super) struct PendingRequest {
    /// The request as submitted.
    pub request: Request,
    /// The request ends with its first token: it was accepted while the engine's role was prefill.
    pub prefill_only: bool,
    /// Time at which the request ends with TIMEOUT.
    pub deadline: Option<Instant>,
    /// Whether to export the sequence as soon as it can run.
    pub export: bool,
    /// The sequence, or the claim on it.
    pub source: SequenceSource,
    /// Declared last, so that everything else the request holds is released before its FINISHED event goes out.
    pub guard: RequestGuard,
}

impl PendingRequest {
    /// Ends a request that never became a sequence. The resources it holds are released before its FINISHED event goes out.
    pub fn refuse(self, error: &Error) {
        let PendingRequest { guard, source, .. } = self;
        drop(source);
        guard.fail(error);
    }
}
