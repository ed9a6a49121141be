//! A trace of conversations: each turn repeats what was said before, so prefix caches matter, and people come in waves.

use crate::workload::{Arrival, BLOCK};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const CONVERSATIONS: u64 = 500;
/// Tokens of the instructions with which all conversations begin.
const INSTRUCTIONS: usize = 2 * BLOCK;
/// Seconds between two conversations on average, and of a wave of them.
const GAP: f64 = 2.0;
const WAVE: f64 = 120.0;

/// The requests of all conversations by time.
pub fn trace() -> Vec<Arrival> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut all = Vec::new();
    let mut begin = 0.0;
    for conversation in 0..CONVERSATIONS {
        // Twice as many at the top of a wave as on average, and nearly none between waves.
        let busy = 1.05 + (begin / WAVE * std::f64::consts::TAU).sin();
        begin += exponential(&mut random, GAP) / busy;
        let (mut at, mut said) = (begin, INSTRUCTIONS);
        for _ in 0..random.random_range(1..=8) {
            said += random.random_range(50..=700);
            let output = random.random_range(50..=400);
            let shared = INSTRUCTIONS / BLOCK;
            let name =
                |block: usize| if block < shared { block as u64 } else { (conversation + 1) << 20 | block as u64 };
            let blocks = (0..said / BLOCK).map(name).collect();
            all.push(Arrival { at_ns: (at * 1e9) as u64, prompt: said, output, blocks });
            said += output;
            at += 5.0 + exponential(&mut random, 20.0);
        }
    }
    all.sort_by_key(|arrival| arrival.at_ns);
    all
}

fn exponential(random: &mut ChaCha8Rng, mean: f64) -> f64 {
    -(1.0 - random.random::<f64>()).ln() * mean
}
