//! Small versions of `gpu-check kernels`, which compares each operation of CudaBackend with the CPU backend, and a
//! short run of the `gpu-check` benchmark.

use crate::device::simulate;
use crate::tool::bench::{self, Options};
use crate::tool::operations::{self, Sizes};

fn group(name: &str) {
    simulate();
    if let Err(error) = operations::run(name, Sizes::Small) {
        panic!("{name}: {error}");
    }
}

#[test]
fn embeddings() {
    group("embed");
}

#[test]
fn norms() {
    group("rms_norm");
}

#[test]
fn gates() {
    group("silu_mul");
}

#[test]
fn products() {
    group("linear");
}

#[test]
fn products_with_their_activation() {
    group("gated");
}

#[test]
fn attention_of_single_rows() {
    group("decode");
}

#[test]
fn attention_of_prompts() {
    group("prefill");
}

#[test]
fn the_benchmark_runs_through() {
    if std::env::var_os("CLEAVE_GPU").is_some() {
        return; // on a GPU, tools/gpu-check.sh runs the benchmark separately
    }
    simulate();
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("results.json");
    let options = Options {
        only: Vec::new(),
        models: Vec::new(),
        quick: true,
        simulated: true,
        dir: dir.path().to_path_buf(),
        json: Some(json.clone()),
        peer: None,
        seconds: 60,
        chunk: 512,
    };
    let report = bench::run(&options);
    let report = bench::locked(&report);
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let (table, json) = (report.markdown(), std::fs::read_to_string(json).unwrap());
    for what in [
        "copy on the device",
        "prefill tokens per step, chosen",
        "prefill 40",
        "decode batch 3, context 24",
        "to another process",
        "handoff of 40",
        "role switch, idle",
        "prefill beside decode, SM split 70 / 30",
        "decode beside prefill, chunked in one engine: time between tokens, median",
    ] {
        assert!(table.contains(what) && json.contains(what), "{what}: {table}");
    }
    // Results of the simulator must never be reported as those of a device.
    assert!(table.contains("**simulated**") && !table.contains(" % of ") && !table.contains("reached"), "{table}");
}
