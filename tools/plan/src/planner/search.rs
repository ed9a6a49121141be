//! The search for the load that a layout carries.

use super::demand::Demand;
use super::layout::{Layout, devices};
use crate::cost::StepWork;
use crate::report::Report;
use crate::sim::simulate;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

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

impl Demand {
    /// Figures of a layout at a load.
    pub fn at(&self, layout: &Layout, rate: f64, count: usize) -> Option<Report> {
        let deployment = self.deployment(layout)?;
        let outcome = simulate(&deployment, &self.source.workload(rate, count, self.seed));
        Some(Report::new(&deployment, &outcome, &self.slo))
    }

    /// The highest load at which the layout keeps the limits, to within 3 %. None if it keeps them at no load.
    pub fn peak(&self, layout: &Layout, count: usize) -> Option<Peak> {
        let keeps = |rate: f64| self.at(layout, rate, count).filter(|report| report.attainment >= self.attainment);
        let guess = match layout {
            Layout::Mixed(group, _) => group.engines as f64 * self.prefill_capacity(group.degree) / 2.0,
            Layout::Apart(p, d) => (p.engines as f64 * self.prefill_capacity(p.degree))
                .min(d.engines as f64 * self.decode_capacity(d.degree)),
        };
        let (mut low, mut high) = (None, guess.max(1e-3));
        while low.is_none() {
            match keeps(high) {
                Some(report) => low = Some((high, report)),
                None if high < guess / 500.0 => return None,
                None => high /= 1.6,
            }
        }
        let (mut rate, mut report) = low?;
        // Rates above `rate` that were tried have failed, unless the first guess held.
        high = rate * 1.6;
        while let Some(better) = (rate >= guess * 0.99).then(|| keeps(high)).flatten() {
            (rate, report, high) = (high, better, high * 1.6);
        }
        while high / rate > 1.03 {
            let middle = (rate * high).sqrt();
            match keeps(middle) {
                Some(better) => (rate, report) = (middle, better),
                None => high = middle,
            }
        }
        Some(Peak { layout: *layout, rate, given: self.cell(), report })
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

    /// Peaks of layouts, the best first. Threads take layouts as they become free; the result does not depend on them.
    pub fn peaks(&self, layouts: &[Layout], count: usize) -> Vec<Peak> {
        let next = AtomicUsize::new(0);
        let found = Mutex::new(Vec::new());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((index, layout)) = {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        layouts.get(index).map(|layout| (index, layout))
                    } {
                        let peak = self.peak(layout, count);
                        found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((index, peak));
                    }
                });
            }
        });
        let mut found = found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        found.sort_by_key(|peak| peak.0);
        let mut peaks: Vec<Peak> = found.into_iter().filter_map(|peak| peak.1).collect();
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
