//! Products of many rows with cuBLASLt and without, each in a process of its own.

use crate::common::*;
use crate::device::{self, products};
use crate::drivers::{alone, settings, whole_life};
use crate::generation::{TEXTS, assert_alike, options, tokens};
use cleave::engine::{DEVICE_CPU, ModelCache, Role};
use cleave::error::Status;

fn at_once(device: i32, sequences: usize) -> Vec<Outcome> {
    let cache = ModelCache::create(&tiny(), &[device], options()).unwrap();
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Mixed));
    let texts = TEXTS.iter().cycle().take(sequences);
    let ids: Vec<u64> = texts.map(|text| host.submit(&engine, request(&tokens(text), 5))).collect();
    let outcomes = ids.into_iter().map(|id| host.finish(id)).collect();
    assert_quiescent(&cache);
    outcomes
}

fn assert_as_on_the_cpu(sequences: usize) {
    for (i, (found, expected)) in at_once(0, sequences).iter().zip(&at_once(DEVICE_CPU, sequences)).enumerate() {
        assert_alike(found, expected, &format!("sequence {i}"));
    }
    assert_eq!(device::leaks(), "");
}

#[test]
fn many_rows_go_through_cublaslt() {
    alone("blas::is_there", "");
}

#[test]
#[ignore = "run by many_rows_go_through_cublaslt"]
fn is_there() {
    device::simulate();
    // So many that their single rows go through cuBLASLt as well, recorded.
    assert_as_on_the_cpu(12);
    let (multiplied, asked) = products();
    assert!(multiplied > asked && asked > 0, "{multiplied} products, {asked} questions");
}

#[test]
fn recorded_steps_repeat_it() {
    alone("blas::is_recorded", "");
}

#[test]
#[ignore = "run by recorded_steps_repeat_it"]
fn is_recorded() {
    device::simulate();
    // Twelve sequences, of which each step but the first computes a row each.
    let run = |n: u32| {
        device::load_blas("");
        let cache = ModelCache::create(&tiny(), &[0], options()).unwrap();
        let mut host = Host::new();
        let engine = host.engine(&cache, role(Role::Mixed));
        let submitted = engine.submit((0..12).map(|_| request(&tokens(TEXTS[1]), n)).collect());
        assert!(submitted.refused.is_none());
        let outcomes: Vec<Outcome> = submitted.ids.into_iter().map(|id| host.finish(id)).collect();
        (outcomes[11].tokens.clone(), products())
    };
    // The first runs, the second is recorded, and the others are that again. How many requests the very first step finds is
    // chance, and counts as well; but without repetition more tokens would take more products every time.
    let repeated = (0..6).any(|_| {
        let ((few, products), (many, same)) = (run(4), run(8));
        products == same && few == many[..4]
    });
    assert!(repeated);
}

#[test]
fn each_product_is_asked_for_once() {
    alone("blas::asks_once", "");
}

#[test]
#[ignore = "run by each_product_is_asked_for_once"]
fn asks_once() {
    device::simulate();
    let cache = ModelCache::create(&tiny(), &[0], options()).unwrap();
    let mut host = Host::new();
    let engine = host.engine(&cache, role(Role::Mixed));
    let mut run = |n: usize, salt: u64| {
        host.run(&engine, request(&prompt(n, salt), 1));
        products()
    };
    let (few, nothing) = run(8, 1);
    assert_eq!((few, nothing), (0, 0), "8 rows go without cuBLASLt");
    let (first, asked) = run(20, 2);
    assert!(first > 0 && asked > 0);
    assert_eq!(run(20, 3), (2 * first, asked));
    let (_, more) = run(21, 4);
    assert_eq!(more, 2 * asked);
}

#[test]
fn without_cublaslt() {
    alone("blas::is_absent", "");
}

#[test]
#[ignore = "run by without_cublaslt"]
fn is_absent() {
    device::load("");
    assert_as_on_the_cpu(2);
    assert!(!device::has_blas());
}

#[test]
fn a_cublaslt_that_is_of_no_use() {
    for settings in ["version=110402", "algorithms=0", "fail=1 error=1"] {
        alone("blas::is_of_no_use", settings);
    }
}

#[test]
#[ignore = "run by a_cublaslt_that_is_of_no_use"]
fn is_of_no_use() {
    device::load("");
    device::load_blas(&settings());
    assert_as_on_the_cpu(2);
    let (multiplied, asked) = products();
    assert_eq!(multiplied, 0);
    assert_eq!(asked > 0, settings() == "algorithms=0");
}

/// Each call of cuBLASLt fails in turn: an error, or our own kernels where it only cannot do what was asked; and nothing
/// left behind.
#[test]
fn calls_that_fail() {
    alone("blas::fails_in_turn", "");
}

#[test]
#[ignore = "run by calls_that_fail"]
fn fails_in_turn() {
    device::simulate();
    whole_life().unwrap();
    let calls = device::blas_calls();
    assert!(calls > 20, "{calls} calls");
    let mut without = 0;
    for (error, expected) in [(3, Status::OutOfMemory), (13, Status::Device), (15, Status::Unsupported)] {
        // All of the first, which make the device and the engine ready and do a product; then some.
        for k in (1..15).chain((15..=calls).step_by(calls as usize / 5)) {
            device::load_blas(&format!("fail={k} error={error}"));
            match whole_life() {
                Ok(()) if error == 15 => without += 1,
                Ok(()) => panic!("call {k} of {calls} failed with {error}, and nothing came of it"),
                Err(error) => assert_eq!(error.status, expected, "call {k} of {calls}: {error}"),
            }
            assert_eq!(device::leaks(), "", "after call {k} of {calls} failed with {error}");
        }
    }
    device::load_blas("");
    assert!(without >= 4, "{without}");
    whole_life().unwrap();
}
