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
        Some(Peak { layout: *layout, rate, report })
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
        peaks.sort_by(|a, b| per_device(b).total_cmp(&per_device(a)));
        peaks
    }
}

/// Requests per second and device at a peak.
pub fn per_device(peak: &Peak) -> f64 {
    peak.rate / devices(&peak.layout) as f64
}
