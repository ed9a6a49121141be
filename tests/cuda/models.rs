//! Models with other shapes than the tiny model's: head sizes, windows, biases, per-head norms and weight types.

use crate::common::*;
use crate::device::cache_on;
use cleave::engine::{CacheOptions, DEVICE_CPU, Role};
use cleave::error::Status;
use cleave::model::Model;
use std::collections::HashMap;
use std::sync::Arc;

fn model(name: &str) -> Arc<Model> {
    Model::load(&format!("{}/tests/fixtures/{name}", root())).unwrap()
}

/// Logprobs of the most likely alternatives for the first token.
fn first(model: &Arc<Model>, device: i32, prompt: &[u32]) -> HashMap<u32, f32> {
    let options = CacheOptions { bytes: 4 << 20, block_tokens: 8, ..CacheOptions::default() };
    let cache = cache_on(model, device, options);
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Mixed));
    let mut job = request(prompt, 1);
    job.sampling.logprobs = Some(8);
    let outcome = host.run(&engine, job);
    outcome.top[0].iter().map(|(id, bits)| (*id, f32::from_bits(*bits))).collect()
}

#[test]
fn fixtures_have_the_cpus_logprobs() {
    let mut ran = Vec::new();
    for entry in std::fs::read_dir(format!("{}/tests/fixtures", root())).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.contains('.') {
            continue;
        }
        let model = model(&name);
        crate::device::simulate();
        let options = CacheOptions { bytes: 4 << 20, block_tokens: 8, ..CacheOptions::default() };
        if let Err(error) = cleave::engine::ModelCache::create(&model, &[0], options) {
            assert_eq!(error.status, Status::Unsupported, "{name}: {error}");
            continue;
        }
        let n = (model.info().max_context_tokens as usize - 2).min(50);
        let tokens: Vec<u32> = prompt(n, 7).iter().map(|token| token % model.info().vocab_size).collect();
        let (found, expected) = (first(&model, 0, &tokens), first(&model, DEVICE_CPU, &tokens));
        let common = found.iter().filter_map(|(id, a)| Some((id, *a, *expected.get(id)?)));
        let common: Vec<(&u32, f32, f32)> = common.collect();
        assert!(common.len() >= 6, "{name}: {found:?} on the device, {expected:?} on the CPU");
        for (id, a, b) in common {
            assert!((a - b).abs() < 0.05, "{name}: the logprob of {id} is {a}, on the CPU {b}");
        }
        ran.push(name);
    }
    assert!(ran.len() >= 8, "only {ran:?}");
}
