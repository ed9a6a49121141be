//! A model whose KV is a digest of the tokens up to each position: a block in the wrong hands shows.
//! Shared with `tests/kv_image.rs`.

use std::sync::Arc;

use super::store::MemoryStore;
use super::{
    BlockStore, BlockTable, Cache, CacheConfig, CacheIdentity, Dtype, HashChain, KvGeometry, SamplingParams, Shards,
    Snapshot,
};

pub const GEOMETRY: KvGeometry =
    KvGeometry { layers: 2, kv_heads: 1, head_dim: 2, block_tokens: 4, dtype: Dtype::F32, shards: 1 };

pub fn identity() -> CacheIdentity {
    CacheIdentity { fingerprint: [7; 32], tokenizer_digest: [9; 32], name: "LlamaForCausalLM tiny".into() }
}

pub fn config() -> CacheConfig {
    CacheConfig { secret: Some([1; 32]), ..CacheConfig::default() }
}

pub fn cache(n_blocks: usize) -> Arc<Cache> {
    Cache::new(identity(), Shards::on_one_device(Arc::new(MemoryStore::new(GEOMETRY, n_blocks))).unwrap(), config())
        .unwrap()
}

/// A sequence held by a request.
pub struct Seq {
    pub snapshot: Snapshot,
    pub table: BlockTable,
}

pub fn snapshot(tokens: Vec<u32>, salt: u64) -> Snapshot {
    let prompts = vec![(0, tokens.len() as u32)];
    let params = SamplingParams { seed: 42, logprobs: Some(2), ..SamplingParams::default() };
    Snapshot {
        tokens,
        computed: 0,
        prompts,
        last_logprob: -0.5,
        last_top: vec![(3, -0.5), (4, -1.5)],
        cached_tokens: 0,
        params,
        cache_salt: salt,
        converted: false,
        finished: None,
        host_data: Vec::new(),
    }
}

/// Bytes of position `t` in layer and half (K or V) `part`.
fn kv(s: &Snapshot, t: usize, part: usize) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&s.cache_salt.to_le_bytes()).update(&[part as u8]);
    s.tokens[..=t].iter().for_each(|token| _ = hasher.update(&token.to_le_bytes()));
    hasher.finalize().as_bytes()[..8].try_into().unwrap()
}

const PARTS: usize = 4;

fn offset(t: usize, part: usize) -> usize {
    (part * GEOMETRY.block_tokens as usize + t % GEOMETRY.block_tokens as usize) * 8
}

impl Seq {
    /// A waiting sequence with what the prefix index has of it.
    pub fn new(cache: &Cache, tokens: Vec<u32>, salt: u64) -> Seq {
        let mut snapshot = snapshot(tokens, salt);
        let mut table = cache.table();
        let chain = HashChain::of(salt, GEOMETRY.block_tokens, &snapshot.tokens);
        snapshot.computed = table.adopt_prefix(chain.hashes()) as u32 * GEOMETRY.block_tokens;
        Seq { snapshot, table }
    }

    /// Computes up to `n` more tokens; false if there are no blocks for them.
    pub fn step(&mut self, store: &dyn BlockStore, n: u32) -> bool {
        let computed = self.snapshot.computed;
        let upto = computed.saturating_add(n).min(self.snapshot.tokens.len() as u32);
        if !self.table.reserve(computed, upto) {
            return false;
        }
        for t in computed as usize..upto as usize {
            let block = self.table.blocks()[t / GEOMETRY.block_tokens as usize];
            (0..PARTS).for_each(|part| store.write(block, offset(t, part), &kv(&self.snapshot, t, part)).unwrap());
        }
        self.snapshot.computed = upto;
        let full = &self.snapshot.tokens[..upto as usize];
        let chain = HashChain::of(self.snapshot.cache_salt, GEOMETRY.block_tokens, full);
        let first = (computed / GEOMETRY.block_tokens) as usize;
        self.table.publish(first..chain.hashes().len(), &chain, full);
        true
    }

    /// Panics unless every computed token's KV is what it must be.
    pub fn verify(&self, store: &dyn BlockStore) {
        self.verify_from(0, store);
    }

    /// The same where the table begins with the sequence's block number `first`.
    pub fn verify_from(&self, first: usize, store: &dyn BlockStore) {
        let block_tokens = GEOMETRY.block_tokens as usize;
        for t in first * block_tokens..self.snapshot.computed as usize {
            let block = self.table.blocks()[t / block_tokens - first];
            for part in 0..PARTS {
                let mut found = [0; 8];
                store.read(block, offset(t, part), &mut found).unwrap();
                assert_eq!(found, kv(&self.snapshot, t, part), "token {t} of {:?}", self.snapshot.tokens);
            }
        }
    }

    /// `n` tokens of which all but the last `pending` are computed.
    pub fn computed(cache: &Cache, n: u32, pending: u32, salt: u64) -> Seq {
        let mut seq = Seq::new(cache, (0..n).collect(), salt);
        let left = n - pending - seq.snapshot.computed;
        assert!(seq.step(cache.store(), left));
        seq
    }
}
