//! Runs the fixture models through engines: whatever happens to a sequence, its bits equal those of an undisturbed run.
//! Covers ropes that depend on the length, sliding windows, f16 and f32 weights, and every KV dtype.

use crate::common::*;
use cleave::engine::{CacheOptions, EngineOptions, ModelCache, Request, Role};
use cleave::kv::KvId;
use cleave::model::Model;
use cleave::tensor::Dtype;
use std::sync::Arc;

const BLOCK: u32 = 8;

fn model(name: &str) -> Arc<Model> {
    Model::load(&format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Creates a cache; `blocks` 0 means more than enough.
fn cache_on(model: &Arc<Model>, blocks: u64, dtype: Option<Dtype>, no_prefix_cache: bool) -> Arc<ModelCache> {
    let dtype = dtype.or(Some(model.info().weight_dtype));
    let bytes = if blocks == 0 { 200 } else { blocks } * model.kv_geometry(BLOCK, dtype.unwrap()).block_bytes() as u64;
    let secret = Some([1; 32]);
    let options = CacheOptions { block_tokens: BLOCK, dtype, bytes, secret, no_prefix_cache, ..Default::default() };
    ModelCache::create(model, &[], options).unwrap()
}

fn tokens(model: &Model, n: usize, salt: u64) -> Vec<u32> {
    prompt(n, salt).iter().map(|t| t % model.info().vocab_size).collect()
}

fn assert_same(got: &Outcome, want: &Outcome, what: &str) {
    assert_eq!(got.tokens, want.tokens, "{what}: tokens");
    assert_eq!(got.logprobs, want.logprobs, "{what}: bits");
    assert_eq!(got.top, want.top, "{what}: bits of the alternatives");
}

fn join(parts: &[&Outcome]) -> Outcome {
    let mut whole = Outcome::default();
    for part in parts {
        whole.tokens.extend(&part.tokens);
        whole.logprobs.extend(&part.logprobs);
        whole.top.extend(part.top.iter().cloned());
    }
    whole
}

/// Runs turns one after the other, alone, with whole prompts in one step and no prefix cache.
fn reference(model: &Arc<Model>, dtype: Option<Dtype>, turns: &[Request]) -> Vec<Outcome> {
    let cache = cache_on(model, 0, dtype, true);
    let mut host = Host::new();
    let engine = host.engine(&cache, EngineOptions { max_batch_tokens: 4096, ..role(Role::Mixed) });
    let mut kv = 0;
    let mut outcomes = Vec::new();
    for turn in turns {
        let outcome = host.run(&engine, Request { kv, keep_kv: true, ..turn.clone() });
        kv = outcome.end.unwrap().kv;
        outcomes.push(outcome);
    }
    outcomes
}

fn check(name: &str, dtype: Option<Dtype>, lens: [usize; 4]) {
    let model = model(name);
    let job = |n: usize, salt: u64, new| sampled(&tokens(&model, n, salt), new, salt + 1);
    let context = model.info().max_context_tokens as usize;
    // Lengths reach up to the context limit.
    let jobs: Vec<_> =
        lens.iter().enumerate().map(|(i, &n)| job(n, i as u64, (context.min(100) - n).min(40) as u32)).collect();
    let want: Vec<_> = jobs.iter().map(|j| reference(&model, dtype, std::slice::from_ref(j)).remove(0)).collect();

    // Chunked and in a batch, twice, so that the second round uses the prefix index.
    let cache = cache_on(&model, 0, dtype, false);
    let mut host = Host::new();
    let engine = host.engine(&cache, EngineOptions { max_batch_tokens: 5, threads: 2, ..role(Role::Mixed) });
    for round in 0..2 {
        let ids: Vec<_> = jobs.iter().map(|j| host.submit(&engine, j.clone())).collect();
        for (id, want) in ids.into_iter().zip(&want) {
            assert_same(&host.finish(id), want, &format!("{name}: chunked, round {round}"));
        }
    }

    // Preempted and recomputed.
    let longest = (context.min(100) as u64).div_ceil(u64::from(BLOCK));
    let small = cache_on(&model, longest, dtype, false);
    // The small queue keeps each request from ending before the next one is submitted.
    let mut near = Host::with_capacity(64);
    let tight = near.engine(&small, role(Role::Mixed));
    let twice = || jobs.iter().zip(&want).chain(jobs.iter().zip(&want));
    let mut ids = Vec::new();
    for (i, (job, _)) in twice().enumerate() {
        let id = near.squeeze(&tight, Request { priority: 20 * i as u32, ..job.clone() });
        near.tokens(id, 3);
        ids.push(id);
    }
    for (id, (_, want)) in ids.into_iter().zip(twice()) {
        assert_same(&near.finish(id), want, &format!("{name}: preempted"));
    }
    assert!(tight.metrics().preemptions > 0, "{name}: no preemption");
    drop(tight);
    assert_quiescent(&small);

    // Handed over twice: within the cache after the first token, then as a running generation to another cache, by an
    // image.
    let other = cache_on(&model, 0, dtype, false);
    let prefill = host.engine(&cache, role(Role::Prefill));
    let decode = host.engine(&other, role(Role::Decode));
    for (job, want) in jobs.iter().zip(&want) {
        let first = host.run(&prefill, job.clone());
        let kv = first.end.unwrap().kv;
        let id = host.submit(&engine, continuation(kv));
        host.tokens(id, 2);
        // The generation may have ended already. Its handle is then not kept, and there is nothing to move.
        engine.export(id).ok();
        let second = host.finish(id);
        let mut whole = join(&[&first, &second]);
        let kv = second.end.unwrap().kv;
        if kv != 0 {
            let data = image(&cache, kv);
            let moved = other.import(None, &data, 0).unwrap().0;
            whole = join(&[&whole, &host.run(&decode, continuation(moved))]);
            cache.kv().handles().release(KvId(kv)).unwrap();
        }
        assert_same(&whole, want, &format!("{name}: handed over"));
    }

    // A second turn, also after its sequence has lost all of its blocks.
    let turn = |n, salt, new| sampled(&tokens(&model, n, salt), new, 9);
    let turns = [turn(lens[0].min(11), 30, 5), turn((context - 20).min(21), 31, 4)];
    let want = reference(&model, dtype, &turns);
    for blocks in [0, longest] {
        let cache = cache_on(&model, blocks, dtype, false);
        let engine = host.engine(&cache, role(Role::Mixed));
        let first = host.run(&engine, Request { keep_kv: true, ..turns[0].clone() });
        assert_same(&first, &want[0], &format!("{name}: first turn"));
        let rival = (blocks > 0).then(|| {
            let id = host.submit(&engine, Request { priority: 50, ..jobs[2].clone() });
            host.tokens(id, 1);
            id
        });
        let kv = first.end.unwrap().kv;
        let second = host.run(&engine, Request { kv, ..turns[1].clone() });
        assert_same(&second, &want[1], &format!("{name}: second turn, {blocks} blocks"));
        rival.map(|id| host.finish(id));
    }
    drop((engine, prefill, decode));
    assert_quiescent(&cache);
    assert_quiescent(&other);
}

fn image(cache: &Arc<ModelCache>, kv: u64) -> Vec<u8> {
    let mut data = vec![0; cache.kv().handles().info(KvId(kv)).unwrap().image_bytes as usize];
    let n = cache.kv().images().read(KvId(kv), 0, &mut data).unwrap();
    assert_eq!(n, data.len());
    data
}

#[test]
fn dynamic_rope() {
    // The original lengths are 32 and 24. Prompts are shorter, equal and longer; generations cross the limit.
    check("rope-dynamic-cross", None, [9, 32, 33, 60]);
    check("rope-dynamic-beyond", None, [7, 23, 24, 30]);
}

/// Prompts share tokens but not a length that affects the rope. Only KV that does not depend on the length is shared.
#[test]
fn dynamic_rope_shares_only_what_is_the_same() {
    let model = model("rope-dynamic-cross");
    let all = tokens(&model, 80, 5);
    let jobs: Vec<_> = [20, 40, 31, 70, 32, 45, 33].map(|n| sampled(&all[..n], 12, 3)).to_vec();
    let cache = cache_on(&model, 0, None, false);
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Mixed));
    for round in 0..3 {
        for (i, job) in jobs.iter().enumerate() {
            let want = reference(&model, None, std::slice::from_ref(job)).remove(0);
            assert_same(&host.run(&engine, job.clone()), &want, &format!("round {round}, job {i}"));
        }
    }
    // A short prompt that generated past the limit is imported where its prefix is known, and vice versa.
    let other = cache_on(&model, 0, None, false);
    let decode = host.engine(&other, role(Role::Mixed));
    for job in jobs.iter().chain(jobs.iter().rev()) {
        let want = reference(&model, None, std::slice::from_ref(job)).remove(0);
        let id = host.submit(&engine, job.clone());
        host.tokens(id, 6);
        engine.export(id).ok();
        let first = host.finish(id);
        let kv = first.end.unwrap().kv;
        if kv != 0 {
            let moved = other.import(None, &image(&cache, kv), 0).unwrap().0;
            assert_same(&join(&[&first, &host.run(&decode, continuation(moved))]), &want, "moved");
            cache.kv().handles().release(KvId(kv)).unwrap();
        }
        assert_same(&host.run(&decode, job.clone()), &want, "beside what was imported");
    }
}

#[test]
fn sliding_windows() {
    check("mistral-window", None, [7, 20, 45, 60]);
    check("qwen2-max-window-layers", None, [5, 33, 40, 60]);
    check("qwen3-sliding-bias", None, [5, 33, 40, 60]);
}

#[test]
fn weights_and_kv_of_every_dtype() {
    for name in ["llama-f16", "llama-bf16", "rope-yarn-v5"] {
        for dtype in [None, Some(Dtype::F32), Some(Dtype::F16), Some(Dtype::Bf16)] {
            check(name, dtype, [7, 20, 33, 50]);
        }
    }
}
