//! Traffic whose rate can be chosen.

use crate::workload::{Arrival, Lengths, SharedPrefix, Workload, poisson};

/// Where requests come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A Poisson process.
    Poisson {
        /// Lengths.
        lengths: Lengths,
        /// Shared beginnings of prompts.
        shared: Option<SharedPrefix>,
    },
    /// A trace, replayed faster or slower.
    Trace(Vec<Arrival>),
}

impl Source {
    /// About `count` requests that arrive at `rate` per second.
    pub fn workload(&self, rate: f64, count: usize, seed: u64) -> Workload {
        match self {
            Source::Poisson { lengths, shared } => Workload::Open(poisson(rate, count, *lengths, *shared, seed)),
            Source::Trace(arrivals) => {
                let part = &arrivals[..count.min(arrivals.len())];
                let seconds = part.last().map_or(0.0, |last| last.at_ns as f64 / 1e9).max(1e-3);
                Workload::Open(part.to_vec()).faster(rate * seconds / part.len() as f64)
            }
        }
    }

    /// Mean tokens of prompts and of answers.
    pub fn means(&self) -> (f64, f64) {
        match self {
            Source::Poisson { lengths, .. } => (lengths.prompt as f64, lengths.output as f64),
            Source::Trace(arrivals) => {
                let n = arrivals.len() as f64;
                let sum = |of: fn(&Arrival) -> usize| arrivals.iter().map(of).sum::<usize>() as f64 / n;
                (sum(|arrival| arrival.prompt), sum(|arrival| arrival.output))
            }
        }
    }
}
