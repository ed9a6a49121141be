//! Selects the k largest logits without sorting all of them.

use std::cmp::Ordering;

/// A token and its logit.
pub(super) type Candidate = (u32, f32);

/// Orders candidates by descending logit, and by ascending id on ties. It is a total order if no logit is NaN.
pub(super) fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

/// Fills `out` with the `k` likeliest of `logits`, in no particular order, leaving out −∞. One pass collects the logits that beat
/// the k-th best so far, and cuts back to k when it has 2k of them. For small k, most logits cost one comparison.
pub(super) fn top_k(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    out.clear();
    if k == 0 {
        return;
    }
    let mut bar = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        // A logit equal to the bar loses, because ids ascend and the lower id wins.
        if logit > bar {
            out.push((id as u32, logit));
            if out.len() >= k.saturating_mul(2).max(64) {
                cut(out, k);
                bar = out.iter().fold(f32::INFINITY, |least, c| least.min(c.1));
            }
        }
    }
    cut(out, k);
}

fn cut(out: &mut Vec<Candidate>, k: usize) {
    if k < out.len() {
        out.select_nth_unstable_by(k - 1, likelier);
    }
    out.truncate(k);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::philox::uniform;

    #[test]
    fn agrees_with_a_sort() {
        for case in 0..200 {
            let n = 1 + (uniform(1, case) * 500.0) as u64;
            let levels = 1.0 + uniform(2, case) * 100.0;
            let logit = |i| match (uniform(3 + case, i) * levels) as u32 {
                0 => f32::NEG_INFINITY,
                level => level as f32,
            };
            let logits: Vec<f32> = (0..n).map(logit).collect();
            let mut sorted: Vec<Candidate> = (0..).zip(logits.iter().copied()).collect();
            sorted.retain(|c| c.1 > f32::NEG_INFINITY);
            sorted.sort_by(likelier);
            for k in [0, 1, 2, 7, 40, 499, 1000, usize::MAX] {
                let mut out = Vec::new();
                top_k(&logits, k, &mut out);
                out.sort_by(likelier);
                assert_eq!(out, sorted[..k.min(sorted.len())], "n {n}, k {k}");
            }
        }
    }
}
