use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::model::GEOMETRY;
use super::*;

#[test]
fn reserve_is_all_or_nothing_and_drop_returns() {
    let cache = cache(4);
    let mut a = cache.table();
    assert!(a.reserve(0, 9) && a.blocks().len() == 3);
    let mut b = cache.table();
    assert!(!b.reserve(0, 5) && b.blocks().is_empty() && cache.stats().blocks_free == 1);
    assert!(b.reserve(0, 4));
    assert_eq!(sound(&cache).by_requests, 4);
    a.clear();
    assert!(b.reserve(4, 16));
    drop((a, b));
    assert_eq!((sound(&cache).by_requests, cache.stats().blocks_free), (0, 4));
}

#[test]
fn a_prefix_is_adopted_and_evicted_from_its_end() {
    let cache = cache(4);
    let a = Seq::computed(&cache, 16, 0, 5);
    let chain = HashChain::of(5, GEOMETRY.block_tokens, &a.snapshot.tokens);
    let blocks = a.table.blocks().to_vec();
    drop(a);
    assert_eq!((cache.stats().blocks_free, cache.available_blocks()), (0, 4));
    assert_eq!(sound(&cache).by_prefix_index, 4);
    // Another salt shares nothing, the same one everything.
    assert_eq!(Seq::new(&cache, (0..16).collect(), 6).snapshot.computed, 0);
    let again = Seq::new(&cache, (0..16).collect(), 5);
    assert_eq!(again.table.blocks(), blocks);
    again.verify(cache.store());
    drop(again);
    // Two blocks are needed: the two last ones go.
    let mut other = cache.table();
    assert!(other.reserve(0, 8));
    assert_eq!(cache.table().adopt_prefix(chain.hashes()), 2);
    sound(&cache);
    let mut used = cache.table();
    assert_eq!(used.adopt_prefix(&chain.hashes()[..1]), 1);
    drop(used);
    assert!(other.reserve(8, 16), "idle blocks are evicted whatever their age");
    assert_eq!(sound(&cache).by_prefix_index, 0);
}

#[test]
fn the_least_recently_used_chain_goes_first() {
    let cache = cache(4);
    for salt in [1, 2] {
        Seq::computed(&cache, 8, 0, salt);
    }
    drop(Seq::new(&cache, (0..8).collect(), 1));
    let mut table = cache.table();
    assert!(table.reserve(0, 8));
    assert_eq!(Seq::new(&cache, (0..8).collect(), 1).snapshot.computed, 8);
    assert_eq!(Seq::new(&cache, (0..8).collect(), 2).snapshot.computed, 0);
}

#[test]
fn shared_blocks_are_copied_before_they_are_written() {
    let cache = cache(8);
    let seq = Seq::computed(&cache, 7, 1, 0);
    let id = cache.handles().export(seq.snapshot, seq.table, None).unwrap();
    let copy = cache.handles().duplicate(id).unwrap();
    assert_eq!(sound(&cache).by_exports, 2);
    let (mut a, mut b) = (consume(&cache, id).unwrap(), consume(&cache, copy).unwrap());
    assert_eq!(a.table.blocks(), b.table.blocks());
    *a.snapshot.tokens.last_mut().unwrap() = 100;
    assert!(a.step(cache.store(), 1) && b.step(cache.store(), 1));
    assert_eq!(a.table.blocks()[0], b.table.blocks()[0]);
    assert_ne!(a.table.blocks()[1], b.table.blocks()[1]);
    a.verify(cache.store());
    b.verify(cache.store());
    // A whole prompt from the index: its last token is computed again, in a copy.
    drop((a, b));
    let full = Seq::computed(&cache, 8, 0, 3);
    let mut again = Seq::new(&cache, (0..8).collect(), 3);
    again.snapshot.computed -= 1;
    assert!(again.step(cache.store(), 1));
    assert_ne!(full.table.blocks()[1], again.table.blocks()[1]);
    again.verify(cache.store());
    sound(&cache);
}

#[test]
fn engines_short_of_blocks_are_woken_once_there_are_enough() {
    let cache = cache(4);
    let (mut a, mut b) = (cache.table(), cache.table());
    assert!(a.reserve(0, 8) && b.reserve(0, 8));
    let woken = Arc::new(AtomicUsize::new(0));
    let seen = (woken.clone(), Arc::downgrade(&cache));
    // The waker may use the cache: no lock is held.
    let waker: crate::kv::Waker = Arc::new(move || {
        let free = seen.1.upgrade().map_or(0, |cache| cache.stats().blocks_free);
        assert!(seen.0.fetch_add(1, Ordering::SeqCst) > 0 || free >= 3);
    });
    assert!(cache.wake_when_free(4, &waker) && cache.wake_when_free(3, &waker), "the last one holds");
    a.clear();
    assert_eq!(woken.load(Ordering::SeqCst), 0);
    drop(b);
    assert_eq!(woken.load(Ordering::SeqCst), 1);
    assert!(!cache.wake_when_free(3, &waker), "enough are there");
    assert!(a.reserve(0, 16) && cache.wake_when_free(3, &waker));
    cache.close();
    assert_eq!(woken.load(Ordering::SeqCst), 2);
    // Tables outlive the closing, and so does waiting for them.
    assert!(cache.wake_when_free(3, &waker));
    a.clear();
    assert_eq!(woken.load(Ordering::SeqCst), 3);
}
