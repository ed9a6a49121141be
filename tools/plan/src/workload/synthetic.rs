//! Requests from a random generator.

use super::{Arrival, BLOCK};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

/// Lengths of requests, each drawn evenly from mean · (1 − spread) to mean · (1 + spread).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lengths {
    /// Mean tokens of a prompt.
    pub prompt: usize,
    /// Mean tokens of an answer.
    pub output: usize,
    /// 0 for constant lengths, at most 1.
    pub spread: f64,
}

impl Lengths {
    /// Draws the tokens of a prompt and of its answer.
    pub fn draw(&self, random: &mut ChaCha8Rng) -> (usize, usize) {
        let mut one = |mean: usize| {
            let factor = 1.0 + self.spread * (2.0 * random.random::<f64>() - 1.0);
            ((mean as f64 * factor).round() as usize).max(1)
        };
        (one(self.prompt), one(self.output))
    }
}

/// Prompts that begin alike, such as the instructions of an application.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SharedPrefix {
    /// Number of different beginnings; each prompt has one of them.
    pub groups: u64,
    /// Tokens of a beginning, rounded down to whole blocks of [`BLOCK`] tokens.
    pub tokens: usize,
}

/// `count` requests of a Poisson process with `rate` requests per second.
pub fn poisson(rate: f64, count: usize, lengths: Lengths, shared: Option<SharedPrefix>, seed: u64) -> Vec<Arrival> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut seconds = 0.0;
    (0..count)
        .map(|_| {
            // 1 − u is above 0, so its logarithm is finite.
            seconds -= (1.0 - random.random::<f64>()).ln() / rate;
            let (prompt, output) = lengths.draw(&mut random);
            let blocks: Arc<[u64]> = match shared {
                None => Arc::new([]),
                Some(shared) => {
                    let group = random.random_range(0..shared.groups.max(1));
                    let blocks = shared.tokens.min(prompt) / BLOCK;
                    (0..blocks as u64).map(|block| group << 32 | block).collect()
                }
            };
            Arrival { at_ns: (seconds * 1e9) as u64, prompt, output, blocks }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: Lengths = Lengths { prompt: 1000, output: 100, spread: 0.5 };

    #[test]
    fn the_rate_and_the_lengths_are_those_asked_for() {
        let arrivals = poisson(50.0, 20_000, LENGTHS, None, 1);
        let seconds = arrivals.last().unwrap().at_ns as f64 / 1e9;
        assert!((20_000.0 / seconds / 50.0 - 1.0).abs() < 0.03, "{seconds}");
        let mean = arrivals.iter().map(|arrival| arrival.prompt).sum::<usize>() as f64 / 20_000.0;
        assert!((mean / 1000.0 - 1.0).abs() < 0.02, "{mean}");
        assert!(arrivals.iter().all(|arrival| (500..=1500).contains(&arrival.prompt)));
    }

    #[test]
    fn a_seed_gives_one_sequence() {
        assert_eq!(poisson(5.0, 100, LENGTHS, None, 7), poisson(5.0, 100, LENGTHS, None, 7));
        assert_ne!(poisson(5.0, 100, LENGTHS, None, 7), poisson(5.0, 100, LENGTHS, None, 8));
    }

    #[test]
    fn prompts_of_a_group_begin_alike() {
        let shared = SharedPrefix { groups: 2, tokens: 2 * BLOCK };
        let long = Lengths { prompt: 4 * BLOCK, output: 1, spread: 0.0 };
        let arrivals = poisson(5.0, 50, long, Some(shared), 7);
        let mut kinds: Vec<&[u64]> = arrivals.iter().map(|arrival| &*arrival.blocks).collect();
        kinds.sort();
        kinds.dedup();
        assert_eq!(kinds, [[0, 1].as_slice(), &[1 << 32, 1 << 32 | 1]]);
    }
}
