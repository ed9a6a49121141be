//! Histograms of an engine: fixed buckets of atomics that the step thread and host threads write. They can be read at any time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the time buckets, in nanoseconds: 100 µs to 250 s.
const TIMES: [u64; 20] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    25_000_000_000,
    50_000_000_000,
    100_000_000_000,
    250_000_000_000,
];

/// Upper bounds of the buckets for numbers of sequences.
const SIZES: [u64; 20] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 4096];

/// Counts of observations by size, in nanoseconds or as a plain number.
pub(super) struct Histogram {
    bounds: &'static [u64; 20],
    /// Observations per bucket, not cumulative. The last bucket has no upper bound.
    counts: [AtomicU64; 21],
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [u64; 20]) -> Histogram {
        Histogram { bounds, counts: std::array::from_fn(|_| AtomicU64::new(0)), sum: AtomicU64::new(0) }
    }

    /// Counts one observation.
    pub fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// Number of all observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Sum of all observations.
    pub fn sum(&self) -> u64 {
        self.sum.load(Relaxed)
    }
}

/// A histogram as it was at one moment, in its family's unit.
pub struct HistogramReading {
    /// Name of the family without the prefix `cleave_`.
    pub name: &'static str,
    /// Meaning, as a sentence.
    pub help: &'static str,
    /// Upper bound of each bucket with the number of observations up to it. The last bound is infinite.
    pub buckets: Vec<(f64, u64)>,
    /// Sum of all observations.
    pub sum: f64,
}

macro_rules! histograms {
    ($($field:ident: $bounds:ident, $name:literal, $help:literal;)*) => {
        /// All histograms of an engine.
        pub(super) struct Histograms {
            $(#[doc = $help] pub $field: Histogram,)*
        }

        impl Default for Histograms {
            fn default() -> Self {
                Histograms { $($field: Histogram::new(&$bounds),)* }
            }
        }

        impl Histograms {
            /// A reading of every histogram.
            pub fn read(&self) -> Vec<HistogramReading> {
                vec![$(reading($name, $help, &self.$field),)*]
            }
        }
    };
}

histograms! {
    time_to_first_token: TIMES, "time_to_first_token_seconds",
        "Time from accepting a request to the first token that this engine generates for it.";
    inter_token_latency: TIMES, "inter_token_latency_seconds",
        "Time between two tokens of a request that this engine generates one after the other.";
    queue_time: TIMES, "request_queue_time_seconds",
        "Time from accepting a request to the start of the first step that works on it.";
    e2e_latency: TIMES, "e2e_request_latency_seconds",
        "Time from accepting a request to its FINISHED event, however it ends.";
    handoff: TIMES, "handoff_seconds", "Time to take the KV of a handle over for a request that continues it.";
    step: TIMES, "step_seconds", "Duration of a step.";
    batch_size: SIZES, "step_batch_size", "Sequences in a step.";
}

fn reading(name: &'static str, help: &'static str, histogram: &Histogram) -> HistogramReading {
    let scale = if super::metrics::unit(name) == Some("seconds") { 1e9 } else { 1.0 };
    let bounds = histogram.bounds.iter().map(|&bound| bound as f64 / scale).chain([f64::INFINITY]);
    let mut total = 0;
    let counts = histogram.counts.iter().map(|count| {
        total += count.load(Relaxed);
        total
    });
    HistogramReading { name, help, buckets: bounds.zip(counts).collect(), sum: histogram.sum() as f64 / scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_include_their_bound() {
        let histograms = Histograms::default();
        for value in [1, 100_000, 100_001, 400_000_000_000] {
            histograms.step.observe(value);
        }
        let readings = histograms.read();
        let step = readings.iter().find(|reading| reading.name == "step_seconds").unwrap();
        assert_eq!(step.buckets[0], (0.0001, 2));
        assert_eq!(step.buckets[1], (0.00025, 3));
        assert_eq!(*step.buckets.last().unwrap(), (f64::INFINITY, 4));
        assert_eq!(histograms.step.count(), 4);
        assert!((step.sum - 400.000_200_002).abs() < 1e-9, "{}", step.sum);
    }
}
