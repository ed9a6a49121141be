//! Machines with a missing, old or failing driver. Each test runs in its own process.

use crate::common::{Host, request, role, tiny};
use crate::device;
use crate::generation::{assert_all_alike, on, options};
use cleave::backend::devices;
use cleave::engine::{CacheOptions, DEVICE_CPU, ModelCache, Role};
use cleave::error::{Error, Status};
use cleave::kv::KvId;
use cleave::transport::Transport;
use std::process::Command;
use std::sync::Arc;

/// Runs an ignored test of this program in its own process, without the search path that cargo sets: with that path,
/// the loader would find the simulated driver.
pub fn alone(test: &str, settings: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env_remove("LD_LIBRARY_PATH")
        .env("CUDA_SETTINGS", settings)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{test} with {settings:?}: {text}");
}

pub fn settings() -> String {
    std::env::var("CUDA_SETTINGS").unwrap_or_default()
}

const PROMPT: [u32; 12] = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

fn refused() -> Error {
    match ModelCache::create(&tiny(), &[0], CacheOptions { bytes: 1 << 20, ..CacheOptions::default() }) {
        Ok(_) => panic!("there is a cache"),
        Err(error) => error,
    }
}

#[test]
fn nothing_is_left_behind() {
    alone("handoff::leaves_nothing_behind", "");
}

#[test]
fn no_driver() {
    alone("drivers::is_absent", "");
}

#[test]
#[ignore = "run by no_driver"]
fn is_absent() {
    assert_eq!(devices::count(), 0);
    let error = refused();
    assert_eq!(error.status, Status::NotFound);
    assert!(error.message.contains("no CUDA driver"), "{error}");
    assert_eq!(devices::info(0).unwrap_err().status, Status::NotFound);
}

#[test]
fn no_device() {
    alone("drivers::has_no_device", "devices=0");
}

#[test]
#[ignore = "run by no_device"]
fn has_no_device() {
    device::load(&settings());
    assert_eq!(devices::count(), 0);
    assert_eq!(refused().status, Status::NotFound);
}

#[test]
fn a_driver_and_a_device_that_come_later() {
    alone("drivers::come_later", "");
}

#[test]
#[ignore = "run by a_driver_and_a_device_that_come_later"]
fn come_later() {
    assert_eq!(refused().status, Status::NotFound);
    device::load("devices=0");
    assert_eq!(devices::count(), 0);
    assert!(refused().message.contains("finds no device"));
    device::load("devices=1");
    assert_eq!(devices::count(), 1);
    device::load_blas("");
    whole_life().unwrap();
}

#[test]
fn an_old_driver() {
    alone("drivers::is_old", "driver=11040");
}

#[test]
#[ignore = "run by an_old_driver"]
fn is_old() {
    device::load(&settings());
    assert_eq!(devices::count(), 0);
    let error = refused();
    assert_eq!(error.status, Status::Unsupported);
    assert!(error.message.contains("CUDA 11.4"), "{error}");
}

#[test]
fn an_old_device() {
    alone("drivers::has_an_old_device", "compute=75");
}

#[test]
#[ignore = "run by an_old_device"]
fn has_an_old_device() {
    device::load(&settings());
    assert_eq!(devices::count(), 1);
    assert_eq!(devices::info(0).unwrap().compute_capability, 75);
    let error = refused();
    assert_eq!(error.status, Status::Unsupported);
    assert!(error.message.contains("7.5"), "{error}");
}

#[test]
fn a_small_device() {
    alone("drivers::has_little_memory", "memory=1000000");
}

#[test]
#[ignore = "run by a_small_device"]
fn has_little_memory() {
    device::load(&settings());
    let error = refused();
    assert_eq!(error.status, Status::OutOfMemory, "{error}");
    assert!(error.message.contains("device 0"), "{error}");
    assert_eq!(device::leaks(), "");
}

/// Makes each driver call fail in turn. The result is an error, and nothing is leaked.
#[test]
fn calls_that_fail() {
    alone("drivers::fails_in_turn", "");
}

#[test]
#[ignore = "run by calls_that_fail"]
fn fails_in_turn() {
    device::simulate();
    // Count the devices first, so that work done once per process is not part of the count of calls.
    assert_eq!(devices::count(), 1);
    device::load("");
    whole_life().unwrap();
    let calls = device::calls();
    assert!(calls > 200, "{calls} calls");
    // Try every early call (they set up the device), then a sample of the rest. A later call may fail without an error
    // to report, for example while resources are freed.
    let mut refused = 0;
    for k in (1..40).chain((40..=calls).step_by(calls as usize / 40)) {
        device::load(&format!("fail={k}"));
        let outcome = whole_life();
        device::load("");
        match outcome {
            Ok(()) => assert!(k >= 40, "nobody noticed that call {k} failed"),
            Err(error) => {
                assert!(matches!(error.status, Status::Device | Status::OutOfMemory), "call {k} of {calls}: {error}");
                refused += 1;
            }
        }
        assert_eq!(device::leaks(), "", "after call {k} of {calls} failed");
    }
    assert!(refused > 60, "{refused} of {calls} calls were missed");
}

/// If steps cannot be recorded as graphs, for example for lack of memory, they run one by one with the same results.
#[test]
fn steps_that_cannot_be_recorded_run_all_the_same() {
    alone("drivers::is_not_recorded", "graphs=0");
}

#[test]
#[ignore = "run by steps_that_cannot_be_recorded_run_all_the_same"]
fn is_not_recorded() {
    device::simulate();
    device::load(&settings());
    let found = on(0, options(), role(Role::Decode), 16);
    let (tried, repeated) = device::graphs();
    assert!((1..16).contains(&tried) && repeated == 0, "{tried} tries, {repeated} repetitions");
    assert_all_alike(&found, &on(DEVICE_CPU, options(), role(Role::Decode), 16));
    assert_eq!(device::leaks(), "");
}

/// Makes driver calls fail during a handoff through device memory and with shared weights.
#[test]
fn handoffs_that_fail() {
    alone("drivers::hands_over_in_spite", "");
}

#[test]
#[ignore = "run by handoffs_that_fail"]
fn hands_over_in_spite() {
    device::simulate();
    assert_eq!(devices::count(), 1);
    let alive = (tiny(), handing_over().unwrap());
    assert_eq!(alive.1, handing_over().unwrap(), "greedy tokens");
    device::load("");
    handing_over().unwrap();
    let calls = device::calls();
    let mut failed = 0;
    for k in (1..=calls).step_by(calls as usize / 60) {
        device::load(&format!("fail={k}"));
        let outcome = handing_over();
        device::load("");
        match outcome {
            // Success is possible if there was a fallback, or if the failed call has no one to report to.
            Ok(tokens) => assert_eq!(tokens, alive.1, "after call {k} of {calls} failed"),
            Err(error) => {
                let expected = [Status::Device, Status::OutOfMemory, Status::Unsupported, Status::Peer];
                assert!(expected.contains(&error.status), "call {k} of {calls}: {error}");
                failed += 1;
            }
        }
        assert_eq!(device::leaks(), "", "after call {k} of {calls} failed");
    }
    assert!(failed > 30, "{failed} of {calls} calls were missed");
}

/// Hands a sequence from one cache to another through device memory, mapped as another process maps it. Returns the
/// tokens.
fn handing_over() -> cleave::error::Result<Vec<u32>> {
    let shared = || CacheOptions { share_weights: true, ..options() };
    let caches = [shared(), shared()].map(|options| ModelCache::create(&tiny(), &[0], options));
    let [from, to] = caches;
    let (from, to) = (from?, to?);
    let outcome = hand_over(&from, &to);
    // Both caches must release all blocks soon, whether or not the handoff succeeded.
    for cache in [&from, &to] {
        crate::common::assert_quiescent(cache);
    }
    outcome
}

fn hand_over(from: &Arc<ModelCache>, to: &Arc<ModelCache>) -> cleave::error::Result<Vec<u32>> {
    let mut host = Host::new();
    let prefill = cleave::engine::Engine::create(from, &host.queue, role(Role::Prefill))?;
    let decode = cleave::engine::Engine::create(to, &host.queue, role(Role::Decode))?;
    if let Some(error) = to.node().pair(&from.node().address(), Some(Transport::DeviceMemory)).error {
        return Err(error);
    }
    let mut run = |engine: &cleave::engine::Engine, request| {
        let submitted = engine.submit(vec![request]);
        if let Some(error) = submitted.refused {
            return Err(error);
        }
        let outcome = host.finish(submitted.ids[0]);
        let end = outcome.end.unwrap();
        match end.status {
            Some(status) => Err(Error::new(status, "a request failed")),
            None => Ok((outcome.tokens, end.kv)),
        }
    };
    let (mut tokens, kv) = run(&prefill, request(&PROMPT, 4))?;
    let ticket = from.node().ticket(KvId(kv))?;
    let landed = to.import(None, &ticket, 0)?;
    let rest = run(&decode, crate::common::continuation(landed.0));
    if rest.is_err() {
        // The handle is still in the exporter or the importer, so release it explicitly.
        let _ = (from.kv().handles().release(KvId(kv)), to.kv().handles().release(landed));
    }
    tokens.extend(rest?.0);
    Ok(tokens)
}

/// Runs one request from cache to result. Its prompt is long enough for products of many rows.
pub fn whole_life() -> cleave::error::Result<()> {
    let cache = ModelCache::create(&tiny(), &[0], CacheOptions { bytes: 1 << 20, ..CacheOptions::default() })?;
    let mut host = Host::new();
    let engine = cleave::engine::Engine::create(&cache, &host.queue, role(Role::Mixed))?;
    let submitted = engine.submit(vec![request(&PROMPT, 3)]);
    if let Some(error) = submitted.refused {
        return Err(error);
    }
    match host.finish(submitted.ids[0]).end.unwrap().status {
        Some(status) => Err(Error::new(status, "the request failed")),
        None => Ok(()),
    }
}
