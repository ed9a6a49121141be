//! Changes to logits that depend on the tokens so far. All are derived from the tokens each time, so a
//! snapshot carries no counts.

use super::Ctx;
use crate::sequence::SamplingParams;

/// Marks by vocabulary id. Bumping the epoch clears them all.
#[derive(Default)]
pub(super) struct Marks {
    epoch: u32,
    /// Epoch and count.
    marks: Vec<(u32, u32)>,
    /// Ids marked in this epoch, by first occurrence.
    ids: Vec<u32>,
}

impl Marks {
    /// Counts `tokens` below `vocab`.
    fn count(&mut self, tokens: &[u32], vocab: usize) {
        self.ids.clear();
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 || self.marks.len() != vocab {
            self.marks.clear();
            self.marks.resize(vocab, (0, 0));
            self.epoch = 1;
        }
        for &token in tokens {
            let Some(mark) = self.marks.get_mut(token as usize) else { continue };
            if mark.0 == self.epoch {
                mark.1 += 1;
            } else {
                *mark = (self.epoch, 1);
                self.ids.push(token);
            }
        }
    }
}

/// Logit bias; repetition penalty (CTRL, Keskar et al. 2019, as Hugging Face applies it: divides positive
/// logits, multiplies others) over all tokens; frequency and presence penalty (OpenAI's formula) over the
/// tokens generated in this turn, as they would count if the conversation were sent anew as a prompt; and,
/// before `min_new_tokens`, EOS and stop ids are masked.
pub(super) fn apply(logits: &mut [f32], params: &SamplingParams, ctx: &Ctx<'_>, marks: &mut Marks) {
    for &(id, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit += bias;
        }
    }
    if params.repetition_penalty != 1.0 {
        marks.count(ctx.tokens, logits.len());
        for &id in &marks.ids {
            let logit = &mut logits[id as usize];
            *logit = if *logit > 0.0 { *logit / params.repetition_penalty } else { *logit * params.repetition_penalty };
        }
    }
    if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
        let turn = ctx.prompts.last().map_or(0, |prompt| prompt.1 as usize);
        marks.count(ctx.tokens.get(turn..).unwrap_or_default(), logits.len());
        for &id in &marks.ids {
            let count = marks.marks[id as usize].1 as f32;
            logits[id as usize] -= params.frequency_penalty * count + params.presence_penalty;
        }
    }
    if ctx.generated < params.min_new_tokens {
        for &id in ctx.eos_ids.iter().chain(&params.stop_ids) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}
