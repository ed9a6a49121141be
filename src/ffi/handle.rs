//! objects and ids
//!
//! Objects are pointers to incomplete types. The library looks them up and never follows them, so NULL, a destroyed
//! object, an object of another type or any other value is answered with CLEAVE_ERR_INVALID_ARGUMENT or
//! CLEAVE_ERR_NOT_FOUND. Requests and KV handles are 64-bit ids that belong to one engine and one cache. An id is
//! never given out twice, and 0 is no id.

/// Config, tokenizer and mapped weights.
pub struct cleave_model {
    _opaque: [u8; 0],
}
/// Opaque handle of a model.
pub type cleave_model_t = cleave_model;

/// A pool of KV blocks on a device, with its prefix index and KV handles.
pub struct cleave_cache {
    _opaque: [u8; 0],
}
/// Opaque handle of a cache.
pub type cleave_cache_t = cleave_cache;

/// A completion queue. Several engines may report to one.
pub struct cleave_queue {
    _opaque: [u8; 0],
}
/// Opaque handle of a queue.
pub type cleave_queue_t = cleave_queue;

/// A step loop over a cache, with a role.
pub struct cleave_engine {
    _opaque: [u8; 0],
}
/// Opaque handle of an engine.
pub type cleave_engine_t = cleave_engine;

/// Turns the tokens of one sequence into text.
pub struct cleave_detokenizer {
    _opaque: [u8; 0],
}
/// Opaque handle of a detokenizer.
pub type cleave_detokenizer_t = cleave_detokenizer;

/// Id of an accepted request. It belongs to the engine that accepted the request.
pub type cleave_request_t = u64;

/// Id of a KV handle: a snapshot of a sequence with its tokens, KV blocks and sampling state. It belongs to the cache
/// that holds the blocks.
pub type cleave_kv_t = u64;
