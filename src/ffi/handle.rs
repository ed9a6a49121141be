//! objects and ids
//!
//! Objects are pointers to incomplete types. They are names, not addresses: the library looks them up, so that NULL,
//! an object that was destroyed, one of another type or any other value is CLEAVE_ERR_INVALID_ARGUMENT or
//! CLEAVE_ERR_NOT_FOUND and nothing worse. Requests and KV handles are 64-bit ids of one engine and one cache; an id
//! is never given out twice, and 0 is none.

/// Config, tokenizer, mapped weights.
pub struct cleave_model {
    _opaque: [u8; 0],
}
pub type cleave_model_t = cleave_model;

/// A pool of KV blocks on a device, with its prefix index and handles.
pub struct cleave_cache {
    _opaque: [u8; 0],
}
pub type cleave_cache_t = cleave_cache;

/// A completion queue. Many engines may feed one.
pub struct cleave_queue {
    _opaque: [u8; 0],
}
pub type cleave_queue_t = cleave_queue;

/// One step thread over a cache, with a role.
pub struct cleave_engine {
    _opaque: [u8; 0],
}
pub type cleave_engine_t = cleave_engine;

/// Turns the tokens of one sequence into text.
pub struct cleave_detokenizer {
    _opaque: [u8; 0],
}
pub type cleave_detokenizer_t = cleave_detokenizer;

/// An accepted request, of the engine that accepted it.
pub type cleave_request_t = u64;

/// A snapshot of a sequence: tokens, KV blocks, sampling state. Of the cache that holds the blocks.
pub type cleave_kv_t = u64;
