use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

use super::*;
use crate::error::Status;

fn status<T>(result: crate::error::Result<T>) -> Option<Status> {
    result.err().map(|error| error.status)
}

fn exported(cache: &Cache, lease: Option<Duration>) -> KvId {
    let seq = Seq::computed(cache, 9, 1, 0);
    cache.handles().export(seq.snapshot, seq.table, lease).unwrap()
}

#[test]
fn a_handle_is_consumed_once() {
    let cache = cache(8);
    let seq = Seq::computed(&cache, 9, 1, 0);
    let (blocks, before) = (seq.table.blocks().to_vec(), seq.snapshot.clone());
    let id = cache.handles().export(seq.snapshot, seq.table, None).unwrap();
    let info = cache.handles().info(id).unwrap();
    assert_eq!((info.n_tokens, info.computed, info.n_blocks), (9, 8, 2));
    assert_eq!(info.image_bytes, cache.images().len(id).unwrap());
    assert_eq!((sound(&cache).by_requests, sound(&cache).by_exports), (0, 2));
    let after = consume(&cache, id).unwrap();
    assert_eq!((after.table.blocks(), &after.snapshot), (&blocks[..], &before));
    assert_eq!(status(cache.handles().consume(id)), Some(Status::Expired));
    assert_eq!(status(cache.handles().info(id)), Some(Status::Expired));
    assert_eq!(status(cache.handles().renew(id, Duration::from_secs(1))), Some(Status::Expired));
    assert_eq!(status(cache.handles().release(id)), None);
    assert_eq!((cache.stats().bytes_in, cache.stats().bytes_out), (0, 0));
}

#[test]
fn ends_are_told_apart() {
    let (cache, other) = (cache(8), cache(8));
    let id = exported(&cache, None);
    assert_eq!(status(other.handles().consume(id)), Some(Status::NotFound));
    assert_eq!(status(other.handles().release(id)), Some(Status::NotFound));
    cache.handles().release(id).unwrap();
    cache.handles().release(id).unwrap();
    assert_eq!(status(cache.handles().consume(id)), Some(Status::NotFound));
    for never in [0, 1, u64::MAX, id.0 + 1, id.0 + (1 << 20)] {
        assert_eq!(status(cache.handles().release(KvId(never))), Some(Status::NotFound));
        assert_eq!(status(cache.handles().info(KvId(never))), Some(Status::NotFound));
    }
    let seq = Seq::computed(&cache, 9, 1, 0);
    assert_eq!(status(other.handles().export(seq.snapshot, seq.table, None)), Some(Status::InvalidArgument));
    let mut short = Seq::computed(&cache, 9, 1, 0);
    short.snapshot.computed = 9;
    assert_eq!(status(cache.handles().export(short.snapshot, short.table, None)), Some(Status::InvalidArgument));
    assert_eq!((sound(&cache).by_exports, sound(&cache).by_requests), (0, 0));
}

#[test]
fn blocks_reserved_ahead_stay_behind() {
    let cache = cache(8);
    let mut seq = Seq::computed(&cache, 9, 1, 0);
    assert!(seq.table.reserve(8, 20));
    let id = cache.handles().export(seq.snapshot, seq.table, None).unwrap();
    assert_eq!((sound(&cache).by_exports, cache.stats().blocks_free), (2, 6));
    assert_eq!(consume(&cache, id).unwrap().table.blocks().len(), 2);
}

#[test]
fn a_lease_ends_with_nobody_looking() {
    let cache = cache(8);
    let mut seq = Seq::new(&cache, vec![3; 32], 0);
    assert!(seq.table.reserve(0, 32));
    seq.snapshot.computed = 32;
    let long = Seq::new(&cache, vec![1], 1);
    let kept = cache.handles().export(long.snapshot, long.table, None).unwrap();
    // By now the timer sleeps until the long lease is over; the short one must wake it.
    std::thread::sleep(Duration::from_millis(50));
    let (woken, wait) = mpsc::channel();
    let id = cache.handles().export(seq.snapshot, seq.table, Some(Duration::from_millis(30))).unwrap();
    let waker: crate::kv::Waker = Arc::new(move || woken.send(()).unwrap());
    assert!(cache.wake_when_free(1, &waker));
    wait.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(sound(&cache).by_exports, 0);
    assert_eq!(status(cache.handles().consume(id)), Some(Status::Expired));
    assert!(cache.handles().info(kept).is_ok());
}

#[test]
fn renewing_keeps_a_handle() {
    let cache = cache(8);
    // Long for a machine that is late.
    let lease = Duration::from_millis(1000);
    let id = exported(&cache, Some(lease));
    for _ in 0..4 {
        std::thread::sleep(lease * 3 / 10);
        cache.handles().renew(id, lease).unwrap();
    }
    assert!(cache.handles().info(id).unwrap().lease_left > lease / 2);
    cache.handles().renew(id, Duration::MAX).unwrap();
    cache.handles().renew(id, Duration::ZERO).unwrap();
    assert_eq!(status(cache.handles().consume(id)), Some(Status::Expired));
    sound(&cache);
}

#[test]
fn of_racing_consumers_exactly_one_wins() {
    let cache = cache(8);
    for round in 0..300 {
        let id = exported(&cache, None);
        let barrier = Barrier::new(4);
        let wins: usize = std::thread::scope(|scope| {
            let run = |i: usize| {
                let (cache, barrier) = (&cache, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    if i == 3 && round % 2 == 0 {
                        cache.handles().release(id).unwrap();
                        return 0;
                    }
                    let mut piece = [0; 600];
                    let _ = cache.images().read(id, 100, &mut piece);
                    match cache.handles().consume(id) {
                        Ok(Consumed::Ready(snapshot, table)) => {
                            Seq { snapshot, table }.verify(cache.store());
                            1
                        }
                        Ok(Consumed::Pending) => panic!("pending"),
                        Err(error) => {
                            assert!(matches!(error.status, Status::Expired | Status::NotFound));
                            0
                        }
                    }
                })
            };
            let threads: Vec<_> = (0..4).map(run).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert!(wins == 1 || wins == 0 && round % 2 == 0, "{wins} winners in round {round}");
        let audit = sound(&cache);
        assert_eq!((audit.by_requests, audit.by_exports, audit.by_transfers), (0, 0, 0));
    }
}

#[test]
fn any_order_of_dropping_is_fine() {
    let cache = cache(8);
    let id = exported(&cache, None);
    let mut table = Seq::computed(&cache, 5, 0, 9).table;
    let other = Arc::clone(&cache);
    drop(cache);
    assert!(other.handles().info(id).is_ok());
    other.close();
    let audit = sound(&other);
    assert_eq!((audit.by_exports, audit.by_requests), (0, 2));
    assert_eq!(status(other.handles().info(id)), Some(Status::Shutdown));
    assert_eq!(status(other.handles().consume(id)), Some(Status::Shutdown));
    assert_eq!(
        status(other.handles().export(model::snapshot(vec![1], 0), other.table(), None)),
        Some(Status::Shutdown)
    );
    drop(other);
    assert!(table.reserve(5, 9));
    table.clear();
}

/// The best of many: a handoff must not depend on the sequence's length.
#[test]
fn a_handoff_takes_microseconds_at_any_length() {
    let cache = cache(4096);
    let mut times = Vec::new();
    for n in [16, 2048, 16000] {
        let mut seq = Seq::new(&cache, (0..n).collect(), 1 << 40 | u64::from(n));
        assert!(seq.table.reserve(0, n));
        seq.snapshot.computed = n - 1;
        let mut best = Duration::MAX;
        for _ in 0..2000 {
            let start = Instant::now();
            let id = cache.handles().export(seq.snapshot, seq.table, None).unwrap();
            seq = consume(&cache, id).unwrap();
            best = best.min(start.elapsed());
        }
        times.push(best);
    }
    if let Ok(path) = std::env::var("CLEAVE_HANDOFF_TIMES") {
        std::fs::write(path, format!("{times:?}\n")).unwrap();
    }
    assert!(times.iter().all(|&t| t < Duration::from_micros(20)), "{times:?}");
}
