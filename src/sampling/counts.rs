//! Counts of the tokens of one sequence, for penalties.

use crate::sequence::SamplingParams;
use std::collections::HashMap;

/// The tokens that a sequence's penalties apply to, each with the number of times it was generated since the last prompt.
/// Counted when the sequence begins to run and updated with every token, so that a step need not scan the whole context. The
/// counts follow from the sequence and its parameters, so a KV handle does not carry them.
#[derive(Clone, Debug, Default)]
pub struct TokenCounts {
    /// Tokens with their counts, in the order of first occurrence.
    entries: Vec<(u32, u32)>,
    /// Index into `entries` by token.
    places: HashMap<u32, usize>,
    /// Whether any penalty is set. Without one, nothing is counted.
    wanted: bool,
}

impl TokenCounts {
    /// Counts `tokens`, of which those from index `turn` on were generated since the last prompt. Earlier ones get the count 0.
    /// They are listed only for the repetition penalty, which asks whether a token occurs and not how often.
    pub fn new(params: &SamplingParams, tokens: &[u32], turn: usize) -> TokenCounts {
        let repetition = params.repetition_penalty != 1.0;
        let wanted = repetition || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
        let mut counts = TokenCounts { wanted, ..TokenCounts::default() };
        if wanted {
            let (before, generated) = tokens.split_at(turn.min(tokens.len()));
            let before = if repetition { before } else { &[] };
            before.iter().for_each(|&token| counts.add(token, 0));
            generated.iter().for_each(|&token| counts.add(token, 1));
        }
        counts
    }

    /// Counts a token that was generated.
    pub fn push(&mut self, token: u32) {
        if self.wanted {
            self.add(token, 1);
        }
    }

    /// Tokens with their counts; empty if no penalty is set.
    pub fn entries(&self) -> &[(u32, u32)] {
        &self.entries
    }

    fn add(&mut self, token: u32, times: u32) {
        let place = *self.places.entry(token).or_insert_with(|| {
            self.entries.push((token, 0));
            self.entries.len() - 1
        });
        self.entries[place].1 += times;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_occurs_and_what_was_generated_counts() {
        let params = SamplingParams { repetition_penalty: 1.5, ..SamplingParams::default() };
        let mut counts = TokenCounts::new(&params, &[3, 5, 3], 3);
        [5, 7, 5].into_iter().for_each(|token| counts.push(token));
        assert_eq!(counts.entries(), [(3, 0), (5, 2), (7, 1)]);
    }

    #[test]
    fn only_the_repetition_penalty_looks_at_prompts() {
        let params = SamplingParams { frequency_penalty: 1.0, ..SamplingParams::default() };
        let mut counts = TokenCounts::new(&params, &[3, 5, 3], 3);
        [5, 3].into_iter().for_each(|token| counts.push(token));
        assert_eq!(counts.entries(), [(5, 1), (3, 1)]);
        let mut none = TokenCounts::new(&SamplingParams::default(), &[3, 5, 3], 3);
        none.push(5);
        assert!(none.entries().is_empty());
    }

    /// The counts depend on the sequence alone, so a handoff does not change them.
    #[test]
    fn kept_up_or_made_anew_counts_are_the_same() {
        let params = SamplingParams { repetition_penalty: 0.9, presence_penalty: 0.3, ..SamplingParams::default() };
        let mut tokens = vec![1, 2, 1];
        let mut kept = TokenCounts::new(&params, &tokens, 3);
        for token in [2, 9, 9, 4, 1] {
            tokens.push(token);
            kept.push(token);
            assert_eq!(kept.entries(), TokenCounts::new(&params, &tokens, 3).entries());
        }
    }
}
