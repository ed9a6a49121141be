//! The KV blocks of a simulated engine: how many are free, who holds how many, and which prefixes are cached. No block has an
//! identity here, because only numbers decide what a scheduler does.

use super::request::{Holding, Request, decode_id};
use crate::workload::BLOCK;
use cleave::scheduler::{Blocks, SeqId};
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

/// Tokens of a KV block: cleave's default.
pub const BLOCK_TOKENS: usize = 16;
/// KV blocks of one named prefix block.
const PER_PREFIX: usize = BLOCK / BLOCK_TOKENS;

/// A cached prefix block.
#[derive(Clone, Copy, Debug)]
struct Cached {
    /// Sequences that hold it.
    holders: u32,
    /// Time of the last release, in releases, under which it stands in `unused`.
    released: u64,
}

/// Blocks of one engine.
#[derive(Clone, Debug)]
pub struct BlockPool {
    total: usize,
    free: usize,
    cached: HashMap<u64, Cached>,
    /// Cached blocks that no sequence holds, least recently used first.
    unused: BTreeSet<(u64, u64)>,
    releases: u64,
}

impl BlockPool {
    /// A pool of `total` free blocks.
    pub fn new(total: usize) -> BlockPool {
        BlockPool { total, free: total, cached: HashMap::new(), unused: BTreeSet::new(), releases: 0 }
    }

    /// Number of blocks.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Blocks that are free or hold an unused prefix.
    pub fn available(&self) -> usize {
        self.free + self.unused.len() * PER_PREFIX
    }

    /// Blocks that sequences hold.
    pub fn held(&self) -> usize {
        self.total - self.available()
    }

    /// Leading blocks of `names` that are cached.
    pub fn cached(&self, names: &[u64]) -> usize {
        names.iter().take_while(|name| self.cached.contains_key(name)).count()
    }

    /// Raises what `holding` has to blocks for `tokens` tokens. Takes all that is missing or, returning false, nothing.
    pub fn reserve(&mut self, holding: &mut Holding, tokens: usize) -> bool {
        let wanted = tokens.div_ceil(BLOCK_TOKENS);
        let missing = wanted.saturating_sub(holding.own + holding.prefix * PER_PREFIX);
        if missing > self.available() {
            return false;
        }
        while self.free < missing {
            let Some((_, name)) = self.unused.pop_first() else { return false };
            self.cached.remove(&name);
            self.free += PER_PREFIX;
        }
        self.free -= missing;
        holding.own += missing;
        true
    }

    /// Gives an empty holding the cached ones of the prefix `names`, and returns their number of tokens, which is below `tokens`.
    pub fn attach(&mut self, holding: &mut Holding, names: &[u64], tokens: usize) -> usize {
        let most = (tokens - 1) / BLOCK;
        let hits = self.cached(&names[..names.len().min(most)]);
        names[..hits].iter().for_each(|&name| self.hold(name));
        holding.prefix = hits;
        hits * BLOCK
    }

    /// Puts the prefix blocks that are computed, of `names`, into the cache. Blocks that were cached meanwhile are dropped for
    /// the cached ones.
    pub fn publish(&mut self, holding: &mut Holding, names: &[u64], computed: usize) {
        let full = names.len().min(computed / BLOCK);
        while holding.prefix < full && holding.own >= PER_PREFIX {
            let name = names[holding.prefix];
            holding.own -= PER_PREFIX;
            holding.prefix += 1;
            if let Entry::Vacant(vacant) = self.cached.entry(name) {
                vacant.insert(Cached { holders: 1, released: 0 });
            } else {
                self.free += PER_PREFIX;
                self.hold(name);
            }
        }
    }

    /// Takes everything from a holding.
    pub fn release(&mut self, holding: &mut Holding, names: &[u64]) {
        self.free += holding.own;
        for name in &names[..holding.prefix] {
            if let Some(cached) = self.cached.get_mut(name) {
                cached.holders -= 1;
                if cached.holders == 0 {
                    self.releases += 1;
                    cached.released = self.releases;
                    self.unused.insert((self.releases, *name));
                }
            }
        }
        *holding = Holding::default();
    }

    fn hold(&mut self, name: u64) {
        if let Some(cached) = self.cached.get_mut(&name) {
            if cached.holders == 0 {
                self.unused.remove(&(cached.released, name));
            }
            cached.holders += 1;
        }
    }
}

/// The blocks of one engine, as its scheduler sees them.
pub struct EngineBlocks<'a> {
    /// The engine's pool.
    pub pool: &'a mut BlockPool,
    /// All requests.
    pub requests: &'a mut [Request],
}

impl Blocks for EngineBlocks<'_> {
    fn reserve(&mut self, seq: SeqId, _computed: usize, upto: usize) -> bool {
        let (request, stage) = decode_id(seq);
        self.pool.reserve(&mut self.requests[request].holds[stage], upto)
    }

    fn attach_prefix(&mut self, seq: SeqId) -> usize {
        let (request, stage) = decode_id(seq);
        let request = &mut self.requests[request];
        let tokens = request.prompt + request.generated;
        self.pool.attach(&mut request.holds[stage], &request.blocks, tokens)
    }

    fn release(&mut self, seq: SeqId) {
        let (request, stage) = decode_id(seq);
        let request = &mut self.requests[request];
        self.pool.release(&mut request.holds[stage], &request.blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_computed_once_and_evicted_last_used_first() {
        let mut pool = BlockPool::new(3 * PER_PREFIX);
        let (mut one, mut two) = (Holding::default(), Holding::default());
        let names = [7, 8];
        assert!(pool.reserve(&mut one, 2 * BLOCK));
        pool.publish(&mut one, &names, 2 * BLOCK);
        assert_eq!((one.own, one.prefix, pool.held()), (0, 2, 2 * PER_PREFIX));
        // One token has to be computed, so the second block is not given.
        assert_eq!(pool.attach(&mut two, &names, 2 * BLOCK), BLOCK);
        assert!(!pool.reserve(&mut two, 3 * BLOCK + 1), "all or nothing");
        assert_eq!(pool.held(), 2 * PER_PREFIX);
        pool.release(&mut one, &names);
        assert_eq!((pool.held(), pool.available()), (PER_PREFIX, 2 * PER_PREFIX));
        assert!(pool.reserve(&mut two, 3 * BLOCK), "the unused block gives way");
        assert_eq!(pool.cached(&names), 1);
        pool.release(&mut two, &names);
        assert_eq!(pool.available(), pool.total());
    }
}
