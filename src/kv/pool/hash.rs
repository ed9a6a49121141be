//! The hash chain over a sequence's tokens, which identifies full blocks in the prefix index and in images.

use std::fmt;

/// Hash of a full block: BLAKE3 over the hash of the block before it and its own tokens. Equal hashes mean equal prefixes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash(pub [u8; 32]);

impl BlockHash {
    /// The first 8 bytes as a big-endian number: the hash in cache events and logs.
    pub fn short(&self) -> u64 {
        u64::from_be_bytes(self.0[..8].try_into().unwrap_or_default())
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.short())
    }
}

const ROOT_CONTEXT: &str = "cleave 2026-11 KV block hash chain v1";

/// Block hashes of one sequence, extended as its tokens come.
#[derive(Clone, Debug)]
pub struct HashChain {
    salt: u64,
    root: BlockHash,
    block_tokens: usize,
    hashes: Vec<BlockHash>,
    /// Little-endian tokens of the block that is not full yet.
    partial: Vec<u8>,
}

impl HashChain {
    /// An empty chain. Chains with different salts or block sizes share no hash.
    pub fn new(salt: u64, block_tokens: u32) -> HashChain {
        let mut root = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
        root.update(&salt.to_le_bytes()).update(&block_tokens.to_le_bytes());
        HashChain {
            salt,
            root: BlockHash(*root.finalize().as_bytes()),
            block_tokens: block_tokens.max(1) as usize,
            hashes: Vec::new(),
            partial: Vec::new(),
        }
    }

    /// The chain over `tokens`.
    pub fn of(salt: u64, block_tokens: u32, tokens: &[u32]) -> HashChain {
        let mut chain = HashChain::new(salt, block_tokens);
        chain.extend(tokens);
        chain
    }

    /// Appends tokens, and computes the hashes of blocks that become full.
    pub fn extend(&mut self, tokens: &[u32]) {
        for token in tokens {
            self.partial.extend_from_slice(&token.to_le_bytes());
            if self.partial.len() == 4 * self.block_tokens {
                let mut hasher = blake3::Hasher::new();
                hasher.update(&self.head().0).update(&self.partial);
                self.hashes.push(BlockHash(*hasher.finalize().as_bytes()));
                self.partial.clear();
            }
        }
    }

    /// Hashes of the full blocks, in order.
    pub fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }

    /// Salt that the chain began with; 0 for none.
    pub fn salt(&self) -> u64 {
        self.salt
    }

    /// Number of tokens in a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Number of full blocks of the first `tokens` tokens, and the hash of the last of them. None if the chain is shorter.
    pub fn prefix(&self, tokens: usize) -> Option<(u32, BlockHash)> {
        let full = tokens / self.block_tokens;
        match full {
            0 => Some((0, self.root)),
            _ => Some((full as u32, *self.hashes.get(full - 1)?)),
        }
    }

    /// Number of tokens appended so far.
    pub fn len_tokens(&self) -> usize {
        self.hashes.len() * self.block_tokens + self.partial.len() / 4
    }

    /// Hash of the last full block; that of the empty prefix if there is none.
    pub fn head(&self) -> BlockHash {
        self.hashes.last().copied().unwrap_or(self.root)
    }
}
