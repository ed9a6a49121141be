//! A request, as the host submits it.

use crate::sequence::SamplingFields;
use std::time::Duration;

/// One request, as submitted. A sampling field that is zero takes its default: the library's for a fresh request, the handle's
/// for a request that continues a KV handle.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Tag of the host's own, repeated in each event of the request.
    pub user_tag: u64,
    /// KV handle to continue, which the request consumes; 0 for none.
    pub kv: u64,
    /// Tokens of the prompt; with a handle, the tokens that follow the handle's.
    pub prompt: Vec<u32>,
    /// Sampling and stopping parameters.
    pub sampling: SamplingFields,
    /// Whether the FINISHED event carries a KV handle.
    pub keep_kv: bool,
    /// On a prefill engine: whether a KV_STREAM_STARTED event carries a handle that peers can pull while it is being filled.
    pub stream_kv: bool,
    /// Whether to compute the handle's KV here, from the tokens of its ticket, if the KV does not arrive.
    pub recompute: bool,
    /// Whether to repeat the token that came with the handle as a TOKEN event.
    pub emit_pending: bool,
    /// With a handle: whether to take every sampling field from this request and none from the handle.
    pub override_sampling: bool,
    /// Priority; requests with a higher one run first.
    pub priority: u32,
    /// Time from submission after which the request ends with TIMEOUT.
    pub deadline: Option<Duration>,
    /// Salt of the prefix cache: only requests with the same salt share cached blocks.
    pub cache_salt: u64,
}
