//! Before and beside the draw: penalties, biases and masks, log-probabilities, logits that are no numbers.

use super::super::validate;
use super::{P, after, at, logits_of, token, warm};
use crate::error::Status;
use crate::sequence::SamplingParams;

/// Logits after bias and penalties: what greedy sampling leaves in the buffer.
fn processed(logits: &[f32], params: &SamplingParams, tokens: &[u32], turn: usize) -> Vec<f32> {
    let mut logits = logits.to_vec();
    after(&mut logits, params, tokens, turn).unwrap();
    logits
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
