//! Products of many rows with and without cuBLASLt. Each test runs in its own process.

use crate::common::*;
use crate::device::{self, products};
use crate::drivers::{alone, settings, whole_life};
use crate::generation::{TEXTS, assert_alike, options, tokens};
use cleave::backend::cuda::{
    CudaBackend, CudaBuffer, CudaMatrix, CudaProjections, CudaSlab, CudaVector, Device, Loader,
};
use cleave::backend::{Backend, KvGeometry, Linear};
use cleave::engine::{DEVICE_CPU, ModelCache, Role};
use cleave::error::Status;
use cleave::log;
use cleave::tensor::Dtype;
use std::sync::{Arc, Mutex};

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
    // With twelve sequences, even steps of one row per sequence use cuBLASLt, and these are recorded as graphs.
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
    // Twelve sequences: every step except the first computes one row of each.
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
    // The first step runs directly, the second is recorded as a graph, and later steps replay it. A longer run must
    // therefore not take more products. The number of requests in the very first step depends on timing and also
    // affects the count, so the comparison gets several attempts.
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
    // Four products per layer: Q, K and V are one product, and so are gate and up. Only one row needs logits, and that
    // product does not use cuBLASLt.
    assert_eq!(first, 4 * u64::from(tiny().info().n_layers));
    assert!(asked > 0);
    assert_eq!(run(20, 3), (2 * first, asked));
    let (_, more) = run(21, 4);
    assert_eq!(more, 2 * asked);
}

/// cuBLASLt adds the bias if y's type represents it exactly. Otherwise a kernel of this backend adds it.
#[test]
fn a_bias_goes_along() {
    alone("blas::adds_a_bias", "");
}

#[test]
#[ignore = "run by a_bias_goes_along"]
fn adds_a_bias() {
    device::simulate();
    let (rows, n, k) = (20, 24, 16);
    for (dtype, bias, exact) in [(Dtype::Bf16, 0.75, true), (Dtype::F16, 0.75, true), (Dtype::Bf16, 0.7501, false)] {
        let device = Device::open(0).unwrap();
        let geometry = KvGeometry { layers: 1, kv_heads: 1, head_dim: 64, block_tokens: 16, dtype, shards: 1 };
        let slab = CudaSlab::new(&device, geometry, 1).unwrap();
        let mut cuda = CudaBackend::new(&device, dtype, 1, std::iter::once(None), &slab).unwrap();
        let mut loader = Loader::new(&device).unwrap();
        let weight = CudaMatrix::new(&mut loader, &vec![0; n * k * 2], n, k, dtype).unwrap();
        let bias_of = CudaVector::bias(&mut loader, &vec![bias; n], dtype).unwrap();
        loader.finish().unwrap();
        let linear = Linear { weight, bias: Some(bias_of) };
        let x = cuda.upload(&vec![1.0; rows * k], rows, k, false).unwrap();
        let mut sum = cuda.upload(&vec![2.0; rows * n], rows, n, true).unwrap();
        let before = products().0;
        // The residual stream is f32, and so is the bias.
        cuda.linear_add(&x, &linear, &mut sum).unwrap();
        assert_eq!(cuda.fetch(&sum).unwrap(), vec![2.0 + bias; rows * n]);
        assert_eq!(products().0, before + 1);
        let mut out = CudaBuffer::default();
        cuda.project(&x, &CudaProjections::new(linear, vec![n]).unwrap(), &mut [&mut out]).unwrap();
        assert_eq!(products().0, before + 1 + u64::from(exact), "{dtype} {bias}");
        assert_eq!(cuda.fetch(&out).unwrap(), vec![0.75; rows * n]);
    }
    assert_eq!(device::leaks(), "");
}

#[test]
fn without_cublaslt() {
    alone("blas::is_absent", "");
}

#[test]
#[ignore = "run by without_cublaslt"]
fn is_absent() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = lines.clone();
    log::set(3, Some(Box::new(move |_, _, text: &str| sink.lock().unwrap().push(text.to_string())))).unwrap();
    device::load("");
    assert_as_on_the_cpu(2);
    assert!(!device::has_blas());
    log::set(0, None).unwrap();
    let lines = lines.lock().unwrap();
    let warnings: Vec<_> = lines.iter().filter(|line| line.contains("cuBLASLt was not found")).collect();
    assert_eq!(warnings.len(), 1, "{lines:?}");
    assert!(warnings[0].contains("libcublasLt.so"), "{warnings:?}");
    assert!(lines.iter().any(|line| line.contains("matrix products by own kernels")), "{lines:?}");
}

#[test]
fn cublaslt_of_a_python_wheel_is_found() {
    alone("blas::is_in_a_wheel", "");
}

#[test]
#[ignore = "run by cublaslt_of_a_python_wheel_is_found"]
fn is_in_a_wheel() {
    let environment = tempfile::tempdir().unwrap();
    let folder = environment.path().join("lib/python3.12/site-packages/nvidia/cublas/lib");
    std::fs::create_dir_all(&folder).unwrap();
    let library = std::env::current_exe().unwrap().with_file_name("libcublasLt.so");
    std::os::unix::fs::symlink(library, folder.join("libcublasLt.so.12")).unwrap();
    // SAFETY: no other thread of this process reads the environment yet.
    unsafe { std::env::set_var("VIRTUAL_ENV", environment.path()) };
    device::load("");
    assert!(!device::has_blas());
    assert_as_on_the_cpu(12);
    assert!(products().0 > 0);
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

/// Makes each call of cuBLASLt fail in turn. The result is an error or, where cuBLASLt only does not support the
/// operation, a product by this backend's own kernels. Nothing is leaked.
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
    let mut without = [0; 2]; // NOT_SUPPORTED, INVALID_VALUE
    let errors = [(3, Status::OutOfMemory), (13, Status::Device), (15, Status::Unsupported), (7, Status::Device)];
    for (error, expected) in errors {
        // Try every early call (they set up the device and the engine and compute one product), then a sample of the
        // rest.
        for k in (1..18).chain((18..=calls).step_by(calls as usize / 5)) {
            device::load_blas(&format!("fail={k} error={error}"));
            match whole_life() {
                Ok(()) if [7, 15].contains(&error) => without[usize::from(error == 7)] += 1,
                Ok(()) => panic!("call {k} of {calls} failed with {error}, and nothing came of it"),
                Err(error) => assert_eq!(error.status, expected, "call {k} of {calls}: {error}"),
            }
            assert_eq!(device::leaks(), "", "after call {k} of {calls} failed with {error}");
        }
    }
    device::load_blas("");
    assert!(without.iter().all(|times| *times >= 4), "{without:?}");
    whole_life().unwrap();
}
