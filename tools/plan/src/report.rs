//! Figures of a simulation: latencies, goodput and utilisation.

use crate::sim::{Deployment, End, Outcome, Request};
use serde::Serialize;

/// Times between tokens, counted in classes: 128 of equal width from each power of two to the next.
#[derive(Clone, Debug, Default)]
pub struct Gaps {
    counts: Vec<u64>,
    total: u64,
}

/// Binary logarithm of the classes between two powers of two.
const FINENESS: u32 = 7;

impl Gaps {
    /// Counts a gap.
    pub fn add(&mut self, ns: u64) {
        // The bits after the highest one number the class above the power of two.
        let power = (ns.max(1 << FINENESS)).ilog2() - FINENESS;
        let class = ((u64::from(power) << FINENESS) + (ns >> power)) as usize;
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
                let power = (class >> FINENESS).saturating_sub(1);
                let first = (class - (power << FINENESS)) as f64;
                return (first + 0.5) * (1u64 << power) as f64 / 1e9;
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
    /// Share of the time in which an engine ran steps while requests arrived.
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
    /// Simulated seconds, from the first arrival to the last token.
    pub seconds: f64,
    /// Generated tokens per second and device, in the [`Window`].
    pub tokens_per_device: f64,
    /// Tokens generated in the [`Window`] over those that its requests ask for: below 1 where the queue grows. 0 if there is no
    /// window.
    pub keeping_up: f64,
    /// Share of the counted requests within the limits.
    pub attainment: f64,
    /// Requests within the limits, per second and device, in the [`Window`].
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

/// Share of the requests that is left out at least, and at most, because the deployment was still filling.
const WARM_UP: [f64; 2] = [0.1, 0.5];

/// The time over which rates are taken: from the arrival of the first counted request to the last arrival. Before it the
/// deployment fills, and after it the deployment empties; neither says what it carries. A run of closed streams counts as a load
/// generator does: from its begin, and of the requests those that end within its time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Window {
    /// Requests before the first counted one.
    skipped: usize,
    begin_ns: u64,
    end_ns: u64,
}

impl Window {
    /// Leaves out the first tenth of the requests, and those that arrive within the mean time of a request, as the number of
    /// requests inside still grows then; but at most half.
    fn new(outcome: &Outcome) -> Window {
        let requests = &outcome.requests;
        if outcome.closed {
            return Window { skipped: 0, begin_ns: 0, end_ns: outcome.arrivals_ns };
        }
        let [least, most] = WARM_UP.map(|share| (requests.len() as f64 * share) as usize);
        let filled_ns = requests.first().map_or(0, |first| first.arrived_ns) + mean_stay_ns(requests);
        let skipped = requests.partition_point(|request| request.arrived_ns < filled_ns).clamp(least, most);
        let arrived = |request: Option<&Request>| request.map_or(0, |request| request.arrived_ns);
        Window { skipped, begin_ns: arrived(requests.get(skipped)), end_ns: arrived(requests.last()) }
    }

    fn seconds(&self) -> f64 {
        self.end_ns.saturating_sub(self.begin_ns) as f64 / 1e9
    }

    /// Tokens of a request that are generated in the window, taking all but the first to be evenly spaced.
    fn tokens(&self, request: &Request) -> f64 {
        if request.generated == 0 {
            return 0.0;
        }
        let inside = |at: u64| self.begin_ns <= at && at < self.end_ns;
        let first = f64::from(u8::from(inside(request.first_ns)));
        let (begin, end) = (request.first_ns.max(self.begin_ns), request.last_ns.min(self.end_ns));
        let shared = end.saturating_sub(begin) as f64 / (request.last_ns - request.first_ns).max(1) as f64;
        first + (request.generated - 1) as f64 * shared
    }
}

fn mean_stay_ns(requests: &[Request]) -> u64 {
    let stays = requests.iter().filter(|r| r.end == Some(End::Finished)).map(|r| r.last_ns - r.arrived_ns);
    let (n, sum) = stays.fold((0u128, 0u128), |(n, sum), stay| (n + 1, sum + u128::from(stay)));
    (sum / n.max(1)) as u64
}

impl Report {
    /// The figures of an outcome under these limits.
    pub fn new(deployment: &Deployment, outcome: &Outcome, slo: &Slo) -> Report {
        let all = &outcome.requests;
        let window = Window::new(outcome);
        let in_time: Vec<&Request> = all.iter().filter(|r| !outcome.closed || r.last_ns <= window.end_ns).collect();
        let counted = if in_time.is_empty() { all.iter().collect() } else { in_time };
        let counted = &counted[window.skipped..];
        let finished: Vec<&Request> = counted.iter().copied().filter(|r| r.end == Some(End::Finished)).collect();
        let of = |value: fn(&Request) -> f64| Quantiles::of(finished.iter().map(|request| value(request)).collect());
        let seconds = outcome.end_ns as f64 / 1e9;
        let good = |requests: &[&Request]| requests.iter().filter(|request| slo.holds(request)).count() as f64;
        let generated = all.iter().map(|request| window.tokens(request)).sum::<f64>();
        let asked = counted.iter().map(|request| request.output).sum::<usize>() as f64;
        // Arrivals that are over before a request is have no steady state, so there the whole run counts.
        let steady = window.end_ns.saturating_sub(window.begin_ns) > mean_stay_ns(all);
        let (tokens, goods, over) = match steady {
            true => (generated, good(counted), window.seconds()),
            false => (
                all.iter().map(|request| request.generated).sum::<usize>() as f64,
                good(&all.iter().collect::<Vec<_>>()),
                seconds,
            ),
        };
        let per_device = |n: f64| n / over.max(1e-9) / deployment.devices() as f64;
        let pools = deployment.pools.iter().enumerate().map(|(index, pool)| {
            let busy: u64 = outcome.busy.iter().filter(|busy| busy.0 == index).map(|busy| busy.1).sum();
            let whole = outcome.arrivals_ns as f64 * pool.engines as f64;
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
            tokens_per_device: per_device(tokens),
            keeping_up: if steady { generated / asked.max(1.0) } else { 0.0 },
            attainment: good(counted) / counted.len().max(1) as f64,
            goodput_per_device: per_device(goods),
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
        for (q, seconds) in [(0.001, 0.001), (0.5, 0.5), (0.99, 0.99), (1.0, 1.0)] {
            assert!((gaps.quantile(q) / seconds - 1.0).abs() < 0.011);
        }
        assert_eq!(Gaps::default().quantile(0.5), 0.0);
    }
}
