//! A request inside an engine: its sequence, its blocks and the events it still owes.

use super::event::{Event, EventKind};
use super::guard::RequestGuard;
use super::request::Request;
use crate::error::{Error, Status};
use crate::kv::{BlockTable, Claim, HashChain, StreamingExport};
use crate::sampling::TokenCounts;
use crate::sequence::{FinishReason, Snapshot};
use std::collections::VecDeque;
use std::time::Instant;

/// An accepted request on its way to the step thread.
pub(super) struct PendingRequest {
    pub request: Request,
    /// Ends once its first token is sampled: accepted by an engine whose role was prefill.
    pub prefill_only: bool,
    pub deadline: Option<Instant>,
    /// To be handed over as soon as there is a sequence.
    pub export: bool,
    pub source: SequenceSource,
    /// Last, so that what the request holds goes before its FINISHED event.
    pub place: RequestGuard,
}

impl PendingRequest {
    /// Ends a request that never became a sequence. What it holds goes first: who sees the event finds it free.
    pub fn refuse(self, error: &Error) {
        let PendingRequest { place, source, .. } = self;
        drop(source);
        crate::log!(Debug, "engine", "request {:#x} ended: {error}", place.id);
        place.fail(error.status);
    }
}

pub(super) enum SequenceSource {
    /// Validated and ready to run.
    Ready(Box<Snapshot>, BlockTable),
    /// Continues from a handle whose blocks are still on their way.
    Importing(Claim),
}

/// How a request will end once the events before the end are out.
#[derive(Clone, Debug)]
pub(super) enum End {
    Reason(FinishReason),
    Failed(Error),
}

pub(super) struct RunningRequest {
    pub snapshot: Snapshot,
    /// Of `snapshot.tokens`, kept up with each that is generated.
    pub counts: TokenCounts,
    /// The handle by which a peer pulls the prompt's KV while it is computed.
    pub streaming: Option<StreamingExport>,
    pub table: BlockTable,
    /// Block hashes of the tokens known so far; grows with them.
    pub chain: HashChain,
    /// Leading blocks that are in the prefix index already.
    pub published: usize,
    /// Tokens that the prefix cache had when it was last admitted; None if it was not asked.
    pub prefix_hit: Option<u32>,
    /// Something of it was computed here.
    pub begun: bool,
    pub prefill_only: bool,
    pub keep_kv: bool,
    pub deadline: Option<Instant>,
    /// Groups of events that found the queue full; while there are any the sequence is paused.
    pub outbox: VecDeque<Vec<Event>>,
    pub end: Option<End>,
    /// Last, as in [`PendingRequest`].
    pub place: RequestGuard,
}

impl RunningRequest {
    /// The TOKEN event of the last token, with its alternatives behind it.
    pub fn token_events(&self) -> Vec<Event> {
        let index = self.snapshot.generated().saturating_sub(1);
        let mut token = Event::new(EventKind::Token, self.place.user_tag, self.place.id);
        token.token = self.snapshot.tokens.last().map_or(-1, |&t| t as i32);
        token.logprob = self.snapshot.last_logprob;
        token.index = index;
        let wanted = self.snapshot.params.logprobs.unwrap_or(0) as usize;
        let alternatives = self.snapshot.last_top.iter().take(wanted).map(|&(id, logprob)| {
            let mut event = Event::new(EventKind::TopLogprob, self.place.user_tag, self.place.id);
            event.token = id as i32;
            event.logprob = logprob;
            event.index = index;
            event
        });
        std::iter::once(token).chain(alternatives).collect()
    }

    /// Tells whoever pulls the prompt's KV how far it is.
    pub fn advance(&self) {
        if let Some(streaming) = &self.streaming {
            streaming.advance(self.snapshot.computed);
        }
    }

    /// Whether its end hands the KV over.
    pub fn hands_over(&self, reason: FinishReason) -> bool {
        match reason {
            FinishReason::Exported => true,
            FinishReason::Error => false,
            FinishReason::Stop | FinishReason::Length | FinishReason::Prefilled => self.keep_kv || self.prefill_only,
        }
    }
}

/// The FINISHED event of a request.
pub(super) fn finished(user_tag: u64, id: u64, reason: FinishReason, status: Option<Status>) -> Event {
    let mut event = Event::new(EventKind::Finished, user_tag, id);
    event.finish = Some(reason);
    event.status = status;
    event
}
