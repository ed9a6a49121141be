//! Requests on a device produce the same results as on the CPU.

use crate::common::*;
use crate::device::{self, cache_on, current_context};
use crate::drivers::alone;
use cleave::engine::{CacheOptions, DEVICE_CPU, EngineOptions, Role};
use cleave::tensor::Dtype;

pub const TEXTS: [&str; 5] = [
    "tom likes the colour green. anna lives in paris. what colour does tom like?",
    "the old farmer",
    "a",
    "anna lives in paris. tom lives in rome. anna likes the colour red. the old farmer went to the market and bought",
    "one two three one two three one two",
];

pub fn options() -> CacheOptions {
    CacheOptions { bytes: 4 << 20, secret: Some([5; 32]), ..CacheOptions::default() }
}

pub fn tokens(text: &str) -> Vec<u32> {
    tiny().tokenize(text, true, false).unwrap()
}

/// Checks that the tokens are equal and the logprobs equal up to rounding.
pub fn assert_alike(found: &Outcome, expected: &Outcome, what: &str) {
    assert_eq!(found.tokens, expected.tokens, "{what}");
    for (i, (a, b)) in found.logprobs.iter().zip(&expected.logprobs).enumerate() {
        let (a, b) = (f32::from_bits(*a), f32::from_bits(*b));
        assert!((a - b).abs() < 0.1 + 0.05 * b.abs(), "{what}: the logprob of token {i} is {a}, on the CPU {b}");
    }
}

pub fn on(device: i32, options: CacheOptions, engine: EngineOptions, n: u32) -> Vec<Outcome> {
    let cache = cache_on(&tiny(), device, options);
    let mut host = Host::new();
    let engine = host.engine(&cache, engine);
    let ids: Vec<u64> = TEXTS.iter().map(|text| host.submit(&engine, request(&tokens(text), n))).collect();
    let outcomes = ids.into_iter().map(|id| host.finish(id)).collect();
    assert_quiescent(&cache);
    outcomes
}

pub fn assert_all_alike(found: &[Outcome], expected: &[Outcome]) {
    for ((found, expected), text) in found.iter().zip(expected).zip(TEXTS) {
        assert_alike(found, expected, text);
    }
}

#[test]
fn greedy_tokens_are_the_cpus() {
    let expected = on(DEVICE_CPU, options(), role(Role::Mixed), 16);
    assert_all_alike(&on(0, options(), role(Role::Mixed), 16), &expected);
}

#[test]
fn in_chunks_and_few_at_a_time() {
    let expected = on(DEVICE_CPU, options(), role(Role::Mixed), 8);
    let engine = EngineOptions { max_batch_tokens: 5, max_sequences: 2, ..role(Role::Mixed) };
    assert_all_alike(&on(0, CacheOptions { block_tokens: 3, ..options() }, engine, 8), &expected);
}

#[test]
fn with_kv_of_every_dtype() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8] {
        let options = || CacheOptions { dtype: Some(dtype), ..options() };
        let expected = on(DEVICE_CPU, options(), role(Role::Mixed), 6);
        assert_all_alike(&on(0, options(), role(Role::Mixed), 6), &expected);
    }
}

#[test]
fn what_is_sampled_has_the_cpus_distribution() {
    // The same seed selects the same token unless logits are very close, so nearly all of many samples must agree.
    let run = |device| {
        let cache = cache_on(&tiny(), device, options());
        let mut host = Host::new();
        let engine = host.engine(&cache, role(Role::Mixed));
        let prompt = tokens(TEXTS[1]);
        let ids: Vec<u64> = (0..40).map(|seed| host.submit(&engine, sampled(&prompt, 1, seed))).collect();
        ids.into_iter().map(|id| host.finish(id).tokens[0]).collect::<Vec<u32>>()
    };
    let (found, expected) = (run(0), run(DEVICE_CPU));
    let same = found.iter().zip(&expected).filter(|(a, b)| a == b).count();
    assert!(same >= 37, "{found:?} on the device, {expected:?} on the CPU");
}

#[test]
fn a_prompt_again_is_found_in_the_prefix_cache() {
    let cache = cache_on(&tiny(), 0, options());
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Mixed));
    let prompt = tokens(TEXTS[3]);
    let first = host.run(&engine, request(&prompt, 6));
    let again = host.run(&engine, request(&prompt, 6));
    assert!(again.end.unwrap().cached_tokens >= 16);
    assert_alike(&again, &first, "the same prompt again");
}

#[test]
fn two_engines_over_one_cache_at_once() {
    let cache = cache_on(&tiny(), 0, options());
    let mut host = Host::new();
    let engines = [host.engine(&cache, role(Role::Mixed)), host.engine(&cache, role(Role::Mixed))];
    let expected = on(DEVICE_CPU, options(), role(Role::Mixed), 8);
    let ids: Vec<u64> =
        TEXTS.iter().enumerate().map(|(i, text)| host.submit(&engines[i % 2], request(&tokens(text), 8))).collect();
    for (id, expected) in ids.into_iter().zip(&expected) {
        assert_alike(&host.finish(id), expected, "two engines");
    }
}

/// For tokens with logprobs, the host samples from the device's logits; for others, the device samples. Both must
/// choose the same tokens. Requests run one after the other, because batching changes the last bits of logits.
#[test]
fn the_device_draws_what_the_host_draws() {
    let cache = cache_on(&tiny(), 0, CacheOptions { no_prefix_cache: true, ..options() });
    let mut host = Host::new();
    let engine = host.engine(&cache, EngineOptions { max_sequences: 1, ..role(Role::Mixed) });
    let prompt = tokens(TEXTS[1]);
    let mut jobs = Vec::new();
    for seed in 1..3u64 {
        // Seeds start at 1: with seed 0, each request gets a random seed.
        let mut job = sampled(&prompt, 4, seed);
        jobs.push(job.clone());
        job.sampling.top_p = 1.0;
        jobs.push(job.clone());
        job.sampling.temperature = 3.0;
        job.sampling.top_k = 20;
        job.sampling.min_p = 0.02;
        job.sampling.logit_bias = vec![(7, 3.0), (3, -2.0), (7, 1.5)];
        jobs.push(job.clone());
        job.sampling.repetition_penalty = 1.3;
        job.sampling.presence_penalty = 0.4;
        job.sampling.frequency_penalty = 0.7;
        job.sampling.min_new_tokens = 4;
        job.sampling.ignore_eos = false;
        jobs.push(job.clone());
        job.sampling.temperature = 0.0;
        jobs.push(job);
    }
    let mut run = |logprobs: Option<u32>| -> Vec<Vec<u32>> {
        let with = |mut job: cleave::engine::Request| {
            job.sampling.logprobs = logprobs;
            job
        };
        let ids: Vec<u64> = jobs.iter().map(|job| host.submit(&engine, with(job.clone()))).collect();
        ids.into_iter().map(|id| host.finish(id).tokens).collect()
    };
    let (by_host, by_device) = (run(Some(0)), run(None));
    assert_eq!(by_device, by_host);
    let distinct: std::collections::HashSet<_> = by_host.iter().collect();
    assert!(distinct.len() >= 4, "samples differ by seed and parameters: {by_host:?}");
}

#[test]
fn the_hosts_threads_keep_their_own_context() {
    let cache = cache_on(&tiny(), 0, options());
    assert!(cleave::backend::devices::info(0).unwrap().compute_capability >= 80);
    assert_eq!(current_context(), 0, "none, as before");
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Prefill));
    let kv = host.run(&engine, request(&tokens(TEXTS[2]), 1)).end.unwrap().kv;
    let size = cache.kv().handles().info(cleave::kv::KvId(kv)).unwrap().image_bytes as usize;
    cache.kv().images().read(cleave::kv::KvId(kv), 0, &mut vec![0; size]).unwrap();
    drop((engine, cache));
    assert_eq!(current_context(), 0, "none, as before");
}

/// Steps that are recorded and replayed, interrupted by other steps; the device samples.
#[test]
fn requests_that_come_while_others_run() {
    let run = |device| {
        let cache = cache_on(&tiny(), device, options());
        let mut host = Host::new();
        let engine = host.engine(&cache, role(Role::Mixed));
        let mut ids = Vec::new();
        for text in TEXTS {
            let mut job = request(&tokens(text), 14);
            job.sampling.logprobs = None;
            ids.push(host.submit(&engine, job));
            host.tokens(ids[0], 2 * ids.len());
        }
        ids.into_iter().map(|id| host.finish(id).tokens).collect::<Vec<_>>()
    };
    assert_eq!(run(0), run(DEVICE_CPU));
}

#[test]
fn a_request_with_logprobs_does_not_download_the_logits_of_others() {
    alone("generation::one_of_many_with_logprobs", "");
}

#[test]
#[ignore = "run by a_request_with_logprobs_does_not_download_the_logits_of_others"]
fn one_of_many_with_logprobs() {
    const TOKENS: u32 = 6;
    let run = |device, wants_logprobs: fn(usize) -> bool| {
        let cache = cache_on(&tiny(), device, options());
        let mut host = Host::new();
        let engine = host.engine(&cache, role(Role::Mixed));
        device::load("");
        let jobs = TEXTS.iter().enumerate().map(|(i, text)| {
            let mut job = request(&tokens(text), TOKENS);
            job.sampling.logprobs = wants_logprobs(i).then_some(2);
            job
        });
        let ids: Vec<u64> = jobs.map(|job| host.submit(&engine, job)).collect();
        ids.into_iter().map(|id| host.finish(id)).collect::<Vec<_>>()
    };
    let expected = run(DEVICE_CPU, |_| true);
    let found = run(0, |i| i == 2);
    // A token with logprobs downloads four bytes per logit. Any other token downloads the token and a status.
    let vocab = u64::from(tiny().info().vocab_size);
    let (with, without) = (u64::from(TOKENS), u64::from(TOKENS) * (TEXTS.len() as u64 - 1));
    assert_eq!(device::downloaded(), with * vocab * 4 + without * 8);
    let all = |outcomes: &[Outcome]| outcomes.iter().map(|outcome| outcome.tokens.clone()).collect::<Vec<_>>();
    assert_eq!(all(&found), all(&expected));
    assert_alike(&found[2], &expected[2], TEXTS[2]);
    assert_eq!(found[2].top.iter().map(Vec::len).collect::<Vec<_>>(), [2; TOKENS as usize]);
}
