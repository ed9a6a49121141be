//! Which shards make a pool.

use std::sync::Arc;

use super::store::MemoryStore;
use super::{Cache, KvGeometry, Shards, model};
use crate::error::Status;
use crate::kv::{Shard, ShardRange};
use crate::tensor::Dtype;

/// Blocks of which shards have a part each.
const WHOLE: KvGeometry =
    KvGeometry { layers: 3, kv_heads: 4, head_dim: 2, block_tokens: 4, dtype: Dtype::F16, shards: 1 };

/// A shard of `n_blocks` blocks with exactly the layers and heads of its range.
fn shard(layers: (u32, u32), heads: (u32, u32), n_blocks: usize) -> Shard {
    let range = ShardRange { layers, heads, tokens: (0, u32::MAX) };
    let geometry = KvGeometry { layers: layers.1 - layers.0, kv_heads: heads.1 - heads.0, ..WHOLE };
    Shard { range, store: Arc::new(MemoryStore::new(geometry, n_blocks)) }
}

#[track_caller]
fn refused(list: Vec<Shard>, status: Status, text: &str) {
    let error = Shards::new(WHOLE, list).err().expect("refused");
    assert_eq!(error.status, status, "{error}");
    assert!(error.message.contains(text), "{text:?} in {error}");
}

#[test]
fn one_shard_of_whole_blocks_is_a_pool() {
    let whole = shard((0, 3), (0, 4), 8);
    assert_eq!(ShardRange::of_heads(&WHOLE, 0, 1), whole.range);
    let shards = Shards::new(WHOLE, vec![whole.clone()]).unwrap();
    assert_eq!(shards.geometry(), &WHOLE);
    let cache = Cache::new(model::identity(), shards, model::config()).unwrap();
    assert!(std::ptr::addr_eq(cache.store(), &*whole.store), "nothing lies between the cache and its only store");
}

/// Shards that tile layers and heads get as far as the refusal of more than one.
#[test]
fn shards_that_hold_everything_once_are_unsupported_so_far() {
    let by_heads = vec![shard((0, 3), (2, 4), 8), shard((0, 3), (0, 2), 8)];
    let by_layers = vec![shard((0, 1), (0, 4), 8), shard((1, 3), (0, 4), 8)];
    let mixed = vec![shard((0, 1), (0, 4), 8), shard((1, 3), (0, 1), 8), shard((1, 3), (1, 4), 8)];
    for list in [by_heads, by_layers, mixed] {
        let text = format!("a KV pool in {} shards: this library copies blocks of one device only", list.len());
        refused(list, Status::Unsupported, &text);
    }
}

#[test]
fn other_shards_are_refused_by_name() {
    let invalid = |list: Vec<Shard>, text: &str| refused(list, Status::InvalidArgument, text);
    let half = || shard((0, 3), (0, 2), 8);
    invalid(vec![], "0 shards hold 0 of 12 heads of all layers");
    invalid(vec![half()], "1 shards hold 6 of 12 heads of all layers");
    invalid(vec![half(), shard((0, 2), (2, 4), 8)], "2 shards hold 10 of 12 heads of all layers");
    invalid(
        vec![half(), shard((2, 3), (1, 4), 8)],
        "shard 1: layers 2..3, heads 1..4, all tokens: overlaps with shard 0",
    );
    invalid(vec![half(), shard((0, 3), (2, 5), 8)], "shard 1: expected a part of layers 0..3, heads 0..4, all tokens");
    invalid(vec![half(), shard((0, 3), (2, 4), 7)], "shard 1: expected 8 blocks as in shard 0, found 7");
    let later = ShardRange { tokens: (4, u32::MAX), ..half().range };
    invalid(vec![Shard { range: later, ..half() }], "found layers 0..3, heads 0..2, tokens 4..");
    let other = Shard { store: shard((0, 3), (0, 1), 8).store, ..half() };
    invalid(vec![other], "shard 0: expected blocks of KvGeometry");
    let store = Arc::new(MemoryStore::new(KvGeometry { shards: 2, ..WHOLE }, 8));
    let parted = Shard { store, ..shard((0, 3), (0, 4), 8) };
    invalid(vec![parted], "shard 0: expected blocks of 1 shards, found 2");
}
