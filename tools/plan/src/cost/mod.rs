//! Duration of a step as a function of its work: by a roofline over published hardware, or fitted to measurements. It knows
//! what a step computes, and must not know requests, time or scheduling.

mod fitted;
mod roofline;

pub use fitted::{Fitted, Sample, read_samples};
pub use roofline::{Efficiency, Roofline};

use cleave::scheduler::Item;

/// Work of one step, added up over its items.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepWork {
    /// Tokens that pass through the layers.
    pub rows: f64,
    /// Rows whose logits are computed.
    pub logits: f64,
    /// Sequences.
    pub sequences: f64,
    /// Context read by items of one token, in tokens.
    pub decode_context: f64,
    /// Pairs of a query and a key in items of more than one token.
    pub prefill_pairs: f64,
}

impl StepWork {
    /// Adds an item of a plan. `attended` is the context that attention reads at a position.
    pub fn add_item(&mut self, item: &Item, attended: impl Fn(f64) -> f64) {
        let (start, len) = (item.start as f64, item.len as f64);
        self.rows += len;
        self.sequences += 1.0;
        self.logits += f64::from(u8::from(item.samples));
        if item.len == 1 {
            self.decode_context += attended(start + 1.0);
        } else {
            // Keys at the middle of the chunk, times the queries.
            self.prefill_pairs += len * attended(start + (len + 1.0) / 2.0);
        }
    }

    /// Work of a step with one chunk of a prompt.
    pub fn prefill(tokens: usize, start: usize) -> StepWork {
        let mut work = StepWork::default();
        work.add_item(&Item { seq: 0, start, len: tokens, samples: true }, |context| context);
        work
    }

    /// Work of a step in which `sequences` generate a token each, at a context of `context` tokens.
    pub fn decode(sequences: usize, context: f64) -> StepWork {
        let n = sequences as f64;
        StepWork { rows: n, logits: n, sequences: n, decode_context: n * context, prefill_pairs: 0.0 }
    }
}

impl std::ops::Add for StepWork {
    type Output = StepWork;

    /// Work of a step with the items of both.
    fn add(self, other: StepWork) -> StepWork {
        StepWork {
            rows: self.rows + other.rows,
            logits: self.logits + other.logits,
            sequences: self.sequences + other.sequences,
            decode_context: self.decode_context + other.decode_context,
            prefill_pairs: self.prefill_pairs + other.prefill_pairs,
        }
    }
}

/// A model of step durations.
#[derive(Clone, Debug)]
pub enum StepCost {
    /// From figures of the device and the model.
    Roofline(Roofline),
    /// From measurements.
    Fitted(Fitted),
    /// A constant duration in seconds, for comparisons with queueing theory.
    Constant(f64),
}

impl StepCost {
    /// Duration of a step in seconds.
    pub fn seconds(&self, work: &StepWork) -> f64 {
        match self {
            StepCost::Roofline(roofline) => roofline.seconds(work),
            StepCost::Fitted(fitted) => fitted.seconds(work),
            StepCost::Constant(seconds) => *seconds,
        }
    }

    /// The smallest power of two of prompt tokens, from 128 to 4096, whose rate is at least 95 % of the best: the rule by
    /// which cleave's engines choose the length of their steps on CUDA devices.
    pub fn saturating_tokens(&self) -> usize {
        let rate = |tokens: usize| tokens as f64 / self.seconds(&StepWork::prefill(tokens, 0)).max(1e-12);
        let lengths = (7..=12).map(|power| 1usize << power);
        let best = lengths.clone().map(rate).fold(0.0, f64::max);
        lengths.clone().find(|&tokens| rate(tokens) >= 0.95 * best).unwrap_or(4096)
    }
}
