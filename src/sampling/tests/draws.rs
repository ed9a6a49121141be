//! The draw: which token comes out of which distribution.

use super::super::{Ctx, Scratch, TokenCounts, math, philox, sample};
use super::{P, logits_of, token, warm};
use crate::sequence::SamplingParams;

/// Frequencies of 20,000 draws against probabilities: chi-square at 99.9%.
fn follows(logits: &[f32], params: &SamplingParams, expected: &[f64]) {
    const DRAWS: u32 = 20_000;
    const CRITICAL: [f64; 8] = [0.0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32];
    let mut counts = vec![0.0; logits.len()];
    for position in 0..DRAWS {
        counts[token(logits, params, u64::from(position)) as usize] += 1.0;
    }
    let (mut chi, mut kept) = (0.0, 0);
    for (count, p) in counts.iter().zip(expected) {
        let mean = p * f64::from(DRAWS);
        if *p == 0.0 {
            assert_eq!(*count, 0.0, "{counts:?}");
        } else {
            chi += (count - mean) * (count - mean) / mean;
            kept += 1;
        }
    }
    assert!(chi < CRITICAL[kept - 1], "chi-square {chi} of {counts:?}, not {expected:?}");
}

fn normalised(p: [f64; 8]) -> [f64; 8] {
    let total: f64 = p.iter().sum();
    p.map(|p| p / total)
}

#[test]
fn draws_follow_the_distribution() {
    let logits = logits_of(&P);
    follows(&logits, &warm(), &P);
    let half = SamplingParams { temperature: 0.5, ..warm() };
    follows(&logits, &half, &normalised(P.map(|p| p * p)));
    let top_k = SamplingParams { top_k: 3, ..warm() };
    follows(&logits, &top_k, &normalised([0.0, 0.3, 0.0, 0.25, 0.0, 0.15, 0.0, 0.0]));
    // 0.3 + 0.25 + 0.15 reach 0.65.
    let top_p = SamplingParams { top_p: 0.65, ..warm() };
    follows(&logits, &top_p, &normalised([0.0, 0.3, 0.0, 0.25, 0.0, 0.15, 0.0, 0.0]));
    // At least 0.25 × 0.3.
    let min_p = SamplingParams { min_p: 0.25, ..warm() };
    follows(&logits, &min_p, &normalised([0.0, 0.3, 0.0, 0.25, 0.1, 0.15, 0.1, 0.0]));
    // Two of the top three tokens suffice: 0.55 / 0.7 is more than 0.75.
    let both = SamplingParams { top_k: 3, top_p: 0.75, ..warm() };
    follows(&logits, &both, &normalised([0.0, 0.3, 0.0, 0.25, 0.0, 0.0, 0.0, 0.0]));
}

#[test]
fn top_p_looks_as_far_as_it_must() {
    // 5000 equal tokens: half of them, those with the lowest ids, by more than one enlargement of the search.
    let logits = vec![1.0; 5000];
    let params = SamplingParams { top_p: 0.5, ..warm() };
    let tokens: Vec<u32> = (0..500).map(|position| token(&logits, &params, position)).collect();
    assert!(tokens.iter().all(|&token| token < 2500) && tokens.iter().any(|&token| token > 2300));
    // Filters that keep everything do not change a draw.
    for position in 0..100 {
        let all = SamplingParams { top_p: 0.999_999_9, top_k: 4999, min_p: 1e-6, ..warm() };
        let near = token(&logits, &warm(), position).abs_diff(token(&logits, &all, position));
        assert!(near <= 2, "off by {near}");
    }
}

#[test]
fn greedy_takes_the_largest_and_the_lowest_id_of_equals() {
    let greedy = SamplingParams::default();
    assert_eq!(token(&[0.5, 2.0, -1.0, 2.0], &greedy, 0), 1);
    assert_eq!(token(&[-3.0, -0.0, 0.0], &greedy, 0), 1);
    for position in 0..50 {
        let logits: Vec<f32> = (0..300).map(|i| (i * i * 37 % 101) as f32 * 0.1).collect();
        let wanted = token(&logits, &greedy, position);
        for params in [
            SamplingParams { top_k: 1, ..warm() },
            SamplingParams { top_p: 1e-9, ..warm() },
            SamplingParams { min_p: 1.0, top_k: 1, ..warm() },
            SamplingParams { temperature: 1e-30, top_k: 1, ..warm() },
        ] {
            assert_eq!(token(&logits, &params, position), wanted);
        }
    }
}

#[test]
fn seed_and_position_decide_and_nothing_else() {
    let logits = logits_of(&P);
    let mut scratch = Scratch::default();
    let draws = |seed, scratch: &mut Scratch| -> Vec<u32> {
        let params = SamplingParams { seed, top_p: 0.9, ..warm() };
        let one = |position| {
            let ctx = Ctx { counts: &TokenCounts::default(), generated: 0, position, eos_ids: &[7] };
            sample(&mut logits.clone(), &params, ctx, scratch).unwrap().token
        };
        (0..64).map(one).collect()
    };
    let first = draws(1, &mut scratch);
    assert_eq!(first, draws(1, &mut scratch));
    assert_ne!(first, draws(2, &mut scratch));
    assert!(first.iter().any(|&token| token != first[0]));
    // Scratch used for another vocabulary meanwhile, and another history, change nothing.
    let repeat = SamplingParams { repetition_penalty: 1.5, frequency_penalty: 1.0, logprobs: Some(3), ..warm() };
    let counts = TokenCounts::new(&repeat, &[3, 4, 49, 99], 1);
    let ctx = Ctx { counts: &counts, generated: 3, position: 4, eos_ids: &[7] };
    sample(&mut [1.0; 50], &repeat, ctx, &mut scratch).unwrap();
    assert_eq!(first, draws(1, &mut scratch));
}

/// The draw by its definition: everything sorted, sums one after the other.
fn plainly(logits: &[f32], params: &SamplingParams, position: u64) -> u32 {
    let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).filter(|c| c.1 > f32::NEG_INFINITY).collect();
    sorted.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    let scale = 1.0 / f64::from(params.temperature);
    let largest = f64::from(sorted[0].1);
    let weight = |logit: f32| {
        let distance = (largest - f64::from(logit)) * scale;
        let one = (1u64 << 42) as f64;
        if distance < 30.0 { (math::exp(-distance) * one).round_ties_even() as u64 } else { 0 }
    };
    if params.top_k > 0 {
        sorted.truncate(params.top_k as usize);
    }
    let total: u64 = sorted.iter().map(|c| weight(c.1)).sum();
    if params.top_p < 1.0 {
        let wanted = f64::from(params.top_p) * total as f64;
        let mut sum = 0;
        let reached = sorted.iter().position(|c| {
            sum += weight(c.1);
            sum as f64 >= wanted
        });
        sorted.truncate(reached.unwrap() + 1);
    }
    sorted.retain(|c| weight(c.1) as f64 >= f64::from(params.min_p) * (1u64 << 42) as f64);
    sorted.sort_by_key(|c| c.0);
    let total: u64 = sorted.iter().map(|c| weight(c.1)).sum();
    let random = philox::random53(params.seed, position);
    let mut left = (u128::from(random) * u128::from(total)) >> 53;
    for (id, logit) in sorted {
        let weight = u128::from(weight(logit));
        if weight > left {
            return id;
        }
        left -= weight;
    }
    unreachable!()
}

#[test]
fn draws_are_those_of_the_definition() {
    for case in 0..3000 {
        let random = |i| philox::random53(case, i);
        let vocab = 1 + random(0) % [5, 40, 1500][case as usize % 3];
        let levels = [3, 50, 1 << 30][random(1) as usize % 3];
        let spread = [0.1, 8.0, 60.0][random(2) as usize % 3] / levels as f32;
        let mut logits: Vec<f32> = (0..vocab).map(|i| (random(100 + i) % levels) as f32 * spread - 5.0).collect();
        if vocab > 1 {
            logits[(random(3) % vocab) as usize] = f32::NEG_INFINITY;
        }
        let params = SamplingParams {
            temperature: [1e-30, 0.3, 1.0, 1000.0][random(4) as usize % 4],
            top_k: [0, 1, 2, 20, 700][random(5) as usize % 5],
            top_p: [1.0, 1e-9, 0.3, 0.9, 0.999_999][random(6) as usize % 5],
            min_p: [0.0, 0.0, 0.1, 1.0][random(7) as usize % 4],
            seed: case,
            ..warm()
        };
        assert_eq!(token(&logits, &params, case), plainly(&logits, &params, case), "case {case}: {params:?}");
    }
}
