//! A sequence's result never depends on its neighbours. Tokens and the bits of every logprob are the same for any
//! batch, chunking, prefix-cache hit, preemption and handoff.

use crate::common::*;
use cleave::engine::{CacheOptions, EngineOptions, Role};
use cleave::kv::KvId;
use cleave::sequence::FinishReason;

/// Runs a request alone, with the whole prompt in one step and no prefix cache.
fn reference(request: cleave::engine::Request) -> Outcome {
    let cache = cache(CacheOptions { no_prefix_cache: true, ..CacheOptions::default() });
    let mut host = Host::new();
    let engine = host.engine(&cache, EngineOptions { max_batch_tokens: 4096, ..role(Role::Mixed) });
    let outcome = host.run(&engine, request);
    drop(engine);
    assert_quiescent(&cache);
    outcome
}

fn assert_same(got: &Outcome, want: &Outcome, what: &str) {
    assert_eq!(got.tokens, want.tokens, "{what}: tokens");
    assert_eq!(got.logprobs, want.logprobs, "{what}: bits of the logprobs");
    assert_eq!(got.top, want.top, "{what}: bits of the alternatives");
}

#[test]
fn chunking_and_batching_change_nothing() {
    let jobs: Vec<_> = (0..6).map(|i| sampled(&prompt(20 + 37 * i, i as u64), 24, 5 + i as u64)).collect();
    let want: Vec<_> = jobs.iter().map(|j| reference(j.clone())).collect();
    for (budget, threads) in [(16, 1), (50, 2), (1000, 3)] {
        let cache = cache_of(400);
        let mut host = Host::new();
        let options = EngineOptions { max_batch_tokens: budget, threads, ..role(Role::Mixed) };
        let engine = host.engine(&cache, options);
        let ids: Vec<_> = jobs.iter().map(|j| host.submit(&engine, j.clone())).collect();
        for (id, want) in ids.iter().zip(&want) {
            assert_same(&host.finish(*id), want, &format!("budget {budget}, {threads} threads"));
        }
        drop(engine);
        assert_quiescent(&cache);
    }
}

#[test]
fn prefix_hits_change_nothing() {
    let job = sampled(&prompt(100, 7), 20, 3);
    let want = reference(job.clone());
    let cache = cache_of(100);
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Mixed));
    assert_same(&host.run(&engine, job.clone()), &want, "first");
    assert_same(&host.run(&engine, job.clone()), &want, "with a warm prefix");
    let hits = engine.metrics().prefix_hit_tokens;
    assert_eq!(hits, 96, "all full blocks of the prompt, and not the whole of it");
    // Another salt must not hit.
    let salted = cleave::engine::Request { cache_salt: 1, ..job };
    assert_same(&host.run(&engine, salted), &want, "other salt");
    assert_eq!(engine.metrics().prefix_hit_tokens, hits);
    drop(engine);
    assert_quiescent(&cache);
}

#[test]
fn preemption_changes_nothing() {
    let jobs: Vec<_> = (0..5).map(|i| sampled(&prompt(30, 20 + i), 60, i + 1)).collect();
    let want: Vec<_> = jobs.iter().map(|j| reference(j.clone())).collect();
    // Each request needs 6 blocks in the end, so 14 blocks hold little more than two requests. The small queue keeps
    // the first ones from ending before all are submitted.
    let cache = cache_of(14);
    let mut host = Host::with_capacity(64);
    let engine = host.engine(&cache, role(Role::Mixed));
    let ids: Vec<_> = jobs.iter().map(|j| host.squeeze(&engine, j.clone())).collect();
    for (id, want) in ids.iter().zip(&want) {
        let got = host.finish(*id);
        assert_eq!(got.reason(), FinishReason::Length);
        assert_eq!(got.end.unwrap().cached_tokens, 0, "its own blocks, found again, were no hit");
        assert_same(&got, want, "preempted");
    }
    assert!(engine.metrics().preemptions > 0, "the cache was meant to be too small");
    drop(engine);
    assert_quiescent(&cache);
}

#[test]
fn two_engines_that_exhaust_one_cache_both_finish() {
    let jobs: Vec<_> = (0..8).map(|i| sampled(&prompt(30, 40 + i), 60, i + 1)).collect();
    let want: Vec<_> = jobs.iter().map(|j| reference(j.clone())).collect();
    let cache = cache_of(9);
    let mut host = Host::new();
    let engines = [host.engine(&cache, role(Role::Mixed)), host.engine(&cache, role(Role::Mixed))];
    let ids: Vec<_> = jobs.iter().enumerate().map(|(i, j)| host.submit(&engines[i % 2], j.clone())).collect();
    for (id, want) in ids.iter().zip(&want) {
        assert_same(&host.finish(*id), want, "two engines, one small cache");
    }
    drop(engines);
    assert_quiescent(&cache);
}

#[test]
fn handoff_in_the_same_cache_changes_nothing_and_moves_no_bytes() {
    let job = sampled(&prompt(150, 9), 30, 4);
    let want = reference(job.clone());
    let cache = cache_of(100);
    let mut host = Host::new();
    let prefill = host.engine(&cache, role(Role::Prefill));
    let decode = host.engine(&cache, role(Role::Decode));
    let first = host.run(&prefill, job);
    assert_eq!(first.reason(), FinishReason::Prefilled);
    assert_eq!(first.indices, [0]);
    let rest = host.run(&decode, continuation(first.end.unwrap().kv));
    assert_eq!(rest.reason(), FinishReason::Length);
    assert_eq!(rest.indices, (1..30).collect::<Vec<_>>());
    assert_same(&joined(&[first, rest]), &want, "prefill + decode");
    let metrics = decode.metrics();
    assert_eq!((metrics.kv_bytes_in, metrics.kv_bytes_out, metrics.handoffs), (0, 0, 1));
    drop((prefill, decode));
    assert_quiescent(&cache);
}

#[test]
fn the_pending_token_is_repeated_on_request() {
    let secret = Some([7; 32]);
    let make = || cache(CacheOptions { secret, bytes: 4 << 20, ..CacheOptions::default() });
    let (from, to) = (make(), make());
    let mut host = Host::new();
    let prefill = host.engine(&from, role(Role::Prefill));
    let (near, far) = (host.engine(&from, role(Role::Decode)), host.engine(&to, role(Role::Decode)));
    // The second time, the prompt is in the prefix cache. The final event reports the saving, on whichever engine it
    // occurs.
    for cached in [0, 32] {
        let first = host.run(&prefill, request(&prompt(40, 2), 8));
        assert_eq!(first.end.unwrap().cached_tokens, cached);
        let kv = first.end.unwrap().kv;
        let imported = to.import(None, &image(&from, kv), 1).unwrap().0;
        for (engine, kv) in [(&near, kv), (&far, imported)] {
            let repeat = cleave::engine::Request { emit_pending: true, ..continuation(kv) };
            let rest = host.run(engine, repeat);
            assert_eq!(rest.indices, (0..8).collect::<Vec<_>>());
            assert_eq!((rest.tokens[0], rest.logprobs[0]), (first.tokens[0], first.logprobs[0]));
            assert!(!first.top[0].is_empty() && rest.top[0] == first.top[0], "its alternatives come with it");
            assert_eq!(rest.end.unwrap().cached_tokens, cached);
        }
    }
}

#[test]
fn handoff_between_two_caches_changes_nothing() {
    let job = sampled(&prompt(75, 11), 30, 8);
    let want = reference(job.clone());
    let secret = Some([7; 32]);
    let make = || cache(CacheOptions { secret, bytes: 4 << 20, ..CacheOptions::default() });
    let (from, to) = (make(), make());
    let mut host = Host::new();
    let prefill = host.engine(&from, role(Role::Prefill));
    let decode = host.engine(&to, role(Role::Decode));
    for by_image in [false, true] {
        let first = host.run(&prefill, job.clone());
        let kv = first.end.unwrap().kv;
        let data = if by_image { image(&from, kv) } else { cleave::transport::ticket(from.kv(), KvId(kv)).unwrap() };
        // Submitted immediately, before the import has arrived.
        let imported = to.import(Some(&host.queue), &data, 77).unwrap().0;
        let rest = host.run(&decode, continuation(imported));
        assert_same(&joined(&[first, rest]), &want, if by_image { "image" } else { "ticket" });
        let ready = host.others.pop().expect("a KV_READY event");
        assert_eq!((ready.user_tag, ready.kv, ready.status), (77, imported, None));
        from.kv().handles().release(KvId(kv)).unwrap();
    }
    assert!(to.kv().stats().bytes_in > 0);
    drop((prefill, decode));
    assert_quiescent(&from);
    assert_quiescent(&to);
}

#[test]
fn a_running_generation_moves_on_export_and_through_a_file() {
    let job = sampled(&prompt(33, 12), 60, 21);
    let want = reference(job.clone());
    let secret = Some([9; 32]);
    let make = || cache(CacheOptions { secret, bytes: 4 << 20, ..CacheOptions::default() });
    let (a, b) = (make(), make());
    let mut host = Host::new();
    let first_engine = host.engine(&a, role(Role::Mixed));
    let id = host.submit(&first_engine, job);
    host.tokens(id, 5);
    first_engine.export(id).unwrap();
    let first = host.finish(id);
    assert_eq!(first.reason(), FinishReason::Exported);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.kv");
    a.kv().images().save(KvId(first.end.unwrap().kv), &path).unwrap();
    drop((first_engine, a));
    let second_engine = host.engine(&b, role(Role::Mixed));
    let kv = b.kv().images().load(&path).unwrap().0;
    let rest = host.run(&second_engine, continuation(kv));
    assert_same(&joined(&[first, rest]), &want, "exported, saved, loaded");
}

/// Penalty counts are kept while a sequence runs and are rebuilt where it continues.
#[test]
fn penalties_count_alike_after_a_handoff() {
    let mut job = sampled(&prompt(60, 31), 30, 8);
    job.sampling.repetition_penalty = 1.3;
    job.sampling.presence_penalty = 0.4;
    job.sampling.frequency_penalty = 0.7;
    let want = reference(job.clone());
    let cache = cache_of(100);
    let mut host = Host::with_capacity(16);
    let prefill = host.engine(&cache, role(Role::Prefill));
    let decode = host.engine(&cache, role(Role::Decode));
    let first = host.run(&prefill, job);
    let id = host.squeeze(&decode, continuation(first.end.unwrap().kv));
    host.tokens(id, 3);
    decode.export(id).unwrap();
    let second = host.finish(id);
    assert_eq!(second.reason(), FinishReason::Exported, "the queue has no room for all of its tokens");
    let third = host.run(&decode, continuation(second.end.unwrap().kv));
    assert_same(&joined(&[first, second, third]), &want, "penalties over two handoffs");
}

#[test]
fn a_kept_chat_takes_another_turn() {
    let (turn1, turn2) = (prompt(40, 1), prompt(25, 2));
    let cache = cache_of(100);
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Mixed));
    let kept = cleave::engine::Request { keep_kv: true, ..request(&turn1, 10) };
    let first = host.run(&engine, kept);
    assert_eq!(first.reason(), FinishReason::Length);
    let second = cleave::engine::Request { kv: first.end.unwrap().kv, ..request(&turn2, 12) };
    let second = host.run(&engine, second);
    let whole: Vec<u32> = [turn1, first.tokens, turn2].concat();
    let want = reference(request(&whole, 12));
    assert_same(&second, &want, "second turn");
    assert_eq!(second.indices[0], 0, "indices count from the last prompt");
}

#[test]
fn a_duplicate_goes_its_own_way() {
    let cache = cache_of(100);
    let mut host = Host::new();
    let prefill = host.engine(&cache, role(Role::Prefill));
    let decode = host.engine(&cache, role(Role::Decode));
    let job = request(&prompt(39, 3), 20);
    let want = reference(job.clone());
    let first = host.run(&prefill, job);
    let kv = first.end.unwrap().kv;
    let copies: Vec<u64> = (0..3).map(|_| cache.kv().handles().duplicate(KvId(kv)).unwrap().0).collect();
    let mut ids = vec![host.submit(&decode, continuation(kv))];
    ids.extend(copies.iter().map(|&kv| host.submit(&decode, continuation(kv))));
    for id in ids {
        assert_same(&joined(&[first.clone(), host.finish(id)]), &want, "duplicate");
    }
    drop((prefill, decode));
    assert_quiescent(&cache);
}

fn image(cache: &cleave::engine::ModelCache, kv: u64) -> Vec<u8> {
    let mut data = Vec::new();
    let mut piece = [0; 1000];
    loop {
        match cache.kv().images().read(KvId(kv), data.len() as u64, &mut piece).unwrap() {
            0 => return data,
            n => data.extend_from_slice(&piece[..n]),
        }
    }
}

fn joined(parts: &[Outcome]) -> Outcome {
    let mut whole = Outcome::default();
    for part in parts {
        whole.tokens.extend(&part.tokens);
        whole.logprobs.extend(&part.logprobs);
        whole.top.extend(part.top.iter().cloned());
        whole.end = part.end;
    }
    whole
}
