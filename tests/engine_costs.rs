//! Cost of waiting: idle or blocked engines use no CPU time, and requests that wait use little memory. These tests
//! measure their process, so they have one of their own and run one after the other.

mod common;

use cleave::engine::{CacheOptions, EngineOptions, ModelCache, Request, Role};
use common::*;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// CPU time of this process in nanoseconds, over all threads that have existed.
fn cpu_ns() -> u64 {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let stat = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
        sum += stat.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    sum
}

/// Checks that some second passes almost without CPU time, once pending work has finished.
fn assert_sleeps(what: &str) {
    std::thread::sleep(Duration::from_millis(100));
    let mut spent = Vec::new();
    while spent.len() < 10 {
        let before = cpu_ns();
        std::thread::sleep(Duration::from_secs(1));
        spent.push(cpu_ns() - before);
        if spent.last() < Some(&5_000_000) {
            return;
        }
    }
    panic!("{what}: {spent:?} ns of CPU in seconds of idleness");
}

/// Creates a cache of `blocks` blocks of 16 tokens, without a prefix index, which would keep blocks.
fn plain(blocks: u64) -> Arc<ModelCache> {
    let bytes = blocks * 16 * tiny().info().kv_bytes_per_token;
    cache(CacheOptions { bytes, no_prefix_cache: true, ..CacheOptions::default() })
}

#[test]
fn idle_engines_use_no_cpu() {
    let _alone = alone();
    let cache = cache_of(60);
    let mut host = Host::new();
    let options = |r| EngineOptions { threads: 2, ..role(r) };
    let engines = [host.engine(&cache, options(Role::Prefill)), host.engine(&cache, options(Role::Mixed))];
    for engine in &engines {
        host.run(engine, request(&prompt(20, 1), 5));
    }
    assert_sleeps("idle");
}

#[test]
fn an_engine_whose_queue_is_full_sleeps() {
    let _alone = alone();
    let cache = plain(60);
    let mut host = Host::with_capacity(8);
    let engine = host.engine(&cache, role(Role::Mixed));
    let ids: Vec<_> = (0..3).map(|i| host.squeeze(&engine, request(&prompt(20, i), 40))).collect();
    assert_sleeps("stalled");
    for id in ids {
        assert_eq!(host.finish(id).tokens.len(), 40);
    }
}

#[test]
fn an_engine_without_blocks_sleeps_until_there_are_some() {
    let _alone = alone();
    for closed in [false, true] {
        let cache = plain(20);
        let (mut stalled, mut host) = (Host::with_capacity(6), Host::new());
        let holder = stalled.engine(&cache, role(Role::Mixed));
        let held = stalled.submit(&holder, request(&prompt(200, 1), 60));
        stalled.tokens(held, 1);
        let engine = host.engine(&cache, role(Role::Mixed));
        let id = host.submit(&engine, request(&prompt(160, 2), 10));
        if closed {
            cache.close();
        }
        assert_sleeps(if closed { "short of blocks, cache closed" } else { "short of blocks" });
        assert!(!host.outcomes.contains_key(&id));
        assert_eq!(stalled.finish(held).tokens.len(), 60);
        assert_eq!(host.finish(id).tokens.len(), 10);
    }
}

/// Engines are woken for what they need now, not for what they needed when they first ran out of blocks.
#[test]
fn a_smaller_request_behind_a_large_one_is_woken() {
    let _alone = alone();
    let cache = plain(20);
    let mut host = Host::new();
    let prefill = host.engine(&cache, role(Role::Prefill));
    let engine = host.engine(&cache, role(Role::Mixed));
    host.run(&prefill, request(&prompt(160, 1), 5));
    let large = host.submit(&engine, request(&prompt(240, 2), 5));
    std::thread::sleep(Duration::from_millis(50));
    let second = host.run(&prefill, request(&prompt(128, 3), 5)).end.unwrap().kv;
    engine.cancel(large).unwrap();
    host.finish(large);
    let small = host.submit(&engine, request(&prompt(70, 4), 5));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!host.outcomes.contains_key(&small));
    cache.kv().handles().release(cleave::kv::KvId(second)).unwrap();
    for _ in 0..600 {
        host.poll(Duration::from_millis(50));
        if host.outcomes.get(&small).is_some_and(|o| o.end.is_some()) {
            return;
        }
    }
    panic!("10 blocks are free, 5 are needed, and nobody told the engine");
}

/// Time that a request takes from its 40th token to its 440th.
fn pace(host: &mut Host, id: u64) -> Duration {
    host.tokens(id, 40);
    let begun = Instant::now();
    host.tokens(id, 440);
    begun.elapsed()
}

/// Waiting requests cost memory in proportion to their number, and do not slow down steps.
#[test]
fn a_flood_of_requests_does_not_slow_steps() {
    let _alone = alone();
    let bytes = 60 * 16 * tiny().info().kv_bytes_per_token;
    let cache = cache(CacheOptions { bytes, ..CacheOptions::default() });
    let mut host = Host::with_capacity(1 << 18);
    let options = EngineOptions { max_sequences: 1, max_waiting: 1 << 18, ..role(Role::Mixed) };
    let engine = host.engine(&cache, options);
    let first = host.submit(&engine, request(&prompt(2, 1), 450));
    let before = pace(&mut host, first);
    host.finish(first);
    let rss = || -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let (memory, begun) = (rss(), Instant::now());
    let flood = |i: u64| Request { deadline: Some(Duration::from_secs(3600)), ..request(&[1, i as u32 % 50], 2000) };
    let submitted = engine.submit((0..100_000).map(flood).collect());
    assert!(submitted.refused.is_none(), "{:?}", submitted.refused);
    let taken = begun.elapsed();
    // Takes the best of several attempts, because the machine may have been busy with other work.
    let bound = before * 3 + Duration::from_millis(300);
    let mut after = Duration::MAX;
    for &id in &submitted.ids[..3] {
        if after >= bound {
            after = after.min(pace(&mut host, id));
        }
    }
    let each = rss().saturating_sub(memory) / 100_000;
    println!("400 tokens: {before:?} alone, {after:?} with 100000 waiting; submit {taken:?}; {each} bytes each");
    assert!(after < bound, "{before:?} alone, {after:?} with 100000 waiting");
    assert!(each < 4096, "{each} bytes for each waiting request");
    let begun = Instant::now();
    engine.shutdown();
    assert!(begun.elapsed() < Duration::from_secs(60));
    while host.poll(Duration::from_millis(50)) > 0 {}
    let ended = submitted.ids.iter().filter(|id| host.outcomes.get(id).is_some_and(|o| o.end.is_some()));
    assert_eq!(ended.count(), 100_000);
    assert_quiescent(&cache);
}
