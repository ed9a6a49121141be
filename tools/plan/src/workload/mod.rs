//! Requests that arrive: a Poisson process, closed streams, or a trace. Lengths are in tokens; no text is involved.

mod azure;
mod mooncake;
mod synthetic;

pub use azure::read_azure;
pub use mooncake::{BLOCK, read_mooncake};
pub use synthetic::{Lengths, SharedPrefix, poisson};

use std::path::Path;
use std::sync::Arc;

/// One request of a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// Time of arrival in nanoseconds.
    pub at_ns: u64,
    /// Tokens of the prompt, at least 1.
    pub prompt: usize,
    /// Tokens to generate, at least 1.
    pub output: usize,
    /// Names of the leading blocks of [`BLOCK`] tokens. Equal names mean equal tokens in and before the block.
    pub blocks: Arc<[u64]>,
}

/// Requests for a simulation.
#[derive(Clone, Debug)]
pub enum Workload {
    /// Requests that arrive when they arrive, ordered by time.
    Open(Vec<Arrival>),
    /// Streams that send their next request as soon as the last one has ended, until a time in nanoseconds.
    Closed {
        /// Number of streams; each begins a millisecond after the one before.
        streams: usize,
        /// Lengths of the requests.
        lengths: Lengths,
        /// Time after which no request begins.
        until_ns: u64,
        /// Seed of the lengths.
        seed: u64,
    },
}

impl Workload {
    /// Reads a trace: `.jsonl` is Mooncake's format, anything else Azure's.
    pub fn trace(path: &Path) -> Result<Workload, String> {
        match path.extension().is_some_and(|extension| extension == "jsonl") {
            true => read_mooncake(path).map(Workload::Open),
            false => read_azure(path).map(Workload::Open),
        }
    }

    /// Changes the speed of arrival by a factor; closed streams stay as they are.
    pub fn faster(mut self, factor: f64) -> Workload {
        if let Workload::Open(arrivals) = &mut self {
            arrivals.iter_mut().for_each(|arrival| arrival.at_ns = (arrival.at_ns as f64 / factor) as u64);
        }
        self
    }
}

/// Sorts requests by time and lets the first arrive at 0, as traces begin at an odd time of day.
fn from_zero(mut arrivals: Vec<Arrival>) -> Vec<Arrival> {
    arrivals.sort_by_key(|arrival| arrival.at_ns);
    let first = arrivals.first().map_or(0, |arrival| arrival.at_ns);
    arrivals.iter_mut().for_each(|arrival| arrival.at_ns -= first);
    arrivals
}
