//! Information for routers and planners about an engine: its load, the role in effect, and the events of its cache.
#![cfg(feature = "failpoints")]

mod common;

use cleave::engine::{CacheOptions, EngineOptions, Occupancy, Openness, Request, Role};
use cleave::failpoint::{Action, arm, let_go, reached};
use cleave::kv::{BlockHash, IndexEvent};
use common::*;
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

/// Failpoints apply to the whole process, so tests run one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The load can be read in the middle of a step, and a role that is set meanwhile takes effect at the end of that step.
#[test]
fn a_role_switch_is_proven_by_the_load() {
    let _alone = alone();
    let cache = cache_of(60);
    let mut host = Host::new();
    let engine = host.engine(&cache, EngineOptions { max_sequences: 2, max_waiting: 9, ..role(Role::Mixed) });
    let idle = engine.load();
    assert_eq!(
        (idle.role.role, idle.role_requested, idle.steps, idle.role.since_step),
        (Role::Mixed, Role::Mixed, 0, 0)
    );
    assert_eq!((idle.occupancy, idle.openness), (Occupancy::default(), Openness::Open));
    assert_eq!((idle.blocks.total, idle.blocks.available, idle.blocks.cached), (60, 60, 0));
    assert_eq!((idle.max_sequences, idle.max_waiting, idle.max_batch_tokens, idle.block_tokens), (2, 9, 512, 16));

    // The first request runs one step alone, then the second joins it; the third step is held.
    arm("engine.arrive", 1, Action::Hold);
    arm("engine.step", 3, Action::Hold);
    let mut ids = vec![host.submit(&engine, request(&prompt(20, 0), 5))];
    assert!(reached("engine.arrive", 1, MINUTE));
    ids.extend((1..3).map(|i| host.submit(&engine, request(&prompt(20, i), 5))));
    let_go("engine.arrive");
    assert!(reached("engine.step", 1, MINUTE));
    let held = engine.load();
    assert_eq!(held.steps, 2);
    assert_eq!(held.occupancy, Occupancy { decoding: 2, waiting: 1, ..Occupancy::default() });
    assert!(held.blocks.available < 60);
    engine.set_role(Role::Prefill).unwrap();
    let late = host.submit(&engine, request(&prompt(20, 7), 5));
    let held = engine.load();
    assert_eq!((held.role.role, held.role_requested), (Role::Mixed, Role::Prefill));
    assert_eq!(held.occupancy.waiting, 2);

    let_go("engine.step");
    wait_until(|| engine.load().role.role == Role::Prefill);
    let switched = engine.load();
    assert_eq!((switched.role_requested, switched.role.since_step), (Role::Prefill, 3));
    assert!(switched.role.since_ns >= held.now_ns && switched.role.since_ns <= switched.now_ns);
    assert_eq!(switched.role.occupancy, Occupancy { decoding: 2, waiting: 2, ..Occupancy::default() });

    // Requests accepted before keep the role they were accepted under.
    for id in ids {
        assert_eq!(host.finish(id).tokens.len(), 5);
    }
    let end = host.finish(late);
    assert_eq!(end.tokens.len(), 1);
    cache.kv().handles().release(cleave::kv::KvId(end.end.unwrap().kv)).unwrap();
    assert_eq!(engine.load().role, switched.role);

    // An idle engine changes its role too.
    engine.set_role(Role::Decode).unwrap();
    wait_until(|| engine.load().role.role == Role::Decode);
    let load = engine.load();
    assert_eq!((load.role.since_step, load.role.occupancy), (load.steps, Occupancy::default()));
    assert!(load.throughput.prefill > 0.0 && load.throughput.decode > 0.0, "{load:?}");
    assert!(load.blocks.cached > 0 && load.blocks.available == 60);
    engine.drain(Some(MINUTE)).unwrap();
    assert_eq!(engine.load().openness, Openness::Draining);
}

fn wait_until(done: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < MINUTE);
        std::thread::yield_now();
    }
}

#[test]
fn requests_whose_kv_is_on_its_way_are_importing() {
    let _alone = alone();
    let options = || CacheOptions { secret: Some([5; 32]), ..CacheOptions::default() };
    let (from, to) = (cache(options()), cache(options()));
    let mut host = Host::new();
    let (prefill, decode) = (host.engine(&from, role(Role::Prefill)), host.engine(&to, role(Role::Decode)));
    let handed = host.run(&prefill, request(&prompt(50, 1), 5));
    let ticket = from.node().ticket(cleave::kv::KvId(handed.end.unwrap().kv)).unwrap();
    arm("transport.import.open", 1, Action::Hold);
    let kv = to.import(None, &ticket, 0).unwrap();
    assert!(reached("transport.import.open", 1, MINUTE));
    let id = host.submit(&decode, continuation(kv.0));
    wait_until(|| decode.load().occupancy == Occupancy { importing: 1, ..Occupancy::default() });
    let_go("transport.import.open");
    assert_eq!(host.finish(id).tokens.len(), 4);
    wait_until(|| decode.load().occupancy == Occupancy::default());
}

#[test]
fn a_failed_engine_says_so() {
    let _alone = alone();
    let cache = cache_of(60);
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Mixed));
    arm("engine.step", 1, Action::Panic);
    let id = host.submit(&engine, request(&prompt(20, 0), 5));
    host.finish(id);
    wait_until(|| engine.load().occupancy == Occupancy::default());
    assert_eq!(engine.load().openness, Openness::Failed);
}

/// Replaying the events gives the prefix index, whatever engines do: eviction, preemption, cancellation, handoffs, released
/// handles and imports into a second cache.
#[test]
fn events_follow_the_index_under_load() {
    let _alone = alone();
    let secret = Some([3; 32]);
    let options = |blocks: u64| CacheOptions {
        bytes: blocks * 16 * tiny().info().kv_bytes_per_token,
        events_kept: 1 << 16,
        secret,
        ..CacheOptions::default()
    };
    let (here, there) = (cache(options(24)), cache(options(40)));
    let mut host = Host::new();
    let prefill = host.engine(&here, EngineOptions { max_sequences: 6, ..role(Role::Prefill) });
    let mixed = host.engine(&here, EngineOptions { max_sequences: 6, max_batch_tokens: 48, ..role(Role::Mixed) });
    let decode = host.engine(&there, EngineOptions { max_sequences: 6, ..role(Role::Decode) });
    // Six sequences at once need more blocks than there are, however late this thread is.
    arm("engine.step", 1, Action::Hold);
    let mut open: Vec<_> = (0..6).map(|i| host.submit(&mixed, request(&prompt(60, 100 + i), 30))).collect();
    assert!(reached("engine.step", 1, MINUTE));
    let_go("engine.step");
    for round in 0..40 {
        let salted = |i: u32, n| Request { cache_salt: u64::from(i % 3), ..request(&prompt(n, u64::from(i % 5)), 30) };
        open.push(host.submit(&mixed, salted(round, 60 + round as usize % 40)));
        if round % 3 == 0 {
            mixed.cancel(open[open.len() / 2]).ok();
        }
        let handed = host.submit(&prefill, salted(round + 1, 50));
        let kv = cleave::kv::KvId(host.finish(handed).end.unwrap().kv);
        if kv.0 == 0 {
            continue;
        }
        match round % 4 {
            0 => here.kv().handles().release(kv).unwrap(),
            1 => {
                let ticket = here.node().ticket(kv).unwrap();
                let kv = there.import(None, &ticket, 0).unwrap();
                open.push(host.submit(&decode, continuation(kv.0)));
            }
            _ => open.push(host.submit(&mixed, continuation(kv.0))),
        }
    }
    for id in open {
        host.finish(id);
    }
    assert!(mixed.metrics().preemptions > 0);
    drop((prefill, mixed, decode));
    for (cache, evicted) in [(&here, 20), (&there, 0)] {
        let kv = cache.kv();
        let snapshot = kv.index_snapshot().unwrap();
        let (mut next, mut blocks, mut removed) = (1, HashSet::<BlockHash>::new(), 0);
        while next < snapshot.next {
            let batch = kv.read_events(next, 100, Some(Duration::ZERO)).unwrap();
            next += batch.events.len() as u64;
            for event in batch.events {
                match event {
                    IndexEvent::Stored(block) => assert!(blocks.insert(block.hash)),
                    IndexEvent::Removed(block) => {
                        removed += 1;
                        assert!(blocks.remove(&block.hash));
                    }
                    IndexEvent::Cleared => panic!("nobody cleared the index"),
                }
            }
        }
        assert_eq!(snapshot.blocks.iter().map(|block| block.hash).collect::<HashSet<_>>(), blocks);
        assert_eq!(kv.audit().by_prefix_index, blocks.len());
        assert!(removed >= evicted && !blocks.is_empty(), "{removed} removed, {} left", blocks.len());
        assert_quiescent(cache);
    }
}
