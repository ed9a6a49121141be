//! The smallest prefill step that saturates a device: the rule that chooses it, and the results of this process.
//!
//! Up to some number of tokens, a step takes as long as reading the weights, so more tokens are nearly free. Beyond that number
//! the device is bound by compute, and a longer step only makes other requests wait longer. DistServe (Zhong et al., OSDI 2024,
//! 3.1) calls it L_m and profiles it for each model and GPU; Sarathi-Serve (Agrawal et al., OSDI 2024, 4.1) uses it as
//! the token budget of its chunks. Here it is the knee of the curve of tokens/s over tokens per step: the smallest step
//! that reaches the share [`NEAR`] of the best rate.

use crate::backend::KvGeometry;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// Share of the best rate that a chosen step has to reach.
const NEAR: f64 = 0.95;
/// Tokens of the first and the last step that are measured; each step is twice as long as the one before.
pub(super) const SMALLEST: usize = 128;
const LARGEST: usize = 4096;
/// Duration of a step after which no longer ones are tried, because they would stall running generations.
const LONG_NS: u64 = 250_000_000;
/// Factor by which two doublings must raise the rate to justify another one.
const GAIN: f64 = 1.02;

/// Token budget of a step on a device that was not measured.
pub(super) const DEFAULT_TOKENS: usize = 512;

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

/// The conditions under which a choice is valid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Ordinal of the device.
    pub device: i32,
    /// Number of multiprocessors that the engine may use on the device.
    pub multiprocessors: u32,
    /// The model's fingerprint.
    pub model: [u8; 32],
    /// Layout of the KV cache.
    pub geometry: KvGeometry,
}

#[derive(Clone, Copy)]
enum Known {
    /// An engine is measuring.
    Measuring,
    /// The result; None if a measurement is impossible.
    Measured(Option<Choice>),
}

/// Results of this process, and measurements in progress.
static MEMORY: LazyLock<Mutex<HashMap<Key, Known>>> = LazyLock::new(Mutex::default);

fn memory() -> MutexGuard<'static, HashMap<Key, Known>> {
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The exclusive duty to measure for a key. If it is dropped without a result, another idle engine can take it.
pub(super) struct Claim(Key);

impl Claim {
    /// Takes the claim; None if the result is known or another engine is measuring.
    fn take(key: &Key) -> Option<Claim> {
        let mut memory = memory();
        if memory.contains_key(key) {
            return None;
        }
        memory.insert(key.clone(), Known::Measuring);
        Some(Claim(key.clone()))
    }

    /// Records the result of the measurement; None if it is impossible.
    pub fn settle(self, choice: Option<Choice>) {
        memory().insert(self.0.clone(), Known::Measured(choice));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut memory = memory();
        if matches!(memory.get(&self.0), Some(Known::Measuring)) {
            memory.remove(&self.0);
        }
    }
}

/// Token budget of an engine's steps: set by the host, or chosen by measurement.
pub(super) struct Budget {
    /// Budget set by the host.
    fixed: Option<usize>,
    /// Key and result of the measurement; None if this engine does not measure.
    found: Mutex<Option<(Key, Option<Choice>)>>,
}

impl Budget {
    /// A budget of `fixed` tokens or, without that, the one measured for `key`.
    pub fn new(fixed: Option<usize>, key: Option<Key>) -> Budget {
        let key = key.filter(|_| fixed.is_none());
        Budget { fixed, found: Mutex::new(key.map(|key| (key, None))) }
    }

    /// Changes the key, because the engine has moved to another share of the device.
    pub fn set_key(&self, key: Option<Key>) {
        let key = key.filter(|_| self.fixed.is_none());
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = key.map(|key| (key, None));
    }

    /// The choice made by measurement; None before that.
    pub fn choice(&self) -> Option<Choice> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, choice) = found.as_mut()?;
        if choice.is_none()
            && let Some(Known::Measured(known)) = memory().get(key)
        {
            *choice = *known;
        }
        *choice
    }

    /// Most prompt tokens in a step.
    pub fn prompts(&self) -> usize {
        self.fixed.or_else(|| self.choice().map(|choice| choice.tokens)).unwrap_or(DEFAULT_TOKENS)
    }

    /// Most tokens in a step. Unless the host set it, it allows at least one token for each of `max_sequences` sequences.
    pub fn step(&self, max_sequences: usize) -> usize {
        self.fixed.unwrap_or_else(|| self.prompts().max(max_sequences))
    }

    /// Claims the measurement, if it is due and no other engine has claimed it.
    pub fn claim(&self) -> Option<Claim> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.as_ref().filter(|(_, choice)| choice.is_none()).and_then(|(key, _)| Claim::take(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

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

    fn key(device: i32) -> Key {
        let geometry =
            KvGeometry { layers: 1, kv_heads: 1, head_dim: 16, block_tokens: 16, dtype: Dtype::Bf16, shards: 1 };
        Key { device, multiprocessors: 4, model: [9; 32], geometry }
    }

    #[test]
    fn one_engine_measures_and_all_know() {
        let (one, two) = (Budget::new(None, Some(key(1000))), Budget::new(None, Some(key(1000))));
        let claim = one.claim().unwrap();
        assert!(one.claim().is_none() && two.claim().is_none());
        drop(claim);
        let claim = two.claim().expect("given up by the first");
        assert_eq!((one.choice(), one.prompts(), one.step(64), one.step(600)), (None, 512, 512, 600));
        claim.settle(Some(Choice { tokens: 256, rate: 7 }));
        for budget in [&one, &two, &Budget::new(None, Some(key(1000)))] {
            assert_eq!((budget.prompts(), budget.step(64), budget.step(600)), (256, 256, 600));
            assert!(budget.claim().is_none());
        }
        assert!(Budget::new(None, Some(key(1001))).claim().is_some(), "another device is another matter");
    }

    #[test]
    fn what_the_host_says_is_not_measured() {
        let budget = Budget::new(Some(99), Some(key(1002)));
        assert!(budget.claim().is_none() && budget.choice().is_none());
        assert_eq!((budget.prompts(), budget.step(64)), (99, 99));
        // Where nothing can be found out nobody tries again.
        let other = Budget::new(None, Some(key(1002)));
        other.claim().unwrap().settle(None);
        assert!(other.claim().is_none() && other.choice().is_none() && other.prompts() == 512);
    }
}
