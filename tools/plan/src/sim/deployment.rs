//! Subject of a simulation: pools of engines, routing, links, failures and role switches.

use super::blocks::BLOCK_TOKENS;
use crate::cost::{Efficiency, Roofline, StepCost};
use crate::hardware::Device;
use crate::models::Model;

/// Purpose of an engine, as in `cleave::engine::Role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Computes prompts and generates, in the same steps.
    Mixed,
    /// Computes prompts.
    Prefill,
    /// Continues from KV.
    Decode,
}

/// Engines that are alike.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Role at the start.
    pub role: Role,
    /// Number of engines.
    pub engines: usize,
    /// Devices of one engine.
    pub degree: usize,
    /// Sequences that run at once.
    pub max_sequences: usize,
    /// Token budget of a step.
    pub max_batch_tokens: usize,
    /// Duration of a step.
    pub cost: StepCost,
    /// Duration of a step while another engine computes too, if they share a machine's cores, caches or memory.
    pub disturbed: Option<StepCost>,
    /// KV blocks of one engine.
    pub blocks: usize,
}

/// Share of a device's memory that an engine uses, and what it needs beside weights and KV, in bytes.
const USED_MEMORY: f64 = 0.92;
const WORKSPACE: f64 = 2e9;

/// KV blocks for which `degree` devices have room beside the model; 0 if the model does not fit.
pub fn blocks_that_fit(device: &Device, model: &Model, degree: usize) -> usize {
    let n = degree as f64;
    let memory = n * (device.memory * USED_MEMORY - WORKSPACE) - model.weight_bytes();
    // With more devices than KV heads some hold the same KV.
    let copies = (n / model.kv_heads as f64).max(1.0);
    (memory / copies / model.kv_bytes_per_token() / BLOCK_TOKENS as f64).max(0.0) as usize
}

impl Pool {
    /// A pool on published hardware. None if the model does not fit into `degree` devices.
    pub fn on(device: &Device, model: &Model, role: Role, engines: usize, degree: usize) -> Option<Pool> {
        let cost = StepCost::Roofline(Roofline::new(device, model, degree, &Efficiency::default()));
        let blocks = blocks_that_fit(device, model, degree);
        let max_sequences = 256;
        let max_batch_tokens = cost.saturating_tokens().max(max_sequences);
        (blocks > 0).then_some(Pool {
            role,
            engines,
            degree,
            max_sequences,
            max_batch_tokens,
            cost,
            disturbed: None,
            blocks,
        })
    }

    /// Devices of all engines.
    pub fn devices(&self) -> usize {
        self.engines * self.degree
    }
}

/// Choice of an engine for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// One after the other.
    RoundRobin,
    /// The one with the fewest open requests, as the front of the example servers does.
    LeastLoaded,
    /// The one with the least to compute and to read: prompt tokens waiting there and not cached, plus KV in use.
    PrefixAware,
}

/// Links over which KV moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Links {
    /// Bytes/s from one engine to another.
    pub rate: f64,
    /// Latency of a transfer in seconds.
    pub latency: f64,
    /// Whether KV moves while the prompt is computed, or only afterwards.
    pub streaming: bool,
    /// Bytes of KV for one token.
    pub bytes_per_token: f64,
}

/// An engine that stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Number of the engine, counted through all pools.
    pub engine: usize,
    /// Time of the failure in nanoseconds.
    pub at_ns: u64,
    /// Time until the engine is back, empty; None if it stays away.
    pub back_after_ns: Option<u64>,
}

/// Role switches by load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Switching {
    /// Time between two decisions, in nanoseconds.
    pub every_ns: u64,
    /// Seconds that new prompts may wait; half of it turns a decode engine into a prefill engine.
    pub ttft_limit: f64,
    /// Seconds between tokens; nine tenths of it turn a prefill engine into a decode engine.
    pub itl_limit: f64,
}

/// Everything about a deployment.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Pools; either all are mixed, or there is at least one each for prefill and decode.
    pub pools: Vec<Pool>,
    /// Choice of engines.
    pub routing: Routing,
    /// Links between engines.
    pub links: Links,
    /// Time from the client to the engine that is nobody's work: HTTP, tokenizing, the front. In seconds.
    pub request_overhead: f64,
    /// Whether prefixes are cached.
    pub prefix_cache: bool,
    /// Context at which attention reads less than everything (sliding windows); None for models without.
    pub window: Option<usize>,
    /// Failures.
    pub failures: Vec<Failure>,
    /// Time until a request of a failed engine is routed anew, in nanoseconds.
    pub detection_ns: u64,
    /// Role switches; None for fixed pools.
    pub switching: Option<Switching>,
}

impl Deployment {
    /// A deployment without failures and switches. KV moves at the rate of the network unless all devices are in one node.
    pub fn new(pools: Vec<Pool>, device: &Device, model: &Model) -> Deployment {
        let devices: usize = pools.iter().map(Pool::devices).sum();
        let degree = pools.iter().map(|pool| pool.degree).min().unwrap_or(1) as f64;
        let one_link = if devices <= device.per_node { device.node_link } else { device.network_link };
        Deployment {
            pools,
            routing: Routing::LeastLoaded,
            links: Links {
                // Each device of an engine sends its part over a link of its own.
                rate: one_link * degree * Efficiency::default().links,
                latency: 1e-3,
                streaming: true,
                bytes_per_token: model.kv_bytes_per_token(),
            },
            request_overhead: 5e-3,
            prefix_cache: true,
            window: model.window,
            failures: Vec::new(),
            detection_ns: 100_000_000,
            switching: None,
        }
    }

    /// Devices of all pools.
    pub fn devices(&self) -> usize {
        self.pools.iter().map(Pool::devices).sum()
    }
}
