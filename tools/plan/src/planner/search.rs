//! The search for the load that a layout carries.

use super::demand::Demand;
use super::layout::{Layout, devices};
use crate::cost::StepWork;
use crate::report::Report;
use crate::sim::simulate;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Relative precision of a load that is searched.
const PRECISION: f64 = 0.03;
/// Longest good requests, one after the other, in a simulation.
const STAYS: f64 = 6.0;
/// Bound of that, in multiples of the least number of requests.
const MOST: usize = 8;

/// The highest load at which a layout keeps the limits.
#[derive(Clone, Debug)]
pub struct Peak {
    /// The layout.
    pub layout: Layout,
    /// Requests per second.
    pub rate: f64,
    /// Devices given for the layout, including those that it leaves idle.
    pub given: usize,
    /// Figures at that load.
    pub report: Report,
}

/// Results of a function for each of `items`, in their order. Threads take items as they become free.
pub fn parallel<T: Sync, R: Send>(items: &[T], of: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((index, item)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    items.get(index).map(|item| (index, item))
                } {
                    let result = of(item);
                    found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((index, result));
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    found.sort_by_key(|result| result.0);
    found.into_iter().map(|result| result.1).collect()
}

/// The highest load at which `keeps` returns something, to within 3 %, and what it returns there. The search begins at `guess`;
/// None if there is nothing down to a five-hundredth of it.
pub fn highest<R>(guess: f64, keeps: impl Fn(f64) -> Option<R>) -> Option<(f64, R)> {
    let (mut low, mut high) = (None, guess);
    while low.is_none() {
        match keeps(high) {
            Some(found) => low = Some((high, found)),
            None if high < guess / 500.0 => return None,
            None => high /= 1.6,
        }
    }
    let (mut load, mut found) = low?;
    // Loads above `load` that were tried have failed, unless the first guess held.
    high = load * 1.6;
    while let Some(better) = (load >= guess * 0.99).then(|| keeps(high)).flatten() {
        (load, found, high) = (high, better, high * 1.6);
    }
    while high / load > 1.0 + PRECISION {
        let middle = (load * high).sqrt();
        match keeps(middle) {
            Some(better) => (load, found) = (middle, better),
            None => high = middle,
        }
    }
    Some((load, found))
}

impl Demand {
    /// Figures of a layout at a load, from at least `least` requests. There are more where the rate is so high that these would
    /// arrive within a few times of the longest good request: a queue that grows for ever would not be long by then.
    pub fn at(&self, layout: &Layout, rate: f64, least: usize) -> Option<Report> {
        let deployment = self.deployment(layout)?;
        let (_, output) = self.source.means();
        let stay = self.slo.ttft + output * self.slo.itl;
        let count = ((STAYS * stay * rate) as usize).clamp(least, MOST * least);
        let outcome = simulate(&deployment, &self.source.workload(rate, count, self.seed));
        Some(Report::new(&deployment, &outcome, &self.slo))
    }

    /// The highest load that the layout keeps up with within the limits, to within 3 %. None if there is none.
    pub fn peak(&self, layout: &Layout, least: usize) -> Option<Peak> {
        let guess = match layout {
            Layout::Mixed(group, _) => group.engines as f64 * self.prefill_capacity(group.degree) / 2.0,
            Layout::Apart(p, d) => (p.engines as f64 * self.prefill_capacity(p.degree))
                .min(d.engines as f64 * self.decode_capacity(d.degree)),
        };
        self.peak_near(layout, guess.max(1e-3), least)
    }

    fn peak_near(&self, layout: &Layout, guess: f64, least: usize) -> Option<Peak> {
        let (rate, report) = highest(guess, |rate| self.keeps(layout, rate, least))?;
        Some(Peak { layout: *layout, rate, given: self.cell(), report })
    }

    fn keeps(&self, layout: &Layout, rate: f64, least: usize) -> Option<Report> {
        let report = self.at(layout, rate, least)?;
        (report.attainment >= self.attainment && report.keeping_up >= 1.0 - PRECISION).then_some(report)
    }

    /// The layout with the highest load, and its peak. One that is better by less than the precision of a search does not
    /// replace one before it, so most layouts take a single simulation.
    pub fn best(&self, layouts: &[Layout], least: usize) -> Option<Peak> {
        let mut best: Option<Peak> = None;
        for layout in layouts {
            let found = match &best {
                None => self.peak(layout, least),
                Some(best) => {
                    let more = best.rate * (1.0 + PRECISION);
                    self.keeps(layout, more, least).and_then(|_| self.peak_near(layout, more, least))
                }
            };
            best = found.or(best);
        }
        best
    }

    /// Least seconds to the first token and between tokens over all degrees, for a request alone.
    pub fn alone(&self) -> (f64, f64) {
        let (prompt, _) = self.source.means();
        let best = |work: StepWork| {
            let times = self.degrees(self.cell()).into_iter().map(|degree| self.cost(degree).seconds(&work));
            times.fold(f64::INFINITY, f64::min)
        };
        (best(StepWork::prefill(prompt as usize, 0)), best(StepWork::decode(1, prompt)))
    }

    /// Peaks of layouts, the best first.
    pub fn peaks(&self, layouts: &[Layout], least: usize) -> Vec<Peak> {
        let mut peaks: Vec<Peak> = parallel(layouts, |layout| self.peak(layout, least)).into_iter().flatten().collect();
        peaks.sort_by(|a, b| b.rate_per_device().total_cmp(&a.rate_per_device()));
        peaks
    }
}

impl Peak {
    /// Requests per second and given device.
    pub fn rate_per_device(&self) -> f64 {
        self.rate / self.given as f64
    }

    /// Generated tokens per second and given device.
    pub fn tokens_per_device(&self) -> f64 {
        // The report knows only the devices that the layout uses.
        self.report.tokens_per_device * devices(&self.layout) as f64 / self.given as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Group, Source};
    use super::*;
    use crate::hardware::device;
    use crate::models::model;
    use crate::report::Slo;
    use crate::sim::Routing;
    use crate::workload::Lengths;

    fn demand(devices: usize) -> Demand {
        Demand {
            model: model("llama-3.1-8b").unwrap(),
            device: device("h100").unwrap(),
            devices,
            source: Source::Poisson { lengths: Lengths { prompt: 1000, output: 50, spread: 0.0 }, shared: None },
            slo: Slo { ttft: 1.0, itl: 0.05 },
            attainment: 0.95,
            max_sequences: 256,
            routing: Routing::LeastLoaded,
            seed: 1,
        }
    }

    #[test]
    fn idle_devices_count() {
        let layout = Layout::Mixed(Group { engines: 1, degree: 2 }, 2048);
        let peak = |devices| demand(devices).peak(&layout, 200).unwrap();
        let (full, idle) = (peak(2), peak(3));
        assert_eq!(full.rate, idle.rate);
        let ratio = |a: f64, b: f64| (a / b - 2.0 / 3.0).abs() < 1e-9;
        assert!(ratio(idle.rate_per_device(), full.rate_per_device()));
        assert!(ratio(idle.tokens_per_device(), full.tokens_per_device()));
        assert_eq!(full.tokens_per_device(), full.report.tokens_per_device);
    }

    /// Few requests arrive before a queue reaches a loose limit, so a limit alone would allow any load.
    #[test]
    fn a_peak_is_no_overload() {
        let base = demand(1);
        let Source::Poisson { lengths, .. } = base.source else { panic!("a Poisson process") };
        let layout = Layout::Mixed(Group { engines: 1, degree: 1 }, 2048);
        for (output, ttft) in [(1, 2.0), (50, 2.0), (50, 1e6)] {
            let source = Source::Poisson { lengths: Lengths { output, ..lengths }, shared: None };
            let demand = Demand { source, slo: Slo { ttft, itl: 1.0 }, ..base.clone() };
            let peak = demand.peak(&layout, 200).unwrap();
            let carried = demand.at(&layout, 2.0 * peak.rate, 2000).unwrap().tokens_per_device / output as f64;
            let share = peak.rate / carried;
            assert!((0.8..1.05).contains(&share), "{} of {carried} requests/s, {output} tokens each", peak.rate);
        }
    }

    /// A prompt of one step begins at 0, and attention reads nothing before it.
    #[test]
    fn a_prompt_of_one_step_takes_as_long_as_that_step() {
        let demand = demand(1);
        let step = demand.cost(1).saturating_tokens();
        let Source::Poisson { lengths, .. } = &demand.source else { panic!("a Poisson process") };
        let lengths = Lengths { prompt: step / 2, ..*lengths };
        let short = Demand { source: Source::Poisson { lengths, shared: None }, ..demand };
        let seconds = short.cost(1).seconds(&StepWork::prefill(step / 2, 0));
        assert!((short.prefill_capacity(1) * seconds - 1.0).abs() < 1e-9);
    }
}
