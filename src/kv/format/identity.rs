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

const SLOT_BITS: u32 = 20;
const GENERATION_BITS: u32 = 24;
const NONCE_BITS: u32 = 20;
/// Number of slots that a handle can name.
pub(in crate::kv) const MAX_SLOTS: usize = 1 << SLOT_BITS;
pub(in crate::kv) const MAX_GENERATION: u32 = (1 << GENERATION_BITS) - 1;
pub(in crate::kv) const MAX_NONCE: u32 = (1 << NONCE_BITS) - 1;

impl KvId {
    /// Handle of these parts, each at most the number above.
    pub(in crate::kv) fn new(nonce: u32, generation: u32, slot: u32) -> KvId {
        let nonce = u64::from(nonce & MAX_NONCE);
        KvId(nonce << (SLOT_BITS + GENERATION_BITS) | u64::from(generation) << SLOT_BITS | u64::from(slot))
    }

    /// Nonce, generation and slot.
    pub(in crate::kv) fn split(self) -> (u32, u32, usize) {
        let slot = self.0 as usize & (MAX_SLOTS - 1);
        let generation = (self.0 >> SLOT_BITS) as u32 & MAX_GENERATION;
        ((self.0 >> (SLOT_BITS + GENERATION_BITS)) as u32, generation, slot)
    }
}

impl std::fmt::Display for KvId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KV handle {:#x}", self.0)
    }
}
