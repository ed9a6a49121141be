//! Handoffs between engines on one device, and between a device and the CPU.

use crate::common::*;
use crate::device::{cache_on, leaks};
use crate::generation::{TEXTS, assert_alike, options, tokens};
use cleave::engine::{CacheOptions, DEVICE_CPU, ModelCache, Role};
use cleave::kv::KvId;
use cleave::sequence::FinishReason;
use cleave::tensor::Dtype;
use std::sync::Arc;

const NEW_TOKENS: u32 = 10;

fn undisturbed(text: &str) -> Outcome {
    let cache = cache_on(&tiny(), DEVICE_CPU, options());
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Mixed));
    host.run(&engine, request(&tokens(text), NEW_TOKENS))
}

fn prefill(host: &mut Host, cache: &Arc<ModelCache>, text: &str) -> (Outcome, u64) {
    let engine = host.engine(cache, role(Role::Prefill));
    let outcome = host.run(&engine, request(&tokens(text), NEW_TOKENS));
    assert_eq!(outcome.reason(), FinishReason::Prefilled);
    let kv = outcome.end.unwrap().kv;
    (outcome, kv)
}

/// Checks that the parts before and after the handoff equal the CPU's result without a handoff.
fn decode(host: &mut Host, cache: &Arc<ModelCache>, kv: u64, begun: Outcome, text: &str) {
    let engine = host.engine(cache, role(Role::Decode));
    let rest = host.run(&engine, continuation(kv));
    let mut whole = begun;
    whole.tokens.extend(&rest.tokens);
    whole.logprobs.extend(&rest.logprobs);
    assert_alike(&whole, &undisturbed(text), text);
    assert_quiescent(cache);
}

#[test]
fn on_one_device() {
    for text in TEXTS {
        let cache = cache_on(&tiny(), 0, options());
        let mut host = Host::new();
        let (begun, kv) = prefill(&mut host, &cache, text);
        decode(&mut host, &cache, kv, begun, text);
    }
}

fn image(cache: &ModelCache, kv: u64) -> Vec<u8> {
    let mut image = vec![0; cache.kv().handles().info(KvId(kv)).unwrap().image_bytes as usize];
    assert_eq!(cache.kv().images().read(KvId(kv), 0, &mut image).unwrap(), image.len());
    image
}

fn between(from: i32, to: i32, by_ticket: bool, other: CacheOptions) {
    let text = TEXTS[0];
    let (a, b) = (cache_on(&tiny(), from, options()), cache_on(&tiny(), to, other));
    let mut host = Host::new();
    let (begun, kv) = prefill(&mut host, &a, text);
    let data = if by_ticket { cleave::transport::ticket(a.kv(), KvId(kv)).unwrap() } else { image(&a, kv) };
    let landed = b.import(None, &data, 0).unwrap();
    decode(&mut host, &b, landed.0, begun, text);
}

#[test]
fn between_device_and_cpu_by_image_and_by_ticket() {
    for (from, to) in [(0, DEVICE_CPU), (DEVICE_CPU, 0), (0, 0)] {
        for by_ticket in [false, true] {
            between(from, to, by_ticket, options());
        }
    }
}

#[test]
fn into_other_layouts() {
    let other = CacheOptions { block_tokens: 7, dtype: Some(Dtype::F32), shards: 2, ..options() };
    between(0, DEVICE_CPU, false, other.clone());
    between(DEVICE_CPU, 0, true, other.clone());
    between(0, 0, true, other);
}

/// A KV image does not depend on the kind of device: an image that comes from the CPU keeps its bytes after it has been
/// imported on the device and exported again.
#[test]
fn an_image_keeps_its_bytes_on_the_device() {
    let cpu = cache_on(&tiny(), DEVICE_CPU, options());
    let device = cache_on(&tiny(), 0, options());
    let back = cache_on(&tiny(), DEVICE_CPU, options());
    let mut host = Host::new();
    let (_, kv) = prefill(&mut host, &cpu, TEXTS[3]);
    let there = device.import(None, &image(&cpu, kv), 0).unwrap();
    let here = back.import(None, &image(&device, there.0), 0).unwrap();
    let blocks = |cache: &ModelCache, kv: u64| {
        let kv::Consumed::Ready(snapshot, table) = cache.kv().handles().consume(KvId(kv)).unwrap() else {
            panic!("pending")
        };
        let store = cache.kv().store();
        let mut bytes = vec![vec![0; store.geometry().block_bytes()]; table.blocks().len()];
        for (id, bytes) in table.blocks().iter().zip(&mut bytes) {
            store.read(*id, 0, bytes).unwrap();
        }
        (snapshot.tokens, bytes)
    };
    assert_eq!(blocks(&back, here.0), blocks(&cpu, kv));
}

/// Runs in its own process (see `drivers`).
#[test]
#[ignore = "run by drivers::nothing_is_left_behind"]
fn leaves_nothing_behind() {
    on_one_device();
    between(0, DEVICE_CPU, true, options());
    drop(tiny());
    assert_eq!(leaks(), "");
}

use cleave::kv;
