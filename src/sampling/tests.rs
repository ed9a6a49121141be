//! Sampling and stopping against values worked out by hand.

use super::{Ctx, Sampled, Scratch, TokenCounts, check, sample, validate};
use crate::error::{Result, Status};
use crate::sequence::{FinishReason, SamplingParams};

/// Samples after `tokens`, of which those from `turn` on were generated.
fn after(logits: &mut [f32], params: &SamplingParams, tokens: &[u32], turn: usize) -> Result<Sampled> {
    let counts = TokenCounts::new(params, tokens, turn);
    let generated = (tokens.len() - turn) as u32;
    let ctx = Ctx { counts: &counts, generated, position: tokens.len() as u64, eos_ids: &[7] };
    sample(logits, params, ctx, &mut Scratch::default())
}

fn at(logits: &[f32], params: &SamplingParams, position: u64) -> Result<Sampled> {
    let ctx = Ctx { counts: &TokenCounts::default(), generated: 0, position, eos_ids: &[7] };
    sample(&mut logits.to_vec(), params, ctx, &mut Scratch::default())
}

fn token(logits: &[f32], params: &SamplingParams, position: u64) -> u32 {
    at(logits, params, position).unwrap().token
}

/// Logits after bias and penalties: what greedy sampling leaves in the buffer.
fn processed(logits: &[f32], params: &SamplingParams, tokens: &[u32], turn: usize) -> Vec<f32> {
    let mut logits = logits.to_vec();
    after(&mut logits, params, tokens, turn).unwrap();
    logits
}

fn warm() -> SamplingParams {
    SamplingParams { temperature: 1.0, seed: 42, ..SamplingParams::default() }
}

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

/// Logits of a distribution.
fn logits_of(p: &[f64]) -> Vec<f32> {
    p.iter().map(|p| p.ln() as f32 + 3.0).collect()
}

const P: [f64; 8] = [0.05, 0.3, 0.02, 0.25, 0.1, 0.15, 0.1, 0.03];

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
    // Of the top three (0.7), 0.55 are more than 0.75.
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
        if distance < 30.0 { (super::math::exp(-distance) * one).round_ties_even() as u64 } else { 0 }
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
    let random = super::philox::random53(params.seed, position);
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
        let random = |i| super::philox::random53(case, i);
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

#[test]
fn penalties_are_those_of_hugging_face_and_openai() {
    let logits = [2.0, -2.0, 1.0, 0.5, -1.0, 3.0, 0.0, -4.0];
    let tokens = [0, 1, 5, 5, 1, 2, 1, 1];
    let repetition = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::default() };
    let expected = [1.0, -4.0, 0.5, 0.5, -1.0, 1.5, 0.0, -4.0];
    assert_eq!(processed(&logits, &repetition, &tokens, 5), expected);
    // Generated in this turn: 2, 1, 1.
    let others = SamplingParams { presence_penalty: 0.5, frequency_penalty: 0.25, ..SamplingParams::default() };
    let expected = [2.0, -3.0, 0.25, 0.5, -1.0, 3.0, 0.0, -4.0];
    assert_eq!(processed(&logits, &others, &tokens, 5), expected);
    let all = SamplingParams { logit_bias: vec![(0, -1.0), (6, 1.0)], ..others };
    let all = SamplingParams { repetition_penalty: 2.0, ..all };
    let expected = [0.5, -5.0, -0.25, 0.5, -1.0, 1.5, 1.0, -4.0];
    assert_eq!(processed(&logits, &all, &tokens, 5), expected);
}

#[test]
fn a_bias_of_minus_infinity_bans_a_token() {
    let params = SamplingParams { logit_bias: vec![(7, f32::NEG_INFINITY)], ..SamplingParams::default() };
    validate(&params, 8).unwrap();
    let logits = [0.0, 1.0, 2.0, 9.0, 0.0, 0.0, 0.0, 10.0];
    let sampled = after(&mut logits.to_vec(), &params, &[0], 1).unwrap();
    assert_eq!(sampled.token, 3);
}

#[test]
fn no_stop_before_min_new_tokens() {
    let params = SamplingParams { min_new_tokens: 2, stop_ids: vec![3], ..SamplingParams::default() };
    let logits = [0.0, 1.0, 2.0, 9.0, 0.0, 0.0, 0.0, 10.0];
    let token = |tokens: &[u32]| after(&mut logits.to_vec(), &params, tokens, 1).unwrap().token;
    assert_eq!([token(&[0]), token(&[0, 1]), token(&[0, 1, 1])], [2, 2, 7]);
}

#[test]
fn logprobs_are_those_of_the_model() {
    let params = SamplingParams {
        logprobs: Some(3),
        logit_bias: vec![(6, 50.0)],
        temperature: 0.3,
        top_k: 2,
        ..SamplingParams::default()
    };
    let sampled = at(&logits_of(&P), &params, 0).unwrap();
    let near = |a: f32, p: f64| assert!((f64::from(a) - p.ln()).abs() < 1e-6, "{a} is not ln {p}");
    assert_eq!(sampled.token, 6);
    near(sampled.logprob, 0.1);
    assert_eq!(sampled.top.iter().map(|top| top.0).collect::<Vec<_>>(), [1, 3, 5]);
    near(sampled.top[0].1, 0.3);
    near(sampled.top[2].1, 0.15);
    let none = at(&logits_of(&P), &warm(), 0).unwrap();
    assert_eq!((none.logprob, none.top.len()), (0.0, 0));
    let zero = SamplingParams { logprobs: Some(0), ..SamplingParams::default() };
    let sampled = at(&logits_of(&P), &zero, 0).unwrap();
    near(sampled.logprob, 0.3);
    assert!(sampled.top.is_empty());
}

#[test]
fn broken_logits_are_an_error() {
    let inf = f32::INFINITY;
    for temperature in [0.0, 1.0] {
        let params = SamplingParams { temperature, ..warm() };
        for (logits, text) in [
            (vec![0.0, f32::NAN], "the logit of token 1 at position 5 is NaN"),
            (vec![inf, 0.0], "the logit of token 0 at position 5 is inf"),
            (vec![-inf, -inf], "no token can be sampled at position 5"),
            (vec![], "no token can be sampled at position 5"),
        ] {
            let error = at(&logits, &params, 5).unwrap_err();
            assert_eq!(error.status, Status::Internal);
            assert!(error.message.starts_with(text), "{error}");
        }
        assert_eq!(token(&[-inf, 1.0, -inf], &params, 5), 1);
        // A penalty that overflows is no panic either.
        let wild = SamplingParams { repetition_penalty: 1e-45, top_p: 0.9, ..params };
        assert_eq!(token(&[3.0, 1.0], &wild, 5), 0);
    }
}

#[test]
fn stops() {
    let params = SamplingParams {
        stop_ids: vec![5],
        stop_sequences: vec![vec![1, 2, 3]],
        max_new_tokens: 6,
        min_new_tokens: 2,
        ..SamplingParams::default()
    };
    let check = |tokens: &[u32], prompt_end| check(&params, tokens, prompt_end, &[7, 8], 10);
    let (stop, length) = (Some(FinishReason::Stop), Some(FinishReason::Length));
    assert_eq!(check(&[0, 0, 0], 2), None);
    assert_eq!(check(&[0, 0, 0, 8], 2), stop);
    assert_eq!(check(&[0, 0, 0, 5], 2), stop);
    assert_eq!(check(&[0, 0, 0, 5], 3), None, "one of two tokens");
    assert_eq!(check(&[0, 7], 2), None, "the prompt does not stop it");
    assert_eq!(check(&[0, 1, 2, 3], 1), stop);
    assert_eq!(check(&[0, 1, 2, 3], 2), None, "begins in the prompt");
    assert_eq!(check(&[0, 1, 2, 3, 0, 0, 0], 1), length);
    assert_eq!(check(&[0, 0, 0, 0, 0, 0, 7], 1), stop, "stop wins");
    assert_eq!(check(&[0; 10], 9), length, "context");
    let ignore = SamplingParams { ignore_eos: true, ..params.clone() };
    assert_eq!(super::check(&ignore, &[0, 0, 0, 7], 1, &[7], 10), None);
    assert_eq!(super::check(&ignore, &[0, 0, 0, 5], 1, &[7], 10), stop);
}

#[test]
fn parameters_are_validated_by_name() {
    let ok = SamplingParams::default();
    assert!(validate(&ok, 100).is_ok() && validate(&warm(), 100).is_ok());
    let nan = f32::NAN;
    let bad = [
        ("temperature", SamplingParams { temperature: -0.1, ..ok.clone() }),
        ("temperature", SamplingParams { temperature: f32::INFINITY, ..ok.clone() }),
        ("temperature", SamplingParams { temperature: nan, ..ok.clone() }),
        ("top_p", SamplingParams { top_p: 0.0, ..ok.clone() }),
        ("top_p", SamplingParams { top_p: 1.1, ..ok.clone() }),
        ("min_p", SamplingParams { min_p: nan, ..ok.clone() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..ok.clone() }),
        ("presence_penalty", SamplingParams { presence_penalty: 2.5, ..ok.clone() }),
        ("frequency_penalty", SamplingParams { frequency_penalty: -2.5, ..ok.clone() }),
        ("min_new_tokens", SamplingParams { min_new_tokens: 3, max_new_tokens: 2, ..ok.clone() }),
        ("logprobs", SamplingParams { logprobs: Some(101), ..ok.clone() }),
        ("stop_ids", SamplingParams { stop_ids: vec![100], ..ok.clone() }),
        ("stop_sequences", SamplingParams { stop_sequences: vec![vec![1]], ..ok.clone() }),
        ("stop_sequences", SamplingParams { stop_sequences: vec![vec![1, 100]], ..ok.clone() }),
        ("logit_bias", SamplingParams { logit_bias: vec![(100, 1.0)], ..ok.clone() }),
        ("logit_bias", SamplingParams { logit_bias: vec![(1, nan)], ..ok.clone() }),
    ];
    for (field, params) in bad {
        let error = validate(&params, 100).unwrap_err();
        assert_eq!(error.status, Status::InvalidArgument);
        assert!(error.message.starts_with(field), "{error}");
    }
}
