//! Shutdown under pressure: full queues, queues and caches that are closed, engines that are destroyed while others
//! submit. In any order of events each request gets one FINISHED, and every block is returned.

use crate::common::*;
use cleave::engine::{CacheOptions, Engine, EngineOptions, Request, Role};
use cleave::error::Status;
use cleave::kv::KvId;
use cleave::sequence::FinishReason;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Creates an engine with three requests, all stalled on a full queue.
fn stalled(cache: &Arc<cleave::engine::ModelCache>) -> (Host, Engine, Vec<u64>) {
    let mut host = Host::with_capacity(8);
    let engine = host.engine(cache, role(Role::Mixed));
    let job = |i| Request { keep_kv: true, ..request(&prompt(20, i), 40) };
    let ids = (0..3).map(|i| host.squeeze(&engine, job(i))).collect();
    std::thread::sleep(Duration::from_millis(100));
    (host, engine, ids)
}

#[test]
fn stalled_requests_end_however_they_end() {
    let cache = cache_of(60);
    let (mut host, engine, ids) = stalled(&cache);
    engine.cancel(ids[0]).unwrap();
    engine.export(ids[1]).unwrap();
    let outcome = host.finish(ids[0]);
    assert_eq!(outcome.end.unwrap().status, Some(Status::Cancelled));
    let outcome = host.finish(ids[1]);
    assert_eq!(outcome.reason(), FinishReason::Exported);
    // The pending events come first; the continuation produces the rest.
    let rest = host.squeeze(&engine, continuation(outcome.end.unwrap().kv));
    let rest = host.finish(rest);
    let indices: Vec<_> = outcome.indices.iter().chain(&rest.indices).copied().collect();
    assert_eq!(indices, (0..40).collect::<Vec<_>>());
    assert_eq!(host.finish(ids[2]).tokens.len(), 40);
    for kv in [host.finish(ids[2]).end.unwrap().kv, rest.end.unwrap().kv] {
        cache.kv().handles().release(KvId(kv)).ok();
    }
    drop(engine);
    assert_quiescent(&cache);
}

#[test]
fn a_stalled_engine_drains_when_polled_and_is_destroyed_when_not() {
    let cache = cache_of(60);
    let (mut host, engine, ids) = stalled(&cache);
    assert_eq!(engine.drain(Some(Duration::from_millis(30))).unwrap_err().status, Status::Timeout);
    let overdue = Request { deadline: Some(Duration::from_millis(30)), ..request(&prompt(9, 9), 40) };
    assert_eq!(engine.submit(vec![overdue]).refused.unwrap().status, Status::Shutdown);
    let begun = Instant::now();
    drop(engine);
    assert!(begun.elapsed() < Duration::from_secs(5), "destroy waited for the host");
    assert_quiescent(&cache);
    for id in ids {
        assert_eq!(host.finish(id).end.unwrap().status, Some(Status::Shutdown));
    }
}

#[test]
fn a_deadline_ends_a_stalled_request() {
    let cache = cache_of(60);
    let mut host = Host::with_capacity(6);
    let engine = host.engine(&cache, role(Role::Mixed));
    let deadline = Some(Duration::from_millis(150));
    let id = host.submit(&engine, Request { deadline, ..request(&prompt(20, 1), 400) });
    std::thread::sleep(Duration::from_millis(300));
    assert_quiescent(&cache);
    assert_eq!(host.finish(id).end.unwrap().status, Some(Status::Timeout));
}

#[test]
fn a_repeated_token_waits_for_room_too() {
    let cache = cache_of(60);
    let mut host = Host::new();
    let prefill = host.engine(&cache, role(Role::Prefill));
    let first = host.run(&prefill, request(&prompt(20, 1), 12));
    let mut full = Host::with_capacity(6);
    let engine = full.engine(&cache, role(Role::Decode));
    let other = full.submit(&engine, request(&prompt(20, 2), 30));
    std::thread::sleep(Duration::from_millis(50));
    let repeat = Request { emit_pending: true, ..continuation(first.end.unwrap().kv) };
    let id = full.squeeze(&engine, repeat);
    let rest = full.finish(id);
    assert_eq!(rest.indices, (0..12).collect::<Vec<_>>());
    assert_eq!(full.finish(other).tokens.len(), 30);
}

#[test]
fn a_request_that_waits_can_be_handed_over() {
    let cache = cache_of(60);
    // With a small queue, the first request cannot end and let the second run before it is polled.
    let mut host = Host::with_capacity(32);
    let engine = host.engine(&cache, EngineOptions { max_sequences: 1, ..role(Role::Mixed) });
    let other = host.engine(&cache, role(Role::Decode));
    let first = host.submit(&engine, request(&prompt(20, 1), 100));
    host.tokens(first, 1);
    let second = host.squeeze(&engine, request(&prompt(30, 2), 9));
    engine.export(second).unwrap();
    let outcome = host.finish(second);
    assert_eq!((outcome.reason(), outcome.tokens.len()), (FinishReason::Exported, 0));
    let rest = host.squeeze(&other, continuation(outcome.end.unwrap().kv));
    assert_eq!(host.finish(rest).indices, (0..9).collect::<Vec<_>>());
    assert_eq!(engine.export(second).unwrap_err().status, Status::NotFound);
}

#[test]
fn closing_the_queue_lets_engines_run_out() {
    let bytes = 60 * 16 * tiny().info().kv_bytes_per_token;
    let cache = cache(CacheOptions { bytes, lease: Some(Duration::from_millis(100)), ..CacheOptions::default() });
    for full in [false, true] {
        let (host, engine, _) = stalled(&cache);
        if !full {
            host.queue.poll(&mut Vec::new(), 3, None).unwrap();
        }
        host.queue.close();
        engine.drain(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(engine.submit(vec![request(&[1], 1)]).refused.unwrap().status, Status::Shutdown);
        drop(engine);
        // No event announced the handles, so only their leases can end them.
        assert_quiescent(&cache);
    }
}

#[test]
fn closing_the_cache_under_its_engines() {
    let cache = cache_of(60);
    // With a small queue, none of the mixed engine's requests has ended by then.
    let mut host = Host::with_capacity(64);
    let engines = [host.engine(&cache, role(Role::Mixed)), host.engine(&cache, role(Role::Prefill))];
    let job = |i| Request { keep_kv: i % 2 == 0, ..request(&prompt(30, i), 60) };
    let ids: Vec<_> = (0..8).map(|i| host.squeeze(&engines[i as usize % 2], job(i))).collect();
    host.tokens(ids[0], 2);
    cache.close();
    cache.kv().audit();
    for (i, id) in ids.into_iter().enumerate() {
        let outcome = host.finish(id);
        // Requests that would have handed over have no destination; handles exported earlier are gone.
        if i % 2 == 0 && outcome.reason() != FinishReason::Prefilled {
            assert_eq!(outcome.end.unwrap().status, Some(Status::Shutdown), "{i}");
        }
        engines[0].metrics();
    }
    let plain = host.run(&engines[0], request(&prompt(30, 1), 5));
    assert_eq!(plain.tokens.len(), 5, "engines go on until they are destroyed");
    drop(engines);
    assert_quiescent(&cache);
}

#[test]
fn destroying_while_others_submit_loses_nothing() {
    let cache = cache_of(60);
    let mut host = Host::with_capacity(1 << 14);
    for round in 0..60 {
        let engines: Vec<_> = (0..2).map(|_| Arc::new(host.engine(&cache, role(Role::Mixed)))).collect();
        let submitters: Vec<_> = engines
            .iter()
            .cloned()
            .map(|engine| {
                std::thread::spawn(move || {
                    let mut ids = Vec::new();
                    for i in 0.. {
                        let submitted = engine.submit(vec![request(&prompt(3, i), 50)]);
                        ids.extend(submitted.ids);
                        match submitted.refused.map(|e| e.status) {
                            Some(Status::Shutdown) => break,
                            Some(Status::WouldBlock) => std::thread::yield_now(),
                            _ => {}
                        }
                    }
                    engine.metrics();
                    ids
                })
            })
            .collect();
        std::thread::sleep(Duration::from_micros(300 * round));
        let ends: Vec<_> = engines.iter().cloned().map(|e| std::thread::spawn(move || e.shutdown())).collect();
        ends.into_iter().for_each(|t| t.join().unwrap());
        let ids: Vec<u64> = submitters.into_iter().flat_map(|t| t.join().unwrap()).collect();
        while host.poll(Duration::ZERO) > 0 {}
        for id in ids {
            assert!(host.outcomes.get(&id).is_some_and(|o| o.end.is_some()), "round {round}: {id:#x} never ended");
        }
        host.outcomes.clear();
    }
    assert_quiescent(&cache);
}
