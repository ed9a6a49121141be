//! Traffic whose rate can be chosen.

use crate::workload::{Arrival, Lengths, SharedPrefix, Workload, poisson};

/// Where requests come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A Poisson process.
    Poisson {
        /// Lengths.
        lengths: Lengths,
        /// Shared beginnings of prompts.
        shared: Option<SharedPrefix>,
    },
    /// A trace, replayed faster or slower. Its requests must not all arrive at once.
    Trace(Vec<Arrival>),
}

impl Source {
    /// About `count` requests that arrive at `rate` per second.
    pub fn workload(&self, rate: f64, count: usize, seed: u64) -> Workload {
        match self {
            Source::Poisson { lengths, shared } => Workload::Open(poisson(rate, count, *lengths, *shared, seed)),
            Source::Trace(arrivals) => {
                let part = match count < arrivals.len() {
                    true => pieces(arrivals, count),
                    false => repeated(arrivals, count),
                };
                let seconds = part.last().map_or(0.0, |last| last.at_ns as f64 / 1e9).max(1e-3);
                let factor = rate * seconds / part.len() as f64;
                Workload::Open(part).faster(factor)
            }
        }
    }

    /// Mean tokens of prompts and of answers.
    pub fn means(&self) -> (f64, f64) {
        match self {
            Source::Poisson { lengths, .. } => (lengths.prompt as f64, lengths.output as f64),
            Source::Trace(arrivals) => {
                let n = arrivals.len() as f64;
                let sum = |of: fn(&Arrival) -> usize| arrivals.iter().map(of).sum::<usize>() as f64 / n;
                (sum(|arrival| arrival.prompt), sum(|arrival| arrival.output))
            }
        }
    }
}

/// Number of places from which a part of a trace is taken, so that it has quiet and busy times.
const PIECES: usize = 4;

/// About `count` requests of a trace: consecutive ones from evenly distributed places, one piece after the other.
fn pieces(arrivals: &[Arrival], count: usize) -> Vec<Arrival> {
    let each = count.div_ceil(PIECES).min(arrivals.len() / PIECES).max(1);
    let mut part: Vec<Arrival> = Vec::with_capacity(each * PIECES);
    for piece in 0..PIECES {
        let first = piece * (arrivals.len() - each) / (PIECES - 1);
        let taken = &arrivals[first..first + each];
        // The gap before a piece is the one that its first request has in the trace.
        let gap = arrivals[first].at_ns - arrivals[first.saturating_sub(1)].at_ns;
        let begin = part.last().map_or(0, |last| last.at_ns + gap);
        part.extend(taken.iter().map(|one| Arrival { at_ns: begin + one.at_ns - taken[0].at_ns, ..one.clone() }));
    }
    part
}

/// `count` requests from a trace that is repeated as often as needed. Prefixes are new in every round.
fn repeated(arrivals: &[Arrival], count: usize) -> Vec<Arrival> {
    let n = arrivals.len() as u64;
    let last = arrivals.last().map_or(0, |last| last.at_ns);
    // A round lasts as long as the trace plus its mean gap.
    let round_ns = last + last / (n - 1).max(1);
    let one = |index: usize| {
        let (round, of_trace) = ((index as u64 / n), &arrivals[index % arrivals.len()]);
        let blocks = of_trace.blocks.iter().map(|name| name.wrapping_add(round << 48)).collect();
        Arrival { at_ns: of_trace.at_ns + round * round_ns, blocks, ..of_trace.clone() }
    };
    (0..count).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(n: u64) -> Vec<Arrival> {
        let one = |i: u64| Arrival { at_ns: i * i * 1_000_000, prompt: i as usize + 1, output: 1, blocks: [i].into() };
        (0..n).map(one).collect()
    }

    fn arrivals(source: &Source, rate: f64, count: usize) -> Vec<Arrival> {
        match source.workload(rate, count, 1) {
            Workload::Open(arrivals) => arrivals,
            Workload::Closed { .. } => panic!("a trace has its own times"),
        }
    }

    #[test]
    fn a_part_of_a_trace_is_taken_from_all_of_it() {
        let part = arrivals(&Source::Trace(trace(1000)), 5.0, 40);
        let prompts: Vec<usize> = part.iter().map(|arrival| arrival.prompt).collect();
        let expected: Vec<usize> = [0, 330, 660, 990].iter().flat_map(|first| first + 1..first + 11).collect();
        assert_eq!(prompts, expected);
        assert!(part.is_sorted_by_key(|arrival| arrival.at_ns));
        let seconds = part[39].at_ns as f64 / 1e9;
        assert!((40.0 / seconds / 5.0 - 1.0).abs() < 0.01, "{seconds}");
    }

    #[test]
    fn a_short_trace_is_repeated_with_other_prefixes() {
        let part = arrivals(&Source::Trace(trace(3)), 5.0, 9);
        let prompts: Vec<usize> = part.iter().map(|arrival| arrival.prompt).collect();
        assert_eq!(prompts, [1, 2, 3, 1, 2, 3, 1, 2, 3]);
        assert!(part.is_sorted_by_key(|arrival| arrival.at_ns));
        let mut names: Vec<u64> = part.iter().flat_map(|arrival| arrival.blocks.iter().copied()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 9);
        let whole = arrivals(&Source::Trace(trace(3)), 5.0, 3);
        assert_eq!(whole.iter().map(|arrival| arrival.prompt).collect::<Vec<_>>(), [1, 2, 3]);
    }
}
