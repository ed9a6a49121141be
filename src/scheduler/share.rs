//! Division of a prompt budget by max-min fairness, in whole chunks.

use super::CHUNK;

/// Buffers of a division, reused from step to step.
#[derive(Default)]
pub(super) struct Share {
    sorted: Vec<usize>,
    /// Tokens for each need, in the order of the needs.
    pub amounts: Vec<usize>,
}

impl Share {
    /// Fills `amounts`: each gets an equal share, or its need if that is less (progressive filling; Bertsekas and Gallager, Data
    /// Networks, 6.5.2). The equal share is rounded up to whole chunks, at the expense of the last ones in line. The amounts add
    /// up to exactly min(budget, sum of needs).
    pub fn divide(&mut self, budget: usize, needs: impl Iterator<Item = usize> + Clone) {
        self.sorted.clear();
        self.sorted.extend(needs.clone());
        self.sorted.sort_unstable();
        let (mut left, mut n, mut unmet, mut even) = (budget, self.sorted.len(), usize::MAX, 0);
        for &need in &self.sorted {
            if need > left / n {
                (unmet, even) = (need, (left / n).max(1).next_multiple_of(CHUNK));
                break;
            }
            left -= need;
            n -= 1;
        }
        self.amounts.clear();
        for need in needs {
            if need < unmet {
                self.amounts.push(need);
            } else {
                let amount = need.min(even).min(left);
                left -= amount;
                self.amounts.push(amount);
            }
        }
    }
}
