//! Whose KV it is.

/// Model and tokenizer of a cache: two caches exchange KV only if both digests are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheIdentity {
    /// Digest of the model's config and weights.
    pub fingerprint: [u8; 32],
    pub tokenizer_digest: [u8; 32],
    /// Architecture and name, for messages only.
    pub name: String,
}

/// The library that writes tickets and images, for people.
pub(in crate::kv) const LIBRARY_TEXT: &str = concat!("cleave ", env!("CARGO_PKG_VERSION"));

/// A KV handle: `nonce (20 bits) | generation (24) | slot (20)`. Generations begin at 1, so no handle is 0.
/// Any number may be asked for: one that is no live handle of the cache is an error, never another handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KvId(pub u64);

impl std::fmt::Display for KvId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KV handle {:#x}", self.0)
    }
}
