//! The identity of a model: what must be equal for KV computed by one host to mean anything to another.
//!
//! BLAKE3 over the canonical decoder facts of config.json and, for every tensor the decoder uses in a fixed order,
//! its name, dtype, shape and **every byte of its contents**. File names, sharding, metadata and unused tensors do not
//! enter, so the same weights sharded otherwise are the same model; the same weights in another dtype are not.
//!
//! Contents are hashed in pieces of [`PIECE`] bytes, each by whichever thread is free, and the digests of the pieces in
//! order; the result does not depend on the number of threads. What a large model costs on later loads is the business
//! of [`super::fingerprint_cache`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::ModelConfig;

/// Unit of work of a hashing thread. Part of the fingerprint's definition.
const PIECE: usize = 1 << 20;

/// Hashes config and all weights, on as many threads as the process has CPUs.
pub fn fingerprint(config: &ModelConfig, checkpoint: &Checkpoint) -> Result<[u8; 32]> {
    let tensors = checkpoint.tensors();
    let digests = piece_digests(&tensors.iter().map(|tensor| tensor.bytes()).collect::<Vec<_>>())?;
    let mut digests = digests.iter();
    let mut hasher = blake3::Hasher::new_derive_key("cleave 2026 model fingerprint v2");
    field(&mut hasher, config.canonical().as_bytes());
    for tensor in tensors {
        field(&mut hasher, tensor.describe().as_bytes());
        hasher.update(&(tensor.bytes().len() as u64).to_le_bytes());
        for digest in digests.by_ref().take(tensor.bytes().len().div_ceil(PIECE)) {
            hasher.update(digest);
        }
    }
    Ok(*hasher.finalize().as_bytes())
}

/// A text with its length before it, so that no two lists of fields hash alike.
pub(super) fn field(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// The digests of all pieces of all `contents`, in order.
fn piece_digests(contents: &[&[u8]]) -> Result<Vec<[u8; 32]>> {
    let pieces: Vec<&[u8]> = contents.iter().flat_map(|bytes| bytes.chunks(PIECE)).collect();
    let digest = |piece: &[u8]| *blake3::hash(piece).as_bytes();
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get());
    let threads = cpus.min(pieces.len());
    if threads <= 1 {
        return Ok(pieces.into_iter().map(digest).collect());
    }
    let next = AtomicUsize::new(0);
    let digests = Mutex::new(vec![[0; 32]; pieces.len()]);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            crate::sys::spawn_scoped(scope, "cleave-hash", || {
                while let Some((at, piece)) = take(&next, &pieces) {
                    let digest = digest(piece);
                    digests.lock().unwrap_or_else(PoisonError::into_inner)[at] = digest;
                }
            })?;
        }
        Ok(())
    })?;
    Ok(digests.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn take<'a>(next: &AtomicUsize, pieces: &[&'a [u8]]) -> Option<(usize, &'a [u8])> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    Some((at, *pieces.get(at)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The digests are those of one thread going through the pieces in order, and every byte enters.
    #[test]
    fn pieces_are_hashed_in_order_and_whole() {
        let tensors = [vec![1u8; 5 * PIECE + 7], vec![2; 10], Vec::new(), vec![3; PIECE]];
        let refs = |tensors: &[Vec<u8>]| piece_digests(&tensors.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        let good = refs(&tensors);
        let expected =
            tensors.iter().flat_map(|bytes| bytes.chunks(PIECE)).map(|piece| *blake3::hash(piece).as_bytes());
        assert_eq!(good, expected.collect::<Vec<_>>());
        for at in [0, 1, PIECE - 1, PIECE, 3 * PIECE + 12_345, 5 * PIECE + 6] {
            let mut tensors = tensors.clone();
            tensors[0][at] ^= 1;
            assert_ne!(refs(&tensors), good, "byte {at}");
        }
    }
}
