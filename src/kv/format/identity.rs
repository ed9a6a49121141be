//! Identity of a cache's KV: model, tokenizer, and the form of handles.

/// Model and tokenizer of a cache: two caches exchange KV only if both digests are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheIdentity {
    /// Digest of the model's config and weights.
    pub fingerprint: [u8; 32],
    /// Digest of the tokenizer.
    pub tokenizer_digest: [u8; 32],
    /// Architecture and name of the model, for messages only.
    pub name: String,
}

/// Name and version of this library, which tickets and images carry for messages.
pub(in crate::kv) const LIBRARY_TEXT: &str = concat!("cleave ", env!("CARGO_PKG_VERSION"));

/// A KV handle: `nonce (20 bits) | generation (24) | slot (20)`. Generations begin at 1, so no handle is 0.
/// Any number may be passed in: one that is not a live handle of the cache gives an error, never another handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KvId(pub u64);

impl std::fmt::Display for KvId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KV handle {:#x}", self.0)
    }
}
