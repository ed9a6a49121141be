//! Small deployments.

// Each test program uses a part of this.
#![allow(dead_code)]

use cleave_plan::cost::StepCost;
use cleave_plan::hardware::device;
use cleave_plan::models::model;
use cleave_plan::report::{Report, Slo};
use cleave_plan::sim::{Deployment, Links, Outcome, Pool, Role, Routing, simulate};
use cleave_plan::workload::{Lengths, Workload, poisson};

pub const SLO: Slo = Slo { ttft: 1.0, itl: 0.05 };

/// Engines of an 8B model on one H100 each.
pub fn pool(role: Role, engines: usize) -> Pool {
    Pool::on(&device("h100").unwrap(), &model("llama-3.1-8b").unwrap(), role, engines, 1).unwrap()
}

pub fn deployment(pools: Vec<Pool>) -> Deployment {
    Deployment::new(pools, &device("h100").unwrap(), &model("llama-3.1-8b").unwrap())
}

/// Separate pools with this many engines.
pub fn apart(prefill: usize, decode: usize) -> Deployment {
    deployment(vec![pool(Role::Prefill, prefill), pool(Role::Decode, decode)])
}

/// An engine whose steps take a constant time, reached without delay.
pub fn constant(role: Role, seconds: f64, max_sequences: usize) -> Pool {
    Pool {
        role,
        engines: 1,
        degree: 1,
        max_sequences,
        max_batch_tokens: 8192,
        cost: StepCost::Constant(seconds),
        disturbed: None,
        blocks: 100_000,
    }
}

pub fn bare(pools: Vec<Pool>) -> Deployment {
    Deployment {
        pools,
        routing: Routing::LeastLoaded,
        links: Links { rate: 1e9, latency: 0.0, streaming: true, bytes_per_token: 1e5 },
        request_overhead: 0.0,
        prefix_cache: true,
        window: None,
        failures: Vec::new(),
        detection_ns: 50_000_000,
        switching: None,
    }
}

pub fn requests(rate: f64, count: usize, prompt: usize, output: usize, seed: u64) -> Workload {
    Workload::Open(poisson(rate, count, Lengths { prompt, output, spread: 0.5 }, None, seed))
}

pub fn report(deployment: &Deployment, workload: &Workload) -> Report {
    Report::new(deployment, &simulate(deployment, workload), &SLO)
}

/// Every request has ended once and has what it asked for, and the time is that of its events.
pub fn check_complete(outcome: &Outcome, count: usize) {
    assert_eq!(outcome.requests.len(), count);
    for (index, request) in outcome.requests.iter().enumerate() {
        let end = request.end.unwrap_or_else(|| panic!("request {index} never ended: {request:?}"));
        if end == cleave_plan::sim::End::Finished {
            assert_eq!(request.generated, request.output, "request {index}");
            assert!(request.arrived_ns < request.first_ns && request.first_ns <= request.last_ns);
            assert!(request.last_ns <= outcome.end_ns);
        }
    }
}
