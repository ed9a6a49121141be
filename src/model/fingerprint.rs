//! The identity of a model: what must be equal for KV computed by one host to mean anything to another.
//!
//! BLAKE3 over the canonical decoder facts of config.json and, for every tensor the decoder uses in a fixed
//! order, its name, dtype, shape and contents. File names, sharding, metadata and unused tensors do not enter,
//! so the same weights sharded otherwise are the same model; the same weights in another dtype are not.
//!
//! **Contents are sampled.** Tensors of at most 256 KiB (all norms and biases) are hashed whole; of larger ones
//! 16 pieces of 16 KiB, evenly spread, the first and the last included. A 2 GB model then costs some milliseconds
//! and a 140 GB one tens, where hashing everything takes 0.4 s and 25 s (5.5 GB/s on one core, measured) and reads
//! every byte of the checkpoint before the first handle can be exported, at every start of every process.
//! Fine-tuning, merging adapters, other quantisation or pruning change nearly every element of a matrix, so any
//! sample shows them. What a sample can miss is a checkpoint edited by hand in a few rows of a large matrix and
//! nowhere else (a few embedding rows, say); whoever does that and mixes both in one fleet should compare
//! whole-file digests of their own.

use crate::model::checkpoint::Checkpoint;
use crate::model::config::ModelConfig;

const WHOLE: usize = 256 << 10;
const PIECE: usize = 16 << 10;
const PIECES: usize = WHOLE / PIECE;

/// Takes the fingerprint. Reads up to 256 KiB of each tensor.
pub fn fingerprint(config: &ModelConfig, checkpoint: &Checkpoint) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("cleave 2026 model fingerprint v1");
    field(&mut hasher, config.canonical().as_bytes());
    for tensor in checkpoint.tensors() {
        let shape = tensor.stored.shape.iter().map(|n| n.to_string()).collect::<Vec<_>>().join("x");
        field(&mut hasher, format!("{} {} {shape}", tensor.name(), tensor.dtype).as_bytes());
        contents(&mut hasher, tensor.bytes());
    }
    *hasher.finalize().as_bytes()
}

fn field(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn contents(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    if bytes.len() <= WHOLE {
        hasher.update(bytes);
        return;
    }
    let last = bytes.len() - PIECE;
    for i in 0..PIECES {
        let start = (last as u128 * i as u128 / (PIECES as u128 - 1)) as usize;
        hasher.update(&bytes[start..start + PIECE]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(bytes: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        contents(&mut hasher, bytes);
        hasher.finalize()
    }

    /// A change that reaches over a sixteenth of a large tensor shows wherever it is, and so do the ends.
    #[test]
    fn samples_of_large_tensors() {
        for len in [WHOLE, WHOLE + 1, WHOLE + PIECE, 3_000_001] {
            let good = vec![7u8; len];
            let stretch = len / (PIECES - 1);
            for start in (0..len - stretch).step_by(stretch / 3) {
                let mut bytes = good.clone();
                bytes[start..start + stretch].fill(8);
                assert_ne!(hash(&bytes), hash(&good), "{len} from {start}");
            }
            for at in [0, len - 1] {
                let mut bytes = good.clone();
                bytes[at] = 8;
                assert_ne!(hash(&bytes), hash(&good), "{len} at {at}");
            }
        }
    }
}
