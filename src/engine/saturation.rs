//! The smallest prefill step that saturates a device: the rule that chooses it from measurements.
//!
//! Up to some number of tokens, a step takes as long as reading the weights, so more tokens are nearly free. Beyond that number
//! the device is bound by compute, and a longer step only makes other requests wait longer. DistServe (Zhong et al., OSDI 2024,
//! 3.1) calls it L_m and profiles it for each model and GPU; Sarathi-Serve (Agrawal et al., OSDI 2024, 4.1) uses it as
//! the token budget of its chunks. Here it is the knee of the curve of tokens/s over tokens per step: the smallest step
//! that reaches the share [`NEAR`] of the best rate.

/// Share of the best rate that a chosen step has to reach.
const NEAR: f64 = 0.95;
/// Tokens of the first and the last step that are measured; each step is twice as long as the one before.
pub(super) const SMALLEST: usize = 128;
const LARGEST: usize = 4096;
/// Duration of a step after which no longer ones are tried, because they would stall running generations.
const LONG_NS: u64 = 250_000_000;
/// Factor by which two doublings must raise the rate to justify another one.
const GAIN: f64 = 1.02;

/// One measurement: the length of a step and its duration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    /// Prompt tokens in the step.
    pub tokens: usize,
    /// Duration of the step in nanoseconds.
    pub ns: u64,
}

impl Point {
    /// Rate in tokens/s.
    fn rate(&self) -> f64 {
        self.tokens as f64 * 1e9 / self.ns.max(1) as f64
    }
}

/// The step length chosen for a device, and the rate at that length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// Prompt tokens per step.
    pub tokens: usize,
    /// Tokens/s at that step length.
    pub rate: u64,
}

/// The step length to measure after `points`, at most `most`; None if the measurement is complete.
pub(super) fn next(points: &[Point], most: usize) -> Option<usize> {
    let Some(last) = points.last() else { return (SMALLEST <= most).then_some(SMALLEST) };
    let tokens = 2 * last.tokens;
    let flat = points.len() >= 3 && {
        let best = |points: &[Point]| points.iter().map(Point::rate).fold(0.0, f64::max);
        best(points) < GAIN * best(&points[..points.len() - 2])
    };
    (tokens <= most.min(LARGEST) && last.ns <= LONG_NS && !flat).then_some(tokens)
}

/// The smallest step whose rate is close to the best. None if nothing was measured.
pub(super) fn choose(points: &[Point]) -> Option<Choice> {
    let best = points.iter().map(Point::rate).fold(0.0, f64::max);
    let near = points.iter().filter(|point| point.rate() >= NEAR * best);
    let chosen = near.min_by_key(|point| point.tokens)?;
    Some(Choice { tokens: chosen.tokens, rate: chosen.rate() as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device whose steps take `fixed` ns, or `per_token` ns for each token if that is longer.
    fn device(fixed: f64, per_token: f64) -> impl Fn(usize) -> u64 {
        move |tokens| (fixed.max(per_token * tokens as f64)) as u64
    }

    fn measure(time: impl Fn(usize) -> u64, most: usize) -> Vec<Point> {
        let mut points = Vec::new();
        while let Some(tokens) = next(&points, most) {
            points.push(Point { tokens, ns: time(tokens) });
        }
        points
    }

    fn sizes(points: &[Point]) -> Vec<usize> {
        points.iter().map(|point| point.tokens).collect()
    }

    #[test]
    fn the_knee_is_chosen() {
        // The weights take 5 ms to read, in which 500 tokens can be computed.
        let points = measure(device(5e6, 1e4), usize::MAX);
        assert_eq!(sizes(&points), [128, 256, 512, 1024, 2048]);
        assert_eq!(choose(&points), Some(Choice { tokens: 512, rate: 100_000 }));
    }

    #[test]
    fn a_soft_knee_is_where_the_rate_comes_near_the_best() {
        // Both times add up: 2048 tokens have 90 % of the rate of 4096, which are the most.
        let points = measure(|tokens| 5_000_000 + 10_000 * tokens as u64, usize::MAX);
        assert_eq!(choose(&points).unwrap().tokens, 4096);
        let points = measure(|tokens| 500_000 + 10_000 * tokens as u64, usize::MAX);
        assert_eq!(choose(&points).unwrap().tokens, 1024);
    }

    #[test]
    fn a_flat_curve_ends_early_with_the_smallest() {
        let points = measure(device(0.0, 1e4), usize::MAX);
        assert_eq!(sizes(&points), [128, 256, 512]);
        assert_eq!(choose(&points).unwrap().tokens, 128);
    }

    #[test]
    fn noise_within_the_margin_changes_nothing() {
        let noisy = |tokens: usize| {
            let noise = if (tokens / 128) & 0b1010 == 0 { 1.02 } else { 0.98 };
            (device(5e6, 1e4)(tokens) as f64 * noise) as u64
        };
        assert_eq!(choose(&measure(noisy, usize::MAX)).unwrap().tokens, 512);
        // One bad measurement of the right size costs a doubling, and not more.
        let hiccup = |tokens: usize| device(5e6, 1e4)(tokens) * if tokens == 512 { 2 } else { 1 };
        assert_eq!(choose(&measure(hiccup, usize::MAX)).unwrap().tokens, 1024);
    }

    #[test]
    fn a_curve_that_falls_again_has_its_top_chosen() {
        let points: Vec<Point> =
            [(128, 10), (256, 11), (512, 30), (1024, 80)].map(|(tokens, ns)| Point { tokens, ns }).to_vec();
        assert_eq!(choose(&points).unwrap().tokens, 256);
    }

    #[test]
    fn a_single_point_and_none() {
        let points = measure(device(5e6, 1e4), 200);
        assert_eq!(sizes(&points), [128]);
        assert_eq!(choose(&points), Some(Choice { tokens: 128, rate: 25_600 }));
        assert!(measure(device(5e6, 1e4), 100).is_empty());
        assert_eq!(choose(&[]), None);
        // A clock that stands still.
        assert_eq!(choose(&[Point { tokens: 128, ns: 0 }]).unwrap().tokens, 128);
    }

    #[test]
    fn a_slow_device_is_not_asked_for_more() {
        assert_eq!(sizes(&measure(device(0.0, 1.5e6), usize::MAX)), [128, 256]);
    }
}
