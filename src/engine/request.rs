//! What a host asks for.

use crate::sequence::SamplingFields;
use std::time::Duration;

/// One request, as submitted. Numbers that are zero mean "default": of a fresh request the library's, of one
/// that continues a KV handle the handle's own.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub user_tag: u64,
    /// The handle to continue from, consumed; 0 for none.
    pub kv: u64,
    /// The prompt, or with a handle the tokens that follow it.
    pub prompt: Vec<u32>,
    pub sampling: SamplingFields,
    /// FINISHED carries a KV handle.
    pub keep_kv: bool,
    /// On an engine whose role is prefill: KV_STREAM_STARTED carries a handle that can be pulled while it is filled.
    pub stream_kv: bool,
    /// If the handle's KV does not come, compute it here from the tokens of its ticket.
    pub recompute: bool,
    /// Repeat the token that came with the handle.
    pub emit_pending: bool,
    /// With a handle: take every sampling field from this request, none from the handle.
    pub override_sampling: bool,
    /// Higher runs first.
    pub priority: u32,
    /// From submission.
    pub deadline: Option<Duration>,
    pub cache_salt: u64,
}
