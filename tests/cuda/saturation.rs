//! The length of prefill steps is chosen by measurement, while the engine is idle and once per process.

use crate::common::*;
use crate::device::{self, cache_on};
use crate::drivers::alone;
use crate::generation::{TEXTS, tokens};
use cleave::engine::{CacheOptions, DEVICE_CPU, Engine, EngineOptions, Metrics, ModelCache, Role};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Options with a block size that no other test uses, because a measurement applies to one block size only.
fn options(block_tokens: u32, tokens: u64) -> CacheOptions {
    let bytes = tokens * tiny().info().kv_bytes_per_token;
    CacheOptions { bytes, block_tokens, ..CacheOptions::default() }
}

/// Options of an engine that chooses its step length by measurement, and uses all multiprocessors whatever other
/// engines there are.
fn choosing(role: Role) -> EngineOptions {
    EngineOptions { max_batch_tokens: 0, sm_percent: 100, ..crate::common::role(role) }
}

fn measured(engine: &Engine) -> Metrics {
    let begun = Instant::now();
    loop {
        let metrics = engine.metrics();
        if metrics.prefill_tokens_per_second > 0 {
            return metrics;
        }
        assert!(begun.elapsed() < Duration::from_secs(300), "nothing was chosen: {metrics:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_untouched(cache: &Arc<ModelCache>) {
    let audit = cache.kv().audit();
    assert_eq!((audit.leaked, audit.by_requests, audit.by_transfers), (0, 0, 0), "{audit:?}");
}

#[test]
fn is_chosen_shown_and_used_again() {
    let cache = cache_on(&tiny(), 0, options(24, 1000));
    let mut host = Host::new();
    // A decode engine does not need the measurement.
    let decode = host.engine(&cache, choosing(Role::Decode));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((decode.metrics().prefill_step_tokens, decode.metrics().prefill_tokens_per_second), (64, 0));

    let first = host.engine(&cache, choosing(Role::Prefill));
    let found = measured(&first);
    assert!((128..=512).contains(&found.prefill_step_tokens), "{found:?}");
    assert!(found.multiprocessors > 0);
    // The measurement must not appear in the engine's counters.
    assert_eq!((found.steps, found.prompt_tokens, found.busy_ns, found.step_ns_max), (0, 0, 0, 0));
    assert_untouched(&cache);
    let audit = cache.kv().audit();
    assert_eq!((audit.free, audit.by_prefix_index), (audit.total, 0), "{audit:?}");

    // Engines created later use the measured length at once. A length set by the host takes precedence.
    let second = host.engine(&cache, choosing(Role::Mixed)).metrics();
    assert_eq!(second.prefill_step_tokens, found.prefill_step_tokens);
    assert_eq!(second.prefill_tokens_per_second, found.prefill_tokens_per_second);
    let fixed = host.engine(&cache, EngineOptions { max_batch_tokens: 77, ..role(Role::Mixed) }).metrics();
    assert_eq!((fixed.prefill_step_tokens, fixed.prefill_tokens_per_second), (77, 0));
    assert_eq!(decode.metrics().prefill_step_tokens, 64);
    decode.set_role(Role::Mixed).unwrap();
    assert_eq!(decode.metrics().prefill_step_tokens, found.prefill_step_tokens);

    // The chosen length does not change the generated tokens.
    let of_cpu = host.engine(&cache_on(&tiny(), DEVICE_CPU, options(24, 1000)), role(Role::Mixed));
    assert_eq!((of_cpu.metrics().multiprocessors, of_cpu.metrics().prefill_step_tokens), (0, 512));
    let job = || request(&tokens(TEXTS[0]), 6);
    let expected = host.run(&of_cpu, job());
    assert_eq!(host.run(&decode, job()).tokens, expected.tokens);
}

/// The measurement uses only free blocks, at most half of them, and gives way to requests.
#[test]
fn stands_back_for_what_is_there() {
    let cache = cache_on(&tiny(), 0, options(20, 640));
    let mut host = Host::new();
    let engine = host.engine(&cache, choosing(Role::Mixed));
    let prompt = prompt(200, 3);
    let mut job = request(&prompt, 2);
    job.sampling.logprobs = None;
    host.run(&engine, job.clone());
    let cached = cache.kv().audit().by_prefix_index;
    assert!(cached >= 10);
    let found = measured(&engine);
    assert_eq!(found.prefill_step_tokens, 128, "with 440 tokens free there is room for no more");
    assert_untouched(&cache);
    assert_eq!(cache.kv().audit().by_prefix_index, cached);
    assert!(host.run(&engine, job).end.unwrap().cached_tokens >= 180);
}

#[test]
fn a_small_cache_is_not_measured() {
    let cache = cache_on(&tiny(), 0, options(12, 200));
    let mut host = Host::new();
    let engine = host.engine(&cache, choosing(Role::Mixed));
    host.run(&engine, request(&tokens(TEXTS[1]), 2));
    std::thread::sleep(Duration::from_millis(100));
    let metrics = engine.metrics();
    assert_eq!((metrics.prefill_step_tokens, metrics.prefill_tokens_per_second), (512, 0));
}

/// Without memory for a long step, the engine uses a shorter one and frees what the attempt allocated.
#[test]
fn with_little_memory() {
    alone("saturation::has_little_memory", "");
}

#[test]
#[ignore = "run by with_little_memory"]
fn has_little_memory() {
    device::simulate();
    let cache = cache_on(&tiny(), 0, options(16, 1000));
    let mut host = Host::new();
    let engine = host.engine(&cache, EngineOptions { max_batch_tokens: 512, ..role(Role::Mixed) });
    host.run(&engine, request(&tokens(TEXTS[1]), 3));
    // Limit the memory so that the engine below fits, but not a long step of it.
    let before = cleave::backend::devices::info(0).unwrap();
    let used = before.total_bytes - before.free_bytes;
    device::load(&format!("memory={}", used + (3 << 20)));
    let small = host.engine(&cache, choosing(Role::Mixed));
    let job = request(&tokens(TEXTS[1]), 3);
    let expected = host.run(&engine, job.clone());
    let found = host.run(&small, job);
    assert_eq!(found.tokens, expected.tokens);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(small.metrics().prefill_tokens_per_second, 0);
    assert_untouched(&cache);
    assert_eq!(host.run(&small, request(&tokens(TEXTS[2]), 3)).end.unwrap().status, None);
    drop((engine, small, cache, host));
    assert_eq!(device::leaks(), "");
}
