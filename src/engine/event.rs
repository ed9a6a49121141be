//! Events that engines and imports send to the host.

use crate::error::Status;
use crate::sequence::FinishReason;

/// Kind of an [`Event`]. The numbers are `CLEAVE_EVENT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    /// A token was generated.
    Token = 1,
    /// A request has ended. Every accepted request gets exactly one such event, as its last.
    Finished = 2,
    /// An import is complete, or has failed.
    KvReady = 3,
    /// The engine has failed and ended all its requests.
    EngineFailed = 4,
    /// One of the likeliest tokens in place of the preceding TOKEN event's, likeliest first.
    TopLogprob = 5,
    /// A prompt has begun to be computed under a streaming KV handle.
    KvStreamStarted = 6,
}

/// One event. Fields that do not apply to its kind are zero or None, except `token`, which is -1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// Kind of the event.
    pub kind: EventKind,
    /// FINISHED: how the request ended.
    pub finish: Option<FinishReason>,
    /// Reason of a failure; None means OK.
    pub status: Option<Status>,
    /// TOKEN, TOP_LOGPROB: the token.
    pub token: i32,
    /// Tag that the host gave with the request or the import.
    pub user_tag: u64,
    /// Id of the request; 0 in events that belong to none.
    pub request: u64,
    /// KV handle that the event carries; 0 for none.
    pub kv: u64,
    /// CLOCK_MONOTONIC time when the event was queued.
    pub timestamp_ns: u64,
    /// TOKEN, TOP_LOGPROB: number of the token after the prompt, from 0. FINISHED: number of tokens generated.
    pub index: u32,
    /// TOKEN with logprobs, TOP_LOGPROB: natural logarithm of the probability.
    pub logprob: f32,
    /// FINISHED: prompt tokens that the engine which computed the prompt found in its prefix cache.
    pub cached_tokens: u32,
    /// FINISHED: the handle's KV did not arrive and was computed here instead.
    pub recomputed: bool,
}

impl Event {
    /// An event of a kind, with every other field empty.
    pub fn new(kind: EventKind, user_tag: u64, request: u64) -> Event {
        Event {
            kind,
            finish: None,
            status: None,
            token: -1,
            user_tag,
            request,
            kv: 0,
            timestamp_ns: 0,
            index: 0,
            logprob: 0.0,
            cached_tokens: 0,
            recomputed: false,
        }
    }

    /// The last event of a request; `status` is None unless it ended with an error.
    pub fn finished(user_tag: u64, request: u64, reason: FinishReason, status: Option<Status>) -> Event {
        Event { finish: Some(reason), status, ..Event::new(EventKind::Finished, user_tag, request) }
    }
}
