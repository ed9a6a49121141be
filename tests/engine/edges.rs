//! Edge cases of requests: full contexts and caches, limits and stops across a handoff, seeds, and handles of finished
//! generations.

use crate::common::*;
use cleave::engine::{CacheOptions, Engine, EngineOptions, Request, Role};
use cleave::error::Status;
use cleave::kv::KvId;
use cleave::sequence::FinishReason::{Exported, Length, Prefilled, Stop};

struct Two {
    host: Host,
    prefill: Engine,
    decode: Engine,
    cache: std::sync::Arc<cleave::engine::ModelCache>,
}

fn two() -> Two {
    let cache = cache_of(200);
    let host = Host::new();
    let (prefill, decode) = (host.engine(&cache, role(Role::Prefill)), host.engine(&cache, role(Role::Decode)));
    Two { host, prefill, decode, cache }
}

fn kv(outcome: &Outcome) -> u64 {
    let kv = outcome.end.unwrap().kv;
    assert_ne!(kv, 0, "{:?}", outcome.end);
    kv
}

/// Returns the greedy tokens after a prompt.
fn greedy(prompt: &[u32], n: u32) -> Vec<u32> {
    let cache = cache_of(200);
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Mixed));
    host.run(&engine, request(prompt, n)).tokens
}

#[test]
fn prompts_at_the_edge_of_the_context() {
    let context = tiny().info().max_context_tokens as usize;
    let mut two = two();
    for (n, tokens, reason) in [(context - 2, 2, Length), (context - 1, 1, Length), (context, 0, Length)] {
        let engine = two.host.engine(&two.cache, role(Role::Mixed));
        let outcome = two.host.run(&engine, request(&prompt(n, 1), u32::MAX));
        assert_eq!((outcome.tokens.len(), outcome.reason()), (tokens, reason), "{n} of {context}");
    }
    let refused = two.decode.submit(vec![request(&prompt(context + 1, 1), 1)]).refused.unwrap();
    assert_eq!(refused.status, Status::InvalidArgument);
    // Handed over one token before the limit.
    let first = two.host.run(&two.prefill, request(&prompt(context - 2, 1), u32::MAX));
    assert_eq!(first.reason(), Prefilled);
    let rest = two.host.run(&two.decode, continuation(kv(&first)));
    assert_eq!((rest.tokens.len(), rest.reason()), (1, Length));
}

#[test]
fn prompts_at_the_edge_of_the_cache() {
    let cache = cache_of(4);
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Mixed));
    for round in 0..2 {
        for (n, tokens) in [(61, 3), (62, 2), (63, 1), (64, 0)] {
            let outcome = host.run(&engine, request(&prompt(n, round), u32::MAX));
            assert_eq!((outcome.tokens.len(), outcome.reason()), (tokens, Length), "{n} of 64");
        }
    }
    // One handle holds the whole cache, and the generation continues from it.
    let kept = host.run(&engine, Request { keep_kv: true, ..request(&prompt(49, 7), 14) });
    let rest = host.run(&engine, Request { kv: kv(&kept), ..request(&[1], u32::MAX) });
    assert_eq!((rest.tokens.len(), rest.reason()), (0, Length));
    drop(engine);
    assert_quiescent(&cache);
}

#[test]
fn tiny_budgets_and_odd_blocks_change_nothing() {
    let job = || sampled(&prompt(45, 3), 20, 8);
    let run = |block_tokens, max_batch_tokens, no_prefix_cache| {
        let bytes = 400 * tiny().info().kv_bytes_per_token;
        let cache = cache(CacheOptions { block_tokens, bytes, no_prefix_cache, ..CacheOptions::default() });
        let mut host = Host::new();
        let engine = host.engine(&cache, EngineOptions { max_batch_tokens, ..role(Role::Mixed) });
        host.run(&engine, job());
        host.run(&engine, job())
    };
    let want = run(16, 512, true);
    for (block, budget) in [(1, 512), (16, 1), (8, 3), (64, 17), (256, 2)] {
        let got = run(block, budget, false);
        assert_eq!((got.tokens, got.logprobs), (want.tokens.clone(), want.logprobs.clone()), "{block}, {budget}");
    }
}

#[test]
fn limits_count_over_the_handoff() {
    let mut two = two();
    for n in [1, 2, 9] {
        let first = two.host.run(&two.prefill, request(&prompt(20, 1), n));
        assert_eq!((first.reason(), first.tokens.len()), (Prefilled, 1));
        let rest = two.host.run(&two.decode, continuation(kv(&first)));
        assert_eq!((rest.reason(), rest.tokens.len()), (Length, n as usize - 1));
        assert_eq!(rest.end.unwrap().index, n);
    }
    // A new limit also counts from the prompt.
    let first = two.host.run(&two.prefill, request(&prompt(20, 1), 30));
    let mut more = continuation(kv(&first));
    more.sampling.max_new_tokens = 4;
    assert_eq!(two.host.run(&two.decode, more).tokens.len(), 3);
    // A min_new_tokens above max_new_tokens is refused, and the handle survives.
    let first = two.host.run(&two.prefill, request(&prompt(20, 1), 30));
    let mut wrong = continuation(kv(&first));
    wrong.sampling.min_new_tokens = 31;
    assert_eq!(two.decode.submit(vec![wrong]).refused.unwrap().status, Status::InvalidArgument);
    assert_eq!(two.host.run(&two.decode, continuation(kv(&first))).tokens.len(), 29);
}

#[test]
fn stops_and_minima_span_the_handoff() {
    let mut two = two();
    let words = prompt(20, 6);
    let tokens = greedy(&words, 12);
    // A stop sequence matches across engines: its first token on the prefill engine, the other two on the decode
    // engine.
    let mut job = request(&words, 12);
    job.sampling.stop_sequences = vec![tokens[..3].to_vec()];
    let first = two.host.run(&two.prefill, job.clone());
    assert_eq!(first.reason(), Prefilled);
    let rest = two.host.run(&two.decode, continuation(kv(&first)));
    assert_eq!((rest.reason(), &rest.tokens[..]), (Stop, &tokens[1..3]));
    // No stop before the minimum, which counts from the prompt. The stop sequence does not occur again at exactly that
    // place.
    job.sampling.min_new_tokens = 4;
    let first = two.host.run(&two.prefill, job);
    let rest = two.host.run(&two.decode, continuation(kv(&first)));
    assert!(rest.tokens.len() > 2, "{rest:?}");
    // A stop on the prefill engine itself ends the generation there, and the handle is still kept.
    let mut job = request(&words, 12);
    job.sampling.stop_ids = vec![tokens[0]];
    let first = two.host.run(&two.prefill, job);
    assert_eq!((first.reason(), first.tokens.len()), (Stop, 1));
    kv(&first);
}

#[test]
fn a_handle_of_a_generation_that_is_over() {
    let mut two = two();
    let tokens = greedy(&prompt(20, 6), 12);
    let mut job = Request { keep_kv: true, ..request(&prompt(20, 6), 12) };
    job.sampling.stop_ids = vec![tokens[5]];
    let stops = tokens.iter().position(|&t| t == tokens[5]).unwrap();
    let over = two.host.run(&two.decode, job);
    assert_eq!((over.reason(), over.tokens.len()), (Stop, stops + 1));
    let handle = KvId(kv(&over));
    let copy = || two.cache.kv().handles().duplicate(handle).unwrap().0;
    // The generation is still over: it ends as before, and repeats its last token if asked to.
    let (again, repeat) = (copy(), copy());
    let (on, turn) = (copy(), copy());
    let again = two.host.run(&two.decode, Request { keep_kv: true, ..continuation(again) });
    assert_eq!((again.reason(), again.tokens.len()), (Stop, 0));
    two.cache.kv().handles().release(KvId(kv(&again))).unwrap();
    let repeat = two.host.run(&two.decode, Request { emit_pending: true, ..continuation(repeat) });
    assert_eq!((repeat.reason(), &repeat.tokens[..]), (Stop, &tokens[stops..=stops]));
    // With other parameters it continues where it stopped.
    let on = two.host.run(&two.decode, Request { kv: on, override_sampling: true, ..request(&[], 12) });
    assert_eq!((on.reason(), &on.tokens[..]), (Length, &tokens[stops + 1..]));
    // A further chat turn continues as well.
    let turn = two.host.run(&two.decode, Request { kv: turn, override_sampling: true, ..request(&prompt(5, 2), 6) });
    assert_eq!(turn.indices, (0..6).collect::<Vec<_>>());
    two.cache.kv().handles().release(handle).unwrap();
    let Two { prefill, decode, cache, .. } = two;
    drop((prefill, decode));
    assert_quiescent(&cache);
}

#[test]
fn a_random_seed_travels_with_the_handle() {
    let mut two = two();
    let mut job = sampled(&prompt(20, 1), 30, 0);
    job.sampling.seed = 0;
    let first = two.host.run(&two.prefill, job);
    let handle = KvId(kv(&first));
    let runs: Vec<_> = (0..3).map(|_| two.cache.kv().handles().duplicate(handle).unwrap().0).collect();
    let mut outcomes: Vec<_> = runs.iter().map(|&kv| two.host.run(&two.decode, continuation(kv))).collect();
    // The same once more, with an export half-way.
    let id = two.host.submit(&two.decode, continuation(handle.0));
    two.host.tokens(id, 5);
    two.decode.export(id).ok();
    let part = two.host.finish(id);
    if part.reason() == Exported {
        let rest = two.host.run(&two.decode, continuation(kv(&part)));
        let tokens = part.tokens.iter().chain(&rest.tokens).copied().collect();
        let logprobs = part.logprobs.iter().chain(&rest.logprobs).copied().collect();
        outcomes.push(Outcome { tokens, logprobs, ..Outcome::default() });
    }
    for other in &outcomes[1..] {
        assert_eq!((&other.tokens, &other.logprobs), (&outcomes[0].tokens, &outcomes[0].logprobs));
    }
}

#[test]
fn what_was_generated_is_a_prefix_like_any_other() {
    let cache = cache_of(200);
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Mixed));
    let words = prompt(40, 5);
    let first = host.run(&engine, request(&words, 60));
    let whole: Vec<u32> = words.iter().chain(&first.tokens).chain(&prompt(9, 6)).copied().collect();
    let hits = engine.metrics().prefix_hit_tokens;
    let got = host.run(&engine, sampled(&whole, 20, 4));
    assert_eq!(engine.metrics().prefix_hit_tokens - hits, 96, "blocks of prompt and generated tokens");
    assert_eq!((first.end.unwrap().cached_tokens, got.end.unwrap().cached_tokens), (0, 96));
    let fresh = cache_of(200);
    let other = host.engine(&fresh, role(Role::Mixed));
    let want = host.run(&other, sampled(&whole, 20, 4));
    assert_eq!((got.tokens, got.logprobs, got.top), (want.tokens, want.logprobs, want.top));
    // The salt travels with the handle, so another tenant gets no prefix hit on the continued sequence.
    let prefill = host.engine(&cache, role(Role::Prefill));
    let salted = Request { cache_salt: 7, ..request(&prompt(64, 9), 40) };
    let handle = kv(&host.run(&prefill, salted));
    let rest = host.run(&engine, continuation(handle));
    assert_eq!((rest.tokens.len(), rest.end.unwrap().cached_tokens), (39, 0));
    let before = engine.metrics().prefix_hit_tokens;
    host.run(&engine, request(&prompt(64, 9), 2));
    assert_eq!(engine.metrics().prefix_hit_tokens, before);
    host.run(&engine, Request { cache_salt: 7, ..request(&prompt(64, 9), 2) });
    assert_eq!(engine.metrics().prefix_hit_tokens, before + 48);
}
