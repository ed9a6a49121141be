//! What engines tell the host.

use crate::error::Status;
use crate::sequence::FinishReason;

/// Kind of an [`Event`]. The numbers are `CLEAVE_EVENT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    Token = 1,
    /// Exactly one per accepted request, its last.
    Finished = 2,
    /// An import has landed, or failed.
    KvReady = 3,
    EngineFailed = 4,
    /// One of the likeliest alternatives to the TOKEN event that came just before, best first.
    TopLogprob = 5,
    /// The handle of a prompt whose computation begins.
    KvStreamStarted = 6,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    pub kind: EventKind,
    pub finish: Option<FinishReason>,
    /// None is OK.
    pub status: Option<Status>,
    pub token: i32,
    pub user_tag: u64,
    pub request: u64,
    pub kv: u64,
    /// CLOCK_MONOTONIC, when it was queued.
    pub timestamp_ns: u64,
    /// Number of the token since the end of the prompt, from 0; of a FINISHED event, how many there were.
    pub index: u32,
    pub logprob: f32,
    /// FINISHED: prompt tokens that the prefix cache had, wherever they were computed.
    pub cached_tokens: u32,
    /// FINISHED: the handle's KV did not come and was computed anew.
    pub recomputed: bool,
}

impl Event {
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
