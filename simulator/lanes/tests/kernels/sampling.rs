//! Checks that sampling on the device always draws the token that src/sampling draws. The reference is the definition
//! of that code.

use crate::common::{BOTH, Random, arg, launch};
use simulated_kernels::Lanes;

/// Twin of the struct in sampling_params.cuh.
#[repr(C)]
#[derive(Clone, Debug)]
struct Row {
    seed: u64,
    position: u64,
    row: u32,
    temperature: f32,
    top_p: f32,
    min_p: f32,
    top_k: u32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    biases: [u32; 2],
    counts: [u32; 2],
    masked: [u32; 2],
}

const PLAIN: Row = Row {
    seed: 0,
    position: 0,
    row: 0,
    temperature: 1.0,
    top_p: 1.0,
    min_p: 0.0,
    top_k: 0,
    repetition_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    biases: [0; 2],
    counts: [0; 2],
    masked: [0; 2],
};

const BROKEN: u32 = 1;
const NO_CANDIDATE: u32 = 2;
const UNTOUCHED: (u32, u32) = (77, 99);

/// Rows of logits, each `vocab` long, with their parameters and lists.
#[derive(Default)]
struct Batch {
    vocab: usize,
    logits: Vec<f32>,
    rows: Vec<Row>,
    biases: Vec<(u32, f32)>,
    counts: Vec<(u32, u32)>,
    masked: Vec<u32>,
}

impl Batch {
    fn push(&mut self, logits: Vec<f32>, row: Row) {
        self.vocab = logits.len();
        self.rows.push(Row { row: self.rows.len() as u32, ..row });
        self.logits.extend(logits);
    }

    /// Runs the kernel; returns (token, status) of each row.
    fn run(&self, threads: u32, lanes: Lanes) -> Vec<(u32, u32)> {
        let mut logits = self.logits.clone();
        let mut tokens = vec![UNTOUCHED.0; self.rows.len()];
        let mut status = vec![UNTOUCHED.1; self.rows.len()];
        launch(
            "sample_float",
            [self.rows.len() as u32, 1, 1],
            threads,
            cleave_kernels::shapes::SAMPLING_SHARED as usize,
            &[
                arg(&logits.as_mut_ptr()),
                arg(&(self.vocab as u32)),
                arg(&(self.vocab as u32)),
                arg(&self.rows.as_ptr()),
                arg(&self.biases.as_ptr()),
                arg(&self.counts.as_ptr()),
                arg(&self.masked.as_ptr()),
                arg(&tokens.as_mut_ptr()),
                arg(&status.as_mut_ptr()),
            ],
            lanes,
        );
        tokens.into_iter().zip(status).collect()
    }

    fn check(&self, threads: u32, lanes: Lanes) {
        let found = self.run(threads, lanes);
        for (i, row) in self.rows.iter().enumerate() {
            let logits = self.logits[row.row as usize * self.vocab..][..self.vocab].to_vec();
            assert_eq!(found[i], self.reference(logits, row), "vocabulary {}, row {i}: {row:?}", self.vocab);
        }
    }

    fn reference(&self, mut logits: Vec<f32>, p: &Row) -> (u32, u32) {
        if let Some(id) = logits.iter().position(|&logit| logit.is_nan() || logit == f32::INFINITY) {
            return (id as u32, BROKEN);
        }
        for &(id, bias) in range(&self.biases, p.biases) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
        for &(id, generated) in range(&self.counts, p.counts) {
            let Some(logit) = logits.get_mut(id as usize) else { continue };
            if p.repetition_penalty != 1.0 {
                *logit = if *logit > 0.0 { *logit / p.repetition_penalty } else { *logit * p.repetition_penalty };
            }
            if generated > 0 && (p.presence_penalty != 0.0 || p.frequency_penalty != 0.0) {
                *logit -= p.frequency_penalty * generated as f32 + p.presence_penalty;
            }
        }
        for &id in range(&self.masked, p.masked) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let Some(best) = logits.iter().position(|&logit| logit == largest && logit > f32::NEG_INFINITY) else {
            return (u32::MAX, NO_CANDIDATE);
        };
        if p.temperature == 0.0 || largest == f32::INFINITY {
            return (best as u32, 0);
        }
        (draw(&logits, largest, p), 0)
    }
}

fn range<T>(all: &[T], [offset, len]: [u32; 2]) -> &[T] {
    &all[offset as usize..][..len as usize]
}

/// Reference that sorts all tokens and adds sequentially.
fn draw(logits: &[f32], largest: f32, p: &Row) -> u32 {
    const ONE: f64 = (1u64 << 42) as f64;
    let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).filter(|c| c.1 > f32::NEG_INFINITY).collect();
    sorted.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    let scale = 1.0 / f64::from(p.temperature);
    let weight = |logit: f32| {
        let distance = (f64::from(largest) - f64::from(logit)) * scale;
        if distance < 30.0 { (exp(-distance) * ONE).round_ties_even() as u64 } else { 0 }
    };
    if p.top_k > 0 && (p.top_k as usize) < logits.len() {
        sorted.truncate(p.top_k as usize);
    }
    let total = |of: &[(u32, f32)]| of.iter().map(|c| weight(c.1)).sum::<u64>();
    if p.top_p < 1.0 {
        let wanted = (f64::from(p.top_p) * total(&sorted) as f64).ceil() as u64;
        let mut sum = 0;
        let reached = sorted.iter().position(|c| {
            sum += weight(c.1);
            sum >= wanted
        });
        sorted.truncate(reached.unwrap() + 1);
    }
    let least = (f64::from(p.min_p) * ONE).ceil() as u64;
    sorted.retain(|c| weight(c.1) >= least);
    sorted.sort_by_key(|c| c.0);
    let mut left = ((u128::from(random53(p.seed, p.position)) * u128::from(total(&sorted))) >> 53) as u64;
    for (id, logit) in sorted {
        if weight(logit) > left {
            return id;
        }
        left -= weight(logit);
    }
    unreachable!("the total exceeds the target");
}

/// Copy of the formula in src/sampling/math.rs.
fn exp(x: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 6.931_471_803_691_238e-1) - n * 1.908_214_929_270_587_7e-10;
    let mut p = 1.0 / 6_227_020_800.0;
    let factorials =
        [479_001_600.0, 39_916_800.0, 3_628_800.0, 362_880.0, 40_320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0];
    for factorial in factorials {
        p = p * r + 1.0 / factorial;
    }
    p * f64::from_bits((shifted.to_bits() << 52).wrapping_add(1.0f64.to_bits()))
}

/// Copy of the generator in src/sampling/philox.rs.
fn random53(seed: u64, position: u64) -> u64 {
    let mut counter = [position as u32, (position >> 32) as u32, 0, 0];
    let mut key = [seed as u32, (seed >> 32) as u32];
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    (u64::from(counter[1]) << 32 | u64::from(counter[0])) >> 11
}

fn one_of<T: Copy>(random: &mut Random, values: &[T]) -> T {
    values[random.below(values.len())]
}

fn parameters(random: &mut Random) -> Row {
    Row {
        seed: random.bits(),
        position: random.bits() >> (random.below(64)),
        temperature: one_of(random, &[0.0, 1e-45, 1e-30, 0.2, 0.7, 1.0, 1.0, 3.0, 1000.0, f32::MAX]),
        top_p: one_of(random, &[1.0, 1.0, 1e-12, 0.1, 0.5, 0.9, 0.95, 0.999_999_9]),
        min_p: one_of(random, &[0.0, 0.0, 0.0, 1e-20, 0.05, 0.5, 1.0]),
        top_k: one_of(random, &[0, 0, 1, 2, 7, 50, 500, 1_000_000]),
        ..PLAIN
    }
}

/// Logits with few distinct levels, which makes ties, also between zeros of both signs. Some tokens are impossible.
fn logits(random: &mut Random, vocab: usize) -> Vec<f32> {
    let levels = one_of(random, &[1, 2, 10, 1000, 1 << 24]);
    let spread = one_of(random, &[0.01, 3.0, 20.0, 100.0, 1e30]) / levels as f32;
    let impossible = one_of(random, &[0, 0, 5, 95]);
    let shift = random.below(levels) as f32;
    (0..vocab)
        .map(|_| match random.below(100) < impossible {
            true => f32::NEG_INFINITY,
            false => (random.below(levels) as f32 - shift) * spread * if random.below(2) == 0 { -1.0 } else { 1.0 },
        })
        .collect()
}

fn lists(batch: &mut Batch, row: &mut Row, vocab: usize, random: &mut Random) {
    let wanted = vocab.min(30) + 2;
    let mut tokens: Vec<u32> = (0..wanted).map(|_| random.below(vocab + 3) as u32).collect();
    if random.below(2) == 0 {
        row.masked = [batch.masked.len() as u32, 1 + random.below(4) as u32];
        batch.masked.extend((0..row.masked[1]).map(|i| tokens[i as usize % tokens.len()]));
    }
    tokens.sort_unstable(); // biases may name a token several times
    if random.below(2) == 0 {
        row.biases = [batch.biases.len() as u32, wanted as u32];
        for &token in &tokens {
            batch.biases.push((token, one_of(random, &[-100.0, f32::NEG_INFINITY, 0.1, 2.0, 1e-7])));
        }
    }
    tokens.dedup();
    row.repetition_penalty = one_of(random, &[1.0, 0.5, 1.1, 1.3, 1e-45]);
    row.presence_penalty = one_of(random, &[0.0, 0.3, -2.0]);
    row.frequency_penalty = one_of(random, &[0.0, 0.7, -0.1]);
    row.counts = [batch.counts.len() as u32, tokens.len() as u32];
    for token in tokens {
        batch.counts.push((token, one_of(random, &[0, 0, 1, 2, 17, 100_000])));
    }
}

#[test]
fn draws_of_small_vocabularies() {
    let mut random = Random(7);
    for case in 0..120 {
        let vocab = 1 + random.below([4, 40, 300, 2000][case % 4]);
        let mut batch = Batch::default();
        for _ in 0..[60, 40, 20, 12][case % 4] {
            let logits = logits(&mut random, vocab);
            let mut row = parameters(&mut random);
            if random.below(3) == 0 {
                lists(&mut batch, &mut row, vocab, &mut random);
            }
            batch.push(logits, row);
        }
        batch.check([32, 64, 128][case % 3], BOTH[case % 2]);
    }
}

#[test]
fn draws_with_whole_blocks() {
    let mut random = Random(8);
    for vocab in [1, 1023, 1024, 1025, 5000] {
        let mut batch = Batch::default();
        for _ in 0..4 {
            let logits = logits(&mut random, vocab);
            batch.push(logits, Row { temperature: 0.8, ..parameters(&mut random) });
        }
        for lanes in BOTH {
            batch.check(1024, lanes);
        }
    }
}

#[test]
fn draws_of_a_large_vocabulary() {
    let mut random = Random(9);
    // Logits distributed like a model's (a sum of uniforms), then flat ones, whose bins overflow the list, and equal
    // ones.
    for levels in [1e7, 1000.0, 1.0] {
        let logits: Vec<f32> = (0..130_003)
            .map(|_| (0..4).map(|_| (random.signed() * levels).floor() / levels).sum::<f64>() as f32 * 4.0)
            .collect();
        let mut batch = Batch { vocab: logits.len(), logits, ..Batch::default() };
        let row = Row { seed: random.bits(), temperature: 0.7, ..PLAIN };
        let all = [(0.7, 0, 0.95), (1000.0, 9000, 0.5), (0.7, 50, 0.9), (0.7, 0, 1.0)];
        for (temperature, top_k, top_p) in all.into_iter().take(if levels > 1e6 { 4 } else { 2 }) {
            batch.rows.push(Row { temperature, top_k, top_p, position: random.bits(), ..row });
        }
        batch.check(256, BOTH[levels as usize % 2]);
    }
}

#[test]
fn rows_without_a_token_say_so() {
    const INF: f32 = f32::INFINITY;
    for temperature in [0.0, 1.0] {
        let mut batch = Batch::default();
        let row = Row { temperature, ..PLAIN };
        let mut late = vec![0.0; 100];
        late[99] = f32::NAN;
        batch.push(late.clone(), row.clone());
        late[40] = INF;
        batch.push(late, row.clone());
        batch.push(vec![-INF; 100], row.clone());
        batch.push(vec![1.0; 100], Row { masked: [0, 100], ..row.clone() });
        batch.push(vec![1.0; 100], row.clone());
        batch.masked = (0..100).collect();
        // An infinite bias turns token 3's -inf into NaN and token 5's finite logit into infinity, which is drawn.
        batch.biases = vec![(3, INF), (5, INF)];
        let mut odd = vec![1.0; 100];
        odd[3] = -INF;
        batch.push(odd, Row { biases: [0, 2], ..row });
        batch.rows[4].row = u32::MAX;
        for lanes in BOTH {
            let none = (u32::MAX, NO_CANDIDATE);
            let expected = [(99, BROKEN), (40, BROKEN), none, none, UNTOUCHED, (5, 0)];
            assert_eq!(batch.run(64, lanes), expected);
        }
    }
}
