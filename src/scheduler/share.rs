//! Dividing a prompt budget: max-min fairness in whole chunks.

use super::CHUNK;

/// Memory kept from step to step.
#[derive(Default)]
pub(super) struct Share {
    sorted: Vec<usize>,
    pub amounts: Vec<usize>,
}

impl Share {
    /// Fills `amounts`: everyone gets the same, rounded up to whole chunks, or what it needs if that is less
    /// (progressive filling; Bertsekas and Gallager, Data Networks, 6.5.2). Where rounding up makes the budget
    /// end early, the last ones get the rest or nothing. Uses min(budget, sum of needs) exactly.
    pub fn divide(&mut self, mut budget: usize, needs: impl Iterator<Item = usize> + Clone) {
        self.sorted.clear();
        self.sorted.extend(needs.clone());
        self.sorted.sort_unstable();
        let (mut left, mut n, mut even) = (budget, self.sorted.len(), usize::MAX);
        for &need in &self.sorted {
            if need > left / n {
                even = (left / n).next_multiple_of(CHUNK).max(CHUNK);
                break;
            }
            left -= need;
            n -= 1;
        }
        self.amounts.clear();
        for need in needs {
            let amount = need.min(even).min(budget);
            budget -= amount;
            self.amounts.push(amount);
        }
    }
}
