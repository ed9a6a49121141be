//! Figures of a simulation: latencies, goodput and utilisation.

use crate::sim::{Deployment, End, Outcome, Request};
use serde::Serialize;

/// Times between tokens, counted in classes that are 1 % wide.
#[derive(Clone, Debug, Default)]
pub struct Gaps {
    counts: Vec<u64>,
    total: u64,
}

/// Ratio of the borders of a class.
const WIDTH: f64 = 1.01;
/// Smallest gap that has a class of its own, in nanoseconds.
const SMALLEST_NS: f64 = 1000.0;

impl Gaps {
    /// Counts a gap.
    pub fn add(&mut self, ns: u64) {
        let class = ((ns as f64 / SMALLEST_NS).max(1.0).ln() / WIDTH.ln()) as usize;
        if class >= self.counts.len() {
            self.counts.resize(class + 1, 0);
        }
        self.counts[class] += 1;
        self.total += 1;
    }

    /// A quantile in seconds; 0 without gaps.
    pub fn quantile(&self, q: f64) -> f64 {
        let wanted = (q * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (class, &count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return SMALLEST_NS * WIDTH.powf(class as f64 + 0.5) / 1e9;
            }
        }
        0.0
    }
}

/// Limits that a request has to keep to be counted as good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slo {
    /// Most seconds to the first token.
    pub ttft: f64,
    /// Most seconds between tokens, as the mean of a request.
    pub itl: f64,
}

impl Slo {
    /// Whether a request kept the limits.
    pub fn holds(&self, request: &Request) -> bool {
        request.end == Some(End::Finished) && request.ttft() <= self.ttft && request.itl() <= self.itl
    }
}

/// Quantiles of a latency in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Quantiles {
    /// Quantiles of some values.
    pub fn of(mut values: Vec<f64>) -> Quantiles {
        if values.is_empty() {
            return Quantiles::default();
        }
        values.sort_by(f64::total_cmp);
        let at = |q: f64| values[((q * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Quantiles { mean, p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99) }
    }
}

/// Figures of one pool.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PoolReport {
    /// Engines.
    pub engines: usize,
    /// Share of the time in which an engine ran steps.
    pub utilisation: f64,
}

/// Figures of a simulation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Requests that ended with all their tokens.
    pub finished: usize,
    /// Requests that fit nowhere.
    pub rejected: usize,
    /// Time to the first token.
    pub ttft: Quantiles,
    /// Time between tokens, the mean of each request.
    pub itl: Quantiles,
    /// 99th percentile of all single times between tokens.
    pub gap_p99: f64,
    /// Time from the request to its last token.
    pub e2e: Quantiles,
    /// Simulated seconds.
    pub seconds: f64,
    /// Generated tokens per second and device.
    pub tokens_per_device: f64,
    /// Share of the requests within the limits.
    pub attainment: f64,
    /// Requests within the limits, per second and device.
    pub goodput_per_device: f64,
    /// Figures of the pools.
    pub pools: Vec<PoolReport>,
    /// Steps of all engines.
    pub steps: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Prompt tokens found in prefix caches.
    pub prefix_hits: usize,
    /// Bytes of KV that moved between engines.
    pub moved_bytes: f64,
    /// Requests that moved after a failure.
    pub migrations: u64,
    /// Role switches.
    pub switches: u64,
}

/// Share of the requests, the earliest, that latencies and attainment leave out, because the deployment was still empty.
const WARM_UP: f64 = 0.1;

impl Report {
    /// The figures of an outcome under these limits.
    pub fn new(deployment: &Deployment, outcome: &Outcome, slo: &Slo) -> Report {
        let all = &outcome.requests;
        let counted = &all[(all.len() as f64 * WARM_UP) as usize..];
        let finished: Vec<&Request> = counted.iter().filter(|r| r.end == Some(End::Finished)).collect();
        let of = |value: fn(&Request) -> f64| Quantiles::of(finished.iter().map(|request| value(request)).collect());
        let seconds = outcome.end_ns as f64 / 1e9;
        let good = |requests: &[Request]| requests.iter().filter(|request| slo.holds(request)).count() as f64;
        let generated: usize = all.iter().map(|request| request.generated).sum();
        let per_device = |n: f64| n / seconds.max(1e-9) / deployment.devices() as f64;
        let pools = deployment.pools.iter().enumerate().map(|(index, pool)| {
            let busy: u64 = outcome.busy.iter().filter(|busy| busy.0 == index).map(|busy| busy.1).sum();
            let whole = seconds * 1e9 * pool.engines as f64;
            PoolReport { engines: pool.engines, utilisation: busy as f64 / whole.max(1.0) }
        });
        let ended = |end| all.iter().filter(|request| request.end == Some(end)).count();
        Report {
            finished: ended(End::Finished),
            rejected: ended(End::Rejected),
            ttft: of(Request::ttft),
            itl: Quantiles::of(finished.iter().filter(|r| r.output > 1).map(|r| r.itl()).collect()),
            gap_p99: outcome.gaps.quantile(0.99),
            e2e: of(Request::e2e),
            seconds,
            tokens_per_device: per_device(generated as f64),
            attainment: good(counted) / counted.len().max(1) as f64,
            goodput_per_device: per_device(good(all)),
            pools: pools.collect(),
            steps: outcome.steps,
            preemptions: outcome.preemptions,
            prefix_hits: outcome.prefix_hits,
            moved_bytes: outcome.moved_bytes,
            migrations: outcome.migrations,
            switches: outcome.switches,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let found = Quantiles::of((1..=100).rev().map(f64::from).collect());
        assert_eq!(found, Quantiles { mean: 50.5, p50: 50.0, p90: 90.0, p95: 95.0, p99: 99.0 });
        assert_eq!(Quantiles::of(vec![3.0]).p99, 3.0);
    }

    #[test]
    fn gaps_are_found_within_a_hundredth() {
        let mut gaps = Gaps::default();
        (1..=1000).for_each(|ms| gaps.add(ms * 1_000_000));
        for (q, seconds) in [(0.5, 0.5), (0.99, 0.99)] {
            assert!((gaps.quantile(q) / seconds - 1.0).abs() < 0.011);
        }
        assert_eq!(Gaps::default().quantile(0.5), 0.0);
    }
}
