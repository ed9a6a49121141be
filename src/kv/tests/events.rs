use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::model::{GEOMETRY, config, identity};
use super::store::MemoryStore;
use super::*;
use crate::error::Status;
use crate::kv::{BlockHash, IndexEvent, IndexedBlock};

pub fn cache_with_events(n_blocks: usize, events_kept: usize) -> Arc<Cache> {
    let shards = Shards::on_one_device(Arc::new(MemoryStore::new(GEOMETRY, n_blocks))).unwrap();
    Cache::new(identity(), shards, CacheConfig { events_kept, ..config() }).unwrap()
}

/// A reader that knows the index from its events alone.
#[derive(Default)]
pub struct Follower {
    next: u64,
    blocks: HashMap<BlockHash, Arc<IndexedBlock>>,
    /// Number of times that it fell behind and had to take a snapshot.
    gaps: usize,
}

impl Follower {
    /// Reads all events, and compares what they say with the index.
    pub fn follow(&mut self, cache: &Cache) {
        loop {
            let batch = cache.read_events(self.next, 5, Some(Duration::ZERO)).unwrap();
            if self.next < batch.oldest {
                assert!(batch.events.is_empty());
                self.gaps += 1;
                self.take_snapshot(cache);
                continue;
            }
            self.next += batch.events.len() as u64;
            batch.events.into_iter().for_each(|event| self.apply(event));
            if self.next == batch.end {
                break;
            }
        }
        let state = cache.shared.lock();
        let index = &state.pool.blocks.index;
        assert_eq!(self.blocks.len(), index.len());
        assert!(self.blocks.keys().all(|hash| index.get(hash).is_some()));
    }

    fn take_snapshot(&mut self, cache: &Cache) {
        let taken = cache.index_snapshot().unwrap();
        self.next = taken.next;
        self.blocks.clear();
        for (place, block) in taken.blocks.iter().enumerate() {
            describes_itself(block);
            // Each block follows its parent, if that is there at all.
            let parent = block.parent.and_then(|parent| taken.blocks.iter().position(|other| other.hash == parent));
            assert!(parent.is_none_or(|parent| parent < place));
            assert!(self.blocks.insert(block.hash, block.clone()).is_none());
        }
    }

    /// Applies one event, which must change something.
    fn apply(&mut self, event: IndexEvent) {
        match event {
            IndexEvent::Stored(block) => {
                describes_itself(&block);
                assert!(self.blocks.insert(block.hash, block).is_none());
            }
            IndexEvent::Removed(block) => assert!(self.blocks.remove(&block.hash).is_some()),
            IndexEvent::Cleared => {
                assert!(!self.blocks.is_empty());
                self.blocks.clear();
            }
        }
    }
}

/// The hash of a block follows from the rest of its description, as another party computes it.
fn describes_itself(block: &IndexedBlock) {
    let before = block.parent.unwrap_or_else(|| HashChain::new(block.salt, GEOMETRY.block_tokens).head());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&before.0);
    block.tokens.iter().for_each(|token| _ = hasher.update(&token.to_le_bytes()));
    assert_eq!(block.hash.0, *hasher.finalize().as_bytes());
    assert_eq!(block.parent.is_none(), block.position == 0);
}

fn events(cache: &Cache, from: u64) -> Vec<IndexEvent> {
    let batch = cache.read_events(from, usize::MAX, Some(Duration::ZERO)).unwrap();
    assert!(from >= batch.oldest, "{batch:?}");
    batch.events
}

/// Empties the prefix index as closing does, except for blocks that somebody uses.
fn empty(cache: &Cache) {
    cache.shared.with(|state| state.end_all());
}

#[test]
fn events_tell_what_enters_and_leaves_the_index() {
    let cache = cache_with_events(4, 100);
    let salted = Seq::computed(&cache, 9, 0, 7);
    let [IndexEvent::Stored(first), IndexEvent::Stored(second)] = &events(&cache, 1)[..] else { panic!() };
    assert_eq!((first.position, first.parent, first.salt), (0, None, 7));
    assert_eq!((second.position, second.parent, second.salt), (1, Some(first.hash), 7));
    assert_eq!((&*first.tokens, &*second.tokens), (&[0, 1, 2, 3][..], &[4, 5, 6, 7][..]));
    drop(salted);
    // A block that is in the index already is no event.
    let again = Seq::computed(&cache, 8, 0, 7);
    assert_eq!(events(&cache, 3).len(), 0);
    drop(again);
    // The same tokens without the salt are other blocks, and take the place of the last salted one first.
    let plain = Seq::computed(&cache, 12, 0, 0);
    let [removed, stored @ ..] = &events(&cache, 3)[..] else { panic!() };
    assert!(matches!(removed, IndexEvent::Removed(block) if block.hash == second.hash), "{removed:?}");
    assert!(stored.iter().all(|event| matches!(event, IndexEvent::Stored(block) if block.salt == 0)), "{stored:?}");
    assert_eq!(stored.len(), 3);
    // One that another still uses stays, so the index is not cleared.
    empty(&cache);
    assert!(matches!(&events(&cache, 7)[..], [IndexEvent::Removed(block)] if block.hash == first.hash));
    drop(plain);
    empty(&cache);
    assert!(matches!(events(&cache, 8)[..], [IndexEvent::Cleared]));
    empty(&cache);
    assert!(events(&cache, 9).is_empty());
}

#[test]
fn a_reader_that_is_late_is_told_and_continues_from_a_snapshot() {
    let cache = cache_with_events(64, 4);
    let seqs: Vec<Seq> = (0..6).map(|salt| Seq::computed(&cache, 8, 0, salt)).collect();
    let gap = cache.read_events(1, 9, None).unwrap();
    assert_eq!((gap.oldest, gap.end, gap.events.len()), (9, 13, 0));
    assert_eq!(events(&cache, 9).len(), 4);
    let mut follower = Follower::default();
    follower.follow(&cache);
    assert_eq!((follower.gaps, follower.next, follower.blocks.len()), (1, 13, 12));
    drop(seqs);
    empty(&cache);
    follower.follow(&cache);
    assert_eq!((follower.gaps, follower.next, follower.blocks.len()), (1, 14, 0));
    let error = cache.read_events(15, 1, None).unwrap_err();
    assert_eq!(error.status, Status::InvalidArgument, "{error}");
}

#[test]
fn a_cache_without_a_log_refuses_readers() {
    let cache = model::cache(4);
    assert_eq!(cache.read_events(1, 1, None).unwrap_err().status, Status::Unsupported);
    assert_eq!(cache.index_snapshot().unwrap_err().status, Status::Unsupported);
}

#[test]
#[cfg(not(feature = "shuttle"))]
fn readers_sleep_until_there_is_an_event_or_the_cache_is_closed() {
    let cache = cache_with_events(8, 4);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut next = 1;
                    loop {
                        match cache.read_events(next, 8, None) {
                            Ok(batch) => {
                                assert!(!batch.events.is_empty(), "{batch:?}");
                                next += batch.events.len() as u64;
                            }
                            Err(error) => return (next, error.status),
                        }
                    }
                })
            })
            .collect();
        let seq = Seq::computed(&cache, 8, 0, 0);
        drop(seq);
        cache.close();
        for reader in readers {
            // Two blocks stored, and the index cleared by the closing.
            assert_eq!(reader.join().unwrap(), (4, Status::Shutdown));
        }
    });
}

/// Snapshots of an index that changes meanwhile are what the events up to their number say.
#[test]
#[cfg(not(feature = "shuttle"))]
fn a_snapshot_is_the_state_at_its_number() {
    const BLOCKS: usize = 5000;
    let cache = cache_with_events(BLOCKS, 1 << 20);
    let fill: Vec<Seq> = (0..3).map(|salt| Seq::computed(&cache, 4 * 1000, 0, salt + 1)).collect();
    drop(fill);
    let done = std::sync::atomic::AtomicBool::new(false);
    let taken = std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            let mut salt = 100;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                drop(Seq::computed(&cache, 4 * 60, 0, salt));
                salt += 1;
            }
        });
        let taken: Vec<_> = (0..20).map(|_| cache.index_snapshot().unwrap()).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        changes.join().unwrap();
        taken
    });
    let mut follower = Follower { next: 1, ..Follower::default() };
    for taken in taken {
        while follower.next < taken.next {
            let most = (taken.next - follower.next) as usize;
            let batch = cache.read_events(follower.next, most, None).unwrap();
            follower.next += batch.events.len() as u64;
            batch.events.into_iter().for_each(|event| follower.apply(event));
        }
        let blocks: HashMap<_, _> = taken.blocks.iter().map(|block| (block.hash, block.clone())).collect();
        assert_eq!(blocks.len(), taken.blocks.len());
        assert!(blocks == follower.blocks);
    }
}

#[test]
fn imports_are_events_too() {
    let (from, to) = (model::cache(8), cache_with_events(8, 16));
    let Seq { snapshot, table } = Seq::computed(&from, 9, 0, 3);
    let id = from.handles().export(snapshot, table, None).unwrap();
    let mut image = vec![0; from.images().len(id).unwrap() as usize];
    from.images().read(id, 0, &mut image).unwrap();
    to.images().import(&image).unwrap();
    let stored = events(&to, 1);
    assert!(matches!(&stored[..], [IndexEvent::Stored(a), IndexEvent::Stored(b)] if b.parent == Some(a.hash)));
    let mut follower = Follower::default();
    follower.follow(&to);
    assert_eq!(follower.blocks.len(), 2);
}

/// The numbers of docs/kv-events.md, which were computed with Python's blake3.
#[test]
fn hashes_are_those_of_the_document() {
    let tokens: Vec<u32> = (0..32).collect();
    let short = |salt| HashChain::of(salt, 16, &tokens).hashes().iter().map(BlockHash::short).collect::<Vec<_>>();
    assert_eq!(short(0), [0xaf85_30a7_7908_cd5f, 0xd955_9422_9b2a_a3fb]);
    assert_eq!(short(7), [0x4a26_6166_0dbb_e2f2, 0x675e_fd81_fb5e_0bb0]);
}
